"""The rival of every structure: the same feed-forward blocks with fewer neurons, those that matter most."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from structures.projection.project import Projection


@torch.no_grad()
def narrowed(
    model: nn.Module,
    layers: Sequence[str],
    count: int,
    seen: Mapping[str, Tensor] | None,
    held_out: Mapping[str, Tensor],
    damping: float,
) -> nn.Module:
    """A copy whose blocks keep `count` neurons each.

    Args:
        layers: names of each block's two layers, in order.
        seen: second moments of what the layers read. With them a neuron's worth is what it adds to the output, and the
            second layer is fitted anew to give the dense one's outputs from the neurons that are kept; without, its
            worth is the product of its weights' norms.
        held_out: second moments by which errors are told.
        damping: added to each neuron's variance, as a share of their mean.
    """
    model = copy.deepcopy(model)
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        up: Any = model.get_submodule(first)
        down: Any = model.get_submodule(second)
        size = up.weight.norm(dim=1) if seen is None else seen[second].diagonal().sqrt()
        kept = (size * down.weight.norm(dim=0)).topk(count).indices.sort().values
        after = down.weight[:, kept]
        if seen is not None:
            moments = seen[second]
            own = moments[kept][:, kept]
            own = own + damping * own.diagonal().mean() * torch.eye(count)
            after = torch.linalg.solve(own, moments[kept] @ down.weight.T).T  # (out, count)
        before = torch.zeros_like(up.weight).index_copy(0, kept, up.weight[kept])
        wide = torch.zeros_like(down.weight).index_copy(1, kept, after)
        bias = up.bias[kept]
        for name, old, full, weight, offset in (
            (first, up, before, up.weight[kept], bias),
            (second, down, wide, after, down.bias),
        ):
            layer: Any = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.copy_(weight)
            layer.bias.copy_(offset)
            layer.projection = _record(old.weight, full, held_out[name])
            model.set_submodule(name, layer)
    return model


def _record(weight: Tensor, found: Tensor, moments: Tensor) -> Projection:
    """How far the layer with zeros in place of what is gone is from the dense one."""
    lost = weight - found
    output = ((lost @ moments) * lost).sum() / ((weight @ moments) * weight).sum()
    return Projection(
        method="neurons kept",
        weight_error=float(lost.norm() / weight.norm()),
        output_error=float(output.clamp_min(0).sqrt()),
        held_out=True,
        iterations=1,
        optimal=False,
        converged=True,
        history=(),
    )
