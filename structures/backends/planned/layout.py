"""Layouts, and the one rule of what a BLAS call can read.

A layout is an order of axes, slowest first, of a contiguous tensor; nothing else is known of a tensor here. A matrix
product sees four groups of axes (batch, rows, contracted, cols). It can read an operand if each of the operand's three
groups is a run of consecutive axes and batch is not the innermost run: `view(three sizes)` and at most one permutation
of the three then make a tensor whose matrices have one stride of 1, which `mm` and `bmm` take without a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

Layout = tuple[str, ...]

TOKENS = "*"  # the axis of tokens; no axis of a registry can have this name


@dataclass(frozen=True)
class Product:
    """One readable `mm` or `bmm`: (batch, rows, contracted) x (batch, contracted, cols) -> (batch, rows, cols).

    Each group lists its axes in the order in which they are flattened.

    Args:
        swapped: the left matrix comes from the second of the two operands asked about.
        expand: "left" or "right": that operand lacks the batch axes and is read with stride 0.
        reduced: the batch axes are summed afterwards (they were contracted axes that no matrix run could hold).
    """

    batch: Layout
    rows: Layout
    contracted: Layout
    cols: Layout
    swapped: bool = False
    expand: str = ""
    reduced: bool = False

    @property
    def result(self) -> Layout:
        """Layout of the contiguous result."""
        return (() if self.reduced else self.batch) + self.rows + self.cols

    @property
    def left(self) -> tuple[Layout, Layout, Layout]:
        """The groups of the left operand: batch, rows, contracted."""
        return () if self.expand == "left" else self.batch, self.rows, self.contracted

    @property
    def right(self) -> tuple[Layout, Layout, Layout]:
        """The groups of the right operand: batch, contracted, cols."""
        return () if self.expand == "right" else self.batch, self.contracted, self.cols


@lru_cache(maxsize=65536)
def readable(layout: Layout, groups: tuple[Layout, Layout, Layout]) -> tuple[int, ...] | None:
    """The groups' positions (0 is batch) in memory order, empty groups left out; None if BLAS cannot read them."""
    order = sorted((g for g in range(3) if groups[g]), key=lambda g: layout.index(groups[g][0]))
    if tuple(itertools.chain.from_iterable(groups[g] for g in order)) != layout:
        return None
    if len(order) > 1 and order[-1] == 0:
        return None
    return tuple(order)


@lru_cache(maxsize=65536)
def products(first: Layout, second: Layout, out: frozenset[str]) -> tuple[Product, ...]:
    """Every readable product of two operands that keeps the axes `out`, in both orientations.

    Forward: activation and factor; input gradient: output gradient and factor; factor gradient: activation and output
    gradient, tokens contracted. All are this one function.
    """
    found: dict[tuple[object, ...], Product] = {}
    for left, right, swapped in ((first, second, False), (second, first, True)):
        for product in _oriented(left, right, out, swapped):
            if readable(left, product.left) is not None and readable(right, product.right) is not None:
                found.setdefault((product.result, product.batch, product.expand, product.reduced, swapped), product)
    return tuple(found.values())


@lru_cache(maxsize=65536)
def groups(left: Layout, right: Layout, out: frozenset[str]) -> tuple[Layout, Layout, Layout, Layout]:
    """(batch, rows, contracted, cols) of a contraction, in the order of `left` where it has the axis."""
    batch = tuple(a for a in left if a in right and a in out)
    contracted = tuple(a for a in left if a in right and a not in out)
    return batch, tuple(a for a in left if a not in right), contracted, tuple(a for a in right if a not in left)


def _oriented(left: Layout, right: Layout, out: frozenset[str], swapped: bool) -> Iterator[Product]:
    batch, rows, contracted, cols = groups(left, right, out)
    yield Product(batch, rows, contracted, cols, swapped)
    if batch:
        return  # axes of stride 0 and others make no single batch stride
    for lead in _leads(left, rows):
        yield Product(lead, _without(rows, lead), contracted, cols, swapped, expand="right")
    for lead in _leads(right, cols):
        yield Product(lead, rows, contracted, _without(cols, lead), swapped, expand="left")
    for lead in _leads(left, contracted):
        yield Product(lead, rows, _without(contracted, lead), cols, swapped, reduced=True)


def _leads(layout: Layout, group: Layout) -> Iterator[Layout]:
    """Runs of `group` at the start of `layout` that may serve as a batch: all of it, and the tokens alone."""
    lead = tuple(itertools.takewhile(lambda a: a in group, layout))
    if lead:
        yield lead
    if len(lead) > 1 and lead[0] == TOKENS:
        yield lead[:1]


def _without(group: Layout, lead: Layout) -> Layout:
    return tuple(a for a in group if a not in lead)


def fuse(*layouts: Layout, keep: Iterable[str] = ()) -> Mapping[str, Layout]:
    """Axes that stand side by side in all layouts, by the first axis of each run; `keep` are left single.

    A permutation of the runs is the same permutation with fewer dimensions: shorter and faster in every loop.
    """
    return _fuse(layouts, frozenset(keep))


@lru_cache(maxsize=65536)
def _fuse(layouts: tuple[Layout, ...], single: frozenset[str]) -> Mapping[str, Layout]:
    after: dict[str, str | None] = {}
    before: dict[str, str | None] = {}
    for layout in layouts:
        for one, two in zip((None, *layout), (*layout, None), strict=True):
            if one is not None:
                after[one] = two if after.get(one, two) == two else None
            if two is not None:
                before[two] = one if before.get(two, one) == one else None
    runs: dict[str, Layout] = {}
    head: dict[str, str] = {}
    for axis in dict.fromkeys(itertools.chain(*layouts)):
        previous = before[axis]
        joined = previous is not None and after[previous] == axis and not {axis, previous} & single
        if joined and previous in head:
            head[axis] = head[previous]
            runs[head[axis]] += (axis,)
        else:
            head[axis] = axis
            runs[axis] = (axis,)
    return runs


def heads(layout: Layout, runs: Mapping[str, Layout]) -> Layout:
    """`layout` in terms of the runs of `fuse`: the axes that start one."""
    return tuple(a for a in layout if a in runs)
