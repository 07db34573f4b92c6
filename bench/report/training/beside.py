"""Every structure's loss beside dense's, by task: the difference with its noise, ties shown as ties."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from bench.answers.losses import TIE, Result, budgets
from bench.report.drawing import words
from bench.report.drawing.figures import Width
from bench.report.drawing.views import View
from bench.report.training.curves import OWN
from bench.report.training.marks import Looks, Trained, looks_of, room, ticks, told

GROUP = "Beside dense"
ROW = 17  # pixels of a series
TITLE = "loss over dense's: left of the line is better"


def made(of: Trained) -> list[View]:
    """A view for each budget, of every task at its largest width that has it."""
    largest = {place.setting: place for place in of.results}  # by width within a setting
    found: list[View] = []
    for budget, start in budgets([r for p in largest.values() for r in of.results[p]]):
        charts = {}
        for place in largest.values():
            kept = chosen(of.results[place], budget, start)
            if any(not r.first.control for r in kept):
                charts[f"{place.setting}, width {place.width}"] = kept
        if charts:
            found.append(view(of, charts, budget, start, f"beside-{len(found) + 1}"))
    return found


def chosen(several: Sequence[Result], budget: str | None, start: str) -> list[Result]:
    """Series at a budget and the controls, those with a difference from dense that has a known noise."""
    known = [r for r in several if r.difference is not None and r.margin is not None and r.first.structure != "dense"]
    return [
        r
        for r in known
        if (r.first.budget, r.first.start) == (budget, start)
        or (r.first.control and (budget is None or r.first.budget in (None, budget)))
    ]


def view(
    of: Trained, charts: Mapping[str, Sequence[Result]], budget: str | None, start: str, slug: str = "beside"
) -> View:
    """One chart for each title, its series from the least loss down."""
    numbered = [(i, result) for i, several in enumerate(charts.values()) for result in several]
    records = [_record(i, result, budget, of) for i, result in numbered]
    structures = [r.first.structure for several in charts.values() for r in several]
    at = OWN if budget is None else words.budget(budget)

    told_of = (
        "Mean loss over seeds beside dense's. Bars: the noise of that difference, at 95 % for all of a chart together; "
        "a bar across the line is a tie with dense, and is written so."
    )
    drawn = {
        title: partial(_chart, i, [r for r in records if r["chart"] == i], of.look, title)
        for i, title in enumerate(charts)
    }
    heading = f"{at[0].upper()}{at[1:]}{f', {start} start' if start else ''}"
    asked = {"Compared at": at, **({"Start": start} if start else {})}
    return of.view(GROUP, slug, heading, asked, [told_of], drawn, records, structures)


def _record(chart: int, result: Result, budget: str | None, of: Trained) -> dict[str, Any]:
    first, ratio, margin = result.first, 1 + (result.difference or 0.0), result.margin or 0.0
    tie = result.verdict == TIE
    percent = f"{(ratio - 1) * 100:+.1f} %" if abs(ratio - 1) < 0.995 else f"{words.ratio(ratio)}"
    return {
        "chart": chart,
        "c": of.look[first.structure][0],
        "row": first.series,
        "name": first.structure if budget else first.series,
        "ratio": ratio,
        "low": ratio * math.exp(-margin),
        "high": ratio * math.exp(margin),
        "tie": tie,
        "written": f"{percent} (tie)" if tie else percent,
        "told": told(result, of.time_of(result)),
    }


def _chart(number: int, records: Sequence[Mapping[str, Any]], look: Looks, title: str, width: Width) -> alt.LayerChart:
    ordered = sorted(records, key=lambda r: r["ratio"])
    rows = [r["row"] for r in ordered]
    names = {r["row"]: r["name"] for r in ordered}
    structured = [v for r in records if r["c"] != "removed" or r["ratio"] < 1 for v in (r["low"], r["high"])]
    low, high = room([*structured, 1.0])
    limits = [low, max(min(high, 4.0), 1.05)]
    scale = alt.Scale(type="log", domain=limits, nice=False, clamp=True)
    written = "format(datum.value - 1, '+.2~%')"
    axis = alt.Axis(title=TITLE, labelExpr=written, labelOverlap="greedy", **ticks(limits))
    own = looks_of(look)
    base = alt.Chart(alt.NamedData("rows")).transform_filter(f"datum.chart === {number}")
    y = alt.Y("row:N", sort=rows, scale=alt.Scale(domain=rows), axis=None)
    x = alt.X("ratio:Q", scale=scale, axis=axis)
    faint = alt.condition("datum.tie", alt.value(0.45), alt.value(1))
    one = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=1.6, color="currentColor", aria=False)
    bars = base.mark_rule(strokeWidth=1.3, aria=False)
    points = base.mark_point(size=56, strokeWidth=1.4).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"], opacity=faint,
        tooltip=alt.Tooltip("told:N", title="series"),
    )  # fmt: skip
    named = alt.Chart(alt.InlineData([{"row": row, "name": names[row]} for row in rows]))
    left = named.mark_text(align="right", xOffset=-8, limit=150, fontSize=11, aria=False)
    right = base.mark_text(align="left", xOffset=8, fontSize=10.5, aria=False)
    return alt.LayerChart(
        layer=[
            one.encode(x=alt.X("one:Q", scale=scale, axis=axis)),
            bars.encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high", y=y, color=own["color"], opacity=faint),
            points,
            left.encode(x=alt.value(0), y=y, text="name:N"),
            right.encode(x=alt.value("width"), y=y, text="written:N", opacity=faint),
        ],
        width=width,
        height=ROW * len(rows) + 8,
        title=title,
        description=f"Loss over dense's for every series, with its noise: {title}.",
    )
