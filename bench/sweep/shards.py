"""One sweep split among machines of a kind: every curve whole in one shard, the shards about equally long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from bench.sweep.points import Point, UnreachableBudget

Shard = tuple[int, int]


def curve(point: Point) -> tuple[object, ...]:
    """What the points of one curve share, whether it is drawn over widths or over tokens."""
    return (point.series, point.backend, point.dtype, point.device, point.clock, point.mode, point.threads)


def of(
    points: Sequence[Any], shard: Shard, cost: Callable[[Any], float], together: Callable[[Any], Hashable] = curve
) -> list[Any]:
    """The points of one shard, in their order: the longest curve first, each to the shard with the least so far.

    The same on every machine, so `cost` must not depend on the machine.
    Args:
        together: what points share that stay in one shard, such as their curve.
    """
    curves: dict[Hashable, float] = defaultdict(float)
    for point in points:
        curves[together(point)] += cost(point)
    k, n = shard
    loads = [0.0] * n
    mine = set()
    for what in sorted(curves, key=lambda c: -curves[c]):  # stable: ties stay in the order of the points
        least = min(range(n), key=loads.__getitem__)
        loads[least] += curves[what]
        if least == k - 1:
            mine.add(what)
    return [point for point in points if together(point) in mine]


def unreachable_of(missed: Sequence[UnreachableBudget], shard: Shard) -> list[UnreachableBudget]:
    """The budgets out of reach that one shard records: dealt in turn."""
    k, n = shard
    return [one for i, one in enumerate(missed) if i % n == k - 1]
