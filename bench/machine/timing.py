"""How long calls take: slices long enough for the clock, and pairs of them that share whatever the machine does.

Rounds go on until the mean is known to a precision, as pytest-benchmark's `precision` does it, or the time is spent.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf, sqrt
from statistics import NormalDist, fmean, median, quantiles, stdev

from bench.machine import setup

Clock = Callable[[], float]
Step = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How many seconds a point may take at most, and how many rounds it gets at least, however long they take."""

    paired: float
    alone: float
    rounds: int
    slice: float = 1e-3  # calls are repeated to this length before the clock is read again
    most: int = 50
    precision: float = 0.0  # margin of error of the mean, as a share of it, at which rounds end early; 0: they do not
    confidence: float = 0.95
    warm: int = 8  # slices of fewer calls begin with one that is not timed: after a dense layer of 64 MB the first call
    # of a small one finds its caches cold (Kronecker, 4096 wide, 128 tokens: 14 times dense so, 22 times otherwise)

    def count(self, seconds: float, each: float) -> int:
        return max(self.rounds, min(self.most, int(seconds / max(each, 1e-9))))


NOISY = 0.25  # distance of the quartiles, as a share of the median, above which a figure is flagged
LATE = 2  # times its share of time after which a loop ends with fewer rounds
SHORT = Effort(paired=0.05, alone=0.02, rounds=4, most=100, precision=0.03)
LONG = Effort(paired=1.5, alone=0.7, rounds=8, most=400, precision=0.01)


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles over rounds."""

    median: float
    q1: float
    q3: float
    rounds: int
    margin: float | None = None  # of error of the mean, as a share of it; None of a single round

    @property
    def width(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float], confidence: float = Effort.confidence) -> Quartiles:
    """Median and quartiles (linear between neighbours, as numpy's), and the margin of error."""
    margin = margin_of_error(values, confidence)
    q1, _, q3 = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Quartiles(median(values), q1, q3, len(values), margin if margin < inf else None)


def flags(load: setup.Load, width: float) -> list[str]:
    """Why a figure is unsafe: others used the machine since the last look, or the rounds are far apart."""
    foreign = load.since()
    raised = {"load": foreign is not None and foreign > setup.FOREIGN_LOAD, "noisy": width > NOISY}
    return [name for name, is_raised in raised.items() if is_raised]


def against(
    step: Step, dense: Step, effort: Effort, load: setup.Load, dense_seconds: float | None = None
) -> dict[str, object]:
    """Seconds of a call, and dense's time over it from pairs, with what makes the ratio unsafe: fields of a row."""
    load.since()
    seconds = once(step)
    found = paired(step, dense, effort, seconds=(seconds, once(dense) if dense_seconds is None else dense_seconds))
    return {"speedup": found.as_dict(), "seconds": seconds, "flags": flags(load, found.width)}


def margin_of_error(values: Sequence[float], confidence: float) -> float:
    """Half the confidence interval of the mean as a share of the mean; infinite for fewer than two values.

    Source: pytest-benchmark's rule for `--benchmark-precision`, a normal quantile whatever the number of values.
    """
    mean = fmean(values) if len(values) > 1 else 0.0
    if mean <= 0:
        return inf
    return NormalDist().inv_cdf(0.5 + confidence / 2) * stdev(values) / sqrt(len(values)) / mean


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def once(step: Step, clock: Clock = time.perf_counter) -> float:
    """Seconds of a call, warm: the faster of two after a first one."""
    step()
    return min(timed(step, 1, clock) for _ in range(2))


def timed(step: Step, calls: int, clock: Clock = time.perf_counter) -> float:
    """Seconds a call over `calls` of them."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def _slice(step: Step, calls: int, effort: Effort, clock: Clock) -> float:
    """Seconds a call over a slice, warm."""
    if calls < effort.warm:
        step()
    return timed(step, calls, clock)


def _spent(calls: int, effort: Effort) -> int:
    """Calls that a slice takes, the one that is not timed among them."""
    return calls + (calls < effort.warm)


def calls_in_a_slice(seconds_a_call: float, effort: Effort) -> int:
    return max(1, round(effort.slice / max(seconds_a_call, 1e-9)))


def paired(
    step: Step, dense: Step, effort: Effort, *, seconds: tuple[float, float], clock: Clock = time.perf_counter
) -> Quartiles:
    """Dense's time over the step's, from slices taken in turn; the order changes from round to round.

    Ends when the ratio is known to the effort's precision, both orders having been taken as often, or time is spent.
    Args:
        seconds: about how long a call of each takes.
    """
    calls = tuple(calls_in_a_slice(s, effort) for s in seconds)
    rounds = effort.count(effort.paired, sum(s * _spent(c, effort) for s, c in zip(seconds, calls, strict=True)))
    ratios: list[float] = []
    with quiet():
        start = clock()
        for number in range(rounds):
            if number >= effort.rounds and clock() - start > LATE * effort.paired:
                break  # somebody else uses the machine
            if number >= effort.rounds and number % 2 == 0 and 0 < effort.precision:
                if margin_of_error(ratios, effort.confidence) <= effort.precision:
                    break
            if number % 2:
                slow = _slice(dense, calls[1], effort, clock)
                own = _slice(step, calls[0], effort, clock)
            else:
                own = _slice(step, calls[0], effort, clock)
                slow = _slice(dense, calls[1], effort, clock)
            ratios.append(slow / own)
    return spread(ratios, effort.confidence)


def fastest(steps: Sequence[Step], effort: Effort, clock: Clock = time.perf_counter) -> tuple[int, list[float]]:
    """Which of several steps is fastest by the median, from a few slices of each in rotating order; all medians."""
    with quiet():
        first = [once(step, clock) for step in steps]
        calls = [calls_in_a_slice(s, effort) for s in first]
        times: list[list[float]] = [[] for _ in steps]
        rounds = effort.count(effort.alone, sum(s * _spent(c, effort) for s, c in zip(first, calls, strict=True)))
        for number in range(rounds):
            for i in range(len(steps)):
                which = (i + number) % len(steps)
                times[which].append(_slice(steps[which], calls[which], effort, clock))
    medians = [median(t) for t in times]
    return min(range(len(steps)), key=medians.__getitem__), medians
