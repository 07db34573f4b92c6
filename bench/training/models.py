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
    inputs: tuple[int, ...]  # (features,), (side, side, channels) or (length,)
    outputs: int  # numbers, classes or the vocabulary
    hidden: float = 1.0  # share of the usual width of the feed-forward's inside: for the narrowed control
    heads: int = 4

    def inside(self, times: int = 4) -> int:
        """The feed-forward's inner width, a multiple of 4 so that it stays usual."""
        return max(4, round(times * self.width * self.hidden / 4) * 4)


@dataclass(frozen=True)
class Family:
    """A kind of network, and which of its layers are replaced, as regular expressions of whole names."""

    build: Callable[[NetworkShape], nn.Module]
    ff: str
    every: str  # with layers="all"
    down: str | None = None  # layers of `ff` that end a residual branch: removing the branch makes them give zeros
    narrow_width: bool = False  # the narrowed control has a smaller width: there is no inner one

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
        x = functional.gelu(self.first(x.flatten(1)))
        for layer in self.hidden:
            x = functional.gelu(layer(x))
        return self.last(x)


class ResidualBranch(nn.Module):
    """The residual branch of two layers."""

    def __init__(self, width: int, inside: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """The residual branch of multi-head attention."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, length, head)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """A multi-layer perceptron over positions, as MLP-Mixer mixes patches."""

    def __init__(self, width: int, length: int, inside: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(length, inside), nn.Linear(inside, length)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(x).transpose(1, 2)  # (batch, width, length)
        return x + self.down(functional.gelu(self.up(mixed))).transpose(1, 2)


class Patches(nn.Module):
    """A classifier of patches: a ViT, or with `mixer` an MLP-Mixer; the mean over patches is read."""

    def __init__(self, shape: NetworkShape, mixer: bool):
        super().__init__()
        side, _, channels = shape.inputs
        self.patch = 4 if side >= 28 else 2
        length = (side // self.patch) ** 2
        self.embed = nn.Linear(self.patch**2 * channels, shape.width)
        self.place = nn.Parameter(torch.empty(length, shape.width).normal_(0, 0.02))
        mixing: Callable[[], nn.Module] = lambda: Attention(shape.width, shape.heads, causal=False)  # noqa: E731
        if mixer:
            mixing = lambda: Tokens(shape.width, length, 2 * length)  # noqa: E731
        pairs = [(mixing(), ResidualBranch(shape.width, shape.inside())) for _ in range(shape.depth)]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"mixing" if mixer else "attention": m, "feed_forward": f}) for m, f in pairs
        )
        self.norm, self.last = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.outputs)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch
        rows = x.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (batch, down, p, across, p, channels)
        x = self.embed(rows.transpose(2, 3).flatten(3).flatten(1, 2)) + self.place
        for block in self.blocks:
            for branch in block.values():
                x = branch(x)
        return self.last(self.norm(x).mean(1))


class GPT(nn.Module):
    """A decoder: learned places, pre-norm blocks, a head of its own. (batch, length) -> (batch, length, vocabulary)."""

    def __init__(self, shape: NetworkShape):
        super().__init__()
        self.embed = nn.Embedding(shape.outputs, shape.width)
        self.place = nn.Parameter(torch.empty(shape.inputs[0], shape.width).normal_(0, 0.02))
        nn.init.normal_(self.embed.weight, 0, 0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": Attention(shape.width, shape.heads, causal=True),
                    "feed_forward": ResidualBranch(shape.width, shape.inside()),
                }
            )
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


def remove(model: nn.Module, family: Family, names: Sequence[str]) -> None:
    """Take the layers `names` out, in place: a residual branch adds nothing, a layer of equal widths passes on."""
    for name in names:
        ends = family.down is not None and re.fullmatch(family.down, name)
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = Nothing() if ends else nn.Identity()


def _blocks(parts: str) -> str:
    return rf"blocks\.\d+\.({parts})"


PROJECTIONS = r"attention\.(query|key|value|out)"
FF = r"feed_forward\.(up|down)"
FAMILIES: dict[str, Family] = {
    "mlp": Family(Perceptron, r"hidden\.\d+", r"first|hidden\.\d+", narrow_width=True),
    "mixer": Family(
        lambda shape: Patches(shape, mixer=True),
        _blocks(FF),
        _blocks(rf"{FF}|mixing\.(up|down)"),
        _blocks(r"feed_forward\.down"),
    ),
    "vit": Family(
        lambda shape: Patches(shape, mixer=False),
        _blocks(FF),
        _blocks(rf"{FF}|{PROJECTIONS}"),
        _blocks(r"feed_forward\.down"),
    ),
    "gpt": Family(GPT, _blocks(FF), _blocks(rf"{FF}|{PROJECTIONS}"), _blocks(r"feed_forward\.down")),
}
