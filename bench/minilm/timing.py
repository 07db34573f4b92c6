"""The time of an encoder relative to the dense one's, from interleaved calls."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from bench.files.vocabulary import NARROW
from bench.machine import setup, timing
from bench.minilm.data import Data
from bench.minilm.narrow import narrowed
from bench.minilm.request import ConversionPoint
from structures.models.swap import swap

EFFORT = timing.Effort(paired=1.5, alone=0.0, rounds=7)


def shaped(data: Data, point: ConversionPoint, shapes: dict[str, tuple[int, int]]) -> nn.Module:
    """The encoder with layers of these structures and any factors: it takes the time of a converted one."""
    if point.name == NARROW:
        moments = {name: torch.eye(inputs) for name, (inputs, _) in shapes.items()}
        return narrowed(data.model, list(shapes), point.neurons, None, moments, 0.0)
    model = copy.deepcopy(data.model)
    swap(model, {layer: (point.name, point.options[shape]) for layer, shape in shapes.items()})
    return model.eval()


def timed(data: Data, model: nn.Module, load: setup.Load) -> dict[str, Any]:
    """Dense's time over this one's; seconds per sentence."""
    found = timing.against(_step(model, data), _step(data.model, data), EFFORT, load)
    return found | {"seconds_per_sentence": found.pop("seconds") / len(data.timed["attention_mask"])}


def _step(model: nn.Module, data: Data) -> timing.Step:
    def call() -> object:
        with torch.inference_mode():
            return model(**data.timed)

    return call
