"""Initial values and learning rates that make widths and structures comparable: the structured muP rule for all.

Every rate of the grid is run; the rule only brings the grids of widths and structures to about the same place.
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


def multipliers(model: nn.Module, base: Mapping[str, int]) -> dict[str, float]:
    """By what each parameter's rate differs from the grid's.

    Args:
        base: `inputs_of` the dense network of the width at which rates are as they are given.
    """
    now, found = inputs_of(model), {}
    for group in param_groups(model, 1.0):
        for name in group["names"]:
            layer, _, own = name.rpartition(".")
            times = base[layer] / now[layer] if layer in base and layer in now and own != "bias" else 1.0
            found[name] = group["multiplier"] * times
    return found
