"""Chains of more than two factors, split in the middle again and again: butterflies and tensor trains by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.projection.two_factor import Cut, arrange, matricise, split
from structures.projection.views import TermView, contract


def is_chain(view: TermView) -> bool:
    """Whether the term can be split: it has more than two factors and at each cut either side can absorb the basis
    that the SVD happened to choose for the bond, which is what makes the recovery of members exact."""
    return len(view.factors) > 2 and view.injective and _splits(view.held, view.factors)


def nearest_chain(view: TermView, target: Tensor) -> list[Tensor]:
    """Factors whose term is near to `target`: exact for a target that the term can express, near-optimal otherwise.

    The first factors together and the others together are two factors, whose product is found by SVD; each is then
    split in turn, the first weighted by the singular values and made orthonormal before the others are fitted, so that
    every truncation is measured in the norm of the target. On three cores of a tensor train this is TT-SVD.

    Source: Oseledets 2011; Le, Zheng, Riccietti & Gribonval 2022 (butterflies).
    """
    average, axes = view.average(target)
    return _fit(average, axes, view.factors, view.structure.size)


def _fit(tensor: Tensor, axes: Axes, factors: Sequence[Axes], size: Mapping[str, int]) -> list[Tensor]:
    if len(factors) == 1:
        return [arrange(tensor, axes, factors[0], size)]
    middle = len(factors) // 2
    cut = _cut(axes, factors)
    u, s, v = split(tensor, axes, cut, size)
    if len(factors) == 2:
        root = s.sqrt()
        first = arrange(u * root[:, None, :], cut.left, factors[0], size)
        return [first, arrange(root[:, :, None] * v, cut.right, factors[1], size)]
    if middle == 1:
        left, rest = [arrange(u, cut.left, factors[0], size)], s[:, :, None] * v
    else:
        weighted = (u * s[:, None, :]).reshape([size[a] for a in cut.left])
        left = _fit(weighted, cut.left, factors[:middle], size)
        basis = _orthonormalise(left, factors[:middle], cut, size)
        rest = basis.mT @ matricise(tensor, axes, cut.batch, cut.rows, cut.cols)
    right = _fit(rest.reshape([size[a] for a in cut.right]), cut.right, factors[middle:], size)
    return left + right


def _orthonormalise(tensors: list[Tensor], factors: Sequence[Axes], cut: Cut, size: Mapping[str, int]) -> Tensor:
    """Make the product of these factors orthonormal in each batch, in place, by changing the factor at the bond.

    Returns the product, (batch, rows, bond); directions that the factors do not span are zero.
    """
    whole = matricise(
        contract(list(zip(tensors, factors, strict=True)), cut.left), cut.left, cut.batch, cut.rows, cut.bond
    )
    _, s, v = torch.linalg.svd(whole, full_matrices=False)
    least = torch.finfo(s.dtype).eps * max(whole.shape[1:]) * s.amax(-1, keepdim=True)
    inverse = torch.where(s > least, 1 / s.clamp_min(torch.finfo(s.dtype).tiny), 0)
    change = v.mT * inverse[:, None, :]  # (batch, bond, kept)
    change = torch.nn.functional.pad(change, (0, whole.shape[2] - change.shape[2]))
    place = _boundary(factors, cut)
    assert place is not None
    at = factors[place]
    others = tuple(a for a in at if a not in cut.batch and a not in cut.bond)
    changed = matricise(tensors[place], at, cut.batch, others, cut.bond) @ change
    tensors[place] = arrange(changed, cut.batch + others + cut.bond, at, size)
    return whole @ change


def _cut(axes: Axes, factors: Sequence[Axes]) -> Cut:
    middle = len(factors) // 2
    left = tuple(dict.fromkeys(a for f in factors[:middle] for a in f))
    right = tuple(dict.fromkeys(a for f in factors[middle:] for a in f))
    return Cut.of(axes, left, right)


def _boundary(factors: Sequence[Axes], cut: Cut) -> int | None:
    """The one factor of a side that holds the bond, and with it every batch axis."""
    holders = [i for i, f in enumerate(factors) if any(a in f for a in cut.bond)] or list(range(len(factors)))
    whole = [i for i in holders if set(cut.bond) | set(cut.batch) <= set(factors[i])]
    if cut.bond and len(holders) > 1:
        return None
    return whole[0] if whole else None


def _splits(axes: Axes, factors: Sequence[Axes]) -> bool:
    if len(factors) <= 1:
        return True
    middle = len(factors) // 2
    cut = _cut(axes, factors)
    sides = (factors[:middle], cut.left), (factors[middle:], cut.right)
    return all(_boundary(side, cut) is not None and _splits(within, side) for side, within in sides)
