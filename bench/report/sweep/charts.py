"""A panel's curves as Vega-Lite, for the page (as wide as its box) and for the static figures alike.

Curves appear in scales under their ids. Names from a results file are values in data, never part of a specification
that is parsed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bench.files.rows import Row, Spread
from bench.files.vocabulary import DENSE
from bench.report.drawing import layout, words
from bench.report.drawing.curve import STRUCTURE
from bench.report.drawing.figures import Width, edge_labels, encodings
from bench.report.drawing.style import Style
from bench.report.sweep.panels import Panel
from bench.report.sweep.verdicts import break_even

ROWS = alt.NamedData("rows")
LABEL_GAP = 13  # pixels from one label to the next
LABEL_WIDTH = 150  # pixels; longer labels are cut
LABEL_ROOM = 0.3  # of the axis's length, added at its right end for the name of the last point
WIDTH = "width of a square layer: in_features = out_features"
TOLD: dict[str, Any] = {"tooltip": alt.ExprRef("datum.told")}  # everything known of a mark's row
SAID = alt.Description("said:N")  # the same in short, for screen readers


@dataclass(frozen=True)
class Quantity:
    """What a chart shows: a field of the records, its title and unit, and whether it has a spread to draw."""

    field: str
    title: str
    unit: str
    spread: bool

    def of(self, row: Row) -> Spread | None:
        """The figure with its quartiles; counted figures have none, and are their own."""
        if self.spread:
            return row.time if self.field == "time" else row.speedup
        count = float({"flops": row.flops, "executed": row.executed_flops, "params": row.params}[self.field])
        return Spread(count, count, count, 1)


QUANTITIES = (
    Quantity("speedup", "Speed-up over dense (paired ratio, higher is faster)", words.TIMES, True),
    Quantity("time", "Time per call (median, bars: quartiles)", "s", True),
    Quantity("flops", "FLOPs per call (2 per multiply-add)", "", False),
    Quantity("executed", "FLOPs executed per call", "", False),
    Quantity("params", "Parameters", "", False),
)


@dataclass(frozen=True)
class _Plot:
    """What the layers of one chart against width share."""

    panel: Panel
    quantity: Quantity
    look: dict[str, Any]
    x: alt.X
    limits: list[float]
    height: int

    def y(self, field: str, axis: Any = alt.Undefined) -> alt.Y:
        scale = alt.Scale(type="log", domain=self.limits, nice=False)
        return alt.Y(f"{field}:Q", scale=scale, axis=axis)


def specifications(panel: Panel, styles: Mapping[str, Style], *, width: Width) -> dict[str, alt.LayerChart]:
    """The panel's charts by name: QUANTITY against width for squares, 'QUANTITY by shape' for the others."""
    made: dict[str, alt.LayerChart] = {}
    quantities = shown(panel)
    if any(row.square for row in panel.rows):
        made |= {q.field: against_width(panel, q, styles, width=width) for q in quantities}
    if not all(row.square for row in panel.rows):
        made |= {f"{q.field} by shape": by_shape(panel, q, styles, width=width) for q in quantities if q.spread}
    return made


def shown(panel: Panel) -> list[Quantity]:
    """The quantities of a panel: speed-ups where dense was measured, executed FLOPs where they are others."""
    left_out = set() if any(row.speedup for row in panel.rows) else {"speedup"}
    left_out |= {"executed"} if all(row.executes_as_counted for row in panel.rows if row.square) else set()
    return [q for q in QUANTITIES if q.field not in left_out]


def against_width(panel: Panel, quantity: Quantity, styles: Mapping[str, Style], *, width: Width) -> alt.LayerChart:
    """One quantity against width, log-log, each curve named at its end; squares only."""
    widths = sorted({row.width for row in panel.rows if row.square})
    x_axis = alt.Axis(values=widths, format="d", title=WIDTH, labelOverlap="greedy")
    x_scale = alt.Scale(type="log", base=2, domain=layout.limits(widths, 1.06), nice=False)
    plot = _Plot(
        panel,
        quantity,
        encodings(styles),
        alt.X("width:Q", scale=x_scale, axis=x_axis),
        layout.limits(_figures(quantity, [row for row in panel.rows if row.square]), 1.12),
        max(420 if quantity.spread else 300, LABEL_GAP * (len(panel.curves) + 1)),
    )
    layers = [*(_break_even(plot) if quantity.field == "speedup" else []), *_lines(plot), *_labels(plot)]
    return alt.LayerChart(
        layer=layers,
        width=width,
        height=plot.height,
        title=quantity.title,
        description=f"{quantity.title}, against {WIDTH}, log-log.",
    )


def by_shape(panel: Panel, quantity: Quantity, styles: Mapping[str, Style], *, width: Width) -> alt.LayerChart:
    """One quantity for every rectangular shape: a row of the chart per curve, named at its point."""
    rows = sorted((row for row in panel.rows if not row.square), key=lambda row: (row.width, row.in_features))
    names = list(dict.fromkeys(words.shape(row) for row in rows))
    last = {c.id: v.median for c in panel.curves for row in c.rectangles if (v := quantity.of(row))}
    ranked = sorted(last, key=lambda id: last[id], reverse=quantity.field == "speedup")
    limits = layout.limits(_figures(quantity, rows), 1.12)
    limits[1] *= (limits[1] / limits[0]) ** LABEL_ROOM
    look = encodings(styles)
    x_axis = alt.Axis(values=layout.ticks(*limits), labelExpr=written(quantity.unit), title=None, orient="top")
    x_scale = alt.Scale(type="log", domain=limits, nice=False)
    x = alt.X(f"{quantity.field}:Q", scale=x_scale, axis=x_axis)
    low, high = alt.X(f"{quantity.field}_low:Q", scale=x_scale), f"{quantity.field}_high"
    place = {
        "y": alt.Y("shape:N", sort=names, title=None, scale=alt.Scale(domain=names, paddingInner=0.08, paddingOuter=0)),
        "yOffset": alt.YOffset("c:N", scale=alt.Scale(domain=ranked)),
    }
    base = alt.Chart(ROWS).transform_filter(f"!datum.square && isValid(datum.{quantity.field})")
    bars = base.mark_rule(aria=False).encode(x=low, x2=high, color=look["color"], **place)
    points = base.mark_point(size=52, strokeWidth=1.3, opacity=1, **TOLD)
    points = points.encode(x=x, color=look["color"], shape=look["shape"], fill=look["fill"], description=SAID, **place)
    labels = base.mark_text(align="left", dx=8, limit=LABEL_WIDTH, aria=False)
    labels = labels.encode(x=alt.X(f"{high}:Q", scale=x_scale), text="label:N", **place)
    one = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=1.5, color="currentColor", aria=False)
    even = [one.encode(x=alt.X("one:Q", scale=x_scale))] if quantity.field == "speedup" else []
    return alt.LayerChart(
        layer=[*even, bars, points, labels],
        width=width,
        height=len(names) * (LABEL_GAP * len(ranked) + 10),
        title=quantity.title,
        description=f"{quantity.title}, for each rectangular shape.",
    )


def _lines(plot: _Plot) -> list[alt.Chart]:
    """Curves with their markers, and bars from the lower to the upper quartile; pointing at one fades the others."""
    field, look = plot.quantity.field, plot.look
    axis = alt.Axis(values=layout.ticks(*plot.limits), labelExpr=written(plot.quantity.unit), title=None)
    pointed = alt.selection_point(name=f"pointed_{field}", fields=["c"], on="pointerover", clear="pointerout")
    shared = {"x": plot.x, "color": look["color"], "opacity": alt.condition(pointed, alt.value(1), alt.value(0.15))}
    squares = alt.Chart(ROWS).transform_filter("datum.square")
    lines = squares.mark_line(aria=False).encode(
        y=plot.y(field, axis), strokeDash=look["strokeDash"], strokeWidth=look["width"], detail="c:N", **shared
    )
    points = squares.mark_point(size=52, strokeWidth=1.3, opacity=1, **TOLD).encode(
        y=plot.y(field, axis), shape=look["shape"], fill=look["fill"], description=SAID, **shared
    )
    bars = squares.mark_rule(strokeWidth=1, aria=False)
    bars = bars.encode(y=plot.y(f"{field}_low", axis), y2=f"{field}_high", **shared)
    return [*([bars] if plot.quantity.spread else []), lines, points.add_params(pointed)]


def _break_even(plot: _Plot) -> list[alt.Chart]:
    """Dense as the line at 1, and a ring where each curve starts to beat it for good."""
    even = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=3.2, color="currentColor", aria=False)
    starts = [{"c": id, "width": row.width, "at": row.speedup.median} for id, row in rings(plot.panel) if row.speedup]
    marks = alt.Chart(alt.InlineData(starts)).mark_point(size=190, strokeWidth=1.2, filled=False, aria=False)
    return [
        even.encode(y=plot.y("one")),
        *([marks.encode(x=plot.x, y=plot.y("at"), color=plot.look["color"])] if starts else []),
    ]


def rings(panel: Panel) -> list[tuple[str, Row]]:
    """Curves that start to beat dense inside the measured widths, and where: slower, or not clearly faster, before."""
    structures = [curve for curve in panel.curves if curve.kind == STRUCTURE and curve.squares]
    starts = [(curve, break_even(curve.rows)[0]) for curve in structures]
    return [(curve.id, row) for curve, row in starts if row and row is not curve.squares[0]]


def _labels(plot: _Plot) -> list[alt.Chart]:
    """Each curve's marker and name right of the plot, at the height of its last point or near it."""
    names = {curve.id: curve.label for curve in plot.panel.curves}
    last = {c.id: (row, v.median) for c in plot.panel.curves for row in c.squares if (v := plot.quantity.of(row))}
    if plot.quantity.field == "speedup":  # dense is the baseline, so it has no ratio of its own
        dense = [curve for curve in plot.panel.curves if curve.kind == DENSE and curve.squares]
        last |= {curve.id: (curve.squares[-1], 1.0) for curve in dense}
        names |= {curve.id: f"{curve.label} (break-even)" for curve in dense}
    ends = {id: end for id, (_, end) in last.items()}
    heights = layout.beside(ends, plot.limits, plot.height, LABEL_GAP)
    values = [
        {"c": id, "label": names[id], "width": row.width, "end": end, "at": heights[id]}
        for id, (row, end) in last.items()
    ]
    base = alt.Chart(alt.InlineData(values))
    return edge_labels(base, plot.x, plot.y("end"), plot.y("at"), plot.look, LABEL_WIDTH)


def _figures(quantity: Quantity, rows: Sequence[Row]) -> list[float]:
    """What an axis must hold: the quartiles, and break-even where that is drawn."""
    found = [figure for row in rows if (v := quantity.of(row)) for figure in (v.q1, v.q3)]
    return found + ([1.0] if quantity.field == "speedup" else [])


def written(unit: str) -> str:
    """A constant Vega expression that writes a tick: '10 µs', '2x', '5 M'."""
    if unit == words.TIMES:
        return f"format(datum.value, '.2~g') + '{unit}'"
    return f"replace(format(datum.value, '~s'), regexp('([µmkMGTP]?)$'), ' $1') + '{unit}'"
