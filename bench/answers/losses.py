"""Which differences of losses are more than noise, and how long runs were."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

from scipy import special  # not stats, which takes as long to import as torch

from bench.files.training_rows import TrainingPlace, TrainingRun
from bench.files.vocabulary import REMOVED

LEVEL, POWER = 0.95, 0.8
BETTER, WORSE, TIE, UNKNOWN = "better", "worse", "tie", "not known"


@dataclass(frozen=True)
class Noise:
    """The standard deviation of a loss's logarithm from seed to seed, pooled; `freedom` its degrees of freedom.

    paired: the seed draws the task, and what that adds to all series of a place alike is taken out.
    """

    deviation: float
    freedom: int
    paired: bool = False

    @property
    def words(self) -> str:
        """What intervals rest on."""
        how = "beside the others of their seed, which draws the task," if self.paired else "from seed to seed"
        return f"Losses vary by {self.deviation * 100:.2g} % {how} over {self.freedom} degrees of freedom."


@dataclass(frozen=True)
class Result:
    """A series at one place: its mean loss (geometric) over seeds, and what that says beside dense's.

    difference: of the mean to dense's, as a share of dense's; `margin`, half of its logarithm's interval (all of a
    place at once). None where there is no dense loss or nothing tells the noise.
    bar: how far the ends of a bar around the loss are from it (in logarithms), drawn so that bars of two series which
        are a tie meet.
    told: the smallest difference to dense that the run would have told from none, in four runs of five.
    best, last: first and last rank compatible with the noise, among the series of its place.
    """

    runs: tuple[TrainingRun, ...]
    loss: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    margin: float | None = None
    bar: float | None = None
    told: float | None = None
    verdict: str = UNKNOWN
    best: int | None = None
    last: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the difference's interval; a tie where 0 lies between them."""
        if self.difference is None or self.margin is None:
            return None
        log = math.log1p(self.difference)
        return math.expm1(log - self.margin), math.expm1(log + self.margin)

    @property
    def first(self) -> TrainingRun:
        return self.runs[0]

    @property
    def diverged(self) -> int:
        return sum(run.loss is None for run in self.runs)

    @property
    def seeds(self) -> int:
        """Those that did not diverge."""
        return len(self.runs) - self.diverged

    @property
    def neighbour(self) -> tuple[float, float] | None:
        """The better of the two rates beside the chosen one, and by what share its loss is higher."""
        rates = sorted({t.lr for run in self.runs for t in run.by_rate})
        if self.loss is None or self.first.lr not in rates:
            return None
        at = rates.index(self.first.lr)
        costs = []
        for lr in (*rates[max(0, at - 1) : at], *rates[at + 1 : at + 2]):
            tried = [t.loss for run in self.runs for t in run.by_rate if t.lr == lr]
            logs = [math.log(loss) for loss in tried if loss]
            costs.append((math.exp(mean(logs)) / self.loss - 1 if len(logs) == len(tried) else math.inf, lr))
        return min(costs)[::-1] if costs else None


def noise(runs: Sequence[TrainingRun]) -> Noise | None:
    """Pooled over all series and widths of one setting that have several seeds; None where none has.

    Left out is the network without the layers: it is far off, and its noise not that of the others.
    """
    squares, freedom, paired = 0.0, 0, all(run.paired for run in runs)
    places: dict[TrainingPlace, list[dict[int, float]]] = defaultdict(list)
    for (place, _), own in _by_series([run for run in runs if run.structure != REMOVED]).items():
        places[place].append({run.seed: math.log(run.loss) for run in own if run.loss is not None})
    for several in places.values():
        shared = _of_seeds(several) if paired else {}
        rows = [[v - shared.get(seed, 0.0) for seed, v in logs.items()] for logs in several if len(logs) > 1]
        squares += sum((v - mean(row)) ** 2 for row in rows for v in row)
        freedom += sum(len(row) - 1 for row in rows) - max(0, len(shared) - 1)
    return Noise(math.sqrt(squares / freedom), freedom, paired) if freedom > 0 else None


def _of_seeds(several: Sequence[dict[int, float]]) -> dict[int, float]:
    """What each seed adds to the series of a place that have all seeds: a randomized block design's blocks."""
    seeds = {seed for logs in several for seed in logs}
    whole = [logs for logs in several if len(logs) == len(seeds)]
    return {seed: mean(logs[seed] - mean(logs.values()) for logs in whole) for seed in seeds if whole}


def results(runs: Sequence[TrainingRun]) -> dict[TrainingPlace, list[Result]]:
    """Every series of every place, best first. The noise is a setting's, over its widths."""
    found: dict[TrainingPlace, list[Result]] = {}
    by_setting: dict[str, list[TrainingRun]] = defaultdict(list)
    for run in runs:
        by_setting[run.place.setting].append(run)
    for some in by_setting.values():
        known = noise(some)
        places: dict[TrainingPlace, list[Result]] = defaultdict(list)
        for (place, _), own in _by_series(some).items():
            places[place].append(_result(own))
        for place, several in sorted(places.items(), key=lambda item: item[0].width):
            found[place] = _ranked(several, known)
    return found


def _by_series(runs: Sequence[TrainingRun]) -> dict[tuple[TrainingPlace, str], list[TrainingRun]]:
    groups: dict[tuple[TrainingPlace, str], list[TrainingRun]] = defaultdict(list)
    for run in runs:
        groups[run.place, run.series].append(run)
    return groups


def _result(runs: Sequence[TrainingRun]) -> Result:
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
        margin = threshold(known, result.seeds, dense.seeds, pairs)
        log = math.log(result.loss / dense.loss)
        verdict = TIE if abs(log) <= margin else BETTER if log < 0 else WORSE
        every = len(trained) * (len(trained) - 1) // 2
        apart = [(other, threshold(known, result.seeds, other.seeds, max(1, every))) for other in trained]
        ahead = sum(math.log(result.loss / (o.loss or 1)) > m for o, m in apart if o is not result)
        behind = sum(math.log((o.loss or 1) / result.loss) > m for o, m in apart if o is not result)
        # two of one seed count meet just where they are a tie; of others a little before, by 4 % at three seeds and one
        bar = threshold(known, result.seeds, result.seeds, max(1, every)) / 2
        told = margin * (1 + one_sided(known.freedom) / quantile(pairs, known.freedom))
        own = {"difference": math.expm1(log), "margin": margin, "verdict": verdict, "bar": bar}
        own["told"] = math.expm1(told)
        place = {"best": 1 + ahead, "last": len(trained) - behind}
        ranked.append(Result(result.runs, result.loss, result.low, result.high, **own, **place))
    return sorted(ranked, key=lambda r: (r.loss is None, r.loss or 0, r.first.series))


def apart(one: Result, other: Result) -> float | None:
    """The logarithm of the first's loss over the other's; 0 where they are a tie, None where their noise is unknown."""
    if one.loss is None or other.loss is None or one.bar is None or other.bar is None:
        return None
    log = math.log(one.loss / other.loss)
    return 0.0 if abs(log) <= one.bar + other.bar else log


def budgets(several: Sequence[Result]) -> list[str | None]:
    """Budgets of structures, the one that most of them have first, none last."""
    counts = Counter(r.first.budget for r in several if not r.first.control)
    return sorted(counts, key=lambda budget: (budget is None, -counts[budget], budget or ""))


def threshold(known: Noise, some: int, others: int, pairs: int) -> float:
    """How far logarithms of two means must be apart to be more than noise, when `pairs` are compared."""
    return quantile(pairs, known.freedom) * known.deviation * math.sqrt(1 / some + 1 / others)


@lru_cache(maxsize=1024)
def quantile(pairs: int, freedom: int) -> float:
    """Student's, two-sided, with the level shared among `pairs`."""
    return float(special.stdtrit(freedom, 1 - (1 - LEVEL) / 2 / pairs))


@lru_cache(maxsize=1024)
def one_sided(freedom: int) -> float:
    """Student's, up to which an estimate falls short of the truth in as many runs of five as POWER says."""
    return float(special.stdtrit(freedom, POWER))


@dataclass(frozen=True)
class Length:
    """How long the runs of a place were, and by how much dense's loss still fell over the last half of its steps."""

    steps: tuple[int, ...]  # several where a control had other steps
    tokens: float  # of one step
    fell: float | None  # as a share of the loss at half time


def length(several: Sequence[Result]) -> Length:
    """Of the results of one place."""
    first = next((r for r in several if r.first.structure == "dense"), several[0]).first
    half = [(step, loss) for step, loss in first.curve if 0 < step <= first.steps / 2] or list(first.curve[:1])
    fell = None if first.loss is None or not half else 1 - first.loss / half[-1][1]
    return Length(tuple(sorted({r.first.steps for r in several})), first.tokens, fell)
