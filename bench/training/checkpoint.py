"""Where a run stands, on disk: written whole or not at all, taken up after a kill to the same result."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping
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

from bench.files.errors import Wrong
from bench.training.parallel import Processes

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Checkpoints:
    """The one checkpoint of the run under way, beside the file of rows.

    Args:
        every: seconds between two.
        before: called before one is written: rows of runs that are done must not be older than it.
    """

    def __init__(self, path: Path, every: float, group: Processes, before: Callable[[], None] = lambda: None):
        self.path, self.every, self.group, self.before = path, every, group, before
        self.last = time.perf_counter()

    def due(self) -> bool:
        """Whether it is time; every process gives the same answer."""
        return bool(self.group.say(time.perf_counter() - self.last >= self.every))

    def save(self, key: str, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Keep a run's step, curve and parameters."""
        self.before()
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
    part = path.with_name(path.name + ".part")
    try:
        torch.save(dict(value), part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with suppress(OSError):
            part.unlink()
        raise Wrong(f"-o: cannot write the checkpoint {path}: {error}") from None


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
