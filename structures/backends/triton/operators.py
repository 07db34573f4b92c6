"""The kernels as two torch operators, for graphs: `structures::triton` and `structures::triton_backward`.

A compiler sees one opaque operator for all launches of a layer. Backward works the intermediates out again, which a
graph does not keep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures.backends.native.run import differentiable
from structures.backends.operators import KernelCalls, define, name
from structures.backends.triton import run
from structures.structure import Structure


def traced(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y by the operator, which whoever records operations sees."""
    y: Tensor = torch.ops.structures.triton(x, list(factors), bias, name(structure))
    return y


def _forward(structure: Structure, x: Tensor, factors: list[Tensor], bias: Tensor | None) -> Tensor:
    return run.forward(run.program(structure), x, factors, bias)[-1]


def _backward(
    structure: Structure, dy: Tensor, x: Tensor, factors: list[Tensor], want: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    made = run.program(structure)
    buffers = run.forward(made, x, factors, None) if any(want[2:]) else []
    return run.backward(made, buffers, factors, dy, want)


def _again(structure: Structure, tokens: int) -> int:
    return run.executed_flops(structure, tokens, train=True)  # the forward that is run again, and the gradients


# on the CPU in Triton's interpreter
define("triton", ("cpu", "cuda"), KernelCalls(_forward, _backward, differentiable, run.executed_flops, _again))
