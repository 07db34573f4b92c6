"""One run: how each point is refused, checked, paired with dense and timed, and what the run says about itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.files import declared
from bench.files.fields import Fields
from bench.files.rows import Refusal, Run, parse_row, parse_run
from bench.files.run import facts, now
from bench.files.vocabulary import DENSE, DEVICES, DTYPES
from bench.files.wholes import DecoderRow, ModuleRow
from bench.machine import device, energy, roofline, setup, timing
from bench.machine.device import clock_of
from bench.machine.timing import Quartiles
from bench.sweep import limits
from bench.sweep.cell import Cell, Timed, cell, grad_mode, timed_step
from bench.sweep.check import check, saved_bytes
from bench.sweep.facts import counted, json_options
from bench.sweep.points import CANDIDATES, COMPILED, ONEDNN, Point, UnreachableBudget, runs_onednn
from bench.sweep.request import Request, read_options
from bench.sweep.subject import NotNow, Refused, Subject


@dataclass(frozen=True)
class Done:
    """A point that was measured, as the summary needs it."""

    point: Point
    seconds: float
    speedup: float | None
    disturbed: bool  # others used the machine meanwhile


@dataclass
class Sweep:
    """A run of the sweep: what was asked for, the machine, and what has been found so far."""

    request: Request
    threads: setup.Threads
    allocator: str
    argv: list[str]
    points: list[Point] = field(default_factory=list)  # of the whole request; a shard or a rerun measures some of them
    unreachable: list[UnreachableBudget] = field(default_factory=list)
    started: str = field(default_factory=now)
    effort: timing.Effort = timing.SHORT
    point_timeout: float | None = None
    budget: limits.TimeBudget | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the results file, by the ids of their points
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows of whole modules and models, by their ids
    refusals: dict[str, dict[str, object]] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)
    rooflines: dict[tuple[str, str, int], roofline.Roofline] = field(default_factory=dict)
    ways: dict[tuple[object, ...], str] = field(default_factory=dict)  # of cells decided before, in a run gone on with
    asked: dict[str, Any] = field(default_factory=dict)  # the options that say what is measured
    extra_facts: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    journalled: bool = False  # every finished point is on the disk already

    def __post_init__(self) -> None:
        self.load = setup.Load(self.threads.cores)
        self.news: list[Any] = []  # what the journal has not got yet
        self.not_now: set[str] = set()  # points left out for lack of time
        self.mine = self.points  # what this run measures of them
        self.selected: list[str] = []  # the ids of what pytest's own options leave of these
        self._cell: Cell | None = None
        self._energy: dict[str, tuple[energy.Counter | None, str]] = {}
        self._ran: dict[Point, Point] = {}  # a point with the backend that ran in place of the one asked for

    def measure(self, point: Point, benchmark: Any) -> None:
        """Check a point, then time it: against dense in a paired loop, and alone by the fixture.

        Raises:
            Refused: it cannot run, or not in time.
            CheckFailed: it computes something else; nothing is timed.
        """
        if self.budget and (reason := self.budget.admit(point)):
            raise NotNow(reason)
        self.load.since()
        left = self.budget.left if self.budget else None
        seconds = min((s for s in (left, self.point_timeout) if s is not None), default=None)
        try:
            with limits.alarm(seconds), _memory_refused():
                self._measure(point, benchmark)
        except limits.TimedOut:
            self._cell = None  # it may be half made
            if seconds == self.point_timeout:
                words = limits.words(self.point_timeout)
                raise Refused(f"timed out: took longer than --point-timeout {words}") from None
            raise NotNow("not run to its end: --time-budget was spent") from None
        finally:
            if self.budget:
                self.budget.finished(point)

    def _measure(self, point: Point, benchmark: Any) -> None:
        self._prepare(point)
        here = self._cell_of(point)
        settled = here.settled(point)
        what, x, dy = here.subject(settled)
        ran = replace(settled, backend=what.backend)
        if not point.is_dense and self._ran.setdefault(ran, point) != point:
            other = self._ran[ran].backend
            raise Refused(f"backend {other!r} ran {what.backend!r} here as well: one point, measured once")
        info = counted(point, what, x)
        info["error"] = check(what, x, dy)
        if self.request.check:
            self.done.append(Done(point, 0.0, None, False))
            return
        saved = point.train and what.backend != COMPILED  # a compiled graph keeps what it likes
        info["activation_bytes"] = saved_bytes(what, x) if saved else None
        if point.series == DENSE:
            info["candidates"] = here.candidates
        with grad_mode(point):
            speedup, seconds = self._time(settled, what, here, x, dy, info, benchmark)
        self.done.append(Done(point, seconds, speedup and speedup.median, "load" in benchmark.extra_info["flags"]))

    def refuse(self, point: Point | UnreachableBudget, reason: str) -> None:
        """Record a point that did not run."""
        if isinstance(point, UnreachableBudget):
            row: dict[str, object] = dict.fromkeys(("tokens", "dtype", "device", "mode", "backend", "threads"))
            row |= {"series": None, "options": None, **asdict(point)}
        else:
            row = asdict(point) | {"options": json_options(read_options(point.options))}
            row.pop("control")
        row["reason"] = reason.strip().partition("\n")[0] or "no reason given"
        self.refusals[str(point)] = row
        if str(point) not in self.not_now:
            self.news.append({"refused": row, "id": str(point)})

    @property
    def refused(self) -> list[dict[str, object]]:
        """What did not run, in the order of an unbroken run."""
        order = [str(point) for point in (*self.unreachable, *self.points)]
        known = {name: self.refusals[name] for name in order if name in self.refusals}
        return list((known | self.refusals).values())

    @property
    def finished(self) -> set[str]:
        """The ids of the points that are measured, checked, or known not to run."""
        return {str(done.point) for done in self.done} | set(self.whole) | (set(self.refusals) - self.not_now)

    def run_facts(self) -> dict[str, object]:
        """The `run` part of the results file."""
        gpu = device.name() if device.available() else None
        tf32 = torch.backends.cuda.matmul.allow_tf32 if gpu else None
        own = {"energy": self.energy_told, "request": self.asked, **self.extra_facts}
        return facts(self, gpu=gpu, tf32=tf32, cold=self.request.cold) | own

    @property
    def energy_told(self) -> dict[str, str]:
        """The counter of each device, or why it has none."""
        return {name: told for name, (_, told) in self._energy.items()}

    def _prepare(self, point: Point) -> None:
        """Threads, room and the machine's limits."""
        if torch.get_num_threads() != point.threads:
            torch.set_num_threads(point.threads)
        free = device.free_memory(point.device)
        needed = _memory_needed(point)
        if free is not None and needed > free:
            raise Refused(f"out of memory: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
        key = (point.device, point.dtype, point.threads)
        if key not in self.rooflines and not self.request.check:
            self.rooflines[key] = roofline.measure(*key, clock=clock_of(point.device))
            self.news.append({"roofline": self.rooflines[key].as_dict()})

    def _cell_of(self, point: Point) -> Cell:
        if self._cell is None or self._cell.key != point.cell:
            self._cell = None  # free the last one first
            rows = {p.backend for p in self.points if p.cell == point.cell and p.structure == DENSE and p.control}
            ways = [way for way in CANDIDATES if (way in rows if rows else way not in (COMPILED, ONEDNN))]
            if not rows and runs_onednn(asdict(point)):
                ways.append(ONEDNN)
            decided = self.ways.get(point.cell)
            self._cell = cell(point, ways, self.effort, self.request.cold, decided)
            if decided is None:
                self.news.append({"cell": list(point.cell), "way": self._cell.way})
        return self._cell

    def _time(
        self,
        point: Point,
        what: Subject,
        here: Cell,
        x: Tensor,
        dy: Tensor | None,
        info: dict[str, Any],
        benchmark: Any,
    ) -> tuple[Quartiles | None, float]:
        """The ratio to dense and the seconds of a call; fills the row."""
        clock, speedup = clock_of(point.device, point.clock), None
        own = timed_step(point, what, x, dy, self.request.cold)
        seconds = timing.once(own.step, clock)
        if point.series != DENSE:
            speedup = timing.paired(own.step, here.dense, self.effort, seconds=(seconds, here.seconds), clock=clock)
        benchmark(own.step)
        width, margin = speedup.width if speedup else 0.0, None
        if benchmark.stats is not None:  # None under --benchmark-disable, which checks only
            stats = benchmark.stats.stats
            seconds, margin = stats.median, timing.margin_of_error(stats.data, self.effort.confidence)
            width = width if speedup else stats.iqr / seconds
        bound = None
        if what.originals is None:
            roof = self.rooflines[(point.device, point.dtype, point.threads)]
            steps = len(what.structure.steps) if point.clock == device.HOST else 0  # a graph has no calls of the host
            work = {"flops": info["executed_flops"], "moved": info["bytes"], "steps": steps}
            bound = roof.bound(**work, train=point.train, seconds=seconds)
        benchmark.extra_info |= info | {
            "speedup": speedup and speedup.as_dict(),
            "speedup_over_linear": speedup and here.over_linear and speedup.median * here.over_linear,
            "precision": {"target": self.effort.precision, "confidence": self.effort.confidence, "time": margin,
                          "speedup": speedup and speedup.margin},
            "roofline": bound,
            "cache": "cold" if self.request.cold else "warm",
            "copies": own.copies,
            "captured": own.captured,
            "peak_bytes": device.peak_bytes(point.device, what.step(x, dy)),
            "energy_joules": self._joules(point, own, seconds),
        }  # fmt: skip
        rotated = own.copies * sum(p.numel() * p.element_size() for p in what.parameters)
        benchmark.extra_info["flags"] = self._flags(point, width, rotated)
        return speedup, seconds

    def _joules(self, point: Point, own: Timed, seconds: float) -> float | None:
        if point.device not in self._energy:
            self._energy[point.device] = energy.counter(point.device)
        meter, _ = self._energy[point.device]
        if meter is None:
            return None
        return energy.joules_per_call(own.step, seconds, point.device, meter, clock_of(point.device))

    def _flags(self, point: Point, width: float, rotated: int) -> list[str]:
        fit = self.request.cold and rotated <= device.cache_bytes(point.device)
        return [*timing.flags(self.load, width), *(["copies fit the cache"] if fit else [])]

    def restore(self, entries: Iterable[Fields]) -> None:
        """Take over what a journal holds.

        Raises:
            BadFile: an entry is none of this sweep, or cannot be read as the results file is.
        """
        by_id = {str(point): point for point in self.points}
        run = self._run
        for entry in entries:
            if "whole" in entry:
                whole = entry.inside("whole")
                declared.read(ModuleRow if "names" in whole else DecoderRow, whole)
                self.whole[entry.words("id")] = {**entry.values, "benchmark": entry.object("benchmark")}
            elif "row" in entry:
                self._restore_row(entry, by_id, run)
            elif "refused" in entry:
                declared.read(Refusal, entry.inside("refused"), run=run)
                self.refusals[entry.words("id")] = entry.object("refused")
            elif "roofline" in entry:
                found = _roofline(entry.inside("roofline"))
                self.rooflines[(found.device, found.dtype, found.threads)] = found
            elif "cell" in entry:
                self.ways[tuple(entry.values_of("cell", (str, int)))] = entry.name("way")
            elif "load" in entry:
                self.load.all_foreign, self.load.all_seconds = entry.values_of("load", (int, float), 2)
            else:
                entry.object("resumed")

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Take in the row of a point, as all others will read it."""
        parse_row(self._run, Fields(name, row))
        self.rows[name] = row
        self.news.append({"row": row, "id": name})

    @property
    def _run(self) -> Run:
        return parse_run("this run", Fields("this run", {"run": self.run_facts(), "roofline": [], "rules": {}}))

    def _restore_row(self, entry: Fields, by_id: Mapping[str, Point], run: Run) -> None:
        row = parse_row(run, entry.inside("row"))
        if (name := entry.words("id")) not in by_id:
            raise entry.bad("id", "the id of a point of this sweep")
        point = by_id[name]
        self.rows[str(point)] = entry.object("row")
        self._energy.setdefault(point.device, energy.counter(point.device))
        ratio = row.speedup and row.speedup.median
        self.done.append(Done(point, row.time.median, ratio, "load" in row.flags))
        self._ran[replace(point, backend=row.backend)] = point


def _roofline(found: Fields) -> roofline.Roofline:
    """What `Roofline.as_dict` wrote."""
    return roofline.Roofline(
        found.choice("device", DEVICES),
        found.choice("dtype", DTYPES),
        found.count("threads"),
        found.number("gemm_flops_per_s"),
        tuple(found.pairs("copy_bytes_per_s_by_size")),
        found.number("seconds_per_step"),
        found.number("seconds_per_train_step"),
    )


def _memory_needed(point: Point) -> int:
    """A rough upper bound of bytes: dense and its gradients, a batch with a few intermediates, the check in float64."""
    return 40 * point.in_features * point.out_features + 48 * point.tokens * (point.in_features + point.out_features)


@contextmanager
def _memory_refused() -> Iterator[None]:
    """Running out of memory is a refusal."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Refused(f"out of memory: {error}") from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise Refused(f"out of memory: {error}") from None
