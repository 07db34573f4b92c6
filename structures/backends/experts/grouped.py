"""Tokens grouped by expert: each expert computes the tokens that chose it, and nothing else.

Which tokens those are is known from the numbers in x alone, so the lengths of the groups come to the host (a CUDA
device is waited for) and no graph can hold this. Groups of about equal length are padded and run as one batched
structure; others one expert after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import planned
from structures.backends.experts.parts import Middle, Part, gated_terms, head, part, ungated
from structures.routing import Routing, route
from structures.structure import Structure

GATED = True

# FLOPs that padding may add for each call of an expert it saves: 28 us forward at 200 GFLOP/s, float32, 2 cores.
# torch._grouped_mm, which needs no padding, took 0.5 to 1.0 times as long as one call an expert and 0.8 to 4.4
# times as long as the padded product (8 groups, widths 256 and 1024, float32 and bfloat16, torch 2.13 on that machine).
CALL = 4e6

_functorch_active = torch._C._are_functorch_transforms_active


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Structures without a gate, and calls in which no number can be looked at."""
    if structure.gate is None:
        return f"{structure.name} has no gate"
    if torch.compiler.is_compiling():
        return "its groups depend on the numbers in x, which no graph can hold; all_experts compiles"
    if _functorch_active() or forward_ad._current_level >= 0:
        return "its groups depend on the numbers in x, which no function transform shows; all_experts transforms"
    if x.is_meta:
        return "its groups depend on the numbers in x, and x is on the meta device; all_experts runs there"
    return planned.refuses(structure, x)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features), x (tokens, in_features); the router is the last of `factors`."""
    assert structure.gate is not None
    return weighted(structure, x, factors[:-1], route(structure.gate, x, factors[-1]), bias)


def weighted(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """The same for a routing that is decided; `factors` without the router."""
    made = program(structure)
    groups = Groups.of(routing)
    total = made.rest(x, factors, bias) if made.rest.structure is not None else None
    for number, term in enumerate(made.terms):
        piece = mixed(term, term.head(x, factors), factors, routing.weights, groups)
        piece = term.tail(piece, factors, bias if not number and total is None else None)
        total = piece if total is None else total + piece
    assert total is not None  # some term holds the expert axis
    return total


def executed_flops(
    structure: Structure, tokens: int = 1, *, train: bool = False, lengths: Sequence[int] | None = None
) -> int:
    """Products of the groups, padding included, of the router and of the weighted sum, 2 per multiply-add, no bias.

    Args:
        lengths: tokens of each expert (`grouped.lengths` tells them); without them groups of one length, to one token.
    """
    made, gate = program(structure), structure.gate
    assert gate is not None
    if lengths is None:
        whole, more = divmod(tokens * gate.active, gate.experts)
        lengths = [whole + (e < more) for e in range(gate.experts)]
    count = 2 * tokens * structure.in_features * gate.experts * (3 if train else 1)
    count += made.rest.executed_flops(tokens, train=train, bias=True)
    for number, term in enumerate(made.terms):
        count += 2 * tokens * gate.active * term.result * (3 if train else 1)
        count += term.head.executed_flops(tokens, train=train)
        count += term.tail.executed_flops(tokens, train=train, bias=not number and made.rest.structure is None)
        if _pads(term, lengths):
            count += term.together.executed_flops(max(lengths), train=train)
        else:
            count += sum(term.alone.executed_flops(n, train=train) for n in lengths)
    return count


def lengths(routing: Routing) -> list[int]:
    """Tokens of each expert; choices that were dropped are left out."""
    return Groups.of(routing).lengths


def prepare(structure: Structure) -> None:
    """Cut the terms into parts."""
    if structure.gate is not None:
        program(structure)


@dataclass(frozen=True)
class GatedTerm:
    """A term of a gated structure in parts."""

    head: Part  # for every token, before its experts
    alone: Part  # one expert, for its tokens
    together: Part  # all experts, each for its own tokens, side by side
    tail: Part  # for every token, after the weighted sum
    slices: tuple[tuple[int, int], ...]  # factors of `alone` in the whole, and the place of the expert axis in them
    width: int  # numbers a token that go to an expert
    result: int  # and that come back
    flops: int  # of one token with one expert


@dataclass(frozen=True)
class GroupedProgram:
    terms: tuple[GatedTerm, ...]
    rest: Part


@dataclass(frozen=True)
class Groups:
    """All choices (token, expert), sorted by expert; dropped ones are left out."""

    lengths: list[int]
    order: Tensor  # choice numbers, token * active + k, expert by expert
    back: Tensor  # where each choice stands in that order; 0 where it was dropped, and has no weight
    expert: Tensor  # of each choice, in that order
    active: int

    @staticmethod
    def of(routing: Routing) -> Groups:
        experts, active = routing.logits.shape[1], routing.experts.shape[1]
        key = routing.experts.flatten()
        if routing.kept is not None:
            key = torch.where(routing.kept.flatten(), key, experts)
        expert, order = key.sort(stable=True)
        lengths: list[int] = torch.bincount(key, minlength=experts + 1)[:experts].tolist()
        count = sum(lengths)
        order, expert = order[:count], expert[:count]
        back = torch.zeros_like(key).index_copy(0, order, torch.arange(count, device=key.device))
        return Groups(lengths, order, back, expert, active)


def mixed(term: GatedTerm, z: Tensor, factors: Sequence[Tensor], weights: Tensor, groups: Groups) -> Tensor:
    """The weighted sum of each token's experts, of what the head has made of x; what the tail takes."""
    rows = z.index_select(0, groups.order // groups.active)
    if _pads(term, groups.lengths):
        y = _together(term, rows, factors, groups)
    else:
        y = _one_by_one(term, rows, factors, groups)
    # Back to each token, whose choices are added up in one product: half the time of weighting, placing and summing
    # (1024 tokens, 2 experts, 1024 wide, fp32, 2 cores), and no sum depends on the order of the groups.
    chosen = y.index_select(0, groups.back).reshape(len(z), groups.active, term.result)
    return torch.bmm(weights.to(y.dtype)[:, None, :], chosen)[:, 0]


def _pads(term: GatedTerm, lengths: Sequence[int]) -> bool:
    """Whether the FLOPs that padding adds cost less than the calls it saves."""
    added = len(lengths) * max(lengths) - sum(lengths)
    return added * term.flops < CALL * (sum(map(bool, lengths)) - 1)


def _one_by_one(term: GatedTerm, rows: Tensor, factors: Sequence[Tensor], groups: Groups) -> Tensor:
    own = {f: factors[f].unbind(at) for f, at in term.slices if at >= 0}  # gradients are put together once
    pieces = []
    for expert, piece in enumerate(torch.split(rows, groups.lengths)):
        if len(piece) or (not len(rows) and not expert):  # without any token too there is a result, and a graph
            held = [own[f][expert] if f in own else t for f, t in enumerate(factors)]
            pieces.append(term.alone(piece, held))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _together(term: GatedTerm, rows: Tensor, factors: Sequence[Tensor], groups: Groups) -> Tensor:
    experts, longest = len(groups.lengths), max(groups.lengths)
    starts = torch.tensor([0, *groups.lengths], device=rows.device).cumsum(0)[:-1]
    within = torch.arange(len(rows), device=rows.device) - starts.index_select(0, groups.expert)
    slot = within * experts + groups.expert  # rows of (longest, experts)
    padded = rows.new_zeros(longest * experts, term.width).index_copy(0, slot, rows)
    y = term.together(padded.reshape(longest, experts * term.width), factors)
    return y.reshape(longest * experts, term.result).index_select(0, slot)


def program(structure: Structure) -> GroupedProgram:
    """The structure's terms cut into parts; kept with it."""
    found: GroupedProgram | None = structure.memo.get("grouped")
    if found is None:
        terms = tuple(_term(structure, Middle.of(structure, t)) for t in gated_terms(structure))
        found = structure.memo["grouped"] = GroupedProgram(terms, ungated(structure))
    return found


def _term(structure: Structure, middle: Middle) -> GatedTerm:
    assert structure.gate is not None
    axis, first, last = structure.gate.axis, middle.first, middle.last
    view, output = middle.before(first), middle.before(last)
    alone = part(structure, middle, first, last, view, output, without=axis)
    places = [structure.factors[f].index(axis) if axis in structure.factors[f] else -1 for f in alone.factors]
    each = (tuple(a for a in s.axes if a != axis) for s in middle.term.steps[first:last])
    return GatedTerm(
        head=head(structure, middle, first, view),
        alone=alone,
        together=part(structure, middle, first, last, (axis, *view), (axis, *output)),
        tail=part(structure, middle, last, len(middle.order), output, middle.term.output),
        slices=tuple(zip(alone.factors, places, strict=True)),
        width=structure.numel(view),
        result=structure.numel(output),
        flops=2 * sum(map(structure.numel, each)),
    )
