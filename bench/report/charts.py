"""A panel's charts as Vega-Lite, for the page (as wide as its box) and for the static figures alike.

Curves appear in scales under their ids. Names from a results file are values in data, never part of a specification
that is parsed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from bench.report import layout, words
from bench.report.panels import DENSE, Panel, break_even
from bench.report.style import GREY, Style
from bench.rows import Row, Spread

Width = float | Literal["container"]
ROWS = alt.NamedData("rows")
LABEL_GAP = 13  # pixels from one label to the next
LABEL_WIDTH = 150  # pixels; longer labels are cut
LABEL_ROOM = 0.22  # of the axis's length, added at its right end for the name of the last point
WIDTH = "width of a square layer: in_features = out_features"


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
        count = float(row.flops if self.field == "flops" else row.params)
        return Spread(count, count, count, 1)


QUANTITIES = (
    Quantity("speedup", "Speed-up over dense (paired ratio, higher is faster)", words.TIMES, True),
    Quantity("time", "Time per call (median, bars: quartiles)", "s", True),
    Quantity("flops", "FLOPs per call (2 per multiply-add)", "", False),
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


def records(panel: Panel) -> list[dict[str, Any]]:
    """One record per point: its figures for the scales, and their words for the tooltip."""
    return [_record(curve.id, curve.label, curve.rule, row) for curve in panel.curves for row in curve.rows]


def against_width(panel: Panel, quantity: Quantity, styles: dict[str, Style], *, width: Width) -> alt.LayerChart:
    """One quantity against width, log-log, each curve named at its end; squares only."""
    widths = sorted({row.width for row in panel.rows if row.square})
    x_axis = alt.Axis(values=widths, format="d", title=WIDTH, labelOverlap="greedy")
    x_scale = alt.Scale(type="log", base=2, domain=layout.limits(widths, 1.06), nice=False)
    plot = _Plot(
        panel,
        quantity,
        _look(panel, styles),
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


def by_shape(panel: Panel, quantity: Quantity, styles: dict[str, Style], *, width: Width) -> alt.LayerChart:
    """One quantity for every rectangular shape: a row of the chart per curve, named at its point."""
    rows = sorted((row for row in panel.rows if not row.square), key=lambda row: (row.width, row.in_features))
    names = list(dict.fromkeys(words.shape(row) for row in rows))
    last = {c.id: v.median for c in panel.curves for row in c.rectangles if (v := quantity.of(row))}
    ranked = sorted(last, key=lambda id: last[id], reverse=quantity.field == "speedup")
    limits = layout.limits(_figures(quantity, rows), 1.12)
    limits[1] *= (limits[1] / limits[0]) ** LABEL_ROOM
    look = _look(panel, styles)
    x_axis = alt.Axis(values=layout.ticks(*limits), labelExpr=_written(quantity.unit), title=None, orient="top")
    x_scale = alt.Scale(type="log", domain=limits, nice=False)
    x = alt.X(f"{quantity.field}:Q", scale=x_scale, axis=x_axis)
    low, high = alt.X(f"{quantity.field}_low:Q", scale=x_scale), f"{quantity.field}_high"
    place = {
        "y": alt.Y("shape:N", sort=names, title=None, scale=alt.Scale(domain=names, paddingInner=0.08, paddingOuter=0)),
        "yOffset": alt.YOffset("c:N", scale=alt.Scale(domain=ranked)),
    }
    base = alt.Chart(ROWS).transform_filter(f"!datum.square && isValid(datum.{quantity.field})")
    bars = base.mark_rule(aria=False).encode(x=low, x2=high, color=look["color"], **place)
    points = base.mark_point(size=52, strokeWidth=1.3, opacity=1)
    points = points.encode(
        x=x, color=look["color"], shape=look["shape"], fill=look["fill"], tooltip=_tooltip(), **place
    )
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
    axis = alt.Axis(values=layout.ticks(*plot.limits), labelExpr=_written(plot.quantity.unit), title=None)
    pointed = alt.selection_point(name=f"pointed_{field}", fields=["c"], on="pointerover", clear="pointerout")
    shared = {"x": plot.x, "color": look["color"], "opacity": alt.condition(pointed, alt.value(1), alt.value(0.15))}
    squares = alt.Chart(ROWS).transform_filter("datum.square")
    lines = squares.mark_line(aria=False).encode(
        y=plot.y(field, axis), strokeDash=look["dash"], strokeWidth=look["width"], detail="c:N", **shared
    )
    points = squares.mark_point(size=52, strokeWidth=1.3, opacity=1).encode(
        y=plot.y(field, axis), shape=look["shape"], fill=look["fill"], tooltip=_tooltip(), **shared
    )
    bars = squares.mark_rule(strokeWidth=1, aria=False)
    bars = bars.encode(y=plot.y(f"{field}_low", axis), y2=f"{field}_high", **shared)
    return [*([bars] if plot.quantity.spread else []), lines, points.add_params(pointed)]


def _break_even(plot: _Plot) -> list[alt.Chart]:
    """Dense as the line at 1, and a ring on it where a curve crosses for good."""
    even = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=3.2, color="currentColor", aria=False)
    crossings = [{"c": c.id, "width": w, "one": 1} for c in plot.panel.curves if (w := break_even(c)[0])]
    rings = alt.Chart(alt.InlineData(crossings)).mark_point(size=70, strokeWidth=2, filled=False, aria=False)
    return [
        even.encode(y=plot.y("one")),
        *([rings.encode(x=plot.x, y=plot.y("one"), color=plot.look["color"])] if crossings else []),
    ]


def _labels(plot: _Plot) -> list[alt.Chart]:
    """Each curve's marker and name right of the plot, at the height of its last point or near it."""
    names = {curve.id: curve.label for curve in plot.panel.curves}
    last = {c.id: (row, v.median) for c in plot.panel.curves for row in c.squares if (v := plot.quantity.of(row))}
    if plot.quantity.field == "speedup":  # dense is the measure, so it has no ratio of its own
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
    leaders = base.mark_rule(strokeWidth=0.7, x2Offset=12, color=GREY, opacity=0.7, aria=False)
    markers = base.mark_point(size=40, strokeWidth=1.3, opacity=1, xOffset=17, aria=False)
    texts = base.mark_text(align="left", xOffset=25, limit=LABEL_WIDTH, aria=False)
    edge, look = alt.value("width"), plot.look
    return [
        leaders.encode(x=plot.x, y=plot.y("end"), x2=edge, y2="at"),
        markers.encode(x=edge, y=plot.y("at"), color=look["color"], shape=look["shape"], fill=look["fill"]),
        texts.encode(x=edge, y=plot.y("at"), text="label:N"),
    ]


def _record(id: str, label: str, rule: str, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"c": id, "label": label, "width": row.width, "square": row.square}
    record |= {"shape": words.shape(row), "flops": row.flops, "params": row.params}
    for field, spread in (("time", row.time), ("speedup", row.speedup)):
        if spread:
            record |= {field: spread.median, f"{field}_low": spread.q1, f"{field}_high": spread.q3}
    time = f"{words.prefixed(row.time.median, 's')} ({words.prefixed(row.time.q1)} to {words.prefixed(row.time.q3)})"
    return record | {
        "time_words": f"{time}, {row.time.rounds} rounds, {row.clock} clock",
        "speedup_words": _paired(row.speedup) if row.speedup else "is the measure",
        "options": ", ".join(f"{key}={value}" for key, value in row.options.items()) or "none",
        "rule": rule or "not stated",
        "shares": f"{words.share(row.params_share)} parameters, {words.share(row.flops_share)} FLOPs",
        "backend": row.backend,
        "flags": ", ".join(row.flags) or "none",
    }


def _paired(speedup: Spread) -> str:
    return f"{words.ratio(speedup.median)} ({words.quartiles(speedup)}), {speedup.rounds} rounds"


def _tooltip() -> list[alt.Tooltip]:
    titles = {"label": "curve", "shape": "shape", "time_words": "time", "speedup_words": "speed-up"}
    titles |= {"shares": "of dense", "options": "options", "rule": "they scale"}
    titles |= {"backend": "backend", "flags": "flags"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _look(panel: Panel, styles: dict[str, Style]) -> dict[str, Any]:
    """Encodings of a curve's id as colour, dashes, width, marker and fill, without a legend."""
    ids = [curve.id for curve in panel.curves]
    own = [styles[id] for id in ids]

    def scale(values: Sequence[Any]) -> dict[str, Any]:
        return {"legend": None, "scale": alt.Scale(domain=ids, range=list(values))}

    return {
        "color": alt.Color("c:N", **scale([style.colour for style in own])),
        "dash": alt.StrokeDash("c:N", **scale([list(style.dash) for style in own])),
        "width": alt.StrokeWidth("c:O", **scale([style.width for style in own])),
        "shape": alt.Shape("c:N", **scale([style.marker for style in own])),
        "fill": alt.Fill("c:N", **scale(["transparent" if style.hollow else style.colour for style in own])),
    }


def _figures(quantity: Quantity, rows: Sequence[Row]) -> list[float]:
    """What an axis must hold: the quartiles, and break-even where that is drawn."""
    found = [figure for row in rows if (v := quantity.of(row)) for figure in (v.q1, v.q3)]
    return found + ([1.0] if quantity.field == "speedup" else [])


def _written(unit: str) -> str:
    """A constant Vega expression that writes a tick: '10 µs', '2x', '5 M'."""
    if unit == words.TIMES:
        return f"format(datum.value, '.2~g') + '{unit}'"
    return f"replace(format(datum.value, '~s'), regexp('([µmkMGTP]?)$'), ' $1') + '{unit}'"
