"""What a projection minimises, and its state on the way: the factors so far and the residual they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from structures.projection.links import ChainView
from structures.projection.views import TermView
from structures.structure import Structure, Term

ROWS = 512  # of a matrix converted at a time


def squared(matrix: Tensor, covariance: Tensor | None) -> float:
    """||matrix covariance^(1/2)||^2, summed in float64, a few rows at a time."""
    total = 0.0
    for rows in torch.split(matrix, ROWS):
        left = rows.double()
        right = left if covariance is None else (rows @ covariance).double()
        total += float(torch.dot(left.reshape(-1), right.reshape(-1)))
    return max(0.0, total)


View = TermView | ChainView


def view_of(structure: Structure, term: Term) -> View:
    """How a term's entries are reached: over its axes, or the whole matrix of a chain."""
    whole = term.links or any(f >= structure.trainable for f in term.factors)
    return ChainView(structure, term) if whole else TermView(structure, term)


class Problem:
    """Minimise ||(W - sum of terms) C^(1/2)||, C the covariance of the inputs; without one the identity.

    `factors[t][f]` are the factors of term t as its TermView holds them. `residual` is the weight minus all terms, and
    is kept up to date by `set`.
    """

    def __init__(self, structure: Structure, weight: Tensor, covariance: Tensor | None = None):
        self.structure, self.weight, self.covariance = structure, weight, covariance
        terms = [view_of(structure, term) for term in structure.terms]
        self.terms = [view for view in terms if view.factors]  # a term without factors is the caller's to take off
        self.factors: list[list[Tensor]] = []
        self.residual = weight
        self.clear()
        self.whole = self.objective()

    def over_axes(self, term: int) -> TermView:
        """The view of a term that is no chain."""
        view = self.terms[term]
        assert not isinstance(view, ChainView)
        return view

    def clear(self) -> None:
        """All terms with factors zero."""
        self.factors = [[self.weight.new_zeros(v.sizes(axes)) for axes in v.factors] for v in self.terms]
        self.residual = self.weight.clone()

    def entries(self, term: int) -> Tensor:
        """The term as a tensor over its axes."""
        return self.terms[term].entries(self.factors[term])

    def target(self, term: int) -> Tensor:
        """What the other terms leave to this one, over its axes."""
        return self.terms[term].read(self.residual) + self.entries(term)

    def set(self, term: int, factors: list[Tensor]) -> None:
        """Replace a term's factors, and with them the residual."""
        view = self.terms[term]
        view.add_to(self.residual, self.entries(term))
        self.factors[term] = factors
        view.add_to(self.residual, -self.entries(term))

    def move(self, term: int, factor: int, change: Tensor) -> None:
        """Add `change` to one factor; the term is linear in it, so the residual moves by the term of the change."""
        view, factors = self.terms[term], self.factors[term]
        around = factors[:factor], factors[factor + 1 :]
        self.factors[term] = [*around[0], factors[factor] + change, *around[1]]  # first: change may view the residual
        view.add_to(self.residual, -view.entries([*around[0], change, *around[1]]))

    def refresh(self) -> None:
        """The residual from the factors, without the rounding of many updates."""
        kept = self.factors
        self.clear()
        self.factors = kept
        for term, view in enumerate(self.terms):
            view.add_to(self.residual, -self.entries(term))

    def weighted(self) -> Tensor:
        """The residual times the covariance: minus half the gradient by W."""
        return self.residual if self.covariance is None else self.residual @ self.covariance

    def relative(self) -> float:
        """The error that is minimised, as a share of that of zero factors."""
        return math.sqrt(self.objective() / self.whole) if self.whole else 0.0

    def is_exact(self, error: float) -> bool:
        """Whether a relative error is zero up to rounding, so that nothing is nearer."""
        eps: float = torch.finfo(self.weight.dtype).eps
        return error <= math.pow(eps, 0.8)  # 3e-13 in float64, 3e-6 in float32

    def objective(self) -> float:
        """The squared norm that is minimised."""
        return squared(self.residual, self.covariance)

    def save(self) -> list[list[Tensor]]:
        return [list(factors) for factors in self.factors]

    def restore(self, factors: Sequence[Sequence[Tensor]]) -> None:
        self.factors = [list(of_term) for of_term in factors]
        self.refresh()
