"""Lines that say what is done and how long the rest will take, at the pace of what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

EVERY = 20.0  # seconds between two lines of one long thing


class Progress:
    """Counts things that take about a known time each; the pace scales these times to what was seen.

    The pace is that of the things after the first one, which sets up the machine, unless `begin` was called.

    Args:
        expected: about how many seconds each thing takes; of things alike, any number.
        say: prints a line.
    """

    def __init__(self, expected: Iterable[float] = (), say: Callable[[str], object] | None = None):
        self.say = say or (lambda text: print(text, flush=True))
        self.expected = list(expected)
        self.total = sum(self.expected)
        self.finished, self.done, self.paced = 0, 0.0, 0.0
        self.start: float | None = None
        self.last = time.perf_counter()

    def begin(self) -> Progress:
        """Let the time count from now on, for the first thing too."""
        self.start = self.last = time.perf_counter()
        return self

    def expect(self, seconds: float) -> None:
        """Add a thing to those that are to be done."""
        self.expected.append(seconds)
        self.total += seconds

    def left(self, own: float = 0.0) -> str:
        """`12:30 left`; `own` is the part done of the thing under way, in expected seconds."""
        paced = self.paced + own
        pace = (time.perf_counter() - self.start) / paced if self.start is not None and paced > 0 else 1.0
        return f"{minutes(pace * max(0.0, self.total - self.done - own))} left"

    def line(self, seconds: float, text: str) -> str:
        """`[ 12/300  1:40 left] text`; counts a thing that was expected to take so many seconds as finished."""
        self.finished += 1
        self.done += seconds
        if self.start is None:
            self.begin()
        else:
            self.paced += seconds
        self.last = time.perf_counter()
        total = max(len(self.expected), self.finished)
        return f"[{self.finished:{len(str(total))}}/{total} {self.left():>10}] {text}"

    def finish(self, seconds: float, text: str) -> None:
        """Say the line of a finished thing."""
        self.say(self.line(seconds, text))

    def skip(self, seconds: float, text: str = "") -> None:
        """Count a thing that was done before, or is left out: it takes no time. With a text, say so."""
        self.total -= seconds
        if text:
            self.say(self.line(0.0, text))
        else:
            self.finished += 1

    def within(self, seconds: float, step: int, steps: int, text: str) -> None:
        """A line of a long thing, now and then."""
        if time.perf_counter() - self.last >= EVERY:
            self.say(f"[  step {step}/{steps} {self.left(seconds * step / steps):>10}] {text}")
            self.last = time.perf_counter()


def minutes(seconds: float) -> str:
    """90 -> `1:30`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
