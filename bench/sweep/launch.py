"""What the options of a run mean: its request, points, limits, results file and journal, all checked beforehand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import structures
from bench.files import journal, options
from bench.files.errors import UsageError, one_of
from bench.files.fields import Fields, contents
from bench.files.options import check_output
from bench.files.progress import minutes
from bench.files.terminal import many
from bench.machine import device, setup, timing
from bench.sweep import limits, points, progress, request, rerun, shards
from bench.sweep.points import Point
from bench.sweep.sweep import Sweep
from structures.reading import BadFile

REPEATED = 4  # times the usual effort goes into a point that is repeated
FREE_TO_DIFFER = ("registry",)  # named by its content instead
ENTRIES = "all entries"


def sweep(option: Any, threads: setup.Threads, argv: list[str], *, since: float, layers: bool = True) -> Sweep:
    """The run that the options ask for.

    Args:
        since: the clock's reading when the process began, from which a time budget counts.
        layers: whether layers are measured at all; without them their points are not made, which takes seconds.
    Raises:
        UsageError: a value that is not allowed, or options that exclude each other.
    """
    values = vars(option)
    if not values["rerun_flagged"]:
        return _sweep(values, threads, argv, since=since, layers=layers)
    given = [name for name in request.MEASURED if is_given(values, name)]
    if given:
        option_names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"--rerun-flagged: takes its points and their options from the file; leave out {option_names}")
    return _repeated(values, threads, argv, since=since)


def _sweep(
    values: Mapping[str, Any], threads: setup.Threads, argv: list[str], *, since: float, layers: bool = True
) -> Sweep:
    allocator = one_of("--allocator", values["allocator"], ("tuned", "plain"))
    made = Sweep(
        request=request.read(values, cuda=device.available(), cores=threads.count),
        threads=threads,
        allocator=setup.tune_allocator() if allocator == "tuned" else setup.plain_allocator(),
        argv=argv,
        asked=asked(values),
    )
    made.effort = _effort(values, full=made.request.full)
    if layers:
        made.points, made.unreachable = points.points(made.request)
    made.mine = made.points
    if values["shard"]:
        shard = options.shard(values["shard"])
        nominal = timing.LONG if made.request.full else timing.SHORT
        made.mine = shards.of(made.points, shard, lambda point: progress.expected(point, nominal))
        made.unreachable = shards.unreachable_of(made.unreachable, shard)
    _limit(made, values, since)
    return made


def _limit(made: Sweep, values: Mapping[str, Any], since: float) -> None:
    if values["point_timeout"]:
        made.point_timeout = limits.duration("--point-timeout", values["point_timeout"])
        limits.check_alarm()
    if values["time_budget"]:
        seconds = limits.duration("--time-budget", values["time_budget"])
        made.budget = limits.TimeBudget(
            seconds, made.mine, lambda point: progress.expected(point, made.effort), since=since
        )


def _repeated(values: Mapping[str, Any], threads: setup.Threads, argv: list[str], *, since: float) -> Sweep:
    """A run of the flagged points of a file alone, with the options that the file says."""
    path = Path(values["rerun_flagged"])
    found = rerun.flagged(path)
    every: dict[Point, None] = {}
    for one in found.requests:
        files = [name for name in one.get("registry", {}) if name != ENTRIES]
        again = {**values, **{name: one.get(name) for name in request.MEASURED}, "registry": files, "shard": None}
        made = _sweep(again, threads, argv, since=since)
        if made.asked["registry"] != one.get("registry"):
            raise UsageError(f"--rerun-flagged: a registry file has changed since {path} was measured; measure it anew")
        every.update(dict.fromkeys(made.points))
    made.points = list(every)
    made.mine = [point for point in made.points if str(point) in found.ids]
    here = rerun.conditions(made.run_facts())
    differ = [f"{key} was {was!r} and is {here[key]!r}" for key, was in found.run.machine.items() if here[key] != was]
    if differ:
        raise UsageError(f"--rerun-flagged: {path} was measured under other conditions: {'; '.join(differ)}")
    if not made.mine:
        raise UsageError(f"--rerun-flagged: this version has none of the flagged points of {path}; measure it anew")
    made.unreachable = []
    more = {key: REPEATED * getattr(made.effort, key) for key in ("paired", "alone", "rounds", "most")}
    made.effort = replace(made.effort, **more)
    made.extra_facts["rerun_of"] = {"file": path.name, "datetime": found.run.datetime, "points": len(made.mine)}
    _limit(made, values, since)
    return made


def is_given(values: Mapping[str, Any], name: str) -> bool:
    """Whether an option has another value than its default."""
    default = {"allocator": "tuned", "registry": [], "benchmark_confidence": 0.99}.get(name)
    return values.get(name) not in (default, None, False)


def _effort(values: Mapping[str, Any], *, full: bool) -> timing.Effort:
    """How long points are timed; pytest-benchmark's own options of precision hold for the paired ratio too."""
    effort = timing.LONG if full else timing.SHORT
    if values.get("benchmark_precision"):
        confidence = float(values["benchmark_confidence"])
        effort = replace(effort, precision=float(values["benchmark_precision"]), confidence=confidence)
    return effort


def asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say what is measured, as the results file and the journal keep them."""
    kept = {name: values.get(name) for name in request.MEASURED if name not in FREE_TO_DIFFER}
    plain = {name: float(v) if name.startswith("benchmark") and v is not None else v for name, v in kept.items()}
    files = {str(name): _digest(Path(name)) for name in values.get("registry") or ()}
    return plain | {"registry": {ENTRIES: _registered()} | files}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(contents(path)).hexdigest()[:16]
    except BadFile as error:
        raise UsageError(f"--registry: {error}") from None


def _registered() -> str:
    """A digest of all entries that are registered."""
    entries = {name: repr(structures.get(name)) for name in sorted(structures.names())}
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


# -- the results file and its journal


def output(option: Any) -> Path | None:
    """The results file; None where none is written.

    Raises:
        UsageError: it cannot be written, --resume names another one, it would hold no times, or it exists.
    """
    shown_only = option.list or option.collectonly
    if not (shown_only or option.check) and getattr(option, "dist", "no") != "no":
        raise UsageError(
            "-n: processes of pytest-xdist would disturb each other's times, so nothing is timed in them; leave it "
            "out, or give each machine a part by --shard K/N"
        )
    path = Path(option.benchmark_json) if option.benchmark_json else None
    if option.resume:
        resumed = Path(option.resume)
        if path is not None and os.path.realpath(path) != os.path.realpath(resumed):
            raise UsageError(
                f"--resume: goes on with {resumed} and writes it; --benchmark-json names another file, {path}"
            )
        path = resumed
    if path is None:
        return None
    name = "--resume" if option.resume else "--benchmark-json"
    if option.check or (option.benchmark_disable and not option.benchmark_enable):
        without = "--check" if option.check else "--benchmark-disable"
        raise UsageError(f"{without}: times nothing, so there is nothing to write; leave out {name}")
    check_output(name, path)
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{name}: the folder {path.parent} cannot be written")
    if path.exists() and not (option.resume or option.overwrite or shown_only):
        or_else = f", or go on with its run by --resume {path}" if journal.of(path).exists() else ""
        raise UsageError(f"{name}: {path} exists; add --overwrite to replace it{or_else}")
    return path


def journal_of(path: Path, sweep: Sweep, *, resume: bool) -> tuple[journal.Journal, list[str]]:
    """The journal of this run, begun or gone on with; a run gone on with has its points restored.

    Raises:
        UsageError: there is none, or the run it holds is another one.
    """
    header = {
        "argv": sweep.argv,
        "datetime": sweep.started,
        "conditions": rerun.conditions(sweep.run_facts()),
        "options": sweep.asked,
        "points": f"{len(sweep.selected)}, {hashlib.sha256(chr(10).join(sweep.selected).encode()).hexdigest()[:16]}",
        "rerun_of": sweep.extra_facts.get("rerun_of"),
    }
    if not resume:
        return journal.start(path, header), []
    opened, before, entries, said = journal.resume(path)
    same = ("conditions", "options", "points", "rerun_of")
    differ = list(journal.differences({k: before.get(k) for k in same}, {k: header[k] for k in same}))
    if differ:
        opened.close()
        raise UsageError(f"--resume: {path} was begun as another run: {'; '.join(differ)}")
    resumed = {"datetime": sweep.started, "argv": sweep.argv}
    try:
        sweep.restore(entries)
        begun = Fields(f"--resume: {path}.journal: line 1", before)
        sweep.argv, sweep.started = begun.values_of("argv", (str,)), begun.words("datetime")
    except BadFile as error:
        opened.close()
        raise UsageError(str(error)) from None
    sweep.extra_facts["resumed"] = [*(entry.get("resumed") for entry in entries if "resumed" in entry), resumed]
    sweep.news.append({"resumed": resumed})
    said.append(f"{path}: goes on with {len(sweep.finished)} of {len(sweep.selected)} points done")
    return opened, said


# -- what would run


def listing(items: Sequence[tuple[str, Point | None]], sweep: Sweep) -> Iterator[str]:
    """A line for each point with about how long it takes, and what that makes in all, at this machine's rate."""
    rates: dict[tuple[str, str], float] = {}
    total = 0.0
    for name, point in items:
        if point is None:
            yield f"{name:90} out of reach"
            continue
        key = (point.device, point.dtype)
        if key not in rates:
            rates[key] = _rate(*key)
        seconds = progress.expected(point, sweep.effort, rates[key])
        total += seconds
        yield f"{name:90} {seconds:.2f} s"
    at = ", ".join(f"{rate / 1e9:.0f} GFLOP/s for {dtype} on {where}" for (where, dtype), rate in rates.items())
    yield f"{many(len(items), 'point')}, about {minutes(total)} in all, at {at or 'no rate'}"


def _rate(where: str, dtype: str) -> float:
    """FLOPs a second of a dense product of 128 rows, from a few calls."""
    x, w = (torch.ones(n, 1024, device=device.place(where), dtype=getattr(torch, dtype)) for n in (128, 1024))
    return 2 * 128 * 1024**2 / timing.once(lambda: torch.mm(x, w.T), device.clock_of(where))
