"""How long a step takes, as a ratio to dense's from calls in turn; apart from the runs, which may be disturbed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.machine import setup, timing
from bench.training import variants
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting
from bench.training.variants import Variant

EFFORT = timing.Effort(paired=0.3, alone=0.0, rounds=5)


def step_of(model: nn.Module, problem: TrainingProblem) -> timing.Step:
    """A whole training step on one fixed batch: forward, backward, AdamW."""
    device = problem.setting.device
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=1e-6, fused=True)
    x, y = (t.to(device) for t in problem.batch(0, 0))

    def step() -> None:
        problem.losses(model(x)[None], y[None]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.cuda.synchronize()

    return step


class Pairs:
    """Times steps of variants of one setting and width in turn with dense's."""

    def __init__(self, setting: Setting, width: int, problem: TrainingProblem, load: setup.Load):
        self.setting, self.width, self.problem, self.load = setting, width, problem, load
        self.dense = step_of(variants.dense(setting, width, problem), problem)
        self.dense_seconds = timing.once(self.dense)

    def ratio(self, variant: Variant) -> dict[str, Any]:
        """Dense's time over this one's, seconds of both, and flags."""
        step = step_of(variants.build(self.setting, variant, self.width, self.problem), self.problem)
        found = timing.against(step, self.dense, EFFORT, self.load, self.dense_seconds)
        return {
            "speedup": found["speedup"],
            "dense_seconds": self.dense_seconds,
            "step_seconds": self.dense_seconds / found["speedup"]["median"],
            "flags": found["flags"],
        }
