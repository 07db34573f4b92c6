"""Running plans: programs kept by integers, and the one autograd function of all structures."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends.planned import rates
from structures.backends.planned.emit import backward_source, forward_source
from structures.backends.planned.problem import X
from structures.backends.planned.program import Plan, Want
from structures.backends.planned.search import Conditions, cheapest
from structures.backends.planned.source import Run, compiled
from structures.backends.views import whole
from structures.structure import Structure

TRACED_TOKENS = 2048  # what a graph of an unknown number of tokens is planned for

_functorch_active = torch._C._are_functorch_transforms_active


class Program:
    """A plan with the functions that run it, each emitted when first used."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.factors = len(plan.problem.factors)
        self.saved = plan.saved
        self.saves_input = X in plan.saved
        self.native = plan.native
        self.traced: tuple[Run, ...] = ()  # the pure forms, once made; a compiler follows plain attributes only

    @cached_property
    def forward(self) -> Run:
        return compiled(forward_source(self.plan, pure=False), "forward")

    @cached_property
    def backward(self) -> Run:
        return compiled(backward_source(self.plan, pure=False), "backward")

    def pure(self) -> tuple[Run, ...]:
        """The pure forms of forward and, where the plan has one, backward."""
        if not self.traced:
            self.traced = (compiled(forward_source(self.plan, pure=True), "forward"),)
            if self.plan.want is not None:
                self.traced += (compiled(backward_source(self.plan, pure=True), "backward"),)
        return self.traced

    def run(self, want: tuple[bool, ...] | None, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """y (tokens, out_features) by this program, which was planned for the gradients in `want`."""
        if want is None:
            return whole(self.forward(x.contiguous(), *_contiguous(factors), bias)[0])
        if self.native:
            return self.pure()[0](x, *factors, bias)[0]
        return _planned(self, want, x, bias, *factors)


Key = tuple[object, ...]
_by_id: dict[int, tuple[weakref.ref[Structure], dict[Key, Program]]] = {}
_by_value: weakref.WeakKeyDictionary[Structure, dict[Key, Program]] = weakref.WeakKeyDictionary()


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features)."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        x, bias, *factors = _cast(x, bias, *factors)
    if torch.compiler.is_compiling() or _functorch_active() or forward_ad._current_level >= 0:
        return _traced(structure, x, factors, bias)
    tokens = x.shape[0]
    if type(tokens) is not int:
        return _traced(structure, x, factors, bias)
    entry = _by_id.get(id(structure))
    table = entry[1] if entry is not None and entry[0]() is structure else _table(structure)
    if torch.is_grad_enabled():
        want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
        if True in want:
            key: Key = ((tokens - 1).bit_length(), x.dtype, device, bias is None, want)
            program = table.get(key) or _add(table, key, structure, x, bias, want)
            if program.native:
                return program.pure()[0](x, *factors, bias)[0]
            return _planned(program, want, x, bias, *factors)
    key = ((tokens - 1).bit_length(), x.dtype, device, bias is None)
    program = table.get(key) or _add(table, key, structure, x, bias, None)
    if not x.is_contiguous():
        x = x.contiguous()
    return whole(program.forward(x, *_contiguous(factors), bias)[0])


def _cast(x: Tensor, *others: Tensor | None) -> list[Any]:
    """All tensors in the dtype of the autocast region, but for float64: all operations see one dtype."""
    dtype = torch.get_autocast_dtype(x.device.type)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others)]


def forget() -> None:
    """Drop all plans, so that the next call plans anew (after a measurement of the machine's rates)."""
    for _, table in _by_id.values():
        table.clear()


def _table(structure: Structure) -> dict[Key, Program]:
    """The programs of a structure; equal structures share them."""
    table = _by_value.setdefault(structure, {})
    key = id(structure)
    _by_id[key] = (weakref.ref(structure, lambda _: _by_id.pop(key, None)), table)
    return table


def _add(
    table: dict[Key, Program], key: Key, structure: Structure, x: Tensor, bias: Tensor | None,
    want: tuple[bool, ...] | None,
) -> Program:  # fmt: skip
    plan = best(structure, x.shape[0], setting(x.dtype, x.device.type, bias is not None, want))
    return table.setdefault(key, Program(plan))


def setting(
    dtype: torch.dtype, device: str, bias: bool, want: tuple[bool, ...] | None, chunks: bool = True
) -> Conditions:
    """The setting of a call; `want` says for x, bias and each factor whether its gradient is needed."""
    wanted = None if want is None else Want(want[0], tuple(want[2:]), want[1])
    return Conditions(str(dtype).removeprefix("torch."), device, torch.get_num_threads(), bias, wanted, chunks)


def best(structure: Structure, tokens: int, setting: Conditions) -> Plan:
    """The plan of least predicted time, for the bucket of tokens (a power of two) that `tokens` falls in.

    One token is a bucket of its own; none falls in that of two.
    """
    bucket = 1 << (tokens - 1).bit_length()
    return cheapest(structure, bucket, setting, rates.of(setting.dtype, setting.threads, setting.device))


def _contiguous(factors: Sequence[Tensor]) -> Sequence[Tensor]:
    for factor in factors:
        if not factor.is_contiguous():
            return [f.contiguous() for f in factors]
    return factors


# -- traced, transformed and exported


# Traced programs as attributes of a module: a compiler can guard on such a place, and sees what was added meanwhile.
_plans = ModuleType("structures_plans")


def _traced_name(structure: Structure, dtype: torch.dtype, device: str, bias: bool, want: Any) -> str:
    """Name in `_plans` of a program for any number of tokens: a graph may not depend on them."""
    entry = _by_id.get(id(structure))
    table = entry[1] if entry is not None and entry[0]() is structure else _table(structure)
    key: Key = ("traced", dtype, device, bias, want)
    program = table.get(key)
    if program is None:
        plan = best(structure, TRACED_TOKENS, setting(dtype, device, bias, want, chunks=False))
        program = table[key] = Program(plan)
        program.pure()
    name = f"plan_{id(program)}"
    setattr(_plans, name, program)
    return name


# What torch.compiler.assume_constant_result does, without importing the compiler (1.4 s) where nothing is compiled.
_traced_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _traced(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The pure form: under a transform and in torch.jit.trace, which checks itself without gradients, differentiated as
    it stands; in a compiled graph with the planned backward."""
    want = None
    as_it_stands = not torch.compiler.is_compiling() and (forward_ad._current_level >= 0 or torch._C._is_tracing())
    if torch.is_grad_enabled() and not _functorch_active() and not as_it_stands:
        want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
        if True not in want:
            want = None
    program = getattr(_plans, _traced_name(structure, x.dtype, x.device.type, bias is not None, want))
    if want is None or program.native:
        run = program.traced[0]
        return run(x, *factors, bias)[0]  # type: ignore[no-any-return]
    return _planned(program, want, x, bias, *factors)


# -- autograd


class _Planned(torch.autograd.Function):
    """Forward and both kinds of gradients by one plan.

    Without a further derivative in sight the backward runs the planned gradients. With `create_graph` it differentiates
    the pure forward instead, so that every order of derivative exists.
    """

    @staticmethod
    def forward(
        ctx: Any, program: Program, want: tuple[bool, ...], x: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        if torch.compiler.is_compiling():
            run = program.traced[0]
            y, *saved = run(x, *factors, bias)
        else:
            x = x.contiguous()
            y, *saved = program.forward(x, *_contiguous(factors), bias)
            y = whole(y)
        ctx.program, ctx.want = program, want
        ctx.save_for_backward(x if program.saves_input else None, *factors, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        program: Program = ctx.program
        want = ctx.want
        x, *rest = ctx.saved_tensors
        factors, kept = rest[: program.factors], rest[program.factors :]
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            return _differentiable(program, want, x, factors, dy)
        kept = list(kept)
        args = [x if name == X else kept.pop(0) for name in program.saved]
        if compiling or _functorch_active():
            run = program.traced[1] if compiling else program.pure()[1]
            gradients = list(run(dy, *factors, *args))
        else:
            gradients = list(program.backward(dy.contiguous(), *_contiguous(factors), *args))
        return _as_asked(want, gradients, dy)


def _differentiable(
    program: Program, want: tuple[bool, ...], x: Tensor | None, factors: Sequence[Tensor], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients with a graph of their own: the pure forward again, differentiated.

    y is linear in x, so that the gradient of x alone holds at any x: zeros stand in for one that was not saved.
    Views of the operands keep paths between them (x computed from a factor) out of these gradients.
    """
    plan = program.plan
    if x is None:
        x = dy.new_zeros(dy.shape[0], plan.problem.in_features).requires_grad_()
    operands = [t.view_as(t) for t in (x, *factors)]
    bias = dy.new_zeros(plan.problem.out_features)
    y = program.pure()[0](operands[0], *operands[1:], bias)[0]
    wanted = [t for t, w in zip(operands, (want[0], *want[2:]), strict=True) if w]
    found = torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True) if wanted else ()
    return _as_asked(want, list(found), dy)


def _as_asked(want: tuple[bool, ...], gradients: list[Tensor], dy: Tensor) -> tuple[Tensor | None, ...]:
    """What `backward` returns: nothing for the program and the pattern, then x, bias and factors."""
    dx = gradients.pop(0) if want[0] else None
    db = dy.sum(0) if want[1] else None
    return None, None, dx, db, *[gradients.pop(0) if w else None for w in want[2:]]


def _planned(*args: Any) -> Tensor:
    return _Planned.apply(*args)  # type: ignore[no-any-return,no-untyped-call]
