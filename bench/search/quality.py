"""How good a structure is at a shape: its distance from a weight, or the loss of a short training run. Less is better.

Both are relative: 0 is perfect, 1 is what a layer of zeros, or of the mean, would reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.files.errors import UsageError
from structures import StructuredLinear, param_groups, project_factors
from structures.structure import Structure

RUNGS = {"none": (), "projection": (1, 4, 16), "training": (20, 60, 180)}  # sweeps, or steps
TOKENS = 256  # a step
HELD_OUT = 1024
RATE, BASE = 0.04, 64  # of a dense layer of 64 inputs, muP brings it to others: best of 0.01, 0.04, 0.16 at 1024
TRAINED_STEPS = 100  # of the dense layer whose weight is projected where none is given


def measure(kind: str, structure: Structure, amount: int, weight: Tensor, seed: int) -> float:
    """The quality after `amount` sweeps or steps: relative Frobenius error, or loss over the targets' variance."""
    if kind == "projection":
        return project_factors(weight, structure, limit=amount)[1].weight_error
    task = Task(weight, seed)
    torch.manual_seed(seed)
    layer = StructuredLinear(
        structure.spec,
        *structure.widths,
        init="spectral",
        **dict(structure.options),  # type: ignore[arg-type]
    )
    return task.train(layer, amount)


class Task:
    """Random features: a layer and a ReLU learn to do what a given weight and a ReLU do to Gaussian inputs.

    The steps' inputs are fresh and the same for every structure of one seed.
    """

    def __init__(self, weight: Tensor, seed: int):
        self.seed = seed
        scale = math.sqrt(weight.shape[0]) / float(torch.linalg.matrix_norm(weight))  # W x is of order one
        self.weight = weight.float() * scale
        self.held_out = torch.randn(HELD_OUT, weight.shape[1], generator=torch.Generator().manual_seed(seed))

    def targets(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).relu()

    def train(self, layer: nn.Module, steps: int) -> float:
        """The held-out loss after so many steps of Adam at muP's rates; infinite where it is no number."""
        groups: list[dict[str, Any]] = [{"params": layer.parameters(), "lr": RATE * BASE / self.weight.shape[1]}]
        if isinstance(layer, StructuredLinear):
            groups = param_groups(layer, RATE, base_width=BASE)
        optimizer = torch.optim.Adam(groups, lr=RATE)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
        draw = torch.Generator().manual_seed(self.seed + 1)
        for _ in range(steps):
            x = torch.randn(TOKENS, self.weight.shape[1], generator=draw)
            loss = (layer(x).relu() - self.targets(x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        with torch.no_grad():
            y = self.targets(self.held_out)
            left = (layer(self.held_out).relu() - y).square().mean() / y.var(dim=0).mean()
        return float(left) if torch.isfinite(left) else math.inf


def flat(in_features: int, out_features: int, seed: int) -> Tensor:
    """A weight whose singular values are all equal, so that no direction of the input can be neglected."""
    draw = torch.Generator().manual_seed(seed)
    long, short = max(in_features, out_features), min(in_features, out_features)
    q, _ = torch.linalg.qr(torch.randn(long, short, generator=draw))
    return (q if out_features == long else q.T).contiguous()


def trained(in_features: int, out_features: int, seed: int) -> Tensor:
    """The weight of a dense layer after a short training run on the task with a flat weight."""
    torch.manual_seed(seed)
    layer = nn.Linear(in_features, out_features)
    Task(flat(in_features, out_features, seed + 2), seed).train(layer, TRAINED_STEPS)
    return layer.weight.detach()


def load(file: Path, key: str | None, in_features: int, out_features: int) -> Tensor:
    """A weight (out_features, in_features) from a .npy, .pt or .safetensors file.

    Raises:
        UsageError: a file that cannot be read, a key that is not there, another shape; the message says what is.
    """
    found = _tensors(file)
    if isinstance(found, dict):
        if key not in found:
            shown = ", ".join(f"{name} {tuple(t.shape)}" for name, t in list(found.items())[:12])
            raise UsageError(
                f"--key: {key!r} is not in {file}; it holds {shown}" if key else f"--key: name one of {shown}"
            )
        found = found[key]
    elif key is not None:
        raise UsageError(f"--key: {file} holds one array; leave --key out")
    shape = (out_features, in_features)
    if tuple(found.shape) != shape:
        hint = "; it fits transposed" if tuple(found.shape) == shape[::-1] else ""
        raise UsageError(f"--weight: (out, in) = {shape} is wanted, {file} has {tuple(found.shape)}{hint}")
    if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
        raise UsageError(f"--weight: {file} does not hold finite floating-point numbers")
    return found.float().contiguous()


def _tensors(file: Path) -> Tensor | dict[str, Tensor]:
    if file.exists() and not file.is_file():  # a pipe would be waited on
        raise UsageError(f"--weight: {file} is not a regular file")
    try:
        if file.suffix == ".npy":
            import numpy as np

            return torch.from_numpy(np.load(file, allow_pickle=False))
        if file.suffix in (".pt", ".pth"):
            held = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(held, Tensor):
                return held
            return {str(k): v for k, v in held.items() if isinstance(v, Tensor)}
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
    except ModuleNotFoundError as error:
        raise UsageError(f"--weight: {file.suffix} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # each of the three readers raises its own for what it cannot read
        raise UsageError(f"--weight: {file} cannot be read: {str(error).partition(chr(10))[0]}") from None
    raise UsageError(f"--weight: a .npy, .pt or .safetensors file, found {file.name!r}")


def halved(ranked: Sequence[str], kept: int) -> list[str]:
    """The best half of what a rung has ranked, but no fewer than `kept`."""
    return list(ranked[: max(kept, (len(ranked) + 1) // 2)])
