"""The kernel as two torch operators, for graphs: `structures::native` and `structures::native_backward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures.backends.native.run import differentiable, executed_flops, programs
from structures.backends.operators import KernelCalls, bound, define, name
from structures.structure import Structure

__all__ = ["bound", "name", "traced"]


def traced(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y by the operator, which whoever records operations sees."""
    y: Tensor = torch.ops.structures.native(x, list(factors), bias, name(structure))
    return y


def _forward(structure: Structure, x: Tensor, factors: list[Tensor], bias: Tensor | None) -> Tensor:
    return programs(structure).of(x.dtype).forward(x, factors, bias, keep=not torch.is_grad_enabled())


def _backward(
    structure: Structure, dy: Tensor, x: Tensor, factors: list[Tensor], want: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    return programs(structure).of(x.dtype).backward(x, factors, dy, want, None)


def _again(structure: Structure, tokens: int) -> int:
    return executed_flops(structure, tokens, train=True) - executed_flops(structure, tokens)


define("native", ("cpu",), KernelCalls(_forward, _backward, differentiable, executed_flops, _again))
