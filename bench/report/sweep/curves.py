"""Scaling curves: one view per panel, speed-up, time, FLOPs and parameters against width, and by rectangular shape."""

from collections.abc import Collection, Sequence
from typing import Any

from bench.files.rows import Row
from bench.files.vocabulary import DENSE
from bench.report.drawing import figures, views, words
from bench.report.drawing.curve import CONTROL, Curve
from bench.report.drawing.style import Style, styles
from bench.report.drawing.views import View
from bench.report.sweep import charts
from bench.report.sweep.panels import Panel
from bench.report.sweep.verdicts import break_even

GROUP = "curves"


def view(panel: Panel, structures: Collection[str], suffix: str = "") -> View:
    """The curves of a panel; `structures` are all of the report's, so that each has one look."""
    look = styles(panel.curves, sorted(structures))
    titles = _titles(panel)
    stem = panel.slug + suffix
    return View(
        group=GROUP,
        slug=stem,
        title=panel.title,
        choices=panel.choices,
        caption=caption(panel),
        draw=lambda width: {titles[name]: chart for name, chart in _drawn(panel, look, width)},
        rows=panel.rows,
        records=records(panel),
        figures=_figures(stem, titles),
        content={
            "panel": panel,
            "lines": [_line(curve, look[curve.id]) for curve in panel.curves],
            "rings": bool(charts.rings(panel)),
            **_arrivals(panel),
        },
    )


def caption(panel: Panel) -> list[str]:
    """The lines under a panel's charts."""
    first, second = views.caption(panel.place, panel.runs)
    return [first, second + ("" if any(c.kind == DENSE for c in panel.curves) else " Dense was not measured here.")]


def records(panel: Panel) -> list[dict[str, Any]]:
    """One record per point, in the order of the panel's rows."""
    labels = [(curve.id, curve.label) for curve in panel.curves for _ in curve.rows]
    return [{"i": i, "c": id, "label": label} for i, (id, label) in enumerate(labels)]


def _drawn(panel: Panel, look: dict[str, Style], width: figures.Width) -> Any:
    return charts.specifications(panel, look, width=width).items()


def _titles(panel: Panel) -> dict[str, str]:
    quantities = charts.shown(panel)
    found = {q.field: q.title for q in quantities} if any(row.square for row in panel.rows) else {}
    if not all(row.square for row in panel.rows):
        found |= {f"{q.field} by shape": f"{q.title}, rectangular layers" for q in quantities if q.spread}
    return found


def _figures(stem: str, titles: dict[str, str]) -> dict[str, list[str]]:
    shapes = [title for name, title in titles.items() if name.endswith("by shape")]
    widths = [title for name, title in titles.items() if not name.endswith("by shape")]
    return {name: some for name, some in ((stem, widths), (f"{stem}-shapes", shapes)) if some}


def _line(curve: Curve, style: Style) -> dict[str, Any]:
    return {
        "curve": curve,
        "style": style,
        "params": words.span([row.params_share for row in curve.rows]),
        "flops": words.span([row.flops_share for row in curve.rows]),
        "executed": words.span([row.executed_share for row in curve.rows]),
        "break_even": "baseline" if curve.kind == DENSE else break_even(curve.rows)[1],
        "flags": ", ".join(sorted({flag for row in curve.rows for flag in row.flags})) or "none",
        "options": _options(curve),
    }


def _options(curve: Curve) -> str:
    """The options of the smallest and the largest layer of a curve."""
    ends = [
        ", ".join(f"{key}={value}" for key, value in row.options.items()) for row in (curve.rows[0], curve.rows[-1])
    ]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _arrivals(panel: Panel) -> dict[str, Any]:
    """The share of the FLOP saving that arrives, a line per structure, a column per shape."""
    by_width = sorted(panel.rows, key=lambda row: (not row.square, row.width, row.in_features))
    shapes = list(dict.fromkeys(words.shape(row) for row in by_width))
    curves = [c for c in panel.curves if c.kind not in (DENSE, CONTROL)]
    return {"shapes": shapes, "arrivals": [(curve, _by_shape(curve, shapes)) for curve in curves]}


def _by_shape(curve: Curve, shapes: Sequence[str]) -> list[Row | None]:
    found = {words.shape(row): row for row in curve.rows}
    return [found.get(shape) for shape in shapes]
