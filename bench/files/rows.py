"""Results files, read and checked: the rows, the refusals and the runs they come from.

A results file is pytest-benchmark's JSON with a section `structures` beside `benchmarks`. Everything in it is checked
here, once, so that whoever draws or compares can rely on finite positive numbers and printable names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any

from bench.files import declared
from bench.files.fields import Fields, load
from bench.files.vocabulary import BOUNDS, SCHEMA, VERSIONS
from structures.reading import BadFile, printable, shown


@dataclass(frozen=True)
class Limits:
    """What the machine reached in the same run with one device, dtype and number of threads."""

    device: declared.Device
    dtype: declared.Dtype
    threads: declared.Count
    gemm_flops_per_s: declared.Number
    copy_bytes_per_s: declared.Number  # from and to main memory
    cache_bytes_per_s: float | None  # the fastest copy of any size; None where only one size was measured
    cache_bytes: float | None  # the largest size that was copied at half of that rate or faster


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

    median: declared.Number
    q1: declared.Number
    q3: declared.Number
    rounds: declared.Count

    def check(self, fields: Fields) -> None:
        """Raise BadFile where the quartiles do not lie around the median."""
        if not self.q1 <= self.median * (1 + 1e-9) or not self.median <= self.q3 * (1 + 1e-9):
            raise fields.bad("median", f"between q1 = {self.q1:g} and q3 = {self.q3:g}")

    @property
    def width(self) -> float:
        """Distance of the quartiles, as a share of the median."""
        return (self.q3 - self.q1) / self.median


@dataclass(frozen=True)
class Stats:
    """What pytest-benchmark says of a row's time."""

    stats: Spread


@dataclass(frozen=True)
class LimitReached:
    """The limit of the machine that a point runs into, and how much of it is reached."""

    bound: Annotated[str, declared.choice(*BOUNDS)] | None
    fraction: declared.Number | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured point. FLOPs are for the whole batch in this mode, 2 per multiply-add; shares are of dense."""

    run: Run
    name: str
    structure: declared.Name
    series: declared.Name
    options: declared.Object
    budget: declared.Budget
    in_features: declared.Count
    out_features: declared.Count
    tokens: declared.Count
    dtype: declared.Dtype
    device: declared.Device
    mode: declared.Mode
    backend: declared.Name
    threads: declared.Count
    clock: declared.Clock
    control: declared.Flag
    params: declared.Count
    params_share: declared.Number
    flops: declared.Number
    flops_share: declared.Number
    executed_flops: declared.Number
    dense_flops: declared.Number
    bytes: declared.Number
    mixing_depth: declared.FromZero | None = None  # layers until every output sees every input; 0: never
    activation_bytes: declared.Number | None = None  # saved by the forward pass for the backward pass
    parameter_bytes: declared.Number
    checkpoint_bytes: declared.Number | None = None
    peak_bytes: declared.Number | None = None  # the most that the device's allocator held
    energy_joules: declared.Number | None = None  # per call
    speedup_over_linear: declared.Number | None = None  # to nn.Linear, which is not always the fastest dense layer
    time: Spread  # seconds per call
    speedup: Spread | None  # paired and interleaved with dense; None on dense itself
    error: declared.Error
    bound: str | None
    bound_fraction: float | None
    flags: declared.Names
    extra: Mapping[str, Any]  # fields this reader does not know, kept for the CSV

    @property
    def held_bytes(self) -> float:
        """Of the parameters, and in training of what the forward pass keeps for the backward pass."""
        return self.parameter_bytes + (self.activation_bytes or 0.0)

    @property
    def executed_share(self) -> float:
        """FLOPs executed, as a share of dense's."""
        return self.executed_flops / self.dense_flops

    @property
    def arrival(self) -> float | None:
        """Share of the FLOP saving that arrives as time: the speed-up over dense_flops / flops."""
        return self.speedup.median * self.flops / self.dense_flops if self.speedup else None

    @property
    def point(self) -> tuple[Any, ...]:
        """What is measured, where: two rows of one point would be two heights of one curve at one width."""
        where = (tuple(self.run.machine.items()), self.device, self.clock, self.dtype, self.threads, self.mode)
        what = (self.structure, self.series, self.backend, self.budget, self.control)
        return (*where, *what, self.tokens, self.in_features, self.out_features)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A point that could not run, with the reason; what the file leaves open is None."""

    run: Run
    structure: declared.Name
    series: declared.Words | None = None
    options: declared.Object | None = None
    in_features: declared.Count | None = None
    out_features: declared.Count | None = None
    tokens: declared.Count | None = None
    dtype: declared.Words | None = None
    device: declared.Words | None = None
    mode: declared.Words | None = None
    backend: declared.Words | None = None
    threads: declared.Count | None = None
    budget: declared.Words | None = None
    reason: declared.Words
    clock: declared.Words | None = None

    def covers(self, one: Any, keys: Sequence[str]) -> bool:
        """Whether a row or a question is what was refused, by these fields; what is left open stands for anything."""
        return all(getattr(self, key) in (None, getattr(one, key)) for key in keys)


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
        BadFile: a file is missing, broken or foreign, a field is missing or impossible, or two rows of the same
            point differ.
    """
    return join([parse(str(path), load(path)) for path in paths])


def join(files: Sequence[Results]) -> Results:
    """Files that were read, as one; a point that several hold is kept once if every figure is equal.

    Raises:
        BadFile: two rows of the same point differ.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (row for file in files for row in file.rows):
        other = rows.setdefault(row.point, row)
        if replace(row, run=other.run, name=other.name) != other:
            raise BadFile(
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
        BadFile: as `read`, but the same point may stand twice.
    """
    top = Fields(file, document)
    if "benchmarks" not in top.values:
        raise BadFile(f"{file}: not a results file: it has no 'benchmarks'; pytest bench --benchmark-json writes one")
    if "structures" not in top.values:
        raise BadFile(f"{file}: written by pytest-benchmark, but not by this sweep: it has no section 'structures'")
    section = top.inside("structures")
    check_schema(file, section)
    run = parse_run(file, section)
    rows = tuple(parse_row(run, fields) for fields in top.each("benchmarks"))
    refusals = tuple(declared.read(Refusal, fields, run=run) for fields in section.each("refused"))
    if not rows and not refusals:
        raise BadFile(f"{file}: holds no points; the sweep ended before the first one")
    return Results((run,), rows, refusals)


def check_schema(file: str, section: Fields) -> None:
    """Raise BadFile where a file's section `structures` is of another schema than is read here."""
    schema = section.count("schema")
    if schema != SCHEMA:
        age = "newer" if schema > SCHEMA else "older"
        raise BadFile(f"{file}: structures.schema {schema} is {age} than the {SCHEMA} this version reads")


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
    load_share = None if run.get("foreign_load") is None else run.within("foreign_load", 0, 1e6)
    facts = {
        "date": run.words("datetime"),
        "pinned to": "not pinned" if run.get("pinned") is None else printable(f"cores {run.get('pinned')}"),
        "foreign load": "not measured" if load_share is None else f"{load_share:.1%} of the CPU",
        "run": "complete" if complete else "not complete: points are missing",
        "command": printable(" ".join(map(str, argv or ["unknown"]))),
    }
    roofline = tuple(_limits(fields) for fields in section.each("roofline"))
    rules = {key: printable(str(value)) for key, value in section.object("rules").items()}
    return Run(file, machine, facts, run.words("datetime"), complete, roofline, rules)


def _limits(fields: Fields) -> Limits:
    sizes = fields.pairs("copy_bytes_per_s_by_size") if "copy_bytes_per_s_by_size" in fields else []
    fastest = max((rate for _, rate in sizes), default=None)
    cached = max((size for size, rate in sizes if fastest and rate >= fastest / 2), default=None)
    return declared.read(Limits, fields, cache_bytes_per_s=fastest, cache_bytes=cached)


def parse_row(run: Run, benchmark: Fields) -> Row:
    """One row of a run, as pytest-benchmark and the sweep write it."""
    name = benchmark.words("name")
    benchmark.where += f" ({shown(name)})"
    info = benchmark.inside("extra_info")
    bound = declared.read(LimitReached, info.inside("roofline")) if "roofline" in info else LimitReached(None, None)
    known = {field.name for field in dataclass_fields(Row)} | {"roofline"}
    return declared.read(
        Row,
        info,
        run=run,
        name=name,
        time=declared.read(Stats, benchmark).stats,
        bound=bound.bound,
        bound_fraction=bound.fraction,
        extra={key: value for key, value in info.values.items() if key not in known},
    )
