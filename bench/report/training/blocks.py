"""DYAD's own question: what more blocks save in parameters and time, and what they cost in loss; mixes beside them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import altair as alt

from bench.answers.losses import Result
from bench.answers.training_rows import TrainingPlace
from bench.files.vocabulary import MIX
from bench.report.drawing import layout
from bench.report.drawing.figures import Width
from bench.report.drawing.style import GREY
from bench.report.drawing.views import View
from bench.report.training.marks import (
    HEIGHT,
    Looks,
    Trained,
    at_end,
    choices,
    labels,
    looks_of,
    reach,
    records,
    room,
    title,
    x_axis,
    y_axis,
)

GROUP = "Numbers of blocks"
QUANTITIES = {
    "loss": "Loss against the number of blocks",
    "share": "Parameters of the replaced layers, of dense",
    "speed": "Speed-up of a training step over dense (paired)",
}
TRADE = {"share": "Loss against parameters, as blocks grow", "time": "Loss against time of a step, as blocks grow"}


def made(of: Trained) -> list[View]:
    """A view for each place where one structure was trained with several numbers of blocks."""
    found: list[View] = []
    for place, several in of.results.items():
        own = [(r, _blocks(r)) for r in several if r.loss is not None and r.first.budget is None]
        counts = {(r.first.structure, n) for r, n in own if n}
        if any(sum(name == other for name, _ in counts) > 1 for other, _ in counts):
            found.append(_view(of, place, own, f"blocks-{len(found) + 1}"))
    return found


def _blocks(result: Result) -> int | None:
    """The number of blocks that a series was trained with, in the words of its name: `dyad_it n_blocks=8`."""
    match = re.search(r"\bn_blocks=(\d+)\b", result.first.series)
    return int(match[1]) if match and not result.first.control else None


def _view(of: Trained, place: TrainingPlace, own: Sequence[tuple[Result, int | None]], slug: str) -> View:
    values = []
    for result, blocks in own:
        time = of.times.get((place, result.first.series))
        record = at_end(result, of) | {"blocks": blocks, "mix": MIX in result.first.structure}
        record |= {"label": result.first.structure, "speed": time and time.speedup}
        record |= {"speed_low": time and time.ratio.q1, "speed_high": time and time.ratio.q3}
        values.append(record | {"time": time and 1 / time.speedup})
    have = {key: name for key, name in QUANTITIES.items() if any(r["blocks"] and r[key] is not None for r in values)}
    trades = {key: name for key, name in TRADE.items() if sum(r[key] is not None and r["blocks"] is not None
                                                              for r in values) > 1}  # fmt: skip
    charts = {name: partial(_against, key, name, values, of.look) for key, name in have.items()}
    charts |= {name: partial(_trade, key, name, values, of.look) for key, name in trades.items()}
    said = "Lines join one variant's numbers of blocks, mixes of two variants (they take turns by layer) stand alone. "
    said += "Bars of losses: two that meet are a tie; of speed-ups: quartiles. The grey line is dense."
    structures = [r.first.structure for r, _ in own]
    return of.view(GROUP, slug, title(place), choices(place), [said], charts, values, structures)


def _against(key: str, name: str, values: Sequence[Mapping[str, Any]], look: Looks, width: Width) -> alt.LayerChart:
    """One quantity against the number of blocks."""
    have = [r for r in values if r["blocks"] and r[key] is not None]
    low, high = {"loss": ("low", "high"), "speed": ("speed_low", "speed_high")}.get(key, (key, key))
    dense = [r for r in values if r["c"] == look["dense"][0]]
    level = [{"y": r["loss"] if key == "loss" else 1.0} for r in dense]
    ends = reach(have) if key == "loss" else [v for r in have for v in (r[low], r[high])]
    limits = room(ends + [v["y"] for v in level])
    scale, axis = y_axis(limits, ".2~%" if key == "share" else "~g")
    x = _blocks_axis(have)
    return _layers(BlocksPlot(key, low, high, "blocks", level, x, scale, axis, have), name, look, width)


def _trade(key: str, name: str, values: Sequence[Mapping[str, Any]], look: Looks, width: Width) -> alt.LayerChart:
    have = [r for r in values if r["blocks"] and r[key] is not None]
    level = [{"y": r["loss"]} for r in values if r["c"] == look["dense"][0]]
    scale, axis = y_axis(room(reach(have) + [v["y"] for v in level]))
    text = "parameters, of dense" if key == "share" else "time of a step, of dense (paired)"
    x = x_axis([r[key] for r in have], text, share=True)
    return _layers(BlocksPlot("loss", "low", "high", key, level, x, scale, axis, have), name, look, width)


def _blocks_axis(have: Sequence[Mapping[str, Any]]) -> alt.X:
    counts = sorted({r["blocks"] for r in have})
    scale = alt.Scale(type="log", base=2, domain=layout.limits(counts, 1.1), nice=False)
    return alt.X("x:Q", scale=scale, axis=alt.Axis(values=counts, format="d", title="n_blocks"))


@dataclass(frozen=True)
class BlocksPlot:
    """What one chart draws: `key`, with bars from `low` to `high`, against `across`, and dense's level."""

    key: str
    low: str
    high: str
    across: str
    level: Sequence[Mapping[str, float]]
    x: alt.X
    scale: alt.Scale
    axis: alt.Axis
    have: Sequence[Mapping[str, Any]]

    def y(self, field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=self.scale, axis=self.axis)


def _layers(plot: BlocksPlot, name: str, look: Looks, width: Width) -> alt.LayerChart:
    own, x, y, across = looks_of(look), plot.x, plot.y(plot.key), plot.across
    base = records(across).transform_filter("isValid(datum.blocks)").transform_filter(f"isValid(datum.{plot.key})")
    flat = alt.Chart(alt.InlineData(list(plot.level))).mark_rule(color=GREY, strokeWidth=1.2, aria=False)
    lines = base.mark_line(strokeWidth=1.5, aria=False)
    bars = base.mark_rule(strokeWidth=1, opacity=0.6, aria=False)
    points = base.mark_point(size=52, strokeWidth=1.3, opacity=1).encode(
        x=x, y=y, color=own["color"], shape=own["shape"], fill=own["fill"],
        tooltip=[alt.Tooltip("told:N", title="series"), alt.Tooltip("blocks:Q", title="n_blocks")],
    )  # fmt: skip
    ordered = sorted(plot.have, key=lambda r: r["blocks"])
    last = {r["label"]: {**r, "x": r[across], "loss": r[plot.key]} for r in ordered}
    named = labels(list(last.values()), x, plot.scale, HEIGHT, own)
    return alt.LayerChart(
        layer=[
            flat.encode(y=plot.y("y")),
            lines.encode(x=x, y=y, color=own["color"], strokeDash=own["strokeDash"], detail="c:N",
                         order=alt.Order("blocks:Q")),
            bars.encode(x=x, y=plot.y(plot.low), y2=plot.high, color=own["color"]),
            points,
            *named,
        ],
        width=width,
        height=HEIGHT,
        title=name,
        description=f"{name}, one line for each variant.",
    )  # fmt: skip
