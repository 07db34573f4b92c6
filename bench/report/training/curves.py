"""Losses while training: against tokens or samples, FLOPs counted and executed, seconds; of distillation, steps."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

import altair as alt

from bench.answers.losses import Result, budgets
from bench.answers.training_rows import TrainingPlace
from bench.report.drawing import words
from bench.report.drawing.figures import Width
from bench.report.drawing.style import GREY
from bench.report.drawing.views import View
from bench.report.training.costs import same
from bench.report.training.marks import (
    HEIGHT,
    NARROW,
    SECONDS,
    Looks,
    Trained,
    choices,
    labels,
    looks_of,
    ordered,
    records,
    room,
    step_seconds,
    title,
    told,
    x_axis,
    y_axis,
)

GROUP = "Loss while training"
OWN = "options of their own"


def made(of: Trained) -> list[View]:
    """A view for each place and each budget (and start) in it, with the controls in all of them."""
    found: list[View] = []
    for place, several in ordered(of.results).items():
        trained = [r for r in several if r.loss is not None]
        for budget, start in budgets(trained):
            own = [r for r in trained if _within(r, budget, start)]
            if sum(not r.first.control for r in own) and len(own) > 1:
                found.append(_view(of, place, budget, start, own, f"curves-{len(found) + 1}"))
    return found


def _within(result: Result, budget: str | None, start: str) -> bool:
    first = result.first
    if start and first.structure == NARROW:
        return False  # it was drawn freshly and had the steps of the network that the others start from, too
    at = budget is None or first.budget in (None, budget)
    return (first.budget, first.start) == (budget, start) or (first.control and at)


def _view(of: Trained, place: TrainingPlace, budget: str | None, start: str, own: Sequence[Result], slug: str) -> View:
    points = [record for result in own for record in _points(result, budget, of)]
    unit = "tokens" if any(r.first.task in ("language", "distil") for r in own) else "samples"
    axes = {"tokens": (f"{unit} trained on", ""), "flops": ("FLOPs of training, counted", ""),
            "executed": ("FLOPs of training, as executed", ""), "seconds": (SECONDS, "s")}  # fmt: skip
    if same([p for p in points if p["flops"]]):
        axes["flops"] = ("FLOPs of training (as many executed as counted)", "")
        del axes["executed"]
    if start:
        axes["tokens"] = ("steps", "")
        points = [p | {"tokens": p["step"]} for p in points]
    else:
        points = [p for p in points if p["step"]]  # what was never trained has no place on a logarithmic axis
    if sum(p["seconds"] is not None for p in points) < 2:
        del axes["seconds"]
    teacher = own[0].first.teacher_loss if start else None
    what = "Recovered loss" if start else "Loss"
    charts = {
        f"{what} against {text.partition(', as paired')[0]}": partial(
            _chart, key, text, unit, points, of.look, teacher=teacher
        )
        for key, (text, unit) in axes.items()
    }
    at = OWN if budget is None else words.budget(budget)
    heading = f"{title(place)}, {at}{f', {start} start' if start else ''}"
    asked = {**choices(place), "Compared at": at, **({"Start": start} if start else {})}
    structures = [r.first.structure for r in own]
    return of.view(GROUP, slug, heading, asked, [_schedule(own, start)], charts, points, structures)


def _schedule(own: Sequence[Result], start: str) -> str:
    if start:
        return (
            "Every structure starts from one trained dense network, whose loss is the dashed line; the rate falls to "
            "zero, so that only ends of runs are results."
        )
    if own[0].first.constant:
        return "The rate is constant after its rise: every point of a curve could have been the end of a run."
    return "The rate falls to zero over a run, so that only the ends of curves are results: the rate is higher before."


def _points(result: Result, budget: str | None, of: Trained) -> list[dict[str, Any]]:
    """The mean curve over seeds, with its range."""
    first = result.first
    by_step: dict[int, list[float]] = {}
    for run in result.runs:
        if run.loss is not None:
            for step, loss in run.curve:
                by_step.setdefault(step, []).append(loss)
    seconds = step_seconds(first.place, first.series, first.structure, of.times)
    said = told(result, of.time_of(result))
    return [
        {
            "c": of.look[first.structure][0],
            "label": first.structure if budget else first.series,
            "series": first.series,
            "step": step,
            "tokens": step * first.tokens,
            "flops": step * first.tokens * first.train_flops,
            "executed": step * first.tokens * first.executed,
            "seconds": seconds * step if seconds else None,
            "loss": math.exp(mean(map(math.log, losses))),
            "low": min(losses),
            "high": max(losses),
            "told": f"step {step}: {math.exp(mean(map(math.log, losses))):.4g}. At the end {said}",
        }
        for step, losses in sorted(by_step.items())
    ]


def _chart(
    key: str, text: str, unit: str, points: Sequence[Mapping[str, Any]], look: Looks,
    width: Width, teacher: float | None,
) -> alt.LayerChart:  # fmt: skip
    have = [p for p in points if p[key] is not None]
    losses = [v for p in points for v in (p["low"], p["high"])] + ([teacher] if teacher else [])
    scale, axis = y_axis(room(losses))
    x = x_axis([p[key] for p in have], text, linear=teacher is not None, unit=unit)
    own = looks_of(look)
    base, y = records(key), alt.Y("loss:Q", scale=scale, axis=axis)
    detail = alt.Detail("series:N")
    pointed = alt.selection_point(name=f"pointed_{key}", fields=["c"], on="pointerover", clear="pointerout")
    fade = alt.condition(pointed, alt.value(1), alt.value(0.15))
    lines = base.mark_line(strokeWidth=1.5, aria=False)
    bars = base.mark_rule(strokeWidth=1, aria=False)
    marks = base.mark_point(size=30, strokeWidth=1.1).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"], opacity=fade,
        tooltip=alt.Tooltip("told:N", title="series"),
    )  # fmt: skip
    last = {p["series"]: {**p, "x": p[key]} for p in have}
    height = max(HEIGHT, 13 * (len(last) + 1))
    rule = alt.Chart(alt.InlineData([{"loss": teacher}])).mark_rule(strokeDash=[5, 3], color=GREY, aria=False)
    return alt.LayerChart(
        layer=[
            *([rule.encode(y=y)] if teacher else []),
            bars.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2="high", color=own["color"], opacity=fade),
            lines.encode(x=x, y=y, color=own["color"], strokeDash=own["strokeDash"], detail=detail, opacity=fade),
            marks.add_params(pointed),
            *labels(list(last.values()), x, scale, height, own),
        ],
        width=width,
        height=height,
        title=f"Loss against {text}",
        description=f"Held-out loss while training, against {text}; bars are the range over seeds.",
    )
