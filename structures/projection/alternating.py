"""One factor after another, each by least squares with the others held: works for every term, and never climbs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.projection.links import ChainView
from structures.projection.problem import Problem
from structures.projection.two_factor import arrange, matricise
from structures.projection.views import contract, primed

MAX_DIRECT = 1024  # unknowns that hang together; more are found by conjugate gradients
MAX_GRAM = 2**25  # numbers in the normal equations
CG_STEPS = 50  # of a chain, whose equations are not conditioned
# 384 -> 1536 at a quarter, in the metric of inputs, 12 sweeps: BLAST comes to 0.294 in 3.8 s of a core where 50 steps
# without blocks come to 0.307 in 4.4 s; butterfly to 0.360 in 19 s for 27 s; blocks of 1024 take ten times as long
BLOCK_STEPS = 10
PROXIMAL = 1e-4  # of the largest diagonal entry, by which blocks are lifted: some are singular
MAX_BLOCK = 256  # unknowns of a block on the diagonal of larger equations, by which conjugate gradients are conditioned

Operands = list[tuple[Tensor, Axes]]


def sweep(problem: Problem, term: int) -> None:
    """Every factor of a term improved, first to last; of a longer chain, and back."""
    count = len(problem.factors[term])
    for factor in (*range(count), *range(count - 2, 0, -1)):
        improve(problem, term, factor)


def improve(problem: Problem, term: int, factor: int, steps: int | None = None) -> bool:
    """Move one factor to where the objective is least, all others held; whether it got there in so many steps."""
    view = problem.terms[term]
    if isinstance(view, ChainView) and (at := view.mask_of(factor)) is not None and at.numel() <= MAX_DIRECT:
        change, done = _of_mask(problem, term, factor, view, at), True
    elif isinstance(view, ChainView):
        change, done = _conjugate_gradients(
            lambda moved: _image(problem, term, factor, moved),
            pull(problem, term, factor, problem.weighted()),
            steps or CG_STEPS,
        )
    else:
        change, done = _Subproblem(problem, term, factor).solve(steps or BLOCK_STEPS)
    problem.move(term, factor, change)
    return done


def improve_direct(problem: Problem, term: int) -> None:
    """Improve those factors of a term whose normal equations are small enough to be solved at once."""
    if isinstance(problem.terms[term], ChainView):
        return
    for factor in range(len(problem.factors[term])):
        part = _Subproblem(problem, term, factor)
        if part.is_direct:
            problem.move(term, factor, part.solve(0)[0])


def pull(problem: Problem, term: int, factor: int, matrix: Tensor) -> Tensor:
    """A gradient by W, (out_features, in_features), as the gradient by one factor."""
    view = problem.terms[term]
    if isinstance(view, ChainView):
        return view.pull(problem.factors[term], factor, matrix)
    entries = view.read(matrix)
    missing = [i for i, a in enumerate(view.axes) if a not in view.held]
    operands: Operands = [(entries.sum(missing) if missing else entries, view.held)]
    operands += [pair for i, pair in enumerate(zip(problem.factors[term], view.factors, strict=True)) if i != factor]
    return contract(operands, view.factors[factor])


def _image(problem: Problem, term: int, factor: int, change: Tensor) -> Tensor:
    """The normal equations of a chain's factor applied to a change of it: there and back through the whole chain."""
    factors = problem.factors[term]
    moved = problem.terms[term].entries([*factors[:factor], change, *factors[factor + 1 :]])
    weighted = moved if problem.covariance is None else moved @ problem.covariance
    return pull(problem, term, factor, weighted)


def _of_mask(problem: Problem, term: int, factor: int, view: ChainView, at: Tensor) -> Tensor:
    """The change of a factor whose numbers are entries of its link's matrix M, at once: W = L M R, and the normal
    equations couple entries (i, j) and (k, l) of M by (L'L)[i, k] (R C R')[j, l]. By conjugate gradients through the
    whole chain a diagonal between two Hadamard matrices of 64 took 0.3 s for each step of a sweep.
    """
    right, left = view.around(problem.factors[term], factor)
    rows, columns = at.reshape(-1) // len(right), at.reshape(-1) % len(right)
    pulled = left.t() @ problem.weighted() @ right.t()
    inner = right @ (right.t() if problem.covariance is None else problem.covariance @ right.t())
    gram = (left.t() @ left)[rows][:, rows] * inner[columns][:, columns]
    solved = _solve_damped(gram[None], pulled[rows, columns][None, :, None])
    return solved.reshape(at.shape)


class _Subproblem:
    """The normal equations of one factor, H dF = G, with G the gradient at the present factors.

    The entries are linear in the factor: T = F x (product of the others). H is that product with itself, the axes that
    the objective sums over taken twice (primed and not), C between the two copies where there is a covariance. Axes of
    F that are not primed are independent problems: with equal H (`rows`), or each with its own (`batch`). Where the
    others fall into parts that meet in F alone, as to the left and right in a chain, H is a Kronecker product of the
    parts' matrices, each of which is solved for itself.
    """

    def __init__(self, problem: Problem, term: int, factor: int):
        view = problem.terms[term]
        assert not isinstance(view, ChainView)
        self.size = view.structure.size
        self.axes = view.factors[factor]
        self.others: Operands = [
            (tensor, axes)
            for i, (tensor, axes) in enumerate(zip(problem.factors[term], view.factors, strict=True))
            if i != factor
        ]
        covariance = problem.covariance
        if covariance is None and not view.injective:
            covariance = torch.eye(problem.structure.in_features, dtype=problem.weight.dtype)
            covariance = covariance.to(problem.weight.device)
        internal = {a for f in view.factors for a in f} - set(view.axes)
        self.doubled = internal if covariance is None else internal | set(view.reads)
        self.middle: Operands = [] if covariance is None else [view.covariance(covariance)]
        missing = tuple(a for a in view.axes if a not in view.held)
        self.repeats = math.prod(view.sizes(missing)) if covariance is None else 1
        self.parts = self._parts()
        self.is_direct = all(
            self._numel(coupled) <= MAX_DIRECT and self._numel(batch) * self._numel(coupled) ** 2 <= MAX_GRAM
            for _, batch, coupled in self.parts
        )
        self.problem, self.term, self.factor = problem, term, factor

    def _parts(self) -> list[tuple[Operands, Axes, Axes]]:
        """Each part's operands, the axes of F along which its matrix differs, and those that the matrix couples."""
        operands = [*self.others, *self._copy(), *self.middle]
        free = frozenset(a for a in self.axes if a not in self.doubled)  # axes along which parts may meet
        found = _apart(self.axes, free, tuple([axes for _, axes in operands]))
        return [([operands[place] for place in places], batch, coupled) for places, batch, coupled in found]

    def solve(self, steps: int) -> tuple[Tensor, bool]:
        if not self.is_direct:
            return _conjugate_gradients(self._apply, self.gradient(), steps, self._by_blocks())
        found = self.gradient()
        for operands, batch, coupled in self.parts:
            gram = self._gram(operands, batch, coupled)
            found = self._per_part(found, batch, coupled, partial(_solve_damped, gram))
        return found / self.repeats, True

    def _by_blocks(self) -> Callable[[Tensor], Tensor]:
        """The inverse of the blocks on H's diagonal, for as many axes as `MAX_BLOCK` allows, the innermost first."""
        inverses = []
        for operands, batch, coupled in self.parts:
            inside: Axes = ()
            for axis in reversed(coupled):
                fits = self._numel((axis, *inside)) <= MAX_BLOCK
                inside = (axis, *inside) if fits else inside
            alone = {f"{a}'": a for a in coupled if a not in inside}  # the same in both copies
            same = [(tensor, tuple(alone.get(a, a) for a in axes)) for tensor, axes in operands]
            own = {a for _, axes in same for a in axes}
            batch = tuple(a for a in self.axes if a in batch or (a in own and a in alone.values()))
            gram = self._gram(same, batch, inside)
            gram = gram + PROXIMAL * gram.diagonal(dim1=-2, dim2=-1).amax((0, 1)) * torch.eye(gram.shape[-1]).to(gram)
            inverses.append((batch, inside, torch.cholesky_inverse(torch.linalg.cholesky(gram))))

        def inverse(change: Tensor) -> Tensor:
            for batch, inside, block in inverses:
                change = self._per_part(change, batch, inside, partial(torch.matmul, block))
            return change / self.repeats

        return inverse

    def _per_part(self, change: Tensor, batch: Axes, coupled: Axes, solved: Callable[[Tensor], Tensor]) -> Tensor:
        """A part's systems, each solved for all right-hand sides that it has."""
        rows = tuple(a for a in self.axes if a not in batch and a not in coupled)
        found = solved(matricise(change, self.axes, batch, coupled, rows))
        return arrange(found, batch + coupled + rows, self.axes, self.size)

    def gradient(self) -> Tensor:
        return pull(self.problem, self.term, self.factor, self.problem.weighted())

    def _numel(self, axes: Axes) -> int:
        return math.prod(self.size[a] for a in axes)

    def _copy(self) -> Operands:
        """The others once more, with the doubled axes primed."""
        return [(tensor, primed(axes, self.doubled)) for tensor, axes in self.others]

    def _gram(self, operands: Operands, batch: Axes, coupled: Axes) -> Tensor:
        """A part's matrix as (batch, coupled, coupled)."""
        gram = contract(operands, (*batch, *primed(coupled, coupled), *coupled))
        return gram.reshape(self._numel(batch), self._numel(coupled), self._numel(coupled))

    def _apply(self, change: Tensor) -> Tensor:
        """H times a change of the factor."""
        operands = [(change, primed(self.axes, self.doubled)), *self._copy(), *self.middle, *self.others]
        image = contract(operands, self.axes)
        return image if self.repeats == 1 else image * self.repeats


@lru_cache(maxsize=4096)  # by names alone; of ten factors in a row it took a fifth of the time of a sweep
def _apart(
    own: Axes, free: frozenset[str], operands: tuple[Axes, ...]
) -> tuple[tuple[tuple[int, ...], Axes, Axes], ...]:
    """The places of each part's operands, and of a factor's axes those that the part has and those that it couples."""
    groups: list[tuple[tuple[int, ...], set[str]]] = []  # with the axes that hold the part together
    for place, axes in enumerate(operands):
        joint = {a.removesuffix("'") for a in axes} - free
        meets = [group for group in groups if group[1] & joint]
        groups = [group for group in groups if not group[1] & joint]
        places = [place for group in meets for place in group[0]]
        groups.append(((*places, place), joint.union(*(group[1] for group in meets))))
    return tuple(
        (
            places,
            tuple(a for a in own if a in free and any(a in operands[place] for place in places)),
            tuple(a for a in own if a in joint),
        )
        for places, joint in groups
    )


def _solve_damped(gram: Tensor, right: Tensor) -> Tensor:
    """Solve (batch, n, n) positive semi-definite systems, lifted by a few roundings of their diagonal.

    The lifted solution of the correction to a factor is a proximal step: it never raises the objective, and where the
    system is singular it leaves the undetermined directions as they are.
    """
    lift = _lift(gram)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(8):
        root, failed = torch.linalg.cholesky_ex(gram + lift[..., None] * eye)
        if not bool(failed.any()):
            found: Tensor = torch.cholesky_solve(right, root)
            return found
        lift = torch.where(failed[..., None] != 0, lift * 30, lift)
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
    return inverse @ right


def _lift(gram: Tensor) -> Tensor:
    """A few roundings of the diagonals, (batch, 1)."""
    info = torch.finfo(gram.dtype)
    largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    return 16 * info.eps * largest.clamp_min(info.tiny / info.eps) * math.sqrt(gram.shape[-1])


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    steps: int,
    precondition: Callable[[Tensor], Tensor] = lambda rest: rest,
) -> tuple[Tensor, bool]:
    """x with apply(x) near to `right`, apply positive semi-definite, and whether it is one up to rounding.

    Every step lowers the quadratic. `precondition` is a positive definite guess at apply's inverse.
    """
    x, rest = torch.zeros_like(right), right.clone()
    least = float(rest.pow(2).sum()) * (100 * torch.finfo(right.dtype).eps) ** 2
    direction = precondition(rest)
    product = float((rest * direction).sum())
    for _ in range(steps):
        if float(rest.pow(2).sum()) <= least:
            break
        image = apply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        x, rest = x + product / curvature * direction, rest - product / curvature * image
        towards = precondition(rest)
        following = float((rest * towards).sum())
        direction, product = towards + following / product * direction, following
    return x, float(rest.pow(2).sum()) <= least


def solve_jointly(problem: Problem, terms: Sequence[int], steps: int) -> bool:
    """One-factor terms together: W is linear in all of their parameters, so this is one least squares problem.

    Returns whether it was solved, up to rounding, in so many steps.
    """
    shapes = [problem.factors[t][0].shape for t in terms]
    views = [problem.terms[t] for t in terms]

    def pack(matrix: Tensor) -> Tensor:
        return torch.cat([pull(problem, t, 0, matrix).reshape(-1) for t in terms])

    def unpack(flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, [math.prod(shape) for shape in shapes])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def apply(flat: Tensor) -> Tensor:
        matrix = torch.zeros_like(problem.weight)
        for view, change in zip(views, unpack(flat), strict=True):
            view.add_to(matrix, view.entries([change]))
        return pack(matrix if problem.covariance is None else matrix @ problem.covariance)

    flat, done = _conjugate_gradients(apply, pack(problem.weighted()), steps)
    for term, change in zip(terms, unpack(flat), strict=True):
        problem.move(term, 0, change)
    return done
