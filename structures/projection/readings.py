"""What layers read when a model runs: how they are called by a batch, and the rows they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Calls(NamedTuple):
    """When a layer is first called, how often, and with how many rows in all, by the first batch."""

    first: int
    times: int
    rows: int


class _Reached(Exception):
    """All calls of the layers in question have been seen: the rest of the model need not run."""


def calls_of(model: nn.Module, chosen: Mapping[str, nn.Module], batch: Any) -> dict[str, Calls]:
    """How the layers are called by a batch.

    Raises:
        ValueError: a layer is not called.
    """
    seen: list[tuple[str, int]] = []

    def hook(name: str, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        seen.append((name, x.numel() // max(1, x.shape[-1])))

    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: hook(name, args, kwargs), with_kwargs=True
        )
        for name, layer in chosen.items()
    ]
    try:
        _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    order = [name for name, _ in seen]
    missing = [name for name in chosen if name not in order]
    if missing:
        raise ValueError(
            f"{missing[0]}: the first batch does not reach it, so that there is nothing to fit it on; leave it out of "
            "the rules, or swap it without sequential=True"
        )
    rows = {name: sum(count for called, count in seen if called == name) for name in order}
    return {name: Calls(order.index(name), order.count(name), rows[name]) for name in chosen}


def read(
    model: nn.Module, chosen: Mapping[str, nn.Module], calls: Mapping[str, Calls], batch: Any
) -> dict[str, Tensor]:
    """What each layer reads in one run of the model, (rows, in_features), over its first so many calls."""
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def hook(name: str, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if len(rows[name]) < calls[name].times:
            rows[name].append(x.detach().reshape(-1, x.shape[-1]).clone())
        if all(len(rows[other]) >= calls[other].times for other in rows):
            raise _Reached

    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: hook(name, args, kwargs), with_kwargs=True
        )
        for name, layer in chosen.items()
    ]
    try:
        _call(model, batch)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in rows.items() if parts}


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)
