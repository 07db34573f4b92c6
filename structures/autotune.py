"""`autotune`: time the programs of a layer for one input, and let it run the fastest from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from structures import backends
from structures.backends.autotune import Key, Record, Timing, check_can_time, clock_of, key_of, refuses, tune
from structures.backends.autotune.exactness import call_like
from structures.backends.autotune.race import race
from structures.backends.autotune.record import recorded
from structures.linear import StructuredLinear

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def autotune(layer: nn.Module, x: Tensor, *, grad: bool | None = None) -> Record:
    """Time the first few programs for calls like `layer(x)`, and use the winner for this many tokens from now on.

    The planner's default stays unless another program is at least 1.1 times as fast with quartiles apart, twice. Each
    is compared with the plain einsum in float64 before it is timed. Nothing else should run meanwhile. What was chosen
    is copied and pickled with the layer, is no part of its state_dict, and is kept in a file beside the measured rates
    for layers with `backend="autotune"`; this function always times anew.

    Args:
        layer: a StructuredLinear; or an nn.Linear, which then has a choice too: F.linear, addmm, the product turned.
        x: (..., in_features), as the layer will see it; the choice holds up to the next power of two of tokens.
        grad: False: forward without gradients. True: with those of x and of every parameter that asks for one.
            None: as `layer(x)` would run now.
    Returns:
        the record: programs with times and quartiles, the winner and the reason; print it.
    Raises:
        ValueError: no linear layer, an input that does not fit it, or nothing to time: no tokens, the meta device, a
            structure with a gate, or inside torch.compile.
    """
    if not isinstance(layer, StructuredLinear | nn.Linear):
        raise ValueError(f"autotune: the layer is a StructuredLinear or an nn.Linear, found {type(layer).__name__}")
    if torch.compiler.is_compiling():
        raise ValueError("autotune: nothing can be timed while a graph is compiled; call it before")
    if not x.dim() or x.shape[-1] != layer.in_features:
        raise ValueError(f"autotune: x has shape {tuple(x.shape)}, its last dimension must be {layer.in_features}")
    like = next(layer.parameters())
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"autotune: x is {x.dtype} on {x.device}, the layer is {like.dtype} on {like.device}")
    tokens = x.detach().reshape(-1, layer.in_features)
    with torch.set_grad_enabled(torch.is_grad_enabled() if grad is None else grad):
        tokens.requires_grad_(x.requires_grad if grad is None else grad)
        return _structured(layer, tokens) if isinstance(layer, StructuredLinear) else _dense(layer, tokens)


def _structured(layer: StructuredLinear, x: Tensor) -> Record:
    if layer.backend not in (backends.AUTO, backends.autotune.NAME):
        raise ValueError(
            f"autotune: the layer's backend is {layer.backend!r}, which never runs another one; use 'auto'"
        )
    reason = refuses(layer.structure, x)
    if reason is not None:
        raise ValueError(f"autotune: {reason}")
    key = key_of(x, layer.factors, layer.bias)
    record = tune(layer.structure, x, layer.factors, layer.bias, key)
    layer.choices.set(layer.structure, key, record)
    return record


# -- nn.Linear


class TunedLinear(nn.Linear):
    """An nn.Linear for which a way to run was chosen by shape; it has nn.Linear's parameters and state_dict."""

    tuned_ways: dict[Key, Record]

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.shape[:-1].numel()
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return functional.linear(input, self.weight, self.bias)  # a compiler and a transform choose themselves
        flat = input.reshape(tokens, self.in_features)
        key = key_of(flat, (self.weight,), self.bias)
        record = self.tuned_ways.get(key)
        if record is None or torch.is_autocast_enabled(input.device.type):
            return functional.linear(input, self.weight, self.bias)
        y = WAYS[record.chosen.digest](flat, self.weight, self.bias)
        return y.reshape(*input.shape[:-1], self.out_features)


def _addmm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(W x^T)^T: the weight is the left operand."""
    y = torch.mm(weight, x.t()).t()
    return y.contiguous() if bias is None else y + bias


WAYS: dict[str, Product] = {"F.linear": functional.linear, "addmm": _addmm, "turned": _turned}


def _dense(linear: nn.Linear, x: Tensor) -> Record:
    check_can_time(x)
    key = key_of(x, (linear.weight,), linear.bias)
    call = call_like(x, (linear.weight,), linear.bias, key.want, linear.out_features)
    steps = [call.step(lambda x, weights, bias, way=way: way(x, weights[0], bias)) for way in WAYS.values()]  # type: ignore[misc]
    with torch.autocast(x.device.type, enabled=False), torch.set_grad_enabled(key.want is not None):
        outcome = race(steps, clock_of(x.device.type))
    timings = [Timing(way, way, median=t.median, q1=t.q1, q3=t.q3) for way, t in zip(WAYS, outcome.times, strict=True)]
    record = recorded(f"nn.Linear({linear.in_features}, {linear.out_features})", x, key.want, timings, outcome)
    if type(linear) is nn.Linear:
        linear.__class__ = TunedLinear
        linear.tuned_ways = {}  # type: ignore[assignment]
    elif not isinstance(linear, TunedLinear):
        return replace(record, reason=f"{record.reason}; {type(linear).__name__} has a forward of its own, left alone")
    ways: dict[Key, Record] = linear.tuned_ways  # type: ignore[assignment]
    ways[key] = record
    return record
