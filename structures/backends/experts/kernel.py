"""Tokens sorted by expert inside the native kernel, which reads their rows by number and adds up weighted results.

It runs what `grouped` runs, cut into the same parts. Which tokens an expert has is known from the numbers in x alone,
so that no graph can hold this either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures.backends import native
from structures.backends.experts import grouped
from structures.backends.experts.grouped import GatedTerm, Groups
from structures.backends.experts.parts import Part
from structures.routing import Routing, route
from structures.structure import Structure

GATED = True


def refuses(structure: Structure, x: Tensor) -> str | None:
    """What `grouped` refuses, what the kernel does (dtypes, devices, no compiler), and tensors without memory."""
    reason = grouped.refuses(structure, x)
    if reason is not None:
        return reason
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None or type(x) not in native.PLAIN:
        return "whoever records operations does not see its products of experts; all_experts and grouped are seen"
    for part in _parts(structure):
        reason = None if part.structure is None else native.refuses(part.structure, x)
        if reason is not None:
            return reason
    return None


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features), x (tokens, in_features); the router is the last of `factors`."""
    assert structure.gate is not None
    return weighted(structure, x, factors[:-1], route(structure.gate, x, factors[-1]), bias)


def weighted(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """The same for a routing that is decided; `factors` without the router."""
    made = grouped.program(structure)
    chosen = routing.experts if routing.kept is None else routing.experts.masked_fill(~routing.kept, -1)
    chosen = chosen.contiguous()
    total = made.rest(x, factors, bias, apply=native.apply) if made.rest.structure is not None else None
    for number, term in enumerate(made.terms):
        piece = _run(term, x, factors, routing, chosen, bias if not number and total is None else None)
        total = piece if total is None else total + piece
    assert total is not None  # some term holds the expert axis
    return total


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Products of the chosen experts and the router's, 2 per multiply-add, without the bias.

    Training works the intermediates out again, as `native.executed_flops` says.
    """
    made, gate = grouped.program(structure), structure.gate
    assert gate is not None
    count = 2 * tokens * structure.in_features * gate.experts * (3 if train else 1)
    for part, times in [(made.rest, 1), *((p, n) for t in made.terms for p, n in _shares(t, gate.active))]:
        if part.structure is not None:
            count += native.executed_flops(part.structure, tokens * times, train=train)
    return count


def prepare(structure: Structure) -> None:
    """Cut the terms into parts."""
    grouped.prepare(structure)


def _parts(structure: Structure) -> list[Part]:
    made = grouped.program(structure)
    return [made.rest, *(part for term in made.terms for part, _ in _shares(term, 1))]


def _shares(term: GatedTerm, active: int) -> tuple[tuple[Part, int], ...]:
    """The parts that run, and how often for a token."""
    return (term.head, 1), (term.alone, active), (term.tail, 1)


def _run(
    term: GatedTerm, x: Tensor, factors: Sequence[Tensor], routing: Routing, chosen: Tensor, bias: Tensor | None
) -> Tensor:
    assert term.alone.structure is not None  # it holds a factor
    held = [factors[f].movedim(at, 0) if at > 0 else factors[f] for f, at in term.slices]

    def pure(z: Tensor, weights: Tensor, *held: Tensor) -> Tensor:
        whole = list(factors)
        for (f, at), own in zip(term.slices, held, strict=True):
            whole[f] = own.movedim(0, at) if at > 0 else own
        return grouped.mixed(term, z, whole, weights, Groups.of(routing))

    choices = native.Choices(chosen, routing.logits.shape[1], tuple(at >= 0 for _, at in term.slices), pure)
    ends = term.tail.structure is None  # then the bias is added here
    z = native.mixed(
        term.alone.structure, term.head(x, factors, apply=native.apply), held, routing.weights, choices,
        bias if ends else None,
    )  # fmt: skip
    return z if ends else term.tail(z, factors, bias, apply=native.apply)
