"""Charts of compute-optimal fronts: the least loss for each amount of training FLOPs, and the fitted exponents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from bench.report.drawing import words
from bench.report.drawing.figures import Width
from bench.report.drawing.style import GREY
from bench.report.drawing.views import View
from bench.report.training.curves import OWN
from bench.report.training.fronts import Front
from bench.report.training.marks import HEIGHT, Looks, Trained, labels, looks_of, records, room, x_axis, y_axis

GROUP = "Compute-optimal fronts"
ROW = 17
CAPTION = (
    "Least loss for each amount of training FLOPs, over widths and steps; lines: loss = factor / FLOPs^exponent. Bars "
    "of exponents: 95 % of the fit alone; points of one run share its seed, so degrees of freedom are runs but two. "
    "Bars that meet do not tell two exponents apart."
)


def made(of: Trained, counted: Sequence[Front], executed: Sequence[Front]) -> list[View]:
    """A view for each setting with several widths, and each budget in it."""
    counts = Counter((f.setting, f.budget) for f in counted if not f.control)
    classes = sorted(counts, key=lambda own: (own[0], own[1] is None, -counts[own], own[1] or ""))
    found: list[View] = []
    for setting, budget in classes:
        some = [[f for f in own if f.setting == setting and _within(f, budget)] for own in (counted, executed)]
        if any(f.exponent is not None for f in some[0]):
            found.append(_view(of, setting, budget, *some, f"fronts-{len(found) + 1}"))
    return found


def of_budget(view: View, budget: str | None) -> bool:
    """Whether a view is of this budget."""
    return view.choices["Compared at"] == (OWN if budget is None else words.budget(budget))


def _within(front: Front, budget: str | None) -> bool:
    return front.budget == budget if not front.control else front.budget in (None, budget)


def _view(
    of: Trained, setting: str, budget: str | None, counted: Sequence[Front], executed: Sequence[Front], slug: str
) -> View:
    kinds = {"counted": counted, "as executed": executed}
    if all(abs(a.points[-1][0] / b.points[-1][0] - 1) < 0.005 for a, b in zip(counted, executed, strict=True)):
        kinds = {"(as many executed as counted)": counted}
    records = [
        {"kind": i, "c": of.look[f.structure][0], "label": f.structure, "x": x, "loss": loss, "series": f.series,
         "fit": None if f.exponent is None or f.factor is None else f.factor * x**-f.exponent, "told": said(f)}
        for i, several in enumerate(kinds.values()) for f in several for x, loss in f.points
    ]  # fmt: skip
    at = OWN if budget is None else words.budget(budget)
    lines = [f"Least loss against FLOPs {kind}" for kind in kinds]
    charts = {name: partial(_lines, i, records, of.look, name) for i, name in enumerate(lines)}
    charts |= {f"Exponents, FLOPs {kind}": partial(_exponents, some, of.look) for kind, some in kinds.items()}
    asked = {"Task": setting, "Compared at": at}
    structures = [f.structure for f in counted]
    return of.view(GROUP, slug, f"{setting}, {at}", asked, [CAPTION], charts, records, structures)


def said(front: Front) -> str:
    """`dyad_it @ params=0.25: exponent 0.42 (0.40 to 0.44)`."""
    if front.exponent is None or front.low is None or front.high is None:
        return f"{front.series}: too few points for an exponent"
    return f"{front.series}: exponent {front.exponent:.3f} ({front.low:.3f} to {front.high:.3f})"


def _lines(kind: int, values: Sequence[Mapping[str, Any]], look: Looks, name: str, width: Width) -> alt.LayerChart:
    have = [r for r in values if r["kind"] == kind]
    scale, axis = y_axis(room([r["loss"] for r in have]))
    x = x_axis([r["x"] for r in have], "FLOPs of training")
    own, base = looks_of(look), records("x").transform_filter(f"datum.kind === {kind}")
    fits = base.mark_line(strokeWidth=1.3, aria=False)
    y = alt.Y("loss:Q", scale=scale, axis=axis)
    marks = base.mark_point(size=36, strokeWidth=1.2).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"], tooltip=alt.Tooltip("told:N", title="front")
    )
    last = {r["series"]: r for r in sorted(have, key=lambda r: r["x"])}
    height = max(HEIGHT, 13 * (len(last) + 1))
    return alt.LayerChart(
        layer=[
            fits.transform_filter("isValid(datum.fit)").encode(
                x=x, y=alt.Y("fit:Q", scale=scale, axis=axis), color=own["color"], strokeDash=own["strokeDash"],
                detail="series:N",
            ),
            marks,
            *labels(list(last.values()), x, scale, height, own),
        ],
        width=width,
        height=height,
        title=name,
        description=f"{name}, log-log, with fitted power laws.",
    )  # fmt: skip


def _exponents(several: Sequence[Front], look: Looks, width: Width) -> alt.LayerChart:
    """One row for each series with an exponent, the steepest first; dense's interval as a band."""
    values = [
        {"c": look[f.structure][0], "row": f.series, "name": f.structure if f.budget else f.series,
         "exponent": f.exponent, "low": f.low, "high": f.high, "told": said(f)}
        for f in several if f.exponent is not None
    ]  # fmt: skip
    rows = [v["row"] for v in sorted(values, key=lambda v: -v["exponent"])]
    own = looks_of(look)
    ends = [end for v in values for end in (v["low"], v["high"])]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=True)
    base = alt.Chart(alt.InlineData(values))
    y = alt.Y("row:N", sort=rows, scale=alt.Scale(domain=rows), axis=None)
    x = alt.X("exponent:Q", scale=scale, axis=alt.Axis(title="exponent: larger falls faster", format="~g"))
    low = alt.X("low:Q", scale=scale)
    flat = alt.Chart(alt.InlineData([v for v in values if v["c"] == look["dense"][0]]))
    left = base.mark_text(align="right", xOffset=-8, limit=150, fontSize=11, aria=False)
    points = base.mark_point(size=56, strokeWidth=1.4, opacity=1).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"], tooltip=alt.Tooltip("told:N", title="front")
    )
    return alt.LayerChart(
        layer=[
            flat.mark_rect(color=GREY, opacity=0.18, aria=False).encode(x=low, x2="high"),
            base.mark_rule(strokeWidth=1.3, aria=False).encode(x=low, x2="high", y=y, color=own["color"]),
            points,
            left.encode(x=alt.value(0), y=y, text="name:N"),
        ],
        width=width,
        height=ROW * len(rows) + 8,
        title="Exponents",
        description="Fitted exponents of every series with their intervals; the band is dense's.",
    )
