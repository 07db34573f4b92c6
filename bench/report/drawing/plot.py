"""The one kind of chart: lines and points against two axes, with bars, guides and names that do not touch.

A chart is what stands here, as JSON: the page's script (`plot.js`) and `spec` below make the same Vega-Lite of it, by
filling in `plot.json`. Names from results files are values in data, never part of a specification that is parsed.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vl_convert

from bench.report.drawing import layout
from bench.report.drawing.style import GREY, Style

PARTS: dict[str, Any] = json.loads(Path(__file__).with_name("plot.json").read_text(encoding="utf-8"))
VEGALITE = str(vl_convert.get_vegalite_versions()[-1])
GAP = 13  # pixels from one name to the next


@dataclass(frozen=True)
class Axis:
    """What an axis shows. `domain` and `values` (ticks) follow from the points where they are not given."""

    title: str
    unit: str = ""  # a key of the formats in plot.json, or a unit after a metric prefix
    log: bool = True
    domain: Sequence[float] | None = None
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class PlotPoint:
    """A point with its bars (`low` to `high`, `left` to `right`) and what is told of it: `title`, then a few lines."""

    x: float
    y: float
    told: Mapping[str, str]
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None


@dataclass(frozen=True)
class PlotSeries:
    """Points of one look. `named`: at the end of the line, or at the last point."""

    label: str
    look: Style
    points: Sequence[PlotPoint]
    line: bool = True
    named: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Guide:
    """A line that no point stands on: dense's level, a roof, a front."""

    points: Sequence[tuple[float, float]]
    color: str = GREY
    strokeDash: Sequence[int] = (1, 0)  # as in the data of the specification
    strokeWidth: float = 1.3


@dataclass(frozen=True)
class Chart:
    """One chart, as page and figures draw it. `beside`: names stand at their points instead of at the right edge."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[PlotSeries]
    guides: Sequence[Guide] = ()
    height: int = 340
    beside: bool = False


@dataclass(frozen=True)
class Figure:
    """Charts on one sheet, with what is said of them."""

    name: str
    title: str
    caption: Sequence[str]
    charts: Sequence[Chart]
    columns: int = 2
    width: int = 400


def spec(chart: Chart, width: int) -> dict[str, Any]:
    """The chart in Vega-Lite."""
    points = [p for series in chart.series for p in series.points]
    ends = [end for guide in chart.guides for end in guide.points]
    x = _axis(chart.x, [v for p in points for v in (p.x, p.left, p.right) if v is not None] + [x for x, _ in ends])
    y = _axis(chart.y, [v for p in points for v in (p.y, p.low, p.high) if v is not None] + [y for _, y in ends])
    layers = copy.deepcopy(PARTS["layer"])
    for layer in layers:
        for channel, own in (("x", x), ("y", y)):
            layer["encoding"][channel] |= own
    named = [series for series in chart.series if series.named and series.points]
    place = layout.Frame(x["scale"]["domain"], y["scale"]["domain"], width, chart.height, chart.x.log, chart.y.log)
    labels = _beside(named, points, place) if chart.beside else _at_edge(named, place)
    data = {"guides": _guides(chart.guides), "points": _points(chart.series), "labels": labels}
    return {"title": chart.title, "width": width, "height": chart.height, "layer": layers, "datasets": data}


def _axis(axis: Axis, found: Sequence[float]) -> dict[str, Any]:
    domain = list(axis.domain or layout.limits(found, axis.log))
    formats = PARTS["formats"]
    written = formats.get(axis.unit) or f"{formats['si']} + '{axis.unit}'"
    ticks = axis.values if axis.values is not None else layout.ticks(*domain, axis.log)
    shown = {"title": axis.title or None, "labelExpr": written, "values": list(ticks), "labelOverlap": "greedy"}
    scale = {"type": "log" if axis.log else "linear", "domain": domain, "nice": False, "clamp": True}
    return {"scale": scale | ({} if axis.log else {"zero": False}), "axis": shown}


def _points(several: Sequence[PlotSeries]) -> list[dict[str, Any]]:
    found = []
    for i, series in enumerate(several):
        own = _look(series.look) | {"opacity": 0.4 if series.faint else 1, "size": 16 if series.faint else 52}
        for k, p in enumerate(series.points):
            said = ", ".join(list(p.told.values())[:3])
            found.append({**asdict(p), **own, "s": i, "i": k, "line": series.line, "said": said})
    return found


def _look(look: Style) -> dict[str, Any]:
    fill = "transparent" if look.hollow else look.colour
    return {"color": look.colour, "fill": fill, "shape": look.marker, "strokeDash": look.dash,
            "strokeWidth": look.width}  # fmt: skip


def _guides(guides: Sequence[Guide]) -> list[dict[str, Any]]:
    return [
        {"s": i, "i": k, "x": x, "y": y, "color": g.color, "strokeDash": g.strokeDash, "strokeWidth": g.strokeWidth}
        for i, g in enumerate(guides)
        for k, (x, y) in enumerate(g.points)
    ]


def _at_edge(named: Sequence[PlotSeries], place: layout.Frame) -> list[dict[str, Any]]:
    """Names right of the plot at the heights of the last points or near them, joined to these."""
    lasts = [series.points[-1] for series in named]
    heights = layout.apart([place.down(p.y) for p in lasts], GAP, place.height)
    return [
        {"label": series.label, **_look(series.look), "x0": p.x, "y0": p.y, "x": place.x[1], "y": place.at_height(h),
         "dx": 26, "dy": 0, "align": "left"}
        for series, p, h in zip(named, lasts, heights, strict=True)
    ]  # fmt: skip


def _beside(named: Sequence[PlotSeries], points: Sequence[PlotPoint], place: layout.Frame) -> list[dict[str, Any]]:
    """Names where they touch neither each other nor a point; those without a place are left out."""
    marks = [box for p in points for box in _boxes(p, place)]
    wanted = [(series.label, place.across(series.points[-1].x), place.down(series.points[-1].y)) for series in named]
    found = layout.free(wanted, marks, place.width, place.height)
    return [
        {"label": series.label, "x": series.points[-1].x, "y": series.points[-1].y, "dx": at[0], "dy": at[1],
         "align": at[2]}
        for series, at in zip(named, found, strict=True)
        if at
    ]  # fmt: skip


def _boxes(p: PlotPoint, place: layout.Frame) -> list[layout.Box]:
    """What a point and its bars cover."""
    x, y = place.across(p.x), place.down(p.y)
    found = [(x - 5, y - 5, x + 5, y + 5)]
    if p.left is not None and p.right is not None:
        found.append((place.across(p.left), y - 1, place.across(p.right), y + 1))
    if p.low is not None and p.high is not None:
        found.append((x - 1, place.down(p.high), x + 1, place.down(p.low)))
    return found


def files(figure: Figure) -> dict[str, bytes]:
    """The sheet as SVG and PNG, by suffix; the same figure gives the same bytes."""
    charts, datasets = [], {}
    for i, chart in enumerate(figure.charts):
        made = spec(chart, figure.width)
        for layer in made["layer"]:
            layer["data"] = {"name": f"{layer['data']['name']}{i}"}
        datasets |= {f"{name}{i}": values for name, values in made.pop("datasets").items()}
        charts.append(made)
    told = {
        "text": figure.title,
        "subtitle": list(figure.caption),
        "fontSize": 16,
        "subtitleFontSize": 11,
        "offset": 18,
    }
    whole = {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGALITE}.json",
        "concat": charts,
        "columns": figure.columns,
        "spacing": 24,
        "title": told,
        "config": PARTS["config"] | {"background": "white"},
        "padding": 16,
        "datasets": datasets,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
    }
    svg = vl_convert.vegalite_to_svg(whole, vl_version=VEGALITE, allowed_base_urls=[])
    ids: dict[str, str] = {}  # the renderer counts on from figure to figure
    svg = re.sub(r'(?<=id=")clip\d+|(?<=url\(#)clip\d+', lambda id: ids.setdefault(id[0], f"clip{len(ids)}"), svg)
    return {".svg": svg.encode("utf-8"), ".png": vl_convert.svg_to_png(svg, scale=1.5)}
