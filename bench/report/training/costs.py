"""Losses at the end of runs against what they cost: parameters, FLOPs counted and executed, seconds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from bench.answers.losses import Result
from bench.answers.training_rows import TrainingPlace
from bench.report.drawing.figures import Width
from bench.report.drawing.style import GREY
from bench.report.drawing.views import View
from bench.report.sweep.pareto import front
from bench.report.training.marks import (
    HEIGHT,
    REMOVED,
    SECONDS,
    Looks,
    Trained,
    at_end,
    choices,
    labels,
    looks_of,
    ordered,
    reach,
    records,
    room,
    title,
    x_axis,
    y_axis,
)

GROUP = "Loss against cost"
NOISE = (
    "Means over seeds; two whose bars meet are a tie (the table decides at the edge of it). The grey line is dense; "
    "what stands at the upper edge has a larger loss."
)
COSTS = {
    "share": ("parameters of the replaced layers, of dense", ""),
    "params": ("parameters of the whole network", ""),
    "flops": ("FLOPs of the training run, counted", ""),
    "executed": ("FLOPs of the training run, as executed", ""),
    "seconds": (SECONDS, "s"),
}


def made(of: Trained) -> list[View]:
    """A view for each place."""
    found: list[View] = []
    for place, several in ordered(of.results).items():
        trained = [r for r in several if r.loss is not None]
        if len(trained) > 1:
            found.append(_view(of, place, trained, f"costs-{len(found) + 1}"))
    return found


def same(some: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the FLOPs executed are those counted, to half a percent, in all records."""
    return all(abs(r["executed"] / r["flops"] - 1) < 0.005 for r in some)


def _view(of: Trained, place: TrainingPlace, trained: Sequence[Result], slug: str) -> View:
    kept = [at_end(result, of) for result in trained]
    costs = {k: v for k, v in COSTS.items() if k != "executed" or not same(kept)}
    if same(kept):
        costs["flops"] = ("FLOPs of the training run (as many executed as counted)", "")
    charts = {
        f"Loss against {text.partition(', as')[0] if key == 'seconds' else text}": partial(
            _chart, key, text, unit, kept, of.look
        )
        for key, (text, unit) in costs.items()
        if sum(r[key] is not None for r in kept) > 1
    }
    structures = [r.first.structure for r in trained]
    return of.view(GROUP, slug, title(place), choices(place), [NOISE], charts, kept, structures)


def _chart(
    key: str, text: str, unit: str, kept: Sequence[Mapping[str, Any]], look: Looks, width: Width
) -> alt.LayerChart:
    """Points with their bars; named are dense, the layers removed, and those that none of less cost beats."""
    have = [r for r in kept if r[key] is not None]
    scale, axis = y_axis(room(reach(kept)))
    linear = key == "share"
    x = x_axis([r[key] for r in have], text, linear=linear, unit=unit, share=linear)
    own = looks_of(look)
    base = records(key)
    y = alt.Y("loss:Q", scale=scale, axis=axis)
    dense = look["dense"][0]
    flat = alt.Chart(alt.InlineData([{k: r[k] for k in ("loss",)} for r in kept if r["c"] == dense]))
    bars = base.mark_rule(strokeWidth=1, opacity=0.55, aria=False)
    points = base.mark_point(size=58, strokeWidth=1.4, opacity=1).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"],
        tooltip=alt.Tooltip("told:N", title="series"),
    )  # fmt: skip
    best = {i for i in front([(-r[key], r["loss"]) for r in have])}  # least loss for at most the cost
    always = {dense, look[REMOVED][0]}
    ends = [{**r, "x": r[key]} for i, r in enumerate(have) if i in best or r["c"] in always]
    return alt.LayerChart(
        layer=[
            flat.mark_rule(color=GREY, strokeWidth=1.2, aria=False).encode(y=y),
            bars.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2="high", color=own["color"]),
            points,
            *labels(ends, x, scale, HEIGHT, own),
        ],
        width=width,
        height=HEIGHT,
        title=f"Loss against {text}",
        description=f"Held-out loss at the end of training against {text}, with bars of the noise between seeds.",
    )
