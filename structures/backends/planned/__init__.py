"""The planner: layouts, readable products, a search priced by operation, and straight-line programs of the plan found.

layout    what a BLAS call can read
problem   a structure as chains of contractions
program   operations and plans as data
price     seconds of one operation, from figures: built in, or measured (measure) and kept (rates)
grouping  factors merged before the activation is touched;  dense: all of them into one matrix
search    the programs worth looking at;  choose: the one that runs
native    the gradients left to autograd
emit      source of a plan (writer, elementwise, source);  function: autograd and the call
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures.backends.planned.program import Plan
from structures.backends.planned.run import apply, best, setting
from structures.structure import Structure

__all__ = ["Plan", "apply", "executed_flops", "plan", "refuses"]


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Nothing is refused but numbers that are not real floating point."""
    return None if x.is_floating_point() else f"{x.dtype} is not a real floating-point type"


def plan(
    structure: Structure, tokens: int, *, dtype: torch.dtype | None = None, device: str = "cpu", bias: bool = True,
    grad: bool | Sequence[bool] = False,
) -> Plan:  # fmt: skip
    """The plan that `apply` runs for this many tokens; print it.

    Args:
        dtype: of all tensors; torch's default.
        device: a torch device type.
        grad: plan forward and backward together: True for all gradients, or one truth value each for x, the bias and
            every factor.
    """
    want = None
    if grad:
        want = (True,) * (2 + len(structure.factors)) if grad is True else tuple(grad)
        want = (want[0], want[1] and bias, *want[2:])
    return best(structure, tokens, setting(dtype or torch.get_default_dtype(), device, bias, want))


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Floating-point operations of the plan for float32 on this processor, 2 per multiply-add, without the bias."""
    return plan(structure, tokens, dtype=torch.float32, grad=train).flops(tokens)
