"""The phase of times: a row for every variant and width, and budgets in time brought to shares of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.sweep.output import rounded
from bench.sweep.points import DENSE
from bench.training import jobs, rows
from bench.training.jobs import MATCH, TIME, Job
from bench.training.plan import in_time
from bench.training.request import LOSSES
from bench.training.settings import Setting
from bench.training.timing import Pairs
from bench.training.variants import Unreachable, Variant

if TYPE_CHECKING:
    from bench.training.session import Session


UNTIMED = (
    "a budget in time is met by timing steps, in one process and not with --only losses: run --only times on a machine "
    "left alone, and take its file up by --resume"
)


def times(session: Session) -> None:
    """A row for every variant and width: the ratio of its step's time to dense's, of one process."""
    if session.group.size > 1:
        session.progress.say("no times: they are of one process; run --only times without torchrun and merge the files")
        return
    for setting in session.request.settings:
        several = {replace(v, start=""): None for v in session.plan.variants[setting] if not in_time(v)}
        for width in sorted(setting.widths):
            _at(session, setting, width, [v for v in several if v.structure != DENSE])


def _at(session: Session, setting: Setting, width: int, several: Sequence[Variant]) -> None:
    keys = {v: Job(TIME, setting, v, width, 0).key for v in several}
    missing = [v for v in several if session.keep(keys[v]) is None]
    if not missing:
        return
    pairs = _pairs(session, setting, width)
    for number, variant in enumerate(missing, start=1):
        try:
            found = pairs.ratio(variant)
        except Unreachable as error:
            session.plan.refuse(setting, variant, str(error))
            continue
        row = _row(session, setting, variant, width, found) | {"phase": TIME, "key": keys[variant]}
        session.run.rows.append(rounded(row))
        session.progress.say(
            f"[times {number:2}/{len(missing)}] {setting.name} width {width} {variant.series}: "
            f"{found['speedup']['median']:.2f} times as fast a step as dense's"
        )
    session.save()


def match(session: Session) -> None:
    """Bring variants with a budget in time to it, at the largest width."""
    for setting in session.request.settings:
        asked = [v for v in session.plan.variants[setting] if in_time(v)]
        width, pairs = max(setting.widths), None
        for variant in asked:
            key = Job(MATCH, setting, variant, width, 0).key
            row = session.keep(key)
            if row is None and (session.group.size > 1 or session.request.only == LOSSES):
                session.plan.refuse(setting, variant, session.earlier.reason(setting.name, variant.series) or UNTIMED)
                continue
            if row is None:
                pairs = pairs or _pairs(session, setting, width)
                try:
                    chosen, found = pairs.matched(variant)
                except Unreachable as error:
                    session.plan.refuse(setting, variant, str(error))
                    continue
                session.plan.resolved[setting, variant] = chosen  # what its costs are counted of
                own = {"phase": MATCH, "key": key, "met_by": chosen.budget}
                row = session.add(_row(session, setting, variant, width, found) | own)
            met = replace(variant, budget=row["met_by"])
            reason = session.plan.reason(setting, met)
            if reason is not None:  # met at the largest width, where the share exists, but not at a smaller one
                session.plan.refuse(setting, variant, f"met by {met.budget} at width {width}, but {reason}")
                session.plan.resolved.pop((setting, variant), None)
                continue
            if met in session.plan.whole[setting]:
                session.plan.refuse(setting, variant, f"met by {met.budget}, which is trained already")
                session.plan.resolved.pop((setting, variant), None)
            else:
                session.plan.resolved[setting, variant] = met


def _pairs(session: Session, setting: Setting, width: int) -> Pairs:
    return Pairs(setting, width, session.problems[setting], session.group, session.run.load)


def _row(session: Session, setting: Setting, variant: Variant, width: int, found: dict[str, Any]) -> dict[str, Any]:
    at = {"task": setting.task, "model": setting.model, "layers": setting.layers, "width": width}
    data = {"data": setting.data, "options": variant.options, "versions": session.versions}
    costs = session.plan.costs(setting, variant, width)
    config = jobs.Job(TIME, setting, variant, width, 0).config
    return {**rows.named(setting.name, variant), **at, **data, **found, **costs, "config": config}
