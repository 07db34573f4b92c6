"""A run of the command: times, tries of learning rates and training runs, each a row that is kept at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bench.files.run import Run
from bench.sweep.output import rounded
from bench.sweep.points import NARROW
from bench.training import jobs, measures, problems, rates, rows, teachers, timed, variants
from bench.training.checkpoint import Checkpoints
from bench.training.jobs import TRAIN, TUNE, Job
from bench.training.loop import Outcome, train
from bench.training.parallel import Group
from bench.training.plan import Plan
from bench.training.progress import Progress
from bench.training.request import LOSSES, TIMES, Request
from bench.training.variants import Unreachable

SAVE_EVERY = 2.0  # seconds between two files of rows: a thousand rows take 0.1 s to write
EXTRA = 2  # tries of a rate beyond the grid, where the best one is at its end


class Session:
    """One run; everything is checked, loaded and planned when it is made."""

    def __init__(self, run: Run, request: Request, group: Group):
        self.run, self.request, self.group = run, request, group
        self.progress = Progress(lambda text: print(text, flush=True) if group.first else None)
        self.versions = rows.versions()
        self.earlier = rows.take_up(request.resume, self.versions) if request.resume else rows.Earlier()
        self.kept = dict(self.earlier.rows)
        self.problems = {setting: problems.load(setting) for setting in request.settings}
        for setting, problem in self.problems.items():
            measures.check(setting, problem)
        self.saved = 0.0
        self.plan = Plan(self.problems, request.shard)
        run.refused = self.plan.refused
        beside = run.output.with_name(run.output.name + ".checkpoint")
        self.checkpoints = Checkpoints(beside, request.every, group, before=self.save)
        self.teachers = teachers.Teachers(self)
        before = self.earlier.setup
        run.setup = {"scale": request.scale}
        run.setup |= {"settings": before.get("settings", {}) | {s.name: asdict(s) for s in request.settings}}
        if torch.cuda.is_available():
            run.setup["device_name"] = torch.cuda.get_device_name()
        run.setup |= {"data": before.get("data", {}) | {p.facts["data"]: p.facts for p in self.problems.values()}}

    def listed(self) -> list[str]:
        """The runs, for --list."""
        every = [job for setting in self.request.settings for job in self.plan.jobs(setting)]
        refused = [f"left out: {r['setting']} {r['series']}: {r['reason']}" for r in self.plan.refused]
        return [*(job.words for job in every), *refused, f"{len(every)} runs, {len(refused)} left out"]

    def run_all(self) -> None:
        """Times first, then every setting's runs; Ctrl-C keeps what is finished."""
        try:
            if self.request.only != LOSSES:
                timed.times(self)
            timed.match(self)
            if self.request.only != TIMES:
                self._losses()
            self.run.complete = True
        except KeyboardInterrupt:
            pass
        self.save()
        if self.kept:
            self.progress.say(f"{len(self.kept)} rows of {self.request.resume} were not asked for; they are kept")
        if self.run.complete:
            self.checkpoints.clear()
            self.teachers.clear()

    def _losses(self) -> None:
        todo = [job for setting in self.request.settings for job in self.plan.jobs(setting)]
        for job in todo:
            self.progress.expect(self.plan.flops(job))
        self.progress.begin()
        for job in todo:
            if job.phase == TUNE:
                assert job.lr is not None
                self.train(job, job.lr)
                continue
            lr = self._tuned(job)
            if lr is not None:
                self.train(job, lr)
                continue
            if rows.best(self.run.rows, job)[1]:
                self.plan.refuse(job.setting, job.variant, "every learning rate tried diverged")
            self.progress.finish(self.plan.flops(job), f"{job.words} left out: no learning rate")

    def save(self) -> None:
        """Write all rows, those of an earlier run that are not reached yet too; only the first process does."""
        if self.group.first:
            self.run.load.since()
            done, asked = self.run.rows, {setting.name for setting in self.request.settings}
            self.run.rows = [*done, *self.kept.values()]
            self.run.refused = [*self.plan.refused, *self.earlier.beside(asked)]
            self.run.save({})
            self.run.rows, self.run.refused = done, self.plan.refused
        self.saved = time.perf_counter()

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a row, rounded as it will be read back, so that a resumed run decides as this one."""
        self.run.rows.append(rounded(dict(row)))
        if time.perf_counter() - self.saved > SAVE_EVERY:
            self.save()
        return self.run.rows[-1]

    def keep(self, key: str) -> dict[str, Any] | None:
        """The earlier run's row of this key, which is then one of this run's."""
        row = self.kept.pop(key, None)
        if row is not None:
            self.run.rows.append(row)
        return row

    def _tuned(self, job: Job) -> float | None:
        """The best rate of the tries; where it is an end of the grid, the grid is continued. None: all diverged."""
        while True:
            best, tried = rows.best(self.run.rows, job)
            ends = len(tried) > 1 and best in (tried[0], tried[-1])
            if best is None or not ends or len(tried) >= len(job.setting.rates) + EXTRA:
                return best
            ratio = tried[-1] / tried[-2] if best == tried[-1] else tried[0] / tried[1]
            lr = float(f"{best * ratio:.2g}")
            own = Job(TUNE, job.setting, jobs.tuned_as(job.variant), min(job.setting.widths), 0, lr)
            self.progress.expect(self.plan.flops(own))
            self.train(own, lr)
            if rows.best(self.run.rows, job)[1] == tried:
                return best

    def train(self, job: Job, lr: float) -> None:
        """Train one job, or take its row from the earlier run; what cannot be built is left out with its reason."""
        kept = self.keep(job.key)
        if kept is not None:
            self.progress.finish(self.plan.flops(job), f"{job.words} kept")
            return
        setting, problem = job.setting, self.problems[job.setting]
        teacher = self.teachers.of(job) if setting.starts and job.variant.structure != NARROW else None
        try:
            model = self._built(job, teacher.state if teacher else None)
        except Unreachable as error:
            self.plan.refuse(setting, job.variant, str(error))
            self.progress.finish(self.plan.flops(job), f"{job.words} left out: {error}")
            return
        told = variants.described(model, variants.replaced(setting, model))
        outcome = self.trained(model, job, lr)
        row = rows.of_run(job, lr, outcome, problem, self._costs(job), self.group, self.versions)
        if job.phase == TRAIN:
            tried = rows.best(self.run.rows, job)[1]
            row |= {"options": told, "teacher_loss": teacher.loss if teacher else None, "rates_tried": tried}
            row |= {"rate_at_end": len(tried) > 1 and lr in (tried[0], tried[-1])}  # a further one might do better
            row |= measures.of(model, problem, outcome, self.group) if outcome.reason is None else {}
        if outcome.taken_up:
            self.progress.say(f"taken up at step {outcome.taken_up} of {job.steps}: {job.words}")
        result = f"loss {outcome.loss:.4g}" if outcome.loss is not None else f"diverged: {outcome.reason}"
        self.progress.finish(self.plan.flops(job), f"{job.words} {result}")
        self.add(row)

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

    def _built(self, job: Job, teacher: Mapping[str, Tensor] | None) -> nn.Module:
        resolved = self.plan.resolved.get((job.setting, job.variant))
        problem = self.problems[job.setting]
        return variants.build(
            job.setting, job.variant, job.width, problem, seed=job.seed, resolved=resolved, teacher=teacher
        )

    def _costs(self, job: Job) -> dict[str, Any]:
        return self.plan.costs(job.setting, job.variant, job.width)
