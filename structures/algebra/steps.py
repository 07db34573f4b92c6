"""A term's steps: batched matrix products of the activation and one factor each, in the cheapest order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Axes = tuple[str, ...]

MAX_ORDER_STATES = 1024  # partial contraction orders looked at; longer terms are contracted as written


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

    Cost is the product of all axis sizes of a step, summed; tokens multiply every step alike and do not matter.
    Factors of one family (copies of one written factor) keep their order; ties go to the written order.

    Args:
        factors: axes of each factor of the term, by position in Structure.factors, in written order.
        families: which written factor each factor is a copy of.
        gate: the expert axis, which stays on the activation until no factor is left that holds it; the weighted sum
            over it is taken there and is no step. Its size is the number of experts chosen.
    """
    chains: list[list[int]] = []
    for position in factors:
        if chains and families[chains[-1][0]] == families[position]:
            chains[-1].append(position)
        else:
            chains.append([position])
    order = _cheapest_order(size, loaded, factors, chains, output)
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


def _cheapest_order(
    size: Mapping[str, int], loaded: Axes, factors: Mapping[int, Axes], chains: list[list[int]], output: Axes
) -> tuple[int, ...]:
    """Shortest path over how far each chain has been contracted (dynamic programming over partial orders)."""
    if math.prod(len(chain) + 1 for chain in chains) > MAX_ORDER_STATES:
        return tuple(factors)
    start = (0,) * len(chains)
    # state -> (cost, order, axes of the activation); the axes depend on the state alone
    best: dict[tuple[int, ...], tuple[int, tuple[int, ...], frozenset[str]]] = {start: (0, (), frozenset(loaded))}
    frontier = [start]
    for _ in factors:
        following: dict[tuple[int, ...], None] = {}
        for state in frontier:
            cost, order, axes = best[state]
            remaining = [p for chain, done in zip(chains, state, strict=True) for p in chain[done:]]
            for c, chain in enumerate(chains):
                if state[c] == len(chain):
                    continue
                position = chain[state[c]]
                reached = (*state[:c], state[c] + 1, *state[c + 1 :])
                involved = axes.union(factors[position])
                total = cost + math.prod(size[a] for a in involved)
                if reached not in best or (total, (*order, position)) < best[reached][:2]:
                    needed = _needed(factors, [p for p in remaining if p != position], output)
                    best[reached] = (total, (*order, position), involved & needed)
                following[reached] = None
        frontier = list(following)
    return best[tuple(len(chain) for chain in chains)][1]
