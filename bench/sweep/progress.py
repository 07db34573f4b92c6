"""What the terminal says: a line for each point, at the end the fastest structures and the command for the plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench.files.terminal import many
from bench.machine.timing import Effort
from bench.sweep import rerun
from bench.sweep.points import COMPILED, Point
from bench.sweep.sweep import Done, Sweep

DENSE_RATE = 1e11  # FLOPs a second assumed for the estimate before anything has been measured
OVERHEAD = 0.06  # seconds a point besides its calls: building, checking, the test itself
QUIET = 0.5  # share of the time for rounds that a point takes on average, ended by their precision
COMPILING = 4.0  # seconds for the compiler's first call
SHOWN = 3  # structures named for each budget


def expected(point: Point, effort: Effort, rate: float = DENSE_RATE) -> float:
    """About how many seconds a point takes.

    Args:
        rate: FLOPs a second of a dense product; that of this machine where the answer need not be the same on all.
    """
    call = point.dense_flops / rate
    building = 4 * call  # the layer, the check in float64 and its gradients, the first calls
    paired = max(QUIET * effort.paired, 1.4 * effort.rounds * call)  # of dense and of a structure, which is faster
    alone = max(QUIET * effort.alone, 0.5 * effort.rounds * call)
    return OVERHEAD + building + paired + alone + (COMPILING if point.backend == COMPILED else 0.0)


def outcome(done: Done) -> str:
    """`0.123 ms   2.31x dense`."""
    if not done.seconds:
        return "passed the check"
    ratio = "" if done.speedup is None else f"  {done.speedup:6.2f}x dense"
    return f"{done.seconds * 1e3:9.4g} ms{ratio}{'  (load)' if done.disturbed else ''}"


def shown(point: Point) -> str:
    """A point as the terminal names it."""
    own = f" {point.backend}" if point.backend not in ("auto", "best") and not point.is_dense else ""
    where = f"{point.in_features}x{point.out_features} tokens {point.tokens} {point.dtype}"
    device = f"{point.device} ({point.clock} time) " if point.device == "cuda" else ""
    return f"{point.series}{own}  {where} {device}{point.mode}"


def _short(point: Point) -> str:
    name = point.structure if point.budget else point.series
    return name if point.backend == "auto" else f"{name} by {point.backend}"


def summary(sweep: Sweep, json: Path | None) -> Iterator[str]:
    """Fastest structures of each budget and mode at the largest shape measured, and how to draw the plots.

    Points under foreign load are left out: their ratios can be anything.
    """
    groups: dict[tuple[object, ...], list[Done]] = defaultdict(list)
    for done in sweep.done:
        point = done.point
        if done.speedup is not None and not point.control and not done.disturbed:
            device = point.device if point.clock == "host" else f"{point.device} ({point.clock} time)"
            groups[(device, point.dtype, point.budget, point.mode, point.tokens)].append(done)
    for (device, dtype, budget, mode, tokens), rows in groups.items():
        largest = max((d.point.in_features * d.point.out_features, d.point.shape) for d in rows)[1]
        best = sorted((d for d in rows if d.point.shape == largest), key=lambda d: -(d.speedup or 0))[:SHOWN]
        names = ", ".join(f"{_short(d.point)} {d.speedup:.2f}x" for d in best)
        yield (f"{budget or 'own options':12} {mode:7} {device} {dtype} tokens {tokens:<5} "
               f"{largest[0]}x{largest[1]}: {names}")  # fmt: skip
    refused = len(sweep.refused)
    what = "checked" if sweep.request.check else "measured"
    found = f"{many(len(sweep.done), 'point')} {what}, {refused} refused or failed"
    yield f"{found}{'' if sweep.complete else '; not complete'}"
    if sweep.not_now:
        yield f"{len(sweep.not_now)} of these were left out for lack of time; they are rows with that reason"
    disturbed = sum(done.disturbed for done in sweep.done)
    if disturbed:
        share = sweep.load.overall or 0.0
        while_busy = f"measured while others used {share:.0%} of these cores"
        yield f"{many(disturbed, 'point')} {while_busy}: flagged 'load' and left out above"
    for device, told in sweep.energy_told.items():
        yield f"energy of a call on {device}: {told}"
    if sweep.request.check:
        return
    if again := rerun.command(json, list(sweep.rows.values())):
        yield f"{many(again['flagged'], 'point')} flagged as unsafe; to repeat: {again['command']}"
    if json and not sweep.complete and sweep.journalled:
        yield f"Go on later: the same command with --resume {json}"
    if json:
        yield f"Draw the plots: python -m bench report {json} -o report/"
    else:
        yield "Nothing was written; add --benchmark-json=results.json"
