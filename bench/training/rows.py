"""Rows of a training file: what was run, to what result, at what cost. Also what is read back of them."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files import declared, journal, training_rows
from bench.files.errors import UsageError
from bench.files.fields import Fields, load
from bench.files.kinds import TRAINING, kind_of
from bench.files.vocabulary import DECIDE
from bench.machine import setup
from bench.training.jobs import Job
from bench.training.members import Outcome
from bench.training.problems import TrainingProblem
from bench.training.settings import digest
from structures.reading import BadFile

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
        **({"rounded": outcome.rounded} if outcome.rounded else {}),
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
class KeptRow:
    """What every row has by which it is taken up; rows that are reported are read as the report reads them too."""

    key: declared.Name
    versions: declared.Object
    structure: declared.Name


@dataclass(frozen=True)
class LeftOut:
    """What an earlier run left out, and of which setting."""

    setting: declared.Words
    structure: declared.Name
    reason: declared.Words


@dataclass(frozen=True)
class Setup:
    """The setup of an earlier run, as far as it goes into that of this one."""

    settings: declared.Object | None = None
    data: declared.Object | None = None


@dataclass(frozen=True)
class Earlier:
    """What a file holds that a run takes up: rows by key, what was left out, and the setup."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    setup: Setup = Setup()

    def beside(self, settings: Container[str]) -> list[dict[str, Any]]:
        """What it left out of settings that are not asked for now."""
        return [row for row in self.refused if row.get("setting") not in settings]


def take_up(path: Path, now: Mapping[str, str]) -> Earlier:
    """An earlier run.

    Raises:
        BadFile: no file of this kind, or a field is missing or impossible.
        UsageError: it was made with other versions, so its losses cannot stand beside new ones.
    """
    rows, refused, begun = _found(path)
    for one in refused:
        declared.read(LeftOut, one)
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        training_rows.read([row])  # each for itself: a file may hold what was trained in several ways
        known = declared.read(KeptRow, row)
        changed = [name for name in DECIDE if known.versions.get(name) != now[name]]
        if changed:
            name = changed[0]
            raise UsageError(
                f"--resume: {path} was made with another {name}, {json.dumps(known.versions.get(name))}; now it is "
                f"{json.dumps(now[name])}. Start anew with -o"
            )
        kept[known.key] = dict(row.values)
    return Earlier(kept, [dict(one.values) for one in refused], declared.read(Setup, begun))


def _found(path: Path) -> tuple[list[Fields], list[Fields], Fields]:
    """Rows, refusals and setup that an earlier run left: in its file, and where it was killed in its journal too."""
    at = f"--resume: {path}"
    rows, refused, begun = [], [], Fields(at, {})
    if path.is_file():
        document = load(path)
        if kind_of(document) != TRAINING:
            raise BadFile(f"{at} is no file of bench train")
        section = Fields(at, document).inside("structures")
        rows, refused, begun = section.each("rows"), section.each("refused"), section.inside("setup")
    if journal.of(path).is_file():
        opened, header, entries, _ = journal.resume(path)
        opened.close()
        if header.get("kind") != TRAINING:
            raise BadFile(f"--resume: {journal.of(path)} is no journal of bench train")
        begun = Fields(f"--resume: {journal.of(path)}: line 1", header).inside("setup")
        for entry in entries:
            several, found = (refused, entry.inside("refused")) if "refused" in entry else (rows, entry.inside("row"))
            if all(found.values != one.values for one in several):
                several.append(found)
    return rows, refused, begun


def versions() -> dict[str, str]:
    """Of what decides a loss: Python, torch, numpy, this package and its commit."""
    known = setup.versions()
    commit = setup.commit()
    named = {key: known[key] for key in DECIDE}
    return named | {"commit": str(commit["commit"])[:12] + ("+changes" if commit["dirty"] else "")}
