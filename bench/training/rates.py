"""Initial values and learning rates that make widths and structures comparable: the structured muP rule for all.

A rate is found once, at the smallest width. A matrix of a wider network learns at that rate times base inputs / inputs,
a factor of a structure at its own multiple of what the dense matrix in its place would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from structures.models import linears
from structures.models.rates import param_groups


@torch.no_grad()
def draw(model: nn.Module, names: Sequence[str]) -> None:
    """Draw dense layers anew by the rule that structures are drawn by: normal, std sqrt(1/in) min(1, sqrt(out/in)).

    Source: Qiu et al. 2024, arXiv:2406.06248.
    """
    for name in names:
        module = model.get_submodule(name)
        fan_in, fan_out = linears.widths(module)
        weight: Any = module.weight
        weight.normal_(0, math.sqrt(1 / fan_in) * min(1.0, math.sqrt(fan_out / fan_in)))
        if module.bias is not None:
            module.bias.zero_()  # type: ignore[operator]


def inputs_of(model: nn.Module) -> dict[str, int]:
    """The number of inputs of every linear layer, by its name."""
    return {name: linears.widths(m)[0] for name, m in model.named_modules() if linears.kind(m) is not None}


def groups(model: nn.Module, base: Mapping[str, int], lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for AdamW.

    Args:
        base: `inputs_of` the dense network of the smallest width, at which `lr` was found.
    """
    now = inputs_of(model)
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for group in param_groups(model, lr, weight_decay):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            layer, _, own = name.rpartition(".")
            times = base[layer] / now[layer] if layer in base and layer in now and own != "bias" else 1.0
            key = group["lr"] * times, group["weight_decay"]
            empty = {"params": [], "lr": key[0], "weight_decay": key[1]}
            found.setdefault(key, empty)["params"].append(parameter)
    return list(found.values())
