"""What every run says of itself in its results file, and a run outside of pytest: its threads and the file it writes.

Nothing here imports torch, so that `RunRecord` can set up the threads before torch is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from bench.files.errors import UsageError
from bench.files.options import check_output
from bench.files.progress import Progress
from bench.files.rounding import rounded
from bench.files.terminal import many
from bench.files.vocabulary import SCHEMA
from bench.machine import setup
from structures import atomic


class DescribedRun(Protocol):
    """A run that can be described."""

    argv: list[str]
    threads: setup.Threads
    allocator: str
    started: str
    complete: bool
    load: setup.Load


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def facts(of: DescribedRun, *, gpu: str | None = None, tf32: bool | None = None, cold: bool = False) -> dict[str, Any]:
    """The `run` part of a results file: how, when and with what it was measured.

    Args:
        gpu: the CUDA device's name.
        cold: weights were rotated beyond the last cache.
    """
    cpu = setup.cpu_model()
    return {
        "argv": of.argv,
        "datetime": of.started,
        "versions": setup.versions(),
        "cpu": cpu,
        **setup.commit(),
        "device_names": {"cpu": cpu} | ({"cuda": gpu} if gpu else {}),
        "threads": of.threads.count,
        "pinned": setup.pinned_cores(of.threads.count),
        "pinned_by": of.threads.how,
        "allocator": of.allocator,
        "tf32": tf32,
        "cold": cold,
        "complete": of.complete,
        "foreign_load": of.load.overall,
    }


def section(kind: str, run: Mapping[str, Any], setup: Mapping[str, Any], rows: Any, refused: Any) -> dict[str, Any]:
    """The section `structures` of a file of rows, its numbers rounded."""
    found = {"schema": SCHEMA, "kind": kind, "run": run, "setup": setup, "rows": rows, "refused": refused}
    return rounded(found)  # type: ignore[no-any-return]


@dataclass
class RunRecord:
    """One run of a command: `kind` is what its file holds."""

    kind: str
    output: Path
    argv: list[str] = field(default_factory=lambda: ["python", "-m", "bench", *sys.argv[1:]])
    threads: setup.Threads = field(default_factory=lambda: setup.pin())
    allocator: str = field(default_factory=lambda: setup.tune_allocator())
    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)  # what is measured on, beside the machine
    complete: bool = False

    def __post_init__(self) -> None:
        check_output("-o", self.output)
        self.started = now()
        self.load = setup.Load(self.threads.cores)

    def progress(self, things: Iterable[object]) -> Progress:
        """Lines for things that take about as long as each other."""
        return Progress([1.0 for _ in things]).begin()

    def save(self, versions: Mapping[str, str] | None = None) -> None:
        """Write all rows so far; the file appears whole or not at all.

        Args:
            versions: of packages beside those that `setup.versions` names.
        Raises:
            UsageError: it cannot be written.
        """
        run = facts(self)
        run["versions"] = {**run["versions"], **(versions or {})}
        made = section(self.kind, run, self.setup, self.rows, self.refused)
        try:
            atomic.write(json.dumps({"structures": made}, indent=1) + "\n", self.output)
        except OSError as error:
            raise UsageError(f"-o: cannot write {self.output}: {error.strerror}") from None

    def said(self) -> str:
        """What to print at the end: how much was found, and how to draw it."""
        state = "" if self.complete else "; not complete"
        found = f"{self.output}: {many(len(self.rows), 'row')}, {len(self.refused)} left out{state}"
        return f"{found}\nDraw it: python -m bench report {self.output} -o report/"
