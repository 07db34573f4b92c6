"""The time of an encoder beside the dense one's, in calls taken in turn."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from bench.machine import setup, timing
from bench.minilm.data import Data
from bench.minilm.request import ConversionPoint
from structures.models.swap import swap

EFFORT = timing.Effort(paired=1.5, alone=0.0, rounds=7)
NOISY = 0.25  # distance of a ratio's quartiles, as a share of the median, from which a row is flagged


def shaped(data: Data, point: ConversionPoint, shapes: dict[str, tuple[int, int]]) -> nn.Module:
    """The encoder with layers of these structures and random factors: it takes the time of a converted one."""
    model = copy.deepcopy(data.model)
    swap(model, {layer: (point.name, point.options[shape]) for layer, shape in shapes.items()})
    return model.eval()


def timed(data: Data, model: nn.Module, load: setup.Load) -> dict[str, Any]:
    """Dense's time over this one's; seconds per sentence."""
    load.since()
    step, dense = _step(model, data), _step(data.model, data)
    seconds = timing.once(step), timing.once(dense)
    ratio = timing.paired(step, dense, EFFORT, seconds=seconds)
    foreign = load.since()
    flags = {"load": foreign is not None and foreign > setup.FOREIGN_LOAD, "noisy": ratio.width > NOISY}
    return {
        "speedup": ratio.as_dict(),
        "seconds_per_sentence": seconds[0] / len(data.timed["attention_mask"]),
        "flags": [name for name, raised in flags.items() if raised],
    }


def _step(model: nn.Module, data: Data) -> timing.Step:
    def call() -> object:
        with torch.inference_mode():
            return model(**data.timed)

    return call
