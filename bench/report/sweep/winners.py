"""Who wins where: the fastest layer for each shape and number of tokens, among those of equal cost, and by how much."""

import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import altair as alt

from bench.files.rows import Row
from bench.files.vocabulary import DENSE
from bench.report.drawing import figures, views, words
from bench.report.drawing.curve import Place, dyad
from bench.report.drawing.style import Style, by_name
from bench.report.drawing.views import View
from bench.report.sweep import charts
from bench.report.sweep.panels import Panel
from bench.report.sweep.verdicts import Best, best, candidates

GROUP = "winners"
CELL = 62  # pixels high
LINE = 11  # characters of a name on one line


def made(panels: Sequence[Panel], structures: Collection[str], suffixes: Mapping[str, str]) -> list[View]:
    """A view for each place: a map for each mode and cost that is held equal."""
    found: dict[Place, list[Panel]] = {}
    for panel in panels:
        found.setdefault(panel.place, []).append(panel)
    return [
        _view(place, _equal(some), structures, suffixes.get(place.machine, ""))
        for place, some in found.items()
        if any(_cells(panel) for panel in some)
    ]


def _equal(panels: Sequence[Panel]) -> list[Panel]:
    """Panels of equal cost; those of unequal cost only where there is no other."""
    return [panel for panel in panels if panel.budget] or list(panels)


def sentence(panels: Sequence[Panel], front: Panel) -> str:
    """What the map of the front panel's place, mode and cost shows, in figures; empty without a paired ratio."""
    alike = [p for p in panels if (p.place, p.mode, p.budget) == (front.place, front.mode, front.budget)]
    cells = [(panel, cell) for panel in alike for cell in _cells(panel).values()]
    if not cells:
        return ""
    wins = Counter(DENSE if cell.dense else cell.label for _, cell in cells)
    ranked = sorted(wins, key=lambda name: (name == DENSE, -wins[name]))
    said = [f"{name} at {wins[name]}" for name in ranked if name != DENSE]
    said[:1] = [f"{said[0].replace(' at ', ' is fastest at ')}"] if said else []
    said += [f"dense stays ahead at {wins[DENSE]}"] if wins[DENSE] else []
    ties = sum(cell.tie for _, cell in cells)
    layers = "the one layer" if len(cells) == 1 else f"the {len(cells)} layers"
    at = "At" if front.budget else "With"
    where = f"{at} {words.budget(front.budget)}, {front.mode}, {front.dtype} on {front.device}"
    within = f"; {ties} of these are ties within noise" if ties else ""
    return f"{where}: of {layers} measured, {', '.join(said)}{within}. {_largest(cells)}"


def _largest(cells: Sequence[tuple[Panel, Best]]) -> str:
    """The largest gain over dense, and DYAD's best beside it."""
    panel, top = max(cells, key=lambda pair: pair[1].row.speedup.median if pair[1].row.speedup else 0.0)
    speedup, row = top.row.speedup, top.row
    if top.dense or not speedup:
        return "No structure is faster than dense there."
    rivals = [(r.speedup.median, label) for label, r in candidates(panel) if r.speedup and dyad(r.structure)
              and words.shape(r) == words.shape(row)]  # fmt: skip
    said = (
        f"The largest gain is {top.label}'s, {words.ratio(speedup.median)} dense ({words.quartiles(speedup)}), at "
        f"{words.shape(row)} and {words.tokens(row.tokens)}"
    )
    flagged = f", a point flagged {', '.join(row.flags)}" if row.flags else ""
    beside = f"; DYAD's best there, {max(rivals)[1]}, reaches {words.ratio(max(rivals)[0])}" if rivals else ""
    return f"{said}{flagged}{beside if not dyad(row.structure) else ''}."


def _cells(panel: Panel) -> dict[tuple[int, int], Best]:
    """The winner of each shape: squares by width, then the other shapes."""
    by_shape: dict[tuple[int, int], list[tuple[str, Row]]] = {}
    for label, row in sorted(candidates(panel), key=lambda c: (not c[1].square, c[1].width, c[1].in_features)):
        by_shape.setdefault((row.in_features, row.out_features), []).append((label, row))
    return {shape: cell for shape, found in by_shape.items() if (cell := best(found))}


def _view(place: Place, panels: Sequence[Panel], structures: Collection[str], suffix: str) -> View:
    look = by_name(structures)
    maps: dict[str, dict[int, dict[tuple[int, int], Best]]] = {}
    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    for panel in sorted(panels, key=lambda p: (p.mode, -_share(p), p.tokens)):
        title = f"{panel.mode[0].upper()}{panel.mode[1:]}, {words.budget(panel.budget)}"
        for shape, cell in _cells(panel).items():
            maps.setdefault(title, {}).setdefault(panel.tokens, {})[shape] = cell
            records.append({"i": len(rows), "map": len(maps) - 1} | _record(panel, cell, look))
            rows.append(cell.row)
    ids = {id: style for id, style in look.values()}
    slug = f"winners-{place.slug}{suffix}"
    return View(
        group=GROUP,
        slug=slug,
        title=f"Who wins where: {place.dtype}, {place.device}",
        choices=place.choices,
        caption=views.caption(place, [run for panel in panels for run in panel.runs]),
        draw=lambda width: {title: _map(i, title, shown, ids, width) for i, (title, shown) in enumerate(maps.items())},
        rows=rows,
        records=records,
        figures={slug: list(maps)},
        columns=3,
        content={"maps": maps, "unequal": not panels[0].budget},
    )


def _share(panel: Panel) -> float:
    return float(panel.budget.split("=")[1]) if panel.budget else 0.0


def _record(panel: Panel, cell: Best, look: Mapping[str, tuple[str, Style]]) -> dict[str, Any]:
    name = DENSE if cell.dense else cell.label
    lines = textwrap.wrap(name.replace("_", "_ "), LINE, break_on_hyphens=False)[:2]
    return {
        "c": look[DENSE if cell.dense else cell.row.structure][0],
        "y": words.tokens(panel.tokens),
        "name": "\n".join(line.replace("_ ", "_") for line in lines),
        "margin": "\n".join(_figures(cell)),
        "tie": cell.tie,
        "said": f"{words.shape(cell.row)}, {words.tokens(panel.tokens)}: {name}, {said(cell)}",
        "next": f"{cell.after}, {words.ratio(cell.lead)} behind",
        "close": ", ".join(cell.close) or "none",
    }


def said(cell: Best) -> str:
    """A winner's speed-up over dense and its lead over the next one: '3.4x, +6 %', or 'tie'."""
    return ", ".join(_figures(cell))


def _figures(cell: Best) -> list[str]:
    speed = [words.ratio(cell.row.speedup.median)] if cell.row.speedup and not cell.dense else []
    return [*speed, "tie" if cell.tie else f"+{(cell.lead - 1) * 100:.0f} %"]


def _map(
    number: int,
    title: str,
    shown: Mapping[int, Mapping[tuple[int, int], Best]],
    ids: Mapping[str, Style],
    width: figures.Width,
) -> alt.LayerChart:
    cells = [cell for by_shape in shown.values() for cell in by_shape.values()]
    cells.sort(key=lambda cell: (not cell.row.square, cell.row.width, cell.row.in_features))
    shapes = list(dict.fromkeys(words.shape(cell.row) for cell in cells))
    tokens = [words.tokens(count) for count in sorted(shown, reverse=True)]
    plain = {"title": None, "grid": False, "ticks": False, "domain": False, "labelAngle": 0, "labelOverlap": False}
    axis = alt.Axis(**plain)
    parts = "split(datum.label, ' ')"  # on two lines: 1024 and x 1024
    below = alt.Axis(**plain, labelExpr=f"[{parts}[0], {parts}[1] + ' ' + {parts}[2]]")
    place = {
        "x": alt.X("shape:N", scale=alt.Scale(domain=shapes, paddingInner=0.04, paddingOuter=0), axis=below),
        "y": alt.Y("y:N", scale=alt.Scale(domain=tokens, paddingInner=0.06, paddingOuter=0), axis=axis),
    }
    look = figures.encodings(ids)
    base = alt.Chart(charts.ROWS).transform_filter(f"datum.map === {number}").encode(**place)
    colours = alt.Scale(domain=list(ids), range=[look.colour for look in ids.values()])
    dashes = alt.ExprRef("datum.tie ? [4, 3] : [1, 0]")
    boxes = base.mark_rect(strokeWidth=1.4, cornerRadius=3, strokeDash=dashes, **charts.TOLD).encode(
        color=look["color"],
        stroke=alt.Stroke("c:N", legend=None, scale=colours),
        fillOpacity=alt.condition("datum.tie", alt.value(0.08), alt.value(0.36)),
        description=charts.SAID,
    )
    text = {"fontSize": 10, "lineBreak": "\n", "lineHeight": 12, "baseline": "top", "aria": False}
    names = base.mark_text(fontWeight="bold", dy=alt.ExprRef("indexof(datum.name, '\\n') >= 0 ? -26 : -20"), **text)
    margins = base.mark_text(dy=1, **text)
    return alt.LayerChart(
        layer=[boxes, names.encode(text="name:N"), margins.encode(text="margin:N")],
        width=width,
        height=CELL * len(tokens),
        title=title,
        description=f"{title}: the fastest layer for each shape and number of tokens.",
    )
