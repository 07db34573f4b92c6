"""Every structure's loss beside dense's: the difference with its noise, ties shown as ties."""

import math
from collections.abc import Sequence

from bench.answers.losses import TIE, Result
from bench.files.vocabulary import DENSE, REMOVED
from bench.report.drawing import words
from bench.report.drawing.plot import Axis, Chart, Guide, PlotPoint, PlotSeries
from bench.report.training.trained import Trained, look, within

ROW = 17  # pixels of a series
MOST = 4.0  # times dense's loss: what is further stands at the edge


def chosen(several: Sequence[Result], budget: str | None) -> list[Result]:
    """Series at a budget and the controls, those with a difference from dense that has a known noise."""
    known = [r for r in several if r.difference is not None and r.margin is not None and r.first.structure != DENSE]
    return [r for r in known if within(r, budget)]


def chart(of: Trained, kept: Sequence[Result], title: str) -> Chart:
    """A line for each series, from the least loss down; the heights are ranks."""
    ordered = sorted(kept, key=lambda r: -(r.difference or 0.0))
    series, inside = [], [1.0]
    for height, result in enumerate(ordered):
        ratio, margin, name = 1 + (result.difference or 0.0), result.margin or 0.0, result.first
        low, high = ratio * math.exp(-margin), ratio * math.exp(margin)
        tie = result.verdict == TIE
        percent = f"{(ratio - 1) * 100:+.1f} %" if ratio < 2 else words.ratio(ratio)
        label = f"{name.structure if name.budget else name.series} {'tie' if tie else percent}"
        point = PlotPoint(ratio, float(height), of.told(result), left=low, right=high)
        series.append(PlotSeries(label, look(result), [point], line=False, faint=tie))
        inside += [low, high] if name.structure != REMOVED or ratio < 1 else []
    x = Axis("loss over dense's: left of the line is better", "+%", domain=_domain(inside))
    y = Axis("", log=False, domain=(-0.7, len(ordered) - 0.3), values=[])
    dense = Guide([(1.0, -0.7), (1.0, len(ordered) - 0.3)], "currentColor", strokeWidth=1.6)
    return Chart(title, x, y, series, [dense], ROW * len(ordered) + 8)


def _domain(inside: Sequence[float]) -> tuple[float, float]:
    pad = max(1.01, (max(inside) / min(inside)) ** 0.05)
    return min(inside) / pad, max(min(max(inside) * pad, MOST), 1.05)
