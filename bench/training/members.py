"""Networks of one variant trained side by side, all seeds and rates; those of one seed see the same batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.files.vocabulary import FEWER_BITS
from bench.sweep.rivals import lowered
from bench.training.problems import TrainingProblem

WARM_UP = 0.05  # share of the steps over which the rate rises; then it falls linearly to zero
POINTS = 5  # of a curve, from a sixteenth of the steps on, each twice the one before

Save = Callable[[Callable[[], Mapping[str, Any]]], None]


@dataclass
class Outcome:
    """What one member came to: a curve of (step, reported loss), its loss on the tune part, or why it has none.

    rounded: the reported loss with dense layers in fewer bits, by the name of the rival.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    tune: float | None = None
    reason: str | None = None
    rounded: dict[str, float] = field(default_factory=dict)

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


class Members:
    """Networks of one variant, each with a seed and a rate: AdamW with a rate for every member and factor.

    They take their steps in turn, so that each runs by the native kernel and experts can be trained; stacked by `vmap`,
    as plain einsums, a decoder of width 128 took up to three times as long on a core of an EPYC.
    """

    def __init__(
        self, nets: Sequence[nn.Module], members: Sequence[tuple[int, float]], multipliers: Mapping[str, float],
        problem: TrainingProblem,
    ):  # fmt: skip
        self.problem, self.nets = problem, [net.to(problem.setting.device) for net in nets]
        groups: dict[float, list[nn.Parameter]] = {}
        for net, (_, lr) in zip(self.nets, members, strict=True):
            for name, parameter in net.named_parameters():
                groups.setdefault(lr * multipliers[name], []).append(parameter)
        told = [{"params": several, "lr": lr, "initial_lr": lr} for lr, several in groups.items()]
        self.optimizer = torch.optim.AdamW(told, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.seeds = [seed for seed, _ in members]

    def losses(self, given: Mapping[int, tuple[Tensor, Tensor]], step: int = 0) -> Iterator[Tensor]:
        """The mean loss of one member after the other, on the inputs and targets of its seed."""
        device = self.problem.setting.device
        moved = {seed: (x.to(device), y.to(device)) for seed, (x, y) in given.items()}
        for net, seed in zip(self.nets, self.seeds, strict=True):
            x, y = moved[seed]
            torch.manual_seed(step)  # for what a network draws itself, such as a gate's jitter
            yield self.problem.losses(net(x)[None], y[None])[0]

    def step(self, step: int, steps: int) -> None:
        """One step of the optimizer."""
        for loss in self.losses({seed: self.problem.batch(seed, step) for seed in set(self.seeds)}, step):
            loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(step, steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def held(self, part: str) -> list[float]:
        """Every member's loss on a held-out part."""
        total, count = torch.zeros(len(self.nets), dtype=torch.float64), 0
        given = {seed: self.problem.held(part, seed) for seed in set(self.seeds)}
        for net in self.nets:
            net.eval()
        for rows in torch.arange(len(given[self.seeds[0]][0])).split(self.problem.rows()):
            found = self.losses({seed: (x[rows], y[rows]) for seed, (x, y) in given.items()})
            total += len(rows) * torch.stack(list(found)).double().cpu()
            count += len(rows)
        for net in self.nets:
            net.train()
        return (total / count).tolist()

    def rounded(self, names: Sequence[str]) -> list[dict[str, float]]:
        """Every member's reported loss with the dense layers of these names in fewer bits."""
        nets, found = self.nets, []
        try:
            for form in FEWER_BITS:
                self.nets = [lowered(copy.deepcopy(net), names, form) for net in nets]
                found.append(self.held("report"))
        finally:
            self.nets = nets
        return [dict(zip(FEWER_BITS, each, strict=True)) for each in zip(*found, strict=True)]

    def train(
        self, steps: int, *, say: Callable[[int], None], save: Save | None = None, held: Mapping[str, Any] | None = None
    ) -> list[Outcome]:
        """Train all members; where one's loss is no number, or ends above the untrained network's, it has the reason.

        Args:
            save: called between steps with what makes a state that `held` takes up.
        """
        if held:
            start, curves = held["step"], [[tuple(p) for p in curve] for curve in held["curves"]]
            for net, state in zip(self.nets, held["networks"], strict=True):
                net.load_state_dict(state)
            self.optimizer.load_state_dict(held["optimizer"])
        else:
            start, curves = 0, [[(0, loss)] for loss in self.held("report")]
        for step in range(start, steps):
            self.step(step, steps)
            if step + 1 in points(steps):
                for curve, loss in zip(curves, self.held("report"), strict=True):
                    curve.append((step + 1, loss))
            elif save:
                save(partial(self._state, step + 1, curves))
            say(step + 1)
        return [_outcome(curve, tune) for curve, tune in zip(curves, self.held("tune"), strict=True)]

    def _state(self, step: int, curves: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
        networks = [net.state_dict() for net in self.nets]
        return {"step": step, "curves": curves, "networks": networks, "optimizer": self.optimizer.state_dict()}


def _outcome(curve: list[tuple[int, float]], tune: float) -> Outcome:
    good = [point for point in curve if math.isfinite(point[1])]
    if len(good) < len(curve) or not math.isfinite(tune):
        bad = next((step for step, loss in curve if not math.isfinite(loss)), curve[-1][0])
        return Outcome(good, reason=f"the held-out loss is not finite at step {bad} of {curve[-1][0]}")
    if curve[-1][1] > curve[0][1]:
        return Outcome(good, reason="the held-out loss ended above the untrained network's")
    return Outcome(good, tune)
