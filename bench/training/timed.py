"""The phase of times: a row for every variant and width, and budgets in time brought to shares of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.files.vocabulary import DENSE
from bench.training import jobs, rows
from bench.training.jobs import MATCH, TIME, Job
from bench.training.ledger import Ledger
from bench.training.plan import in_time
from bench.training.settings import Setting
from bench.training.timing import Pairs
from bench.training.trainer import Trainer
from bench.training.variants import Unreachable, Variant

UNTIMED = (
    "a budget in time is met by timing steps, in one process and not with --only losses: run --only times on a machine "
    "left alone, and take its file up by --resume"
)


def times(ledger: Ledger, trainer: Trainer) -> None:
    """A row for every variant and width: the ratio of its step's time to dense's, of one process."""
    if trainer.group.size > 1:
        trainer.progress.say("no times: they are of one process; run --only times without torchrun and merge the files")
        return
    for setting in trainer.problems:
        several = {replace(v, start=""): None for v in trainer.plan.variants[setting] if not in_time(v)}
        for width in sorted(setting.widths):
            _at(ledger, trainer, setting, width, [v for v in several if v.structure != DENSE])


def _at(ledger: Ledger, trainer: Trainer, setting: Setting, width: int, several: Sequence[Variant]) -> None:
    keys = {v: Job(TIME, setting, v, width, 0).key for v in several}
    missing = [v for v in several if ledger.keep(keys[v]) is None]
    if not missing:
        return
    pairs = _pairs(ledger, trainer, setting, width)
    for number, variant in enumerate(missing, start=1):
        try:
            found = pairs.ratio(variant)
        except Unreachable as error:
            trainer.plan.refuse(setting, variant, str(error))
            continue
        row = _row(ledger, trainer, setting, variant, width, found) | {"phase": TIME, "key": keys[variant]}
        ledger.add(row)
        trainer.progress.say(
            f"[times {number:2}/{len(missing)}] {setting.name} width {width} {variant.series}: "
            f"{found['speedup']['median']:.2f} times as fast a step as dense's"
        )


def match(ledger: Ledger, trainer: Trainer, *, timing: bool) -> None:
    """Bring variants with a budget in time to it, at the largest width; without `timing` from earlier rows alone."""
    for setting in trainer.problems:
        asked = [v for v in trainer.plan.variants[setting] if in_time(v)]
        width, pairs = max(setting.widths), None
        for variant in asked:
            key = Job(MATCH, setting, variant, width, 0).key
            row = ledger.keep(key)
            if row is None and (trainer.group.size > 1 or not timing):
                trainer.plan.refuse(setting, variant, ledger.earlier.reason(setting.name, variant.series) or UNTIMED)
                continue
            if row is None:
                pairs = pairs or _pairs(ledger, trainer, setting, width)
                try:
                    chosen, found = pairs.matched(variant)
                except Unreachable as error:
                    trainer.plan.refuse(setting, variant, str(error))
                    continue
                trainer.plan.resolved[setting, variant] = chosen  # what its costs are counted of
                own = {"phase": MATCH, "key": key, "met_by": chosen.budget}
                row = ledger.add(_row(ledger, trainer, setting, variant, width, found) | own)
            met = replace(variant, budget=row["met_by"])
            reason = trainer.plan.reason(setting, met)
            if reason is not None:  # met at the largest width, where the share exists, but not at a smaller one
                trainer.plan.refuse(setting, variant, f"met by {met.budget} at width {width}, but {reason}")
                trainer.plan.resolved.pop((setting, variant), None)
                continue
            if met in trainer.plan.whole[setting]:
                trainer.plan.refuse(setting, variant, f"met by {met.budget}, which is trained already")
                trainer.plan.resolved.pop((setting, variant), None)
            else:
                trainer.plan.resolved[setting, variant] = met


def _pairs(ledger: Ledger, trainer: Trainer, setting: Setting, width: int) -> Pairs:
    return Pairs(setting, width, trainer.problems[setting], trainer.group, ledger.run.load)


def _row(
    ledger: Ledger, trainer: Trainer, setting: Setting, variant: Variant, width: int, found: dict[str, Any]
) -> dict[str, Any]:
    at = {"task": setting.task, "model": setting.model, "layers": setting.layers, "width": width}
    data = {"data": setting.data, "options": variant.options, "versions": ledger.versions}
    costs = trainer.plan.costs(setting, variant, width)
    config = jobs.Job(TIME, setting, variant, width, 0).config
    return {**rows.named(setting.name, variant), **at, **data, **found, **costs, "config": config}
