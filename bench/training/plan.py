"""What a run will do: the variants that exist in each setting, the jobs, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.files.vocabulary import DENSE, NARROW
from bench.training import costs, jobs, rows, variants
from bench.training.jobs import Job
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting
from bench.training.variants import Rules, Unreachable, Variant


class Grid:
    """The grid of one shard.

    Attributes:
        whole: controls and structures of each setting that exist at every width.
        variants: those of them that are this shard's.
        resolved: variants with a budget in time, as they are met in parameters.
        refused: rows for what is left out, with the reason.
    """

    def __init__(self, problems: Mapping[Setting, TrainingProblem], shard: tuple[int, int]):
        self.problems = problems
        self.resolved: dict[tuple[Setting, Variant], Variant] = {}
        self.refused: list[dict[str, Any]] = []
        self._costs: dict[tuple[Setting, Variant, int], dict[str, Any]] = {}
        self.whole = {setting: self._variants(setting) for setting in problems}
        self.variants = {setting: jobs.shard(several, *shard) for setting, several in self.whole.items()}

    def _variants(self, setting: Setting) -> list[Variant]:
        controls, asked = jobs.variants(setting)
        found: dict[Variant, Any] = {}
        for variant in asked:
            reason = self.reason(setting, variant)
            layers = None if reason or in_time(variant) else self._layers(setting, variant)
            same = next((v for v, own in found.items() if layers and own == layers and v.start == variant.start), None)
            if same is not None:
                reason = f"the same layers as at {same.budget or same.options}, so they are trained once"
            if reason is None:
                found[variant] = layers
            else:
                self.refuse(setting, variant, reason)
        for name in dict.fromkeys(v.structure for v in asked):  # what meets no budget stands at its own options
            own = [Variant(name, start=start) for start in setting.starts or ("",)]
            if setting.budgets and name not in {v.structure for v in found if not in_time(v)}:
                found |= {variant: None for variant in own if self.reason(setting, variant) is None}
        return [*controls, *found]

    def _layers(self, setting: Setting, variant: Variant) -> list[Rules]:
        problem = self.problems[setting]
        return [variants.options(setting, variant, width, problem) for width in setting.widths]

    def reason(self, setting: Setting, variant: Variant) -> str | None:
        """Why a variant does not exist at one of the widths."""
        if variant.control or in_time(variant):
            return None  # controls have no options to fit; what a time allows is known when it is timed
        try:
            self._layers(setting, variant)
        except Unreachable as error:
            return str(error)
        return None

    def refuse(self, setting: Setting, variant: Variant, reason: str) -> None:
        row = {**rows.named(setting.name, variant), "options": variant.options, "reason": reason}
        if row not in self.refused:
            self.refused.append(row)

    def jobs(self, setting: Setting) -> list[Job]:
        """Dense with all its seeds first, then the others' rates, then their runs seed by seed."""
        several = [v for v in self.variants[setting] if not in_time(v) or (setting, v) in self.resolved]
        first = [v for v in several if v.structure == DENSE]
        others = [v for v in several if v.structure != DENSE]
        dense = [*jobs.tunes(setting, first), *jobs.trains(setting, first)]
        return [*dense, *jobs.tunes(setting, others), *jobs.trains(setting, others)]

    def costs(self, setting: Setting, variant: Variant, width: int) -> dict[str, Any]:
        """Costs of a variant and their shares of dense's."""
        variant = replace(self.resolved.get((setting, variant), variant), start="")
        key = (setting, variant, width)
        if key not in self._costs:
            problem = self.problems[setting]
            x, _ = problem.batch(0, 0)  # as in training: backends are chosen by the number of rows
            model = variants.build(setting, variant, width, problem)
            same = variant.structure in (DENSE, NARROW)
            plain = model if same else variants.dense(setting, width, problem)
            names = variants.replaced(setting, plain)
            own = costs.costs(model, names, x, setting.tokens, dense=plain)
            dense = own if variant.structure == DENSE else self.costs(setting, Variant(DENSE), width)
            self._costs[key] = {**own, **costs.shares(own, {name: dense[name] for name in own})}
        return self._costs[key]

    def flops(self, job: Job) -> float:
        """Executed FLOPs of a whole run."""
        own = self.costs(job.setting, job.variant, job.width)["executed_train_flops"]
        return float(own) * job.steps * job.setting.tokens


def in_time(variant: Variant) -> bool:
    """Whether its budget is in time, so that it is known when it has been timed."""
    return bool(variant.budget and variant.budget.startswith("time"))
