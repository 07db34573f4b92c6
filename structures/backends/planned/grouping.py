"""Which neighbouring factors are contracted with one another before the activation is touched, by cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from structures.algebra.steps import chained, cost_of
from structures.backends.planned.figures import Rates
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Grouping, Tree, pose
from structures.structure import Structure, Term

Groupings = tuple[Grouping, ...]  # one a term

KEPT = 3  # groupings of a term that a full search is made for
MORE_FLOPS = 2.0  # times the cheapest order's: dearer orders are not priced
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


def merged_whole(structure: Structure, tokens: int, rates: Rates, itemsize: int) -> Groupings:
    """All factors of each term contracted with one another, in the cheapest order by the same rough price."""
    rough = Rough(structure, tokens, Price(pose(structure), tokens, rates, itemsize), 1)
    return tuple((_Merges(term, rough).best(0, len(term.steps))[1],) if term.steps else () for term in structure.terms)


def _of_term(term: Term, rough: Rough) -> list[tuple[float, Grouping]]:
    """The cheapest groupings of a term, of all orders of its steps that are worth a look."""
    found = [pair for order in _orders(term, rough.structure) for pair in _of_order(order, rough)]
    found.sort(key=lambda pair: pair[0])
    return [pair for pair in found if pair[0] <= WORTH * found[0][0]][:KEPT]


def _orders(term: Term, structure: Structure) -> list[Term]:
    """The term, and the term with its steps as written and backwards: the fewest FLOPs are not always the fastest."""
    held = {f: structure.factors[f] for f in term.factors}
    cheapest = tuple(step.factor for step in term.steps)
    orders = dict.fromkeys((cheapest, term.factors, term.factors[::-1]))
    cost = {order: cost_of(structure.size, term.loaded, order, held, term.output) for order in orders}
    worth = [order for order in orders if cost[order] <= MORE_FLOPS * cost[cheapest]]
    return [replace(term, steps=chained(term.loaded, order, held, term.output)) for order in worth]


def _of_order(term: Term, rough: Rough) -> list[tuple[float, Grouping]]:
    """The cheapest grouping for each number of groups (dynamic programming over where to cut the steps)."""
    count = len(term.steps)
    merges = _Merges(term, rough)
    cost = {(i, j): merges.applied(i, j) for i in range(count) for j in range(i + 1, count + 1)}
    best: dict[tuple[int, int], tuple[float, Grouping]] = {(0, 0): (0.0, ())}
    for groups in range(1, count + 1):
        for end in range(groups, count + 1):
            options = [
                (best[groups - 1, cut][0] + cost[cut, end][0], (*best[groups - 1, cut][1], cost[cut, end][1]))
                for cut in range(groups - 1, end)
                if (groups - 1, cut) in best
            ]
            best[groups, end] = min(options, key=lambda option: option[0])
    return [best[groups, count] for groups in range(min(count, 1), count + 1)]


class _Merges:
    """The factors of a term's neighbouring steps contracted with one another: the axes, the cheapest tree of pairs."""

    def __init__(self, term: Term, rough: Rough):
        self.term, self.rough = term, rough
        self.order = tuple(step.factor for step in term.steps)
        self.axes = [frozenset(rough.structure.factors[f]) for f in self.order]
        self.known: dict[tuple[int, int], tuple[float, Tree]] = {}

    def kept(self, start: int, end: int) -> frozenset[str]:
        """Axes of the contraction of the steps `start` to `end`."""
        return frozenset().union(*self.axes[start:end]) & (self.before(start) | self.after(end))

    def before(self, start: int) -> frozenset[str]:
        return frozenset(self.term.steps[start].left)

    def after(self, end: int) -> frozenset[str]:
        return frozenset(self.term.output).union(*self.axes[end:])

    def best(self, start: int, end: int) -> tuple[float, Tree]:
        """Seconds and tree of the cheapest contraction; of trees that cost the same, the one that halves."""
        if end - start == 1:
            return 0.0, self.order[start]
        if (start, end) not in self.known:
            middle = (start + end) / 2
            cuts = sorted(range(start + 1, end), key=lambda cut: abs(cut - middle))
            options = [(self._pair(start, cut, end), cut) for cut in cuts]
            seconds, cut = min(options, key=lambda option: option[0])
            self.known[start, end] = seconds, (self.best(start, cut)[1], self.best(cut, end)[1])
        return self.known[start, end]

    def _pair(self, start: int, cut: int, end: int) -> float:
        union, merged = self.kept(start, cut) | self.kept(cut, end), self.kept(start, end)
        # nothing contracted: one multiplication an entry, at the speed of memory
        narrow = max(self.rough.numel(union - merged), 8)
        own = self.rough.seconds(self.rough.numel(union), narrow, 3 * self.rough.numel(merged))
        return self.best(start, cut)[0] + self.best(cut, end)[0] + own

    def applied(self, start: int, end: int) -> tuple[float, Tree]:
        """Seconds to contract the factors of neighbouring steps and to apply the result to the activation."""
        rough, before, after, merged = self.rough, self.before(start), self.after(end), self.kept(start, end)
        union = before | merged
        narrow = min(
            rough.tokens * rough.numel(before - merged),
            rough.numel((before & merged) - after),
            rough.numel(merged - before),
        )
        moved = 2 * rough.tokens * (rough.numel(before) + rough.numel(union & after))
        seconds, tree = self.best(start, end)
        return seconds + rough.seconds(rough.tokens * rough.numel(union), narrow, moved), tree
