"""The kernel as two torch operators, for graphs: `structures::native` and `structures::native_backward`.

A graph names the structure by a string that holds its whole definition, so that another process binds it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from structures.backends.native.run import Program, differentiable, executed_flops, programs
from structures.spec import Spec
from structures.structure import Structure

NAMESPACE = "structures"
_FORWARD = "native(Tensor x, Tensor[] factors, Tensor? bias, str structure) -> Tensor"
_BACKWARD = "native_backward(Tensor dy, Tensor x, Tensor[] factors, bool[] want, str structure) -> Tensor[]"
_NOT_DEFINING = ("title", "source", "file", "marks", "init")  # fields of a Spec that change no product


def name(structure: Structure) -> str:
    """A structure as text: its entry, widths and options."""
    found: str | None = structure.memo.get("native name")
    if found is None:
        entry = {f.name: getattr(structure.spec, f.name) for f in fields(Spec) if f.name not in _NOT_DEFINING}
        given = {option: _number(value) for option, value in structure.options}
        widths = [structure.in_features, structure.out_features]
        found = json.dumps({"entry": entry, "widths": widths, "options": given}, separators=(",", ":"))
        structure.memo["native name"] = found
    return found


name._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def bound(text: str) -> Structure:
    """The structure that `name` wrote as text.

    Raises:
        ValueError: it is no such text.
    """
    try:
        found = json.loads(text)
        entry, (in_features, out_features), options = found["entry"], found["widths"], found["options"]
        return Spec(**entry).bind(in_features, out_features, **options)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"operator {NAMESPACE}::native: {text[:80]!r} is no structure: {error}") from None


def traced(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y by the operator, which whoever records operations sees."""
    y: Tensor = torch.ops.structures.native(x, list(factors), bias, name(structure))
    return y


def _number(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _program(text: str, dtype: torch.dtype) -> Program:
    return programs(bound(text)).of(dtype)


def _contiguous(factors: Sequence[Tensor]) -> list[Tensor]:
    return [factor.contiguous() for factor in factors]


def _forward(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
    return _program(structure, x.dtype).forward(x, _contiguous(factors), bias, keep=not torch.is_grad_enabled())


def _backward(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
    """The wanted gradients in the order x, bias, factors."""
    found = _program(structure, x.dtype).backward(x, _contiguous(factors), dy, tuple(want), None)
    return [gradient for gradient in found if gradient is not None]


def _forward_fake(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
    return x.new_empty(x.shape[0], bound(structure).out_features)


def _backward_fake(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
    shapes = [x.shape, dy.shape[1:], *[factor.shape for factor in factors]]
    return [dy.new_empty(shape) for shape, wanted in zip(shapes, want, strict=True) if wanted]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, factors, bias, ctx.text = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, *factors)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, *factors = ctx.saved_tensors
    want_x, want_factors, want_bias, _ = ctx.needs_input_grad
    each = list(want_factors) if isinstance(want_factors, (list, tuple)) else [want_factors] * len(factors)
    want = [want_x, bool(want_bias) and ctx.biased, *each]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = differentiable(bound(ctx.text), tuple(want), x, factors, dy, graph=True)
        return found[0], found[2:], found[1], None
    made = list(torch.ops.structures.native_backward(dy, x, factors, want, ctx.text))
    dx, db, *df = [made.pop(0) if wanted else None for wanted in want]
    return dx, df, db, None


def _forward_flops(x: Any, factors: Any, bias: Any, structure: str, *, out_shape: Any) -> int:
    return executed_flops(bound(structure), x[0])


def _backward_flops(dy: Any, x: Any, factors: Any, want: Any, structure: str, *, out_shape: Any) -> int:
    found = bound(structure)
    return executed_flops(found, x[0], train=True) - executed_flops(found, x[0])


torch.library.define(f"{NAMESPACE}::native", _FORWARD.removeprefix("native"))
torch.library.define(f"{NAMESPACE}::native_backward", _BACKWARD.removeprefix("native_backward"))
torch.library.impl(f"{NAMESPACE}::native", "cpu", _forward)
torch.library.impl(f"{NAMESPACE}::native_backward", "cpu", _backward)
torch.library.register_fake(f"{NAMESPACE}::native", _forward_fake)
torch.library.register_fake(f"{NAMESPACE}::native_backward", _backward_fake)
torch.library.register_autograd(f"{NAMESPACE}::native", _differentiate, setup_context=_save)
register_flop_formula(torch.ops.structures.native)(_forward_flops)
register_flop_formula(torch.ops.structures.native_backward)(_backward_flops)  # of all gradients
