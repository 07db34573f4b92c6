"""Pieces of a gated term as structures of their own, without a gate: any ordinary backend runs them.

A term is a chain of steps. What comes before the first factor that holds the expert axis, and after the last one, is
the same for all experts; between the two every expert has its own factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.algebra.steps import Axes, chained
from structures.backends import planned
from structures.structure import Gather, Structure, Term

Apply = Callable[[Structure, Tensor, Sequence[Tensor], Tensor | None], Tensor]


@dataclass(frozen=True)
class Part:
    """A structure and where its factors stand among those of the whole; None computes nothing."""

    structure: Structure | None
    factors: tuple[int, ...] = ()

    def __call__(
        self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None, *, apply: Apply = planned.apply
    ) -> Tensor:
        """x (tokens, in_features of the part) -> (tokens, out_features of the part); `factors` are the whole's."""
        if self.structure is None:
            return x if bias is None else x + bias
        return apply(self.structure, x, [factors[f] for f in self.factors], bias)

    def executed_flops(self, tokens: int, *, train: bool, bias: bool = False) -> int:
        """Of the plan that runs, which may be another one where a bias is added."""
        if self.structure is None or not tokens:
            return 0
        return planned.plan(self.structure, tokens, dtype=torch.float32, bias=bias, grad=train).flops(tokens)


@dataclass(frozen=True)
class Middle:
    """The steps of a gated term, and those from the first factor that holds the expert axis to the last one."""

    term: Term
    order: tuple[int, ...]  # factors, as they are contracted
    first: int
    last: int  # one past

    @staticmethod
    def of(structure: Structure, term: Term) -> Middle:
        axis = _axis(structure)
        order = tuple(step.factor for step in term.steps)
        held = [i for i, f in enumerate(order) if axis in structure.factors[f]]
        return Middle(term, order, held[0], held[-1] + 1)

    def before(self, place: int) -> Axes:
        """Axes of the activation before the step at `place`; after the last one, of the output."""
        if place == 0:
            return self.term.loaded
        return self.term.steps[place].left if place < len(self.order) else self.term.output


def part(
    structure: Structure,
    middle: Middle,
    start: int,
    stop: int,
    view: Axes,
    output: Axes,
    *,
    without: str | None = None,
) -> Part:
    """The steps from `start` to `stop` as a structure from the axes `view` to the axes `output`.

    Args:
        without: an axis to leave out of every factor: the part is then for one place on it.
    """
    return _part(structure, middle.order[start:stop], view, view, (), output, without)


def head(structure: Structure, middle: Middle, stop: int, output: Axes) -> Part:
    """The steps before `stop`, from the input as it lies in memory, gathers included, to the axes `output`."""
    term = middle.term
    return _part(structure, middle.order[:stop], term.input, term.loaded, term.gathers, output, None)


def _part(
    structure: Structure,
    order: tuple[int, ...],
    view: Axes,
    loaded: Axes,
    gathers: tuple[Gather, ...],
    output: Axes,
    without: str | None,
) -> Part:
    if not order and not gathers and view == output:
        return Part(None)
    kept = sorted(order)
    factors = {i: tuple(a for a in structure.factors[f] if a != without) for i, f in enumerate(kept)}
    steps = chained(loaded, [kept.index(f) for f in order], factors, output)
    new = Term(view, loaded, gathers, tuple(factors), output, steps)
    return Part(_structure(structure, tuple(factors.values()), (new,)), tuple(kept))


def ungated(structure: Structure) -> Part:
    """The terms that hold no expert axis."""
    axis = _axis(structure)
    factors: list[Axes] = []
    terms: list[Term] = []
    kept: list[int] = []
    for term in structure.terms:
        if any(axis in structure.factors[f] for f in term.factors):
            continue
        number = {f: len(factors) + i for i, f in enumerate(term.factors)}
        factors += [structure.factors[f] for f in term.factors]
        kept += list(term.factors)
        held = {number[f]: structure.factors[f] for f in term.factors}
        steps = chained(term.loaded, [number[s.factor] for s in term.steps], held, term.output)
        terms.append(Term(term.input, term.loaded, term.gathers, tuple(held), term.output, steps))
    return Part(_structure(structure, tuple(factors), tuple(terms)), tuple(kept)) if terms else Part(None)


def gated_terms(structure: Structure) -> Iterable[Term]:
    """The terms that hold the expert axis."""
    axis = _axis(structure)
    return [t for t in structure.terms if any(axis in structure.factors[f] for f in t.factors)]


def _structure(whole: Structure, factors: tuple[Axes, ...], terms: tuple[Term, ...]) -> Structure:
    used = {a for axes in factors for a in axes}
    used |= {a for t in terms for axes in (t.input, t.loaded, t.output) for a in axes}
    return Structure(
        name=whole.name,
        title=whole.title,
        in_features=whole.numel(terms[0].input),
        out_features=whole.numel(terms[0].output),
        options=whole.options,
        sizes=tuple((a, n) for a, n in whole.sizes if a in used),
        factors=factors,
        terms=terms,
        spec=whole.spec,
    )


def _axis(structure: Structure) -> str:
    assert structure.gate is not None
    return structure.gate.axis
