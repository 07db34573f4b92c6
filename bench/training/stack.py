"""Networks of one shape trained side by side: all seeds and rates of a variant, at the cost of a part of them.

Parameters have a leading axis of members and `vmap` runs them; the sum of their losses gives each its own gradient.
Members share nothing but the program, so that each ends as it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bench.training.problems import TrainingProblem

WARM_UP = 0.05  # share of the steps over which the rate rises; then it falls linearly to zero
POINTS = 5  # of a curve, from a sixteenth of the steps on, each twice the one before

Save = Callable[[Mapping[str, Any]], None]


@dataclass
class Outcome:
    """What one member came to: a curve of (step, reported loss), its loss on the tune part, or why it has none."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    tune: float | None = None
    reason: str | None = None

    @property
    def loss(self) -> float | None:
        return self.curve[-1][1] if self.reason is None else None


def schedule(step: int, steps: int) -> float:
    """By how much the learning rate is multiplied at a step."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def points(steps: int) -> set[int]:
    """Steps after which the reported loss is measured, 0 for what was never trained."""
    return {0, *(max(1, steps >> i) for i in range(POINTS))}


class Stack:
    """The members, each a seed and a rate, with the optimizer of all: AdamW with a rate for every member and factor."""

    def __init__(
        self, nets: Sequence[nn.Module], members: Sequence[tuple[int, float]], multipliers: Mapping[str, float],
        problem: TrainingProblem,
    ):  # fmt: skip
        device = problem.setting.device
        self.problem, self.net, self.members = problem, nets[0].to(device), members
        held, self.buffers = stack_module_state([net.to(device) for net in nets])  # type: ignore[arg-type]
        self.parameters = {name: value.detach().requires_grad_() for name, value in held.items()}
        # each member's part is a parameter of its own in the optimizer, and a view of the stacked one
        self.views = {name: [nn.Parameter(v) for v in value.detach()] for name, value in self.parameters.items()}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, views in self.views.items():
            for (_, lr), view in zip(members, views, strict=True):
                groups.setdefault(lr * multipliers[name], []).append(view)
        told = [{"params": several, "lr": lr, "initial_lr": lr} for lr, several in groups.items()]
        self.optimizer = torch.optim.AdamW(told, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self._run = vmap(lambda p, b, x: functional_call(self.net, (p, b), (x,)), in_dims=(0, 0, 0))
        self.seeds = list(dict.fromkeys(seed for seed, _ in members))
        self._rows = torch.tensor([self.seeds.index(seed) for seed, _ in members])

    def losses(self, several: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean loss of every member, on the inputs and targets of each seed."""
        device = self.problem.setting.device
        x, y = (torch.stack(parts)[self._rows].to(device) for parts in zip(*several, strict=True))
        return self.problem.losses(self._run(self.parameters, self.buffers, x), y)

    def step(self, step: int, steps: int) -> Tensor:
        """One step of the optimizer; returns every member's loss before it."""
        losses = self.losses([self.problem.batch(seed, step) for seed in self.seeds])
        found = torch.autograd.grad(
            losses.sum(), list(self.parameters.values()), allow_unused=True, materialize_grads=True
        )
        for views, gradient in zip(self.views.values(), found, strict=True):
            for view, own in zip(views, gradient, strict=True):
                view.grad = own.contiguous()  # the fused optimizer reads a transposed gradient as if it were not
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(step, steps)
        self.optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def held(self, part: str) -> list[float]:
        """Every member's loss on a held-out part."""
        total, count = torch.zeros(len(self.members), dtype=torch.float64), 0
        given = [self.problem.held(part, seed) for seed in self.seeds]
        for rows in torch.arange(len(given[0][0])).split(self.problem.rows()):
            total += len(rows) * self.losses([(x[rows], y[rows]) for x, y in given]).double().cpu()
            count += len(rows)
        return (total / count).tolist()

    def train(
        self, steps: int, *, say: Callable[[int], None], save: Save | None = None, held: Mapping[str, Any] | None = None
    ) -> list[Outcome]:
        """Train all members; where one's loss is no number, or ends above the untrained network's, it has the reason.

        Args:
            save: called now and then with a state that `held` takes up.
        """
        start, curves = 0, [[(0, loss)] for loss in self.held("report")]
        if held:
            start, curves = held["step"], [[tuple(p) for p in curve] for curve in held["curves"]]
            with torch.no_grad():
                for name, value in held["parameters"].items():
                    self.parameters[name].copy_(value)
            self.optimizer.load_state_dict(held["optimizer"])
        for step in range(start, steps):
            self.step(step, steps)
            if step + 1 in points(steps):
                for curve, loss in zip(curves, self.held("report"), strict=True):
                    curve.append((step + 1, loss))
            elif save:
                state = {"parameters": {name: p.detach() for name, p in self.parameters.items()}}
                save({"step": step + 1, "curves": curves, "optimizer": self.optimizer.state_dict(), **state})
            say(step + 1)
        return [_outcome(curve, tune) for curve, tune in zip(curves, self.held("tune"), strict=True)]


def _outcome(curve: list[tuple[int, float]], tune: float) -> Outcome:
    good = [point for point in curve if math.isfinite(point[1])]
    if len(good) < len(curve) or not math.isfinite(tune):
        bad = next((step for step, loss in curve if not math.isfinite(loss)), curve[-1][0])
        return Outcome(good, reason=f"the held-out loss is not finite at step {bad} of {curve[-1][0]}")
    if curve[-1][1] > curve[0][1]:
        return Outcome(good, reason="the held-out loss ended above the untrained network's")
    return Outcome(good, tune)
