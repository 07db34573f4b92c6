"""A run of the command: times, tries of learning rates and training runs, each a row that is kept at once."""

from __future__ import annotations

from dataclasses import asdict

import torch

from bench.files.progress import Progress
from bench.files.run import RunRecord
from bench.files.vocabulary import NARROW
from bench.training import jobs, measures, problems, rows, teachers, timed, variants
from bench.training.checkpoint import Checkpoints
from bench.training.jobs import TRAIN, TUNE, Job
from bench.training.ledger import Ledger
from bench.training.parallel import Processes
from bench.training.plan import Grid
from bench.training.request import LOSSES, TIMES, TrainingRequest
from bench.training.trainer import Trainer
from bench.training.variants import Unreachable

EXTRA = 2  # rates tried beyond the grid, where the best one lies at its end


class Session:
    """One run; everything is checked, loaded and planned when it is made."""

    def __init__(self, run: RunRecord, request: TrainingRequest, group: Processes):
        self.run, self.request, self.group = run, request, group
        progress = Progress(say=lambda text: print(text, flush=True) if group.first else None)
        self.ledger = Ledger(run, request, group)
        self.problems = {setting: problems.load(setting) for setting in request.settings}
        for setting, problem in self.problems.items():
            measures.check(setting, problem)
        self.plan = Grid(self.problems, request.shard)
        run.refused = self.plan.refused
        checkpoints = Checkpoints(self.ledger.beside("checkpoint"), request.every, group)
        self.trainer = Trainer(self.problems, self.plan, group, checkpoints, progress)
        self.teachers = teachers.Teachers(self.ledger, self.trainer)
        before = self.ledger.earlier.setup
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
        self.ledger.begin()
        try:
            if self.request.only != LOSSES:
                timed.times(self.ledger, self.trainer)
            timed.match(self.ledger, self.trainer, timing=self.request.only != LOSSES)
            if self.request.only != TIMES:
                self._losses()
            self.run.complete = True
        except KeyboardInterrupt:
            pass
        self.ledger.save()
        if self.ledger.kept:
            self.trainer.progress.say(
                f"{len(self.ledger.kept)} rows of {self.request.resume} were not asked for; they are kept"
            )
        if self.run.complete:
            self.trainer.checkpoints.clear()
            self.teachers.clear()

    def _losses(self) -> None:
        todo = [job for setting in self.request.settings for job in self.plan.jobs(setting)]
        for job in todo:
            self.trainer.progress.expect(self.trainer.seconds(job))
        self.trainer.progress.begin()
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
            self.trainer.finish(job, "left out: no learning rate", ran=False)

    def _tuned(self, job: Job) -> float | None:
        """The best of the rates tried; at an end of the grid, the grid is extended. None if all diverged."""
        while True:
            best, tried = rows.best(self.run.rows, job)
            ends = len(tried) > 1 and best in (tried[0], tried[-1])
            if best is None or not ends or len(tried) >= len(job.setting.rates) + EXTRA:
                return best
            ratio = tried[-1] / tried[-2] if best == tried[-1] else tried[0] / tried[1]
            lr = float(f"{best * ratio:.2g}")
            own = Job(TUNE, job.setting, jobs.tuned_as(job.variant), min(job.setting.widths), 0, lr)
            self.trainer.progress.expect(self.trainer.seconds(own))
            self.train(own, lr)
            if rows.best(self.run.rows, job)[1] == tried:
                return best

    def train(self, job: Job, lr: float) -> None:
        """Train one job, or take its row from the earlier run; what cannot be built is left out with its reason."""
        kept = self.ledger.keep(job.key)
        if kept is not None:
            self.trainer.finish(job, "kept", ran=False)
            return
        setting, problem = job.setting, self.problems[job.setting]
        teacher = self.teachers.of(job) if setting.starts and job.variant.structure != NARROW else None
        try:
            model = self.trainer.built(job, teacher.state if teacher else None)
        except Unreachable as error:
            self.plan.refuse(setting, job.variant, str(error))
            self.trainer.finish(job, f"left out: {error}", ran=False)
            return
        told = variants.described(model, variants.replaced(setting, model))
        outcome = self.trainer.trained(model, job, lr)
        row = rows.of_run(job, lr, outcome, problem, self.trainer.costs(job), self.group, self.ledger.versions)
        if job.phase == TRAIN:
            tried = rows.best(self.run.rows, job)[1]
            row |= {"options": told, "teacher_loss": teacher.loss if teacher else None, "rates_tried": tried}
            row |= {"rate_at_end": len(tried) > 1 and lr in (tried[0], tried[-1])}  # a further one might do better
            row |= measures.of(model, problem, outcome, self.group) if outcome.reason is None else {}
        if outcome.taken_up:
            self.trainer.progress.say(f"taken up at step {outcome.taken_up} of {job.steps}: {job.words}")
        result = f"loss {outcome.loss:.4g}" if outcome.loss is not None else f"diverged: {outcome.reason}"
        self.trainer.finish(job, result)
        self.ledger.add(row)
