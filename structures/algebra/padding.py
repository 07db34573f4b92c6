"""Widths that an entry is bound to in place of ones that it does not fit: the input zero-filled, the output cut.

Of the widths from w to w + max(64, w / 16), and powers of two beyond, the pair is taken whose binding has the fewest
FLOPs, the smallest of equal ones. Not every pair is tried: of each side those widths that fit and cost least in a
square, which the pairs are made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from structures.algebra.map import Map
from structures.language.errors import SizeError

LEAST, SHARE = 64, 16  # how far: to w + max(64, w / 16)
TRIED = 96  # widths of a side that are tried in a square, those with most divisors and the first ones
KEPT = 6  # of them, of which pairs are made

Bind = Callable[[int, int], Map]


def padded(bind: Bind, in_features: int, out_features: int, largest: int) -> Map:
    """The binding of the widths that are taken in place of these.

    Raises:
        SizeError: none fits; the error is that of the widths themselves.
    """
    tried = {width: _candidates(bind, width, largest) for width in {in_features, out_features}}
    sides = [tried[width] for width in (in_features, out_features)]
    highest = min(_power(max(in_features, out_features)), largest)  # for entries that are square alone
    pairs = {*itertools.product(*sides), (in_features, out_features), (highest, highest)}
    found = [(bound.flops(), i + o, i, bound) for i, o in sorted(pairs) if (bound := _try(bind, i, o)) is not None]
    if not found:
        return bind(in_features, out_features)  # its error
    return min(found, key=lambda each: each[:3])[3]


def _candidates(bind: Bind, width: int, largest: int) -> list[int]:
    """Widths from `width` on that fit in a square: the cheapest a feature, the first ones, and a power of two."""
    costs = {}
    for n in _tried(width, largest):
        square = _try(bind, n, n)
        if square is not None:
            costs[n] = square.flops() / n
    cheap = sorted(costs, key=lambda n: (costs[n], n))[:KEPT]
    return sorted({*cheap, *sorted(costs)[:KEPT], width})


@lru_cache(maxsize=1024)
def _tried(width: int, largest: int) -> tuple[int, ...]:
    end = min(width + max(LEAST, width // SHARE), largest)
    rich = [width + int(n) for n in np.argsort(-_divisor_counts(width, end), kind="stable")[:TRIED]]
    powers = {_power(width)} if _power(width) <= largest else set()
    return tuple(sorted({*rich, *range(width, min(width + KEPT, end + 1)), *powers}))


def _divisor_counts(first: int, last: int) -> NDArray[np.int64]:
    """The number of divisors of each number from `first` to `last`, by a sieve: a million of them take no second."""
    counts = np.zeros(last - first + 1, dtype=np.int64)
    for small in range(1, math.isqrt(last) + 1):
        square = small * small
        start = max(square, -(-first // small) * small)  # small * large with large >= small
        counts[start - first :: small] += 2
        if square >= first:
            counts[square - first] -= 1
    return counts


def _power(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _try(bind: Bind, in_features: int, out_features: int) -> Map | None:
    try:
        return bind(in_features, out_features)
    except SizeError:
        return None
