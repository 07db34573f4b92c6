"""The networks that are trained: plain, small, and with their replaceable layers named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of a network: of its inputs and outputs, and of what lies between."""

    width: int
    depth: int
    inputs: tuple[int, ...]  # (features,) or (length,)
    outputs: int  # numbers, classes or the vocabulary
    hidden: float = 1.0  # share of the usual width of the feed-forward's inside: for the narrowed control
    heads: int = 4

    def inside(self) -> int:
        """The feed-forward's inner width, a multiple of 4 so that it stays usual."""
        return max(4, round(self.width * self.hidden) * 4)


@dataclass(frozen=True)
class Family:
    """A kind of network, and which of its layers are replaced, as regular expressions of whole names.

    narrow_width: the narrowed control has a smaller width, since there is no inner one.
    """

    build: Callable[[NetworkShape], nn.Module]
    ff: str
    every: str  # with layers="all"
    narrow_width: bool = False

    def names(self, model: nn.Module, layers: str) -> list[str]:
        """The layers to replace, in the model's order."""
        pattern = self.ff if layers == "ff" else self.every
        return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


class Perceptron(nn.Module):
    """inputs -> width -> ... -> width -> outputs, with GELU; `depth` layers of width x width."""

    def __init__(self, shape: NetworkShape):
        super().__init__()
        self.first = nn.Linear(math.prod(shape.inputs), shape.width)
        self.hidden = nn.ModuleList(nn.Linear(shape.width, shape.width) for _ in range(shape.depth))
        self.last = nn.Linear(shape.width, shape.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.first(x))
        for layer in self.hidden:
            x = functional.gelu(layer(x))
        return self.last(x)


class BareBlock(nn.Module):
    """A transformer's feed-forward block alone: two layers, GELU between."""

    def __init__(self, shape: NetworkShape):
        super().__init__()
        self.up, self.down = nn.Linear(shape.width, shape.inside()), nn.Linear(shape.inside(), shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class ResidualBranch(BareBlock):
    """The block on normed inputs, added to them."""

    def __init__(self, shape: NetworkShape):
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(self.norm(x))


class Attention(nn.Module):
    """The residual branch of causal multi-head attention."""

    def __init__(self, shape: NetworkShape):
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.LayerNorm(shape.width)
        self.query, self.key, self.value, self.out = (nn.Linear(shape.width, shape.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, length, head)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """A decoder: learned places, pre-norm blocks, a head of its own. (batch, length) -> (batch, length, vocabulary)."""

    def __init__(self, shape: NetworkShape):
        super().__init__()
        self.embed = nn.Embedding(shape.outputs, shape.width)
        self.place = nn.Parameter(torch.empty(shape.inputs[0], shape.width).normal_(0, 0.02))
        nn.init.normal_(self.embed.weight, 0, 0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attention": Attention(shape), "feed_forward": ResidualBranch(shape)})
            for _ in range(shape.depth)
        )
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.outputs, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place[: ids.shape[1]]
        for block in self.blocks:
            for branch in block.values():
                x = branch(x)
        return self.head(self.norm(x))


class Nothing(nn.Module):
    """In place of a layer that ends a residual branch: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def remove(model: nn.Module, names: Sequence[str]) -> None:
    """Take the layers out, in place: a residual branch adds nothing, a layer of equal widths passes on.

    Of a block alone the best linear map stays, an eighth of its weights.
    """
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        gone: nn.Module = nn.Identity()
        if child == "down":
            layer = model.get_submodule(name)
            width = int(layer.out_features)  # type: ignore[arg-type]
            gone = Nothing() if isinstance(parent, ResidualBranch) else nn.Linear(width, width)
        parent._modules[child] = gone


_IN_BLOCKS = r"blocks\.\d+\."
_FF, _PROJECTIONS = r"feed_forward\.(up|down)", r"attention\.(query|key|value|out)"
FAMILIES: dict[str, Family] = {
    "mlp": Family(Perceptron, r"hidden\.\d+", r"first|hidden\.\d+", narrow_width=True),
    "block": Family(BareBlock, "up|down", "up|down"),
    "gpt": Family(GPT, _IN_BLOCKS + _FF, rf"{_IN_BLOCKS}({_FF}|{_PROJECTIONS})"),
}
