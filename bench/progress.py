"""What the terminal says: a line for each point, at the end the fastest structures and the command for the plots."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from bench.measure import Effort
from bench.points import Point
from bench.sweep import Done, Sweep

DENSE_RATE = 1e11  # FLOPs a second assumed for the estimate before anything has been measured
OVERHEAD = 0.06  # seconds a point besides its calls: building, checking, the test itself
SHOWN = 3  # structures named for each budget


class Progress:
    """Counts points and foretells when the run ends: what is left, at the pace of what is done."""

    def __init__(self, points: list[Point], effort: Effort):
        self.points, self.effort = points, effort
        self.total = sum(expected(p, effort) for p in points)
        self.done = 0.0
        self.finished = 0
        self.start = time.perf_counter()

    def line(self, point: Point, text: str) -> str:
        """`[ 12/300  1:40 left] point   text`; counts the point as finished."""
        self.done += expected(point, self.effort)
        self.finished += 1
        spent = time.perf_counter() - self.start
        left = spent * (self.total / self.done - 1) if self.done else 0.0
        count = f"{self.finished:{len(str(len(self.points)))}}/{len(self.points)}"
        return f"[{count} {minutes(left)} left] {_words(point):76} {text}"


def expected(point: Point, effort: Effort) -> float:
    """About how many seconds a point takes: a relative measure, scaled by what has been seen."""
    call = point.dense_flops / DENSE_RATE
    return OVERHEAD + max(effort.paired, 2 * effort.rounds * call) + max(effort.alone, effort.rounds * call) + 6 * call


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def outcome(done: Done) -> str:
    """`0.123 ms   2.31x dense`."""
    ratio = "" if done.speedup is None else f"  {done.speedup:6.2f}x dense"
    return f"{done.seconds * 1e3:9.4g} ms{ratio}{'  (load)' if done.disturbed else ''}"


def _words(point: Point) -> str:
    own = f" {point.backend}" if point.backend not in ("auto", "best") and not point.is_dense else ""
    where = f"{point.in_features}x{point.out_features} tokens {point.tokens} {point.dtype}"
    return f"{point.series}{own}  {where} {'cuda ' if point.device == 'cuda' else ''}{point.mode}"


def _short(point: Point) -> str:
    name = point.structure if point.budget else point.series
    return name if point.backend == "auto" else f"{name} by {point.backend}"


def summary(sweep: Sweep, json: str | None) -> Iterator[str]:
    """Fastest structures of each budget and mode at the largest shape measured, and how to draw the plots.

    Points under foreign load are left out: their ratios can be anything.
    """
    groups: dict[tuple[object, ...], list[Done]] = defaultdict(list)
    for done in sweep.done:
        point = done.point
        if done.speedup is not None and not point.control and not done.disturbed:
            groups[(point.device, point.dtype, point.budget, point.mode, point.tokens)].append(done)
    for (device, dtype, budget, mode, tokens), rows in groups.items():
        largest = max((d.point.in_features * d.point.out_features, d.point.shape) for d in rows)[1]
        best = sorted((d for d in rows if d.point.shape == largest), key=lambda d: -(d.speedup or 0))[:SHOWN]
        names = ", ".join(f"{_short(d.point)} {d.speedup:.2f}x" for d in best)
        yield (f"{budget or 'own options':12} {mode:7} {device} {dtype} tokens {tokens:<5} "
               f"{largest[0]}x{largest[1]}: {names}")  # fmt: skip
    refused = len(sweep.refused)
    yield f"{len(sweep.done)} points measured, {refused} refused or failed{'' if sweep.complete else '; not complete'}"
    disturbed = sum(done.disturbed for done in sweep.done)
    if disturbed:
        share = sweep.load.overall or 0.0
        yield (
            f"{disturbed} points were measured while others used {share:.0%} of these cores: they are flagged 'load' "
            "and left out above; repeat the sweep on a quiet machine"
        )
    if json:
        yield f"Draw the plots: python -m bench report {json} -o report/"
    else:
        yield "Nothing was written; add --benchmark-json=results.json"
