"""Layer after layer: each fitted to what the layers converted before it hand on, and to what it should have given.

Fitted on the dense model's inputs, every layer is near for itself, and the errors add up: a later layer reads what it
was never fitted on. Here it reads what the converted model gives it, and its target is the dense model's output, so
that it makes up for errors before it as far as it can.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from structures import layers
from structures.linear import StructuredLinear
from structures.project import DAMPING, MAX_DOUBLE, Projection, from_linear
from structures.structure import Structure

Batches = Sequence[Any]
Work = Sequence[tuple[str, nn.Module, Structure]]  # name, layer, what it becomes


class _Reached(Exception):
    """All calls of the layer in question have been seen: the rest of the model need not run."""


def made_in_order(
    model: nn.Module,
    work: Work,
    batches: Batches,
    held_out: Batches | None,
    arguments: Mapping[str, Any],
    backend: str,
) -> dict[int, nn.Module]:
    """The new layers, by the old ones' ids; `model` stays as it is.

    With x what a layer reads in the dense model and x' what it reads in the one converted so far, the factors minimise
    E |W x - What x'|^2. That is the projection, in the metric of E x' x'^T, of

        W + W (E x x'^T - E x' x'^T) (E x' x'^T + damping)^-1,

    the weight that a ridge regression towards W finds. Every layer takes a pass of both models over the batches, which
    ends where the layer is reached; memory is two (in_features, in_features) matrices and the converted layers.

    Raises:
        ValueError: a layer is not called by the batches, or not by the same rows in both models; as `project`.
    """
    for name, _, structure in work:
        if structure.gate is not None:
            raise ValueError(
                f"{name}: {structure.name} chooses experts for every token, so that there is no one weight to fit; "
                "convert it without sequential=True"
            )
    twin = _twin(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    twin.eval()
    made: dict[int, nn.Module] = {}
    try:
        with torch.no_grad():
            calls = _calls(model, work, batches[0])
        for number, (name, layer, structure) in enumerate(sorted(work, key=lambda job: calls[job[0]][0])):
            if arguments.get("progress"):
                sys.stderr.write(f"layer {number + 1} of {len(work)}: {name}\n")
            converted = twin.get_submodule(name)
            with torch.no_grad():
                moments = _Moments(layer)
                moments.collect(name, (model, layer), (twin, converted), batches, calls[name][1])
            target = _target(moments, float(arguments.get("damping", DAMPING)))
            try:
                new = from_linear(target, structure, inputs=moments.seen, backend=backend, **arguments)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if held_out is not None:
                with torch.no_grad():
                    moments = _Moments(layer)
                    moments.collect(name, (model, layer), (twin, converted), held_out, calls[name][1])
            new.projection = _measured(new, moments, held_out is not None)  # type: ignore[assignment]
            made[id(layer)] = new
            twin = _put(twin, converted, copy.copy(new).eval())  # of the same parameters, without the user's hooks
    finally:
        for module in training:
            module.training = True
    for _, layer, _ in work:
        layers.carry(layer, made[id(layer)])
    return made


class _Moments:
    """E x x'^T and E x' x'^T of one layer, and E |W x|^2: x in the dense model, x' in the converted one."""

    def __init__(self, layer: nn.Module):
        self.linear = layers.as_linear(layer)
        weight = self.linear.weight
        self.dtype = torch.float64 if weight.dtype == torch.float64 or weight.numel() <= MAX_DOUBLE else torch.float32
        size = self.linear.in_features
        self.cross, self.seen = (torch.zeros(size, size, dtype=self.dtype, device=weight.device) for _ in range(2))
        self.energy = 0.0

    def collect(
        self,
        name: str,
        first: tuple[nn.Module, nn.Module],
        second: tuple[nn.Module, nn.Module],
        batches: Batches,
        calls: int,
    ) -> None:
        weight = self.linear.weight.detach()
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32  # of a batch; float64 between them
        tokens = 0
        for batch in batches:
            x, y = (_read(*pair, batch, calls) for pair in (first, second))
            if x is None or y is None or x.shape != y.shape:
                found = " and ".join("none" if rows is None else str(len(rows)) for rows in (x, y))
                raise ValueError(
                    f"{name}: it reads {found} rows of a batch in the dense and in the converted model; where that "
                    "differs (experts, early exits) rows cannot be compared: convert it with inputs= instead"
                )
            x, y = x.to(exact), y.to(exact)
            self.energy += float((x @ weight.to(exact).mT).double().square().sum())
            self.cross += x.mT @ y
            self.seen += y.mT @ y
            tokens += len(x)
        if not (math.isfinite(self.energy) and bool(torch.isfinite(self.seen).all())):
            raise ValueError(f"{name}: its inputs hold NaN or infinity, or their squares overflow")
        self.energy /= max(tokens, 1)
        for moment in (self.cross, self.seen):
            moment.div_(max(tokens, 1))


def _target(moments: _Moments, damping: float) -> nn.Linear:
    """A layer whose weight, on what the converted model gives it, comes nearest to the dense layer's outputs."""
    linear = moments.linear
    mean = moments.seen.diagonal().mean()
    lifted = moments.seen + damping * mean * torch.eye(len(moments.seen), dtype=mean.dtype, device=mean.device)
    root, failed = torch.linalg.cholesky_ex(lifted)
    if not bool(mean > 0) or int(failed):  # `project` says what is wrong with these inputs
        return linear
    weight = linear.weight.detach().to(mean.dtype)
    change = torch.cholesky_solve((weight @ (moments.cross - moments.seen)).mT, root).mT
    found = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta").train(linear.training)
    found.weight = nn.Parameter((weight + change).to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    found.bias = linear.bias
    return found


def _measured(new: StructuredLinear, moments: _Moments, held_out: bool) -> Projection:
    """The record with its errors to the dense layer: of the weight, and of the output on what is really read."""
    assert isinstance(new.projection, Projection)
    weight = moments.linear.weight.detach().to(moments.dtype)
    with torch.no_grad():
        fitted = new.to_dense().to(moments.dtype)
    between = float((weight @ moments.cross).mul(fitted).sum())
    own = float((fitted @ moments.seen).mul(fitted).sum())
    whole = moments.energy
    error = math.sqrt(max(0.0, whole - 2 * between + own) / whole) if whole > 0 else 0.0
    norm = float(weight.norm())
    far = float((weight - fitted).norm()) / norm if norm else 0.0
    return replace(new.projection, weight_error=far, output_error=error, held_out=held_out)


def _calls(model: nn.Module, work: Work, batch: Any) -> dict[str, tuple[int, int]]:
    """For each layer when it is first called, and how often.

    Raises:
        ValueError: a layer is not called.
    """
    seen: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args, name=name: seen.append(name)) for name, layer, _ in work
    ]
    try:
        _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, _, _ in work if name not in seen]
    if missing:
        raise ValueError(
            f"{missing[0]}: the first batch does not reach it, so that there is nothing to fit it on; leave it out of "
            "the rules, or swap it without sequential=True"
        )
    return {name: (seen.index(name), seen.count(name)) for name, _, _ in work}


def _read(model: nn.Module, layer: nn.Module, batch: Any, calls: int) -> Tensor | None:
    """What the layer reads in one run of the model, (rows, in_features), over its first so many calls."""
    rows: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        rows.append(x.detach().reshape(-1, x.shape[-1]).clone())
        if len(rows) == calls:
            raise _Reached

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        _call(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return torch.cat(rows) if rows else None


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are the model's own: it takes no memory, and its layers can be replaced."""
    own = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in own})


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace a layer wherever it stands; returns the root, or the new layer where the root was the old one."""
    for parent in root.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
    return new if root is old else root


def batches_of(what: str, given: object) -> Batches:
    """Batches as a list, so that they can be gone through once a layer.

    Raises:
        ValueError: they are none, or a mapping of layers' names as `swap` takes otherwise.
    """
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(
            f"swap: with sequential=True {what} is a list of the model's batches (tensors, tuples of arguments or "
            f"mappings of keyword arguments), found {type(given).__name__}"
        )
    found = list(given)
    if not found:
        raise ValueError(f"swap: {what} has no batches")
    return found
