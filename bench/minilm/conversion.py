"""A converted copy of the encoder, the three ways, and how well its layers fit."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import nn

import structures
from bench.files.vocabulary import NARROW
from bench.minilm.data import FEED_FORWARD, Data
from bench.minilm.narrow import narrowed
from bench.minilm.quality import agreement, embed
from bench.minilm.request import AWARE, PLAIN, SEQUENTIAL, ConversionPoint, ConversionRequest, Shape
from structures.models.covariance import collect_covariances
from structures.models.sequential import Recorded
from structures.models.swap import swap
from structures.projection.project import Projection


class Slow(Exception):
    """A conversion cannot be made, or would take longer than asked for; the message says why."""


class Stopwatch:
    """The smaller of the wall-clock and the CPU seconds since it was made, so that other processes hardly count."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return min(time.perf_counter() - self.start[0], time.process_time() - self.start[1])


class Conversions:
    """The dense encoder, what its layers read, and conversions of it."""

    def __init__(self, data: Data, request: ConversionRequest):
        self.data, self.request = data, request
        self.layers = layers_of(data.model)
        self.shapes: dict[str, Shape] = {name: _shape(data.model.get_submodule(name)) for name in self.layers}
        self.feed_forward = self.params(data.model)
        self.whole = sum(p.numel() for p in data.model.parameters())
        self.wanted = embed(data.model, data.held_out)
        self.seen = collect_covariances(data.model, data.fit, names=self.layers)
        self.held_out = collect_covariances(data.model, data.held_out, names=self.layers)
        self.recorded: tuple[Recorded, Recorded] | None = None

    def params(self, model: nn.Module) -> int:
        """Weights, factors and biases of the feed-forward layers."""
        return sum(p.numel() for name in self.layers for p in model.get_submodule(name).parameters())

    def quality(self, model: nn.Module, params: int) -> dict[str, Any]:
        """How near the embeddings are to the dense ones, and what the model holds; `params` of the layers."""
        whole = self.whole - self.feed_forward + params
        return {
            **self.agreement(model),
            "feed_forward_params": params,
            "feed_forward_share": params / self.feed_forward,
            "params": whole,
            "params_share": whole / self.whole,
        }

    def agreement(self, model: nn.Module) -> dict[str, float]:
        """How near the embeddings of held-out sentences are to the dense ones."""
        return agreement(self.wanted, embed(model, self.data.held_out))

    def row(self, point: ConversionPoint, way: str) -> dict[str, Any]:
        """All of a row but its time.

        Raises:
            Slow: it would take longer than asked for, estimated from the first layer of each shape, or cannot be made.
        """
        model, records, seconds = self.made(point, way)
        row = {"structure": point.name, "way": way, "budget": point.budget, "options": point.words}
        return row | _fit(records, seconds) | self.quality(model, self.params(model))

    def made(self, point: ConversionPoint, way: str) -> tuple[nn.Module, list[Projection], float]:
        """The converted encoder, how its layers fit, and the seconds it took.

        Raises:
            Slow: as `row`.
        """
        if point.name == NARROW:
            return self._narrowed(point, way)
        return self._in_order(point) if way == SEQUENTIAL else self._apart(point, way)

    def _narrowed(self, point: ConversionPoint, way: str) -> tuple[nn.Module, list[Projection], float]:
        if way == SEQUENTIAL:
            raise Slow("which neurons are kept is decided for each block apart")
        clock, seen = Stopwatch(), self.seen if way == AWARE else None
        model = narrowed(self.data.model, self.layers, point.neurons, seen, self.held_out, self.request.damping)
        return model, [_record(model, layer) for layer in self.layers], clock.seconds()

    def _apart(self, point: ConversionPoint, way: str) -> tuple[nn.Module, list[Projection], float]:
        """Each layer on what it reads in the dense model."""
        model = copy.deepcopy(self.data.model)
        spent: dict[str, float] = {}
        first = [next(name for name in self.layers if self.shapes[name] == shape) for shape in point.options]
        for layer in [*first, *(name for name in self.layers if name not in first)]:
            clock = Stopwatch()
            self._swap(model, layer, point, way)
            spent[layer] = clock.seconds()
            if layer == first[-1]:
                self._expect(sum(spent[name] * self._count(self.shapes[name]) for name in first))
        return model, [_record(model, layer) for layer in self.layers], sum(spent.values())

    def _in_order(self, point: ConversionPoint) -> tuple[nn.Module, list[Projection], float]:
        """Each layer on what the converted ones before it hand on."""
        if structures.get(point.name).gate:
            raise Slow("it chooses experts for every token: there is no one weight to fit in order")
        first = [next(name for name in self.layers if self.shapes[name] == shape) for shape in point.options]
        trial, estimated = copy.deepcopy(self.data.model), 0.0
        for layer in first:
            clock = Stopwatch()
            self._swap(trial, layer, point, AWARE)
            estimated += clock.seconds() * self._count(self.shapes[layer])
        self._expect(estimated)
        if self.recorded is None:
            model, names = self.data.model, self.layers
            self.recorded = Recorded(model, names, self.data.fit), Recorded(model, names, self.data.held_out)
        model, clock = copy.deepcopy(self.data.model), Stopwatch()
        rules = {layer: (point.name, point.options[self.shapes[layer]]) for layer in self.layers}
        project = {"limit": self.request.aware_limit, "damping": self.request.damping}
        swap(model, rules, project=project, inputs=self.recorded[0], held_out=self.recorded[1], sequential=True)
        seconds = clock.seconds()  # with the converted model's run
        return model, [_record(model, layer) for layer in self.layers], seconds

    def _swap(self, model: nn.Module, layer: str, point: ConversionPoint, way: str) -> None:
        limit = self.request.limit if way == PLAIN else self.request.aware_limit
        project = {"limit": limit, "damping": self.request.damping}
        inputs = {layer: self.seen[layer]} if way == AWARE else None
        rule = {layer: (point.name, point.options[self.shapes[layer]])}
        swap(model, rule, project=project, inputs=inputs, held_out={layer: self.held_out[layer]})

    def _count(self, shape: Shape) -> int:
        return list(self.shapes.values()).count(shape)

    def _expect(self, seconds: float) -> None:
        if seconds > self.request.patience:
            raise Slow(f"{seconds:.0f} s for the projections, more than --patience {self.request.patience:g}")


def layers_of(model: nn.Module) -> list[str]:
    """The names of the feed-forward layers."""
    named = model.named_modules()
    return [name for name, module in named if re.fullmatch(FEED_FORWARD, name) and isinstance(module, nn.Linear)]


def _shape(module: nn.Module) -> Shape:
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _record(model: nn.Module, layer: str) -> Projection:
    record = model.get_submodule(layer).projection
    assert isinstance(record, Projection)
    return record


def _fit(records: Sequence[Projection], seconds: float) -> dict[str, Any]:
    """How well the layers of a converted encoder fit."""
    return {
        "weight_error": fmean(r.weight_error for r in records),
        "output_error": fmean(r.output_error for r in records if r.output_error is not None),
        "projection_seconds": seconds,
        "sweeps": max(r.iterations for r in records),
        "methods": sorted({r.method for r in records}),
        "optimal": all(r.optimal for r in records),
        "limited": not all(r.converged for r in records),
    }
