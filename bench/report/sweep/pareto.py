"""Pareto fronts: what a layer's time is for its parameters, and for its FLOPs, at one shape and number of tokens."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from bench.files.rows import Row
from bench.files.vocabulary import DENSE
from bench.report.drawing import figures, layout, views, words
from bench.report.drawing.curve import CONTROL, STRUCTURE, Place, kind
from bench.report.drawing.style import DASHES, DOT, GREY, Style, by_name
from bench.report.drawing.views import View
from bench.report.sweep import charts

GROUP = "pareto"
BELOW = 10  # pixels from a point to its name
NAME_ROOM = 0.12  # of the axis's length, added at its right end for the name of the last point
HEIGHT = 380
COSTS = {"params_share": "parameters", "flops_share": "FLOPs", "executed_share": "FLOPs executed"}
TIME = "time of dense's (paired, lower is faster)"
OTHER = Style(GREY, DOT, DASHES[2], 1.1, True)  # controls: shown, never on a front


def made(places: Mapping[Place, Sequence[Row]], structures: Collection[str], suffixes: Mapping[str, str]) -> list[View]:
    """A view for each layer of a place: two charts over all shares that were measured."""
    found = []
    for place, rows in places.items():
        for (mode, tokens, shape), some in layers(rows):
            own = [row for row in some if (row.speedup and kind(row) == STRUCTURE) or _narrow(row)]
            own += [row for row in some if kind(row) == DENSE][:1]
            if sum(kind(row) == STRUCTURE for row in own) > 1:
                slug = views.where(GROUP, shape, mode, tokens, "tokens", place.slug) + suffixes.get(place.machine, "")
                found.append(_view(place, own, structures, slug, mode, tokens, shape))
    return found


def layers(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int, str], list[Row]]]:
    """Rows of one mode, number of tokens and shape; the largest square first, forward before train."""
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.mode, not row.square, -row.width, row.in_features, -row.tokens)):
        found.setdefault((row.mode, row.tokens, words.shape(row)), []).append(row)
    yield from found.items()


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, time) no other beats: none has at least their cost and is faster; by cost.

    More parameters, and more FLOPs, hold more; so a small layer does not beat a large one by being faster.
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept[::-1]


def _narrow(row: Row) -> bool:
    return kind(row) == CONTROL and row.structure != "dense" and row.speedup is not None


def _view(
    place: Place, rows: Sequence[Row], structures: Collection[str], slug: str, mode: str, tokens: int, shape: str
) -> View:
    look = by_name(structures)
    ids = {id: style for id, style in look.values()} | {"other": OTHER}
    times = [1 / row.speedup.median if row.speedup else 1.0 for row in rows]
    able = [i for i, row in enumerate(rows) if kind(row) in (STRUCTURE, DENSE)]
    costs = dict(COSTS)
    if all(row.executes_as_counted for row in rows):
        del costs["executed_share"]
    fronts = {}
    for cost in costs:
        fronts[cost] = [able[i] for i in front([(getattr(rows[i], cost), times[i]) for i in able])]
    records = []
    for i, row in enumerate(rows):
        record = {"i": i, "c": look[row.structure][0] if i in able else "other", "label": row.structure}
        record |= {cost: getattr(row, cost) for cost in costs} | {"relative": times[i]}
        if row.speedup:
            record |= {"relative_low": 1 / row.speedup.q3, "relative_high": 1 / row.speedup.q1}
        records.append(record | {f"on_{cost}": i in fronts[cost] for cost in costs})
    budgets = sorted({row.budget for row in rows if row.budget})
    return View(
        group=GROUP,
        slug=slug,
        title=f"Time against cost: {shape}, {mode}, {words.tokens(tokens)}, {place.dtype}, {place.device}",
        choices={"Layer": shape, "Mode": mode, "Tokens": str(tokens), **place.choices},
        caption=views.caption(place, views.runs_of(rows)),
        draw=lambda width: {
            f"Time against {what}": _chart(cost, what, rows, records, ids, budgets, width)
            for cost, what in costs.items()
        },
        rows=rows,
        records=records,
        figures={slug: [f"Time against {what}" for what in costs.values()]},
        legend=[(id, name, style) for name, (id, style) in look.items() if any(r["c"] == id for r in records)],
        content={"fronts": {what: (cost, [rows[i] for i in fronts[cost]]) for cost, what in costs.items()}},
    )


def _chart(
    cost: str,
    what: str,
    rows: Sequence[Row],
    records: Sequence[Mapping[str, Any]],
    ids: Mapping[str, Style],
    budgets: Sequence[str],
    width: figures.Width,
) -> alt.LayerChart:
    look = figures.encodings(ids)
    xs = layout.limits([getattr(row, cost) for row in rows], 1.25)
    xs[1] *= (xs[1] / xs[0]) ** NAME_ROOM
    ends = [record.get(key, record["relative"]) for record in records for key in ("relative_low", "relative_high")]
    ys = layout.limits(ends, 1.15)
    x_scale, y_scale = (alt.Scale(type="log", domain=limits, nice=False) for limits in (xs, ys))
    x_axis = alt.Axis(values=layout.ticks(*xs), format=".3~%", title=f"{what} of dense's", grid=False)
    y_axis = alt.Axis(values=layout.ticks(*ys), format=".3~g", title=TIME)
    x = alt.X(f"{cost}:Q", scale=x_scale, axis=x_axis)
    y = alt.Y("relative:Q", scale=y_scale, axis=y_axis)
    on = f"datum.on_{cost}"
    shares = [float(b.split("=")[1]) for b in budgets if b.startswith(cost.split("_")[0])]
    classes = alt.Chart(alt.InlineData([{"share": share} for share in shares]))
    lines = classes.mark_rule(strokeDash=[2, 3], color=GREY, opacity=0.8, aria=False).encode(
        x=alt.X("share:Q", scale=x_scale, axis=x_axis)
    )
    even = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=2, color="currentColor", aria=False)
    base = alt.Chart(charts.ROWS)
    steps = base.transform_filter(on).mark_line(interpolate="step-before", strokeWidth=1.6, color="currentColor")
    bars = base.mark_rule(strokeWidth=1, aria=False).encode(
        x=x, y=alt.Y("relative_low:Q", scale=y_scale, axis=y_axis), y2="relative_high", color=look["color"],
        opacity=alt.condition(on, alt.value(0.9), alt.value(0.15)),
    )  # fmt: skip
    points = base.mark_point(size=64, strokeWidth=1.3, **charts.TOLD).encode(
        x=x, y=y, color=look["color"], shape=look["shape"], fill=look["fill"], description=charts.SAID,
        opacity=alt.condition(on, alt.value(1), alt.value(0.3)),
    )  # fmt: skip
    named = [i for i, record in enumerate(records) if record[f"on_{cost}"]]
    below = {str(i): max(ys[0], records[i]["relative"] * (ys[0] / ys[1]) ** (BELOW / HEIGHT)) for i in named}
    heights = layout.beside(below, ys, HEIGHT, charts.LABEL_GAP)
    told = [{cost: getattr(rows[i], cost), "at": heights[str(i)], "label": records[i]["label"]} for i in named]
    names = alt.Chart(alt.InlineData(told)).mark_text(align="left", dx=8, limit=charts.LABEL_WIDTH, aria=False)
    return alt.LayerChart(
        layer=[
            *([lines] if shares else []),
            even.encode(y=alt.Y("one:Q", scale=y_scale, axis=y_axis)),
            steps.encode(x=x, y=y),
            bars,
            points,
            names.encode(x=x, y=alt.Y("at:Q", scale=y_scale, axis=y_axis), text="label:N"),
        ],
        width=width,
        height=HEIGHT,
        title=f"Time against {what}",
        description=f"Time as a share of dense's against {what} as a share of dense's, log-log; a line joins the "
        "points for which no other costs at least as much and is faster.",
    )
