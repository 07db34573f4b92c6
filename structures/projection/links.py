"""A chain that cannot be joined, or one with constants, as the whole matrix; by SVDs where each link is a support."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structures import constants, reference
from structures.algebra.links import link_map
from structures.algebra.rank import support
from structures.algebra.steps import Axes
from structures.projection.views import TermView, contract
from structures.structure import Structure, Term

Support = NDArray[np.bool_]

TOKENS = "*"  # the axis of tokens; no axis of a registry can have this name


class ChainView:
    """The entries of W that a chain reaches: all of them, a matrix (out_features, in_features).

    Stands beside `TermView`, whose entries are a tensor over axes; factors are held as they are written.
    """

    def __init__(self, structure: Structure, term: Term):
        self.structure, self.term = structure, term
        self.positions = tuple(f for f in term.factors if f < structure.trainable)
        self.factors: tuple[Axes, ...] = tuple(structure.factors[f] for f in self.positions)
        self.shape = (structure.out_features, structure.in_features)
        self.links = [Structure.of(link_map(structure, link)) for link in term.chain]

    def sizes(self, axes: Axes) -> tuple[int, ...]:
        return self.structure.shape(axes)

    def read(self, matrix: Tensor) -> Tensor:
        """The matrix itself."""
        return matrix

    def add_to(self, matrix: Tensor, entries: Tensor) -> None:
        matrix.add_(entries)

    def shrink(self, factor: int, tensor: Tensor) -> Tensor:
        """Factors are held as written."""
        return tensor

    def grow(self, factor: int, tensor: Tensor) -> Tensor:
        """Factors are held as written."""
        return tensor

    def entries(self, factors: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
        """W of these factors; `like` tells dtype and device where there are none."""
        return self._through(factors, self.structure.in_features, range(len(self.links)), like).t()

    def _through(self, factors: Sequence[Tensor], width: int, links: range, like: Tensor | None = None) -> Tensor:
        """The identity of a width put through some of the links."""
        like = factors[0] if factors else like
        assert like is not None
        rows = torch.eye(width, dtype=like.dtype, device=like.device)
        held = dict(zip(self.positions, factors, strict=True))
        held |= dict(enumerate(constants.tensors(self.structure, like), self.structure.trainable))
        for number in links:
            rows = _applied(self.links[number], rows, [held[f] for f in self.term.chain[number].factors])
        return rows

    def pull(self, factors: Sequence[Tensor], factor: int, matrix: Tensor) -> Tensor:
        """A gradient by W as the gradient by one factor."""
        with torch.enable_grad():
            moved = factors[factor].detach().requires_grad_()
            entries = self.entries([*factors[:factor], moved, *factors[factor + 1 :]])
            (found,) = torch.autograd.grad(entries, moved, matrix)
        return found

    def mask_of(self, factor: int) -> Tensor | None:
        """Where a factor's numbers stand in its link's matrix, flattened; None where they are not entries of it."""
        link = self.links[self._link_of(factor)]
        held = TermView(link, link.terms[0])
        if not held.is_mask or not held.injective or held.private[0]:
            return None
        places = torch.arange(link.out_features * link.in_features, dtype=torch.float64)  # exact, and growing divides
        return _factor(link, places.reshape(link.out_features, -1)).long()

    def around(self, factors: Sequence[Tensor], factor: int) -> tuple[Tensor, Tensor]:
        """The matrices of the links before that of a factor, and after it: W = second @ link @ first."""
        middle = self._link_of(factor)
        first, after = self.structure.in_features, self.links[middle].out_features
        return (
            self._through(factors, first, range(middle)).t(),
            self._through(factors, after, range(middle + 1, len(self.links))).t(),
        )

    def _link_of(self, factor: int) -> int:
        return next(k for k, link in enumerate(self.term.chain) if self.positions[factor] in link.factors)

    @property
    def supports(self) -> bool:
        """Whether every link only says where its own matrix may differ from zero: one factor that holds all axes."""
        return self.positions == self.term.factors and all(
            len(link.factors) == 1 and not link.terms[0].gathers and TermView(link, link.terms[0]).is_mask
            for link in self.links
        )


def _applied(link: Structure, rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """`reference.apply` of one link; in which order its factors are contracted is worked out once."""
    (term,) = link.terms
    if term.gathers:
        return reference.apply(link, rows, factors)
    operands = [(rows.reshape(-1, *link.shape(term.loaded)), (TOKENS, *term.loaded))]
    operands += [(factors[f].reshape(link.shape(link.factors[f])), link.factors[f]) for f in term.factors]
    return contract(operands, (TOKENS, *term.output)).reshape(-1, link.out_features)


@dataclass(frozen=True)
class Rectangle:
    """Positions between two parts of a chain that write the same rows and read the same columns of the product."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    between: NDArray[np.int64]


def rectangles(left: Support, right: Support) -> list[Rectangle]:
    """The product of two supports (rows, between) and (between, columns) as rectangles of limited rank."""
    groups: dict[bytes, list[int]] = {}
    for m, (column, row) in enumerate(zip(np.packbits(left.T, axis=1), np.packbits(right, axis=1), strict=True)):
        groups.setdefault(column.tobytes() + b"|" + row.tobytes(), []).append(m)
    found = []
    for members in groups.values():
        rows, columns = np.flatnonzero(left[:, members[0]]), np.flatnonzero(right[members[0]])
        if len(rows) and len(columns):
            found.append(Rectangle(rows, columns, np.array(members)))
    return found


def is_exact(view: ChainView) -> bool:
    """Whether two links part W into rectangles that do not overlap: truncated SVDs are then the nearest product.

    Source: Le, Zheng, Riccietti & Gribonval 2022; of Monarch, Dao et al. 2022.
    """
    if len(view.links) != 2 or not view.supports:
        return False
    right, left = (support(link) for link in view.links)
    covered = np.zeros(view.shape, dtype=np.int8)
    for part in rectangles(left, right):
        covered[np.ix_(part.rows, part.columns)] += 1
        if covered[np.ix_(part.rows, part.columns)].max() > 1:
            return False
    return True


def nearest(view: ChainView, target: Tensor) -> list[Tensor]:
    """Factors of a chain of supports whose product is near to `target`; the nearest where `is_exact`."""
    supports = [support(link) for link in view.links]
    matrices = list(_split(target, supports))
    return [_factor(link, matrix) for link, matrix in zip(view.links, matrices, strict=True)]


def _split(target: Tensor, supports: Sequence[Support]) -> Iterator[Tensor]:
    """Matrices of these supports, the first one to be applied first, whose product is near to `target`."""
    if len(supports) == 1:
        yield target * torch.from_numpy(supports[0]).to(target.device)
        return
    middle = len(supports) // 2
    right, left = (_product(part) for part in (supports[:middle], supports[middle:]))
    first = target.new_zeros(right.shape)
    second = target.new_zeros(left.shape)
    rest = target.clone()
    for part in rectangles(left, right):
        rows, columns, between = (
            torch.from_numpy(a).to(target.device) for a in (part.rows, part.columns, part.between)
        )
        u, s, v = torch.linalg.svd(rest[rows[:, None], columns], full_matrices=False)
        kept = min(len(between), len(s))
        root = s[:kept].sqrt()
        second[rows[:, None], between[:kept]] = u[:, :kept] * root
        first[between[:kept, None], columns] = root[:, None] * v[:kept]
        rest[rows[:, None], columns] -= (u[:, :kept] * s[:kept]) @ v[:kept]  # rectangles may overlap
    yield from _split(first, supports[:middle])
    yield from _split(second, supports[middle:])


def _product(supports: Sequence[Support]) -> Support:
    whole = supports[0]
    for following in supports[1:]:
        whole = following.astype(np.float32) @ whole.astype(np.float32) > 0
    return whole


def _factor(link: Structure, matrix: Tensor) -> Tensor:
    """The factor of a link that is a support, from its matrix."""
    view = TermView(link, link.terms[0])
    entries = view.read(matrix.contiguous())
    held = entries.permute([view.axes.index(a) for a in view.factors[0]])
    return view.grow(0, held).contiguous()
