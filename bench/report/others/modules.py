"""Sections of `bench/test_ff.py` and `bench/test_decoder.py`: whole modules and models, as tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.files.kinds import File
from bench.files.vocabulary import DENSE, DEVICES, DTYPES, MODES, NEAR
from bench.files.wholes import PLACES, REST, DecoderRow, ModuleRow, WholeRow, by_key
from bench.report.drawing import style, words
from bench.report.drawing.sections import PageCell, PageTable, Section, Sheet, measured, numbered
from bench.report.others import published

R = TypeVar("R", bound=WholeRow)


@dataclass(frozen=True)
class Line:
    """A module or a model with one kind of layer: its rows by mode, and what a table says beside them."""

    modes: Mapping[str, WholeRow]
    share: str  # of dense's parameters
    beside: Mapping[str, float]  # by mode, a ratio that was published of it or follows from its own


def feed_forward(file: File, number: int = 0) -> Section:
    """The section of one file of `bench/test_ff.py`.

    Raises:
        BadFile: a field is missing or impossible, or a row stands twice.
    """
    lead = (
        f"What DYAD's authors measured: fc1, activation, fc2 of a decoder layer against dense, here {_batch(file)}. "
        "Their ratios are of a GPU that is not named, 32 x 128 tokens, without the activation: only the order compares."
    )
    tables = {}
    every = by_key(file.rows, ModuleRow).values()
    for some in _grouped(every, lambda one: (one.width, one.activation != "relu", one.names)):
        lines = []
        for modes in some:
            one = _any(modes)
            known = published.ratios(one.activation, one.width, one.structure, one.n_blocks)
            lines.append(Line(modes, words.share(one.params_share), dict(zip(MODES, known or (), strict=False))))
        caption = f"{one.names}: {one.width} → {4 * one.width} → {one.width}, {one.activation}"
        tables[(("network", one.names),)] = _table(caption, lines, "Published")
    return _section("feed-forward", "Feed-forward", lead, file, number, tables)


def decoders(file: File, number: int = 0) -> Section:
    """The section of one file of `bench/test_decoder.py`.

    Raises:
        BadFile: a field is missing or impossible, or a row stands twice.
    """
    every = list(by_key(file.rows, DecoderRow).values())
    rests = {_any(modes).model: modes for modes in every if _any(modes).place == REST}
    others = [modes for modes in every if _any(modes).structure != DENSE]
    dense = {_any(m).model: m for m in every if _any(m).structure == DENSE and _any(m).place != REST}
    lead = (
        f"Decoders with structured layers against dense, {_batch(file)}; train is forward, all gradients and the "
        "optimizer's step. Layers are timed on hidden states; a whole model's speed-up follows from them and the rest."
    )
    tables = {}
    for some in _grouped(others, lambda one: (one.model, PLACES.index(one.place), -_budget(one))):
        one = _any(some[0])
        lines = [Line(m, _share(_any(m)), _whole(m, dense.get(one.model, {}), rests.get(one.model, {}))) for m in some]
        at = words.budget(one.budget)
        caption = f"{one.model}: {one.place}, {at}; {one.layers:.0f} of {one.model_layers} layers run"
        asked = (("model", one.model), ("replaced", one.place), ("at", at))
        tables[asked] = _table(caption, lines, "Whole model")
    return _section("decoders", "Decoders", lead, file, number, tables)


def _any(modes: Mapping[str, R]) -> R:
    """A row that says what the rows of all modes say."""
    return next(iter(modes.values()))


def _budget(one: DecoderRow) -> float:
    return float((one.budget or "=1").partition("=")[2])


def _share(one: DecoderRow) -> str:
    """Of the parameters of dense layers in its place, and whether that is what it is compared at."""
    if not one.swapped_share:
        return ""
    near = one.budget is None or abs(one.swapped_share / _budget(one) - 1) <= NEAR
    return f"{words.share(one.swapped_share)}{'' if near else ' (no option comes nearer)'}"


def _table(caption: str, rows: Sequence[Line], column: str) -> PageTable:
    """A line for each row; in every mode its speed-up, another column and its time."""
    modes = [mode for mode in MODES if any(mode in row.modes for row in rows)]
    headings = ["Layer", "Parameters", *(f"{mode}: {what}" for mode in modes for what in ("speed-up", column, "time"))]
    lines = []
    for row in rows:
        one = _any(row.modes)
        blocks = f" n_blocks={one.n_blocks}" if isinstance(one, ModuleRow) and one.n_blocks else ""
        line = [PageCell(f"{one.structure}{blocks}", look=style.look(one.structure)), PageCell(row.share)]
        for mode in modes:
            m = row.modes.get(mode)
            cell = PageCell("1" if m else "")
            if m and (speed := m.speedup):
                small = " ".join([words.quartiles(speed), *m.flags])
                cell = PageCell(words.ratio(speed.median), small, speed.median, strong=leads(rows, row, mode))
            beside = PageCell(words.ratio(row.beside[mode]) if mode in row.beside else "")
            line += [cell, beside, _cell(m and m.time.median, "s")]
        first = row.modes.get("train", one)
        lines.append([*line, _cell(first.activation_bytes, "B"), _cell(first.checkpoint_bytes, "B")])
    return PageTable(caption, [*headings, "Kept for backward", "Checkpoint"], lines)


def _cell(value: float | None, unit: str) -> PageCell:
    return PageCell(words.prefixed(value, unit), value=value) if value else PageCell("")


def leads(rows: Sequence[Line], row: Line, mode: str) -> bool:
    """Whether it is the fastest of some in a mode, or its quartiles reach those of the fastest."""
    ratios = [m.speedup for one in rows if (m := one.modes.get(mode)) and m.speedup]
    own = row.modes[mode].speedup if mode in row.modes else None
    return own is not None and own.q3 >= max(ratios, key=lambda ratio: ratio.median).q1


def _whole(
    own: Mapping[str, DecoderRow], dense: Mapping[str, DecoderRow], rest: Mapping[str, DecoderRow]
) -> dict[str, float]:
    """Dense's time over this one's for all layers and the rest, where all three were measured."""
    found = {}
    for mode, row in own.items():
        if mode in dense and mode in rest and row.speedup:
            layers = row.model_layers * dense[mode].time.median / max(dense[mode].layers, 1)
            beside = rest[mode].time.median
            found[mode] = (layers + beside) / (layers / row.speedup.median + beside)
    return found


def _grouped(every: Iterable[Mapping[str, R]], key: Callable[[R], tuple[Any, ...]]) -> list[list[Mapping[str, R]]]:
    """Those of one key together, in the order of the keys."""
    found: dict[tuple[Any, ...], list[Mapping[str, R]]] = {}
    for modes in every:
        found.setdefault(key(_any(modes)), []).append(modes)
    return [found[key] for key in sorted(found)]


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
