"""The grid: which variants of which settings are trained, what each costs, in which order, and what does not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import structures
from bench.files.vocabulary import DENSE, MIX, NARROW, REMOVED
from bench.sweep.request import entries, in_order, options_text
from bench.training import costs, variants
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting, digest
from bench.training.variants import Rules, Unreachable, Variant

TRAIN, TIME = "train", "time"  # phases of rows


@dataclass(frozen=True)
class Job:
    """A variant at a width with all its seeds and rates, or the time of its step."""

    phase: str
    setting: Setting
    variant: Variant
    width: int

    def config(self, seed: int = 0) -> dict[str, Any]:
        """Everything that decides the result, but the data itself and the versions of packages."""
        seeds = {"seeds": self.setting.seeds, "seed": seed} if self.phase == TRAIN else {}
        own = {**asdict(self.variant), "width": self.width, "phase": self.phase}
        return {**self.setting.decides, **own, **seeds}

    def key(self, seed: int = 0) -> str:
        """Identifies the row: the hash of its configuration."""
        return digest(self.config(seed))

    @property
    def words(self) -> str:
        return f"{self.phase:5} {self.setting.name:24} width {self.width} {self.variant.series}"


def asked(setting: Setting) -> list[Variant]:
    """Controls and structures of a setting: dense first, the narrowed one at every budget in parameters."""
    found = [Variant(DENSE)]
    found += [Variant(NARROW, b.replace("flops", "params")) for b in setting.budgets]  # of a dense layer they are one
    found.append(Variant(REMOVED))
    named = setting.structures if setting.structures is not None else in_order(structures.names())
    for word in named:
        name, colon, text = word.partition(":")
        if colon:
            found += [Variant(name, None, own) for own in each_option(name, text)]
        elif name != DENSE:
            found += [Variant(name, budget) for budget in setting.budgets] or [Variant(name)]
    return list(dict.fromkeys(found))


def each_option(name: str, text: str) -> list[str]:
    """`n_blocks=2,4,rank=8` -> `n_blocks=2,rank=8` and `n_blocks=4,rank=8`; of a mix, options that all of it have.

    Raises:
        UsageError: no such structure, no such option, or a value that is no number.
    """
    found = [[options_text(e.options or {}) for e in entries(f"{part}:{text}")] for part in name.split(MIX)]
    return found[0]


class Grid:
    """The grid of one shard.

    Attributes:
        variants: of each setting, those that exist at every width and are this shard's.
        refused: rows for what is left out, with the reason.
    """

    def __init__(self, problems: Mapping[Setting, TrainingProblem], shard: tuple[int, int]):
        self.problems = problems
        self.refused: list[dict[str, Any]] = []
        self._costs: dict[tuple[Setting, Variant, int], dict[str, Any]] = {}
        number, count = shard
        self.variants = {setting: self._existing(setting)[number - 1 :: count] for setting in problems}

    def _existing(self, setting: Setting) -> list[Variant]:
        found: dict[Variant, list[Rules]] = {}
        for variant in asked(setting):
            problem, layers = self.problems[setting], []
            try:
                for width in setting.widths if not variant.control else ():
                    layers.append(variants.options(setting, variant, width, problem))
                    variants.build(setting, variant, width, problem)
            except Unreachable as error:
                self.refuse(setting, variant, str(error))
                continue
            same = next((v for v, own in found.items() if layers and own == layers), None)
            if same is None:
                found[variant] = layers
            else:
                self.refuse(setting, variant, f"the same layers as {same.series}, so they are trained once")
        return list(found)

    def refuse(self, setting: Setting, variant: Variant, reason: str) -> None:
        row = {**variant.named(setting.name), "options": variant.options, "reason": reason}
        if row not in self.refused:
            self.refused.append(row)

    def jobs(self, phase: str) -> list[Job]:
        """Setting by setting, width by width, dense first; what two settings share is run once."""
        found = [
            Job(phase, setting, variant, width)
            for setting, several in self.variants.items()
            for width in sorted(setting.widths)
            for variant in several
            if phase == TRAIN or variant.structure != DENSE
        ]
        return list({job.key(): job for job in found}.values())

    def costs(self, job: Job) -> dict[str, Any]:
        """Costs of a variant and their shares of dense's."""
        key = job.setting, job.variant, job.width
        if key not in self._costs:
            setting, problem = job.setting, self.problems[job.setting]
            x, _ = problem.batch(0, 0)  # backends are chosen by the number of rows, as for a user
            model = variants.build(setting, job.variant, job.width, problem)
            same = job.variant.structure in (DENSE, NARROW)
            plain = model if same else variants.dense(setting, job.width, problem)
            own = costs.costs(model, variants.replaced(setting, plain), x, setting.tokens, dense=plain)
            baseline = Job(job.phase, setting, Variant(DENSE), job.width)
            dense = own if job.variant.structure == DENSE else self.costs(baseline)
            self._costs[key] = {**own, **costs.shares(own, {name: dense[name] for name in own})}
        return self._costs[key]

    def flops(self, job: Job) -> float:
        """Counted FLOPs of all its runs."""
        setting = job.setting
        each = float(self.costs(job)["train_flops"]) * setting.tokens * setting.steps
        return each * setting.seeds * len(setting.rates)
