"""Results files, read and checked: the rows, the refusals and the runs they come from.

A results file is pytest-benchmark's JSON with a section `structures` beside `benchmarks`. Everything in it is checked
here, once, so that whoever draws or compares can rely on finite positive numbers and printable names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.files.fields import BadResults, Fields, load, printable, shown

SCHEMA = 1
ITEMSIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
DTYPES = tuple(ITEMSIZES)
DEVICES = ("cpu", "cuda")
MODES = ("forward", "train")
CLOCKS = ("host", "device")
VERSIONS = ("structures", "torch", "python", "numpy", "pytest_benchmark")
BOUNDS = ("arithmetic", "memory", "calls")
_OPTIONAL = ("activation_bytes", "checkpoint_bytes", "peak_bytes", "energy_joules")
_REFUSED_WORDS = ("series", "dtype", "device", "mode", "backend", "budget", "clock")
_REFUSED_COUNTS = ("in_features", "out_features", "tokens", "threads")


@dataclass(frozen=True)
class Limits:
    """What the machine reached in the same run with one device, dtype and number of threads."""

    device: str
    dtype: str
    threads: int
    gemm_flops_per_s: float
    copy_bytes_per_s: float  # from and to main memory
    cache_bytes_per_s: float | None  # the fastest copy of any size; None where only one size was measured


@dataclass(frozen=True)
class Run:
    """One results file: where, when and with what its rows were measured."""

    file: str
    machine: Mapping[str, str]  # what must be equal for two files to share a curve
    facts: Mapping[str, str]  # everything else to say about how it was measured
    datetime: str
    complete: bool
    roofline: tuple["Limits", ...]
    rules: Mapping[str, str]  # series -> how its options scale with width


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles: seconds for times, dense time / this time for speed-ups."""

    median: float
    q1: float
    q3: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One measured point. FLOPs are for the whole batch in this mode, 2 per multiply-add; shares are of dense."""

    run: Run
    name: str
    structure: str
    series: str
    options: Mapping[str, Any]
    budget: str | None
    in_features: int
    out_features: int
    tokens: int
    dtype: str
    device: str
    mode: str
    backend: str
    threads: int
    clock: str
    control: bool
    params: int
    params_share: float
    flops: float
    flops_share: float
    executed_flops: float
    dense_flops: float
    bytes: float
    activation_bytes: float | None  # saved by the forward pass for the backward pass
    checkpoint_bytes: float | None
    peak_bytes: float | None  # the most that the device's allocator held
    energy_joules: float | None  # per call
    time: Spread  # seconds per call
    speedup: Spread | None  # paired and interleaved with dense; None on dense itself
    error: Any
    bound: str | None
    bound_fraction: float | None
    flags: tuple[str, ...]
    extra: Mapping[str, Any]  # fields this reader does not know, kept for the CSV

    @property
    def width(self) -> float:
        """sqrt(in_features * out_features): the width of the square layer with as many dense weights."""
        return math.sqrt(self.in_features * self.out_features)

    @property
    def parameter_bytes(self) -> float:
        return float(self.params * ITEMSIZES[self.dtype])

    @property
    def executed_share(self) -> float:
        """FLOPs executed, as a share of dense's."""
        return self.executed_flops / self.dense_flops

    @property
    def executes_as_counted(self) -> bool:
        """Whether the FLOPs executed are those counted, to half a percent: not where all experts run, say."""
        return abs(self.executed_flops - self.flops) <= 0.005 * self.flops

    @property
    def arrival(self) -> float | None:
        """Share of the FLOP saving that arrives as time: the speed-up over dense_flops / flops."""
        return self.speedup.median * self.flops / self.dense_flops if self.speedup else None

    @property
    def flops_per_s(self) -> float:
        """What was executed, over the time it took."""
        return self.executed_flops / self.time.median

    @property
    def intensity(self) -> float:
        """FLOPs executed for each byte that has to be moved at least."""
        return self.executed_flops / self.bytes

    @property
    def square(self) -> bool:
        return self.in_features == self.out_features

    @property
    def point(self) -> tuple[Any, ...]:
        """What is measured, where: two rows of one point would be two heights of one curve at one width."""
        where = (tuple(self.run.machine.items()), self.device, self.clock, self.dtype, self.threads, self.mode)
        what = (self.structure, self.series, self.backend, self.budget, self.control)
        return (*where, *what, self.tokens, self.in_features, self.out_features)


@dataclass(frozen=True)
class Refusal:
    """A point that could not run, with the reason; what the file leaves open is None."""

    run: Run
    structure: str
    series: str | None
    options: Mapping[str, Any] | None
    in_features: int | None
    out_features: int | None
    tokens: int | None
    dtype: str | None
    device: str | None
    mode: str | None
    backend: str | None
    threads: int | None
    budget: str | None
    reason: str
    clock: str | None = None


@dataclass(frozen=True)
class Results:
    """What one or several files hold."""

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]


def read(paths: Sequence[Path]) -> Results:
    """Rows, refusals and runs of the files, in their order.

    A point measured twice on the same machine and commit is kept once if every figure is equal.
    Raises:
        BadResults: a file is missing, broken or foreign, a field is missing or impossible, or two rows of the same
            point differ.
    """
    return join([parse(str(path), load(path)) for path in paths])


def join(files: Sequence[Results]) -> Results:
    """Files that were read, as one; a point that several hold is kept once if every figure is equal.

    Raises:
        BadResults: two rows of the same point differ.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (row for file in files for row in file.rows):
        other = rows.setdefault(row.point, row)
        if replace(row, run=other.run, name=other.name) != other:
            raise BadResults(
                f"the same point twice, with different figures: {shown(other.name)} in {other.run.file} and "
                f"{shown(row.name)} in {row.run.file}; leave one of them out"
            )
    return Results(
        tuple(run for file in files for run in file.runs),
        tuple(rows.values()),
        tuple(refusal for file in files for refusal in file.refusals),
    )


def parse(file: str, document: Any) -> Results:
    """What one results file holds, its rows and refusals in the order in which they stand.

    Args:
        file: its name, for messages.
        document: its JSON value.
    Raises:
        BadResults: as `read`, but the same point may stand twice.
    """
    top = Fields(file, document)
    if "benchmarks" not in top.values:
        raise BadResults(
            f"{file}: not a results file: it has no 'benchmarks'; pytest bench --benchmark-json writes one"
        )
    if "structures" not in top.values:
        raise BadResults(f"{file}: written by pytest-benchmark, but not by this sweep: it has no section 'structures'")
    section = top.inside("structures")
    schema = section.count("schema")
    if schema != SCHEMA:
        age = "newer" if schema > SCHEMA else "older"
        raise BadResults(f"{file}: structures.schema {schema} is {age} than the {SCHEMA} this version reads")
    run = parse_run(file, section)
    rows = tuple(_row(run, fields) for fields in top.each("benchmarks"))
    refusals = tuple(_refusal(run, fields) for fields in section.each("refused"))
    if not rows and not refusals:
        raise BadResults(f"{file}: holds no points; the sweep ended before the first one")
    return Results((run,), rows, refusals)


def parse_run(file: str, section: Fields) -> Run:
    """The run that a file's section `structures` describes: its `run`, `roofline` and `rules`."""
    run = section.inside("run")
    versions = run.inside("versions")
    devices = run.object("device_names")
    commit = "unknown" if run.get("commit") is None else run.words("commit")[:12]
    machine = {
        "cpu": run.words("cpu"),
        "gpu": printable(", ".join(str(name) for key, name in devices.items() if key != "cpu")) or "none",
        "threads": str(run.count("threads")),
        "allocator": run.words("allocator"),
        "tf32": "not set" if run.get("tf32") is None else "on" if run.flag("tf32") else "off",
        "weights": "cold" if run.flag("cold") else "hot in cache",
        **{name: versions.words(name) for name in VERSIONS},
        "commit": commit + (" with uncommitted changes" if run.flag("dirty") else ""),
    }
    complete = run.flag("complete")
    argv = run.get("argv")
    if not (argv is None or isinstance(argv, list)):
        raise run.bad("argv", "null or a list of words")
    load_share = run.get("foreign_load")
    facts = {
        "date": run.words("datetime"),
        "pinned to": "not pinned" if run.get("pinned") is None else printable(f"cores {run.get('pinned')}"),
        "foreign load": "not measured" if load_share is None else f"{_share(run, 'foreign_load'):.1%} of the CPU",
        "run": "complete" if complete else "not complete: points are missing",
        "command": printable(" ".join(map(str, argv or ["unknown"]))),
    }
    roofline = tuple(_limits(fields) for fields in section.each("roofline"))
    rules = {key: printable(str(value)) for key, value in section.object("rules").items()}
    return Run(file, machine, facts, run.words("datetime"), complete, roofline, rules)


def _limits(fields: Fields) -> Limits:
    sizes = fields.pairs("copy_bytes_per_s_by_size") if "copy_bytes_per_s_by_size" in fields else []
    return Limits(
        fields.choice("device", DEVICES),
        fields.choice("dtype", DTYPES),
        fields.count("threads"),
        fields.number("gemm_flops_per_s"),
        fields.number("copy_bytes_per_s"),
        max((rate for _, rate in sizes), default=None),
    )


def _row(run: Run, benchmark: Fields) -> Row:
    name = benchmark.words("name")
    benchmark.where += f" ({shown(name)})"
    info = benchmark.inside("extra_info")
    limit = info.inside("roofline") if "roofline" in info else None
    known = {
        "run": run,
        "name": name,
        "structure": info.name("structure"),
        "series": info.name("series"),
        "options": info.object("options"),
        "budget": info.budget("budget"),
        "dtype": info.choice("dtype", DTYPES),
        "device": info.choice("device", DEVICES),
        "mode": info.choice("mode", MODES),
        "backend": info.name("backend"),
        "clock": info.choice("clock", CLOCKS),
        "control": info.flag("control"),
        "flags": info.names("flags"),
        **{key: info.number(key) if key in info else None for key in _OPTIONAL},
        "time": _spread(benchmark.inside("stats")),
        "speedup": None if info.get("speedup") is None else _spread(info.inside("speedup")),
        "error": info.error("error"),
        "bound": limit.choice("bound", BOUNDS) if limit else None,
        "bound_fraction": limit.number("fraction") if limit else None,
        **{key: info.count(key) for key in ("in_features", "out_features", "tokens", "threads", "params")},
        **{key: info.number(key) for key in ("params_share", "flops", "flops_share", "executed_flops", "dense_flops")},
        "bytes": info.number("bytes"),
    }
    extra = {key: value for key, value in info.values.items() if key not in known and key != "roofline"}
    return Row(**known, extra=extra)


def _spread(fields: Fields) -> Spread:
    spread = Spread(fields.number("median"), fields.number("q1"), fields.number("q3"), fields.count("rounds"))
    if not spread.q1 <= spread.median * (1 + 1e-9) or not spread.median <= spread.q3 * (1 + 1e-9):
        raise fields.bad("median", f"between q1 = {spread.q1:g} and q3 = {spread.q3:g}")
    return spread


def _refusal(run: Run, fields: Fields) -> Refusal:
    found: dict[str, Any] = {key: fields.words(key) for key in _REFUSED_WORDS if key in fields}
    found |= {key: fields.count(key) for key in _REFUSED_COUNTS if key in fields}
    absent = dict.fromkeys((*_REFUSED_WORDS, *_REFUSED_COUNTS))
    return Refusal(
        run=run,
        structure=fields.name("structure"),
        options=fields.object("options") if "options" in fields else None,
        reason=fields.words("reason"),
        **absent | found,
    )


def _share(fields: Fields, key: str) -> float:
    value = fields.get(key)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise fields.bad(key, "null or a number from 0")
    return float(value)
