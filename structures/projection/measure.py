"""From a weight to the problem that is solved, from its solution to factors, and what these leave of the weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from structures.projection.links import ChainView
from structures.projection.problem import Problem, View, squared, view_of
from structures.structure import Structure


def scaled_problem(structure: Structure, dense: Tensor, covariance: Tensor | None) -> tuple[Problem, float]:
    """What is left for the factors, scaled to entries of about one so that no square overflows; and that scale.

    The scale is a power of two, so that what is only copied stays as it is, bit by bit.
    """
    target = dense.clone()
    for term in structure.terms:
        if not any(f < structure.trainable for f in term.factors):
            view = view_of(structure, term)
            view.add_to(target, -_without_factors(view, target))
    scale = 2.0 ** (math.frexp(float(target.abs().amax()))[1] - 1)
    return Problem(structure, target.div_(scale), covariance), scale


def written(problem: Problem, scale: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The factors in written shape and order, the scale divided evenly among those of a term."""
    found: dict[int, Tensor] = {}
    for view, factors in zip(problem.terms, problem.factors, strict=True):
        share = scale ** (1 / len(factors))
        for number, (position, factor) in enumerate(zip(view.positions, factors, strict=True)):
            found[position] = (view.grow(number, factor) * share).to(dtype).contiguous()
    return tuple(found[position] for position in sorted(found))


def residual_of(problem: Problem, dense: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """W - What of the factors as they are returned."""
    residual = dense.clone()
    for term in problem.structure.terms:
        view = view_of(problem.structure, term)
        held = [view.shrink(n, factors[p].to(dense.dtype)) for n, p in enumerate(view.positions)]
        view.add_to(residual, -(view.entries(held) if held else _without_factors(view, residual)))
    return residual


def _without_factors(view: View, like: Tensor) -> Tensor:
    """The entries of a term that has nothing to train."""
    return view.entries([], like) if isinstance(view, ChainView) else like.new_ones(()).expand(view.shape)


def ratio(residual: Tensor, dense: Tensor, moment: Tensor | None) -> float:
    """||residual M^(1/2)|| / ||dense M^(1/2)||."""

    largest = float(dense.abs().amax()) or 1.0  # squares of very large or small numbers stay finite
    whole = squared(dense / largest, moment)
    found = squared(residual / largest, moment)
    return math.sqrt(found / whole) if whole else (0.0 if not found else math.inf)
