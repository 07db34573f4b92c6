"""Builds the models of jobs and trains them, saying how far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.training import rates, variants
from bench.training.checkpoint import Checkpoints
from bench.training.jobs import TUNE, Job
from bench.training.loop import Outcome, train
from bench.training.parallel import Processes
from bench.training.plan import Grid
from bench.training.problems import TrainingProblem
from bench.training.progress import TrainingProgress
from bench.training.settings import Setting


@dataclass(frozen=True)
class Trainer:
    """What every training run of a session shares."""

    problems: Mapping[Setting, TrainingProblem]
    plan: Grid
    group: Processes
    checkpoints: Checkpoints
    progress: TrainingProgress

    def built(self, job: Job, teacher: Mapping[str, Tensor] | None) -> nn.Module:
        """The job's model, started from a dense teacher's state where there is one."""
        resolved = self.plan.resolved.get((job.setting, job.variant))
        problem = self.problems[job.setting]
        return variants.build(
            job.setting, job.variant, job.width, problem, seed=job.seed, resolved=resolved, teacher=teacher
        )

    def trained(self, model: nn.Module, job: Job, lr: float) -> Outcome:
        """Run the loop for a job."""
        setting = job.setting
        base = variants.base_inputs(setting, self.problems[setting])
        flops = self.plan.flops(job)
        return train(
            model,
            lambda net: rates.groups(net, base, lr, setting.weight_decay),
            self.problems[setting],
            key=job.key,
            steps=job.steps,
            seed=job.seed,
            part="tune" if job.phase == TUNE else "report",
            group=self.group,
            checkpoints=self.checkpoints,
            say=lambda step: self.progress.within(flops, step, job.steps, job.words),
        )

    def costs(self, job: Job) -> dict[str, Any]:
        """What the job's variant counts at its width."""
        return self.plan.costs(job.setting, job.variant, job.width)

    def finish(self, job: Job, said: str) -> None:
        """Say that a job is done, or left out, after its words."""
        self.progress.finish(self.plan.flops(job), f"{job.words} {said}")
