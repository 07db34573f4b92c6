"""Which differences of losses are more than noise, and how losses fall with compute: ties, fronts, exponents."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

from scipy import stats

from bench.report.training_rows import Place, Run

LEVEL = 0.95
LEAST = 3  # points of a front that an exponent is fitted to
BETTER, WORSE, TIE, UNKNOWN = "better", "worse", "tie", "not known"


@dataclass(frozen=True)
class Noise:
    """The standard deviation of a loss's logarithm from seed to seed, pooled; `freedom` its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Result:
    """A series at one place: its mean loss (geometric) over seeds, and what that says beside dense's.

    difference: of the mean to dense's, as a share of dense's; `margin`, half of its interval (all comparisons of a
    place at once). None where there is no dense loss or nothing tells the noise.
    best, last: the ranks that it may have among the series of its place: others outside these are more than noise away.
    """

    runs: tuple[Run, ...]
    loss: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    margin: float | None = None
    verdict: str = UNKNOWN
    best: int | None = None
    last: int | None = None

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def diverged(self) -> int:
        return sum(run.loss is None for run in self.runs)


def noise(runs: Sequence[Run]) -> Noise | None:
    """Pooled over all series and widths of one setting that have several seeds; None where none has."""
    squares, freedom = 0.0, 0
    for losses in _by_series(runs).values():
        logs = [math.log(run.loss) for run in losses if run.loss is not None]
        if len(logs) > 1:
            squares += sum((value - mean(logs)) ** 2 for value in logs)
            freedom += len(logs) - 1
    return Noise(math.sqrt(squares / freedom), freedom) if freedom else None


def results(runs: Sequence[Run]) -> dict[Place, list[Result]]:
    """Every series of every place, best first. The noise is a setting's, over its widths."""
    found: dict[Place, list[Result]] = {}
    by_setting: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_setting[run.place.setting].append(run)
    for some in by_setting.values():
        known = noise(some)
        places: dict[Place, list[Result]] = defaultdict(list)
        for (place, _), own in _by_series(some).items():
            places[place].append(_result(own))
        for place, several in sorted(places.items(), key=lambda item: item[0].width):
            found[place] = _ranked(several, known)
    return found


def _by_series(runs: Sequence[Run]) -> dict[tuple[Place, str], list[Run]]:
    groups: dict[tuple[Place, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.place, run.series].append(run)
    return groups


def _result(runs: Sequence[Run]) -> Result:
    losses = [run.loss for run in runs if run.loss is not None]
    if not losses:
        return Result(tuple(runs), None, None, None)
    return Result(tuple(runs), math.exp(mean(map(math.log, losses))), min(losses), max(losses))


def _ranked(several: Sequence[Result], known: Noise | None) -> list[Result]:
    """With intervals at one level for all comparisons of the place together (Bonferroni)."""
    dense = next((r for r in several if r.first.structure == "dense" and r.loss is not None), None)
    trained = [r for r in several if r.loss is not None]
    pairs = max(1, len(trained) - 1)
    ranked = []
    for result in several:
        if result.loss is None or dense is None or dense.loss is None or known is None:
            ranked.append(result)
            continue
        margin = threshold(known, _count(result), _count(dense), pairs)
        log = math.log(result.loss / dense.loss)
        verdict = TIE if abs(log) <= margin else BETTER if log < 0 else WORSE
        every = len(trained) * (len(trained) - 1) // 2
        apart = [(other, threshold(known, _count(result), _count(other), max(1, every))) for other in trained]
        ahead = sum(math.log(result.loss / (o.loss or 1)) > m for o, m in apart if o is not result)
        behind = sum(math.log((o.loss or 1) / result.loss) > m for o, m in apart if o is not result)
        own = {"difference": math.expm1(log), "margin": margin, "verdict": verdict}
        place = {"best": 1 + ahead, "last": len(trained) - behind}
        ranked.append(Result(result.runs, result.loss, result.low, result.high, **own, **place))
    return sorted(ranked, key=lambda r: (r.loss is None, r.loss or 0, r.first.series))


def threshold(known: Noise, some: int, others: int, pairs: int) -> float:
    """How far logarithms of two means must be apart to be more than noise, when `pairs` are compared."""
    return _quantile(pairs, known.freedom) * known.deviation * math.sqrt(1 / some + 1 / others)


@lru_cache(maxsize=1024)
def _quantile(pairs: int, freedom: int) -> float:
    """Student's, two-sided, with the level shared among `pairs`."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / pairs, freedom))


def _count(result: Result) -> int:
    return sum(run.loss is not None for run in result.runs)


# -- fronts


@dataclass(frozen=True)
class Front:
    """The least loss for each amount of training FLOPs over widths and steps, and a power law fitted to it.

    exponent: b in loss ~ FLOPs ** -b; `low` to `high` its interval, of the fit alone, with as many degrees of freedom
        as there are runs but two. None where points are too few.
    """

    setting: str
    series: str
    structure: str
    points: tuple[tuple[float, float], ...]
    widths: int
    exponent: float | None = None
    low: float | None = None
    high: float | None = None


def front(runs: Sequence[Run]) -> Front:
    """The front of one series in one setting: of whole curves where the rate was constant, else of ends of runs."""
    by_step: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if run.loss is not None:
            for step, loss in run.curve if run.constant else run.curve[-1:]:
                if step:
                    by_step[run.place.width, step].append((run.train_flops * run.tokens * step, loss))
    points = sorted((some[0][0], math.exp(mean(math.log(loss) for _, loss in some))) for some in by_step.values())
    lower: list[tuple[float, float]] = []
    for point in points:
        if not lower or point[1] < lower[-1][1]:
            lower.append(point)
    first = runs[0]
    found = Front(first.place.setting, first.series, first.structure, tuple(lower), len({w for w, _ in by_step}))
    if len(lower) < LEAST or found.widths < 2:
        return found
    line = stats.linregress([math.log(x) for x, _ in lower], [math.log(y) for _, y in lower])
    trained = sum(run.loss is not None for run in runs)  # points of one run share its seed: the runs are what counts
    half = _quantile(1, max(1, trained - 2)) * float(line.stderr)
    slope = -float(line.slope)
    own = (found.setting, found.series, found.structure, found.points, found.widths)
    return Front(*own, exponent=slope, low=slope - half, high=slope + half)


def fronts(runs: Sequence[Run]) -> list[Front]:
    """Of every series that was trained at several widths."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.place.setting, run.series].append(run)
    found = [front(some) for some in groups.values() if len({run.place.width for run in some}) > 1]
    return sorted((f for f in found if f.points), key=lambda f: (f.setting, -(f.exponent or 0)))
