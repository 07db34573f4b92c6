"""One training run: steps, the curve of held-out losses, checkpoints, and divergence as a result like any other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.training.checkpoint import Checkpoints
from bench.training.parallel import Processes, clip
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting

WARM_UP = 0.05  # share of the steps over which the rate rises
CLIP = 1.0  # norm that gradients are scaled down to
POINTS = 10  # of a curve, from a twentieth of the steps on, at equal ratios
LOOK = 20  # steps between two looks at the loss on a GPU, where each look waits for the device

Say = Callable[[int], None]


@dataclass
class Outcome:
    """What a run came to: a curve of (step, held-out loss), and why it ended early if it did."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    reason: str | None = None
    seconds: float = 0.0  # of steps alone, as the machine was
    taken_up: int = 0  # the step at which a checkpoint was taken up

    @property
    def loss(self) -> float | None:
        return self.curve[-1][1] if self.curve and self.reason is None else None


def rate(setting: Setting, step: int, steps: int) -> float:
    """The schedule: by how much the learning rate is multiplied at a step."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 1.0 if setting.schedule == "constant" else (steps - step) / max(1, steps - warm)


def points(steps: int) -> list[int]:
    """Steps after which the held-out loss is measured; the last one always, 0 for what was never trained."""
    first = max(1, steps // 20)
    ratios = [(steps / first) ** (i / (POINTS - 1)) for i in range(POINTS)]
    return sorted({0, *(min(steps, max(1, round(first * r))) for r in ratios), steps})


def optimizer_of(groups: list[dict[str, Any]], group: Processes) -> torch.optim.Optimizer:
    """AdamW, fused: a third of a small network's step otherwise (12 instead of 63 ms at 5.8 M parameters, CPU)."""
    for entry in groups:
        entry["initial_lr"] = entry["lr"]
    fused = group.size == 1 or group.kind == "ddp"  # sharded parameters take the plain one
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=fused)


def train(
    model: nn.Module,
    groups: Callable[[nn.Module], list[dict[str, Any]]],
    problem: TrainingProblem,
    *,
    key: str,
    steps: int,
    seed: int,
    part: str,
    group: Processes,
    checkpoints: Checkpoints | None = None,
    say: Say | None = None,
) -> Outcome:
    """Train `model` in place.

    Args:
        groups: the optimizer's, of the model as it is trained.
        key: of the run, for its checkpoint.
        part: of the held-out data that the curve is measured on.
        say: called with the steps done, now and then.
    Returns:
        the curve; where a loss was not finite, or ended above the untrained network's, the reason.
    """
    setting = problem.setting
    model.to(group.device)
    optimizer = optimizer_of(groups(model), group) if group.size == 1 or group.kind == "ddp" else None
    wrapped = group.wrap(model)
    optimizer = optimizer or optimizer_of(groups(model), group)
    forward = torch.compile(wrapped) if setting.compile else wrapped
    out, start = Outcome(), 0
    held = checkpoints.load(key, wrapped, optimizer) if checkpoints else None
    if held:
        out.curve, out.seconds, start = [tuple(p) for p in held["curve"]], held["seconds"], held["step"]
        out.taken_up = start
    measured = {0, steps} if part == "tune" else set(points(steps))
    if start == 0:
        out.curve.append((0, evaluate(forward, problem, part, group)))
    clock = time.perf_counter()
    for step in range(start, steps):
        loss = _step(forward, wrapped, optimizer, problem, seed, step, steps, group)
        look = group.device == "cpu" or step % LOOK == 0 or step + 1 in measured
        if look and not math.isfinite(_mean(loss, group)):
            out.reason = f"the loss is not finite at step {step + 1} of {steps}"
            break
        if step + 1 in measured:
            out.seconds += time.perf_counter() - clock
            out.curve.append((step + 1, evaluate(forward, problem, part, group)))
            if not math.isfinite(out.curve[-1][1]):
                out.reason = f"the held-out loss is not finite at step {step + 1} of {steps}"
                out.curve.pop()
                return out
            clock = time.perf_counter()
        if checkpoints and step + 1 < steps and checkpoints.due():
            state = {"step": step + 1, "curve": out.curve, "seconds": out.seconds + time.perf_counter() - clock}
            checkpoints.save(key, wrapped, optimizer, state)
        if say:
            say(step + 1)
    else:
        fresh = not setting.starts  # one that was projected may well end above where it stood
        if fresh and len(out.curve) > 1 and out.curve[-1][1] > out.curve[0][1]:
            out.reason = "the held-out loss ended above the untrained network's"
    return out


def _step(
    forward: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: TrainingProblem,
    seed: int,
    step: int,
    steps: int,
    group: Processes,
) -> Tensor:
    """One step of the optimizer; returns this process's mean loss."""
    setting = problem.setting
    x, y = problem.batch(seed, step)
    x, y = group.rows(x).to(group.device), group.rows(y).to(group.device)
    total = torch.zeros((), device=x.device)
    parts = list(zip(x.tensor_split(setting.accumulate), y.tensor_split(setting.accumulate), strict=True))
    for number, (inputs, targets) in enumerate(parts):
        with group.no_sync(model, last=number + 1 == len(parts)):
            with _precision(setting, group):
                outputs = forward(inputs)
            loss = problem.loss(outputs, targets) / len(parts)
            loss.backward()
        total += loss.detach()
    clip(model, CLIP)
    for entry in optimizer.param_groups:
        entry["lr"] = entry["initial_lr"] * rate(setting, step, steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _mean(loss: Tensor, group: Processes) -> float:
    return float(group.sum(loss.clone())) / group.size


def _precision(setting: Setting, group: Processes) -> Any:
    half = setting.precision == "bfloat16"
    return torch.autocast(group.device.partition(":")[0], dtype=torch.bfloat16, enabled=half)


@torch.no_grad()
def outputs(forward: Any, x: Tensor, setting: Setting, group: Processes) -> Tensor:
    """The network's outputs for a batch on its device, without gradients."""
    with _precision(setting, group):
        y: Tensor = forward(x.to(group.device))
    return y


def evaluate(forward: Any, problem: TrainingProblem, part: str, group: Processes) -> float:
    """The mean loss on a part of the held-out data; each process measures its rows of every batch."""
    x, y = problem.parts[part]
    total = torch.zeros((), dtype=torch.float64, device=group.device)
    for rows in torch.arange(len(x)).split(max(group.size, problem.rows())):
        mine = group.rows(rows)
        weight = 1.0 if len(mine) else 0.0  # sharded parameters are gathered by all: also for those without rows
        mine = mine if len(mine) else rows[:1]
        found = outputs(forward, x[mine], problem.setting, group)
        total += weight * problem.loss(found, y[mine].to(group.device), "sum")
    count = len(y) if problem.teacher is not None else y.numel()
    return float(group.sum(total)) / count


def correct(forward: Any, problem: TrainingProblem, group: Processes) -> float:
    """The share of held-out images whose class is named."""
    x, y = problem.parts["report"]
    right = torch.zeros((), dtype=torch.float64, device=group.device)
    for rows in torch.arange(len(x)).split(max(group.size, problem.rows())):
        mine = group.rows(rows)
        weight = 1.0 if len(mine) else 0.0
        mine = mine if len(mine) else rows[:1]
        found = outputs(forward, x[mine], problem.setting, group).argmax(-1)
        right += weight * (found == y[mine].to(group.device)).sum()
    return float(group.sum(right)) / len(y)
