"""Layer after layer: each fitted to what the layers converted before it hand on, and to what it should have given.

Fitted on the dense model's inputs, every layer is near for itself, and the errors add up: a later layer reads what it
was never fitted on. Here it reads what the converted model gives it, and its target is the dense model's output, so
that it makes up for errors before it as far as it can.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from structures.language.expressions import nearest
from structures.linear import StructuredLinear
from structures.models import linears
from structures.models.runs import Calls, Runs, calls_of
from structures.projection.precision import exact
from structures.projection.project import DAMPING, MAX_DOUBLE, Projection, from_linear
from structures.structure import Structure

Batches = Sequence[Any]
Work = Sequence[tuple[str, nn.Module, Structure]]  # name, layer, what it becomes

KEPT = 2**30  # bytes of what the runs that wait may hold


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

    the weight that a ridge regression towards W finds. Both models are run side by side, over the batches and over what
    is held out, and wait at a layer until it is made: once in all as long as the waiting runs' tensors take KEPT bytes,
    and anew for every layer, as far as the layer, for the batches beyond. Memory beside that: a covariance, two
    weights, and the converted layers.

    Raises:
        ValueError: a layer is not called by the batches, or not by the same rows in both models; as `project`.
    """
    for name, _, structure in work:
        if structure.gate is not None:
            raise ValueError(
                f"{name}: {structure.name} chooses experts for every token, so that there is no one weight to fit; "
                "convert it without sequential=True"
            )
    chosen = {name: layer for name, layer, _ in work}
    with torch.no_grad():
        calls = calls_of(_twin(model), list(chosen), batches[0])
    made: dict[int, StructuredLinear] = {}
    with ExitStack() as stack:
        fitting, measuring = (
            stack.enter_context(closing(_Both(model, chosen, calls, given or []))) for given in (batches, held_out)
        )
        stack.enter_context(exact(next(work[0][1].parameters()).device))  # the runs keep the caller's precision
        ordered = sorted(work, key=lambda job: calls[job[0]].first)
        for number, (name, layer, structure) in enumerate(ordered, start=1):
            if arguments.get("progress"):
                sys.stderr.write(f"layer {number} of {len(work)}: {name}\n")
            moments = _Moments(name, layer)
            for wanted, seen in fitting.rows(name, moments.linear.weight):
                moments.add(wanted, seen)
            moments.end()
            target = _target(moments, float(arguments.get("damping", DAMPING)))
            try:
                new = from_linear(target, structure, inputs=moments.seen, backend=backend, **arguments)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            made[id(layer)] = new
            fitting.replace(name, new)
            measuring.replace(name, new)
            record = moments.record(new)
            if held_out is not None:
                missed = _error(new, measuring.rows(name, moments.linear.weight))
                record = replace(record, output_error=missed, held_out=True)
            new.projection = record  # type: ignore[assignment]
    for _, layer, _ in work:
        linears.carry(layer, made[id(layer)])
    return made


class Recorded(Sequence[Any]):
    """Batches with what layers of the dense model give on them, for several conversions of that model.

    In place of the batches as `inputs` or `held_out` it saves a conversion the dense model's run. Memory: the layers'
    outputs for all tokens, in float32 at least.

    Raises:
        ValueError: no names, no batches, a layer that the model has not or that the first batch does not reach.

    >>> model, batches = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), [torch.randn(20, 8)]
    >>> recorded = Recorded(model, ["0", "2"], batches)
    >>> [tuple(outputs.shape) for outputs in recorded.outputs["2"]]
    [(20, 8)]
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, names: Iterable[str], batches: Iterable[Any]):
        self.batches = batches_of("batches", batches)
        known = {name: module for name, module in model.named_modules() if linears.kind(module) is not None}
        asked = [names] if isinstance(names, str) else list(names)
        for name in asked:
            if name not in known:
                raise ValueError(f"names: the model has no linear layer {name!r}{nearest(name, list(known))}")
        if not asked:
            raise ValueError("names: no linear layers")
        chosen = {name: known[name] for name in asked}
        calls = calls_of(_twin(model), list(chosen), self.batches[0])
        self.outputs: dict[str, list[Tensor | None]] = {}
        device = next(next(iter(chosen.values())).parameters()).device
        with closing(Runs(_twin(model), list(chosen), calls, self.batches, KEPT)) as runs, exact(device):
            for name in sorted(chosen, key=lambda name: calls[name].first):
                weight = linears.as_linear(chosen[name]).weight
                self.outputs[name] = [_outputs(weight, x) for x in runs.rows(name)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: Any) -> Any:
        return self.batches[number]


class _Both:
    """The dense model and the one converted so far, over the same batches."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Mapping[str, nn.Module],
        calls: Mapping[str, Calls],
        batches: Batches,
    ):
        self.recorded = batches.outputs if isinstance(batches, Recorded) else None
        for name in chosen if self.recorded is not None else ():
            if name not in (self.recorded or {}):
                raise ValueError(f"{name}: it was not recorded; record it with {', '.join(self.recorded or {})}")
        self.dense, self.converted = (Runs(_twin(model), list(chosen), calls, batches, KEPT // 4) for _ in range(2))

    def rows(self, name: str, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """W x of each batch in the dense model, (rows, out_features), and x in the converted one, of equal dtype."""
        if self.recorded is not None:
            outputs: Iterable[Tensor | None] = self.recorded[name]
        else:
            outputs = (_outputs(weight, x) for x in self.dense.rows(name))
        for wanted, seen in zip(outputs, self.converted.rows(name), strict=True):
            yield _compared(name, wanted, seen)

    def replace(self, name: str, new: nn.Module) -> None:
        """Convert the layer."""
        self.converted.replace(name, copy.copy(new).eval())  # of the same parameters

    def close(self) -> None:
        self.dense.close()
        self.converted.close()


class _Moments:
    """W E x x'^T, E x' x'^T and E |W x|^2 of one layer: x in the dense model, x' in the converted one."""

    def __init__(self, name: str, layer: nn.Module):
        self.name, self.linear = name, linears.as_linear(layer)
        weight = self.linear.weight
        self.dtype = torch.float64 if weight.dtype == torch.float64 or weight.numel() <= MAX_DOUBLE else torch.float32
        self.product = torch.zeros(weight.shape, dtype=self.dtype, device=weight.device)
        self.seen = torch.zeros(weight.shape[1:] * 2, dtype=self.dtype, device=weight.device)
        self.energy, self.tokens = 0.0, 0

    def add(self, outputs: Tensor, seen: Tensor) -> None:
        """A batch: what the dense layer gives, without its bias, and what the converted model reads there."""
        self.energy += float(outputs.double().square().sum())
        self.product += outputs.mT @ seen  # of a batch in its own precision, in float64 between them
        self.seen += seen.mT @ seen
        self.tokens += len(seen)

    def end(self) -> None:
        if not (math.isfinite(self.energy) and bool(torch.isfinite(self.seen).all())):
            raise ValueError(f"{self.name}: its inputs hold NaN or infinity, or their squares overflow")
        self.energy /= max(self.tokens, 1)
        for moment in (self.product, self.seen):
            moment.div_(max(self.tokens, 1))

    def record(self, new: StructuredLinear) -> Projection:
        """The layer's record with its errors to the dense layer: of the weight, and of the output on what it reads."""
        assert isinstance(new.projection, Projection)
        weight, fitted = self.linear.weight.detach().to(self.dtype), new.to_dense().to(self.dtype)
        between, own = float(self.product.mul(fitted).sum()), float((fitted @ self.seen).mul(fitted).sum())
        missed, norm = max(0.0, self.energy - 2 * between + own), float(weight.norm())
        far = float((weight - fitted).norm()) / norm if norm else 0.0
        error = math.sqrt(missed / self.energy) if self.energy > 0 else 0.0
        return replace(new.projection, weight_error=far, output_error=error, held_out=False)


def _compared(name: str, outputs: Tensor | None, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, where they are of the same rows.

    Raises:
        ValueError: they are not.
    """
    if outputs is None or seen is None or len(outputs) != len(seen):
        found = " and ".join("none" if rows is None else str(len(rows)) for rows in (outputs, seen))
        raise ValueError(
            f"{name}: it reads {found} rows of a batch in the dense and in the converted model; where that differs "
            "(experts, early exits) rows cannot be compared: convert it with inputs= instead"
        )
    return outputs, seen.to(outputs.dtype)


def _outputs(weight: Tensor, x: Tensor | None) -> Tensor | None:
    """W x for rows of x, in float32 at least."""
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return None if x is None else x.to(exact) @ weight.detach().to(exact).mT


def _error(new: StructuredLinear, rows: Iterable[tuple[Tensor, Tensor]]) -> float:
    """||W x - What x'|| / ||W x|| over all rows of x and x'."""
    weight, missed, whole = new.to_dense(), 0.0, 0.0
    for wanted, seen in rows:
        given = _outputs(weight, seen)
        assert given is not None
        missed += float((wanted - given).double().square().sum())
        whole += float(wanted.double().square().sum())
    return math.sqrt(missed / whole) if whole else 0.0


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
    """A copy in eval mode whose parameters and buffers are the model's own: it takes no memory."""
    own = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in own}).eval()


def batches_of(what: str, given: object) -> Batches:
    """Batches as a list, so that they can be gone through once a layer.

    Raises:
        ValueError: they are none, or a mapping of layers' names as `swap` takes otherwise.
    """
    if isinstance(given, Recorded):
        return given
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(
            f"{what} of a conversion in order is a list of the model's batches (tensors, tuples of arguments or "
            f"mappings of keyword arguments), found {type(given).__name__}"
        )
    found = list(given)
    if not found:
        raise ValueError(f"swap: {what} has no batches")
    return found
