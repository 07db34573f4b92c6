"""Limits of time: of a whole run, kept by leaving out whole cells, and of a single point, kept by an alarm."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from bench.files.errors import UsageError
from bench.sweep.points import Point

UNITS = {"s": 1, "m": 60, "h": 3600}
AGAIN = 0.2  # seconds after which an alarm that something swallowed is raised again
RESERVE = 1.1  # a cell is started if this many times its expected time is left
MOST_SECONDS = 30 * 24 * 3600


def duration(option: str, text: str) -> float:
    """`90s`, `10m`, `1.5h` -> seconds.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(s|m|h)", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"{option}: {text!r} is not a time. Allowed: 90s, 10m, 1.5h and the like, up to 720h")
    return seconds


def words(seconds: float) -> str:
    """90 -> `90s`, 600 -> `10m`."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


class TimeBudget:
    """Decides, cell by cell, what is still measured: all structures of a cell or none, so that curves stay whole.

    A cell is what its points share: shape, tokens, dtype, device, mode. Cheap ones come first.
    Args:
        expected: about how many seconds a point takes, before the pace of this run is known.
        since: the clock's reading when the run began.
    """

    def __init__(
        self,
        seconds: float,
        points: Sequence[Point],
        expected: Callable[[Point], float],
        *,
        since: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.seconds, self.clock, self.since, self.expected = seconds, clock, since, expected
        self.cells: dict[tuple[object, ...], float] = defaultdict(float)
        for point in points:
            self.cells[point.cell] += expected(point)
        self.decided: dict[tuple[object, ...], bool] = {}
        self.done = self.spent = 0.0
        # when the last point ended; the first one sets up the machine, so it says nothing of the pace
        self._at: float | None = None

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (self.clock() - self.since)

    @property
    def pace(self) -> float:
        """How many seconds an expected second takes, as far as is known."""
        return self.spent / self.done if self.done else 1.0

    def admit(self, point: Point) -> str | None:
        """None, or why a point is left out."""
        if point.cell not in self.decided:
            self.decided[point.cell] = self.left >= RESERVE * self.pace * self.cells[point.cell]
        limit = f"--time-budget {words(self.seconds)}"
        if not self.decided[point.cell]:
            return f"not run: {limit} leaves no time for all structures at this shape, batch and mode"
        if self.left <= 0:
            return f"not run: {limit} ran out earlier than estimated"
        return None

    def finished(self, point: Point) -> None:
        """Learn the pace from a point that was measured."""
        now = self.clock()
        if self._at is not None:
            self.done += self.expected(point)
            self.spent += now - self._at
        self._at = now


class TimedOut(BaseException):
    """A point took too long. Derives from BaseException, so that `except Exception` in the code under test cannot
    swallow it.
    """


def check_alarm() -> None:
    """Raises UsageError where a running point cannot be stopped."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise UsageError(
            "--point-timeout: needs the alarm signal of a Unix main thread, which this system does not have"
        )


@contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimedOut inside once the time is over, as soon as the call that is running returns to Python.

    Args:
        seconds: None for no limit.
    """
    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return
    armed = True

    def ring(_: int, __: FrameType | None) -> None:
        if armed:
            raise TimedOut

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
