"""What measured points say: who is fastest at one, from which width on a structure beats dense, what saving arrives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.files.rows import Row, Spread
from bench.report.drawing.curve import STRUCTURE
from bench.report.sweep.panels import Panel

NOT_WITHIN = "not within what was measured"


@dataclass(frozen=True)
class Best:
    """The fastest layer at one shape and batch. Dense stands as 1 in every comparison: its noise is in the ratios.

    `row` is the fastest structure's, whether or not dense is faster still; `close` are those that cannot be told from
    the winner, their quartiles reaching its own.
    """

    row: Row
    label: str
    dense: bool  # dense is the winner
    lead: float  # the winner's speed over the next one's
    after: str  # the next one
    close: tuple[str, ...]

    @property
    def tie(self) -> bool:
        return bool(self.close)


def best(found: Iterable[tuple[str, Row]]) -> Best | None:
    """The fastest of layers with their labels; of a series that ran on several backends, the fastest one counts."""
    fastest: dict[tuple[str, str], tuple[str, Row, Spread]] = {}
    for label, row in found:
        if row.speedup:
            other = fastest.setdefault((row.structure, row.series), (label, row, row.speedup))
            if row.speedup.median > other[2].median:
                fastest[row.structure, row.series] = (label, row, row.speedup)
    if not fastest:
        return None
    rivals = sorted(fastest.values(), key=lambda rival: -rival[2].median)
    label, row, own = rivals[0]
    if own.median <= 1:
        near = tuple(name for name, _, s in rivals if s.q3 >= 1)
        return Best(row, label, True, 1 / own.median, label, near)
    near = tuple(name for name, _, s in rivals[1:] if s.q3 >= own.q1)
    following, after = max([(s.median, name) for name, _, s in rivals[1:2]] + [(1.0, "dense")])
    return Best(row, label, False, own.median / following, after, near + (("dense",) if own.q1 <= 1 else ()))


def candidates(panel: Panel) -> list[tuple[str, Row]]:
    """Layers that may win in a panel: structures with a speed-up, without controls."""
    curves = [curve for curve in panel.curves if curve.kind == STRUCTURE]
    series = {curve.series: curve.structure for curve in curves}
    names = {s: name if panel.budget and list(series.values()).count(name) == 1 else s for s, name in series.items()}
    return [(names[curve.series], row) for curve in curves for row in curve.rows if row.speedup]


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
