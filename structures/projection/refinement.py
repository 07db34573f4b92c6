"""All factors moved at once along the gradient, where one at a time has become slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from structures.projection import alternating
from structures.projection.problem import Problem
from structures.projection.solve import Fitted, Report


def polish(problem: Problem, outcome: Fitted, steps: int, report: Report) -> Fitted:
    """Gradient descent (L-BFGS) on all factors of all terms at once; kept only where it helps."""
    before, start = problem.save(), problem.relative()
    parameters = [f.clone() for factors in before for f in factors]
    slots = [(t, f) for t, factors in enumerate(before) for f in range(len(factors))]
    scale = problem.whole or 1.0
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
                                  tolerance_grad=0.0, tolerance_change=0.0)  # fmt: skip
    calls = 0

    def closure() -> float:
        nonlocal calls
        problem.restore(_like(parameters, before))
        weighted = problem.weighted()
        for parameter, (t, f) in zip(parameters, slots, strict=True):
            parameter.grad = (alternating.pull(problem, t, f, weighted) * (-2 / scale)).contiguous()
        calls += 1
        report(calls, problem.relative())
        return problem.objective() / scale

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    problem.restore(_like(parameters, before))
    reached = problem.relative()
    if not reached < start:
        problem.restore(before)
        return outcome
    return replace(outcome, method=f"{outcome.method}, then L-BFGS", iterations=outcome.iterations + calls,
                   optimal=problem.is_exact(reached), history=(*outcome.history, reached))  # fmt: skip


def _like(parameters: Sequence[Tensor], factors: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    rest = iter(parameters)
    return [[next(rest).detach().clone() for _ in of_term] for of_term in factors]
