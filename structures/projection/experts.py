"""A dense weight as experts: from the factors of all experts' sum to factors of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures import reference
from structures.structure import Structure


def are_copies(structure: Structure) -> bool:
    """Whether the expert axis stands in one factor of each term: every expert can then be the whole by itself."""
    assert structure.gate is not None
    links = [link for term in structure.terms for link in term.chain]
    held = [sum(structure.gate.axis in structure.factors[f] for f in link.factors) for link in links]
    return max(held) == 1


def spread(structure: Structure, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Factors of the experts from those of `structure.summed(experts)`.

    Where the axis stands in one factor of a term, or of a link, every expert gets a copy: with weights that sum to
    one, any choice of experts is the whole. Elsewhere expert e is the e-th summand times the number of active
    experts, so that these add
    up to the sum of the first summands, which an SVD has put first by size, while the router is zero.
    """
    gate = structure.gate
    assert gate is not None
    made = list(factors)
    for link in (x for term in structure.terms for x in term.chain):
        held = [f for f in link.factors if gate.axis in structure.factors[f]]
        for f in held:
            if len(held) > 1:
                made[f] = made[f] * gate.active ** (1 / len(held))
                continue
            at = structure.factors[f].index(gate.axis)
            shape = structure.factor_shapes[f]
            made[f] = made[f].reshape(*shape[:at], 1, *shape[at + 1 :]).expand(shape).contiguous()
    return tuple(made)


def residual_of(structure: Structure, dense: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """dense - W with a router of zeros: the first active experts, of equal weight."""
    gate = structure.gate
    assert gate is not None
    weights = torch.zeros(gate.experts, dtype=dense.dtype, device=dense.device)
    weights[: gate.active] = 1 / gate.active
    return dense - reference.to_dense(structure, [f.to(dense.dtype) for f in factors], weights)
