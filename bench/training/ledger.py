"""The rows of a training run: taken over from an earlier one and added, each on the disk before the next is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.files import journal, training_rows
from bench.files.fields import Fields
from bench.files.rounding import rounded
from bench.files.run import RunRecord
from bench.training import rows
from bench.training.request import TrainingRequest


class Ledger:
    """What a run has found so far, and what an earlier run had found.

    Attributes:
        run: the record whose file is written at the end; until then its journal has the rows.
        earlier: the run that this one goes on with.
        kept: its rows that this run has not reached yet, by key.
        versions: of whatever a loss depends on.
    """

    def __init__(self, run: RunRecord, request: TrainingRequest):
        self.run, self.resume = run, request.resume
        self.versions = rows.versions()
        self.earlier = rows.take_up(request.resume, self.versions) if request.resume else rows.Earlier()
        self.kept = dict(self.earlier.rows)
        self._asked = {setting.name for setting in request.settings}
        self._journal: journal.Journal | None = None
        self._written = 0  # how many of the run's refusals are in the journal

    def begin(self) -> None:
        """Open the journal, with all that the earlier run had found."""
        if self.resume == self.run.output and journal.of(self.run.output).exists():
            self._journal, *_ = journal.resume(self.run.output)
            return
        self._journal = journal.start(self.run.output, {"kind": self.run.kind, "setup": self.run.setup})
        found = [{"row": row} for row in self.kept.values()] + [{"refused": row} for row in self.earlier.refused]
        if found:
            self._journal.add(found)

    def add(self, several: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of a job, all or none, as all others will read them."""
        assert self._journal
        made = [rounded(dict(row)) for row in several]
        training_rows.read([Fields(str(row.get("key")), row) for row in made])
        self.run.rows += made
        refused = [{"refused": refused} for refused in self.run.refused[self._written :]]
        self._journal.add([*refused, *({"row": row} for row in made)])
        self._written = len(self.run.refused)

    def keep(self, keys: Sequence[str]) -> bool:
        """Whether the earlier run has all rows of a job, which are then this run's."""
        found = [self.kept.pop(key) for key in keys if key in self.kept]
        self.run.rows += found
        return len(found) == len(keys)

    def save(self) -> None:
        """Write the file with all rows, those of an earlier run that were not reached too, in place of the journal."""
        assert self._journal
        self.run.load.since()
        self.run.rows += self.kept.values()
        self.run.refused = [*self.run.refused, *self.earlier.beside(self._asked)]
        self.run.save()
        self._journal.remove()
