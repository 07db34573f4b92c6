"""What charts and tables of one training file are made from, and what a reader is told of a series."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.answers.losses import Result
from bench.files.training_rows import Time, TrainingPlace
from bench.report.drawing import style, words
from bench.report.drawing.style import Style
from bench.report.training.claims import difference

OWN = "options of their own"
Times = Mapping[tuple[TrainingPlace, str], Time]


@dataclass(frozen=True)
class Trained:
    """Series of every place, and the paired times of their steps."""

    results: Mapping[TrainingPlace, Sequence[Result]]
    times: Times

    def time_of(self, result: Result) -> Time | None:
        """The time of a series."""
        return self.times.get((result.first.place, result.first.series))

    def step_seconds(self, result: Result) -> float | None:
        """Dense's step time at this place (the median of those paired with it) over the series' paired ratio."""
        dense = sorted(t.dense_seconds for (at, _), t in self.times.items() if at == result.first.place)
        if not dense:
            return None
        middle = dense[len(dense) // 2]
        if result.first.structure == "dense":
            return middle
        own = self.time_of(result)
        return middle / own.speedup if own else None

    def told(self, result: Result) -> dict[str, str]:
        """The loss with its seeds, what it says beside dense's, and the step's time."""
        assert result.loss is not None
        spread = (
            f", {result.low:.4g} to {result.high:.4g} over {result.seeds} seeds" if result.seeds > 1 else ", one seed"
        )
        time = self.time_of(result)
        return {
            "title": result.first.series,
            "loss": f"{result.loss:.4g}{spread}",
            "beside dense": "the baseline" if result.first.structure == "dense" else difference(result),
            "step": "not timed" if time is None else f"{words.ratio(time.speedup)} dense's speed",
        }

    def at_end(self, result: Result) -> dict[str, Any]:
        """What a series came to: its loss, the bar of its noise, and what it took."""
        first = result.first
        assert result.loss is not None
        seconds, bar = self.step_seconds(result), result.bar or 0.0
        return {
            "y": result.loss,
            "low": result.loss * math.exp(-bar),
            "high": result.loss * math.exp(bar),
            "share": first.shares["replaced_params_share"],
            "executed": first.executed * first.tokens * first.steps,
            "seconds": seconds * first.steps if seconds else None,
        }


def within(result: Result, budget: str | None) -> bool:
    """Whether a series, or a control, belongs to a budget."""
    own = result.first.budget
    return own == budget or (result.first.control and (budget is None or own is None))


def look(result: Result) -> Style:
    """As everywhere in the report."""
    return style.look(result.first.structure, result.first.control and result.first.structure != "dense")


def domain(losses: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of losses: what has more than 1.6 times the median stands at the upper edge."""
    ordered = sorted(losses)
    high = min(ordered[-1], 1.6 * ordered[len(ordered) // 2])
    pad = max(1.01, (high / ordered[0]) ** 0.08)
    return ordered[0] / pad, high * pad
