"""What the einsum tells about the matrix itself: support, generic rank, degrees of freedom, mixing depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from structures.structure import Axes, Gather, Structure, Term

MAX_CUT_FACTORS = 16  # 2**16 cuts are looked at; no registry entry has more factors up to width 65536
MAX_NUMERIC_RANK = 2**22  # entries of a matrix whose rank is computed numerically: 2048 x 2048, seconds
MAX_JACOBIAN = 2**23  # entries of a Jacobian whose rank is computed: seconds
MAX_SUPPORT = 2**28  # entries of a support mask: 256 MiB


def support(structure: Structure) -> NDArray[np.bool_]:
    """(out_features, in_features): True where W can be other than zero.

    Raises:
        ValueError: the matrix has more than 2**28 entries.
    """
    if structure.dense_params > MAX_SUPPORT:
        raise ValueError(
            f"{structure.name}: a support mask of {structure.out_features} x {structure.in_features} entries is too "
            f"large; ask at a smaller width"
        )
    mask = np.zeros((structure.out_features, structure.in_features), dtype=bool)
    for term in structure.terms:
        _add_support(structure, term, mask)
    return mask


def mixing_depth(structure: Structure) -> int | None:
    """How many layers of this kind until every output can depend on every input; None where it never happens.

    Supports only: activations between the layers change nothing. Rectangular layers alternate with the same entry
    bound the other way round, as the two layers of a feed-forward block do.

    Source: reference facts on DYAD; DYAD-DT with more blocks than features a block never mixes.
    """
    there = support(structure)
    if structure.in_features == structure.out_features:
        layers = [there]
    else:
        back = structure.spec.bind(structure.out_features, structure.in_features, **dict(structure.options))
        layers = [there, support(back)]
    matrices = [layer.astype(np.float32) for layer in layers]
    reach, depth, seen = there, 1, set()
    while not reach.all():
        state = (depth % len(layers), np.packbits(reach).tobytes())
        if state in seen:
            return None
        seen.add(state)
        reach = matrices[depth % len(layers)] @ reach.astype(np.float32) > 0
        depth += 1
    return depth


def generic_rank(structure: Structure) -> int | None:
    """Rank of W for almost all factors.

    A term's rank is the least product of axis sizes over all cuts that part its input from its output (factors fall on
    either side, an axis counts once if it touches both sides); for two factors this is the closed form of the einsum
    space. A sum has at least the rank of its best term and at most the sum; where the two differ, W is drawn at random
    and its rank computed, up to 2**22 entries. Beyond that: None.
    """
    full = min(structure.in_features, structure.out_features)
    ranks = [_term_rank(structure, term) for term in structure.terms]
    if all(lower is not None for lower, _ in ranks):
        least = max(lower for lower, _ in ranks if lower is not None)
        most = min(full, sum(upper for _, upper in ranks))
        if least == most:
            return least
    if structure.dense_params > MAX_NUMERIC_RANK:
        return None
    return int(np.linalg.matrix_rank(random_dense(structure)))


def degrees_of_freedom(structure: Structure) -> int | None:
    """Dimension of the set of matrices that the structure can express.

    Exact for sums of one-factor terms in which each parameter is one entry (the union of the supports); otherwise the
    rank of the Jacobian of W at random factors, up to 2**23 entries of it. Beyond that: None.
    """
    if all(_is_mask(structure, term) for term in structure.terms) and structure.dense_params <= MAX_SUPPORT:
        return int(support(structure).sum())
    if structure.dense_params * structure.params > MAX_JACOBIAN:
        return None
    return int(np.linalg.matrix_rank(_jacobian(structure)))


def random_dense(structure: Structure, seed: int = 0) -> NDArray[np.float64]:
    """W of shape (out_features, in_features) for Gaussian factors, in float64."""
    rng = np.random.default_rng(seed)
    return dense(structure, [rng.standard_normal(shape) for shape in structure.factor_shapes])


def dense(structure: Structure, factors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """W of shape (out_features, in_features) for the given factors, one einsum a term."""
    total = np.zeros((structure.out_features, structure.in_features))
    for term in structure.terms:
        total += _dense_term(structure, term, factors)
    return total


def _is_mask(structure: Structure, term: Term) -> bool:
    if len(term.factors) != 1:
        return False
    axes = set(structure.factors[term.factors[0]])
    return axes >= set(term.loaded) | set(term.output)


def _positions(structure: Structure, view: Axes) -> dict[str, NDArray[np.int64]]:
    """For each axis of a view, its position at every feature."""
    shape = structure.shape(view)
    grids = np.unravel_index(np.arange(math.prod(shape)), shape)
    return dict(zip(view, grids, strict=True))


def _add_support(structure: Structure, term: Term, mask: NDArray[np.bool_]) -> None:
    rows, columns = _positions(structure, term.output), _positions(structure, term.input)
    gathered = {g.axis for g in term.gathers}
    common = [a for a in term.input if a in rows and a not in gathered]
    row_key = _key(structure, common, rows, structure.out_features)
    column_key = _key(structure, common, columns, structure.in_features)
    by = tuple(dict.fromkeys(a for g in term.gathers for a in g.by))
    for values in itertools.product(*(range(structure.size[a]) for a in by)):
        at = dict(zip(by, values, strict=True))
        row_set = np.ones(structure.out_features, dtype=bool)
        column_set = np.ones(structure.in_features, dtype=bool)
        for axis, value in at.items():
            if axis in rows:
                row_set &= rows[axis] == value
        for gather in term.gathers:
            column_set &= columns[gather.axis] == _look_up(structure, gather, at)
        r, c = np.flatnonzero(row_set), np.flatnonzero(column_set)
        mask[np.ix_(r, c)] |= row_key[r][:, None] == column_key[c][None, :]


def _look_up(structure: Structure, gather: Gather, at: dict[str, int]) -> int:
    index = 0
    for axis in gather.by:
        index = index * structure.size[axis] + at[axis]
    return gather.table[index]


def _key(
    structure: Structure, axes: Sequence[str], positions: dict[str, NDArray[np.int64]], features: int
) -> NDArray[np.int64]:
    key = np.zeros(features, dtype=np.int64)
    for axis in axes:
        key = key * structure.size[axis] + positions[axis]
    return key


def _term_rank(structure: Structure, term: Term) -> tuple[int | None, int]:
    """(lower, upper) bound of a term's generic rank; they agree unless an input axis is gathered or it is too long."""
    full = min(structure.in_features, structure.out_features)
    if len(term.factors) > MAX_CUT_FACTORS:
        return None, full
    if not term.gathers:
        rank = _least_cut(structure, term, term.loaded)
        return rank, rank
    # With the axes that are not in the output held fixed, a gather that is one to one only renames the axis.
    renamed = []
    for gather in term.gathers:
        moving = [a for a in gather.by if a in term.output]
        if len(moving) != 1 or not _renames(structure, gather, moving[0]):
            return None, full
        renamed.append(moving[0])
    names = dict(zip((g.axis for g in term.gathers), renamed, strict=True))
    if len(set(renamed)) < len(renamed):
        return None, full
    return _least_cut(structure, term, tuple(names.get(a, a) for a in term.input)), full


def _renames(structure: Structure, gather: Gather, moving: str) -> bool:
    size = structure.size[moving]
    if size != structure.size[gather.axis]:
        return False
    table = np.array(gather.table).reshape(structure.shape(gather.by))
    fixed = tuple(slice(None) if a == moving else 0 for a in gather.by)
    return len(set(table[fixed].tolist())) == size


def _least_cut(structure: Structure, term: Term, loaded: Axes) -> int:
    count = len(term.factors)
    sides = (np.arange(2**count)[:, None] >> np.arange(count)) & 1  # 1: on the input's side
    bits = np.zeros(2**count)
    cut_axes: dict[str, NDArray[np.bool_]] = {}
    for axis, size in structure.sizes:
        holders = [i for i, f in enumerate(term.factors) if axis in structure.factors[f]]
        touches_input = axis in loaded or (sides[:, holders] == 1).any(axis=1)
        touches_output = axis in term.output or (sides[:, holders] == 0).any(axis=1)
        cut_axes[axis] = np.broadcast_to(touches_input & touches_output, (2**count,))
        bits += cut_axes[axis] * math.log2(size)
    best = int(np.argmin(bits))
    return math.prod(size for axis, size in structure.sizes if cut_axes[axis][best])


def _jacobian(structure: Structure) -> NDArray[np.float64]:
    """(params, entries of W): W is linear in each factor, so its derivative has a unit tensor in the factor's place."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in structure.factor_shapes]
    rows = []
    for term in structure.terms:
        for position in term.factors:
            kept = factors[position]
            for index in np.ndindex(kept.shape):
                unit = np.zeros(kept.shape)
                unit[index] = 1.0
                rows.append(_dense_term(structure, term, [*factors[:position], unit, *factors[position + 1 :]]).ravel())
    return np.array(rows).reshape(structure.params, structure.dense_params)


def _dense_term(structure: Structure, term: Term, factors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The term applied to the identity: its input view is kept beside its output view."""
    result, axes = np.eye(structure.in_features).reshape(-1, *structure.shape(term.input)), term.input
    for gather in term.gathers:
        at = axes.index(gather.axis)
        result = np.take(result, np.array(gather.table).reshape(structure.shape(gather.by)), axis=1 + at)
        axes = (*axes[:at], *gather.by, *axes[at + 1 :])
    for step in term.steps:
        letters = {a: i + 1 for i, a in enumerate(dict.fromkeys((*step.left, *step.right)))}
        left, right, out = ([letters[a] for a in group] for group in (axes, step.right, step.result))
        result = np.einsum(result, [0, *left], factors[step.factor], right, [0, *out])  # type: ignore[arg-type]
        axes = step.result
    order = [1 + axes.index(a) for a in term.output]
    return result.transpose(0, *order).reshape(structure.in_features, structure.out_features).T
