"""The rows of a training run: taken over from an earlier one and added, each on the disk before the next is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.files import journal
from bench.files.rounding import rounded
from bench.files.run import RunRecord
from bench.training import rows
from bench.training.parallel import Processes
from bench.training.request import TrainingRequest


class Ledger:
    """What a run has found so far, and what an earlier run had found.

    Attributes:
        run: the record whose file is written at the end; until then its journal has the rows.
        earlier: the run that this one goes on with.
        kept: its rows that this run has not reached yet, by key.
        versions: of whatever a loss depends on.
    """

    def __init__(self, run: RunRecord, request: TrainingRequest, group: Processes):
        self.run, self.group, self.resume = run, group, request.resume
        self.versions = rows.versions()
        self.earlier = rows.take_up(request.resume, self.versions) if request.resume else rows.Earlier()
        self.kept = dict(self.earlier.rows)
        self._asked = {setting.name for setting in request.settings}
        self._journal: journal.Journal | None = None
        self._written = 0  # how many of the run's refusals are in the journal

    def begin(self) -> None:
        """Open the journal, with all that the earlier run had found; only the first process has one."""
        if not self.group.first:
            return
        if self.resume == self.run.output and journal.of(self.run.output).exists():
            self._journal, *_ = journal.resume(self.run.output)
            return
        self._journal = journal.start(self.run.output, {"kind": self.run.kind, "setup": self.run.setup})
        found = [{"row": row} for row in self.kept.values()] + [{"refused": row} for row in self.earlier.refused]
        if found:
            self._journal.add(found)

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a row, rounded as it will be read back, so that a resumed run decides as this one."""
        kept: dict[str, Any] = rounded(dict(row))
        self.run.rows.append(kept)
        if self._journal:
            refused = [{"refused": refused} for refused in self.run.refused[self._written :]]
            self._journal.add([*refused, {"row": kept}])
            self._written = len(self.run.refused)
        return kept

    def keep(self, key: str) -> dict[str, Any] | None:
        """The earlier run's row of this key, which is then one of this run's."""
        row = self.kept.pop(key, None)
        if row is not None:
            self.run.rows.append(row)
        return row

    def save(self) -> None:
        """Write the file with all rows, those of an earlier run that were not reached too, in place of the journal."""
        if self._journal:
            self.run.load.since()
            self.run.rows += self.kept.values()
            self.run.refused = [*self.run.refused, *self.earlier.beside(self._asked)]
            self.run.save()
            self._journal.remove()

    def beside(self, suffix: str) -> Path:
        """A file of this run beside the one with the rows."""
        return self.run.output.with_name(f"{self.run.output.name}.{suffix}")
