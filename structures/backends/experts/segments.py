"""Choices sorted by expert as segments, for kernels that take one launch for all experts.

Where a segment begins stays on the device: nothing waits for a number, and a graph can hold all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from structures.backends.experts import grouped
from structures.backends.experts.parts import Apply, Part
from structures.routing import Routing
from structures.structure import Structure


@dataclass(frozen=True)
class Segments:
    """All choices (token, expert), sorted by expert, with what weighs them.

    Attributes:
        order: (choices,) in int32: choice numbers, token * active + k, expert by expert; dropped ones last.
        starts: (experts + 1,) in int32: where each expert's choices begin in that order, and the last one's end.
        weights: (choices,), by their numbers.
        active: choices of a token.
        drops: some choices may be dropped.
    """

    order: Tensor
    starts: Tensor
    weights: Tensor
    active: int
    drops: bool

    @staticmethod
    def of(routing: Routing) -> Segments:
        experts = routing.logits.shape[1]
        key = routing.experts if routing.kept is None else routing.experts.masked_fill(~routing.kept, experts)
        expert, order = key.flatten().sort(stable=True)
        every = torch.arange(experts + 1, device=expert.device)
        starts = torch.searchsorted(expert, every)
        weights, active = routing.weights.flatten(), routing.experts.shape[1]
        return Segments(order.to(torch.int32), starts.to(torch.int32), weights, active, routing.kept is not None)


@dataclass(frozen=True)
class Expert:
    """What one expert does, and where its factors lie in those of all.

    Attributes:
        structure: the steps of one expert.
        experts, active: how many there are, and how many a token has.
        places: of each factor, where among the axes of all experts' theirs stands; -1: it has none, and all share it.
        drops: some choices may be dropped.
    """

    structure: Structure
    experts: int
    active: int
    places: tuple[int, ...]
    drops: bool

    @cached_property
    def apart(self) -> tuple[int, ...]:
        """Of each factor, how far what one expert has of it lies from the next one's; 0: all share it."""
        pairs = zip(self.structure.factor_shapes, self.places, strict=True)
        return tuple([math.prod(shape[at:]) if at >= 0 else 0 for shape, at in pairs])

    @cached_property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of all experts' factors."""
        pairs = zip(self.structure.factor_shapes, self.places, strict=True)
        return tuple([(*s[:at], self.experts, *s[at:]) if at >= 0 else s for s, at in pairs])


# y (tokens, out_features of an expert), the weighted sum over a token's choices, for the operands z and factors
Run = Callable[[Expert, Tensor, Segments, Sequence[Tensor]], Tensor]


def weighted(
    apply: Apply, run: Run, structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """y (tokens, out_features) for a routing that is decided; `factors` without the router.

    Args:
        apply: runs what has no expert axis; `run`: what has.
    """
    made, (experts, _), segments = grouped.program(structure), parts(structure), Segments.of(routing)
    total = made.rest(x, factors, bias, apply=apply) if made.rest.structure is not None else None
    for term, expert in zip(made.terms, experts, strict=True):
        z = term.head(x, factors, apply=apply)
        y = run(expert, z, segments, [factors[f] for f, _ in term.slices])
        piece = term.tail(y, factors, bias if total is None else None, apply=apply)
        total = piece if total is None else total + piece
    assert total is not None  # some term holds the expert axis
    return total


def parts(structure: Structure) -> tuple[list[Expert], list[Structure]]:
    """What `weighted` runs: the experts of each term, and the structures that have no expert axis."""
    found: tuple[list[Expert], list[Structure]] | None = structure.memo.get("segments")
    if found is None:
        made = grouped.program(structure)
        others = [part.structure for term in made.terms for part in (term.head, term.tail)] + [made.rest.structure]
        experts = [_expert(structure, term.alone, term.slices) for term in made.terms]
        found = structure.memo["segments"] = experts, [s for s in others if s is not None]
    return found


def _expert(structure: Structure, alone: Part, slices: Sequence[tuple[int, int]]) -> Expert:
    gate = structure.gate
    assert gate is not None and alone.structure is not None
    places = tuple([at for _, at in slices])
    return Expert(alone.structure, gate.experts, gate.active, places, gate.capacity is not None)
