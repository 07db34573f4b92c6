"""A run on the CPU outside of pytest: its threads, its progress lines, what it says of itself, and the file it writes.

Nothing here imports torch, so that `RunRecord` can set up the threads before torch is loaded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.files.errors import Wrong
from bench.files.rows import SCHEMA
from bench.machine import setup


@dataclass
class RunRecord:
    """One run of a command: `kind` is what its file holds."""

    kind: str
    argv: list[str]
    output: Path
    threads: setup.Threads = field(default_factory=lambda: setup.pin())
    allocator: str = field(default_factory=lambda: setup.tune_allocator())
    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)  # what is measured on, beside the machine
    complete: bool = False

    def __post_init__(self) -> None:
        if not self.output.parent.is_dir():
            raise Wrong(f"-o: there is no folder {self.output.parent}")
        if self.output.is_dir():
            raise Wrong(f"-o: {self.output} is a folder; name a file")
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.load = setup.Load(self.threads.cores)
        self.clock = time.perf_counter()

    def say(self, done: int, total: int, text: str) -> None:
        """A progress line: `[ 3/40  2:10 left] text`."""
        spent = time.perf_counter() - self.clock
        left = int(spent * (total / done - 1)) if done else 0
        count = f"{done:{len(str(total))}}/{total}"
        print(f"[{count}  {left // 60}:{left % 60:02} left] {text}", flush=True)

    def save(self, versions: Mapping[str, str]) -> None:
        """Write all rows so far; the file appears whole or not at all.

        Args:
            versions: of packages beside those that `setup.versions` names.
        """
        from bench.files.rounding import rounded

        facts = {
            "argv": self.argv,
            "datetime": self.started,
            "versions": setup.versions() | dict(versions),
            "cpu": setup.cpu_model(),
            **setup.commit(),
            "device_names": {"cpu": setup.cpu_model()},
            "threads": self.threads.count,
            "pinned": setup.pinned_cores(self.threads.count),
            "pinned_by": self.threads.how,
            "allocator": self.allocator,
            "tf32": None,
            "cold": False,
            "complete": self.complete,
            "foreign_load": self.load.overall,
        }
        section = {"schema": SCHEMA, "kind": self.kind, "run": facts, "setup": self.setup}
        section |= {"rows": self.rows, "refused": self.refused}
        part = self.output.with_name(self.output.name + ".part")
        try:
            part.write_text(json.dumps({"structures": rounded(section)}, indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.output)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise Wrong(f"-o: cannot write {self.output}: {error.strerror}") from None
