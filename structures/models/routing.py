"""What the routers of a model decided, gathered for a loss or to be looked at; nothing is kept outside the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from structures.linear import StructuredLinear
from structures.routing import Routing


class Routings(list[tuple[str, Routing]]):
    """(name of the layer, Routing) of every call of a gated layer, in the order of calls within each layer."""

    def balance_loss(self) -> Tensor:
        """Mean of the calls' load-balancing losses: 1 where every load is even; see `Routing.balance_loss`."""
        return torch.stack([routing.balance_loss() for _, routing in self._some()]).mean()

    def z_loss(self) -> Tensor:
        """Mean of the calls' z losses; see `Routing.z_loss`."""
        return torch.stack([routing.z_loss() for _, routing in self._some()]).mean()

    def _some(self) -> Routings:
        if not self:
            raise ValueError("no layer with a gate has run inside collect_routing, or the block has not ended yet")
        return self


@contextmanager
def collect_routing(model: nn.Module) -> Iterator[Routings]:
    """Gather the routing of every gated layer of `model` that runs inside the block.

        with structures.collect_routing(model) as routings:
            y = model(x)
        loss = task(y) + 0.01 * routings.balance_loss() + 0.001 * routings.z_loss()

    The list is filled when the block ends. Each block gathers its own calls: it is written on the layers of this model
    alone, for the length of the block, so it works inside DDP and under torch.compile, and one model is not collected
    from two threads at once. What activation checkpointing computes a second time, in the backward, is left out; with
    `use_reentrant=True` the first time has no gradients, and neither have the losses.

    Raises:
        ValueError: the model has no layer with a gate, or is being collected already.
    """
    found = {id(m): (name, m) for name, m in model.named_modules() if isinstance(m, StructuredLinear)}
    layers = [(name, layer) for name, layer in found.values() if layer.structure.gate is not None]
    if not layers:
        raise ValueError(f"collect_routing: {type(model).__name__} has no layer with a gate")
    if any(layer.collected is not None for _, layer in layers):
        raise ValueError("collect_routing: this model is being collected already; blocks do not nest")
    routings = Routings()
    for _, layer in layers:
        layer.collected = []
    try:
        yield routings
        routings.extend((name, routing) for name, layer in layers for routing in layer.collected or ())
    finally:
        for _, layer in layers:
            layer.collected = None
