"""Break-even: from which width on each structure beats dense, and how much of its FLOP saving then arrives as time."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.files.rows import Row
from bench.files.vocabulary import DTYPES, MODES
from bench.report.drawing.style import dyad
from bench.report.readme.panels import CONTROL, STRUCTURE, Panel

NOT_WITHIN = "not within what was measured"
CONTROLLED = " (control)"  # after the name of a dense layer narrowed to the same cost

Column = tuple[str, str, int]  # dtype, mode, tokens


@dataclass(frozen=True)
class BreakEven:
    """A structure's break-even in one column. `start` is the row from which on it beats dense at all wider squares."""

    start: Row | None
    said: str
    widest: Row | None  # the widest square with a saving to arrive

    @property
    def arrived(self) -> str:
        """'78 % at 2048', of the saving; empty where there is none."""
        share = self.widest.arrival if self.widest else None
        return f"{share * 100:.0f} % at {self.widest.in_features}" if self.widest and share is not None else ""


@dataclass(frozen=True)
class BreakEvenTable:
    """Break-evens of one machine and cost: a line per structure, a column per dtype, mode and number of tokens."""

    panels: Sequence[Panel]
    columns: tuple[Column, ...]
    lines: dict[str, dict[Column, BreakEven]]


def table(panels: Sequence[Panel]) -> BreakEvenTable:
    """The table of panels that differ in dtype, mode and tokens alone."""
    ordered = sorted(panels, key=lambda p: (-DTYPES.index(p.dtype), MODES.index(p.mode), p.tokens))
    ordered.sort(key=lambda p: p.dtype != "float32")
    lines: dict[tuple[bool, bool, str], dict[Column, BreakEven]] = {}
    for panel in ordered:
        for curve in panel.curves:
            narrow = curve.kind == CONTROL and curve.structure != "dense"
            squares = [row for row in curve.squares if row.speedup]
            if squares and (curve.kind == STRUCTURE or narrow):
                saving = [row for row in squares if row.flops < row.dense_flops]
                start, said = break_even(squares)
                key = (narrow, not dyad(curve.structure), curve.label + (CONTROLLED if narrow else ""))
                cell = BreakEven(start, said, saving[-1] if saving else None)
                lines.setdefault(key, {})[panel.dtype, panel.mode, panel.tokens] = cell
    return BreakEvenTable(
        panels=ordered,
        columns=tuple(dict.fromkeys((p.dtype, p.mode, p.tokens) for p in ordered)),
        lines={label: lines[narrow, other, label] for narrow, other, label in sorted(lines)},
    )


def break_even(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """The smallest measured square layer from which on all wider ones beat dense, and its width in words.

    A layer beats dense where the lower quartile of its speed-up is above 1.
    """
    paired = sorted((row for row in rows if row.square and row.speedup), key=lambda row: row.in_features)
    if not paired:
        return None, "not measured"
    first: Row | None = None
    for row in reversed(paired):
        if not row.speedup or row.speedup.q1 <= 1:
            break
        first = row
    if first is None:
        return None, NOT_WITHIN
    return first, f"{first.in_features}{' or less' if first is paired[0] else ''}"
