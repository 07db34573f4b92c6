"""What a file of `bench train` says of every structure: its loss beside dense's, with an interval and what it rests on.

A row is one network: one seed, at the rate that was best over all seeds on the tune part. Everything else is derived.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import mean
from typing import Annotated

from bench.files import declared
from bench.files.declared import Key, Reader
from bench.files.fields import Fields
from bench.files.vocabulary import DENSE

LEVEL, POWER = 0.95, 0.8
REMOVED = "removed"  # the network without the layers, far off: its noise is not that of the others


@dataclass(frozen=True, kw_only=True)
class RateTry:
    """A learning rate, run at full length: this seed's loss where rates are chosen, and where it is reported."""

    lr: declared.Number
    tune: declared.Number | None  # None: it diverged
    loss: declared.Number | None


def _tries(fields: Fields, key: str) -> tuple[RateTry, ...]:
    return tuple(declared.read(RateTry, one) for one in fields.each(key))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One trained network that is reported."""

    setting: declared.Name
    width: declared.Count
    task: declared.Name
    structure: declared.Name
    series: declared.Name
    way: Annotated[str, declared.choice("control", "structure")]
    budget: declared.Name | None
    seed: Annotated[int, Reader(lambda fields, key: int(fields.within(key, 0, 1e9)))]
    paired: declared.Flag  # the seed draws the task too, so that runs of one seed belong together
    lr: declared.Number
    rate_at_end: declared.Flag  # the best of those tried, extended once, was still the largest or smallest
    by_rate: Annotated[tuple[RateTry, ...], Reader(_tries)]
    loss: declared.Number | None = None  # None: it diverged
    params: declared.Number
    share: Annotated[float, declared.within(0, 1e6), Key("replaced_params_share")]


@dataclass(frozen=True)
class Comparison:
    """A series at one place beside dense.

    loss: geometric mean over seeds. difference: to dense's, as a share of it, between `low` and `high` at 95 % for all
    series of the place together; None where there is no dense loss or one seed alone.
    told: the smallest difference that the run would have told from none, in four runs of five.
    rests_on: what the interval is made from, in words.
    neighbour: the better of the two rates beside the chosen one, and what it costs, as a share of the loss.
    """

    first: Trained
    seeds: int
    loss: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    told: float | None = None
    rests_on: str = ""
    neighbour: tuple[float, float] | None = None

    @property
    def tie(self) -> bool:
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def read(rows: Sequence[Fields]) -> list[Trained]:
    """The trained networks among a file's rows; the others are times.

    Raises:
        BadResults: a field is missing or impossible.
    """
    return [declared.read(Trained, fields) for fields in rows if fields.name("phase") == "train"]


def comparisons(rows: Sequence[Trained]) -> dict[tuple[str, int], list[Comparison]]:
    """By setting and width, the series of each, best first."""
    places: dict[tuple[str, int], dict[str, list[Trained]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        places[row.setting, row.width][row.series].append(row)
    return {place: _compared(series) for place, series in places.items()}


def _compared(series: dict[str, list[Trained]]) -> list[Comparison]:
    logs = {name: {r.seed: math.log(r.loss) for r in rows if r.loss} for name, rows in series.items()}
    dense = logs.get(DENSE, {})
    paired = all(row.paired for rows in series.values() for row in rows)
    apart = {name: [own[s] - dense[s] for s in own if s in dense] for name, own in logs.items() if name != DENSE}
    near = {name: values for name, values in (apart if paired else logs).items() if name != REMOVED}
    noise, freedom = _pooled(list(near.values()))
    pairs = max(1, sum(bool(values) for values in apart.values()))
    found = []
    for name, rows in series.items():
        own, seeds = logs[name], len(logs[name])
        told = Comparison(rows[0], seeds, math.exp(mean(own.values())) if own else None, neighbour=_neighbour(rows))
        if apart.get(name) and freedom:
            error = noise * math.sqrt(1 / len(apart[name]) if paired else 1 / seeds + 1 / len(dense))
            middle = mean(apart[name]) if paired else mean(own.values()) - mean(dense.values())
            margin = quantile(pairs, freedom) * error
            told = replace(
                told,
                difference=math.expm1(middle),
                low=math.expm1(middle - margin),
                high=math.expm1(middle + margin),
                told=math.expm1(margin + one_sided(freedom) * error),
                rests_on=_words(paired, seeds, noise, freedom),
            )
        found.append(told)
    return sorted(found, key=lambda c: (c.loss is None, c.loss or 0))


def _pooled(several: Sequence[Sequence[float] | dict[int, float]]) -> tuple[float, int]:
    """The standard deviation within groups and its degrees of freedom."""
    groups = [list(g.values() if isinstance(g, dict) else g) for g in several]
    freedom = sum(len(values) - 1 for values in groups if values)
    squares = sum((value - mean(values)) ** 2 for values in groups if values for value in values)
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def _words(paired: bool, seeds: int, noise: float, freedom: int) -> str:
    what = "pairs of one seed, which draws the task" if paired else "seeds, not paired: the task is the same for all"
    return f"{seeds} {what}; they vary by {noise * 100:.2g} % (pooled, {freedom} degrees of freedom)"


def _neighbour(rows: Sequence[Trained]) -> tuple[float, float] | None:
    """Of the rates on both sides of the chosen one, the one that costs less; infinite where a seed diverged."""
    rates = sorted({t.lr for row in rows for t in row.by_rate})
    if rows[0].lr not in rates or any(row.loss is None for row in rows):
        return None
    at = rates.index(rows[0].lr)
    costs = []
    for lr in (*rates[max(0, at - 1) : at], *rates[at + 1 : at + 2]):
        losses = [next((t.loss for t in row.by_rate if t.lr == lr), None) for row in rows]
        logs = [
            math.log(loss / row.loss) if loss and row.loss else math.inf for loss, row in zip(losses, rows, strict=True)
        ]
        costs.append((math.expm1(mean(logs)) if all(map(math.isfinite, logs)) else math.inf, lr))
    return min(costs)[::-1] if costs else None


@lru_cache(maxsize=1024)
def quantile(pairs: int, freedom: int) -> float:
    """Student's, two-sided, with the level shared among `pairs` (Bonferroni)."""
    from scipy import stats

    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / pairs, freedom))


@lru_cache(maxsize=1024)
def one_sided(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(POWER, freedom))
