"""The search itself: counts, timing, quality by successive halving, the survivors timed anew, and what is written."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import structures
from bench.files.journal import Records
from bench.files.progress import Progress
from bench.files.run import RunRecord
from bench.files.vocabulary import DENSE
from bench.machine import timing
from bench.search import quality, records
from bench.search.candidates import Candidate, all_candidates, chosen, exponents
from bench.search.front import FrontPoint, front, layers, reasons, verdict
from bench.search.request import SearchRequest
from bench.search.timing import Timer
from bench.sweep.named import NAMED, SPACE
from structures import atomic, space
from structures.algebra.taxonomy import seven_axes

SHORT = timing.SHORT
LONG = timing.Effort(paired=0.6, alone=0.1, rounds=9)


class OutOfTime(Exception):
    """The time budget is spent; what is finished is kept."""


@dataclass
class Search:
    """One search: what it found is in the journal, `run` writes the file."""

    request: SearchRequest
    run: RunRecord
    journal: Records
    seconds: float | None = None
    load_weight: Path | None = None
    inputs: torch.Tensor | None = None  # that quality is trained on
    until: str = records.FINAL  # the stage after which it stops: time, quality or final

    def __post_init__(self) -> None:
        self.began = time.perf_counter()
        self.rejected: Counter[str] = Counter()
        self.timed: list[Candidate] = []

    def search(self) -> str:
        """Everything, as far as the time goes; returns what was found in words."""
        torch.set_num_threads(self.run.threads.count)
        met, self.rejected = all_candidates(self.request)
        self.timed = chosen(met, self.request)
        self.rejected["met the budgets but were not among those timed"] += len(met) - len(self.timed)
        try:
            passed = self._timing()
            if self.until != records.TIME:
                survivors = self._quality(passed)
                if self.until != "quality":
                    list(self._timed(records.FINAL, survivors, LONG))  # the fastest of many short ones is partly luck
                    self.run.complete = True
        except (OutOfTime, KeyboardInterrupt):
            pass
        return self._write(met)

    # -- stages

    def _timing(self) -> list[Candidate]:
        """Those that run and are as fast as was asked for."""
        passed = []
        for candidate in self._timed(records.TIME, self.timed, SHORT):
            found = self.journal.get(records.TIME, candidate.name)
            assert found is not None
            if "refused" in found:
                self.rejected[f"not timed: {found['refused'][:60]}"] += 1
            elif self.request.time is not None and 1 / found["speedup"]["median"] > self.request.time:
                self.rejected[f"time above {self.request.time:g} of dense"] += 1
            else:
                passed.append(candidate)
        return passed

    def _quality(self, passed: list[Candidate]) -> list[Candidate]:
        """Successive halving: at each rung the better half by time and quality goes on, with more sweeps or steps."""
        passed = sorted(passed, key=lambda c: (self._time(c), c.name))
        kinds = quality.RUNGS[self.request.quality]
        if not kinds:
            self._drop(passed[self.request.finalists :], "slower than the finalists")
            return passed[: self.request.finalists]
        entered = self._entrants(passed, self.request.finalists * 2 ** (len(kinds) - 1))
        self._drop([c for c in passed if c not in entered], "slower than those whose quality was measured")
        for rung, amount in enumerate(kinds):
            progress = self.run.progress(entered)
            for candidate in entered:
                self._measure_quality(rung, amount, candidate, progress)
            if rung == len(kinds) - 1:
                return entered
            ranked = layers([self._point(c, rung) for c in entered])
            kept = {p.name for p in ranked[: max(self.request.finalists, (len(ranked) + 1) // 2)]}
            dropped = [c for c in entered if c.name not in kept]
            self._drop(dropped, f"dropped in favour of faster or better ones after {amount} {self.unit}")
            entered = [c for c in entered if c.name in kept]
        return entered

    def _entrants(self, passed: list[Candidate], count: int) -> list[Candidate]:
        """Named entries, then in turn the fastest left and the fastest left of full rank: speed alone would pick those
        that leave most out."""
        full = min(self.request.in_features, self.request.out_features)
        entered = [c for c in passed if c.named]
        queues = [[c for c in passed if not c.named], [c for c in passed if not c.named and c.rank_bound == full]]
        while len(entered) < count and any(queues):
            found = next(queue[0] for queue in queues if queue)
            entered.append(found)
            queues = [[c for c in queue if c is not found] for queue in reversed(queues)]
        return sorted(entered, key=lambda c: (self._time(c), c.name))

    def _measure_quality(self, rung: int, amount: int, candidate: Candidate, progress: Progress) -> None:
        stage = records.rung(rung)
        if self.journal.get(stage, candidate.name) is not None:
            progress.skip(1.0)
            return
        self._on_time()
        kind, seed = self.request.quality, self.request.seed
        value = quality.measure(kind, candidate.structure(self.request), amount, self.weight, seed, self.inputs)
        self.journal.add(stage, candidate.name, value=value if math.isfinite(value) else records.WORST)
        progress.finish(1.0, f"{stage} {candidate.name:24} {value:.4f} after {amount} {self.unit}")

    def _timed(self, stage: str, candidates: Sequence[Candidate], effort: timing.Effort) -> Iterator[Candidate]:
        """Each candidate once its time is in the journal."""
        progress = self.run.progress(candidates)
        for candidate in candidates:
            if self.journal.get(stage, candidate.name) is None:
                self._on_time()
                found = self.timer.measure(candidate.structure(self.request), effort)
                self.journal.add(stage, candidate.name, **found)
                progress.finish(1.0, f"{stage:8} {candidate.name:24} {_told(found)}")
            else:
                progress.skip(1.0)
            yield candidate

    def _on_time(self) -> None:
        if self.seconds is not None and time.perf_counter() - self.began > self.seconds:
            raise OutOfTime

    def _drop(self, candidates: Sequence[Candidate], reason: str) -> None:
        if candidates:
            self.rejected[reason] += len(candidates)

    @cached_property
    def timer(self) -> Timer:
        return Timer(self.request)

    @cached_property
    def weight(self) -> torch.Tensor:
        """What quality is measured against: the file's; without one a flat weight for training, else a trained one."""
        r = self.request
        if self.load_weight is not None:
            return quality.load(self.load_weight, r.key, r.in_features, r.out_features)
        if r.quality == "training":
            return quality.flat(r.in_features, r.out_features, r.seed)
        return quality.trained(r.in_features, r.out_features, r.seed)

    @property
    def unit(self) -> str:
        return "sweeps" if self.request.quality == "projection" else "steps"

    # -- what is known of a candidate

    def _speedup(self, candidate: Candidate) -> dict[str, Any] | None:
        for stage in (records.FINAL, records.TIME):
            found = self.journal.get(stage, candidate.name)
            if found and "speedup" in found:
                return found
        return None

    def _time(self, candidate: Candidate) -> float:
        found = self._speedup(candidate)
        return 1 / found["speedup"]["median"] if found else math.inf

    def _value(self, candidate: Candidate, rung: int | None = None) -> float | None:
        rungs = range(len(quality.RUNGS[self.request.quality]))[::-1] if rung is None else [rung]
        found = (self.journal.get(records.rung(r), candidate.name) for r in rungs)
        return next((record["value"] for record in found if record), None)

    def _point(self, candidate: Candidate, rung: int | None = None) -> FrontPoint:
        found = self._speedup(candidate)
        quartiles = (1 / found["speedup"]["q3"], 1 / found["speedup"]["q1"]) if found else None
        return FrontPoint(
            candidate.name, self._time(candidate), self._value(candidate, rung), candidate.named, quartiles
        )

    def _finished(self) -> list[Candidate]:
        """Those that went through every stage."""
        return [c for c in self.timed if "speedup" in (self.journal.get(records.FINAL, c.name) or {})]

    # -- writing

    def _write(self, met: list[Candidate]) -> str:
        """The results file, and the survivors as registry YAML beside it."""
        finished = self._finished()
        points = [self._point(c) for c in finished]
        best, told = front(points), reasons(points)
        names = [p.name for p in best]
        by_name = {c.name: c for c in finished}
        specs = [by_name[name].spec(self.request) for name in names]
        text = space.to_yaml(specs)
        yaml_path = self.run.output.with_suffix(".yaml")
        if specs:
            atomic.write(f"# Written by python -m bench search; loads with structures.load.\n\n{text}", yaml_path)
        self.run.rows = [self._row(c, told.get(c.name)) for c in self.timed if self._speedup(c)]
        self.run.refused = [
            {"structure": c.name, "reason": found["refused"]}
            for c in self.timed
            if "refused" in (found := self.journal.get(records.TIME, c.name) or {})
        ]
        self.run.setup = self._setup(met, points)
        self.run.save()
        state = "" if self.run.complete else "; not complete: the same command goes on from here"
        lines = [f"{self.run.output}: {len(self.run.rows)} timed of {len(met)} that meet the budgets{state}"]
        if best:
            lines += [f"  {p.name:24} {1 / p.time:5.2f} times dense{'' if p.quality is None else f', {p.quality:.4f}'}"
                      f"{'  (named)' if p.named else ''}" for p in best]  # fmt: skip
            lines += [verdict(points), f"Survivors as entries: {yaml_path}"]
        return "\n".join([*lines, f"Draw it: python -m bench report {self.run.output} -o report/"])

    def _row(self, candidate: Candidate, reason: str | None) -> dict[str, Any]:
        r, dense = self.request, self.request.dense
        found = self._speedup(candidate)
        assert found is not None
        omega, psi, nu = exponents(candidate.params, candidate.multiply_adds, candidate.rank_bound, r)
        return {
            "structure": candidate.name,
            "family": candidate.family,
            "named": candidate.named,
            "title": candidate.title,
            "einsum": list(candidate.structure(r).spec.einsum),
            "params_share": candidate.params / dense,
            "flops_share": candidate.multiply_adds / dense,
            "rank": candidate.rank_bound,
            "omega": omega,
            "psi": psi,
            "nu": nu,
            "speedup": found["speedup"],
            "backend": found["backend"],
            "quality": self._value(candidate),
            "finished": self.journal.get(records.FINAL, candidate.name) is not None,
            "reason": reason,
        }

    def _setup(self, met: list[Candidate], points: list[FrontPoint]) -> dict[str, Any]:
        families = Counter(c.family for c in met)
        return {
            "request": {k: v for k, v in asdict(self.request).items() if v is not None},
            "seconds": self.seconds,
            "met": dict(sorted(families.items())),
            "timed": len(self.timed),
            "rejected": dict(self.rejected.most_common()),
            "verdict": verdict(points) if points else "Nothing went through every stage yet.",
            "taxonomy": taxonomy_points(self.request),
        }


def taxonomy_points(request: SearchRequest) -> list[dict[str, Any]]:
    """Every registry entry and every point that the space's source names, by their exponents as the width grows."""
    found = []
    for name in structures.names():
        try:
            placed = structures.get(name).bind(request.in_features, request.out_features).taxonomy
        except ValueError:
            continue  # its defaults do not fit these widths
        if placed is not None:
            found.append({"name": name, "kind": "entry", "omega": placed.omega, "psi": placed.psi, "nu": placed.nu})
    for name, theta in NAMED.items():
        if name != DENSE:
            omega, psi, nu = seven_axes(theta)
            found.append({"name": f"{SPACE} {name}", "kind": "point", "omega": omega, "psi": psi, "nu": nu})
    return found


def _told(found: Mapping[str, Any]) -> str:
    return f"{found['speedup']['median']:.2f} times dense" if "speedup" in found else f"refused: {found['refused']}"
