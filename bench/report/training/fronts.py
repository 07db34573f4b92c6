"""How losses fall with compute: the least loss for each amount of it over widths and steps, and a power law of that."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from scipy import stats

from bench.answers.losses import quantile
from bench.files.training_rows import TrainingRun
from bench.report.drawing import layout

LEAST = 3  # points of a front that an exponent is fitted to


@dataclass(frozen=True)
class Front:
    """The least loss for each amount of training FLOPs over widths and steps, and a power law fitted to it.

    exponent: b in loss = factor * FLOPs ** -b; `low` to `high` its interval, of the fit alone, with as many degrees of
        freedom as there are runs but two. None where points are too few.
    """

    setting: str
    series: str
    structure: str
    budget: str | None
    control: bool
    points: tuple[tuple[float, float], ...]
    widths: int
    exponent: float | None = None
    low: float | None = None
    high: float | None = None
    factor: float | None = None


def front(runs: Sequence[TrainingRun]) -> Front:
    """The front of one series in one setting, of the ends of its runs: before them the rate is still to fall."""
    ends: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if run.loss is not None:
            step, loss = run.curve[-1]
            ends[run.place.width, step].append((run.train_flops * run.tokens * step, loss))
    points = sorted((some[0][0], math.exp(mean(math.log(loss) for _, loss in some))) for some in ends.values())
    lower = [points[i] for i in layout.front([(cost, -loss) for cost, loss in points])]
    first = runs[0]
    found = Front(
        setting=first.place.setting,
        series=first.series,
        structure=first.structure,
        budget=first.budget,
        control=first.control,
        points=tuple(lower),
        widths=len({w for w, _ in ends}),
    )
    if len(lower) < LEAST or found.widths < 2:
        return found
    line = stats.linregress([math.log(x) for x, _ in lower], [math.log(y) for _, y in lower])
    trained = sum(run.loss is not None for run in runs)  # points of one run share its seed: the runs are what counts
    half = quantile(1, max(1, trained - 2)) * float(line.stderr)
    slope = -float(line.slope)
    return replace(found, exponent=slope, low=slope - half, high=slope + half, factor=math.exp(line.intercept))


def fronts(runs: Sequence[TrainingRun]) -> list[Front]:
    """Of every series that was trained at several widths, the steepest first."""
    groups: dict[tuple[str, str], list[TrainingRun]] = defaultdict(list)
    for run in runs:
        groups[run.place.setting, run.series].append(run)
    found = [front(some) for some in groups.values() if len({r.place.width for r in some}) > 1]
    return sorted((f for f in found if f.points), key=lambda f: (f.setting, -(f.exponent or 0)))
