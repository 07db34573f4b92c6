"""A panel's charts as static figures: one SVG and one PNG that stand on their own, title and caption included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from bench.report import charts
from bench.report.panels import Panel
from bench.report.style import Style

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


def specifications(panel: Panel, styles: dict[str, Style], *, width: charts.Width) -> dict[str, alt.LayerChart]:
    """The panel's charts by name: QUANTITY against width for squares, 'QUANTITY by shape' for the others."""
    made: dict[str, alt.LayerChart] = {}
    paired = any(row.speedup for row in panel.rows)
    quantities = [q for q in charts.QUANTITIES if paired or q.field != "speedup"]
    if any(row.square for row in panel.rows):
        made |= {q.field: charts.against_width(panel, q, styles, width=width) for q in quantities}
    if not all(row.square for row in panel.rows):
        made |= {f"{q.field} by shape": charts.by_shape(panel, q, styles, width=width) for q in quantities if q.spread}
    return made


def write(panel: Panel, styles: dict[str, Style], caption: Sequence[str], folder: Path, stem: str) -> list[str]:
    """Draw the panel's charts, two abreast, as STEM.svg and .png, those by shape as STEM-shapes; returns the stems."""
    made = specifications(panel, styles, width=400)
    stems = {
        stem: [chart for name, chart in made.items() if not name.endswith("by shape")],
        f"{stem}-shapes": [chart for name, chart in made.items() if name.endswith("by shape")],
    }
    for name, drawn in stems.items():
        if drawn:
            _write(panel, drawn, caption, folder, name)
    return [name for name, drawn in stems.items() if drawn]


def _write(panel: Panel, made: Sequence[alt.LayerChart], caption: Sequence[str], folder: Path, stem: str) -> None:
    title = alt.TitleParams(panel.title, subtitle=list(caption), fontSize=16, subtitleFontSize=11, offset=18)
    with alt.data_transformers.enable("default", max_rows=None):
        together = alt.concat(*made, columns=2, spacing=24, title=title)
        spec = together.resolve_scale(yOffset="independent").to_dict()  # each chart by shape ranks its own curves
    spec["datasets"] = spec.get("datasets", {}) | {"rows": charts.records(panel)}
    spec |= {"config": CONFIG, "background": "white", "padding": 16}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGALITE, allowed_base_urls=[])
    (folder / f"{stem}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{stem}.png").write_bytes(vl_convert.svg_to_png(svg, scale=1.5))
