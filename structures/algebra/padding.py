"""Widths that an entry is bound to in place of ones that it does not fit: the input zero-filled, the output cut.

Of all widths from w to w + max(64, w / 16) on either side, the pair is taken whose binding has the fewest FLOPs, the
smallest of equal ones. Where none of them fits, powers of two beyond are looked at: a Hadamard matrix takes them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from structures.algebra.map import MAX_SIZE, Map
from structures.algebra.widths import least_flops
from structures.language.entry import Entry
from structures.language.errors import SizeError

LEAST, SHARE = 64, 16  # how far: to w + max(64, w / 16)
MAX_PAIRS = 2**22  # looked at, 128256 -> 8192; of more than that those whose widths have most divisors
MAX_REFUSED = 512  # pairs that are tried and refused for a reason that a lower bound does not see, such as a gather's

Bind = Callable[[int, int], Map]


def padded(spec: Entry, given: Mapping[str, object], widths: tuple[int, int], bind: Bind) -> Map:
    """The binding of the widths that are taken in place of these.

    Raises:
        SizeError: none fits; the error is that of the widths themselves.
    """
    powers = [sorted({width, _power(width), _power(max(widths))}) for width in widths]
    for sides in (_ranges(widths), powers):
        found = _cheapest(spec, given, [[w for w in side if w <= MAX_SIZE] for side in sides], bind)
        if found is not None:
            return found
    return bind(*widths)  # its error


def _cheapest(spec: Entry, given: Mapping[str, object], sides: Sequence[Sequence[int]], bind: Bind) -> Map | None:
    """Pairs are bound in the order of what they cost at least, until one costs no more than that."""
    costs = least_flops(spec, given, *sides)
    best: tuple[float, int, int, Map] | None = None
    refused = 0
    while refused < MAX_REFUSED:
        least = costs.min()
        if not math.isfinite(least) or (best is not None and best[0] < least):
            break
        level = np.argwhere(costs == least)
        for i, o in sorted(((sides[0][a], sides[1][b]) for a, b in level.tolist()), key=lambda pair: (sum(pair), pair)):
            try:
                bound = bind(i, o)
            except SizeError:
                refused += 1
                continue
            cost = sum(bound.active(step.axes) for step in bound.steps)  # a router's are those of the widths asked for
            best = min(filter(None, (best, (cost, i + o, i, bound))), key=lambda each: each[:3])
            if cost == least:
                break
        costs[costs == least] = math.inf
    return None if best is None else best[3]


def richest(width: int) -> int:
    """Of the widths that may be taken in place of this one, the first with most divisors: most options fit it."""
    counts = _divisor_counts(width, _last(width))
    return width + int(counts.argmax())


def _last(width: int) -> int:
    return width + max(LEAST, width // SHARE)


def _ranges(widths: Sequence[int]) -> list[Sequence[int]]:
    several: list[Sequence[int]] = [range(w, _last(w) + 1) for w in widths]
    while math.prod(map(len, several)) > MAX_PAIRS:
        longest = max(several, key=len)
        counts = _divisor_counts(longest[0], longest[-1])[np.array(longest) - longest[0]]
        rich = np.argsort(-counts, kind="stable")[: len(longest) // 2]
        several[several.index(longest)] = sorted({longest[0], *(longest[n] for n in rich.tolist())})
    return several


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
