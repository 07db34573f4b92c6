"""How every figure is drawn: the version of Vega-Lite, fonts, axes and colours that follow the text's."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import altair as alt
import vl_convert
from altair.utils.schemapi import debug_mode

from bench.report.drawing.style import GREY, Style

VEGALITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
CONFIG: dict[str, Any] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "tickColor": "#808080",
        "domainColor": "#808080",
        "gridColor": "#808080",
        "gridOpacity": 0.22,
    },
    "axisLeft": {"minExtent": 46},
    "text": {"fontSize": 11, "color": "currentColor"},
    "title": {
        "anchor": "start",
        "fontSize": 12.5,
        "offset": 10,
        "color": "currentColor",
        "subtitleColor": "currentColor",
    },
}
_OF_THE_WHOLE = ("$schema", "config", "datasets", "params")  # of a specification: not of a chart within it


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside, charts are made without a check against the schema at each step, which takes four fifths of the time."""
    with alt.data_transformers.enable("default", max_rows=None), debug_mode(False):
        yield


def specifications(draw: Callable[[], Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The charts that a function draws, by heading, as JSON without data; unchecked."""
    with unchecked():
        return {name: chart.to_dict(validate=False) for name, chart in draw().items()}


def for_page(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart as wide as its box; its heading is the page's."""
    kept = {key: value for key, value in spec.items() if key not in ("$schema", "title", "config")}
    kept["padding"] = {"left": 4, "top": 8, "bottom": 4, "right": 4}
    kept["autosize"] = {"type": "fit-x", "contains": "padding"}
    return kept


def files(
    specs: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    caption: Sequence[str],
    columns: int,
    width: float,
    apart: Sequence[str] = (),
) -> dict[str, bytes]:
    """Charts beside and below each other, as SVG and PNG by suffix.

    Args:
        specs: of charts, whose selections have names of their own.
        width: of each chart, in pixels.
        apart: channels whose scales are each chart's own; others are shared.
    """
    charts = [{k: v for k, v in spec.items() if k not in _OF_THE_WHOLE} | {"width": width} for spec in specs]
    told = {"text": title, "subtitle": list(caption), "fontSize": 16, "subtitleFontSize": 11, "offset": 18}
    whole: dict[str, Any] = {"$schema": alt.SCHEMA_URL, "concat": charts, "columns": columns, "spacing": 24}
    whole |= {"title": told, "config": CONFIG, "background": "white", "padding": 16}
    whole["datasets"] = {name: data for spec in specs for name, data in spec.get("datasets", {}).items()}
    whole["datasets"]["rows"] = list(rows)
    whole["params"] = [param for spec in specs for param in spec.get("params", [])]
    if apart:
        whole["resolve"] = {"scale": dict.fromkeys(apart, "independent")}
    svg = vl_convert.vegalite_to_svg(whole, vl_version=VEGALITE, allowed_base_urls=[])
    return {".svg": svg.encode("utf-8"), ".png": vl_convert.svg_to_png(svg, scale=1.5)}


def at_once(writing: Iterable[Callable[[], object]]) -> None:
    """Call functions that draw files, on all cores: the renderer runs outside of Python's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        for done in [pool.submit(write) for write in writing]:
            done.result()


def encodings(styles: Mapping[str, Style]) -> dict[str, Any]:
    """Encodings of a record's id `c` as colour, dashes, width, marker and fill, without a legend."""
    own = list(styles.values())

    def scale(values: Sequence[Any]) -> dict[str, Any]:
        return {"legend": None, "scale": alt.Scale(domain=list(styles), range=list(values))}

    return {
        "color": alt.Color("c:N", **scale([look.colour for look in own])),
        "strokeDash": alt.StrokeDash("c:N", **scale([list(look.dash) for look in own])),
        "width": alt.StrokeWidth("c:O", **scale([look.width for look in own])),
        "shape": alt.Shape("c:N", **scale([look.marker for look in own])),
        "fill": alt.Fill("c:N", **scale(["transparent" if look.hollow else look.colour for look in own])),
    }


def edge_labels(
    base: alt.Chart, x: alt.X, end: alt.Y, at: alt.Y, look: Mapping[str, Any], limit: int
) -> list[alt.Chart]:
    """Each record's marker and name right of the plot at the height `at`, joined to its last point at `end`."""
    leaders = base.mark_rule(strokeWidth=0.7, x2Offset=12, color=GREY, opacity=0.7, aria=False)
    markers = base.mark_point(size=40, strokeWidth=1.3, opacity=1, xOffset=17, aria=False)
    texts = base.mark_text(align="left", xOffset=25, limit=limit, aria=False)
    edge = alt.value("width")
    return [
        leaders.encode(x=x, y=end, x2=edge, y2="at"),
        markers.encode(x=edge, y=at, color=look["color"], shape=look["shape"], fill=look["fill"]),
        texts.encode(x=edge, y=at, text="label:N"),
    ]


Width = float | Literal["container"]
