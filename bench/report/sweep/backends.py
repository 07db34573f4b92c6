"""Backends against each other: the same layer run in several ways, each paired with dense, and the fastest marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bench.files.rows import Row
from bench.report.drawing import figures, layout, views, words
from bench.report.drawing.curve import CONTROL, STRUCTURE, Place, kind
from bench.report.drawing.style import COLOURS, MARKERS, Style
from bench.report.drawing.views import View
from bench.report.sweep import charts, pareto

GROUP = "backends"
ROW_HEIGHT = 22
TITLE = "Speed-up over dense by backend (paired ratio, higher is faster)"


@dataclass(frozen=True)
class Contest:
    """One layer that ran in several ways, the fastest first."""

    label: str
    rows: tuple[Row, ...]

    @property
    def winner(self) -> Row:
        return self.rows[0]

    @property
    def lead(self) -> float:
        """The winner's speed over the next one's."""
        first, second = (row.speedup.median for row in self.rows[:2] if row.speedup)
        return first / second

    @property
    def tie(self) -> bool:
        """Whether the quartiles of the next one reach the winner's."""
        first, second = (row.speedup for row in self.rows[:2])
        return bool(first and second and second.q3 >= first.q1)


def made(places: Mapping[Place, Sequence[Row]], suffixes: Mapping[str, str]) -> list[View]:
    """A view for each layer of a place where something ran in several ways, the one with the most of them first."""
    found = []
    for place, rows in places.items():
        for (mode, tokens, shape), some in pareto.layers(rows):
            held = contests(some)
            if held:
                slug = views.where(GROUP, shape, mode, tokens, "tokens", place.slug) + suffixes.get(place.machine, "")
                found.append(_view(place, held, slug, mode, tokens, shape))
    fullest = max(found, key=lambda view: len(view.content["contests"]), default=None)
    return sorted(found, key=lambda view: view is not fullest)  # a reader begins where most ran in several ways


def contests(rows: Sequence[Row]) -> list[Contest]:
    """Layers of one place, shape, mode and number of tokens that ran in more than one way; dense's own ways are one."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        dense = row.structure == "dense" and kind(row) == CONTROL
        if row.speedup and (kind(row) == STRUCTURE or dense):
            groups.setdefault(("dense", "") if dense else (row.series, repr(row.options)), []).append(row)
    return [
        Contest(label, tuple(sorted(some, key=lambda row: -row.speedup.median if row.speedup else 0.0)))
        for (label, _), some in groups.items()
        if len({row.backend for row in some}) > 1
    ]


def _view(place: Place, held: Sequence[Contest], slug: str, mode: str, tokens: int, shape: str) -> View:
    names = list(dict.fromkeys(row.backend for contest in held for row in contest.rows))
    looks = {
        f"b{i}": Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], (1, 0), 1.5, i >= len(MARKERS))
        for i in range(len(names))
    }
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    for rank, contest in enumerate(held):
        for row in contest.rows:
            won = row is contest.winner
            records.append({"i": len(rows), "c": f"b{names.index(row.backend)}", "label": contest.label,
                            "rank": rank, "won": won})  # fmt: skip
            rows.append(row)
    return View(
        group=GROUP,
        slug=slug,
        title=f"Backends: {shape}, {mode}, {words.tokens(tokens)}, {place.dtype}, {place.device}",
        choices={"Layer": shape, "Mode": mode, "Tokens": str(tokens), **place.choices},
        caption=views.caption(place, views.runs_of(rows)),
        draw=lambda width: {TITLE: _chart(rows, len(held), looks, width)},
        rows=rows,
        records=records,
        figures={slug: [TITLE]},
        legend=[(id, name, looks[id]) for id, name in zip(looks, names, strict=True)],
        columns=1,
        content={"contests": held},
    )


def _chart(rows: Sequence[Row], lines: int, looks: Mapping[str, Style], width: figures.Width) -> alt.LayerChart:
    look = figures.encodings(looks)
    limits = layout.limits([1.0, *(v for row in rows if (s := row.speedup) for v in (s.q1, s.q3))], 1.1)
    scale = alt.Scale(type="log", domain=limits, nice=False)
    axis = alt.Axis(values=layout.ticks(*limits), labelExpr=charts.written(words.TIMES), title=None)
    y = alt.Y("label:N", sort=alt.EncodingSortField("rank", op="min"), title=None,
              axis=alt.Axis(labelLimit=220, ticks=False, domain=False))  # fmt: skip
    base = alt.Chart(charts.ROWS)
    even = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeWidth=2, color="currentColor", aria=False)
    bars = base.mark_rule(aria=False).encode(
        x=alt.X("speedup_low:Q", scale=scale, axis=axis), x2="speedup_high", y=y, color=look["color"]
    )
    points = base.mark_point(strokeWidth=1.3, opacity=1, **charts.TOLD).encode(
        x=alt.X("speedup:Q", scale=scale, axis=axis),
        y=y,
        color=look["color"],
        shape=look["shape"],
        fill=look["fill"],
        size=alt.condition("datum.won", alt.value(60), alt.value(40)),
        description=charts.SAID,
    )
    won = base.transform_filter("datum.won").mark_point(size=200, strokeWidth=1.4, filled=False, aria=False)
    return alt.LayerChart(
        layer=[
            even.encode(x=alt.X("one:Q", scale=scale, axis=axis)),
            bars,
            won.encode(x=alt.X("speedup:Q", scale=scale, axis=axis), y=y, color=alt.value("currentColor")),
            points,
        ],
        width=width,
        height=ROW_HEIGHT * max(lines, 2),
        title=TITLE,
        description=f"{TITLE}, one line per layer; a ring marks its fastest.",
    )
