"""Opt-in: the planner's first few programs, timed on this machine for the shapes that a layer really sees.

The planner ranks programs by predicted cost and runs the first. Here the first few, and the two backends without a
planner, are checked against the plain einsum in float64 and timed in turn; another one takes over only for a gain
beyond noise. What was chosen is data: it is copied and pickled with a layer, and kept in a file for the next process.

`programs` has what is offered, `exactness` the comparison, `race` the loop of times and who wins, `tuning` all three;
`record` what came of it, `kept` the files, `keeper` the choices of a layer, `graph` their use under a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from structures.backends import planned
from structures.backends.autotune.keeper import Keeper, forget, refuses
from structures.backends.autotune.record import NAME, Key, Record, Timing, grad_text, key_of
from structures.backends.autotune.tuning import check_can_time, clock_of, tune
from structures.structure import Structure

__all__ = [
    "NAME",
    "Keeper",
    "Key",
    "Record",
    "Timing",
    "apply",
    "check_can_time",
    "clock_of",
    "executed_flops",
    "forget",
    "grad_text",
    "key_of",
    "refuses",
    "tune",
]


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Those of the planner's own choice; a layer's record tells what was chosen in its place."""
    return planned.executed_flops(structure, tokens, train=train)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features), by a choice looked up or made for this call: a layer keeps it instead."""
    y = Keeper(tunes=True)(structure, x, factors, bias)
    return planned.apply(structure, x, factors, bias) if y is None else y
