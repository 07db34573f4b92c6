"""What a network costs: parameters and FLOPs of the replaced layers and of the whole network, counted and executed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from structures import StructuredLinear, backends
from structures.models import linears
from structures.models.runs import calls_of


@torch.no_grad()
def costs(
    model: nn.Module, names: Sequence[str], x: Tensor, tokens: int, *, dense: nn.Module | None = None
) -> dict[str, Any]:
    """Parameters, and FLOPs of one token: 2 per multiply-add, of the forward; training counts three forwards.

    What is not replaced is counted by PyTorch's counter on the dense network, attention's products in full. `executed`
    differs from `counted` where a backend pads or merges.

    Args:
        names: the layers to replace, or what stands in their place.
        x: a batch.
        tokens: tokens, or samples, of it.
        dense: the network with those layers dense; `model` itself where it has no structure.
    """
    dense = dense or model
    rows, rest = _rest(dense, names, x)
    model(x)  # each layer now knows the backend that it runs by
    have, executed = 0, 0
    for name in names:
        module = model.get_submodule(name)
        count = rows[name]
        if isinstance(module, StructuredLinear):
            have += module.structure.flops(count)
            executed += backends.get(module.ran or "").executed_flops(module.structure, count, train=True)
        elif linears.kind(module) is not None:
            have += _linear(module, count)
            executed += 3 * _linear(module, count)
    replaced = {id(p): p.numel() for name in names for p in model.get_submodule(name).parameters()}
    whole = {id(p): p.numel() for p in model.parameters()}
    return {
        "params": sum(whole.values()),
        "replaced_params": sum(replaced.values()),
        "flops": (rest + have) / tokens,
        "replaced_flops": have / tokens,
        "train_flops": 3 * (rest + have) / tokens,
        "executed_train_flops": (3 * rest + executed) / tokens,
    }


def shares(own: dict[str, Any], dense: dict[str, Any]) -> dict[str, float]:
    """Costs as shares of dense's: `replaced_params_share`, `params_share`, ..."""
    return {f"{key}_share": own[key] / dense[key] for key in own}


def _rest(dense: nn.Module, names: Sequence[str], x: Tensor) -> tuple[dict[str, int], int]:
    """Rows that each layer of `names` sees, and the FLOPs of all else."""
    rows = {name: called.rows for name, called in calls_of(copy.deepcopy(dense), names, x).items()}
    # of attention in two products: the fused one of the CPU counts nothing in torch 2.13
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        dense(x)
    kinds = {name: dense.get_submodule(name) for name in names}
    own = sum(_linear(module, rows[name]) for name, module in kinds.items() if linears.kind(module) is not None)
    return rows, counter.get_total_flops() - own


def _linear(module: nn.Module, rows: int) -> int:
    in_features, out_features = linears.widths(module)
    return 2 * rows * in_features * out_features
