"""Structures with a gate: what has no expert axis as any structure, the experts as segments of sorted rows.

One operator, `structures::triton_experts`, runs all experts of a term, in graphs and without: where each expert's rows
begin stays on the device. Its operands are x, then the weights of the choices, their order, the starts of the segments
and the factors; of the weighted sum over a token's choices the addends are written by the kernel, each by its number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from structures.backends import planned
from structures.backends.experts import segments
from structures.backends.experts.segments import Expert, Segments
from structures.backends.native.run import gradients
from structures.backends.operators import KernelCalls, bound, define, name
from structures.backends.triton import run
from structures.backends.triton.run import TritonProgram
from structures.structure import Structure


@dataclass(frozen=True)
class _Call:
    """What the operator's text names: an expert, and whether copies of its factors may be kept."""

    expert: Expert
    keep: bool

    @property
    def out_features(self) -> int:
        return self.expert.structure.out_features


def programs(structure: Structure) -> list[TritonProgram]:
    """The launches of a structure, with a gate or without."""
    if structure.gate is None:
        return [run.program(structure)]
    experts, others = segments.parts(structure)
    return [*map(_program, experts), *map(run.program, others)]


def experts(expert: Expert, z: Tensor, rows: Segments, factors: Sequence[Tensor]) -> Tensor:
    """(tokens, out_features of an expert): the weighted sum of a token's experts."""
    operands = [rows.weights.to(z.dtype), rows.order, rows.starts, *factors]
    grad = torch.is_grad_enabled() and any([t.requires_grad for t in (z, *operands)])
    keep = not grad and not torch.compiler.is_compiling()
    y: Tensor = torch.ops.structures.triton_experts(z, operands, None, _text(expert, keep))
    return y


def executed_flops(structure: Structure, tokens: int, *, train: bool) -> int:
    """Those of a structure without a gate; or the chosen experts', the router's and all else's, without the sum over
    choices. A gradient works the experts out again.
    """
    if structure.gate is None:
        return run.executed_flops(structure, tokens, train=train)
    several, others = segments.parts(structure)
    calls = [_Call(expert, keep=False) for expert in several]
    count = 2 * tokens * structure.in_features * structure.router_shape[0] * (3 if train else 1)
    count += sum(run.executed_flops(other, tokens, train=train) for other in others)
    return count + sum(_flops(call, tokens) + (_again(call, tokens) if train else 0) for call in calls)


def compile_ahead(structure: Structure, tokens: int, dtype: torch.dtype, *, train: bool) -> None:
    """As `run.compile_ahead`, with a gate or without."""
    if structure.gate is None:
        return run.compile_ahead(structure, tokens, dtype, train=train)
    several, others = segments.parts(structure)
    for other in others:
        run.compile_ahead(other, tokens, dtype, train=train)
    empty = partial(torch.empty, device="meta")
    for expert in several:
        choices, widths = tokens * expert.active, (expert.structure.in_features, expert.structure.out_features)
        order, starts = (empty(n, dtype=torch.int32) for n in (choices, expert.experts + 1))
        factors = [empty(shape, dtype=dtype) for shape in expert.factor_shapes]
        operands = [empty(choices, dtype=dtype), order, starts, *factors]
        z, dy = (empty(tokens, width, dtype=dtype) for width in widths)
        for keep in (False,) if train else (False, True):
            _forward(_Call(expert, keep), z, operands, None)
        if train:
            want = (True, False, True, False, False, *[True] * len(factors))
            _backward(_Call(expert, keep=False), dy, z, operands, want)


def _program(expert: Expert) -> TritonProgram:
    return run.program(expert.structure, expert.experts, expert.apart)


def _text(expert: Expert, keep: bool) -> str:
    """An expert as text, from which another process binds it."""
    numbers = [expert.experts, expert.active, expert.places, expert.drops, keep]
    key = f"triton experts {numbers}"
    found: str | None = expert.structure.memo.get(key)
    if found is None:
        found = expert.structure.memo[key] = json.dumps([name(expert.structure), *numbers])
    return found


_text._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _call(text: str) -> _Call:
    try:
        one, count, active, places, drops, keep = json.loads(text)
        expert = Expert(bound(one), int(count), int(active), tuple(map(int, places)), bool(drops))
        return _Call(expert, bool(keep))
    except (TypeError, ValueError) as error:
        raise ValueError(f"operator triton_experts: {text[:80]!r} names no expert: {error}") from None


def _sorted(call: _Call, operands: Sequence[Tensor]) -> tuple[Segments, list[Tensor]]:
    weights, order, starts, *factors = operands
    return Segments(order, starts, weights, call.expert.active, call.expert.drops), factors


def _forward(call: _Call, z: Tensor, operands: list[Tensor], bias: Tensor | None) -> Tensor:
    rows, factors = _sorted(call, operands)
    keep = call.keep and (z.is_meta or run.keepable(factors))
    y = run.forward(_program(call.expert), z, factors, None, keep=keep, rows=rows, weigh=True)[-1]
    return y if rows.active == 1 else _by_token(y, rows.active).sum(1)


def _backward(
    call: _Call, dy: Tensor, z: Tensor, operands: list[Tensor], want: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    rows, factors = _sorted(call, operands)
    want_z, want_bias, want_weights, _, _, *each = want
    made, dw = _program(call.expert), None
    buffers = run.forward(made, z, factors, None, rows=rows) if want_weights or any(each) else []
    if want_weights:
        dw = torch.bmm(_by_token(buffers[-1], rows.active), dy[:, :, None]).view(-1)
    dz, db, *df = run.backward(made, buffers, factors, dy, [want_z, want_bias, *each], rows)
    if dz is not None and rows.active > 1:
        dz = _by_token(dz, rows.active).sum(1)
    return [dz, db, dw, None, None, *df]


def _by_token(rows: Tensor, each: int) -> Tensor:
    """(tokens, choices of one, features)."""
    return rows.view(len(rows) // each, each, rows.shape[1])


def _differentiable(
    call: _Call, want: tuple[bool, ...], z: Tensor, operands: Sequence[Tensor], dy: Tensor, *, graph: bool
) -> list[Tensor | None]:
    dz, *others = gradients(partial(_planned, call), (want[0], *want[2:]), (z, *operands), dy, graph=graph)
    return [dz, None, *others]  # there is no bias


def _planned(call: _Call, z: Tensor, weights: Tensor, order: Tensor, starts: Tensor, *factors: Tensor) -> Tensor:
    """The same by the planner, one expert after another, which can be differentiated again."""
    expert, order = call.expert, order.long()
    lengths = starts.diff().tolist()
    pieces = torch.split(z.index_select(0, order[: sum(lengths)] // expert.active), lengths)
    found = torch.cat([
        planned.apply(expert.structure, piece, [
            f if at < 0 else f.select(at, e) for f, at in zip(factors, expert.places, strict=True)
        ])
        for e, piece in enumerate(pieces)
    ])  # fmt: skip
    found = found.new_zeros(len(order), call.out_features).index_copy(0, order[: len(found)], found)
    return torch.bmm(weights.view(len(z), 1, -1), found.view(len(z), -1, call.out_features))[:, 0]


def _flops(call: _Call, tokens: int) -> int:
    return call.expert.active * call.expert.structure.flops(tokens)


def _again(call: _Call, tokens: int) -> int:
    both = call.expert.structure.flops(tokens, train=True)  # forward once more, and two products for each of its own
    return call.expert.active * (both + 2 * tokens * call.out_features)


define(
    "triton_experts",
    ("cpu", "cuda"),
    KernelCalls(_forward, _backward, _differentiable, _flops, _again, _call),
)
