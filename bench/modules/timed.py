"""Rows of whole modules and models: timed as the sweep times a layer, in a section of their own of the results file.

A run goes the sweep's way: every point is in the journal before the next one starts, `--time-budget` ends it in time,
`--resume` goes on with it, and `--shard` takes a part that `python -m bench merge` joins to the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.files import declared, options, wholes
from bench.files.errors import UsageError, one_of
from bench.files.fields import Fields
from bench.files.rounding import rounded
from bench.files.run import section
from bench.files.terminal import many
from bench.machine import timing
from bench.sweep import launch, limits, progress, shards
from bench.sweep.cell import clock_of
from bench.sweep.output import row_of
from bench.sweep.sweep import Sweep

EFFORT = timing.Effort(paired=0.5, alone=0.2, rounds=5)
LONG = timing.Effort(paired=3.0, alone=1.0, rounds=11)
CHOICE = 3  # minimum rounds when racing the dense variants
SEED = 0
SEQUENCE = 128  # tokens of one sequence, as the DYAD authors measured
BATCH = 32  # sequences, on CUDA and with --full
STEADY = 0.06  # seconds a call from which a slice needs no warm-up call: caches are warm after a tenth of it
NEXT = 1.3  # times the seconds of the last point, scaled by cost, that must be left for another one
MEANINGLESS = ("structures", "widths", "shapes", "mode", "backend", "threads", "registry", "budget", "no_controls",
               "cold", "check", "clock", "point_timeout", "rerun_flagged")  # fmt: skip

_SETUPS = pytest.StashKey[dict[str, dict[str, object]]]()
ROWS = pytest.StashKey["Rows"]()


@dataclass(frozen=True, kw_only=True)
class TimedAt:
    """How and where a point is timed: what the points of all kinds have."""

    mode: str
    batch: int
    sequence: int
    tokens: int
    dtype: str
    device: str

    @property
    def train(self) -> bool:
        return self.mode == "train"


@dataclass(frozen=True)
class Dense:
    """What the points of a cell are compared to: inputs, and dense's fastest way to run."""

    x: Tensor
    dy: Tensor
    way: str
    what: Any
    step: timing.Step


def drawn(point: TimedAt, *size: int) -> tuple[Tensor, Tensor]:
    """x and dy of a size, normal; the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    x, dy = (torch.randn(*size, generator=generator).to(point.device, getattr(torch, point.dtype)) for _ in range(2))
    return x.requires_grad_(point.train), dy


class Rows:
    """The rows of one kind of file; a plugin of pytest that writes them when the run ends."""

    def __init__(self, kind: str, sweep: Sweep, setup: Mapping[str, object], ids: Sequence[str]):
        self.kind, self.sweep, self.setup, self.ids = kind, sweep, setup, ids
        self.effort = LONG if sweep.request.full else EFFORT
        self.kept: dict[str, Any] = {}  # what points of one cell share, such as dense's fastest way
        self._last: tuple[float, float] | None = None  # seconds and cost of the last point

    def measure(self, point: Any, how: Callable[[Any, Rows, Any], None], benchmark: Any) -> None:
        """Check a point and time it. Points are skipped once the time budget is used up, but never the first."""
        budget, began = self.sweep.budget, time.perf_counter()
        if budget and self._last:
            seconds, cost = self._last
            if budget.left <= NEXT * seconds * max(1.0, point.cost / cost):
                self.sweep.not_now.add(str(point))
                pytest.skip(f"not run: --time-budget {limits.words(budget.seconds)} is spent")
        self.sweep.load.since()
        how(point, self, benchmark)
        self._last = time.perf_counter() - began, point.cost

    def fastest(self, cell: Sequence[str], steps: Mapping[str, timing.Step], clock: timing.Clock) -> str:
        """The dense variant that a cell is compared to: the fastest, or in a resumed run the one chosen before."""
        if (decided := self.sweep.ways.get(tuple(cell))) in steps:
            return decided
        effort = replace(self.effort, rounds=min(CHOICE, self.effort.rounds))
        best, _ = timing.fastest(list(steps.values()), effort, clock)
        way = list(steps)[best]
        self.sweep.news.append({"cell": list(cell), "way": way})
        return way

    def dense(self, point: Any, make: Callable[[], tuple[Tensor, Tensor, dict[str, tuple[Any, timing.Step]]]]) -> Dense:
        """Dense of a point's cell, run the fastest way; what is made is kept until a point of another cell comes.

        Args:
            make: x, dy, and for each way to run dense what is timed with one call of it.
        """
        if self.kept.get("cell") != point.cell:
            self.kept.clear()  # free the last one first
            x, dy, ways = make()
            with torch.set_grad_enabled(point.train):
                steps = {way: step for way, (_, step) in ways.items()}
                way = self.fastest(point.cell, steps, clock_of(point.device)) if len(ways) > 1 else next(iter(ways))
            self.kept |= {"cell": point.cell, "dense": Dense(x, dy, way, *ways[way])}
        return self.kept["dense"]  # type: ignore[no-any-return]

    def time(
        self,
        point: Any,
        facts: dict[str, Any],
        step: timing.Step,
        dense: timing.Step | None,
        benchmark: Any,
    ) -> dict[str, Any]:
        """Time a call alone, by the fixture, and in pairs with dense; returns the row, which is kept.

        Args:
            point: with a `device`, and `train`: gradients are recorded; else it is timed without.
            dense: what it is compared to; None for dense itself.
        """
        clock = clock_of(point.device)
        with torch.set_grad_enabled(point.train):
            seconds = timing.once(step, clock)
            speedup = None
            if dense is not None:
                both = seconds, self._seconds_of(dense, clock)
                effort = replace(self.effort, warm=0) if seconds >= STEADY else self.effort
                speedup = timing.paired(step, dense, effort, seconds=both, clock=clock)
            calls = timing.calls_in_a_slice(seconds, self.effort)
            rounds = self.effort.count(self.effort.alone, calls * seconds)
            benchmark.pedantic(step, rounds=rounds, iterations=calls)
        row = facts | {"speedup": speedup and speedup.as_dict(), "clock": "host"}
        if benchmark.stats is not None:  # None under --benchmark-disable, which checks only
            found = benchmark.stats.stats
            row["time"] = {"median": found.median, "q1": found.q1, "q3": found.q3, "rounds": found.rounds}
            width = speedup.width if speedup else found.iqr / found.median
            row["flags"] = timing.flags(self.sweep.load, width)
            declared.read(wholes.ROWS[self.kind], Fields(str(point), row))  # as all others will read it
            kept = {"whole": rounded(row), "benchmark": row_of(benchmark.stats), "id": str(point)}
            self.sweep.whole[str(point)] = kept
            self.sweep.news.append(kept)
        return row

    def _seconds_of(self, dense: timing.Step, clock: timing.Clock) -> float:
        """Seconds of a call of the cell's dense layers."""
        if self.kept.get("timed") is not dense:
            self.kept |= {"timed": dense, "seconds": timing.once(dense, clock)}
        return float(self.kept["seconds"])

    @pytest.hookimpl(wrapper=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> Generator[None]:
        """In place of the sweep's section: this kind's, and its rows of pytest-benchmark without what they repeat."""
        yield
        done = [self.sweep.whole[name] for name in self.ids if name in self.sweep.whole]
        output_json["benchmarks"] = [one["benchmark"] for one in done]
        rows = [one["whole"] for one in done]
        output_json["structures"] = section(self.kind, self.sweep.run_facts(), self.setup, rows, [])

    def said(self, name: str) -> str:
        """What the terminal says of a point: its time and how it compares to dense."""
        if name not in self.sweep.whole:
            return f"{name:70} no time"
        row = self.sweep.whole[name]["whole"]
        ratio = f"  {row['speedup']['median']:6.2f}x dense" if row["speedup"] else ""
        flags = f"  ({', '.join(row['flags'])})" if row["flags"] else ""
        return f"{name:70} {row['time']['median'] * 1e3:9.4g} ms{ratio}{flags}"

    def summary(self, output: Path | None) -> Iterator[str]:
        """Lines for the end of the run: what was measured, and how to go on."""
        flagged = sum(bool(one["whole"]["flags"]) for one in self.sweep.whole.values())
        measured = f"{many(len(self.sweep.whole), 'point')} measured, {flagged} flagged"
        yield measured if self.sweep.complete else f"{measured}; not complete"
        if self.sweep.not_now:
            yield f"{len(self.sweep.not_now)} more were left out for lack of time"
        yield from progress.how_on(self.sweep, output, "tables")


def parametrize(metafunc: pytest.Metafunc, kind: Any) -> None:
    """Make a test's points of a module of whole things, `feed_forward` or `decoder`, as the options ask.

    Raises:
        UsageError: an option that is not allowed, or has no meaning here.
    """
    option = metafunc.config.option
    try:
        given = [name for name in MEANINGLESS if launch.is_given(vars(option), name)]
        if given:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{told}: only for the sweep of layers; choose among whole modules and models by -k")
        points = kind.points(option)
        setup = kind.setup(points)
        if option.shard:
            cost, cell = (lambda point: point.cost), (lambda point: point.cell)
            points = shards.of(points, options.shard(option.shard), cost, cell)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.config.stash.setdefault(_SETUPS, {})[kind.KIND] = setup
    metafunc.parametrize(
        "point",
        [
            pytest.param(p, id=str(p), marks=pytest.mark.benchmark(disable_gc=True, timer=clock_of(p.device)))
            for p in points
        ],
    )


def is_whole(item: pytest.Item) -> bool:
    """A test of a whole module or model."""
    return "point" in getattr(getattr(item, "callspec", None), "params", {})


def begin(config: pytest.Config, sweep: Sweep, ids: Sequence[str]) -> Rows:
    """The rows of a run of these points.

    Raises:
        UsageError: they are of two kinds, or some are the sweep's: a file holds one kind.
    """
    kinds = list(config.stash[_SETUPS])
    if len(kinds) > 1 or set(ids) != set(sweep.selected):
        raise UsageError(
            f"one results file holds one kind of rows: run {' and '.join(kinds) or 'them'} and others apart"
        )
    rows = config.stash[ROWS] = Rows(kinds[0], sweep, config.stash[_SETUPS][kinds[0]], ids)
    config.pluginmanager.register(rows, "structures-rows")
    return rows


def where(option: Any, cpu_batch: int) -> dict[str, Any]:
    """Batch, dtype and device of a run, from the sweep's options.

    Args:
        cpu_batch: sequences on a CPU, where `--tokens` and `--full` say nothing else.
    Raises:
        UsageError: a value that is not allowed.
    """
    device = one_of("--device", option.device or ("cuda" if torch.cuda.is_available() else "cpu"), ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: there is no CUDA device here. Allowed: cpu")
    dtype = options.dtype("--dtypes", option.dtypes or "float32", ("float32", "bfloat16"), "one of them")
    batch = BATCH if device == "cuda" or option.full else cpu_batch
    if option.tokens:
        if not option.tokens.isdigit() or not int(option.tokens) or int(option.tokens) % SEQUENCE:
            raise UsageError(f"--tokens: {option.tokens!r} is not allowed here; write one multiple of {SEQUENCE}")
        batch = int(option.tokens) // SEQUENCE
    return {"device": device, "dtype": dtype, "batch": batch, "sequence": SEQUENCE, "tokens": batch * SEQUENCE}


class Addmm(nn.Module):
    """A dense layer with its weight kept as (in_features, out_features), so that no operand is transposed."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, input.shape[-1])
        return torch.addmm(self.bias, flat, self.weight).reshape(*input.shape[:-1], self.weight.shape[1])


class Kinks(nn.Module):
    """A ReLU whose side of zero is the one seen in the last recorded call.

    Two roundings of a number next to zero may fall on different sides of it; the gradients then differ by a whole
    unit, whatever computed them. A check that replays the sides compares what the layers compute.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []
        self.recording = True
        self.rows: Tensor | None = None  # of the recorded call that a replay sees; None for its first ones
        self.at = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.recording:
            self.sides.append(x.detach() > 0)
            return torch.relu(x)
        side = self.sides[self.at]
        self.at += 1
        return x * (side[: x.shape[0]] if self.rows is None else side[self.rows])

    @contextmanager
    def replayed(self, rows: Tensor | None = None) -> Iterator[None]:
        """Inside, calls take the recorded sides of these rows, in order; without `rows` of the first ones."""
        self.recording, self.rows, self.at = False, rows, 0
        try:
            yield
        finally:
            self.recording = True


def state_bytes(module: nn.Module) -> int:
    """Bytes of a checkpoint: all tensors of the state_dict at their dtypes, shared storages once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in module.state_dict().values()}
    return sum(storages.values())
