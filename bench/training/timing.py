"""How long a step takes, as a ratio to dense's from calls in turn; apart from the runs, which may be disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bench.machine import setup, timing
from bench.training import rates, variants
from bench.training.loop import optimizer_of
from bench.training.parallel import Processes
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting
from bench.training.variants import Unreachable, Variant

EFFORT = timing.Effort(paired=0.3, alone=0.0, rounds=5)
LADDER = (1.0, 0.71, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625)  # shares of parameters tried for a time
CLOSE = 0.1  # how far from a budget in time a variant may stay


def step_of(model: nn.Module, problem: TrainingProblem, base: Mapping[str, int], group: Processes) -> timing.Step:
    """A whole training step on one fixed batch: forward, backward, AdamW."""
    model.to(group.device)
    optimizer = optimizer_of(rates.groups(model, base, 1e-6), group)
    x, y = (t.to(group.device) for t in problem.batch(0, 0))
    cuda = group.device != "cpu"
    half = problem.setting.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(group.device.partition(":")[0], dtype=torch.bfloat16, enabled=half):
            outputs = model(x)
        problem.loss(outputs, y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()

    return step


class Pairs:
    """Times steps of variants of one setting and width in turn with dense's."""

    def __init__(self, setting: Setting, width: int, problem: TrainingProblem, group: Processes, load: setup.Load):
        self.setting, self.width, self.problem, self.group, self.load = setting, width, problem, group, load
        self.base = variants.base_inputs(setting, problem)
        self.dense = step_of(variants.dense(setting, width, problem), problem, self.base, group)
        self.dense_seconds = timing.once(self.dense)

    def ratio(self, variant: Variant) -> dict[str, Any]:
        """Dense's time over this one's, dense's seconds, and flags.

        Raises:
            Unreachable: there is no such variant here.
        """
        model = variants.build(self.setting, Variant(variant.structure, variant.budget, variant.options), self.width,
                               self.problem)  # fmt: skip
        step = step_of(model, self.problem, self.base, self.group)
        found = timing.against(step, self.dense, EFFORT, self.load, self.dense_seconds)
        return {
            "speedup": found["speedup"],
            "dense_seconds": self.dense_seconds,
            "step_seconds": self.dense_seconds / found["speedup"]["median"],
            "flags": found["flags"],
        }

    def matched(self, variant: Variant) -> tuple[Variant, dict[str, Any]]:
        """The variant at the share of parameters whose step takes the wanted share of dense's time, and its time.

        Raises:
            Unreachable: no share comes near it.
        """
        tried: list[tuple[float, Variant, dict[str, Any]]] = []
        for share in LADDER:
            candidate = Variant(variant.structure, f"params={share:g}", start=variant.start)
            try:
                found = self.ratio(candidate)
            except Unreachable:
                continue
            tried.append((1 / found["speedup"]["median"], candidate, found))
            if tried[-1][0] < variant.share() * (1 - CLOSE):
                break  # smaller ones are faster still
        if not tried:
            raise Unreachable("no share of parameters can be met here")
        time, chosen, found = min(tried, key=lambda t: abs(t[0] - variant.share()))
        if abs(time / variant.share() - 1) > CLOSE:
            took = ", ".join(f"{t:.2f} at {c.budget}" for t, c, _ in tried)
            raise Unreachable(f"no share of parameters gives a step of {variant.share():g} of dense's time ({took})")
        return chosen, {**found, "time_share": time}
