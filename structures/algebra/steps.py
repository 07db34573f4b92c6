"""A term's steps: batched matrix products of the activation and one factor each, in the cheapest order."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Axes = tuple[str, ...]
Array = NDArray[np.float64]

MAX_ALL_ORDERS = 6  # factors of a term up to which every order is looked at, whatever they are copies of
MAX_NEXT = 16  # of such a long term, steps that are compared each time: a hundred factors take no seconds
MAX_ORDER_STATES = 4096  # partial contraction orders looked at; of longer terms a few orders are compared


@dataclass(frozen=True)
class Step:
    """One batched matrix product: activation x factor -> activation, its axes in four groups.

    `batch` stands in both operands and in the result, `rows` in the activation and the result, `contracted` in both
    operands alone, `cols` in the factor and the result. The tokens are rows too and are not listed.
    """

    factor: int  # position in Structure.factors
    batch: Axes
    rows: Axes
    contracted: Axes
    cols: Axes
    left: Axes  # axes of the activation that goes in
    right: Axes  # axes of the factor, as written

    @property
    def result(self) -> Axes:
        """Axes of the activation that comes out, in the order batch, rows, cols."""
        return self.batch + self.rows + self.cols

    @property
    def axes(self) -> Axes:
        return self.batch + self.rows + self.contracted + self.cols


def order_steps(
    size: Mapping[str, int],
    loaded: Axes,
    factors: Mapping[int, Axes],
    families: Mapping[int, int],
    output: Axes,
    gate: str | None = None,
) -> tuple[Step, ...]:
    """The steps of a term in the cheapest order in which every step has the activation as an operand.

    Cost is the product of all axis sizes of a step, summed; tokens multiply every step alike and do not matter. Of more
    than six factors those of one family (copies of one written factor) are contracted from either end of it. Ties go to
    the written order.

    Args:
        factors: axes of each factor of the term, by position in Structure.factors, in written order.
        families: which written factor each factor is a copy of.
        gate: the expert axis, which stays on the activation until no factor is left that holds it; the weighted sum
            over it is taken there and is no step. Its size is the number of experts chosen.
    """
    order = _cheapest_order(size, loaded, factors, _chains(factors, families), output)
    return chained(loaded, order, factors, output, gate)


def chained(
    loaded: Axes, order: Sequence[int], factors: Mapping[int, Axes], output: Axes, gate: str | None = None
) -> tuple[Step, ...]:
    """The steps of a term in a given order; `gate` as in `order_steps`."""
    steps, left = [], loaded
    for index, position in enumerate(order):
        needed = _needed(factors, order[index + 1 :], output)
        step = _step(left, position, factors[position], needed if gate is None else needed | {gate})
        steps.append(step)
        left = tuple(a for a in step.result if a != gate or a in needed)
    return tuple(steps)


def _needed(factors: Mapping[int, Axes], remaining: Sequence[int], output: Axes) -> frozenset[str]:
    return frozenset(output).union(*(factors[p] for p in remaining))


def _step(left: Axes, position: int, right: Axes, needed: frozenset[str]) -> Step:
    both = [a for a in left if a in right]
    return Step(
        factor=position,
        batch=tuple(a for a in both if a in needed),
        rows=tuple(a for a in left if a not in right),
        contracted=tuple(a for a in both if a not in needed),
        cols=tuple(a for a in right if a not in left and a in needed),  # ends of bonds, of size one, drop out here
        left=left,
        right=right,
    )


def _chains(factors: Mapping[int, Axes], families: Mapping[int, int]) -> list[list[int]]:
    """What is contracted from its two ends: of few factors each one alone, so that every order is looked at."""
    if len(factors) <= MAX_ALL_ORDERS:
        return [[position] for position in factors]
    chains: list[list[int]] = []
    for position in factors:
        if chains and families[chains[-1][0]] == families[position]:
            chains[-1].append(position)
        else:
            chains.append([position])
    return chains


State = tuple[tuple[int, int], ...]  # of each chain, how many factors are done from its front and from its back


def _cheapest_order(
    size: Mapping[str, int], loaded: Axes, factors: Mapping[int, Axes], chains: list[list[int]], output: Axes
) -> tuple[int, ...]:
    """Shortest path over how far each chain has been contracted from either end (dynamic programming)."""
    if _states(chains) > MAX_ORDER_STATES:
        return _cheapest_of_some(size, loaded, factors, chains, output)
    best: dict[State, tuple[int, tuple[int, ...]]] = {((0, 0),) * len(chains): (0, ())}
    cost_of_step: dict[frozenset[str], int] = {}
    for state, position, reached, involved in _walk(loaded, factors, chains, output):
        if involved not in cost_of_step:
            cost_of_step[involved] = math.prod([size[a] for a in involved])
        cost, order = best[state]
        found = cost + cost_of_step[involved], (*order, position)
        best[reached] = min(best.get(reached, found), found)
    ends = (end for end in best.values() if len(end[1]) == len(factors))
    return min(ends)[1]  # a chain that is done may have been parted anywhere


def least_cost(
    size: Mapping[str, Array], loaded: Axes, factors: Mapping[int, Axes], families: Mapping[int, int], output: Axes
) -> Array:
    """Multiply-adds of a token in the cheapest order, for arrays of sizes; no more than that of terms too long for it.

    The arguments are those of `order_steps`.
    """
    chains = _chains(factors, families)
    if _states(chains) > MAX_ORDER_STATES:
        return sum((_product(size, axes) for axes in factors.values()), np.zeros(()))
    best: dict[State, Array] = {((0, 0),) * len(chains): np.zeros(())}
    for state, _, reached, involved in _walk(loaded, factors, chains, output):
        found = best[state] + _product(size, involved)
        best[reached] = np.minimum(best.get(reached, found), found)
    done = [cost for state, cost in best.items() if not _remaining(chains, state)]
    return functools.reduce(np.minimum, done)


def _product(size: Mapping[str, Array], axes: Iterable[str]) -> Array:
    return functools.reduce(np.multiply, [size[a] for a in axes], np.ones(()))


def _states(chains: list[list[int]]) -> int:
    return math.prod((len(chain) + 1) * (len(chain) + 2) // 2 for chain in chains)


Walk = tuple[tuple[State, int, State, frozenset[str]], ...]


def _walk(loaded: Axes, factors: Mapping[int, Axes], chains: list[list[int]], output: Axes) -> Walk:
    """Every step from one state to the next, the least done first: the state, its factor, the next one, the axes."""
    return _walked(loaded, tuple(factors.items()), tuple(map(tuple, chains)), output)


@functools.lru_cache(maxsize=64)  # the sizes do not matter: one walk for all options of an entry
def _walked(loaded: Axes, held: tuple[tuple[int, Axes], ...], chains: Sequence[tuple[int, ...]], output: Axes) -> Walk:
    return tuple(_steps(loaded, dict(held), chains, output))


def _steps(
    loaded: Axes, factors: Mapping[int, Axes], chains: Sequence[tuple[int, ...]], output: Axes
) -> Iterator[tuple[State, int, State, frozenset[str]]]:
    frontier: dict[State, frozenset[str]] = {((0, 0),) * len(chains): frozenset(loaded)}
    for _ in factors:
        following: dict[State, frozenset[str]] = {}
        for state, axes in frontier.items():
            remaining = _remaining(chains, state)
            for position, reached in _next(chains, state):
                involved = axes.union(factors[position])
                if reached not in following:  # the axes that are left depend on the state alone
                    needed = _needed(factors, [p for p in remaining if p != position], output)
                    following[reached] = involved & needed
                yield state, position, reached, involved
        frontier = following


def _remaining(chains: Sequence[Sequence[int]], state: State) -> list[int]:
    return [p for chain, (front, back) in zip(chains, state, strict=True) for p in chain[front : len(chain) - back]]


def _next(chains: Sequence[Sequence[int]], state: State) -> Iterator[tuple[int, State]]:
    """The factors that can be contracted next, and the state that each leads to."""
    for c, (chain, (front, back)) in enumerate(zip(chains, state, strict=True)):
        if front + back == len(chain):
            continue
        yield chain[front], (*state[:c], (front + 1, back), *state[c + 1 :])
        if front + back + 1 < len(chain):
            yield chain[len(chain) - 1 - back], (*state[:c], (front, back + 1), *state[c + 1 :])


def _cheapest_of_some(
    size: Mapping[str, int], loaded: Axes, factors: Mapping[int, Axes], chains: list[list[int]], output: Axes
) -> tuple[int, ...]:
    """The cheapest of a few orders: as written, backwards, and those that take the best next step, by two measures."""
    orders = [tuple(factors), tuple(factors)[::-1]]
    orders += [_greedy(size, loaded, factors, chains, output, by_result) for by_result in (False, True)]
    return min(orders, key=lambda order: cost_of(size, loaded, order, factors, output))  # a tie: the written one


def _greedy(
    size: Mapping[str, int],
    loaded: Axes,
    factors: Mapping[int, Axes],
    chains: list[list[int]],
    output: Axes,
    by_result: bool,
) -> tuple[int, ...]:
    """Each time the step that costs least, or that leaves the smallest activation."""
    uses = Counter(axis for axes in factors.values() for axis in axes) + Counter(output)
    state: State = ((0, 0),) * len(chains)
    order: list[int] = []
    here = frozenset(loaded)
    while len(order) < len(factors):
        options = []
        for position, reached in itertools.islice(_next(chains, state), MAX_NEXT):
            involved = here.union(factors[position])
            left = frozenset(a for a in involved if uses[a] > (a in factors[position]))
            measures = [math.prod(size[a] for a in axes) for axes in (involved, left)]
            if by_result:
                measures.reverse()
            options.append((measures, position, reached, left))
        _, position, state, here = min(options, key=lambda option: option[:2])
        uses.subtract(factors[position])
        order.append(position)
    return tuple(order)


def cost_of(
    size: Mapping[str, int], loaded: Axes, order: Sequence[int], factors: Mapping[int, Axes], output: Axes
) -> int:
    """Multiply-adds of a token when the factors are applied in this order."""
    last = {axis: place for place, position in enumerate(order) for axis in factors[position]}
    last |= dict.fromkeys(output, len(order))
    here, total = set(loaded), 0
    for place, position in enumerate(order):
        here.update(factors[position])
        total += math.prod(size[a] for a in here)
        here = {a for a in here if last.get(a, -1) > place}
    return total
