"""The kernels as two torch operators, for graphs: `structures::triton` and `structures::triton_backward`.

A compiler sees one opaque operator for all launches of a layer. Backward runs the intermediates again, which a graph
does not keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from structures.backends.native.operators import bound, name
from structures.backends.native.run import differentiable
from structures.backends.triton import run
from structures.structure import Structure

NAMESPACE = "structures"


def traced(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y by the operator, which whoever records operations sees."""
    y: Tensor = torch.ops.structures.triton(x, list(factors), bias, name(structure))
    return y


def _forward(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
    return run.forward(bound(structure), x, [f.contiguous() for f in factors], bias)[-1]


def _backward(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
    """The wanted gradients in the order x, bias, factors."""
    of, factors = bound(structure), [f.contiguous() for f in factors]
    buffers = run.forward(of, x, factors, None) if any(want[2:]) else []
    found = run.backward(of, buffers, factors, dy, want)
    return [gradient for gradient in found if gradient is not None]


def _forward_fake(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
    return x.new_empty(x.shape[0], bound(structure).out_features)


def _backward_fake(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
    shapes = [x.shape, dy.shape[1:], *[factor.shape for factor in factors]]
    return [dy.new_empty(shape) for shape, wanted in zip(shapes, want, strict=True) if wanted]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, factors, bias, ctx.text = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, *factors)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, *factors = ctx.saved_tensors
    want_x, want_factors, want_bias, _ = ctx.needs_input_grad
    each = list(want_factors) if isinstance(want_factors, (list, tuple)) else [want_factors] * len(factors)
    want = [want_x, bool(want_bias) and ctx.biased, *each]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = differentiable(bound(ctx.text), tuple(want), x, factors, dy, graph=True)
        return found[0], found[2:], found[1], None
    made = list(torch.ops.structures.triton_backward(dy, x, factors, want, ctx.text))
    dx, db, *df = [made.pop(0) if wanted else None for wanted in want]
    return dx, df, db, None


def _forward_flops(x: Any, factors: Any, bias: Any, structure: str, *, out_shape: Any) -> int:
    return run.executed_flops(bound(structure), x[0])


def _backward_flops(dy: Any, x: Any, factors: Any, want: Any, structure: str, *, out_shape: Any) -> int:
    found = bound(structure)  # with the forward that is run again
    return run.executed_flops(found, x[0], train=True)


torch.library.define(f"{NAMESPACE}::triton", "(Tensor x, Tensor[] factors, Tensor? bias, str structure) -> Tensor")
torch.library.define(
    f"{NAMESPACE}::triton_backward", "(Tensor dy, Tensor x, Tensor[] factors, bool[] want, str structure) -> Tensor[]"
)
for _device in ("cpu", "cuda"):  # on the CPU in Triton's interpreter
    torch.library.impl(f"{NAMESPACE}::triton", _device, _forward)
    torch.library.impl(f"{NAMESPACE}::triton_backward", _device, _backward)
torch.library.register_fake(f"{NAMESPACE}::triton", _forward_fake)
torch.library.register_fake(f"{NAMESPACE}::triton_backward", _backward_fake)
torch.library.register_autograd(f"{NAMESPACE}::triton", _differentiate, setup_context=_save)
register_flop_formula(torch.ops.structures.triton)(_forward_flops)
register_flop_formula(torch.ops.structures.triton_backward)(_backward_flops)  # of all gradients
