"""Seconds of one operation at its real shapes and orders: the only place with constants of a machine.

Every class of operation has a rate, a function of size: matrix products by how the operands lie and by the smallest of
their three extents, copies by how the innermost axes move. `BUILT_IN` holds figures of one machine; those measured
on another one (`measure.py`) take their place through `Rates.replaced`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from structures.backends.planned.layout import TOKENS, Layout, fuse, heads, readable
from structures.backends.planned.problem import Problem
from structures.backends.planned.program import Copy, Gather, Multiply, Op, Place, Pointwise, Scatter

Curve = tuple[tuple[int, float], ...]  # (size, rate), sizes rising; between them the logarithms are interpolated

PRODUCTS = ("contiguous", "strided", "turned", "strided_large", "turned_large")

LINE = 64  # bytes of a cache line
PAGE = 4096


@dataclass(frozen=True)
class Rates:
    """The figures of a machine for one dtype, device and number of threads.

    Args:
        call: seconds of one torch call; `view` of one view, `item` of one matrix of a batch.
        product: GFLOP/s by smallest extent of a matrix, for each class of how the operands lie: "contiguous",
            "strided" (rows of a matrix far apart: batch is not the slowest axis), "turned" (the same, read as its
            transpose), "strided_large" and "turned_large" (the same beyond the L2 cache).
        copy: GB/s, read and write counted, by total bytes for "plain"; by length of the run in bytes for "runs";
            by bytes between reuse of a cache line for "near" and "far" transpositions (strides below and above a page).
        l2: bytes of a thread's nearest large cache, times threads.
    """

    call: float = 3e-6
    view: float = 0.7e-6
    item: float = 4e-8
    product: tuple[tuple[str, Curve], ...] = ()
    copy: tuple[tuple[str, Curve], ...] = ()
    l2: int = 4 * 2**20

    def replaced(self, product: Mapping[str, Curve], copy: Mapping[str, Curve], call: float | None = None) -> Rates:
        """These rates with the measured classes in the place of the built-in ones."""
        return replace(
            self,
            call=self.call if call is None else call,
            product=tuple({**dict(self.product), **product}.items()),
            copy=tuple({**dict(self.copy), **copy}.items()),
        )


# GFLOP/s and GB/s of a 2-core Sapphire Rapids class machine, torch 2.13 (MKL 2024.2, oneDNN 3.12), two threads:
# sections B8 and D9 of the reference measurements, smoothed; sizes below 32 are estimates from dense at few tokens.
_EXTENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
_FP32 = {
    "contiguous": (8, 12, 20, 38, 68, 118, 140, 190, 200, 200),
    "strided": (8, 12, 20, 36, 66, 112, 131, 188, 198, 198),
    "turned": (8, 11, 18, 30, 55, 95, 122, 157, 195, 195),
    "strided_large": (8, 11, 15, 25, 42, 74, 99, 178, 185, 190),
    "turned_large": (6, 7, 9, 14, 24, 42, 87, 160, 175, 180),
}
_BF16 = {
    "contiguous": (5, 9, 18, 40, 110, 250, 450, 600, 800, 1000),
    "strided": (4, 7, 12, 25, 60, 116, 300, 441, 457, 1000),
    "turned": (2, 4, 8, 15, 30, 60, 150, 237, 322, 1000),
    "strided_large": (2, 4, 8, 16, 40, 83, 253, 430, 617, 900),
    "turned_large": (1, 2, 3, 5, 8, 14, 27, 60, 115, 400),
}
_COPY = {
    "plain": ((2**16, 90.0), (2**20, 85.0), (2**22, 40.0), (2**24, 24.0), (2**27, 17.0)),
    "runs": ((4, 1.6), (16, 4.0), (64, 7.0), (256, 11.0), (1024, 24.0), (4096, 60.0)),
    "near": ((2**12, 8.5), (2**15, 8.0), (2**18, 4.0), (2**21, 2.5), (2**23, 0.9)),
    "far": ((2**11, 5.5), (2**13, 4.4), (2**15, 2.5), (2**18, 0.95), (2**23, 0.8)),
}
_ONE_THREAD = 0.55  # of two threads, products; copies 0.6
# An order of magnitude, not measured.
_GPU_PRODUCT = ((1, 500.0), (8, 2000.0), (32, 8000.0), (64, 20000.0), (128, 40000.0))
_GPU_COPY = {
    "plain": ((2**20, 1500.0), (2**27, 3000.0)),
    "runs": ((4, 800.0), (64, 1500.0)),
    "near": ((2**12, 800.0), (2**23, 600.0)),
    "far": ((2**12, 600.0), (2**23, 400.0)),
}


def built_in(dtype: str, threads: int, device: str = "cpu") -> Rates:
    """The figures used where nothing was measured.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
        device: a torch device type; anything but "cpu" takes one rough table.
    """
    if device != "cpu":
        products = dict.fromkeys(PRODUCTS, _GPU_PRODUCT)
        return Rates(6e-6, 1e-6, 2e-9, tuple(products.items()), tuple(_GPU_COPY.items()), 48 * 2**20)
    table = _BF16 if dtype == "bfloat16" else _FP32
    scale = {"float64": 0.5, "float16": 0.2}.get(dtype, 1.0)
    one = threads == 1
    scale *= _ONE_THREAD if one else 1.0
    product = {k: tuple((n, r * scale) for n, r in zip(_EXTENTS, c, strict=True)) for k, c in table.items()}
    copies = {k: tuple((n, r * (0.6 if one else 1.0)) for n, r in c) for k, c in _COPY.items()}
    return Rates(product=tuple(product.items()), copy=tuple(copies.items()), l2=2**21 * (1 if one else 2))


@dataclass(frozen=True)
class Price:
    """Prices operations of a problem for a number of tokens."""

    problem: Problem
    tokens: int
    rates: Rates
    itemsize: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "_size", {**dict(self.problem.sizes), TOKENS: max(self.tokens, 1)})
        object.__setattr__(self, "_curves", {**dict(self.rates.product), **dict(self.rates.copy)})
        object.__setattr__(self, "_known", {})

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
            return self.multiply(op)
        if isinstance(op, Pointwise):
            return self.pointwise(op)
        if isinstance(op, Place):
            return self.place(op)
        if isinstance(op, Copy):
            return self.rates.call + 3 * self.rates.view + self.move(op.view, op.layout)
        return self._blocks(op)

    def multiply(self, op: Multiply) -> float:
        """A product: arithmetic at its class's rate, traffic at the cache's, and the calls."""
        p = op.product
        kept = (p, op.left_view, op.right_view, bool(op.into), op.bias)
        known: dict[object, float] = self._known  # type: ignore[attr-defined]
        if kept not in known:
            known[kept] = self._multiply(op)
        return known[kept]

    def _multiply(self, op: Multiply) -> float:
        p = op.product
        batch, rows, contracted, cols = (self.extent(g) for g in (p.batch, p.rows, p.contracted, p.cols))
        count = 2 * batch * rows * contracted * cols
        total = self.itemsize * (self.extent(op.left_view) + self.extent(op.right_view) + batch * rows * cols)
        large, narrow = total > self.rates.l2, min(rows, contracted, cols)
        right = (p.right[0], p.right[2], p.right[1])
        rate = min(
            self.rate(_lie(op.left_view, p.left, large), narrow),
            self.rate(_lie(op.right_view, right, large), narrow),
        )
        seconds = count / (rate * 1e9) + 0.5 * self._stream(total) + batch * self.rates.item
        calls = 1.0
        if p.reduced:
            seconds, calls = seconds + self._stream(self.itemsize * batch * rows * cols), calls + 1
        if op.into:
            seconds += self._stream(self.itemsize * batch * rows * cols)
        if op.bias and p.batch:
            seconds += self._stream(2 * self.itemsize * batch * rows * cols)
        return seconds + calls * self.rates.call + 4 * self.rates.view

    def pointwise(self, op: Pointwise) -> float:
        """Elementwise: one pass over everything a summand, small tensors at the rate of the nearest cache."""
        everything = self.extent(op.layout) * self.extent(op.contracted)
        fused = self._fused(op.left_view, op.layout + op.contracted)
        inner = self.extent((fused[-1],)) if fused else 1
        slow = 1.0 if inner >= 16 else 3.0
        passes = 3 * self.itemsize * everything
        calls = self.extent(op.contracted) if len(op.contracted) == 1 and self.extent(op.contracted) <= 8 else 2
        return slow * self._stream(passes) + (self.rates.call + 4 * self.rates.view) * calls

    def place(self, op: Place) -> float:
        """One pass over the result a piece, plus the bias."""
        seconds = 0.0
        size = self.itemsize * self.extent(op.layout)
        for number, (_, view, target) in enumerate(op.pieces):
            again = self._stream(size) if number else 0.0
            seconds += self.rates.call + 3 * self.rates.view + self.move(view, target) + again
        return seconds

    def move(self, source: Layout, target: Layout) -> float:
        """Seconds to write a tensor in another order, without the calls."""
        known: dict[object, float] = self._known  # type: ignore[attr-defined]
        if (source, target) not in known:
            known[source, target] = self._move(source, target)
        return known[source, target]

    def _move(self, source: Layout, target: Layout) -> float:
        total = 2 * self.itemsize * self.extent(target)
        plain = self._stream(total)
        runs = fuse(source, target)
        src, dst = heads(source, runs), heads(target, runs)
        if src == dst:
            return plain
        extents = {head: self.extent(run) for head, run in runs.items()}
        if src[-1] == dst[-1]:
            return max(plain, total / (self.rate("runs", self.itemsize * extents[src[-1]]) * 1e9))
        # the source's innermost axis comes back only after all axes inside it in the target were walked
        inside = math.prod(extents[a] for a in dst[dst.index(src[-1]) + 1 :])
        stride = self.itemsize * math.prod(extents[a] for a in src[src.index(dst[-1]) + 1 :])
        kind = "near" if stride < PAGE else "far"
        return max(plain, total / (self.rate(kind, inside * LINE) * 1e9))

    def _blocks(self, op: Gather | Scatter) -> float:
        inner = op.view[op.view.index(op.axis if isinstance(op, Gather) else op.by[-1]) + 1 :] if op.by else op.view[1:]
        size = 2 * self.itemsize * max(self.extent(op.view), self.extent(op.layout))
        run = self.itemsize * self.extent(inner)
        return 2 * self.rates.call + max(self._stream(size), size / (self.rate("runs", run) * 1e9))

    def _fused(self, source: Layout, target: Layout) -> Layout:
        return heads(target, fuse(source, target))

    def _stream(self, total: int) -> float:
        return total / (self.rate("plain", total) * 1e9)

    def rate(self, kind: str, size: int) -> float:
        """The rate of a class at a size, interpolated; GFLOP/s or GB/s."""
        curve: Curve = self._curves[kind]  # type: ignore[attr-defined]
        at = bisect.bisect_left(curve, (size, 0.0))
        if at == 0:
            return curve[0][1]
        if at == len(curve):
            return curve[-1][1]
        (low, slow), (high, fast) = curve[at - 1], curve[at]
        share = math.log(size / low) / math.log(high / low)
        return float(slow * (fast / slow) ** share)


def _lie(view: Layout, groups: tuple[Layout, Layout, Layout], large: bool) -> str:
    """The class of an operand: its groups are batch, one side, the contracted axes."""
    order = readable(view, groups)
    if order is None or 0 not in order or order[0] == 0:
        return "contiguous"  # one matrix, or matrices one after another
    kind = "strided" if order[-1] == 2 else "turned"
    return f"{kind}_large" if large else kind
