"""Charts of one place: losses against cost, while training, against the number of blocks; compute-optimal fronts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from bench.answers.losses import Result
from bench.report.drawing import style, words
from bench.report.drawing.plot import Axis, Chart, Guide, PlotPoint, PlotSeries
from bench.report.drawing.style import GREY
from bench.report.training.fronts import Front
from bench.report.training.trained import Trained, domain, look

SECONDS = "seconds of steps, as paired with dense's"
COSTS = {
    "share": Axis("parameters of the replaced layers, of dense", "%", log=False),
    "executed": Axis("FLOPs of the training run, as executed"),
    "seconds": Axis(SECONDS, "s"),
}
COLOURED = 2  # structures of a chart of curves that have colours beside DYAD's best and the controls


def costs(of: Trained, trained: Sequence[Result], budget: str | None) -> list[Chart]:
    """Losses at the end of runs against what they took, where they differ in it; the grey line is dense."""
    ends = [(result, of.at_end(result)) for result in trained]
    y = Axis("loss", "#", domain=domain([end["y"] for _, end in ends]))
    charts = []
    for key, axis in COSTS.items():
        have = [(result, end) for result, end in ends if end[key] is not None]
        if len(have) < 2 or (key == "share" and budget):
            continue
        series = [
            PlotSeries(
                result.first.structure if result.first.budget else result.first.series, look(result),
                [PlotPoint(end[key], end["y"], of.told(result), end["low"], end["high"])], line=False,
            )
            for result, end in have
        ]  # fmt: skip
        level = next((end["y"] for result, end in have if result.first.structure == "dense"), None)
        xs = [end[key] for _, end in have]
        guides = [Guide([(min(xs), level), (max(xs), level)])] if level else []
        charts.append(Chart(f"Loss against {axis.title.partition(', as')[0]}", axis, y, series, guides, beside=True))
    return charts


def curves(of: Trained, own: Sequence[Result]) -> list[Chart]:
    """Mean losses while training, with their range over seeds."""
    axes: dict[str, tuple[Axis, Callable[[Result], float | None]]] = {
        "FLOPs": (Axis("FLOPs of training, as executed"), lambda r: r.first.tokens * r.first.executed),
        "time": (Axis(SECONDS, "s"), of.step_seconds),
    }
    coloured = _coloured(own)
    charts = []
    for name, (axis, of_step) in axes.items():
        series = [
            PlotSeries(r.first.structure, look(r) if r in coloured else style.CONTROL, points, named=r in coloured,
                       faint=r not in coloured)
            for r in sorted(own, key=lambda r: r in coloured)
            for step in [of_step(r)] if step
            for points in [_points(of, r, step)]
        ]  # fmt: skip
        if len(series) > 1:
            charts.append(Chart(f"Loss while training against {name}", axis, Axis("loss", "#"), series))
    return charts


def _coloured(own: Sequence[Result]) -> list[Result]:
    structures = [r for r in own if not r.first.control and r.first.structure != "dense"]
    dyad = [r for r in structures if style.dyad(r.first.structure)][:1]
    others = [r for r in structures if r not in dyad][:COLOURED]
    return [*(r for r in own if r.first.control or r.first.structure == "dense"), *dyad, *others]


def _points(of: Trained, result: Result, of_step: float) -> list[PlotPoint]:
    by_step: dict[int, list[float]] = {}
    for run in result.runs:
        for step, loss in run.curve if run.loss is not None else ():
            by_step.setdefault(step, []).append(loss)
    return [
        PlotPoint(step * of_step, math.exp(mean(map(math.log, some))), of.told(result), min(some), max(some))
        for step, some in sorted(by_step.items())
        if step  # what was never trained has no place on a logarithmic axis
    ]


# -- DYAD's own question: what more blocks save, and what they cost


def blocks(of: Trained, several: Sequence[Result]) -> list[Chart]:
    """Loss and speed against n_blocks, where one structure was trained with several numbers of them."""
    lines: dict[str, list[tuple[int, Result]]] = {}
    for result in several:
        match = re.search(r"\bn_blocks=(\d+)\b", result.first.series)
        if match and result.loss is not None and result.first.budget is None and not result.first.control:
            lines.setdefault(result.first.structure, []).append((int(match[1]), result))
    if not any(len(found) > 1 for found in lines.values()):
        return []
    counts = sorted({n for found in lines.values() for n, _ in found})
    x = Axis("n_blocks", "#", values=counts)

    def chart(title: str, unit: str, level: float | None, point: Callable[[int, Result], PlotPoint | None]) -> Chart:
        series = [
            PlotSeries(name, look(found[0][1]), points)
            for name, found in lines.items()
            if (points := [p for n, r in sorted(found, key=lambda one: one[0]) if (p := point(n, r))])
        ]
        guides = [Guide([(counts[0], level), (counts[-1], level)])] if level else []
        return Chart(title, x, Axis("", unit), series, guides)

    def loss(n: int, result: Result) -> PlotPoint:
        end = of.at_end(result)
        return PlotPoint(n, end["y"], of.told(result), end["low"], end["high"])

    def speed(n: int, result: Result) -> PlotPoint | None:
        time = of.time_of(result)
        return PlotPoint(n, time.speedup, of.told(result), time.ratio.q1, time.ratio.q3) if time else None

    dense = next((r.loss for r in several if r.first.structure == "dense"), None)
    charts = [chart("Loss against the number of blocks", "#", dense, loss)]
    timed = chart("Speed-up of a training step against the number of blocks", words.TIMES, 1.0, speed)
    return [*charts, *([timed] if timed.series else [])]


# -- compute-optimal fronts


def fronts(several: Sequence[Front]) -> list[Chart]:
    """Least losses for each amount of training FLOPs, with fitted power laws; and the exponents."""
    fitted = [f for f in several if f.exponent is not None]
    if not fitted:
        return []
    series = [
        PlotSeries(f.structure, style.look(f.structure, f.control and f.structure != "dense"),
                   [PlotPoint(x, y, _said(f)) for x, y in f.points], line=False)
        for f in several
    ]  # fmt: skip
    guides = [
        Guide([(x, f.factor * x**-f.exponent) for x in (f.points[0][0], f.points[-1][0])], s.look.colour, s.look.dash)
        for f, s in zip(several, series, strict=True)
        if f.exponent is not None and f.factor is not None
    ]
    title, height = "Least loss against FLOPs of training", max(340, 13 * (len(series) + 1))
    return [Chart(title, Axis("FLOPs of training"), Axis("loss", "#"), series, guides, height), _exponents(fitted)]


def _exponents(fitted: Sequence[Front]) -> Chart:
    """One line for each series, the steepest first."""
    ordered = sorted(fitted, key=lambda f: f.exponent or 0.0)
    series = [
        PlotSeries(f"{f.structure} {f.exponent:.3f}", style.look(f.structure, f.control and f.structure != "dense"),
                   [PlotPoint(f.exponent or 0.0, float(i), _said(f), left=f.low, right=f.high)], line=False)
        for i, f in enumerate(ordered)
    ]  # fmt: skip
    dense = next((f for f in fitted if f.structure == "dense"), None)
    top = len(ordered) - 0.3
    ends = (dense.low, dense.high) if dense else ()
    band = [Guide([(end, -0.7), (end, top)], GREY, (2, 2)) for end in ends if end is not None]
    x = Axis("exponent: larger falls faster", "#", log=False)
    y = Axis("", log=False, domain=(-0.7, top), values=[])
    return Chart("Exponents", x, y, series, band, 17 * len(ordered) + 8)


def _said(front: Front) -> Mapping[str, str]:
    if front.exponent is None or front.low is None or front.high is None:
        return {"title": front.series, "exponent": "too few points"}
    return {"title": front.series, "exponent": f"{front.exponent:.3f} ({front.low:.3f} to {front.high:.3f})"}
