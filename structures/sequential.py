"""Layer after layer: each fitted to what the layers converted before it hand on, and to what it should have given.

Fitted on the dense model's inputs, every layer is near for itself, and the errors add up: a later layer reads what it
was never fitted on. Here it reads what the converted model gives it, and its target is the dense model's output, so
that it makes up for errors before it as far as it can.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from structures import layers
from structures.linear import StructuredLinear
from structures.project import DAMPING, MAX_DOUBLE, Projection, from_linear
from structures.projection.readings import Calls, calls_of, read
from structures.structure import Structure

Batches = Sequence[Any]
Work = Sequence[tuple[str, nn.Module, Structure]]  # name, layer, what it becomes

KEPT = 2**28  # bytes of what is kept at a time, so that one pass serves several layers


def made_in_order(
    model: nn.Module,
    work: Work,
    batches: Batches,
    held_out: Batches | None,
    arguments: Mapping[str, Any],
    backend: str,
) -> dict[int, StructuredLinear]:
    """The new layers, by the old ones' ids; `model` stays as it is.

    With x what a layer reads in the dense model and x' what it reads in the one converted so far, the factors minimise
    E |W x - What x'|^2. That is the projection, in the metric of E x' x'^T, of

        W + W (E x x'^T - E x' x'^T) (E x' x'^T + damping)^-1,

    the weight that a ridge regression towards W finds. Every layer takes a pass of the converted model over the
    batches, which ends where the layer is reached. The dense model is run once for as many layers as have their outputs
    W x in KEPT bytes, and what is held out goes through both models once at the end, or for each KEPT bytes of weights.
    Memory beside that: a covariance, two weights, and the converted layers.

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
    made: dict[int, StructuredLinear] = {}
    converted: dict[str, nn.Module] = {}  # the same by name, without the user's hooks
    try:
        with torch.no_grad():
            calls = calls_of(model, {name: layer for name, layer, _ in work}, batches[0])
        ordered = sorted(work, key=lambda job: calls[job[0]].first)
        wanted: dict[str, list[Tensor | None]] = {}  # W x of the layers that come next, for each batch
        for number, (name, layer, structure) in enumerate(ordered):
            if arguments.get("progress"):
                sys.stderr.write(f"layer {number + 1} of {len(work)}: {name}\n")
            old = twin.get_submodule(name)
            with torch.no_grad():
                if name not in wanted:
                    wanted = _wanted(model, ordered[number:], calls, batches)
                moments = _Moments(layer)
                for batch, outputs in zip(batches, wanted.pop(name), strict=True):
                    moments.add(name, outputs, read(twin, {name: old}, calls, batch).get(name))
                moments.end(name)
            target = _target(moments, float(arguments.get("damping", DAMPING)))
            try:
                new = from_linear(target, structure, inputs=moments.seen, backend=backend, **arguments)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            new.projection = moments.record(new)  # type: ignore[assignment]
            made[id(layer)] = new
            converted[name] = copy.copy(new).eval()  # of the same parameters
            twin = _put(twin, old, converted[name])
        if held_out is not None:
            with torch.no_grad():
                errors = _errors(model, twin, ordered, converted, calls, held_out)
            for name, layer, _ in work:
                new = made[id(layer)]
                assert isinstance(new.projection, Projection)
                new.projection = replace(new.projection, output_error=errors[name], held_out=True)
    finally:
        for module in training:
            module.training = True
    for _, layer, _ in work:
        layers.carry(layer, made[id(layer)])
    return made


class _Moments:
    """W E x x'^T, E x' x'^T and E |W x|^2 of one layer: x in the dense model, x' in the converted one."""

    def __init__(self, layer: nn.Module):
        self.linear = layers.as_linear(layer)
        weight = self.linear.weight
        self.dtype = torch.float64 if weight.dtype == torch.float64 or weight.numel() <= MAX_DOUBLE else torch.float32
        self.product = torch.zeros(weight.shape, dtype=self.dtype, device=weight.device)
        self.seen = torch.zeros(weight.shape[1:] * 2, dtype=self.dtype, device=weight.device)
        self.energy, self.tokens = 0.0, 0

    def add(self, name: str, outputs: Tensor | None, x: Tensor | None) -> None:
        """A batch: what the dense layer gave, without its bias, and what the converted model reads there."""
        outputs, x = _compared(name, outputs, x)
        self.energy += float(outputs.double().square().sum())
        self.product += outputs.mT @ x  # of a batch in its own precision, in float64 between them
        self.seen += x.mT @ x
        self.tokens += len(x)

    def end(self, name: str) -> None:
        if not (math.isfinite(self.energy) and bool(torch.isfinite(self.seen).all())):
            raise ValueError(f"{name}: its inputs hold NaN or infinity, or their squares overflow")
        self.energy /= max(self.tokens, 1)
        for moment in (self.product, self.seen):
            moment.div_(max(self.tokens, 1))

    def record(self, new: StructuredLinear) -> Projection:
        """The layer's record with its errors to the dense layer: of the weight, and of the output on what it reads."""
        assert isinstance(new.projection, Projection)
        with torch.no_grad():
            weight, fitted = self.linear.weight.detach().to(self.dtype), new.to_dense().to(self.dtype)
        between, own = float(self.product.mul(fitted).sum()), float((fitted @ self.seen).mul(fitted).sum())
        missed, norm = max(0.0, self.energy - 2 * between + own), float(weight.norm())
        far = float((weight - fitted).norm()) / norm if norm else 0.0
        error = math.sqrt(missed / self.energy) if self.energy > 0 else 0.0
        return replace(new.projection, weight_error=far, output_error=error, held_out=False)


def _compared(name: str, outputs: Tensor | None, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, where they are of the same rows.

    Raises:
        ValueError: they are not.
    """
    if outputs is None or x is None or len(outputs) != len(x):
        found = " and ".join("none" if rows is None else str(len(rows)) for rows in (outputs, x))
        raise ValueError(
            f"{name}: it reads {found} rows of a batch in the dense and in the converted model; where that differs "
            "(experts, early exits) rows cannot be compared: convert it with inputs= instead"
        )
    return outputs, x.to(outputs.dtype)


def _fitting(work: Work, size: Callable[[str, nn.Module], int]) -> Work:
    """The first layers whose sizes, in bytes, add up to KEPT at most; one at least."""
    total = 0
    for number, (name, layer, _) in enumerate(work):
        total += size(name, layer)
        if total > KEPT and number:
            return work[:number]
    return work


def _outputs(weight: Tensor, x: Tensor | None) -> Tensor | None:
    """W x for rows of x, in float32 at least."""
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return None if x is None else x.to(exact) @ weight.to(exact).mT


def _wanted(model: nn.Module, work: Work, calls: Mapping[str, Calls], batches: Batches) -> dict[str, Any]:
    """What the first of these layers give in the dense model, without the bias: a tensor for each batch."""

    def size(name: str, layer: nn.Module) -> int:
        itemsize = 8 if next(layer.parameters()).dtype == torch.float64 else 4
        return calls[name].rows * len(batches) * layers.widths(layer)[1] * itemsize

    chosen = {name: layer for name, layer, _ in _fitting(work, size)}
    weights = {name: layers.as_linear(layer).weight.detach() for name, layer in chosen.items()}
    found: dict[str, list[Tensor | None]] = {name: [] for name in chosen}
    for batch in batches:
        rows = read(model, chosen, calls, batch)
        for name, outputs in found.items():
            outputs.append(_outputs(weights[name], rows.get(name)))
    return found


def _errors(
    model: nn.Module,
    twin: nn.Module,
    work: Work,
    converted: Mapping[str, nn.Module],
    calls: Mapping[str, Calls],
    batches: Batches,
) -> dict[str, float]:
    """Each layer's output error to the dense model, on what it reads in the converted one."""
    found: dict[str, float] = {}
    while work:
        group = _fitting(work, lambda name, layer: 16 * math.prod(layers.widths(layer)))
        work = work[len(group) :]
        own = {name: layer for name, layer, _ in group}
        new = {name: converted[name] for name in own}
        weights = {
            name: (layers.as_linear(own[name]).weight.detach(), layers.as_linear(new[name]).weight.detach())
            for name in own
        }
        sums = {name: [0.0, 0.0] for name in own}
        for batch in batches:
            first, second = read(model, own, calls, batch), read(twin, new, calls, batch)
            for name, (before, after) in weights.items():
                wanted, given = _compared(name, _outputs(before, first.get(name)), _outputs(after, second.get(name)))
                sums[name][0] += float((wanted - given).double().square().sum())
                sums[name][1] += float(wanted.double().square().sum())
        found |= {name: math.sqrt(missed / whole) if whole else 0.0 for name, (missed, whole) in sums.items()}
    return found


def _target(moments: _Moments, damping: float) -> nn.Linear:
    """A layer whose weight, on what the converted model gives it, comes nearest to the dense layer's outputs."""
    linear = moments.linear
    mean = moments.seen.diagonal().mean()
    lifted = moments.seen + damping * mean * torch.eye(len(moments.seen), dtype=mean.dtype, device=mean.device)
    root, failed = torch.linalg.cholesky_ex(lifted)
    if not bool(mean > 0) or int(failed):  # `project` says what is wrong with these inputs
        return linear
    weight = linear.weight.detach().to(mean.dtype)
    change = torch.cholesky_solve((moments.product - weight @ moments.seen).mT, root).mT
    found = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta").train(linear.training)
    found.weight = nn.Parameter((weight + change).to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    found.bias = linear.bias
    return found


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
