"""Every expert computed for every token, and weighted: one chain of large products, whatever the router says.

The weights are multiplied into the smallest activation that has the expert axis, or that is given it there; from then
on it is an axis like others, contracted by the next product. Nothing depends on the numbers in x, so that it traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends import planned
from structures.backends.experts.parts import Middle, Part, gated_terms, head, part, ungated
from structures.routing import Routing, route
from structures.structure import Structure, Term

GATED = True


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Structures without a gate, and what the planner refuses."""
    return f"{structure.name} has no gate" if structure.gate is None else planned.refuses(structure, x)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features), x (tokens, in_features); the router is the last of `factors`."""
    assert structure.gate is not None
    return weighted(structure, x, factors[:-1], route(structure.gate, x, factors[-1]), bias)


def weighted(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """The same for a routing that is decided; `factors` without the router."""
    made = program(structure)
    chosen = routing.chosen
    gates = routing.gates.to(x.dtype).masked_fill(~chosen, 0)  # nor does a gradient come back from the others
    total = None
    for number, term in enumerate(made.terms):
        last = number == len(made.terms) - 1 and made.rest.structure is None
        piece = _run(term, x, factors, gates, chosen, bias if last else None)
        total = piece if total is None else total + piece
    assert total is not None  # some term holds the expert axis
    return total if made.rest.structure is None else total + made.rest(x, factors, bias)


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """All experts' products and the router's, 2 per multiply-add, without the bias and elementwise weighting."""
    made = program(structure)
    router = 2 * tokens * structure.in_features * structure.router_shape[0] * (3 if train else 1)
    parts = [p for term in made.terms for p in (term.head, term.tail)]
    parts += [made.rest] if made.rest.structure is not None else []
    sums = sum(2 * tokens * structure.router_shape[0] * term.inner for term in made.terms if term.sums)
    products = sum(p.executed_flops(tokens, train=train, bias=p is parts[-1]) for p in parts)  # the last adds the bias
    return router + sums * (3 if train else 1) + products


def prepare(structure: Structure) -> None:
    """Cut the terms into parts."""
    if structure.gate is not None:
        program(structure)


@dataclass(frozen=True)
class _Weighted:
    """A term: `head`, the weights at (outer, experts, inner) of its result, `tail`."""

    term: Term
    head: Part
    tail: Part
    outer: int
    inner: int
    spread: bool  # head's result has no expert axis yet: every expert gets a copy of it, times its weight
    sums: bool  # tail starts without the expert axis: the weighted experts are added up


@dataclass(frozen=True)
class AllExpertsProgram:
    terms: tuple[_Weighted, ...]
    rest: Part


def _run(
    term: _Weighted, x: Tensor, factors: Sequence[Tensor], gates: Tensor, chosen: Tensor, bias: Tensor | None
) -> Tensor:
    # An expert that was not chosen may overflow, forward or backward, and 0 * inf is NaN: it is masked, not weighted.
    (tokens, experts), others = gates.shape, ~chosen[:, None, :, None]
    z = term.head(x, factors)
    if term.spread:
        z = (z.reshape(tokens, term.outer, 1, term.inner) * gates[:, None, :, None]).masked_fill(others, 0)
        return term.tail(z.reshape(tokens, term.outer * experts * term.inner), factors, bias)
    z = z.reshape(tokens, term.outer, experts, term.inner).masked_fill(others, 0)
    if term.sums:
        z = torch.bmm(gates[:, None, :], z.reshape(tokens, experts, term.inner)).reshape(tokens, term.inner)
    else:
        z = (z * gates[:, None, :, None]).reshape(tokens, term.outer * experts * term.inner)
    return term.tail(z, factors, bias)


def program(structure: Structure) -> AllExpertsProgram:
    """The structure's terms cut into parts; kept with it."""
    found: AllExpertsProgram | None = structure.memo.get("all_experts")
    if found is None:
        terms = tuple(_weighted(structure, Middle.of(structure, t)) for t in gated_terms(structure))
        found = structure.memo["all_experts"] = AllExpertsProgram(terms, ungated(structure))
    return found


def _weighted(structure: Structure, middle: Middle) -> _Weighted:
    """The term cut where the weights touch the fewest numbers; without a copy for each expert where that is equal."""
    assert structure.gate is not None
    axis, term, steps = structure.gate.axis, middle.term, middle.term.steps

    def width(place: int) -> int:
        axes = steps[place].left if place < middle.last else steps[place - 1].result
        return structure.numel(tuple(a for a in axes if a != axis))

    places = range(middle.first, middle.last + 1)
    place = min(places, key=lambda p: (width(p), p == middle.first, p == middle.last))
    left = middle.before(place)
    if place == middle.last:
        tail = part(structure, middle, place, len(steps), left, term.output)
        before = head(structure, middle, place, (axis, *left))
        return _Weighted(term, before, tail, 1, structure.numel(left), spread=False, sums=True)
    if place == middle.first:
        tail = part(structure, middle, place, len(steps), (axis, *left), term.output)
        return _Weighted(
            term, head(structure, middle, place, left), tail, 1, structure.numel(left), spread=True, sums=False
        )
    tail = part(structure, middle, place, len(steps), left, term.output)
    assert tail.structure is not None
    step = tail.structure.terms[0].steps[0]
    left = (*step.batch, *step.rows, *step.contracted)  # a row of it as the next product reads it
    tail = part(structure, middle, place, len(steps), left, term.output)
    outer, inner = left[: left.index(axis)], left[left.index(axis) + 1 :]
    before = head(structure, middle, place, left)
    return _Weighted(term, before, tail, structure.numel(outer), structure.numel(inner), spread=False, sums=False)
