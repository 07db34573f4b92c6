"""What a call of the native kernel is predicted to take, from three figures of the machine.

A step costs what its register tiles cost: their multiply-adds, and besides these so much for every k and for every tile
(`KS`, `TILES`, counted in vectors multiplied and added). The gradient of a factor is such a step too, its tokens in the
place of the contracted axes. The constants are fits to 1,440 calls: 30 structures, 256 to 4096 features, 1 to 4096
tokens, float32 and bfloat16, forward and with all gradients, two threads of an AMD Zen 4, before the gradients'
operands were prefetched. How far predictions lie from other calls was not measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structures.backends.native.library import DTYPES, ROWS, Library, Plan, caches
from structures.backends.native.lower import Lowered, Product
from structures.backends.planned import measure, rates

FIGURES = ("products", "passes", "reads")
SECONDS, SHORT = 0.03, 0.006  # of a measurement, the first and later ones
NOISE = 0.02  # by which a later one has to be better
CALL = 7.2e-6  # seconds of a call: Python, allocation of y
KEPT = 4.9e-6  # of finding the copies of the factors that are kept
STEP = 0.15e-6  # of a step by rows
BARRIER = 0.55e-6  # of a parallel region, and of a barrier in one
BACKWARD = 55e-6  # of an autograd function forward and backward, and
FACTOR = 15.5e-6  # of a factor's gradient in it
REGISTERS, VECTORS = 6, 4  # rows and vectors of a register tile
SUMMED = 64  # numbers, or pairs twice, that are summed before the sum is added to what is there
KS, TILES = (
    8.5,
    85.0,
)  # vectors multiplied and added in the time that a k of a register tile takes besides, and the tile
ENTRY = 25.0  # and of an entry of a step on a tile
FORMED = 12.0  # in the time of forming a vector of pairs
UNIT = 75.0  # and of a unit of a step by rows
TURNED = 29.0  # and of turning a vector of a gradient
PACKED = 1.6  # and of packing a pair
ROW_SHARE = 0.19  # of the tile's rate that rows reach
FRESH = 1.4e-10  # seconds of a byte of a factor's gradient: its memory is new
MOVED = 7.7  # and of moving a number of a factor, or of its gradient, by itself
WEIGHTS = (64 << 10, 512 << 10, 4 << 20, 64 << 20)  # bytes of factors that reading is measured at
BEYOND = 1.6  # the pass over x and y when they are larger than the L3


@dataclass(frozen=True)
class Kernel:
    """One thread's rates on this machine, by the library's own loops."""

    flops: float  # FLOP/s of a step on a full tile
    passes: float  # bytes/s of x into a tile and of a tile to y
    reads: tuple[tuple[int, float], ...]  # (bytes of weights, bytes/s) in growing order
    vector: int  # numbers of a vector
    paired: bool  # numbers are multiplied in pairs
    l3: int  # bytes

    @property
    def vector_seconds(self) -> float:
        """Seconds of one vector multiplied and added: what is left of the measured step without its other costs."""
        ks = SUMMED // 2 if self.paired else SUMMED
        products = ks * REGISTERS * VECTORS
        return 2 * SUMMED * REGISTERS * VECTORS * self.vector / self.flops / (products + ks * KS + TILES)

    def read(self, size: int, threads: int) -> float:
        """Bytes/s at which `threads` threads read weights of so many bytes: each has its own share in its caches."""
        far = self.reads[-2 if size <= self.l3 else -1][1]
        return threads * next((rate for limit, rate in self.reads[:-2] if size // threads <= limit), far)


_held: dict[str, tuple[rates.Figures, float]] = {}  # the figures by their key, and when they were last measured


def kernel(library: Library, dtype: str) -> Kernel:
    """The figures of this machine: the best that were ever measured, kept beside the planner's.

    A moment that others take would stay in them: measured once, when products ran at 80 GFLOP/s for 114 (AMD Zen 4),
    `auto` left training steps to the planner that the kernel runs twice as fast. They are measured every few seconds.
    """
    key = f"{rates.machine(dtype, 1)} / {Path(library.path).stem}"
    held, since = _held.get(key, (None, 0.0))
    if held is None or time.monotonic() - since > measure.AGAIN:
        kept: Any = held or rates.read(key, FIGURES)
        held = _best(kept, measured(library, dtype, SECONDS if kept is None else SHORT))
        _held[key] = held, time.monotonic()
        if held != kept:
            rates.write(key, held)
    found: Any = held
    return Kernel(
        flops=found["products"][0][1],
        passes=found["passes"][0][1],
        reads=found["reads"],
        vector=library.vector(),
        paired=dtype == "bfloat16" and bool(library.pairs()),
        l3=caches()[2],
    )


def _best(kept: Any, found: Any) -> rates.Figures:
    """Of two measurements the higher rates, where they are higher by more than `NOISE`."""
    if kept is None:
        return dict(found)
    best: rates.Figures = {}
    for name, curve in kept.items():
        now = dict(found[name])
        best[name] = tuple((size, now[size] if now.get(size, 0) > rate * (1 + NOISE) else rate) for size, rate in curve)
    return best


def measured(library: Library, dtype: str, seconds: float) -> rates.Figures:
    """The figures, measured in about so many seconds of this thread's own time."""
    each = seconds / (2 + len(WEIGHTS))
    return {
        "products": ((SUMMED, library.measure_products(each, DTYPES[dtype])),),
        "passes": ((SUMMED, library.measure_transposes(each)),),
        "reads": tuple((size, library.measure_reads(each, size)) for size in WEIGHTS),
    }


@dataclass(frozen=True)
class Share:
    """What falls on the experts: of a router that spreads the tokens at random."""

    active: int  # experts of a token
    hit: float  # experts that have tokens
    each: int  # their tokens
    numbers: int  # of the factors of all experts


@dataclass(frozen=True)
class Work:
    """A program and the machine, counted in vectors multiplied and added."""

    lowered: Lowered
    kernel: Kernel
    itemsize: int

    def register_tiles(self, entries: int, rows: int, contracted: int, vectors: int) -> float:
        """`entries` products of `rows` rows and so many vectors, each a sum over `contracted`."""
        ks = -(-contracted // 2) if self.kernel.paired else contracted
        blocks, chunks = -(-rows // REGISTERS), vectors // VECTORS + (vectors % VECTORS > 0)
        sums = -(-contracted // (4 * SUMMED if self.kernel.paired else SUMMED))
        return entries * (ENTRY + blocks * (ks * (REGISTERS * vectors + KS * chunks) + TILES * sums * chunks))

    def tile(self, steps: Iterable[Product], vectors: int) -> float:
        """Steps on a tile of so many vectors of tokens."""
        total = 0.0
        for step in steps:
            total += self.register_tiles(step.entries, step.cols, step.contracted, vectors)
            if self.kernel.paired:
                total += FORMED * step.entries * step.contracted * vectors
        return total

    def gradients(self, tokens: int) -> float:
        """The factors' gradients of so many tokens."""
        total = 0.0
        for step in self.steps:
            if step.factor < 0:
                continue
            vectors = -(-step.cols // self.kernel.vector)
            total += self.register_tiles(step.entries, step.contracted, tokens, vectors)
            total += TURNED * step.entries * vectors * tokens
            total += MOVED * self.moved(step)
        return total

    def moved(self, step: Product) -> int:
        """Numbers of a factor that are moved one by one."""
        by_runs = any(table.in_runs(self.kernel.vector) for table in (step.w_cols, step.w_contracted))
        return 0 if by_runs else self.lowered.factor_numbers[step.factor]

    @property
    def packed(self) -> float:
        """Making the pairs that a training step multiplies by."""
        if not self.kernel.paired:
            return 0.0
        total = 0.0
        for step in self.steps:
            for inner, other in ((step.w_contracted, step.w_cols), (step.w_cols, step.w_contracted)):
                if step.factor >= 0 and not inner.consecutive:
                    total += self.lowered.factor_numbers[step.factor] * (PACKED if other.consecutive else MOVED)
        return total

    def passes(self, features: int, tokens: int) -> float:
        """Seconds of bringing so many features to tiles or back."""
        size = self.itemsize * features * tokens
        return size / self.kernel.passes * (BEYOND if size > self.kernel.l3 else 1)

    @property
    def steps(self) -> tuple[Product, ...]:
        return self.lowered.tiles.steps

    @property
    def recomputed(self) -> list[Product]:
        """What a backward runs once more: all steps but the last one of each term."""
        return [step for step in self.steps if step.target != len(self.lowered.tiles.sizes) - 1]


def seconds(work: Work, tokens: int, plan: Plan, backward: Plan | None = None) -> float:
    """Predicted time of one call, or of one forward and backward.

    Args:
        plan: how the forward runs, and `backward` how the backward does; `Bound.plan` tells it.
    """
    forward = _forward(work, tokens, plan)
    if backward is None:
        return CALL + KEPT * (plan.needs > 0) + forward
    return CALL + forward + _gradients(work, sum(work.lowered.factor_numbers)) + _backward(work, tokens, backward)


def mixed_seconds(
    work: Work, tokens: int, share: Share, threads: int, plan: Plan, backward: Plan | None = None
) -> float:
    """Predicted time of a call in which every token has its own experts, of whom `work` is one.

    Experts run side by side, each on one thread; what they give comes to a buffer, and its sums to y.

    Args:
        plan, backward: of one expert's tokens on one thread.
    """
    lowered = work.lowered
    busy = max(1.0, share.hit / threads)  # experts that one thread runs after another
    moved = work.passes((share.active + 1) * lowered.out_features, tokens)
    total = CALL + busy * _forward(work, share.each, plan) + BARRIER * 2 * (threads > 1)
    if backward is not None:
        moved += work.passes((share.active + 2) * lowered.in_features, tokens)
        total += _gradients(work, share.numbers) + busy * _backward(work, share.each, backward)
    return total + moved / threads


def _gradients(work: Work, numbers: int) -> float:
    """Seconds of an autograd function around a backward, whose gradients of the factors have so many numbers."""
    return BACKWARD + FACTOR * len(work.lowered.factor_numbers) + work.itemsize * numbers * FRESH


def _forward(work: Work, tokens: int, plan: Plan) -> float:
    return _rows(work, tokens, plan) if plan.path == ROWS else _tiles(work, tokens, plan)


def _rows(work: Work, tokens: int, plan: Plan) -> float:
    steps, vector = work.lowered.rows.steps, work.kernel.vector
    size = work.itemsize * sum(work.lowered.factor_numbers)
    count = sum(s.entries * -(-s.cols // vector) * (s.contracted * tokens + UNIT / VECTORS) for s in steps)
    busy = max(
        count * work.kernel.vector_seconds / ROW_SHARE / plan.threads, size / work.kernel.read(size, plan.threads)
    )
    return STEP * len(steps) + busy + BARRIER * len(steps) * (plan.threads > 1)


def _tiles(work: Work, tokens: int, plan: Plan) -> float:
    whole, vectors = _share(tokens, plan.tile, plan.threads, plan.split, work.kernel.vector)
    features = work.lowered.in_features + work.lowered.out_features
    busy = whole * work.tile(work.steps, vectors) * work.kernel.vector_seconds
    busy += whole * vectors / -(-tokens // work.kernel.vector) * work.passes(features, tokens)
    waits = (len(work.steps) + 1 if plan.split else 0) + (plan.threads > 1)
    return busy + BARRIER * waits


def _share(tokens: int, tile: int, threads: int, split: bool, vector: int) -> tuple[float, int]:
    """How many tiles the busiest thread runs, and the vectors of one: all of them take part in a tile that is split."""
    count = -(-tokens // tile)
    return count / threads if split else -(-count // threads), -(-min(tokens, tile) // vector)


def _backward(work: Work, tokens: int, plan: Plan) -> float:
    """Gradients of everything, in chunks of tokens: tiles there and back, then the factors' gradients."""
    lowered, steps, unit = work.lowered, work.steps, work.kernel.vector_seconds
    chunk = min(tokens, plan.chunk)
    whole, vectors = _share(chunk, plan.tile, plan.threads, plan.split, work.kernel.vector)
    busy = whole * work.tile([*work.recomputed, *(step.transposed for step in steps)], vectors) * unit
    busy += work.gradients(chunk) * unit / plan.threads
    waits = 2 + (2 * len(steps) + 1) * plan.split
    moved = work.passes(2 * lowered.in_features + lowered.out_features, tokens) / plan.threads
    packed = work.packed * unit / plan.threads
    return (busy + BARRIER * waits) * tokens / chunk + packed + moved + BARRIER * (plan.threads > 1)
