"""What a long projection says while it runs."""

from __future__ import annotations

import sys
import time

SECONDS = 0.5  # between two writings


class Line:
    """One line on stderr that is written over, at most twice a second."""

    def __init__(self, name: str, shown: bool):
        self.name, self.shown, self.last = name, shown, 0.0

    def sweep(self, number: int, error: float) -> None:
        self._write(f"sweep {number}, relative error {error:.6f}")

    def step(self, number: int, error: float) -> None:
        self._write(f"refining {number}, relative error {error:.6f}")

    def _write(self, text: str) -> None:
        now = time.monotonic()
        if self.shown and now - self.last >= SECONDS:
            sys.stderr.write(f"\r{self.name}: {text}\033[K")
            sys.stderr.flush()
            self.last = now

    def end(self) -> None:
        if self.shown and self.last:
            sys.stderr.write("\n")
