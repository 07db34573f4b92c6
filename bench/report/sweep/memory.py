"""Memory of a training step: what forward saves for the backward pass, parameters, checkpoint, and the peak."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import altair as alt

from bench.files.rows import Row
from bench.report.drawing import figures, words
from bench.report.drawing.curve import CONTROL, STRUCTURE, kind
from bench.report.drawing.style import MARKERS
from bench.report.drawing.views import View
from bench.report.sweep import charts, curves
from bench.report.sweep.panels import Panel

GROUP = "memory"
ROW_HEIGHT = 19
PARTS = {"saved for backward": "#0072B2", "parameters": "#B8860B"}  # bars, end to end
MARKS = {"checkpoint": MARKERS[1], "allocator peak": MARKERS[6]}


def made(panels: Sequence[Panel], suffixes: Mapping[str, str]) -> list[View]:
    """A view for each panel whose rows say what was saved: bars for the largest square, and for rectangles."""
    found = []
    for panel in sorted(panels, key=lambda p: [_begins(p) != _begins(first) for first in panels[:1]]):
        rows = [(c.label, row) for c in panel.curves if c.kind != CONTROL for row in c.rows if row.activation_bytes]
        shapes = _shapes([row for _, row in rows if kind(row) == STRUCTURE])
        if shapes and (panel.budget or not any(p.budget and p.place == panel.place for p in panels)):
            found.append(_view(panel, rows, shapes, suffixes.get(panel.machine, "")))
    return found


def _begins(panel: Panel) -> tuple[Any, ...]:
    """What a reader begins with, as with the curves."""
    return panel.budget, panel.place.dtype, panel.place.device


def _shapes(rows: Collection[Row]) -> list[str]:
    """The largest square and every rectangle."""
    square = max((row for row in rows if row.square), key=lambda row: row.width, default=None)
    rectangles = sorted((row for row in rows if not row.square), key=lambda row: (row.width, row.in_features))
    return list(dict.fromkeys(words.shape(row) for row in [*([square] if square else []), *rectangles]))


def _view(panel: Panel, rows: Sequence[tuple[str, Row]], shapes: Sequence[str], suffix: str) -> View:
    shown = [(label, row) for label, row in rows if words.shape(row) in shapes]
    shown.sort(key=lambda pair: (pair[1].activation_bytes or 0) + pair[1].parameter_bytes)
    records = [record for i, (label, row) in enumerate(shown) for record in _records(i, label, row)]
    slug = f"{GROUP}-{panel.slug}{suffix}"
    titles = {f"Memory at {shape}": shape for shape in shapes}
    return View(
        group=GROUP,
        slug=slug,
        title=f"Memory, {panel.title[0].lower()}{panel.title[1:]}",
        choices={key: value for key, value in panel.choices.items() if key != "Mode"},
        caption=curves.caption(panel),
        draw=lambda width: {title: _chart(title, shape, records, shown, width) for title, shape in titles.items()},
        rows=[row for _, row in shown],
        records=records,
        figures={slug: list(titles)},
        content={"lines": shown},
    )


def _records(i: int, label: str, row: Row) -> list[dict[str, Any]]:
    """One for each bar and mark: `bytes` wide, from `start`."""
    base = {"i": i, "c": "", "label": label, "rank": i}
    found, start = [], 0.0
    for part, size in zip(PARTS, (row.activation_bytes or 0.0, row.parameter_bytes), strict=True):
        found.append({**base, "part": part, "start": start, "end": start + size})
        start += size
    for mark, value in zip(MARKS, (row.checkpoint_bytes, row.peak_bytes), strict=True):
        found += [{**base, "mark": mark, "end": value}] if value else []
    return found


def _chart(
    title: str,
    shape: str,
    records: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[str, Row]],
    width: figures.Width,
) -> alt.LayerChart:
    here = [record for record in records if words.shape(shown[record["i"]][1]) == shape]
    top = max(record["end"] for record in here) * 1.05
    lines = len({record["label"] for record in here})
    x_scale = alt.Scale(domain=[0, top], nice=False)
    x_axis = alt.Axis(labelExpr=charts.written("B"), title=None, tickCount=5)
    y = alt.Y("label:N", sort=alt.EncodingSortField("rank", op="min"), title=None,
              axis=alt.Axis(labelLimit=charts.LABEL_WIDTH, grid=False, ticks=False, domain=False))  # fmt: skip
    legend = alt.Legend(title=None, orient="top", labelColor="currentColor")
    base = alt.Chart(charts.ROWS).transform_filter(alt.FieldEqualPredicate(field="shape", equal=shape))
    bars = base.transform_filter("isValid(datum.part)").mark_bar(**charts.TOLD)
    colours = alt.Scale(domain=list(PARTS), range=list(PARTS.values()))
    bars = bars.encode(
        x=alt.X("start:Q", scale=x_scale, axis=x_axis),
        x2="end",
        y=y,
        color=alt.Color("part:N", legend=legend, scale=colours),
        description=charts.SAID,
    )
    layers = [bars]
    held = [mark for mark in MARKS if any(record.get("mark") == mark for record in here)]
    if held:
        marks = base.transform_filter("isValid(datum.mark)").mark_point(
            size=46, filled=True, color="currentColor", opacity=1, **charts.TOLD
        )
        shapes = alt.Scale(domain=held, range=[MARKS[mark] for mark in held])
        layers.append(
            marks.encode(
                x=alt.X("end:Q", scale=x_scale, axis=x_axis),
                y=y,
                shape=alt.Shape("mark:N", legend=legend, scale=shapes),
                description=charts.SAID,
            )
        )
    return alt.LayerChart(
        layer=layers,
        width=width,
        height=ROW_HEIGHT * max(lines, 2),
        title=title,
        description=f"{title}: bytes that training one layer keeps, by structure, the least first.",
    )
