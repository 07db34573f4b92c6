"""Minimal pairs by phenomenon: of which the right sentence was preferred, beside chance."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from bench.answers.losses import Result, proportion
from bench.files.training_rows import Grammar
from bench.report.drawing.sections import PageCell, PageTable
from bench.report.drawing.style import COLOURS, DYAD

ALL = "all of them"
ONE_SIDED = "polarity"  # phenomena whose pairs have no mirror
SIDES = ("above chance", "below chance", "as chance")


def cells(several: Sequence[Result]) -> list[dict[str, Any]]:
    """One for every series and phenomenon, and for all of a series: the mean over seeds and on which side of chance.

    All seeds answer the same pairs, so that these alone are counted as trials; the level is shared by all cells.
    """
    asked = [(r, [run for run in r.runs if run.phenomena and run.grammar]) for r in several]
    names = list(dict.fromkeys(name for _, runs in asked for run in runs for name in run.phenomena))
    count = sum(len(runs) > 0 for _, runs in asked) * (len(names) + 1)
    return [
        {"series": r.first.series, "structure": r.first.structure, "phenomenon": name, **_said(name, some, count)}
        for r, runs in asked
        for name in (*names, ALL)
        for some in [[g for run in runs for g in [run.grammar if name == ALL else run.phenomena.get(name)] if g]]
        if some
    ]


def _said(name: str, some: Sequence[Grammar], cells: int) -> dict[str, Any]:
    share, first = mean(g.accuracy for g in some), some[0]
    low, high = proportion(share, first.pairs, cells)
    side = SIDES[0] if low > first.chance else SIDES[1] if high < first.chance else SIDES[2]
    return {"share": share, "away": share - first.chance, "side": side, "written": f"{share * 100:.0f}",
            "chance": first.chance, "pairs": first.pairs}  # fmt: skip


def tables(several: Sequence[Result]) -> list[PageTable]:
    """A line for each series, the least loss first, a column for each phenomenon; tinted where it is not chance."""
    found = cells(several)
    if not found:
        return []
    names = list(dict.fromkeys(cell["phenomenon"] for cell in found))
    by_series: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in found:
        by_series.setdefault(cell["series"], {})[cell["phenomenon"]] = cell
    lines = [[name, *(_cell(own.get(phenomenon)) for phenomenon in names)] for name, own in by_series.items()]
    one_sided = (
        f" Pairs of {ONE_SIDED} have no mirror, so that the frequency of words may decide them."
        if any(name.startswith(ONE_SIDED) for name in names)
        else ""
    )
    caption = (
        f"Minimal pairs decided rightly, %: chance is {found[0]['chance']:.0%}. Blue: above, orange: below, plain: not "
        f"told from it, at 95 % for all cells together.{one_sided}"
    )
    return [PageTable(caption, ("Series", *names), lines, "Grammar, by phenomenon")]


def _cell(cell: dict[str, Any] | None) -> PageCell:
    if cell is None:
        return PageCell("")
    colour = COLOURS[0] if cell["side"] == SIDES[0] else DYAD if cell["side"] == SIDES[1] else ""
    strength = round(15 + 120 * abs(cell["away"]))
    tint = f"color-mix(in srgb, {colour} {strength}%, transparent)" if colour else ""
    return PageCell(cell["written"], value=cell["share"], tint=tint)
