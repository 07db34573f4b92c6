"""Which neighbouring factors are contracted with one another before the activation is touched, by cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from structures.backends.planned.figures import Rates
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Grouping, pose
from structures.structure import Structure, Term

Groupings = tuple[Grouping, ...]  # one a term

KEPT = 3  # groupings of a term that a full search is made for
WORTH = 1.5  # times the cheapest: groupings dearer than this are not searched


def groupings(structure: Structure, tokens: int, rates: Rates, itemsize: int, *, train: bool) -> list[Groupings]:
    """Groupings of all terms that may be fastest, cheapest first by a rough price that knows no layouts."""
    rough = Rough(structure, tokens, Price(pose(structure), tokens, rates, itemsize), 3 if train else 1)
    per_term = [_of_term(term, rough) for term in structure.terms]
    if len(per_term) > 2:
        per_term = [kept[:1] for kept in per_term]
    combined = [
        (sum(cost for cost, _ in combination), tuple(grouping for _, grouping in combination))
        for combination in itertools.product(*per_term)
    ]
    combined.sort(key=lambda pair: pair[0])
    return [grouping for _, grouping in combined[:KEPT]]


@dataclass(frozen=True)
class Rough:
    """Prices contractions by their extents alone."""

    structure: Structure
    tokens: int
    price: Price
    passes: int  # 3 with gradients

    def seconds(self, multiplies: int, narrow: int, moved: int) -> float:
        """Seconds of a contraction whose smallest extent is `narrow` and which moves `moved` numbers."""
        rate = self.price.rate("contiguous", narrow)
        total = self.price.itemsize * moved
        once = 2 * multiplies / (rate * 1e9) + total / (self.price.rate("plain", total) * 1e9)
        return self.passes * (once + 2 * self.price.rates.call)

    def numel(self, axes: Iterable[str]) -> int:
        return self.structure.numel(tuple(axes))


def _of_term(term: Term, rough: Rough) -> list[tuple[float, Grouping]]:
    """The cheapest grouping for each number of groups (dynamic programming over where to cut the steps)."""
    order = tuple(step.factor for step in term.steps)
    count = len(order)
    cost = {(i, j): _segment(term, order, i, j, rough) for i in range(count) for j in range(i + 1, count + 1)}
    best: dict[tuple[int, int], tuple[float, Grouping]] = {(0, 0): (0.0, ())}
    for groups in range(1, count + 1):
        for end in range(groups, count + 1):
            options = [
                (best[groups - 1, cut][0] + cost[cut, end], (*best[groups - 1, cut][1], order[cut:end]))
                for cut in range(groups - 1, end)
                if (groups - 1, cut) in best
            ]
            best[groups, end] = min(options)
    found = sorted(best[groups, count] for groups in range(min(count, 1), count + 1))
    return [pair for pair in found if pair[0] <= WORTH * found[0][0]][:KEPT]


def _segment(term: Term, order: Sequence[int], start: int, end: int, rough: Rough) -> float:
    """Seconds to merge the factors of neighbouring steps and to apply the result to the activation."""
    factors = rough.structure.factors
    after = set(term.output).union(*(factors[f] for f in order[end:]))
    before = frozenset(term.steps[start].left)
    merged = frozenset(factors[order[start]])
    seconds = 0.0
    for position in range(start + 1, end):
        union = merged.union(factors[order[position]])
        merged = union & before.union(after, *(factors[f] for f in order[position + 1 : end]))
        # nothing contracted: one multiplication an entry, at the speed of memory
        contracted = rough.numel(union - merged)
        seconds += rough.seconds(rough.numel(union), max(contracted, 8), 3 * rough.numel(merged))
    union = before | merged
    narrow = min(
        rough.tokens * rough.numel(before - merged),
        rough.numel((before & merged) - after),
        rough.numel(merged - before),
    )
    moved = 2 * rough.tokens * (rough.numel(before) + rough.numel(union & after))
    return seconds + rough.seconds(rough.tokens * rough.numel(union), narrow, moved)
