"""Chains of links made shorter: two links become one einsum wherever their two views of the width between them agree.

The axes of both views are cut at each other's ends. Monarch with blocks that divide its inner blocks, `... -> (k q)`
then `(r l), ...`, is `(k q.r l)` on either side; where an end falls inside an axis that it does not divide, the links
stay apart. Factors keep their numbers and their order in memory: an axis that is cut is several in a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from structures.algebra.map import Map, Term
from structures.algebra.steps import Axes, chained

Pieces = Mapping[str, Axes]  # an axis -> the axes that it is cut into


def joined(structure: Map) -> Map:
    """The map with as few links as can be; itself where there is nothing to join.

    Its factors hold the numbers of the structure's, in the same order, under other axes.
    """
    if not structure.chained:
        return structure
    size = dict(structure.size)
    factors = list(structure.factors)
    gate = None if structure.gate is None else structure.gate.axis
    terms = []
    for term in structure.terms:
        links = [term.chain[0]]
        for link in term.chain[1:]:
            whole = _joined(links[-1], link, size, factors, gate, structure.trainable)
            links[-1:] = [links[-1], link] if whole is None else [whole]
        terms.append(replace(Term.of_links(links), written=term.written))
    views = (v for t in terms for x in t.chain for v in (x.input, x.loaded, x.output))
    used = dict.fromkeys(a for axes in (*views, *factors) for a in axes)
    sizes = tuple((a, size[a]) for a in used)
    return replace(structure, sizes=sizes, factors=tuple(factors), terms=tuple(terms))


def _joined(
    first: Term, second: Term, size: dict[str, int], factors: list[Axes], gate: str | None, trained: int
) -> Term | None:
    """The two as one term, with `size` and `factors` brought up to date; None where that cannot be."""
    both = (*first.factors, *second.factors)
    if second.gathers or any(gate in factors[f] or f >= trained for f in both):
        return None
    cut = _cut(first, second, size)
    if cut is None:
        return None
    before, after = cut
    taken = {
        a for axes in (first.input, first.loaded, first.output, *(factors[f] for f in first.factors)) for a in axes
    }
    taken |= set(itertools.chain(*before.values()))
    own = dict.fromkeys(a for axes in (second.output, *(factors[f] for f in second.factors)) for a in axes)
    for axis in own:  # the same name in two links is another axis
        if axis not in after:
            after[axis] = (_fresh(axis, size[axis], size, taken),)
    order = [step.factor for step in (*first.steps, *second.steps)]
    for link, pieces in ((first, before), (second, after)):
        for f in link.factors:
            factors[f] = _written(factors[f], pieces)
    loaded, output = _written(first.loaded, before), _written(second.output, after)
    held = {f: factors[f] for f in (*first.factors, *second.factors)}
    gathers = tuple(replace(g, by=_written(g.by, before)) for g in first.gathers)
    return Term(_written(first.input, before), loaded, gathers, tuple(held), output,
                chained(loaded, order, held, output))  # fmt: skip


def _cut(first: Term, second: Term, size: dict[str, int]) -> tuple[dict[str, Axes], dict[str, Axes]] | None:
    """What each axis of the width between two links is cut into, in either view; None where the ends do not agree."""
    views = [[a for a in view if size[a] > 1] for view in (first.output, second.input)]
    ends = [list(_ends(view, size)) for view in views]
    places = sorted({1, *ends[0], *ends[1]})
    if any(far % near for near, far in itertools.pairwise(places)):
        return None
    taken: set[str] = set()
    pieces: tuple[dict[str, Axes], dict[str, Axes]] = ({}, {})
    for view, found in zip((first.output, second.input), pieces, strict=True):
        found.update({a: () if size[a] == 1 else found.get(a, ()) for a in view})
    for near, far in itertools.pairwise(places):
        here = [
            next(axis for axis, end in zip(reversed(view), stops, strict=True) if end >= far)
            for view, stops in zip(views, ends, strict=True)
        ]
        left, right = here
        whole = far // near == size[left]
        name = left if whole else f"{left}.{right}"
        name = _fresh(name, far // near, size, taken)
        taken.add(name)
        for axis, found in zip(here, pieces, strict=True):
            found[axis] = (name, *found[axis])
    return pieces


def _ends(view: Sequence[str], size: Mapping[str, int]) -> Iterator[int]:
    """Where each axis ends, in features, from the fastest axis on."""
    return itertools.accumulate((size[a] for a in reversed(view)), lambda x, y: x * y)


def _fresh(name: str, extent: int, size: dict[str, int], taken: set[str]) -> str:
    """A name of this size that is not taken, by default the one given."""
    while name in taken or size.get(name, extent) != extent:
        name += "'"
    size[name] = extent
    taken.add(name)
    return name


def _written(axes: Axes, pieces: Pieces) -> Axes:
    return tuple(itertools.chain.from_iterable(pieces.get(a, (a,)) for a in axes))


def link_map(structure: Map, link: Term) -> Map:
    """A link as a map from its input to its output."""
    number = {f: i for i, f in enumerate(link.factors)}
    steps = tuple(replace(step, factor=number[step.factor]) for step in link.steps)
    alone = replace(link, factors=tuple(range(len(number))), steps=steps)
    held = structure.gate is not None and any(structure.gate.axis in structure.factors[f] for f in link.factors)
    gate = structure.gate if held else None
    return structure.part([structure.factors[f] for f in link.factors], (alone,), gate)
