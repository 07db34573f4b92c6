"""Checkpoints of a training run: written atomically, and a run resumed from one ends with the same result."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from bench.files import atomic
from bench.files.errors import UsageError
from bench.training.parallel import Processes

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Checkpoints:
    """The one checkpoint of the run under way, beside the file of rows.

    Args:
        every: seconds between two.
    """

    def __init__(self, path: Path, every: float, group: Processes):
        self.path, self.every, self.group = path, every, group
        self.last = time.perf_counter()

    def due(self) -> bool:
        """Whether it is time for a checkpoint; every process gets the same answer."""
        return bool(self.group.say(time.perf_counter() - self.last >= self.every))

    def save(self, key: str, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Keep a run's step, curve and parameters."""
        tensors = _state(model, optimizer, self.group)
        if self.group.first:
            write(self.path, {"key": key, **tensors, **state})
        self.last = time.perf_counter()

    def load(self, key: str, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
        """The state that `save` was given, with model and optimizer set to it; None where there is none of this run."""
        held = read(self.path)
        if held is None or held.pop("key") != key:
            return None
        _set_state(model, optimizer, held.pop("model"), held.pop("optimizer"), self.group)
        return held

    def clear(self) -> None:
        if self.group.first:
            with suppress(FileNotFoundError):
                self.path.unlink()


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write a state as torch does; the file appears whole.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        atomic.write(lambda file: torch.save(dict(value), file), path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UsageError(f"-o: cannot write the checkpoint {path}: {error}") from None


def read(path: Path) -> dict[str, Any] | None:
    """What is kept there; None where there is no file, or one that is no checkpoint."""
    if not path.is_file():
        return None
    try:
        held = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return held if isinstance(held, dict) and "key" in held else None


def _state(model: nn.Module, optimizer: Optimizer, group: Processes) -> dict[str, Any]:
    if group.size == 1:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    mine, steps = get_state_dict(model, optimizer, options=WHOLE)
    return {"model": mine, "optimizer": steps}


def _set_state(model: nn.Module, optimizer: Optimizer, mine: Any, steps: Any, group: Processes) -> None:
    if group.size == 1:
        model.load_state_dict(mine)
        optimizer.load_state_dict(steps)
    else:
        set_state_dict(model, optimizer, model_state_dict=mine, optim_state_dict=steps, options=WHOLE)


def whole(model: nn.Module) -> dict[str, Any]:
    """A model's state on the CPU, whole where it is sharded."""
    found = get_model_state_dict(model, options=WHOLE)
    return {name: value.detach().clone() for name, value in found.items()}
