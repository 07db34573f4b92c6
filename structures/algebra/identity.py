"""Factors of zeros and ones whose matrix is the identity, found from the axes alone.

Input feature n is to reach output feature n. The views say where both lie on their axes; an axis that no view holds (a
bond) is given the least value that keeps apart the features which share all other axes of an activation. Every factor
then has a one where some feature passes. Whether nothing else passes is followed through exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from structures.algebra.links import link_map
from structures.algebra.map import Map, Term
from structures.algebra.steps import Axes

Places = dict[str, NDArray[np.int64]]  # by axis, where each of some features lies on it


def identity(structure: Map) -> dict[int, NDArray[np.float32]] | None:
    """Values of one term's factors for which it is the identity; None where none of this kind are found.

    The identity of other than square widths has ones on its diagonal. With a gate all experts are alike. An empty
    mapping says that a term without factors is the identity by itself; all other terms have to be zero.
    """
    bare = [term for term in structure.terms if not term.factors]
    if bare:
        alone = len(bare) == 1 and not bare[0].gathers and _wide(structure, bare[0].input) == _wide(
            structure, bare[0].output
        )  # fmt: skip
        return {} if alone else None
    for term in structure.terms:
        if any(f >= structure.trainable for f in term.factors):
            continue  # a constant is not drawn
        found = _of_chain(structure, term) if term.links else _of_term(structure, term)
        if found is not None:
            return found
    return None


def _of_chain(structure: Map, term: Term) -> dict[int, NDArray[np.float32]] | None:
    """Every link the identity of its own widths, none of them narrower than the whole."""
    count = min(structure.in_features, structure.out_features)
    ones: dict[int, NDArray[np.float32]] = {}
    for link in term.links:
        part = link_map(structure, link)
        found = identity(part) if min(part.in_features, part.out_features) >= count else None
        if found is None:
            return None
        ones |= {link.factors[f]: values for f, values in found.items()}
    return ones


def _wide(structure: Map, axes: Axes) -> list[str]:
    return [a for a in axes if structure.size[a] > 1]


def _of_term(structure: Map, term: Term) -> dict[int, NDArray[np.float32]] | None:
    gate = structure.gate.axis if structure.gate else None
    count = min(structure.in_features, structure.out_features)
    places = _places(structure, term.input, count)
    for axis, there in _places(structure, term.output, count).items():
        if axis in places and (places[axis] != there).any():
            return None
        places[axis] = there
    for gather in term.gathers:
        read = places.pop(gather.axis)
        free = tuple(a for a in gather.by if a not in places)
        given = tuple(a for a in gather.by if a in places)
        table = np.array(gather.table).reshape(structure.shape(gather.by))
        table = table.transpose([gather.by.index(a) for a in (*given, *free)]).reshape(structure.numel(given), -1)
        fits = table[_ravel(structure, given, places, count)] == read[:, None]
        if not fits.any(axis=1).all():
            return None
        places |= _unravel(structure, free, fits.argmax(axis=1))
    for step in term.steps:
        axes = [a for a in step.result if a != gate]
        free = tuple(a for a in axes if a not in places)
        rank = _rank(_ravel(structure, [a for a in axes if a in places], places, count))
        if rank.size and rank.max() >= structure.numel(free):
            return None
        places |= _unravel(structure, free, rank)
    ones = {}
    for f in term.factors:
        axes = [a for a in structure.factors[f] if a != gate]
        held = {a: places.get(a, np.zeros(count, dtype=np.int64)) for a in axes}  # the end of a bond has size 1
        ones[f] = np.unique(np.stack([held[a] for a in axes], axis=1), axis=0)
    if not _is_identity(structure, term, ones, gate, count):
        return None
    return {f: _filled(structure, structure.factors[f], entries, gate) for f, entries in ones.items()}


def _is_identity(
    structure: Map, term: Term, ones: Mapping[int, NDArray[np.int64]], gate: str | None, count: int
) -> bool:
    """Follow every input feature along all ones: is n reached from n alone, once, and nothing from the others?"""
    start = np.arange(structure.in_features)
    places = _places(structure, term.input, len(start))
    for gather in term.gathers:
        read = places.pop(gather.axis)
        rows, combinations = np.nonzero(read[:, None] == np.array(gather.table)[None, :])
        start, places = start[rows], {a: p[rows] for a, p in places.items()}
        places |= _unravel(structure, gather.by, combinations)
    for step in term.steps:
        axes = [a for a in structure.factors[step.factor] if a != gate]
        entries = ones[step.factor]
        there = {a: entries[:, i] for i, a in enumerate(axes)}
        shared = [a for a in axes if a in places]
        rows, met = _joined(
            _ravel(structure, shared, places, len(start)), _ravel(structure, shared, there, len(entries))
        )
        if len(rows) > structure.in_features + structure.out_features:
            return False  # more paths than an identity has
        start = start[rows]
        both = {**{a: p[rows] for a, p in places.items()}, **{a: p[met] for a, p in there.items()}}
        places = {a: both[a] for a in step.result if a != gate}
    end = _ravel(structure, term.output, places, len(start))
    return len(start) == count and bool((start == end).all()) and len(np.unique(start)) == count


def _joined(left: NDArray[np.int64], right: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of positions with equal keys."""
    order = np.argsort(right, kind="stable")
    low, high = (np.searchsorted(right[order], left, side=side) for side in ("left", "right"))
    rows = np.repeat(np.arange(len(left)), high - low)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
    return rows, order[low[rows] + within]


def _filled(structure: Map, axes: Axes, entries: NDArray[np.int64], gate: str | None) -> NDArray[np.float32]:
    values = np.zeros(structure.shape(axes), dtype=np.float32)
    columns = iter(entries.T)
    values[tuple(slice(None) if a == gate else next(columns) for a in axes)] = 1
    return values


def _places(structure: Map, view: Axes, features: int) -> Places:
    return _unravel(structure, view, np.arange(features))


def _unravel(structure: Map, axes: Sequence[str], flat: NDArray[np.int64]) -> Places:
    places = {}
    for axis in reversed(axes):
        flat, places[axis] = np.divmod(flat, structure.size[axis])
    return places


def _ravel(
    structure: Map, axes: Iterable[str], places: Mapping[str, NDArray[np.int64]], count: int
) -> NDArray[np.int64]:
    flat = np.zeros(count, dtype=np.int64)
    for axis in axes:
        flat = flat * structure.size[axis] + places[axis]
    return flat


def _rank(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier positions have the same key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty_like(keys)
    rank[order] = np.arange(len(keys)) - first
    return rank
