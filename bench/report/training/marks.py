"""What charts of training runs share: looks by id, records of series and of their curves, axes, labels at the edge."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bench.answers.losses import Result
from bench.answers.training_rows import Time, TrainingPlace, TrainingRun
from bench.files.vocabulary import MIX, NARROW
from bench.report.drawing import layout, style, words
from bench.report.drawing.figures import Width, encodings
from bench.report.drawing.sections import CONTROL, LABEL_GAP, RECORDS
from bench.report.drawing.style import GREY, Style
from bench.report.drawing.views import View
from bench.report.sweep import charts
from bench.report.training.claims import difference

HEIGHT = 340
REMOVED = "removed"
SECONDS = "seconds of steps, as paired with dense's"
Looks = Mapping[str, tuple[str, Style]]  # by structure: what charts call it, and its look
Times = Mapping[tuple[TrainingPlace, str], Time]


@dataclass(frozen=True)
class Trained:
    """What all charts of one training file are drawn from; `stem` begins the names of its figures."""

    results: Mapping[TrainingPlace, Sequence[Result]]
    times: Times
    look: Looks
    caption: Sequence[str]
    stem: str

    def time_of(self, result: Result) -> Time | None:
        """The time of a series, whatever it started from."""
        return self.times.get((result.first.place, result.first.series.partition(", ")[0]))

    def view(
        self,
        group: str,
        slug: str,
        heading: str,
        choices: Mapping[str, str],
        said: Sequence[str],
        charts: Mapping[str, Callable[[Width], alt.LayerChart]],
        records: Sequence[Mapping[str, Any]],
        structures: Collection[str] = (),
        columns: int = 2,
    ) -> View:
        """A view of charts by heading; `said` stands before the file's own caption."""
        slug = f"{self.stem}-{slug}"
        return View(
            group=group,
            slug=slug,
            title=heading,
            choices=choices,
            caption=[*said, *self.caption],
            draw=lambda width: {name: draw(width) for name, draw in charts.items()},
            rows=(),
            records=records,
            figures={slug: list(charts)},
            legend=legend(self.look, structures),
            columns=columns,
        )


def choices(place: TrainingPlace) -> dict[str, str]:
    """How a reader finds a view of a place."""
    return {"Task": place.setting, "Width": str(place.width)}


def looks(names: Collection[str], runs: Sequence[TrainingRun]) -> Looks:
    """Of structures as everywhere in the report; of controls grey; of mixes DYAD's colour and marks of their own."""
    mixes = sorted({run.structure for run in runs if MIX in run.structure})
    own = style.by_name(names)
    for i, name in enumerate(mixes):
        marker = style.MARKERS[i % len(style.MARKERS)]
        own[name] = f"m{i}", Style(style.DYAD, marker, style.DASHES[2], 1.5, True)
    cross = Style(GREY, style.MARKERS[6], style.DASHES[4], 1.1, False)
    return own | {NARROW: ("narrow", CONTROL), REMOVED: ("removed", cross)}


def legend(found: Looks, structures: Collection[str]) -> list[tuple[str, str, Style]]:
    return [(id, name, look) for name, (id, look) in found.items() if name in structures]


def told(result: Result, time: Time | None) -> str:
    """A line for a tooltip: the loss with its seeds, what it says beside dense's, and the step's time."""
    assert result.loss is not None
    seeds = len(result.runs) - result.diverged
    spread = f", {result.low:.4g} to {result.high:.4g} over {seeds} seeds" if seeds > 1 else ", one seed"
    beside = "" if result.first.structure == "dense" else f"; {difference(result)}"
    faster = "" if time is None else f"; a step at {words.ratio(time.speedup)} dense's speed"
    return f"{result.first.series}: loss {result.loss:.4g}{spread}{beside}{faster}"


def step_seconds(place: TrainingPlace, series: str, structure: str, times: Times) -> float | None:
    """Dense's step time at this place (the median of those paired with it) over the series' paired ratio."""
    dense = sorted(t.dense_seconds for (at, _), t in times.items() if at == place)
    if not dense:
        return None
    middle = dense[len(dense) // 2]
    if structure == "dense":
        return middle
    own = times.get((place, series.partition(", ")[0]))
    return middle / own.speedup if own else None


def at_end(result: Result, of: Trained) -> dict[str, Any]:
    """What is known of a series at its end: its loss, the bar of its noise, and what it took."""
    first = result.first
    assert result.loss is not None
    total = first.tokens * first.steps
    seconds = step_seconds(first.place, first.series, first.structure, of.times)
    bar = result.bar or 0.0
    return {
        "c": of.look[first.structure][0],
        "label": first.series,
        "loss": result.loss,
        "low": result.loss * math.exp(-bar),
        "high": result.loss * math.exp(bar),
        "share": max(first.shares["replaced_params_share"], 0.0),
        "params": first.params,
        "flops": first.train_flops * total,
        "executed": first.executed * total,
        "seconds": seconds * first.steps if seconds else None,
        "told": told(result, of.time_of(result)),
    }


def room(values: Sequence[float]) -> list[float]:
    """Limits of a logarithmic axis: the values and a twentieth of their range on either side."""
    low, high = min(values), max(values)
    pad = max(1.005, (high / low) ** 0.05)
    return [low / pad, high * pad]


def ticks(limits: Sequence[float]) -> dict[str, Any]:
    """Round numbers; where limits are near each other, those that Vega finds between them."""
    narrow = limits[1] < limits[0] * 1.8
    return {"tickCount": 6} if narrow else {"values": layout.ticks(*limits)}


def reach(some: Sequence[Mapping[str, Any]]) -> list[float]:
    """What an axis of losses must hold: bars too, but none further than the losses' own range from them.

    What has more than 1.6 times the median's loss stands at the upper edge, so that it does not press the others
    together.
    """
    losses = sorted(r["loss"] for r in some)
    least, most = losses[0], min(losses[-1], 1.6 * losses[len(losses) // 2])
    further = max(1.1, most / least)
    bars = [v for r in some for v in (max(r["low"], least / further), min(r["high"], most * further))]
    return [*(v for v in bars if v <= most * further), least, most]


def ordered(results: Mapping[TrainingPlace, Sequence[Result]]) -> dict[TrainingPlace, Sequence[Result]]:
    """Tasks as they come, of each the largest width first: what a reader sees first."""
    tasks = list(dict.fromkeys(place.setting for place in results))
    return dict(sorted(results.items(), key=lambda item: (tasks.index(item[0].setting), -item[0].width)))


def y_axis(limits: Sequence[float], form: str = ".3~g") -> tuple[alt.Scale, alt.Axis]:
    """Of losses: logarithmic."""
    scale = alt.Scale(type="log", domain=list(limits), nice=False, clamp=True)
    return scale, alt.Axis(title=None, format=form, **ticks(limits))


def x_axis(values: Sequence[float], title: str, *, linear: bool = False, unit: str = "", share: bool = False) -> alt.X:
    """Of a cost: logarithmic, or from zero; a `share` is written in percent."""
    if linear:
        scale = alt.Scale(domain=[0, max(values) * 1.02 or 1], nice=False)
        return alt.X("x:Q", scale=scale, axis=alt.Axis(title=title, format=".0%" if share else "~s", tickCount=6))
    limits = layout.limits(values, 1.1)
    written = "format(datum.value, '.3~%')" if share else charts.written(unit)
    axis = alt.Axis(values=layout.ticks(*limits), title=title, labelExpr=written, labelOverlap="greedy")
    return alt.X("x:Q", scale=alt.Scale(type="log", domain=limits, nice=False), axis=axis)


def labels(
    ends: Sequence[Mapping[str, Any]], x: alt.X, scale: alt.Scale, height: int, look: Mapping[str, Any]
) -> list[alt.Chart]:
    """Markers and names right of the plot, at the heights of some records (c, x, loss, label) or near them."""
    placed = layout.beside({str(i): e["loss"] for i, e in enumerate(ends)}, scale.domain, height, LABEL_GAP)
    values = [{**{k: e[k] for k in ("c", "x", "loss", "label")}, "at": placed[str(i)]} for i, e in enumerate(ends)]
    base, edge = alt.Chart(alt.InlineData(values)), alt.value("width")
    y, at = alt.Y("loss:Q", scale=scale), alt.Y("at:Q", scale=scale)
    leaders = base.mark_rule(strokeWidth=0.6, x2Offset=8, color=GREY, opacity=0.6, aria=False)
    markers = base.mark_point(size=36, strokeWidth=1.2, opacity=1, xOffset=13, aria=False)
    texts = base.mark_text(align="left", xOffset=20, limit=150, fontSize=10.5, aria=False)
    return [
        leaders.encode(x=x, y=y, x2=edge, y2="at"),
        markers.encode(x=edge, y=at, color=look["color"], shape=look["shape"], fill=look["fill"]),
        texts.encode(x=edge, y=at, text="label:N"),
    ]


def records(field: str) -> alt.Chart:
    """The view's records, with one field of them as `x`; those without it are left out."""
    return alt.Chart(RECORDS).transform_filter(f"isValid(datum.{field})").transform_calculate(x=f"datum.{field}")


def looks_of(found: Looks) -> dict[str, Any]:
    """Encodings of all looks: charts side by side in a figure share their scales."""
    return encodings(dict(found.values()))


def title(place: TrainingPlace, several: bool = True) -> str:
    return f"{place.setting}, width {place.width}" if several else place.setting
