"""Rows of a training file: what was run, to what result, at what cost. Also what is read back of them."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files import journal
from bench.files.errors import UsageError
from bench.files.fields import BadResults, load
from bench.files.kinds import TRAINING
from bench.files.vocabulary import DECIDE
from bench.machine import setup
from bench.training.jobs import TUNE, Job
from bench.training.loop import Outcome
from bench.training.parallel import Processes
from bench.training.problems import TrainingProblem
from bench.training.variants import Variant

OK, DIVERGED = "ok", "diverged"


def named(setting_name: str, variant: Variant) -> dict[str, Any]:
    """The fields that identify a row to a reader."""
    return {
        "setting": setting_name,
        "structure": variant.structure,
        "way": "control" if variant.control else "structure",
        "series": variant.series,
        "budget": variant.budget,
        "start": variant.start,
    }


def of_run(
    job: Job,
    lr: float,
    outcome: Outcome,
    problem: TrainingProblem,
    costs: Mapping[str, Any],
    group: Processes,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The row of a training run."""
    setting = job.setting
    facts = {key: problem.facts[key] for key in ("data", "data_sha256", "data_note", "licence")}
    return {
        **named(setting.name, job.variant),
        "setting_key": job.setting_key,
        "phase": job.phase,
        "task": setting.task,
        "model": setting.model,
        "layers": setting.layers,
        **facts,
        "width": job.width,
        "seed": job.seed,
        "lr": lr,
        "steps": job.steps,
        "tokens_per_step": setting.tokens,
        "schedule": setting.schedule,
        "status": OK if outcome.reason is None else DIVERGED,
        "reason": outcome.reason,
        "loss": outcome.loss,
        "curve": [list(point) for point in outcome.curve],
        "seconds_as_run": outcome.seconds,
        "bytes_per_token": problem.bytes_per_token,
        **costs,
        "processes": group.size,
        "device": setting.device,
        "key": job.key,
        "config": job.config,
        "versions": dict(versions),
    }


def best(rows: list[dict[str, Any]], job: Job) -> tuple[float | None, list[float]]:
    """The tried rate with the lowest loss of a job's variant, None where all diverged; and all tried rates, sorted."""
    tried: dict[float, float] = {}
    for row in rows:
        if row["phase"] == TUNE and row["config"]["tuned"] == job.tuned:
            loss = row["loss"]
            tried[row["lr"]] = math.inf if loss is None else loss
    chosen = min(tried, key=lambda lr: (tried[lr], lr), default=None)
    if chosen is None or not math.isfinite(tried[chosen]):
        return None, sorted(tried)
    return chosen, sorted(tried)


@dataclass(frozen=True)
class Earlier:
    """What a file holds that a run takes up: rows by key, what was left out, and the setup."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)

    def reason(self, setting: str, series: str) -> str | None:
        """Why the earlier run left a series out."""
        own = (r for r in self.refused if (r.get("setting"), r.get("series")) == (setting, series))
        return next((r.get("reason") for r in own), None)

    def beside(self, settings: Container[str]) -> list[dict[str, Any]]:
        """What it left out of settings that are not asked for now."""
        return [row for row in self.refused if row.get("setting") not in settings]


def take_up(path: Path, now: Mapping[str, str]) -> Earlier:
    """An earlier run.

    Raises:
        BadResults: no file of this kind.
        UsageError: it was made with other versions, so its losses cannot stand beside new ones.
    """
    section = _section(path)
    kept: dict[str, dict[str, Any]] = {}
    for row in section["rows"]:
        before = row.get("versions", {})
        changed = [name for name in DECIDE if before.get(name) != now[name]]
        if changed:
            name = changed[0]
            raise UsageError(
                f"--resume: {path} was made with another {name}, {json.dumps(before.get(name))}; now it is "
                f"{json.dumps(now[name])}. Start anew with -o"
            )
        kept[row["key"]] = row
    return Earlier(kept, section["refused"], section["setup"])


def _section(path: Path) -> dict[str, Any]:
    """What an earlier run left: its file, and where it was killed the rows of its journal too."""
    section: Any = {"kind": TRAINING, "rows": [], "refused": [], "setup": {}}
    if path.is_file():
        document = load(path)
        section = document.get("structures") if isinstance(document, dict) else None
    if not isinstance(section, dict) or section.get("kind") != TRAINING or not _whole(section):
        raise BadResults(f"--resume: {path} is no file of bench train")
    if journal.of(path).is_file():
        opened, header, entries, _ = journal.resume(path)
        opened.close()
        section = {**section, "setup": header.get("setup", {})}
        for name, key in (("rows", "row"), ("refused", "refused")):
            found = (entry[key] for entry in entries if isinstance(entry, dict) and key in entry)
            section[name] = [*section[name], *(one for one in found if one not in section[name])]
        if header.get("kind") != TRAINING or not _whole(section):
            raise BadResults(f"--resume: {journal.of(path)} is no journal of bench train")
    return section


def _whole(section: dict[str, Any]) -> bool:
    """Whether it has the parts that are taken up."""
    kinds = {"rows": list, "refused": list, "setup": dict}
    there = all(isinstance(section.get(key), kind) for key, kind in kinds.items())
    return there and all(isinstance(row, dict) for row in [*section["rows"], *section["refused"]])


def versions() -> dict[str, str]:
    """Of what decides a loss: Python, torch, numpy, this package and its commit."""
    known = setup.versions()
    commit = setup.commit()
    named = {key: known[key] for key in DECIDE}
    return named | {"commit": str(commit["commit"])[:12] + ("+changes" if commit["dirty"] else "")}
