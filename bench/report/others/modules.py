"""Sections of `bench/test_ff.py` and `bench/test_decoder.py`: whole modules and models, as tables."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.files.kinds import File
from bench.files.vocabulary import DENSE, DEVICES, DTYPES, MODES, NEAR
from bench.files.wholes import PLACES, REST, DecoderRow, ModuleRow, by_key
from bench.report.drawing import style, words
from bench.report.drawing.sections import PageCell, PageTable, Section, Sheet, measured, numbered
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


Rows = Sequence["ModuleResult | Decoder"]


def feed_forward(file: File, number: int = 0) -> Section:
    """The section of one file of `bench/test_ff.py`.

    Raises:
        BadFile: a field is missing or impossible, or a row stands twice.
    """
    rows = []
    for modes in by_key(file.rows, ModuleRow).values():
        one = next(iter(modes.values()))
        known = published.ratios(one.activation, one.width, one.structure, one.n_blocks)
        rows.append(ModuleResult(*one.key, one.params_share, modes, known))
    rows.sort(key=lambda row: (row.width, row.activation != "relu", row.names))
    lead = (
        f"What DYAD's authors measured: fc1, activation, fc2 of a decoder layer against dense, here {_batch(file)}. "
        "Their ratios are of a GPU that is not named, 32 x 128 tokens, without the activation: only the order compares."
    )
    tables = {}
    for some in _grouped(rows, lambda row: row.names):
        first = some[0]
        caption = f"{first.names}: {first.width} → {4 * first.width} → {first.width}, {first.activation}"
        extra = {
            m: lambda row, mode=m: words.ratio(row.published[mode == "train"]) if row.published else "" for m in MODES
        }
        tables[(("network", first.names),)] = _table(
            caption, some, "Published", extra, lambda row: words.share(row.params_share)
        )
    return _section("feed-forward", "Feed-forward", lead, file, number, tables)


def decoders(file: File, number: int = 0) -> Section:
    """The section of one file of `bench/test_decoder.py`.

    Raises:
        BadFile: a field is missing or impossible, or a row stands twice.
    """
    rows = _decoders(file)
    rests = {row.model: row for row in rows if row.place == REST}
    dense = {row.model: row for row in rows if row.structure == DENSE and row.place != REST}
    for row in rows:
        if row.structure != DENSE:
            row.whole.update(_whole(row, dense.get(row.model), rests.get(row.model)))
    others = [row for row in rows if row.structure != DENSE]
    others.sort(key=lambda row: (row.model, PLACES.index(row.place), -float((row.budget or "=1").partition("=")[2])))
    lead = (
        f"Decoders with structured layers against dense, {_batch(file)}; train is forward, all gradients and the "
        "optimizer's step. Layers are timed on hidden states; a whole model's speed-up follows from them and the rest."
    )
    tables = {}
    for some in _grouped(others, lambda row: (row.model, row.place, row.budget)):
        first = some[0]
        layers = f"{first.layers} of {first.model_layers} layers run"
        caption = f"{first.model}: {first.place}, {words.budget(first.budget)}; {layers}"
        extra = {m: lambda row, mode=m: words.ratio(row.whole[mode]) if mode in row.whole else "" for m in MODES}
        asked = (("model", first.model), ("replaced", first.place), ("at", words.budget(first.budget)))
        tables[asked] = _table(caption, some, "Whole model", extra, _decoder_share)
    return _section("decoders", "Decoders", lead, file, number, tables)


def _decoders(file: File) -> list[Decoder]:
    rows = []
    for modes in by_key(file.rows, DecoderRow).values():
        one = next(iter(modes.values()))
        share = None if one.structure == DENSE else one.swapped_share
        rows.append(Decoder(*one.key, int(one.layers), one.model_layers, share, modes, {}))
    return rows


def _decoder_share(row: Any) -> str:
    return f"{words.share(row.share) if row.share else ''}{'' if row.equal else ' (no option comes nearer)'}"


def _table(
    caption: str, rows: Rows, column: str, extra: dict[str, Callable[[Any], str]], share: Callable[[Any], str]
) -> PageTable:
    """A line for each row; in every mode its speed-up, another column and its time."""
    modes = [mode for mode in MODES if any(mode in row.modes for row in rows)]
    headings = ["Layer", "Parameters", *(f"{mode}: {what}" for mode in modes for what in ("speed-up", column, "time"))]
    lines = []
    for row in rows:
        line = [PageCell(_name(row), look=style.look(row.structure)), PageCell(share(row))]
        for mode in modes:
            m = row.modes.get(mode)
            speed = m.speedup if m else None
            flagged = f" {' '.join(m.flags)}" if m and m.flags else ""
            line += [
                PageCell(
                    words.ratio(speed.median),
                    words.quartiles(speed) + flagged,
                    speed.median,
                    strong=leads(rows, row, mode),
                )
                if speed
                else PageCell("1" if m else ""),
                PageCell(extra[mode](row)),
                PageCell(words.prefixed(m.time.median, "s"), value=m.time.median) if m else PageCell(""),
            ]
        first = row.modes.get("train") or next(iter(row.modes.values()))
        line += [
            PageCell(words.prefixed(b, "B"), value=b) if b else PageCell("")
            for b in (first.activation_bytes, first.checkpoint_bytes)
        ]
        lines.append(line)
    return PageTable(caption, [*headings, "Kept for backward", "Checkpoint"], lines)


def leads(rows: Rows, row: "ModuleResult | Decoder", mode: str) -> bool:
    """Whether it is the fastest of some in a mode, or its quartiles reach those of the fastest."""
    ratios = [m.speedup for one in rows if (m := one.modes.get(mode)) and m.speedup]
    own = row.modes[mode].speedup if mode in row.modes else None
    return own is not None and own.q3 >= max(ratios, key=lambda ratio: ratio.median).q1


def _name(row: Any) -> str:
    blocks = getattr(row, "n_blocks", None)
    return f"{row.structure} n_blocks={blocks}" if blocks else str(row.structure)


def _whole(row: Decoder, dense: Decoder | None, rest: Decoder | None) -> dict[str, float]:
    """Dense's time over this one's for all layers and the rest, where all three were measured."""
    found = {}
    for mode, own in row.modes.items():
        if dense and rest and mode in dense.modes and mode in rest.modes and own.speedup:
            layers, beside = row.model_layers * dense.a_layer(mode), rest.modes[mode].time.median
            found[mode] = (layers + beside) / (layers / own.speedup.median + beside)
    return found


def _grouped(rows: Sequence[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Rows of one key together, in the order in which keys first come."""
    found: dict[Hashable, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _section(
    id: str, title: str, lead: str, file: File, number: int, tables: dict[tuple[tuple[str, str], ...], PageTable]
) -> Section:
    """A sheet for each table, found by its answers to questions."""
    devices = sorted({fields.choice("device", DEVICES) for fields in file.rows})
    dtypes = sorted({fields.choice("dtype", DTYPES) for fields in file.rows})
    said = ["Dense time over this one's, paired, with quartiles. Bold: the fastest, and what ties with it."]
    said += measured(file.run, devices, dtypes)
    sheets = [Sheet(said=said, tables=[table], choices=dict(asked)) for asked, table in tables.items()]
    return Section(numbered(id, number), title, str(file.run.machine["cpu"]), lead, file.run, sheets)


def _batch(file: File) -> str:
    """`4 x 128 tokens`."""
    first = file.rows[0]
    return f"{first.count('batch')} x {first.count('sequence')} tokens"
