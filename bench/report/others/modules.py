"""Sections of `bench/test_ff.py` and `bench/test_decoder.py`: whole modules and models, as tables."""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.files.fields import printable
from bench.files.kinds import File
from bench.files.rows import Run
from bench.files.vocabulary import DENSE, DEVICES, DTYPES, MODES, NEAR, VERSIONS
from bench.files.wholes import PLACES, REST, DecoderRow, ModuleRow, by_key
from bench.report.drawing import words
from bench.report.drawing.sections import Section
from bench.report.others import published


@dataclass(frozen=True)
class ModuleResult:
    """A module with one kind of layer: its measured modes, and what was published of it."""

    names: str
    width: int
    activation: str
    structure: str
    n_blocks: int | None
    params_share: float
    modes: dict[str, ModuleRow]
    published: tuple[float, float] | None


@dataclass(frozen=True)
class Decoder:
    """A model with some of its layers of one kind."""

    model: str
    place: str
    structure: str
    budget: str | None
    layers: int
    model_layers: int
    share: float | None  # of the parameters of dense layers in its place, realised
    modes: dict[str, DecoderRow]
    whole: dict[str, float]  # speed-up of the whole model in each mode, worked out from a layer's time and the rest's

    @property
    def equal(self) -> bool:
        """Whether its parameters are those that it is compared at."""
        if self.share is None or self.budget is None:
            return True
        return abs(self.share / float(self.budget.partition("=")[2]) - 1) <= NEAR

    def a_layer(self, mode: str) -> float:
        """Seconds a layer."""
        return self.modes[mode].time.median / max(self.layers, 1)


@dataclass(frozen=True)
class RowGroup:
    """Rows of a table under one heading, that may be compared."""

    heading: str
    rows: Sequence[ModuleResult | Decoder]

    def leads(self, row: ModuleResult | Decoder, mode: str) -> bool:
        """Whether it is the fastest in a mode, or its quartiles reach those of the fastest."""
        ratios = [m.speedup for one in self.rows if (m := one.modes.get(mode)) and m.speedup]
        own = row.modes[mode].speedup if mode in row.modes else None
        return own is not None and own.q3 >= max(ratios, key=lambda ratio: ratio.median).q1


def feed_forward(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file of `bench/test_ff.py`.

    Raises:
        BadResults: a field is missing or impossible, or a row stands twice.
    """
    rows = []
    for modes in by_key(file.rows, ModuleRow).values():
        one = next(iter(modes.values()))
        known = published.ratios(one.activation, one.width, one.structure, one.n_blocks)
        rows.append(ModuleResult(*one.key, one.params_share, modes, known))
    rows.sort(key=lambda row: (row.width, row.activation != "relu", row.names))
    groups = [RowGroup(some[0].names, some) for some in _grouped(rows, lambda row: row.names)]
    content = {"groups": groups, "modes": _modes(rows), "setup": _setup(file), "batch": _batch(file)}
    return _section("feed-forward", "Feed-forward modules", "ff.html.j2", file, number, structures, content)


def decoders(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file of `bench/test_decoder.py`.

    Raises:
        BadResults: a field is missing or impossible, or a row stands twice.
    """
    rows = []
    for modes in by_key(file.rows, DecoderRow).values():
        one = next(iter(modes.values()))
        share = None if one.structure == DENSE else one.swapped_share
        rows.append(Decoder(*one.key, int(one.layers), one.model_layers, share, modes, {}))
    rests = {row.model: row for row in rows if row.place == REST}
    dense = {row.model: row for row in rows if row.structure == DENSE and row.place != REST}
    for row in rows:
        if row.structure != DENSE:
            row.whole.update(_whole(row, dense.get(row.model), rests.get(row.model)))
    models = list(dict.fromkeys(row.model for row in rows))
    others = [row for row in rows if row.structure != DENSE]
    others.sort(key=lambda row: (PLACES.index(row.place), -float((row.budget or "=1").partition("=")[2])))
    groups = {
        model: [
            RowGroup(f"{some[0].place}, {words.budget(some[0].budget)}", some)
            for some in _grouped([row for row in others if row.model == model], lambda row: (row.place, row.budget))
        ]
        for model in models
    }
    content = {"groups": groups, "dense": dense, "rests": rests, "modes": _modes(rows), "setup": _setup(file)}
    content["batch"] = _batch(file)
    return _section("decoders", "Whole decoders", "decoder.html.j2", file, number, structures, content)


def _whole(row: Decoder, dense: Decoder | None, rest: Decoder | None) -> dict[str, float]:
    """Dense's time over this one's for all layers and the rest, where all three were measured."""
    found = {}
    for mode, measured in row.modes.items():
        if dense and rest and mode in dense.modes and mode in rest.modes and measured.speedup:
            layers, beside = row.model_layers * dense.a_layer(mode), rest.modes[mode].time.median
            found[mode] = (layers + beside) / (layers / measured.speedup.median + beside)
    return found


def _grouped(rows: Sequence[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Rows of one key together, in the order in which keys first come."""
    found: dict[Hashable, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _section(
    id: str, title: str, template: str, file: File, number: int, structures: Collection[str], content: dict[str, Any]
) -> Section:
    return Section(
        id=f"{id}-{number + 1}" if number else id,
        title=title,
        template=template,
        caption=_told(file.run, file),
        draw=lambda width: {},
        records=[],
        run=file.run,
        structures={*structures, *file.structures},
        content=content,
        rows=len(file.rows),
    )


def _told(run: Run, file: File) -> tuple[str, ...]:
    """Where, when and with what a run measured, its devices and types named."""
    machine = run.machine
    devices = sorted({fields.choice("device", DEVICES) for fields in file.rows})
    dtypes = sorted({fields.choice("dtype", DTYPES) for fields in file.rows})
    processor = machine["gpu"] if devices == ["cuda"] else machine["cpu"]
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if name != "pytest_benchmark")
    complete = "" if run.complete else " The run is not complete: rows are missing."
    return (
        f"{processor}; {', '.join(devices)}, {', '.join(dtypes)}, {machine['threads']} threads, host clock, allocator "
        f"{machine['allocator']}; foreign load {run.facts['foreign load']}.",
        f"{versions}; {run.datetime[:10]}, commit {machine['commit']}.{complete}",
    )


def _modes(rows: Sequence[ModuleResult | Decoder]) -> list[str]:
    return [mode for mode in MODES if any(mode in row.modes for row in rows)]


def _batch(file: File) -> str:
    """`4 x 128 tokens`."""
    first = file.rows[0]
    return f"{first.count('batch')} x {first.count('sequence')} tokens"


def _setup(file: File) -> dict[str, str]:
    return {key: printable(str(value)) for key, value in file.setup.values.items()}
