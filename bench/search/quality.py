"""How good a structure is at a shape: its distance from a weight, or the loss of a short training run. Less is better.

Both are relative: 0 is perfect, 1 is what a layer of zeros, or of the mean, would reach.
"""

from __future__ import annotations

import math
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
LEAST_ROWS = 8 * TOKENS  # of inputs that are given: an eighth of them measures
RATE, BASE = 0.04, 64  # of a dense layer of 64 inputs, muP brings it to others: best of 0.01, 0.04, 0.16 at 1024
TRAINED_STEPS = 100  # of the dense layer whose weight is projected where none is given


def measure(
    kind: str, structure: Structure, amount: int, weight: Tensor, seed: int, inputs: Tensor | None = None
) -> float:
    """The quality after `amount` sweeps or steps: relative Frobenius error, or loss over the targets' variance.

    Args:
        inputs: (rows, in_features) that it is trained on; without them Gaussian ones.
    """
    if kind == "projection":
        return project_factors(weight, structure, limit=amount)[1].weight_error
    task = Task(weight, seed, inputs)
    torch.manual_seed(seed)
    layer = StructuredLinear(
        structure.spec,
        *structure.widths,
        init="spectral",
        **dict(structure.options),  # type: ignore[arg-type]
    )
    return task.train(layer, amount)


class Task:
    """A layer and a ReLU learn to do what a given weight and a ReLU do to Gaussian inputs, or to given ones.

    The steps' inputs are the same for every structure of one seed; Gaussian ones are fresh, of given ones the last
    eighth is what the loss is measured on.
    """

    def __init__(self, weight: Tensor, seed: int, inputs: Tensor | None = None):
        self.seed = seed
        scale = math.sqrt(weight.shape[0]) / float(torch.linalg.matrix_norm(weight))  # W x is of order one
        self.weight = weight.float() * scale
        self.rows: Tensor | None = None
        if inputs is None:
            self.held_out = torch.randn(HELD_OUT, weight.shape[1], generator=torch.Generator().manual_seed(seed))
        else:
            x = inputs - inputs.mean(0)
            x = x / x.square().mean().sqrt()
            self.rows, self.held_out = x[: -(len(x) // 8)], x[-(len(x) // 8) :]

    def drawn(self, draw: torch.Generator) -> Tensor:
        """The inputs of a step."""
        if self.rows is None:
            return torch.randn(TOKENS, self.weight.shape[1], generator=draw)
        return self.rows[torch.randint(len(self.rows), (TOKENS,), generator=draw)]

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
            x = self.drawn(draw)
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
    found = _tensors("--weight", file)
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
    return _finite("--weight", file, found)


def load_inputs(file: Path, in_features: int) -> Tensor:
    """What a layer reads, (rows, in_features), the only array of a .npy, .pt or .safetensors file.

    Raises:
        UsageError: a file that cannot be read, several arrays, another shape, too few rows; the message says what is.
    """
    found = _tensors("--inputs", file)
    if isinstance(found, dict):
        if len(found) != 1:
            raise UsageError(f"--inputs: {file} holds {len(found)} arrays, {', '.join(list(found)[:12])}; keep one")
        (found,) = found.values()
    if found.dim() != 2 or found.shape[1] != in_features or len(found) < LEAST_ROWS:
        wanted = f"(rows, in_features) = ({LEAST_ROWS} or more, {in_features})"
        raise UsageError(f"--inputs: {wanted} is wanted, {file} has {tuple(found.shape)}")
    found = _finite("--inputs", file, found)
    spread = (found - found.mean(0)).square().mean()
    if not 0 < spread < math.inf:
        raise UsageError(f"--inputs: the numbers of {file} vary by {float(spread):g}: nothing can be learned from them")
    return found


def _finite(option: str, file: Path, found: Tensor) -> Tensor:
    single = found.float()
    if not found.is_floating_point() or not bool(torch.isfinite(single).all()):
        raise UsageError(f"{option}: {file} does not hold finite floating-point numbers of float32's range")
    return single.contiguous()


def _tensors(option: str, file: Path) -> Tensor | dict[str, Tensor]:
    if file.exists() and not file.is_file():  # a pipe would be waited on
        raise UsageError(f"{option}: {file} is not a regular file")
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
        raise UsageError(f"{option}: {file.suffix} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # each of the three readers raises its own for what it cannot read
        raise UsageError(f"{option}: {file} cannot be read: {str(error).partition(chr(10))[0]}") from None
    raise UsageError(f"{option}: a .npy, .pt or .safetensors file, found {file.name!r}")
