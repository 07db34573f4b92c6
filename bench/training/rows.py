"""Rows of a training file: what was run, to what result, at what cost. Also what is read back of them."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files import journal
from bench.files.errors import UsageError
from bench.files.fields import BadResults, load
from bench.files.kinds import TRAINING
from bench.files.vocabulary import DECIDE
from bench.machine import setup
from bench.training.jobs import Job
from bench.training.problems import TrainingProblem
from bench.training.settings import digest
from bench.training.stack import Outcome

OK, DIVERGED = "ok", "diverged"
Tried = Mapping[float, Sequence[Outcome]]  # by the rate, of every seed


def of_run(
    job: Job, seed: int, lr: float, tried: Tried, problem: TrainingProblem, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of one seed at the rate that is best over all seeds, with what it came to at the others.

    Args:
        more: costs, versions and options of the layers.
    """
    setting, outcome, rates = job.setting, tried[lr][seed], sorted(tried)
    loss = outcome.loss
    bits = {} if not problem.bytes_per_token else {
        "bits_per_byte": loss and loss / math.log(2) / problem.bytes_per_token
    }  # fmt: skip
    return {
        **job.variant.named(setting.name),
        "setting_key": digest(setting.decides),
        "phase": job.phase,
        "task": setting.task,
        "model": setting.model,
        "layers": setting.layers,
        **problem.facts,
        "width": job.width,
        "seed": seed,
        "paired": problem.paired,
        "lr": lr,
        "rate_at_end": lr in (rates[0], rates[-1]),
        "by_rate": [{"lr": r, "tune": tried[r][seed].tune, "loss": tried[r][seed].loss} for r in rates],
        "steps": setting.steps,
        "tokens_per_step": setting.tokens,
        "schedule": "linear",
        "status": OK if outcome.reason is None else DIVERGED,
        "reason": outcome.reason,
        "loss": loss,
        **bits,
        "curve": [list(point) for point in outcome.curve],
        **more,
        "device": setting.device,
        "key": job.key(seed),
        "config": job.config(seed),
    }


def best(tried: Tried) -> float:
    """The rate with the lowest mean over seeds on the tune part; one that diverged for a seed comes last."""

    def mean(lr: float) -> float:
        found = [math.inf if o.tune is None else o.tune for o in tried[lr]]
        return sum(found) / len(found)

    return min(tried, key=lambda lr: (mean(lr), lr))


def beyond(tried: Tried) -> float | None:
    """A rate beyond the grid, where the best lies at its end and the grid has several."""
    lr, rates = best(tried), sorted(tried)
    if len(rates) < 2 or lr not in (rates[0], rates[-1]):
        return None
    ratio = rates[-1] / rates[-2] if lr == rates[-1] else rates[0] / rates[1]
    return float(f"{lr * ratio:.1g}")


@dataclass(frozen=True)
class Earlier:
    """What a file holds that a run takes up: rows by key, what was left out, and the setup."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)

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
