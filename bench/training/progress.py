"""Lines that say what is done and how long the rest will take: FLOPs to go at the pace of those done."""

from __future__ import annotations

import time
from collections.abc import Callable

RATE = 4e10  # FLOPs a second assumed before anything has been measured: small networks on two cores
OVERHEAD = 0.4  # seconds of a run besides its steps
EVERY = 20.0  # seconds between two lines of one run


class TrainingProgress:
    """Counts what is expected of all runs, in seconds at an assumed pace that is then scaled by what was seen."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.expected: list[float] = []
        self.finished, self.done = 0, 0.0
        self.start = self.last = time.perf_counter()

    def begin(self) -> None:
        """From now on the time counts: loading, planning and pairs of steps tell nothing of the runs' pace."""
        self.start = self.last = time.perf_counter()

    def expect(self, flops: float) -> None:
        self.expected.append(OVERHEAD + flops / RATE)

    def left(self, own: float = 0.0) -> str:
        """`12:30 left`; `own` is the part done of the run under way."""
        done = self.done + own
        spent = time.perf_counter() - self.start
        pace = spent / done if done > 0 else 1.0
        seconds = int(max(0.0, sum(self.expected) - done) * pace)
        return f"{seconds // 60}:{seconds % 60:02} left"

    def finish(self, flops: float, text: str) -> None:
        """A line for a finished run."""
        self.finished += 1
        self.done += OVERHEAD + flops / RATE
        total = max(len(self.expected), self.finished)
        self.say(f"[{self.finished:{len(str(total))}}/{total} {self.left():>10}] {text}")
        self.last = time.perf_counter()

    def within(self, flops: float, step: int, steps: int, text: str) -> None:
        """A line of a long run, now and then."""
        if time.perf_counter() - self.last >= EVERY:
            own = (OVERHEAD + flops / RATE) * step / steps
            self.say(f"[  step {step}/{steps} {self.left(own):>10}] {text}")
            self.last = time.perf_counter()
