"""Seconds of one operation at its real shapes and orders, from the figures of a machine."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from structures.backends.planned.figures import Curve, Rates
from structures.backends.planned.layout import TOKENS, Layout, Product, fuse, heads, readable
from structures.backends.planned.problem import ChainProblem
from structures.backends.planned.program import (
    NARROW,
    Assemble,
    Copy,
    Embed,
    GatherBlocks,
    Multiply,
    Op,
    Pointwise,
    Scatter,
)

LINE = 64  # bytes of a cache line
PAGE = 4096  # bytes; a cache finds its place for a line by the position in the page, and so holds few lines of one
GRAIN = 32768  # elements up to which an elementwise call stays on one thread
POINTWISE_16_BITS = 3  # times: widened and rounded; merging factors of 512 x 512 took 210 us, not 40
TRAFFIC = 0.6  # share of a product's traffic that its arithmetic does not hide


@dataclass(frozen=True)
class Price:
    """Prices operations of a problem for a number of tokens.

    Args:
        train: with gradients, which double what is read and written between two uses of a tensor.
    """

    problem: ChainProblem
    tokens: int
    rates: Rates
    itemsize: int = 4
    train: bool = False
    known: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)  # what was asked before

    def __post_init__(self) -> None:
        object.__setattr__(self, "_size", {**dict(self.problem.sizes), TOKENS: max(self.tokens, 1)})
        object.__setattr__(self, "_curves", {**dict(self.rates.product), **dict(self.rates.copy)})
        # What a call works on: a tensor much smaller than this was pushed out of the cache since it was last used.
        p = self.problem
        numbers = self.tokens * (p.in_features + p.out_features) + sum(math.prod(shape) for shape in p.factor_shapes)
        object.__setattr__(self, "_around", self.itemsize * numbers * (1 + self.train))

    def extent(self, axes: Layout) -> int:
        """Product of the sizes of `axes`, tokens included."""
        size: dict[str, int] = self._size  # type: ignore[attr-defined]
        n = 1
        for axis in axes:
            n *= size[axis]
        return n

    def __call__(self, op: Op) -> float:
        """Seconds of one operation."""
        if isinstance(op, Multiply):
            return self.multiply(op.product, op.left_view, op.right_view, into=bool(op.into), bias=op.bias)
        if isinstance(op, Pointwise):
            return self.pointwise(op)
        if isinstance(op, Assemble):
            return self.place(op)
        if isinstance(op, Copy):
            return self.copy(op.view, op.layout)
        if isinstance(op, Embed):
            return self.embed(op)
        return self._blocks(op)

    def calls(self, calls: float, views: float) -> float:
        """Seconds of so many torch calls and views, whatever they work on."""
        return calls * self.rates.call + views * self.rates.view

    def copy(self, source: Layout, target: Layout) -> float:
        """A tensor written in another order."""
        return self.calls(1, 2) + self.move(source, target)

    def multiply(self, p: Product, left: Layout, right: Layout, *, into: bool = False, bias: bool = False) -> float:
        """A product: arithmetic at the rate of how its operands lie, the traffic that this does not hide, and calls."""
        kept = (p, left, right, into, bias)
        known: dict[object, float] = self.known
        if kept not in known:
            known[kept] = self._multiply(*kept)
        return known[kept]

    def _multiply(self, p: Product, left: Layout, right: Layout, into: bool, bias: bool) -> float:
        batch, rows, contracted, cols = (self.extent(g) for g in (p.batch, p.rows, p.contracted, p.cols))
        result = self.itemsize * batch * rows * cols
        total = self.itemsize * (self.extent(left) + self.extent(right)) + result
        of_right = (p.right[0], p.right[2], p.right[1])  # batch, the side of its own, contracted
        narrow, large = min(rows, contracted, cols), total > self.rates.l2
        rate = min(
            self.product_rate(left, p.left, narrow, contracted_inside=True, large=large),
            self.product_rate(right, of_right, narrow, contracted_inside=False, large=large),
        )
        seconds = 2 * batch * rows * contracted * cols / (rate * 1e9) + batch * self.rates.item
        seconds += TRAFFIC * self._stream(total + (result if into else 0))
        if p.reduced:
            seconds += self.rates.call + self._stream(result)
        if bias and p.batch:
            seconds += self._stream(result)  # the bias is written to the whole result first
        return seconds + self.rates.entry + self.calls(1, 4)

    def product_rate(
        self, view: Layout, groups: tuple[Layout, Layout, Layout], narrow: int, *, contracted_inside: bool, large: bool
    ) -> float:
        """GFLOP/s of matrices whose smallest extent is `narrow`, as far as one operand lets it be.

        Args:
            groups: the operand's batch, its own side, the contracted axes.
            contracted_inside: the contracted axes are innermost where the matrix is not transposed.
            large: the operands are beyond the nearest cache: far rows then cost by how long each is.
        """
        kind, inside = _lie(view, groups, contracted_inside=contracted_inside)
        if not large or kind not in ("strided", "turned"):
            return self.rate(kind, narrow)
        slowed = self.rate(f"{kind}_large", self.extent(inside)) / self.rate(kind, self.extent(inside))
        return slowed * self.rate(kind, narrow)

    def pointwise(self, op: Pointwise) -> float:
        """Elementwise: a pass for each summand; more than `NARROW` of them are written out and summed."""
        summands = self.extent(op.contracted)
        inside = summands <= NARROW
        layout = op.layout if inside else op.layout + op.contracted
        runs = fuse(op.left_view, op.right_view, op.layout, op.contracted)
        order = heads(layout, runs)
        count = self.extent(layout)
        seconds = 1.5 * self._loops([self.extent(runs[a]) for a in order], count)  # three tensors, not two
        moved = 3 * self.itemsize * count
        straight = not order or all(
            order[-1] not in view or heads(view, runs)[-1] == order[-1] for view in (op.left_view, op.right_view)
        )
        seconds += self._stream(moved) if straight else self._turn(moved, self.itemsize * LINE)
        seconds *= POINTWISE_16_BITS if self.itemsize == 2 else 1
        if inside:
            return summands * (seconds + self.calls(1, 3)) + self.calls(0.5, 4)
        return 3 * seconds + self.calls(2, 4)  # a sum over inner axes takes about as long as two such passes

    def place(self, op: Assemble) -> float:
        """One pass over the result a piece; the bias comes with the first, or after it where that is turned."""
        seconds = 0.0
        size = self.itemsize * self.extent(op.layout)
        joined = joint(op)
        for number, (_, view, target) in enumerate(op.pieces):
            again = TRAFFIC * self._stream(size) if number > joined or op.into else 0.0
            seconds += self.calls(number != 1 or not joined, 3) + self.move(view, target) + again
        if op.bias and not op.once and op.pieces[0][1][-1] != op.pieces[0][2][-1]:
            seconds += self.calls(1, 1) + TRAFFIC * self._stream(size)
        return seconds

    def embed(self, op: Embed) -> float:
        """A pass over the sum for every part but the first, and for each part zeros and entries, axis by axis.

        Each axis that rows and columns share spreads the entries over a larger tensor of zeros; gathered blocks are
        turned afterwards.
        """
        whole = self.itemsize * self.extent(op.layout)
        seconds = (len(op.parts) - 1) * (self.calls(1, 0) + self._stream(3 * whole))
        for part in op.parts:
            shared = [a for a in part.rows if a in part.cols]
            size = whole
            for axis in shared:
                entries = size // self.extent((axis,))
                seconds += self.calls(3, 3) + self._stream(size) + self._turn(2 * entries, self.itemsize * LINE)
                size = entries
            if shared and shared[-1] == part.cols[-1]:  # one by one
                seconds += self.extent(part.view) * self.rates.row
            if part.read:
                entries = self.itemsize * self.extent(part.view)
                seconds += self.calls(3, 4) + self._stream(3 * whole) + self._stream(2 * entries)
            elif not shared:
                seconds += self.calls(1, 2) + self._stream(2 * whole)
        return seconds

    def move(self, source: Layout, target: Layout) -> float:
        """Seconds to write a tensor in another order, without the calls."""
        known: dict[object, float] = self.known
        if (source, target) not in known:
            known[source, target] = self._move(source, target)
        return known[source, target]

    def _move(self, source: Layout, target: Layout) -> float:
        count = self.extent(target)
        total = 2 * self.itemsize * count
        runs = fuse(source, target)
        src, dst = heads(source, runs), heads(target, runs)
        if src == dst:
            return self._stream(total)
        extents = {head: self.extent(run) for head, run in runs.items()}
        loops = self._loops([extents[a] for a in dst], count)
        if src[-1] == dst[-1]:
            return self._stream(total) + loops
        return self._turn(total, held(src, dst, extents, self.itemsize)) + loops

    def _loops(self, extents: list[int], count: int) -> float:
        """Seconds that strided loops over a result of these extents take besides its elements."""
        rows = count // extents[-1] if extents else 1
        tiles = rows // extents[-2] if len(extents) > 1 else 1
        threads = 1 if count <= GRAIN else self.rates.threads
        return (rows * self.rates.row + tiles * self.rates.tile) / threads

    def _turn(self, total: int, between: int) -> float:
        """Seconds to move `total` bytes with `between` of them between two uses of a line."""
        seconds = total / (self.rate("turn", between) * 1e9)
        if total <= 2 * self.itemsize * GRAIN:
            return seconds * self.rates.threads
        beyond = self._stream(total) - total / (self.rate("plain", self.rates.l2 // 4) * 1e9)
        return seconds + max(beyond, 0.0) + self.rates.fork

    def _blocks(self, op: GatherBlocks | Scatter) -> float:
        """Whole blocks written once; a Scatter gathers blocks and adds them up, in a sum that reads slowly."""
        size = self.itemsize * max(self.extent(op.view), self.extent(op.layout))
        seconds = self.calls(1, 2) + 1.4 * self._stream(2 * size)
        if isinstance(op, GatherBlocks):
            return seconds
        return seconds + self.calls(1, 1) + 2 * self._stream(2 * size)

    def _stream(self, total: int) -> float:
        """Seconds to read or write `total` bytes in order, beside the call's other tensors in the cache."""
        around: int = self._around  # type: ignore[attr-defined]
        seconds = total / (self.rate("plain", max(total, around)) * 1e9)
        if total <= 2 * self.itemsize * GRAIN:
            return seconds
        return seconds + self.rates.fork

    def rate(self, kind: str, size: int) -> float:
        """The rate of a class at a size, interpolated; GFLOP/s or GB/s."""
        known: dict[object, float] = self.known
        if (kind, size) not in known:
            known[kind, size] = interpolated(self._curves[kind], size)  # type: ignore[attr-defined]
        return known[kind, size]


def joint(op: Assemble) -> bool:
    """Whether the first two pieces are added in one pass: of one target, and the innermost axis of one stays.

    Two pieces that are both turned are quicker one after another: 115 against 155 us for 2 x 0.5 MB.
    """
    if op.bias or op.into or len(op.pieces) < 2 or op.pieces[0][2] != op.pieces[1][2]:
        return False
    return any(view[-1] == target[-1] for _, view, target in op.pieces[:2])


def interpolated(curve: Curve, size: int) -> float:
    """A curve's rate at a size: logarithms interpolated, constant beyond the ends."""
    at = bisect.bisect_left(curve, (size, 0.0))
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (low, slow), (high, fast) = curve[at - 1], curve[at]
    share = math.log(size / low) / math.log(high / low)
    return float(slow * (fast / slow) ** share)


def held(src: Layout, dst: Layout, extents: dict[str, int], itemsize: int) -> int:
    """Bytes of cache between two uses of one line of the source, when `dst` is written in order.

    A line holds the source's innermost axes; it is used again after all axes inside them in `dst` were walked. Each
    step of those touches a line of its own, and lines at equal positions of their pages share few places in a cache:
    the further apart the lines, up to a page, the more of the cache they use up.
    """
    size, line = itemsize, []
    for axis in reversed(src):
        line.append(axis)
        size *= extents[axis]
        if size >= LINE:
            break
    first = min((dst.index(a) for a in line if a in dst), default=len(dst))
    walked = [a for a in dst[first + 1 :] if a not in line and a in src]
    apart = PAGE
    for axis in walked:
        apart = min(apart, itemsize * math.prod(extents[a] for a in src[src.index(axis) + 1 :]))
    return math.prod(extents[a] for a in walked) * max(apart, LINE)


@lru_cache(maxsize=65536)
def _lie(view: Layout, groups: tuple[Layout, Layout, Layout], *, contracted_inside: bool) -> tuple[str, Layout]:
    """The class of an operand, and the axes that lie innermost."""
    order = [g for g in readable(view, groups) or () if g == 0 or groups[g]]
    sides = [g for g in order if g]
    flipped = len(sides) == 2 and (sides[-1] == 2) != contracted_inside
    inside = groups[order[-1]] if order else ()
    if 0 not in order or order[0] == 0:
        return "flipped" if flipped else "contiguous", inside  # one matrix, or matrices one after another
    return "turned" if flipped else "strided", inside
