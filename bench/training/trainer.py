"""Builds the models of jobs and trains them, with progress lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.files.progress import Progress
from bench.training import rates, variants
from bench.training.checkpoint import Checkpoints
from bench.training.jobs import TUNE, Job
from bench.training.loop import Outcome, train
from bench.training.parallel import Processes
from bench.training.plan import Grid
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting

RATE = 4e10  # FLOPs a second assumed before anything has been measured: small networks on two cores
OVERHEAD = 0.4  # seconds of a run besides its steps


@dataclass(frozen=True)
class Trainer:
    """What every training run of a session shares."""

    problems: Mapping[Setting, TrainingProblem]
    plan: Grid
    group: Processes
    checkpoints: Checkpoints
    progress: Progress

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
        seconds = self.seconds(job)
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
            say=lambda step: self.progress.within(seconds, step, job.steps, job.words),
        )

    def costs(self, job: Job) -> dict[str, Any]:
        """What the job's variant counts at its width."""
        return self.plan.costs(job.setting, job.variant, job.width)

    def seconds(self, job: Job) -> float:
        """About how long a run takes, before anything has been measured."""
        return OVERHEAD + self.plan.flops(job) / RATE

    def finish(self, job: Job, said: str, *, ran: bool = True) -> None:
        """Say after its words that a job is done, or that it did not run."""
        say = self.progress.finish if ran else self.progress.skip
        say(self.seconds(job), f"{job.words} {said}")
