"""Which of several programs is fastest: timed in turn, and left for another one only for a gain beyond noise."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

Clock = Callable[[], float]
Step = Callable[[], object]

GAIN = 1.1  # times faster, at least, for leaving the default program
ROUNDS = 7  # at least, in either loop
MOST = 40
SLICE = 5e-4  # seconds: calls are repeated to this length before the clock is read
SECONDS = 0.15  # of either loop, about


@dataclass(frozen=True)
class Times:
    """Seconds of a call: the median and quartiles over rounds."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Outcome:
    """All times of the first loop, of the second one for default and challenger, and what follows from them."""

    times: tuple[Times, ...]
    again: tuple[Times, Times] | None  # default, challenger
    winner: int
    reason: str


def race(steps: Sequence[Step], clock: Clock = time.perf_counter) -> Outcome:
    """Times the steps in turn; the first is the default.

    The fastest other one wins by a median that is `GAIN` times faster with quartiles apart, twice: in the loop of all,
    and in a fresh one against the default alone, since the fastest of several is partly the luckiest.
    """
    with _no_collection():
        times = _interleaved(steps, clock)
        if len(times) == 1:
            return Outcome(times, None, 0, "there is no other program")
        challenger = min(range(1, len(times)), key=lambda i: times[i].median)
        said = _against(times[0], times[challenger])
        if said is not None:
            return Outcome(times, None, 0, said)
        again = _interleaved([steps[0], steps[challenger]], clock)
    said = _against(*again)
    if said is not None:
        return Outcome(times, (again[0], again[1]), 0, f"timed anew, {said}")
    ratio = again[0].median / again[1].median
    return Outcome(times, (again[0], again[1]), challenger, f"{ratio:.2f} times faster than the default, timed anew")


def _against(default: Times, other: Times) -> str | None:
    """Why the default stays; None where the other one is faster beyond noise."""
    ratio = default.median / other.median
    if ratio < GAIN:
        return f"the best other program is {ratio:.2f} times as fast, below {GAIN:g}: the default stays"
    if other.q3 >= default.q1:
        return f"the best other program is {ratio:.2f} times as fast, but quartiles overlap: the default stays"
    return None


def _interleaved(steps: Sequence[Step], clock: Clock) -> tuple[Times, ...]:
    """Times of all steps, a slice of each a round, the order rotating."""
    first = []
    for step in steps:
        step()  # emitted, allocated and warm
        first.append(_slice(step, 1, clock))
    calls = [max(1, round(SLICE / max(seconds, 1e-9))) for seconds in first]
    each = sum(seconds * n for seconds, n in zip(first, calls, strict=True))
    rounds = max(ROUNDS, min(MOST, int(SECONDS / max(each, 1e-9))))
    seen: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        for i in range(len(steps)):
            which = (i + number) % len(steps)
            seen[which].append(_slice(steps[which], calls[which], clock))
    return tuple(_times(values) for values in seen)


def _slice(step: Step, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def _times(values: list[float]) -> Times:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Times(median(values), low, high)


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
