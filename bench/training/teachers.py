"""The trained dense networks that distillation starts from: trained once, kept in a file while a run lasts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.files.errors import UsageError
from bench.files.vocabulary import DENSE
from bench.training import checkpoint, rows, variants
from bench.training.jobs import TEACHER, Job
from bench.training.ledger import Ledger
from bench.training.trainer import Trainer
from bench.training.variants import Variant


@dataclass(frozen=True)
class Teacher:
    """A dense network's state, and its held-out loss."""

    state: dict[str, Tensor]
    loss: float


class Teachers:
    """The teachers of a run, by their jobs' keys. Seeds of the runs that follow share one teacher."""

    def __init__(self, ledger: Ledger, trainer: Trainer):
        self.ledger, self.trainer = ledger, trainer
        self.held: dict[str, Teacher] = {}

    def of(self, job: Job) -> Teacher:
        """The teacher of a job's setting and width, trained when it is first asked for.

        Raises:
            UsageError: it did not train.
        """
        own = Job(TEACHER, job.setting, Variant(DENSE), job.width, 0)
        if own.key not in self.held:
            self.held[own.key] = self._kept(own) or self._trained(own)
        return self.held[own.key]

    def clear(self) -> None:
        """Remove the files."""
        for key in self.held:
            if self.ledger.group.first:
                with suppress(FileNotFoundError):
                    self._path(key).unlink()

    def _kept(self, job: Job) -> Teacher | None:
        """From a file, where the earlier run has the row too."""
        held = checkpoint.read(self._path(job.key))
        if held is None or held["key"] != job.key or job.key not in self.ledger.kept:
            return None
        self.ledger.keep(job.key)
        return Teacher(held["model"], held["loss"])

    def _trained(self, job: Job) -> Teacher:
        ledger, trainer, setting = self.ledger, self.trainer, job.setting
        ledger.kept.pop(job.key, None)
        problem = trainer.problems[setting]
        lr = sorted(setting.rates)[-1]  # the grid is one for refining; its largest rate suits a fresh network best
        trainer.progress.expect(trainer.seconds(job))
        model = variants.dense(setting, job.width, problem, seed=job.seed)
        outcome = trainer.trained(model, job, lr)
        trainer.finish(job, f"loss {outcome.loss}")
        if outcome.loss is None:
            raise UsageError(f"distil: the dense network did not train: {outcome.reason}; try other --rates")
        row = ledger.add(rows.of_run(job, lr, outcome, problem, trainer.costs(job), ledger.group, ledger.versions))
        state = {name: value.cpu() for name, value in checkpoint.whole(model).items()}
        if ledger.group.first:
            checkpoint.write(self._path(job.key), {"key": job.key, "model": state, "loss": row["loss"]})
        ledger.group.wait()
        return Teacher(state, row["loss"])

    def _path(self, key: str) -> Path:
        return self.ledger.beside(f"teacher-{key}")
