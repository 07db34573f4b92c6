"""Rooflines: the FLOP/s that calls achieve against their FLOPs a byte, under the limits measured on the machine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import altair as alt

from bench.files.rows import Limits, Row
from bench.files.vocabulary import BOUNDS
from bench.report.drawing import figures, layout, views, words
from bench.report.drawing.curve import CONTROL, Place, kind
from bench.report.drawing.style import DOT, MARKERS, TRIANGLES
from bench.report.drawing.views import View
from bench.report.sweep import charts

GROUP = "roofline"
HEIGHT = 440
VERDICTS = {  # colour, marker: told apart without the colour, too
    "arithmetic": ("#0072B2", MARKERS[0]),
    "memory": ("#D55E00", TRIANGLES[0]),
    "calls": ("#009E73", DOT),
}
assert set(VERDICTS) == set(BOUNDS)
TITLE = "Achieved FLOP/s against arithmetic intensity"


def made(places: Mapping[Place, Sequence[Row]], suffixes: Mapping[str, str]) -> list[View]:
    """A view for each place and mode whose run measured what the machine can do."""
    found = []
    for place, rows in places.items():
        for mode in dict.fromkeys(row.mode for row in rows):
            own = [row for row in rows if row.mode == mode and row.bound and kind(row) != CONTROL]
            limits = _limits(place, own)
            if own and limits:
                found.append(_view(place, mode, own, limits, suffixes.get(place.machine, "")))
    return found


def _limits(place: Place, rows: Sequence[Row]) -> Limits | None:
    of_place = (place.device, place.dtype, place.threads)
    runs = [limit for row in rows for limit in row.run.roofline]
    return next((limit for limit in runs if (limit.device, limit.dtype, limit.threads) == of_place), None)


def _view(place: Place, mode: str, rows: Sequence[Row], limits: Limits, suffix: str) -> View:
    slug = views.where(GROUP, mode, place.slug) + suffix
    structures = list(dict.fromkeys(sorted(row.structure for row in rows)))
    records = [
        {"i": i, "c": row.bound, "intensity": row.intensity, "rate": row.flops_per_s} for i, row in enumerate(rows)
    ]
    return View(
        group=GROUP,
        slug=slug,
        title=f"Roofline: {mode}, {place.dtype}, {place.device}",
        choices={"Mode": mode, **place.choices},
        caption=views.caption(place, views.runs_of(rows)),
        draw=lambda width: {TITLE: _chart(rows, limits, width)},
        rows=rows,
        records=records,
        figures={slug: [TITLE]},
        columns=1,
        content={
            "limits": limits,
            "verdicts": VERDICTS,
            "lines": [(name, *_counts([row for row in rows if row.structure == name])) for name in structures],
        },
    )


def _counts(rows: Sequence[Row]) -> tuple[Counter[str | None], float, float]:
    """How many points each limit binds, and how near to its limit the median point and the nearest are."""
    near = [row.bound_fraction or 0.0 for row in rows]
    return Counter(row.bound for row in rows), median(near), max(near)


def _chart(rows: Sequence[Row], limits: Limits, width: figures.Width) -> alt.LayerChart:
    peak = limits.gemm_flops_per_s
    xs = layout.limits([row.intensity for row in rows], 1.3)
    ys = layout.limits([*(row.flops_per_s for row in rows), peak], 1.35)
    x_scale = alt.Scale(type="log", domain=xs, nice=False, clamp=True)
    y_scale = alt.Scale(type="log", domain=ys, nice=False, clamp=True)
    x_axis = alt.Axis(values=layout.ticks(*xs), format=".2~g", title="FLOPs executed for each byte moved at least")
    y_axis = alt.Axis(values=layout.ticks(*ys), labelExpr=charts.written("FLOP/s"), title=None)

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=x_scale, axis=x_axis)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=y_scale, axis=y_axis)

    roofs: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    rates = [(limits.copy_bytes_per_s, "copy, main memory")]
    rates += [(limits.cache_bytes_per_s, "copy, cache")] if limits.cache_bytes_per_s else []
    for rate, name in rates:
        start, ridge = max(xs[0], ys[0] / rate), peak / rate
        ends = [start, min(ridge, xs[1])]
        if ends[0] < ends[1]:
            roofs += [{"roof": name, "x": at, "y": at * rate} for at in ends]
            at = ends[0] * (ends[1] / ends[0]) ** 0.4
            labels.append({"x": at, "y": at * rate, "text": f"{name}: {words.prefixed(rate, 'B/s')}"})
    first = max(xs[0], min(peak / max(rate for rate, _ in rates), xs[1]))
    roofs += [{"roof": "peak", "x": at, "y": peak} for at in (first, xs[1])]
    told = f"matrix product: {words.prefixed(peak, 'FLOP/s')}"
    lines = alt.Chart(alt.InlineData(roofs)).mark_line(strokeWidth=2, color="currentColor", aria=False)
    texts = alt.Chart(alt.InlineData(labels)).mark_text(align="right", dx=-6, dy=-6, aria=False)
    top = alt.Chart(alt.InlineData([{"x": xs[1], "y": peak, "text": told}]))
    scale: dict[str, Any] = {"domain": list(VERDICTS)}
    legend = alt.Legend(title="bound by", orient="top", titleFontWeight="normal", labelColor="currentColor",
                        titleColor="currentColor")  # fmt: skip
    points = alt.Chart(charts.ROWS).mark_point(size=44, strokeWidth=1.2, opacity=0.75, filled=False, **charts.TOLD)
    points = points.encode(
        x=x("intensity"),
        y=y("rate"),
        color=alt.Color("c:N", legend=legend, scale=alt.Scale(**scale, range=[c for c, _ in VERDICTS.values()])),
        shape=alt.Shape("c:N", legend=legend, scale=alt.Scale(**scale, range=[m for _, m in VERDICTS.values()])),
        description=charts.SAID,
    )
    return alt.LayerChart(
        layer=[
            lines.encode(x=x("x"), y=y("y"), detail="roof:N"),
            *([texts.encode(x=x("x"), y=y("y"), text="text:N")] if labels else []),
            top.mark_text(align="right", dy=-8, aria=False).encode(x=x("x"), y=y("y"), text="text:N"),
            points,
        ],
        width=width,
        height=HEIGHT,
        title=TITLE,
        description=f"{TITLE}, log-log, with the rates of a matrix product and of copies as lines.",
    )
