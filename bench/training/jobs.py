"""The grid: which variants of which settings are tuned and trained, in which order, and how shards divide them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.files.vocabulary import DENSE, MIX, NARROW
from bench.sweep.request import default_names, entries, in_order, options_text
from bench.training.settings import Setting
from bench.training.variants import REMOVED, Variant

TUNE, TRAIN, TIME, MATCH, TEACHER = "tune", "train", "time", "match", "teacher"  # phases of rows
PLAN = ("structures", "budgets", "widths", "seeds", "dense_seeds", "starts")  # fields that only decide which runs exist


@dataclass(frozen=True)
class Job:
    """One training run. `lr` is None where the best rate of its tries is taken."""

    phase: str
    setting: Setting
    variant: Variant
    width: int
    seed: int
    lr: float | None = None

    @property
    def steps(self) -> int:
        by_phase = {TUNE: self.setting.tune_steps, TEACHER: self.setting.teacher_steps}
        if self.phase == TRAIN and self.setting.starts and self.variant.structure == NARROW:
            return self.setting.teacher_steps + self.setting.steps  # drawn freshly, so it gets what the others have had
        return by_phase.get(self.phase, self.setting.steps)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the result, but the data itself and the versions of packages."""
        setting = {key: value for key, value in asdict(self.setting).items() if key not in PLAN}
        own = {**asdict(self.variant), "width": self.width, "seed": self.seed, "phase": self.phase}
        return {**setting, "base_width": min(self.setting.widths), **own, "tuned": self.tuned}

    @property
    def tuned(self) -> str:
        """Identifies the tries of rates that this run takes its own from."""
        skipped = (*PLAN, "steps", "teacher_steps" if not self.setting.starts else "")
        setting = {key: value for key, value in asdict(self.setting).items() if key not in skipped}
        return digest({**setting, "base_width": min(self.setting.widths), **asdict(tuned_as(self.variant))})

    @property
    def setting_key(self) -> str:
        """Identifies what losses may be compared within, whatever stands in the layers' place."""
        setting = {key: value for key, value in asdict(self.setting).items() if key not in PLAN}
        return digest({**setting, "base_width": min(self.setting.widths)})

    @property
    def key(self) -> str:
        """Identifies the run: the hash of its configuration, of a try with its rate."""
        return digest({**self.config, "lr": self.lr if self.phase == TUNE else None})

    @property
    def words(self) -> str:
        rate = f" rate {self.lr:g}" if self.lr and self.phase == TUNE else ""
        at = f"width {self.width} seed {self.seed}{rate}"
        return f"{self.phase:7} {self.setting.name:40} {self.variant.series:30} {at}"


def digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def variants(setting: Setting) -> tuple[list[Variant], list[Variant]]:
    """Controls and structures of a setting: dense first, each control at every budget in parameters or time."""
    controls = [Variant(DENSE)]
    shares = [b for b in setting.budgets if not b.startswith("flops")]  # of a dense layer, those of FLOPs are the same
    shares += [b for b in setting.budgets if b.startswith("flops") and b.replace("flops", "params") not in shares]
    controls += [Variant(NARROW, budget) for budget in shares]
    if not setting.budgets:  # options of the user's own, or of a sweep over options
        controls += [Variant(NARROW, f"params={share:g}") for share in (0.5, 0.25)]
    if not setting.starts:
        controls.append(Variant(REMOVED))
    named = setting.structures if setting.structures is not None else in_order(default_names())
    found: list[Variant] = []
    for word in named:
        name, colon, text = word.partition(":")
        if name == DENSE:
            continue
        if colon:
            found += [Variant(name, None, own) for own in each_option(name, text)]
        elif setting.budgets:
            found += [Variant(name, budget) for budget in setting.budgets]
        else:
            found.append(Variant(name))
    if setting.starts:
        found = [replace(v, start=start) for v in found for start in setting.starts]
    return controls, list(dict.fromkeys(found))


def each_option(name: str, text: str) -> list[str]:
    """`n_blocks=2,4,rank=8` -> `n_blocks=2,rank=8` and `n_blocks=4,rank=8`; of a mix, options that all of it have.

    Raises:
        UsageError: no such structure, no such option, or a value that is no number.
    """
    found = [[options_text(e.options or {}) for e in entries(f"{part}:{text}")] for part in name.split(MIX)]
    return found[0]


def tunes(setting: Setting, several: Sequence[Variant]) -> list[Job]:
    """Tries of rates at the smallest width, for every variant; distilled starts take the projected ones' rates."""
    width = min(setting.widths)
    found = {tuned_as(variant): None for variant in several}
    return [Job(TUNE, setting, variant, width, 0, lr) for variant in found for lr in setting.rates]


def tuned_as(variant: Variant) -> Variant:
    return replace(variant, start="projected") if variant.start else variant


def trains(setting: Setting, several: Sequence[Variant]) -> list[Job]:
    """Runs that are reported, seed by seed, so that an early end leaves whole comparisons."""
    most = max(setting.dense_seeds, setting.seeds)
    return [
        Job(TRAIN, setting, variant, width, seed)
        for seed in range(most)
        for width in sorted(setting.widths)
        for variant in several
        if seed < (setting.dense_seeds if variant.control else setting.seeds)
    ]


def shard(several: Sequence[Variant], number: int, count: int) -> list[Variant]:
    """Every count-th variant from the number-th: all runs of a variant lie in one shard, so its rates do too."""
    return list(several)[number - 1 :: count]
