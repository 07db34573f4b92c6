"""Experts by the kernel: for every token the products of the experts that it chose, weighted and added up.

The library sorts the choices by expert (`source/routed.h`); a structure here is that of one expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from structures.backends import kept
from structures.backends.native.library import PAIRS, RoutedRecord, explain
from structures.backends.native.run import Program, address, gradients, programs, transformed
from structures.structure import Structure

NEEDED = 15  # tokens up to which an expert reads its factors where they lie


@dataclass(frozen=True)
class Choices:
    """The experts of every token.

    Attributes:
        chosen: (tokens, active) in int64; -1: dropped.
        experts: how many there are.
        own: of each factor, whether every expert has its own, along its first axis.
        pure: (x, weights, *factors) -> y by torch's own operations, for gradients of gradients.
    """

    chosen: Tensor
    experts: int
    own: tuple[bool, ...]
    pure: Callable[..., Tensor]


def mixed(
    structure: Structure,
    x: Tensor,
    factors: Sequence[Tensor],
    weights: Tensor,
    choices: Choices,
    bias: Tensor | None,
    *,
    keep: bool = True,
) -> Tensor:
    """y (tokens, out_features): each token's experts, times `weights` (tokens, active) in float32, and the bias.

    Args:
        structure: of one expert.
        factors: those of all experts stacked, or one that they share (`choices.own`).
        keep: copies of the factors may be kept between calls without gradients.
    """
    call = _Call(programs(structure).of(x.dtype), choices)
    factors = [factor.contiguous() for factor in factors]
    weights, bias = weights.contiguous(), None if bias is None else bias.contiguous()
    if torch.is_grad_enabled():
        operands = (x, weights, bias, *factors)
        want = tuple(t is not None and t.requires_grad for t in operands)
        if True in want:
            y: Tensor = _Mixed.apply(call, want, *operands)  # type: ignore[no-untyped-call]
            return y
    return call.forward(x, factors, weights, bias, call.kept(x, factors) if keep else None)


@dataclass(frozen=True)
class _Call:
    program: Program
    choices: Choices

    def forward(
        self, x: Tensor, factors: Sequence[Tensor], weights: Tensor, bias: Tensor | None, copies: Tensor | None = None
    ) -> Tensor:
        """y, without a graph."""
        y = x.new_empty(len(x), self.program.out_features)
        if len(x):
            x = x if x.stride(1) == 1 else x.contiguous()
            _check(
                self.program.library.forward_experts(
                    self.program.address,
                    self._routed(weights),
                    self._array(factors),
                    address(copies),
                    x.data_ptr(),
                    x.stride(0),
                    len(x),
                    address(bias),
                    y.data_ptr(),
                    torch.get_num_threads(),
                )
            )
        return y

    def backward(
        self, x: Tensor, factors: Sequence[Tensor], weights: Tensor, dy: Tensor, want: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """Gradients of x, the weights, the bias and every factor, None for those not wanted."""
        dx = x.new_empty(x.shape) if want[0] else None
        dw = weights.new_empty(weights.shape) if want[1] else None
        df = [factor.new_empty(factor.shape) if w else None for factor, w in zip(factors, want[3:], strict=True)]
        if not len(x):
            return [None if t is None else t.zero_() for t in (dx, dw, dy.sum(0) if want[2] else None, *df)]
        x, dy = (t if t.stride(1) == 1 else t.contiguous() for t in (x, dy))
        targets = self.program.bound.pointers(*map(address, df)) if any(want[3:]) else None
        if dx is not None or dw is not None or targets is not None:
            _check(
                self.program.library.backward_experts(
                    self.program.address,
                    self._routed(weights),
                    self._array(factors),
                    x.data_ptr(),
                    x.stride(0),
                    dy.data_ptr(),
                    dy.stride(0),
                    len(x),
                    address(dx),
                    targets,
                    address(dw),
                    torch.get_num_threads(),
                )
            )
        return [dx, dw, dy.sum(0) if want[2] else None, *df]

    def kept(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor | None:
        """The copies of all experts' factors that are kept for calls without gradients; None where none are."""
        one = self.program.copies[PAIRS]
        if not one or len(x) <= NEEDED or not kept.keepable(factors):
            return None

        def make() -> Tensor:
            buffer = torch.empty(one * self.choices.experts, dtype=torch.uint8, device="cpu")
            for expert in range(self.choices.experts):
                held = [f[expert] if own else f for f, own in zip(factors, self.choices.own, strict=True)]
                self.program.make(PAIRS, self._array(held), buffer[expert * one :], torch.get_num_threads())
            return buffer

        return kept.copy(PAIRS, factors, make)

    def _routed(self, weights: Tensor) -> Any:
        chosen, own = self.choices.chosen, self.choices.own
        flags = (ctypes.c_int32 * len(own))(*own)
        record = RoutedRecord(
            chosen.data_ptr(), weights.data_ptr(), ctypes.addressof(flags), self.choices.experts, chosen.shape[1]
        )
        record.flags = flags  # as long as the record
        return ctypes.byref(record)

    def _array(self, factors: Sequence[Tensor]) -> Any:
        return self.program.array([factor.data_ptr() for factor in factors])


class _Mixed(torch.autograd.Function):
    """Forward and gradients by the kernel; saved are x, the weights and the factors.

    Pairs of bfloat16 factors are made in each of the two: memory of many experts' pairs, new in every step, costs more.

    With `create_graph`, or batched by a transform, the gradients are those of `Choices.pure`.
    """

    @staticmethod
    def forward(
        ctx: Any, call: _Call, want: tuple[bool, ...], x: Tensor, weights: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        ctx.call, ctx.want = call, want
        ctx.save_for_backward(x, weights, *factors)
        return call.forward(x, factors, weights, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, *factors = ctx.saved_tensors
        want, graph = ctx.want, torch.is_grad_enabled()
        if graph or transformed(dy):
            pure = ctx.call.choices.pure
            dx, dw, *df = gradients(pure, (*want[:2], *want[3:]), (x, weights, *factors), dy, graph=graph)
            found = [dx, dw, dy.sum(0) if want[2] else None, *df]
        else:
            found = ctx.call.backward(x, factors, weights, dy, want)
        return None, None, *found


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"backend 'native': {explain(code)}")
