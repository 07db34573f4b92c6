"""What the terminal says: a line for each point, at the end the fastest structures and the command for the plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.answers import sentence
from bench.answers.question import PARAMS, Question, questions
from bench.answers.verdict import Verdict, verdict
from bench.files.rows import Row
from bench.files.terminal import many
from bench.machine.timing import Effort
from bench.sweep import output, rerun
from bench.sweep.points import COMPILED, Point
from bench.sweep.sweep import Done, Sweep

DENSE_RATE = 1e11  # FLOPs a second assumed for the estimate before anything has been measured
OVERHEAD = 0.06  # seconds a point besides its calls: building, checking, the test itself
QUIET = 0.5  # share of the time for rounds that a point takes on average, ended by their precision
COMPILING = 4.0  # seconds for the compiler's first call


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


def summary(sweep: Sweep, json: Path | None) -> Iterator[str]:
    """The verdict on each cost, mode and batch at the largest layer measured, and how to draw the plots."""
    for found in _verdicts(output.results(sweep).rows if sweep.rows else ()):
        of = found.question
        device = of.device if of.clock == "host" else f"{of.device} ({of.clock} time)"
        where = f"{device} {of.dtype} tokens {of.tokens:<5} {of.in_features}x{of.out_features}"
        yield f"{f'{of.equal}={of.share:g}':12} {of.mode:7} {where}: {sentence.brief(found)}"
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
        yield f"{many(disturbed, 'point')} {while_busy}: flagged 'load', and neither win nor tie above"
    for device, told in sweep.energy_told.items():
        yield f"energy of a call on {device}: {told}"
    if sweep.request.check:
        return
    if again := rerun.command(json, list(sweep.rows.values())):
        yield f"{many(again['flagged'], 'point')} flagged as unsafe; to repeat: {again['command']}"
    yield from how_on(sweep, json, "plots")


def how_on(sweep: Sweep, json: Path | None, drawn: str) -> Iterator[str]:
    """How to go on with a run, and to draw it."""
    if json is None:
        yield "Nothing was written; add --benchmark-json=results.json"
        return
    if not sweep.complete and sweep.journalled:
        yield f"Go on later: the same command with --resume {json}"
    yield f"Draw the {drawn}: python -m bench report {json} -o report/"


def _verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Of the largest layer at each cost that was asked for, mode, type and batch."""
    budgets = {row.budget for row in rows if row.budget and not row.control}

    def asked(one: Question) -> bool:
        return f"{one.equal}={one.share:g}" in budgets if budgets else one.equal == PARAMS

    largest: dict[Question, Question] = {}
    for one in sorted(filter(asked, questions(rows)), key=lambda q: (q.in_features * q.out_features, q.in_features)):
        largest[replace(one, in_features=1, out_features=1)] = one
    return [verdict(rows, one) for one in largest.values()]
