"""Coupled blocks (Monarch, BTT) in the metric of the inputs: one group of blocks at a time, each exactly.

Where an axis that is read stands in both factors, it numbers groups of blocks that share no parameter and are coupled
by the covariance alone. With the others held, a group has a closed form: a whitened truncated SVD.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.projection.problem import ROWS, Problem
from structures.projection.two_factor import Cut, arrange, gram, is_product, matricise, solve_reads
from structures.projection.views import TermView


def reader_of(view: TermView) -> int | None:
    """The factor that an input covariance acts on within a group of blocks; None where there are no such groups.

    All axes that are read, and the output axes that decide what is read, are in that factor, and the other one holds
    some of the first, which number the groups.
    """
    if not is_product(view) or view.term.gathers or view.held != view.axes:
        return None
    for number, (factor, other) in enumerate(zip(view.factors, reversed(view.factors), strict=True)):
        shared = set(view.reads) & set(other)
        if set(view.reads) | set(view.places) <= set(factor) and shared and shared != set(view.reads):
            return number
    return None


class Groups:
    """The groups of blocks of a coupled term, with what does not change from sweep to sweep.

    Memory: the Cholesky roots, in_features^2 / groups numbers for each of the places, and a few more matrices like W.
    """

    def __init__(self, problem: Problem, term: int):
        assert problem.covariance is not None
        view = problem.over_axes(term)
        reader = reader_of(view)
        assert reader is not None
        self.problem, self.term, self.reader, self.view = problem, term, reader, view
        mine, other = view.factors[reader], view.factors[1 - reader]
        self.shared: Axes = tuple(a for a in view.reads if a in other)
        self.within: Axes = tuple(a for a in view.reads if a not in other)
        self.axes, self.mine, self.other = (self._without(axes) for axes in (view.axes, mine, other))
        self.cut = Cut.of(self.axes, self.mine, self.other)
        self.indices = list(itertools.product(*(range(n) for n in view.sizes(self.shared))))
        moments, axes = view.covariance(problem.covariance)
        count = math.prod(view.sizes(self.within))
        primed = tuple(f"{a}'" for a in self.shared)
        self.roots = [  # of (places, within, within) each
            torch.linalg.cholesky(moments[self._at(axes, index, self.shared, primed)].reshape(-1, count, count))
            for index in self.indices
        ]
        positions, order = view.reading_positions(problem.weight.device), view.places + view.reads
        self.last: Tensor | None = None  # the term before the last sweep
        self.steps = 0  # taken with momentum
        self.columns = [torch.unique(positions[self._at(order, index, self.shared)]) for index in self.indices]

    def sweep(self) -> None:
        """Every group set to its best, the others held, from a point beyond the present one where that is better.

        The step from the last point to this one is taken again, in part (Nesterov's momentum); what it leads to is
        kept if it is nearer than this point, and else forgotten, momentum and all. The objective never rises.
        """
        problem, kept, start = self.problem, self.problem.save(), self.problem.objective()
        present = problem.entries(self.term)
        if self.last is not None and self.steps:
            ahead = (present - self.last) * (self.steps / (self.steps + 3))
            if not self._pass(present + ahead, ahead) < start:
                problem.factors[self.term] = kept[self.term]
                problem.refresh()
                self.steps = 0
        if not self.steps:
            self._pass(present.clone(), None)
        self.last = present
        self.steps += 1

    def _pass(self, entries: Tensor, ahead: Tensor | None) -> float:
        """One pass over the groups, from `entries` in place of the term: what it has and the part `ahead` of it.

        Returns the objective.
        """
        problem, view, size = self.problem, self.view, self.view.structure.size
        assert problem.covariance is not None
        rank = math.prod(size[a] for a in self.cut.bond)
        factors = [torch.empty_like(f) for f in problem.factors[self.term]]
        if ahead is not None:
            view.add_to(problem.residual, -ahead)
        weighted = problem.weighted().contiguous()
        change = torch.zeros_like(weighted)  # of the residual; zero but for the columns of one group
        for index, root, columns in zip(self.indices, self.roots, self.columns, strict=True):
            at = self._at(view.axes, index, self.shared)
            # L^-1 (E C) with E = R + T, T the group's entries: L^-1 (R C) + L^T T
            white = solve_reads(root, view.read(weighted)[at], self.axes, view.places, self.within, size, upper=False)
            white = white + self._times(root, entries[at])
            left, right = nearest(matricise(white, self.axes, self.cut.batch, self.cut.rows, self.cut.cols), rank)
            mine = arrange(left, self.cut.left, self.mine, size)
            mine = solve_reads(root.mT, mine, self.mine, view.places, self.within, size, upper=True)
            other = arrange(right, self.cut.right, self.other, size)
            factors[self.reader][self._at(view.factors[self.reader], index, self.shared)] = mine
            factors[1 - self.reader][self._at(view.factors[1 - self.reader], index, self.shared)] = other
            view.read(change)[at] = entries[at] - self._product(mine, other)
            moved = change[:, columns]
            weighted.addmm_(moved, problem.covariance[columns])
            problem.residual[:, columns] += moved
            change[:, columns] = 0
        problem.factors[self.term] = factors
        pairs = zip(torch.split(problem.residual, ROWS), torch.split(weighted, ROWS), strict=True)
        return sum(float(torch.dot(a.double().reshape(-1), b.double().reshape(-1))) for a, b in pairs)

    def _without(self, axes: Axes) -> Axes:
        return tuple(a for a in axes if a not in self.shared)

    @staticmethod
    def _at(axes: Axes, index: tuple[int, ...], *names: Axes) -> tuple[int | slice, ...]:
        chosen = {a: i for group in names for a, i in zip(group, index, strict=True)}
        return tuple(chosen.get(a, slice(None)) for a in axes)

    def _product(self, mine: Tensor, other: Tensor) -> Tensor:
        left = matricise(mine, self.mine, self.cut.batch, self.cut.rows, self.cut.bond)
        right = matricise(other, self.other, self.cut.batch, self.cut.bond, self.cut.cols)
        entries = left @ right
        return arrange(entries, self.cut.batch + self.cut.rows + self.cut.cols, self.axes, self.view.structure.size)

    def _times(self, root: Tensor, entries: Tensor) -> Tensor:
        """L^T along the axes that are read, at each of the places."""
        others = tuple(a for a in self.axes if a not in self.view.places and a not in self.within)
        columns = matricise(entries, self.axes, self.view.places, self.within, others)
        return arrange(root.mT @ columns, self.view.places + self.within + others, self.axes, self.view.structure.size)


def nearest(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(batch, m, rank) and (batch, rank, n): the nearest product to (batch, m, n), by the shorter side's Gram matrix.

    The Gram matrix is summed in float64; what its eigenvectors lack in digits enters the error squared. A rank above
    the shorter side is filled with zeros.
    """
    if matrices.shape[1] > matrices.shape[2]:
        right, left = nearest(matrices.mT, rank)
        return left.mT, right.mT
    basis = torch.linalg.eigh(gram(matrices))[1][..., -rank:].to(matrices.dtype)
    rest = basis.mT @ matrices
    more = rank - basis.shape[2]
    return torch.nn.functional.pad(basis, (0, more)), torch.nn.functional.pad(rest, (0, 0, 0, more))
