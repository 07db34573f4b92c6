"""The rows of a training run: taken over from an earlier one, added, and saved as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from bench.files.rounding import rounded
from bench.files.run import RunRecord
from bench.training import rows
from bench.training.parallel import Processes
from bench.training.request import TrainingRequest

SAVE_EVERY = 2.0  # seconds between two files of rows: a thousand rows take 0.1 s to write


class Ledger:
    """What a run has found so far, and what an earlier run had found.

    Attributes:
        run: the record whose file is written.
        earlier: the run that this one goes on with.
        kept: its rows that this run has not reached yet, by key.
        versions: of whatever a loss depends on.
    """

    def __init__(self, run: RunRecord, request: TrainingRequest, group: Processes):
        self.run, self.group = run, group
        self.versions = rows.versions()
        self.earlier = rows.take_up(request.resume, self.versions) if request.resume else rows.Earlier()
        self.kept = dict(self.earlier.rows)
        self._asked = {setting.name for setting in request.settings}
        self._saved = 0.0

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a row, rounded as it will be read back, so that a resumed run decides as this one."""
        self.run.rows.append(rounded(dict(row)))
        if time.perf_counter() - self._saved > SAVE_EVERY:
            self.save()
        return self.run.rows[-1]

    def keep(self, key: str) -> dict[str, Any] | None:
        """The earlier run's row of this key, which is then one of this run's."""
        row = self.kept.pop(key, None)
        if row is not None:
            self.run.rows.append(row)
        return row

    def save(self) -> None:
        """Write all rows, those of an earlier run that are not reached yet too; only the first process does."""
        if self.group.first:
            self.run.load.since()
            done, refused = self.run.rows, self.run.refused
            self.run.rows = [*done, *self.kept.values()]
            self.run.refused = [*refused, *self.earlier.beside(self._asked)]
            self.run.save({})
            self.run.rows, self.run.refused = done, refused
        self._saved = time.perf_counter()
