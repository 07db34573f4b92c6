"""One run: how each point is refused, checked, paired with dense and timed, and what the run says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from bench import machine, measure, roofline
from bench.cell import Cell, cell, clock_of, grad_mode, timed_step
from bench.check import check, saved_bytes
from bench.measure import Spread
from bench.points import CANDIDATES, COMPILED, DENSE, Point, Unreachable
from bench.request import Request, read_options
from bench.subject import Refused, Subject

NOISY = 0.25  # distance of the quartiles, as a share of the median, from which a point is flagged


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
    threads: machine.Threads
    allocator: str
    argv: list[str]
    points: list[Point] = field(default_factory=list)
    unreachable: list[Unreachable] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    refused: list[dict[str, object]] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    rooflines: dict[tuple[str, str, int], roofline.Roofline] = field(default_factory=dict)
    complete: bool = False

    def __post_init__(self) -> None:
        self.load = machine.Load(self.threads.cores)
        self.effort = measure.LONG if self.request.full else measure.SHORT
        self._cell: Cell | None = None

    def measure(self, point: Point, benchmark: Any) -> None:
        """Check a point, then time it: against dense in a paired loop, and alone by the fixture.

        Raises:
            Refused: it cannot run.
            CheckFailed: it computes something else; nothing is timed.
        """
        self.load.since()
        with _memory_refused():
            self._prepare(point)
            here = self._cell_of(point)
            what, x, dy = here.subject(here.settled(point))
            info = _facts(point, what, x)
            info["error"] = check(what, x, dy)
            saved = point.train and what.backend != COMPILED  # a compiled graph keeps what it likes
            info["activation_bytes"] = saved_bytes(what, x) if saved else None
            if point.series == DENSE:
                info["candidates"] = here.candidates
            with grad_mode(point):
                speedup, seconds = self._time(point, what, here, x, dy, info, benchmark)
        ratio = speedup.median if speedup else None
        self.done.append(Done(point, seconds, ratio, "load" in benchmark.extra_info["flags"]))

    def refuse(self, point: Point | Unreachable, reason: str) -> None:
        """Record a point that did not run."""
        if isinstance(point, Unreachable):
            row: dict[str, object] = dict.fromkeys(("tokens", "dtype", "device", "mode", "backend", "threads"))
            row |= {"series": None, "options": None, **asdict(point)}
        else:
            row = asdict(point) | {"options": _json(read_options(point.options))}
            row.pop("control")
        self.refused.append(row | {"reason": reason.strip().partition("\n")[0] or "no reason given"})

    def run_facts(self) -> dict[str, object]:
        """The `run` part of the results file."""
        devices = {"cpu": machine.cpu_model()}
        cuda = torch.cuda.is_available()
        if cuda:
            devices["cuda"] = torch.cuda.get_device_name()
        return {
            "argv": self.argv,
            "datetime": self.started,
            "versions": machine.versions(),
            "cpu": machine.cpu_model(),
            **machine.commit(),
            "device_names": devices,
            "threads": self.threads.count,
            "pinned": machine.pinned_cores(self.threads.count),
            "pinned_by": self.threads.how,
            "allocator": self.allocator,
            "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
            "cold": self.request.cold,
            "complete": self.complete,
            "foreign_load": self.load.overall,
        }

    def _prepare(self, point: Point) -> None:
        """Threads, room and the machine's limits."""
        if torch.get_num_threads() != point.threads:
            torch.set_num_threads(point.threads)
        free = torch.cuda.mem_get_info()[0] if point.device == "cuda" else machine.available_memory()
        needed = _memory_needed(point)
        if free is not None and needed > free:
            raise Refused(f"out of memory: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
        limits = (point.device, point.dtype, point.threads)
        if limits not in self.rooflines:
            self.rooflines[limits] = roofline.measure(*limits, clock=clock_of(point.device))

    def _cell_of(self, point: Point) -> Cell:
        if self._cell is None or self._cell.key != point.cell:
            self._cell = None  # free the last one first
            rows = {p.backend for p in self.points if p.cell == point.cell and p.structure == DENSE and p.control}
            ways = [way for way in CANDIDATES if (way in rows if rows else way != COMPILED)]
            self._cell = cell(point, ways, self.effort, self.request.cold)
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
    ) -> tuple[Spread | None, float]:
        """The ratio to dense and the seconds of a call; fills the row."""
        clock, speedup = clock_of(point.device), None
        step, copies = timed_step(here.settled(point), what, x, dy, self.request.cold)
        seconds = measure.once(step, clock)
        if point.series != DENSE:
            speedup = measure.paired(step, here.dense, self.effort, seconds=(seconds, here.seconds), clock=clock)
        calls = measure.calls_in_a_slice(seconds, self.effort)
        rounds = self.effort.count(self.effort.alone, calls * seconds)
        benchmark.pedantic(step, rounds=rounds, iterations=calls)
        width = speedup.width if speedup else 0.0
        if benchmark.stats is not None:  # None under --benchmark-disable, which checks only
            seconds = benchmark.stats.stats.median
            width = width if speedup else benchmark.stats.stats.iqr / seconds
        limits = self.rooflines[(point.device, point.dtype, point.threads)]
        benchmark.extra_info |= info | {
            "speedup": speedup and speedup.as_dict(),
            "flags": self._flags(width, copies * sum(p.numel() * p.element_size() for p in what.parameters)),
            "roofline": limits.bound(
                flops=info["executed_flops"],
                moved=info["bytes"],
                steps=len(what.structure.steps),
                train=point.train,
                seconds=seconds,
            ),
        }
        return speedup, seconds

    def _flags(self, width: float, rotated: int) -> list[str]:
        foreign = self.load.since()
        flags = {
            "load": foreign is not None and foreign > machine.FOREIGN_LOAD,
            "noisy": width > NOISY,
            "copies fit the cache": self.request.cold and rotated <= machine.last_level_cache(),
        }
        return [name for name, raised in flags.items() if raised]


def _facts(point: Point, what: Subject, x: Tensor) -> dict[str, Any]:
    """What is known of a point without timing it."""
    structure = what.structure
    dense = point.in_features * point.out_features
    flops = structure.flops(point.tokens, train=point.train)
    options = read_options(point.options) if point.is_dense else dict(structure.options)
    return asdict(point) | {
        "options": _json(options),
        "backend": what.backend,
        "params": structure.params,
        "params_share": structure.params / dense,
        "flops": flops,
        "executed_flops": what.executed_flops(point.tokens, point.train),
        "dense_flops": point.dense_flops,
        "flops_share": flops / point.dense_flops,
        "bytes": structure.bytes(point.tokens, x.element_size(), train=point.train),
        "clock": "host",
    }


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


def _json(options: dict[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
