"""Dense's rivals in fewer bits, as users make them: a layer in bfloat16, and for the forward pass alone in 8 bits.

Each is made of an nn.Linear of the cell's dtype. What it loses is reported, as its error against the float64 product
with the weights before they were rounded; it refuses nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.files.vocabulary import BFLOAT16, FLOAT8, INT8_DYNAMIC
from bench.machine import timing
from bench.sweep.eight_bits import EightBits, rounded
from bench.sweep.subject import Refused, Subject, product
from structures.structure import Structure


class WeightOnly(nn.Module):
    """A layer whose weight is kept in int8 with a scale for each row; inputs stay in their own dtype."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = rounded(linear.weight.detach(), torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten().to(linear.weight.dtype))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype)) * self.scale + self.bias


class Packed(WeightOnly):
    """The same by torch's own operator, which converts the weight as it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale) + self.bias  # type: ignore[no-any-return]


def rival(structure: Structure, form: str, x: Tensor, dtype: torch.dtype) -> Subject:
    """The subject of a dense layer in fewer bits; x is in the dtype that it takes.

    Args:
        dtype: of the layer that it is made of.
    Raises:
        Refused: it has no gradients, or torch does not run it here.
    """
    if form != BFLOAT16 and x.requires_grad:
        raise Refused("a layer in 8 bits is for the forward pass alone: it has no gradients")
    linear = nn.Linear(structure.in_features, structure.out_features, device=x.device, dtype=dtype)
    with warnings.catch_warnings(), torch.set_grad_enabled(x.requires_grad):
        warnings.simplefilter("ignore")  # torch's own quantization is deprecated, torchao's is another package
        try:
            layer, stored, way = _made(linear, form, x)
            layer(x)
        except (RuntimeError, NotImplementedError, AttributeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise Refused(f"torch {torch.__version__} does not run it here: {reason}") from None
    return Subject(
        structure=structure,
        backend=way,
        forward=layer,
        parameters=stored,
        meaning=product,
        plain=product,
        executed_flops=lambda tokens, train: structure.flops(tokens, train=train),
        state=layer.state_dict,
        originals=(linear.weight.detach(), linear.bias.detach()),
    )


class Between(nn.Module):
    """A layer of another dtype where inputs and outputs are of one."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype)).to(x.dtype)  # type: ignore[no-any-return]


def lowered(model: nn.Module, names: Sequence[str], form: str) -> nn.Module:
    """The model with its dense layers of these names in fewer bits, in place; for the forward pass alone."""
    for name in names:
        parent, _, child = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `rival`
            made, _, _ = _made(linear, form, torch.empty(0, linear.in_features))
        setattr(model.get_submodule(parent), child, Between(made, torch.bfloat16) if form == BFLOAT16 else made)
    return model


def _made(linear: nn.Linear, form: str, x: Tensor) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """The layer, the tensors that it keeps (of a layer with gradients its parameters), and the way it runs."""
    if form == BFLOAT16:
        low = copy.deepcopy(linear).to(torch.bfloat16)
        return low, tuple(low.parameters()), "bfloat16"
    if form == FLOAT8 or (form == INT8_DYNAMIC and x.is_cuda):
        eight = EightBits(linear, torch.float8_e4m3fn if form == FLOAT8 else torch.int8)
        return eight, tuple(eight.buffers()), form.partition("_")[2]
    if form == INT8_DYNAMIC:
        made = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)[0]
        return made, (made.weight(), made.bias()), "int8_dynamic"
    chosen, packed = WeightOnly(linear), Packed(linear)
    # in float32 the operator has no kernel of its own: 223 ms at 2048 x 2048, 128 tokens, where the other takes 12
    tried = x.device.type == "cpu" and x.dtype != torch.float32
    if tried and timing.once(lambda: packed(x)) < timing.once(lambda: WeightOnly.forward(packed, x)):
        chosen = packed
    return chosen, tuple(chosen.buffers()), "int8_packed" if chosen is packed else "int8_cast"
