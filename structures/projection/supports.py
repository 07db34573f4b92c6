"""Terms of one factor that only say where W may differ from zero: least squares on the union of their supports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structures.projection.problem import Problem


def fit_supports(problem: Problem, terms: Sequence[int]) -> None:
    """Set these terms, all of them masks, to the best sum of theirs given the others: exact, overlaps included.

    Without a covariance that is the target on the union of the supports. An entry that several parameters reach is
    divided evenly among them, which is the solution of least norm.
    """
    views = [problem.over_axes(t) for t in terms]
    counts = None
    if len(terms) > 1 or not views[0].injective or problem.covariance is not None:
        counts = torch.zeros(problem.weight.shape, dtype=torch.int32, device=problem.weight.device)
        for view in views:
            view.add_to(counts, counts.new_ones(()).expand(view.shape))
    if problem.covariance is None:
        change = problem.residual
    else:
        assert counts is not None
        change = _least_squares(problem, counts > 0)
    shares = [view.read(change) if counts is None else view.read(change) / view.read(counts) for view in views]
    for t, view, share in zip(terms, views, shares, strict=True):  # the parameters of an entry all move alike
        problem.move(t, 0, share.permute([view.axes.index(a) for a in view.factors[0]]).contiguous())


def _least_squares(problem: Problem, support: Tensor) -> Tensor:
    """The change of W on the support that minimises the output error: one small system for all rows of equal support.

    Row w of the residual, support J: C_JJ d = (w C)_J.
    """
    assert problem.covariance is not None
    weighted = problem.weighted()
    change = torch.zeros_like(weighted)
    if bool(support.all()):
        return problem.residual.clone()
    patterns, group = torch.unique(support, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        columns, rows = pattern.nonzero()[:, 0], (group == number).nonzero()[:, 0]
        if len(columns):
            root = torch.linalg.cholesky(problem.covariance[columns][:, columns])
            right = weighted[rows][:, columns]
            change[rows[:, None], columns] = torch.cholesky_solve(right.mT, root).mT
    return change
