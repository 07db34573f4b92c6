"""Minimal pairs by phenomenon: of which the right sentence was preferred, beside chance."""

from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import altair as alt

from bench.answers.losses import Result, proportion
from bench.answers.training_rows import Grammar, TrainingPlace
from bench.report.drawing.figures import Width
from bench.report.drawing.sections import RECORDS
from bench.report.drawing.style import COLOURS, DYAD
from bench.report.drawing.views import View
from bench.report.sweep.charts import TOLD
from bench.report.training.marks import Trained, choices, title

GROUP = "Grammar"
CELL = 22  # pixels of a line
ALL = "all of them"
ONE_SIDED = "polarity"  # phenomena whose pairs have no mirror
ABOVE, BELOW = COLOURS[0], DYAD
SIDES = ("above chance", "below chance", "as chance")


def made(of: Trained) -> list[View]:
    """A view for each place whose networks were asked for minimal pairs."""
    found: list[View] = []
    for place, several in of.results.items():
        asked = [r for r in several if any(run.phenomena for run in r.runs)]
        if asked:
            found.append(_view(of, place, asked, f"grammar-{len(found) + 1}"))
    return found


def cells(several: Sequence[Result]) -> list[dict[str, Any]]:
    """One for every series and phenomenon, and for all of a series: the mean over seeds and on which side of chance.

    All seeds answer the same pairs, so that these alone are counted as trials; the level is shared by all cells.
    """
    asked = [(r, [run for run in r.runs if run.phenomena and run.grammar]) for r in several]
    names = list(dict.fromkeys(name for _, runs in asked for run in runs for name in run.phenomena))
    count = sum(len(runs) > 0 for _, runs in asked) * (len(names) + 1)
    return [
        {"series": r.first.series, "structure": r.first.structure, "phenomenon": name, **_said(r, name, some, count)}
        for r, runs in asked
        for name in (*names, ALL)
        for some in [[g for run in runs for g in [run.grammar if name == ALL else run.phenomena.get(name)] if g]]
        if some
    ]


def _said(result: Result, name: str, some: Sequence[Grammar], cells: int) -> dict[str, Any]:
    share, first = mean(g.accuracy for g in some), some[0]
    low, high = proportion(share, first.pairs, cells)
    side = SIDES[0] if low > first.chance else SIDES[1] if high < first.chance else SIDES[2]
    seeds = f" over {len(some)} seeds" if len(some) > 1 else ""
    told = (
        f"{result.first.series}, {name}: {share:.0%} of {first.pairs} pairs{seeds}, chance {first.chance:.0%}: {side}"
    )
    return {"share": share, "away": share - first.chance, "side": side, "written": f"{share * 100:.0f}", "told": told}


def _view(of: Trained, place: TrainingPlace, asked: Sequence[Result], slug: str) -> View:
    values = cells(asked)
    records = [{**value, "c": of.look[value["structure"]][0]} for value in values]
    columns = list(dict.fromkeys(value["series"] for value in values))  # the least loss first
    names = list(dict.fromkeys(value["phenomenon"] for value in values))
    run = next(run for r in asked for run in r.runs if run.grammar)
    assert run.grammar is not None
    each = next(iter(run.phenomena.values())).pairs
    heading = "Minimal pairs decided rightly, %"
    told = [
        f"Of two sentences that differ in one word, how often the right one is the more probable: {each} pairs of each "
        f"phenomenon, {run.grammar.pairs} in all; chance is {run.grammar.chance:.0%}.",
        "Networks from left to right by loss; means over seeds. Blue is above chance, orange below; faint is what 95 % "
        "intervals (for all cells together) do not tell from chance.",
    ]
    if any(name.startswith(ONE_SIDED) for name in names):
        told.append(
            "Pairs come in mirrored couples, of which the frequency of words alone gets one of two right; those of "
            f"{ONE_SIDED} do not, so that a network may do well there that knows no grammar."
        )
    charts = {heading: partial(_chart, columns, names, heading)}
    return of.view(GROUP, slug, title(place), choices(place), told, charts, records, columns=1)


def _chart(columns: Sequence[str], names: Sequence[str], heading: str, width: Width) -> alt.LayerChart:
    plain: dict[str, Any] = {"title": None, "grid": False, "ticks": False, "domain": False, "labelOverlap": False}
    short = [name.partition(" @ ")[0] for name in columns]
    named = {"labelExpr": "split(datum.label, ' @ ')[0]"} if len(set(short)) == len(short) else {}  # of one budget
    below = alt.Axis(**plain, **named, labelAngle=-60, labelLimit=190, orient="bottom")
    beside = alt.Axis(**plain, labelLimit=230)
    base = alt.Chart(RECORDS).encode(
        x=alt.X("series:N", scale=alt.Scale(domain=list(columns), paddingInner=0.06), axis=below),
        y=alt.Y("phenomenon:N", scale=alt.Scale(domain=list(names), paddingInner=0.08), axis=beside),
    )
    colour = alt.condition("datum.away > 0", alt.value(ABOVE), alt.value(BELOW))
    known = f"datum.side !== '{SIDES[2]}'"
    boxes = base.mark_rect(cornerRadius=2, **TOLD).encode(
        color=colour,
        fillOpacity=alt.FillOpacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None),
    )
    boxes = boxes.transform_calculate(strength=f"({known} ? 1.1 : 0.35) * abs(datum.away)")
    texts = base.mark_text(fontSize=10.5, baseline="middle", aria=False).encode(
        text="written:N", opacity=alt.condition(known, alt.value(1), alt.value(0.55))
    )
    return alt.LayerChart(
        layer=[boxes, texts],
        width=width,
        height=CELL * len(names),
        title=heading,
        description="The share of minimal pairs decided rightly: a line for each phenomenon, a column for each series.",
    )
