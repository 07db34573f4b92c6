"""What the einsum tells about the matrix itself: support, generic rank, degrees of freedom, mixing depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structures.algebra.binding import bind
from structures.algebra.constants import residues
from structures.algebra.constants import values as values_of
from structures.algebra.links import joined, link_map
from structures.algebra.map import Gather, Map, Term
from structures.algebra.steps import Axes

MAX_CUT_FACTORS = 16  # 2**16 cuts are looked at; no registry entry has more factors up to width 65536
MAX_ELIMINATION = 2**19  # entries of a matrix whose rank is computed by elimination: about a second
MAX_NUMBERS = 2**24  # of a tensor on the way there: 128 MiB
MAX_SUPPORT = 2**28  # entries of a support mask: 256 MiB
MAX_MIXING = 2**24  # entries of a matrix that mixing_depth multiplies: 4096 x 4096, seconds
PRIME = 2**25 - 39  # a product of two residues summed over 4096 terms stays within int64


def support(structure: Map) -> NDArray[np.bool_]:
    """(out_features, in_features) of W as asked for, not as padded: True where it can be other than zero.

    Raises:
        ValueError: the matrix has more than 2**28 entries.
    """
    if _entries(structure) > MAX_SUPPORT:
        raise ValueError(
            f"{structure.name}: a support mask of {structure.out_features} x {structure.in_features} entries is too "
            f"large; ask at a smaller width"
        )
    mask = np.zeros((structure.out_features, structure.in_features), dtype=bool)
    for term in structure.terms:
        if term.links:
            mask |= _support_of_chain(structure, term)
        else:
            _add_support(structure, term, mask)
    return _cut(structure, mask)


def mixing_depth(structure: Map) -> int | None:
    """How many layers of this kind until every output can depend on every input; None where it never happens.

    Supports only: activations between the layers change nothing. Rectangular layers alternate with the same entry
    bound the other way round, as the two layers of a feed-forward block do.

    Source: reference facts on DYAD; DYAD-DT with more blocks than features a block never mixes.
    """
    if _entries(structure) > MAX_MIXING:
        raise ValueError(
            f"{structure.name}: supports of {structure.out_features} x {structure.in_features} entries take too long "
            "to multiply; the answer depends on the options and the ratio of the widths, so ask at a smaller width"
        )
    there = support(structure)
    if len(set(structure.widths)) == 1:
        layers = [there]
    else:
        back = bind(structure.spec, *reversed(structure.widths), tuple(sorted(structure.options)))
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


def generic_rank(structure: Map) -> int | None:
    """Rank of W for almost all factors.

    From above, a term's rank is at most the product of axis sizes over any cut that parts its input from its output
    (factors fall on either side, an axis counts once if it touches both sides), and a sum's at most the sum. From
    below, steps that only shrink the activation followed by steps that only widen it have the narrowest width as rank,
    of the term or of a special case of it, and factors of zeros and ones may pass features one by one through a bond;
    a sum has at least the rank of its best term. Where the two meet, that is it. Otherwise W is drawn at random modulo
    a prime and eliminated exactly, up to 2**19 entries (float64 will not do: products of Gaussian factors are so
    ill-conditioned that they seem to lack rank); beyond that: None.

    The least cut alone, the closed form given for the two-factor einsum space, is not always reached: a Kronecker
    product of sizes (5, 6) x (6, 5) summed twice has rank 27, and every cut of it is at least 30.
    """
    structure = joined(structure)
    lower, upper = rank_bounds(structure)
    if lower == upper:
        return lower
    if _entries(structure) > MAX_ELIMINATION or _largest(structure) > MAX_NUMBERS:
        return None
    return max(_eliminate(_cut(structure, dense(structure, _residues(structure, seed), PRIME))) for seed in range(2))


def rank_bounds(structure: Map) -> tuple[int, int]:
    """(lower, upper) bound of the generic rank, as `generic_rank` tells; cheap at every width."""
    structure = joined(structure)
    bounds = [_term_rank(structure, term) for term in structure.terms]
    cut_off = structure.in_features + structure.out_features - sum(structure.widths)  # each takes one at most
    lower, upper = max(lower for lower, _ in bounds), sum(upper for _, upper in bounds)
    return max(0, lower - cut_off), min(*structure.widths, upper)


def degrees_of_freedom(structure: Map) -> int | None:
    """Dimension of the set of matrices that the structure can express.

    Exact for sums of one-factor terms in which each parameter is one entry (the union of the supports); otherwise the
    rank of the Jacobian of W at random factors, exact modulo a prime, up to 2**19 entries of it. Beyond that: None.
    """
    if all(_is_mask(structure, term) for term in structure.terms) and _entries(structure) <= MAX_SUPPORT:
        return int(support(structure).sum())
    if _entries(structure) * structure.params > MAX_ELIMINATION or _largest(structure) > MAX_NUMBERS:
        return None
    return _eliminate(_jacobian(structure))


def _largest(structure: Map) -> int:
    """Numbers of the largest tensor on the way to W: a factor, or an activation of all rows of the identity."""
    loaded = [term.loaded for term in structure.terms] + [step.result for step in structure.steps]
    rows = structure.in_features * max(structure.numel(axes) for axes in loaded)
    return max([rows, *(structure.numel(axes) for axes in structure.factors)])


def dense(structure: Map, factors: Sequence[NDArray[Any]], modulus: int | None = None) -> NDArray[Any]:
    """W of shape (out_features, in_features) for the given factors; of integers modulo `modulus` if it is given.

    `factors` are those that are trained; constants are added.
    """
    if len(factors) < len(structure.factors):
        factors = [*factors, *(values_of(c) if modulus is None else residues(c, modulus) for c in structure.constants)]
    total = sum(_dense_term(structure, term, factors, modulus) for term in structure.terms)
    return np.asarray(total if modulus is None else total % modulus)


def _cut(structure: Map, matrix: NDArray[Any]) -> NDArray[Any]:
    """W as asked for, of W as it runs where that is padded."""
    in_features, out_features = structure.widths
    return matrix[:out_features, :in_features]


def _entries(structure: Map) -> int:
    """Of W, at the widths that run."""
    return structure.in_features * structure.out_features


def _residues(structure: Map, seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(1, PRIME, shape) for shape in structure.factor_shapes]
    return [*drawn, *(residues(constant, PRIME) for constant in structure.constants)]


def _eliminate(matrix: NDArray[Any]) -> int:
    """Rank modulo PRIME, by Gaussian elimination on the shorter side: too low with probability below 1e-3."""
    rows = matrix % PRIME if matrix.shape[0] <= matrix.shape[1] else matrix.T % PRIME
    rank = 0
    for column in range(rows.shape[1]):
        below = np.flatnonzero(rows[rank:, column])
        if not len(below):
            continue
        pivot = rank + int(below[0])
        rows[[rank, pivot]] = rows[[pivot, rank]]
        scaled = rows[rank, column:] * pow(int(rows[rank, column]), -1, PRIME) % PRIME
        rest = rows[rank + 1 :, column:]
        rest -= rest[:, :1] * scaled % PRIME
        rest %= PRIME
        rank += 1
        if rank == rows.shape[0]:
            break
    return rank


def _is_mask(structure: Map, term: Term) -> bool:
    if term.links or len(term.factors) != 1 or term.factors[0] >= structure.trainable:
        return False
    axes = set(structure.factors[term.factors[0]])
    return axes >= set(term.loaded) | set(term.output)


def _positions(structure: Map, view: Axes) -> dict[str, NDArray[np.int64]]:
    """For each axis of a view, its position at every feature."""
    shape = structure.shape(view)
    grids = np.unravel_index(np.arange(math.prod(shape)), shape)
    return dict(zip(view, grids, strict=True))


def _add_support(structure: Map, term: Term, mask: NDArray[np.bool_]) -> None:
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


def _support_of_chain(structure: Map, term: Term) -> NDArray[np.bool_]:
    """The union of all paths through the links: generic factors cancel nowhere."""
    widest = max(structure.numel(link.input) for link in term.links)
    if widest * max(structure.in_features, structure.out_features) > MAX_SUPPORT:
        raise ValueError(
            f"{structure.name}: the supports of a chain {widest} wide are too large; ask at smaller widths"
        )
    reach: NDArray[Any] | None = None
    for link in term.links:
        own = support(link_map(structure, link)).astype(np.float32)
        reach = own if reach is None else np.minimum(own @ reach, 1)
    assert reach is not None
    return reach > 0


def _look_up(structure: Map, gather: Gather, at: dict[str, int]) -> int:
    index = 0
    for axis in gather.by:
        index = index * structure.size[axis] + at[axis]
    return gather.table[index]


def _key(
    structure: Map, axes: Sequence[str], positions: dict[str, NDArray[np.int64]], features: int
) -> NDArray[np.int64]:
    key = np.zeros(features, dtype=np.int64)
    for axis in axes:
        key = key * structure.size[axis] + positions[axis]
    return key


def _term_rank(structure: Map, term: Term) -> tuple[int, int]:
    """(lower, upper) bound of a term's generic rank.

    Of a chain: no more than any link has, and what Sylvester's inequality leaves of them one after another.
    """
    if term.links:
        maps = [link_map(structure, link) for link in term.links]
        bounds = [_term_rank(link, link.terms[0]) for link in maps]
        lower = bounds[0][0]
        for link, (own, _) in zip(maps[1:], bounds[1:], strict=True):
            lower = max(0, lower + own - link.in_features)
        return lower, min(upper for _, upper in bounds)
    full = min(structure.in_features, structure.out_features)
    lower = max(_matched(structure, term), *(_narrowest(*narrowed) for narrowed in _narrowed(structure, term)))
    if not term.gathers:
        if len(term.factors) > MAX_CUT_FACTORS:
            return lower, full
        bits = {axis: math.log2(size) for axis, size in structure.sizes}
        return lower, structure.numel(tuple(least_cut(structure, term, bits)))
    return (lower if _gathers_rename(structure, term) else 0), full


def _narrowed(structure: Map, term: Term) -> Iterator[tuple[dict[str, int], Axes, list[Axes], Axes]]:
    """Special cases of a term, none of larger rank: (sizes, input axes, factors in order of contraction, output axes).

    As it is; with bonds of size one; with an input and an output axis that two factors share tied into one, so that
    the factors hold only the diagonal of the two.
    """
    factors = [structure.factors[step.factor] for step in term.steps]
    # A gathered axis is renamed: with the other axes of its index held fixed, they are contracted at size one.
    fixed = {a for g in term.gathers for a in g.by if a not in term.output}
    size = {a: 1 if a in fixed else n for a, n in structure.sizes}
    yield size, term.loaded, factors, term.output
    bonds = {a for f in factors for a in f} - {*term.loaded, *term.output}
    yield {**size, **dict.fromkeys(bonds, 1)}, term.loaded, factors, term.output
    for near, far in itertools.product(term.loaded, term.output):
        if near != far and sum(near in f and far in f for f in factors) > 1:
            tied = {**size, near: min(size[near], size[far])}
            renamed = [tuple(dict.fromkeys(near if a == far else a for a in f)) for f in factors]
            yield tied, term.loaded, renamed, tuple(near if a == far else a for a in term.output)


def _narrowest(size: dict[str, int], loaded: Axes, factors: list[Axes], output: Axes) -> int:
    """The rank of a term whose steps first only shrink the activation and then only widen it; 0 for any other."""
    here = set(loaded)
    narrowest = math.prod(size[a] for a in here)
    widening = False
    for position, factor in enumerate(factors):
        needed = set(output).union(*factors[position + 1 :])
        after = (here | set(factor)) & needed
        before, width = (math.prod(size[a] for a in axes) for axes in (here, after))
        if widening and width < before:
            return 0
        widening |= width > before
        narrowest = min(narrowest, width)
        here = after
    return narrowest


def _matched(structure: Map, term: Term) -> int:
    """The largest rank of a special case in which each input feature has one place of a bond, and that one output.

    For factors that step by step widen what they then shrink, as a CP matrix's and a Hadamard product's: where the
    first so many stand between the input and the bond and the others between the bond and the output.
    """
    if term.gathers:
        return 0
    views = [_wide(structure, view) for view in (term.loaded, term.output)]
    factors = [_wide(structure, structure.factors[step.factor]) for step in term.steps]
    best = 0
    for place in range(1, len(factors)):
        near, far = factors[:place], factors[place:]
        bond = frozenset().union(*near) & frozenset().union(*far)
        if _matches(near, views[0], bond) and _matches(far, views[1], bond):
            best = max(best, min(structure.numel(tuple(axes)) for axes in (*views, bond)))
    return best


def _wide(structure: Map, axes: Axes) -> frozenset[str]:
    return frozenset(a for a in axes if structure.size[a] > 1)


def _matches(factors: Sequence[frozenset[str]], view: frozenset[str], bond: frozenset[str]) -> bool:
    """Whether the product of these factors can be any function of the one to the other, its entries zeros and ones.

    It can where each factor holds all axes of the one and axes of the other of its own: it holds their coordinates.
    """
    if view & bond or frozenset().union(*factors) != view | bond:
        return False
    return any(
        all(f >= whole for f in factors) and sum(len(f & parts) for f in factors) == len(parts)
        for whole, parts in ((view, bond), (bond, view))
    )


def _gathers_rename(structure: Map, term: Term) -> bool:
    """Whether each gather, its axes outside the output held fixed, is one to one onto an output axis of its own."""
    moving = [[a for a in gather.by if a in term.output] for gather in term.gathers]
    if any(len(axes) != 1 for axes in moving) or len({a for axes in moving for a in axes}) < len(moving):
        return False
    return all(_renames(structure, g, axes[0]) for g, axes in zip(term.gathers, moving, strict=True))


def _renames(structure: Map, gather: Gather, moving: str) -> bool:
    size = structure.size[moving]
    if size != structure.size[gather.axis]:
        return False
    table = np.array(gather.table).reshape(structure.shape(gather.by))
    fixed = tuple(slice(None) if a == moving else 0 for a in gather.by)
    return len(set(table[fixed].tolist())) == size


def least_cut(structure: Map, term: Term, weights: Mapping[str, float]) -> list[str]:
    """The axes of the cut between a term's input and its output whose weights have the least sum.

    Factors stand on either side; an axis is cut, once, if it touches both sides. Up to 16 factors.
    """
    count = len(term.factors)
    sides = (np.arange(2**count)[:, None] >> np.arange(count)) & 1  # 1: on the input's side
    total = np.zeros(2**count)
    cut_axes: dict[str, NDArray[np.bool_]] = {}
    for axis in structure.size:
        holders = [i for i, f in enumerate(term.factors) if axis in structure.factors[f]]
        touches_input = axis in term.loaded or (sides[:, holders] == 1).any(axis=1)
        touches_output = axis in term.output or (sides[:, holders] == 0).any(axis=1)
        cut_axes[axis] = np.broadcast_to(touches_input & touches_output, (2**count,))
        total += cut_axes[axis] * weights[axis]
    best = int(np.argmin(total))
    return [axis for axis, cut in cut_axes.items() if cut[best]]


def _jacobian(structure: Map) -> NDArray[Any]:
    """(params, entries of W): W is linear in each factor, so its derivative has a unit tensor in the factor's place."""
    factors = _residues(structure, 0)
    rows = []
    for term in structure.terms:
        for position in (f for f in term.factors if f < structure.trainable):
            for index in np.ndindex(factors[position].shape):
                unit = np.zeros_like(factors[position])
                unit[index] = 1
                changed = [*factors[:position], unit, *factors[position + 1 :]]
                rows.append(_cut(structure, _dense_term(structure, term, changed, PRIME)).ravel())
    return np.array(rows).reshape(structure.params, math.prod(structure.widths))


def _dense_term(structure: Map, term: Term, factors: Sequence[NDArray[Any]], modulus: int | None) -> NDArray[Any]:
    """The term applied to the identity, link by link."""
    whole = np.eye(structure.in_features, dtype=np.float64 if modulus is None else np.int64)
    for link in term.chain:
        whole = _apply(structure, link, whole, factors, modulus)
    return whole.T


def _apply(
    structure: Map, term: Term, rows: NDArray[Any], factors: Sequence[NDArray[Any]], modulus: int | None
) -> NDArray[Any]:
    """(rows, features in) -> (rows, features out), step by step."""
    result, axes = rows.reshape(-1, *structure.shape(term.input)), term.input
    for gather in term.gathers:
        at = axes.index(gather.axis)
        result = np.take(result, np.array(gather.table).reshape(structure.shape(gather.by)), axis=1 + at)
        axes = (*axes[:at], *gather.by, *axes[at + 1 :])
    for step in term.steps:
        letters = {a: i + 1 for i, a in enumerate(dict.fromkeys((*step.left, *step.right)))}
        left, right, out = ([letters[a] for a in group] for group in (axes, step.right, step.result))
        result = np.einsum(result, [0, *left], factors[step.factor], right, [0, *out])
        result, axes = result if modulus is None else result % modulus, step.result
    order = [1 + axes.index(a) for a in term.output]
    return result.transpose(0, *order).reshape(len(rows), structure.numel(term.output))
