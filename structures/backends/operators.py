"""A kernel as two torch operators, for graphs: `structures::NAME` and `structures::NAME_backward`.

A graph names the structure by a string that holds its whole definition, so that another process binds it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from structures.algebra.map import Gather, Term
from structures.algebra.steps import Step
from structures.language.entry import Entry
from structures.structure import Structure

NAMESPACE = "structures"
_FORWARD = "(Tensor x, Tensor[] factors, Tensor? bias, str structure) -> Tensor"
_BACKWARD = "(Tensor dy, Tensor x, Tensor[] factors, bool[] want, str structure) -> Tensor[]"


@dataclass(frozen=True)
class KernelCalls:
    """What an operator runs. Factors are contiguous; gradients come in the order x, bias, factors.

    Args:
        differentiable: the gradients by operations that can be differentiated again.
        again: floating-point operations of a backward call with all gradients.
        bound: what the text names, if it is no structure; it has `out_features`.
    """

    forward: Callable[[Any, Tensor, list[Tensor], Tensor | None], Tensor]
    backward: Callable[[Any, Tensor, Tensor, list[Tensor], tuple[bool, ...]], Sequence[Tensor | None]]
    differentiable: Callable[..., list[Tensor | None]]
    flops: Callable[[Any, int], int]
    again: Callable[[Any, int], int]
    bound: Callable[[str], Any] | None = None


def name(structure: Structure) -> str:
    """A structure without links, a gate or constants as text: its axes, their sizes and its steps.

    Of the entry it was bound from nothing is needed, and a stage of a chain has none of its own.
    """
    found: str | None = structure.memo.get("operator name")
    if found is None:
        if not structure.plain or structure.gate is not None:
            raise ValueError(f"{structure.name}: an operator runs structures without links, gate, constants or padding")
        found = json.dumps(_written(structure), separators=(",", ":"))
        structure.memo["operator name"] = found
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
        widths, axes = found["widths"], found["factors"]
        return Structure(
            name=str(found["name"]),
            title="",
            in_features=int(widths[0]),
            out_features=int(widths[1]),
            options=(),
            sizes=tuple((str(axis), int(size)) for axis, size in found["sizes"]),
            factors=tuple(map(tuple, axes)),
            terms=tuple(map(_term, found["terms"])),
            spec=Entry(str(found["name"]), ()),
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"operators of {NAMESPACE}: {text[:80]!r} is no structure: {error}") from None


def _written(structure: Structure) -> dict[str, Any]:
    return {
        "name": structure.name,
        "widths": [structure.in_features, structure.out_features],
        "sizes": structure.sizes,
        "factors": structure.factors,
        "terms": [
            {
                "views": [term.input, term.loaded, term.output],
                "gathers": [[g.axis, g.by, g.table] for g in term.gathers],
                "steps": [[s.factor, s.batch, s.rows, s.contracted, s.cols, s.left, s.right] for s in term.steps],
            }
            for term in structure.terms
        ],
    }


def _term(found: dict[str, Any]) -> Term:
    read, loaded, written = map(tuple, found["views"])
    gathers = tuple(Gather(axis, tuple(by), tuple(table), "") for axis, by, table in found["gathers"])
    steps = tuple(Step(int(factor), *map(tuple, groups)) for factor, *groups in found["steps"])
    return Term(read, loaded, gathers, tuple(sorted(step.factor for step in steps)), written, steps)


def define(kernel: str, devices: Sequence[str], calls: KernelCalls) -> None:
    """Define `structures::KERNEL` and its backward, with shapes, gradients and FLOPs, on these devices."""
    forward_name, backward_name = f"{NAMESPACE}::{kernel}", f"{NAMESPACE}::{kernel}_backward"
    named = calls.bound or bound

    def forward(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
        return calls.forward(named(structure), x, [factor.contiguous() for factor in factors], bias)

    def backward(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
        found = calls.backward(named(structure), dy, x, [factor.contiguous() for factor in factors], tuple(want))
        return [gradient for gradient in found if gradient is not None]

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, *factors = ctx.saved_tensors
        want_x, want_factors, want_bias, _ = ctx.needs_input_grad
        each = list(want_factors) if isinstance(want_factors, (list, tuple)) else [want_factors] * len(factors)
        want = [want_x, bool(want_bias) and ctx.biased, *each]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = calls.differentiable(named(ctx.text), tuple(want), x, factors, dy, graph=True)
            return found[0], found[2:], found[1], None
        made = list(getattr(torch.ops.structures, f"{kernel}_backward")(dy, x, factors, want, ctx.text))
        dx, db, *df = [made.pop(0) if wanted else None for wanted in want]
        return dx, df, db, None

    def forward_flops(x: Any, factors: Any, bias: Any, structure: str, *, out_shape: Any) -> int:
        return calls.flops(named(structure), x[0])

    def backward_flops(dy: Any, x: Any, factors: Any, want: Any, structure: str, *, out_shape: Any) -> int:
        return calls.again(named(structure), x[0])

    def forward_fake(x: Tensor, factors: list[Tensor], bias: Tensor | None, structure: str) -> Tensor:
        return x.new_empty(x.shape[0], named(structure).out_features)

    torch.library.define(forward_name, _FORWARD)
    torch.library.define(backward_name, _BACKWARD)
    for device in devices:
        torch.library.impl(forward_name, device, forward)
        torch.library.impl(backward_name, device, backward)
    torch.library.register_fake(forward_name, forward_fake)
    torch.library.register_fake(backward_name, _backward_fake)
    torch.library.register_autograd(forward_name, differentiate, setup_context=_save)
    register_flop_formula(getattr(torch.ops.structures, kernel))(forward_flops)
    register_flop_formula(getattr(torch.ops.structures, f"{kernel}_backward"))(backward_flops)


def _backward_fake(dy: Tensor, x: Tensor, factors: list[Tensor], want: list[bool], structure: str) -> list[Tensor]:
    shapes = [x.shape, dy.shape[1:], *[factor.shape for factor in factors]]
    return [dy.new_empty(shape) for shape, wanted in zip(shapes, want, strict=True) if wanted]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, factors, bias, ctx.text = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, *factors)
