"""A run of the command: times, then every variant with all its seeds and rates; each finished one is kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bench.files.progress import Progress
from bench.files.run import RunRecord
from bench.files.vocabulary import DENSE
from bench.training import jobs, problems, rates, rows, timing, variants
from bench.training.checkpoint import Checkpoint
from bench.training.jobs import Grid, Job
from bench.training.ledger import Ledger
from bench.training.members import Members, Outcome
from bench.training.request import LOSSES, TIMES, TrainingRequest

RATE = 4e10  # FLOPs a second assumed before anything has been measured: small networks on two cores
OVERHEAD = 0.4  # seconds of a job besides its steps


class Session:
    """One run; everything is checked, loaded and planned when it is made."""

    def __init__(self, run: RunRecord, request: TrainingRequest):
        self.run, self.request = run, request
        self.progress = Progress()
        self.ledger = Ledger(run, request)
        self.problems = {setting: problems.load(setting) for setting in request.settings}
        self.plan = Grid(self.problems, request.shard)
        run.refused = self.plan.refused
        self.checkpoint = Checkpoint(run.output.with_name(f"{run.output.name}.checkpoint"))
        self.saved = time.perf_counter()
        before = self.ledger.earlier.setup
        run.setup = {"scale": request.scale}
        run.setup |= {"settings": {**(before.settings or {}), **{s.name: asdict(s) for s in request.settings}}}
        if torch.cuda.is_available():
            run.setup["device_name"] = torch.cuda.get_device_name()
        own = {p.facts["data"]: dict(p.facts) for p in self.problems.values()}
        run.setup |= {"data": {**(before.data or {}), **own}}

    def listed(self) -> list[str]:
        """The runs, for --list."""
        every = self.plan.jobs(jobs.TRAIN)
        refused = [f"left out: {r['setting']} {r['series']}: {r['reason']}" for r in self.plan.refused]
        return [*(job.words for job in every), *refused, f"{len(every)} runs, {len(refused)} left out"]

    def run_all(self) -> None:
        """Times first, then losses; Ctrl-C keeps what is finished."""
        self.ledger.begin()
        try:
            if self.request.only != LOSSES:
                self._times()
            if self.request.only != TIMES:
                self._losses()
            self.run.complete = True
        except KeyboardInterrupt:
            pass
        self.ledger.save()
        if self.ledger.kept:
            self.progress.say(
                f"{len(self.ledger.kept)} rows of {self.request.resume} were not asked for; they are kept"
            )
        if self.run.complete:
            self.checkpoint.clear()

    def _times(self) -> None:
        """A row for every variant and width: the ratio of its step's time to dense's."""
        todo = [job for job in self.plan.jobs(jobs.TIME) if not self.ledger.keep([job.key()])]
        pairs: timing.Pairs | None = None
        for number, job in enumerate(todo, start=1):
            if pairs is None or (pairs.setting, pairs.width) != (job.setting, job.width):
                pairs = timing.Pairs(job.setting, job.width, self.problems[job.setting], self.run.load)
            found = pairs.ratio(job.variant)
            at = {key: getattr(job.setting, key) for key in ("task", "model", "layers", "data")}
            own = {"phase": job.phase, "width": job.width, "options": job.variant.options, "key": job.key()}
            told = {"versions": self.ledger.versions, "config": job.config()}
            self.ledger.add(
                [{**job.variant.named(job.setting.name), **at, **own, **found, **self.plan.costs(job), **told}]
            )
            self.progress.say(
                f"[times {number:2}/{len(todo)}] {job.setting.name} width {job.width} {job.variant.series}: "
                f"{found['speedup']['median']:.2f} times as fast a step as dense's"
            )

    def _losses(self) -> None:
        todo = self.plan.jobs(jobs.TRAIN)
        left = self.checkpoint.load(self.progress.say)
        for job in todo:
            self.progress.expect(self.seconds(job))
        self.progress.begin()
        for job in todo:
            seeds = range(job.setting.seeds)
            if self.ledger.keep([job.key(seed) for seed in seeds]):
                self.progress.skip(self.seconds(job), f"{job.words} kept")
                continue
            clock = time.perf_counter()
            tried = self._tried(job, left if left.get("key") == job.key() else {})
            lr = rows.best(tried)
            more = {**self.plan.costs(job), "options": self._options(job), "versions": self.ledger.versions,
                    "seconds_as_run": (time.perf_counter() - clock) / len(tried) / len(seeds)}  # fmt: skip
            problem = self.problems[job.setting]
            self.ledger.add([rows.of_run(job, seed, lr, tried, problem, more) for seed in seeds])
            losses = " ".join("diverged" if o.loss is None else f"{o.loss:.4g}" for o in tried[lr])
            self.progress.finish(
                self.seconds(job), f"{job.words}: {losses} at {lr:g} of {', '.join(map('{:g}'.format, sorted(tried)))}"
            )

    def seconds(self, job: Job) -> float:
        """About how long all runs of a job take, before anything has been measured."""
        return OVERHEAD + self.plan.flops(job) / RATE

    def _options(self, job: Job) -> dict[str, Any]:
        model = variants.build(job.setting, job.variant, job.width, self.problems[job.setting])
        return variants.described(model, variants.replaced(job.setting, model))

    def _tried(self, job: Job, held: Mapping[str, Any]) -> dict[float, list[Outcome]]:
        """Every rate at full length with all seeds; where the best lies at an end of the grid, one more beyond it."""
        done = {lr: [Outcome(**o) for o in several] for lr, several in held.get("done", {}).items()}
        tried = done or self._side_by_side(job, job.setting.rates, {}, held)
        further = rows.beyond(tried)
        if further is not None:
            tried |= self._side_by_side(job, [further], tried, held)
        return tried

    def _side_by_side(
        self, job: Job, some: Sequence[float], before: Mapping[float, Sequence[Outcome]], held: Mapping[str, Any]
    ) -> dict[float, list[Outcome]]:
        """Some rates with all seeds, by the rate, from where a checkpoint left them."""
        setting, problem = job.setting, self.problems[job.setting]
        members = [(seed, lr) for seed in range(setting.seeds) for lr in some]
        nets = [variants.trained(setting, job.variant, job.width, problem, seed) for seed, _ in members]
        scales = rates.multipliers(nets[0], variants.base_inputs(setting, problem))
        trained = Members(nets, members, scales, problem)

        def save(state: Callable[[], Mapping[str, Any]]) -> None:
            if time.perf_counter() - self.saved >= self.request.every:
                kept = {lr: [asdict(o) for o in several] for lr, several in before.items()}
                self.checkpoint.save({"key": job.key(), "done": kept, "rates": list(some), "members": state()})
                self.saved = time.perf_counter()

        at = held["members"] if held.get("rates") == list(some) else None
        if at:
            self.progress.say(f"taken up at step {at['step']} of {setting.steps}: {job.words}")
        part = self.seconds(job) * len(some) / len(setting.rates)

        def say(step: int) -> None:
            self.progress.within(part, step, setting.steps, job.words)

        found = trained.train(setting.steps, say=say, save=save, held=at)
        if job.variant.structure == DENSE and setting.device == "cpu":
            for outcome, rounded in zip(found, trained.rounded(variants.replaced(setting, nets[0])), strict=True):
                outcome.rounded = {} if outcome.reason else rounded
        return {lr: [o for (_, own), o in zip(members, found, strict=True) if own == lr] for lr in some}
