"""Which method fits which terms, in which order, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.projection import alternating, chain, links, shared_bond, slices, supports, two_factor
from structures.projection.problem import Problem

SEEDS = 4  # starts tried where no factorisation gives one
MANY = 2**22  # entries of a weight up to which more than one such start is tried
TRIAL = 3  # sweeps before starts are compared
LINEAR_STEPS = 2000  # of conjugate gradients, where W is linear in all parameters
DEEP = 4  # factors of a term, more than which start with orthonormal blocks
REFRESH = 8  # sweeps after which the residual is computed anew
CHEAP_SIDE, CHEAP_RANK = 512, 8  # in a sum, matrices larger than this and 8 times the rank: no SVD, subspace iteration

GROUPS = "alternating whitened SVDs"  # of groups of blocks

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Fitted:
    """How it went; `history` holds the relative error at the start and after each sweep."""

    method: str
    iterations: int
    optimal: bool
    converged: bool
    history: tuple[float, ...]


@dataclass(frozen=True)
class TermGroup:
    """Terms that are fitted together, by the name of a method."""

    method: str
    terms: tuple[int, ...]
    exact: bool  # the best possible, the other blocks held


def solve(problem: Problem, *, tolerance: float, limit: int, report: Report) -> Fitted:
    """Fit all terms in place.

    Args:
        tolerance: stop when a sweep lowers the error by less than this share of it.
        limit: sweeps at most.
        report: called with the number of sweeps done and the error, first of all at the start.
    """
    blocks = blocks_of(problem)
    if len(blocks) == 1 and blocks[0].exact:
        done = _fit(problem, blocks[0])
        return Fitted(blocks[0].method, 1, done, done, (problem.relative(),))
    sweeps = 0
    if problem.covariance is None:
        sweeps = _best_start(problem, blocks, limit)
        if not problem.whole:
            _stay_at_zero(problem, blocks)
    else:
        plain = Problem(problem.structure, problem.weight)
        solve(plain, tolerance=tolerance, limit=limit, report=report)
        problem.restore(plain.factors)
    methods = " and ".join(dict.fromkeys(block.method for block in blocks))
    name = methods if len(blocks) == 1 else f"alternating {methods}"
    return _descend(problem, blocks, name, sweeps, tolerance, limit, report)


def blocks_of(problem: Problem) -> list[TermGroup]:
    """The terms grouped by how they are fitted: one-factor terms together, every other term for itself."""
    views = {t: view for t, view in enumerate(problem.terms) if not isinstance(view, links.ChainView)}
    single = tuple(t for t, view in views.items() if len(view.factors) == 1)
    masks = all(views[t].is_mask for t in single)
    blocks = [TermGroup("support" if masks else "linear least squares", single, True)] if single else []
    for t, view in enumerate(problem.terms):
        if t in single:
            continue
        if isinstance(view, links.ChainView):
            blocks.append(_of_chain(problem, t, view))
        elif problem.covariance is None and two_factor.is_product(view):
            blocks.append(TermGroup("truncated SVD", (t,), True))
        elif problem.covariance is not None and two_factor.whitens(view):
            blocks.append(TermGroup("whitened SVD", (t,), True))
        elif problem.covariance is not None and slices.reader_of(view) is not None:
            blocks.append(TermGroup(GROUPS, (t,), False))
        elif problem.covariance is None and chain.is_chain(view):
            blocks.append(TermGroup("hierarchical SVD", (t,), False))
        else:
            blocks.append(TermGroup("alternating least squares", (t,), False))
    return blocks


def _of_chain(problem: Problem, term: int, view: links.ChainView) -> TermGroup:
    if problem.covariance is None and links.is_exact(view):
        return TermGroup("truncated SVD", (term,), True)
    if problem.covariance is None and view.supports:
        return TermGroup("hierarchical SVD", (term,), False)
    return TermGroup("alternating least squares", (term,), False)


def _best_start(problem: Problem, blocks: Sequence[TermGroup], limit: int) -> int:
    """Leave the problem at the best of several starts; returns the sweeps that this one has had."""
    random = any(block.method == "alternating least squares" for block in blocks)
    orders = [list(blocks), list(reversed(blocks))] if len(blocks) > 1 else [list(blocks)]
    best: tuple[float, int, list[list[Tensor]]] | None = None
    seeds = SEEDS if random and problem.weight.numel() <= MANY else 1
    trials = [(order, seed) for seed in range(seeds) for order in orders]
    for order, seed in trials:
        problem.clear()
        for block in order:
            _start(problem, block, seed)
        count = min(TRIAL, limit) if len(trials) > 1 else 0
        for _ in range(count):
            for block in blocks:
                _update(problem, block, {})
        problem.refresh()
        reached = problem.relative()
        if best is None or reached < best[0]:
            best = (reached, count, problem.save())
        if problem.is_exact(reached):
            break
    assert best is not None
    problem.restore(best[2])
    return best[1]


def _stay_at_zero(problem: Problem, blocks: Sequence[TermGroup]) -> None:
    """Terms found in turn made exactly zero, by their last factor alone, so that it can be trained from there."""
    for term in (block.terms[0] for block in blocks if block.method == "alternating least squares"):
        *others, last = problem.factors[term]
        problem.factors[term] = [*others, torch.zeros_like(last)]
    problem.refresh()


def _start(problem: Problem, block: TermGroup, seed: int) -> None:
    """The first fit of a block, from nothing."""
    term = block.terms[0]
    view = problem.terms[term]
    if block.method == "hierarchical SVD":
        whole = problem.target(term)
        found = links.nearest(view, whole) if isinstance(view, links.ChainView) else chain.nearest_chain(view, whole)
        problem.set(term, found)
    elif block.method == "alternating least squares" or _is_costly(problem, block):
        known = None
        if seed == 0 and not isinstance(view, links.ChainView):
            known = shared_bond.from_eigenvectors(view, problem.target(term))
        problem.set(term, known or _random(problem, term, seed))
        alternating.sweep(problem, term)
    else:
        _fit(problem, block)


def _update(problem: Problem, block: TermGroup, groups: Mapping[int, slices.Groups]) -> None:
    """A block refitted, the others held: never worse than before."""
    if block.exact and not _is_costly(problem, block):
        _fit(problem, block)
    elif block.method == GROUPS:
        groups[block.terms[0]].sweep()
        alternating.improve_direct(problem, block.terms[0])
    else:
        alternating.sweep(problem, block.terms[0])


def _fit(problem: Problem, block: TermGroup) -> bool:
    """The best of a block whose method is exact, the others held; False if conjugate gradients ran out of steps."""
    term = block.terms[0]
    view = problem.terms[term]
    if block.method == "support":
        supports.fit_supports(problem, block.terms)
    elif block.method == "linear least squares" and len(block.terms) == 1:
        return alternating.improve(problem, term, 0, LINEAR_STEPS)
    elif block.method == "linear least squares":
        return alternating.solve_jointly(problem, block.terms, LINEAR_STEPS)
    elif isinstance(view, links.ChainView):
        problem.set(term, links.nearest(view, problem.target(term)))
    elif block.method == "truncated SVD":
        problem.set(term, two_factor.nearest_product(view, problem.target(term)))
    else:
        assert problem.covariance is not None
        whole = problem.residual.clone()
        view.add_to(whole, problem.entries(term))
        problem.set(term, two_factor.nearest_whitened(view, whole @ problem.covariance, problem.covariance))
    return True


def _is_costly(problem: Problem, block: TermGroup) -> bool:
    """A term whose SVD takes far longer than a step of subspace iteration, which alternating least squares is."""
    if block.method not in ("truncated SVD", "whitened SVD"):
        return False
    view = problem.terms[block.terms[0]]
    if isinstance(view, links.ChainView):
        return False
    cut = two_factor.Cut.of(view.held, *view.factors)
    side = min(math.prod(view.sizes(cut.rows)), math.prod(view.sizes(cut.cols)))
    return side > CHEAP_SIDE and side >= CHEAP_RANK * math.prod(view.sizes(cut.bond))


def _random(problem: Problem, term: int, seed: int) -> list[Tensor]:
    """Normal factors, the same on every device and whatever torch's default dtype is.

    Of many in a row the blocks are orthonormal: products of normal ones are ill-conditioned, and what is found from
    there is too. Ten factors of a kaleidoscope, 48 x 96, lose 0.011 to bfloat16 instead of 0.28.
    """
    generator = torch.Generator().manual_seed(seed)
    view = problem.terms[term]
    drawn = (torch.randn(view.sizes(axes), generator=generator, dtype=torch.float32) for axes in view.factors)
    factors = [factor.to(problem.weight) for factor in drawn]
    if isinstance(view, links.ChainView) or len(factors) <= DEEP:
        return factors
    steps = {step.factor: step for step in view.term.steps}
    for number, (position, axes) in enumerate(zip(view.positions, view.factors, strict=True)):
        rows = tuple(a for a in axes if a in steps[position].contracted)
        cols = tuple(a for a in axes if a in steps[position].cols)
        batch = tuple(a for a in axes if a not in rows + cols)
        u, _, v = torch.linalg.svd(two_factor.matricise(factors[number], axes, batch, rows, cols), full_matrices=False)
        factors[number] = two_factor.arrange(u @ v, batch + rows + cols, axes, view.structure.size)
    return factors


def _descend(
    problem: Problem,
    blocks: Sequence[TermGroup],
    method: str,
    done: int,
    tolerance: float,
    limit: int,
    report: Report,
) -> Fitted:
    history = [problem.relative()]
    report(done, history[0])
    converged = problem.is_exact(history[0])
    coupled = [] if converged or not limit else [block.terms[0] for block in blocks if block.method == GROUPS]
    groups = {term: slices.Groups(problem, term) for term in coupled}
    # after 20 sweeps 0.665 instead of 0.673 for BLAST, 344 x 128; blocks that are fitted at once gain nothing by it
    moving = not any(block.exact or block.method == GROUPS for block in blocks)
    last: list[list[Tensor]] | None = None  # the factors a sweep earlier; none right after a restart
    steps = 0  # taken with momentum
    while not converged and done < limit:
        before = problem.save()
        ahead = moving and last is not None
        if ahead and last is not None:
            steps += 1
            problem.restore(_beyond(before, last, steps / (steps + 3)))
        for block in blocks:
            _update(problem, block, groups)
        if done % REFRESH == REFRESH - 1:
            problem.refresh()
        reached = problem.relative()
        done += 1
        if not reached <= history[-1]:
            problem.restore(before)
            last, steps = None, 0
            if ahead:  # too far: from here without momentum
                continue
            converged = True  # rounding, at the end
            break
        last = before
        history.append(reached)
        report(done, reached)
        converged = history[-2] - reached <= tolerance * history[-2] or problem.is_exact(reached)
    return Fitted(method, done, problem.is_exact(history[-1]), converged, tuple(history))


def _beyond(present: list[list[Tensor]], last: list[list[Tensor]], share: float) -> list[list[Tensor]]:
    """The step from the last factors to the present ones taken again in part (Nesterov's momentum).

    A sweep from there is kept where it is nearer than the present factors. Source: Mitchell, Ye & De Sterck 2020.
    """
    return [
        [new + share * (new - old) for new, old in zip(*of_term, strict=True)]
        for of_term in zip(present, last, strict=True)
    ]


def balance(problem: Problem) -> None:
    """Factors of a term made equally large, those at its ends orthonormal; the term stays what it is."""
    for term, view in enumerate(problem.terms):
        factors = problem.factors[term]
        if len(factors) == 2 and not isinstance(view, links.ChainView):
            problem.factors[term] = two_factor.rebalance(view, factors)
        elif len(factors) > 1:
            if not isinstance(view, links.ChainView) and not chain.is_chain(view):
                factors = problem.factors[term] = two_factor.with_orthonormal_ends(view, factors)
            norms = [float(f.norm()) for f in factors]
            if all(norm > 0 for norm in norms):
                mean = math.exp(sum(map(math.log, norms)) / len(norms))
                problem.factors[term] = [f * (mean / norm) for f, norm in zip(factors, norms, strict=True)]
    problem.refresh()
