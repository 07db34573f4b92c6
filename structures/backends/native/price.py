"""What a call of the native kernel is predicted to take, from three figures of the machine.

The figures are measured by the library's own loops, in about 50 ms, once a process and dtype: the product of a tile,
the pass of x into tiles and back, and weights read by rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from structures.backends.native.library import DTYPES, ROWS, Library, Plan, caches
from structures.backends.native.lower import Lowered, Product

CALL = 3e-6  # seconds of a call: Python, allocation of y
FORK = 1e-6  # of a parallel region, and of a barrier: 0.4 to 2 us as the host places the cores (AMD Zen 5)
BACKWARD = 35e-6  # of an autograd function forward and backward
REGISTERS, VECTORS = 6, 4  # rows and vectors of a register tile
STORED = 6  # a register tile is written and taken up anew in the time of so many of its multiply-adds a sum
BEYOND = 1.6  # the pass over x and y when they are larger than the L3
ROW_SHARE = 0.8  # of the tile's rate that rows reach
WEIGHTS = (64 << 10, 512 << 10, 4 << 20, 64 << 20)  # bytes of factors that reading is measured at


@dataclass(frozen=True)
class Figures:
    """One thread's rates on this machine."""

    flops: float  # FLOP/s of a tile's product
    passes: float  # bytes/s of x into a tile and of a tile to y
    reads: tuple[tuple[int, float], ...]  # (bytes of weights, bytes/s) in growing order
    l3: int

    def read(self, size: int, threads: int) -> float:
        """Bytes/s at which `threads` threads read weights of so many bytes: each has its own share in its caches."""
        rate = next((rate for limit, rate in self.reads if size // threads <= limit), self.reads[-1][1])
        return rate * (threads if size <= self.l3 else 1)  # one thread nearly fills the memory's bandwidth


def measured(library: Library, dtype: str, seconds: float = 0.05) -> Figures:
    """The figures, measured in about so many seconds."""
    each = seconds / (2 + len(WEIGHTS))
    return Figures(
        flops=library.measure_products(each, DTYPES[dtype]),
        passes=library.measure_transposes(each),
        reads=tuple((size, library.measure_reads(each, size)) for size in WEIGHTS),
        l3=caches()[2],
    )


@lru_cache(maxsize=8)
def figures(library: Library, dtype: str) -> Figures:
    """The figures of this process, measured once."""
    return measured(library, dtype)


def seconds(
    lowered: Lowered, tokens: int, plan: Plan, figures: Figures, *, itemsize: int, training: bool = False
) -> float:
    """Predicted time of one call, or of one forward and backward.

    Args:
        plan: how it runs; `Bound.plan` tells it.
        itemsize: bytes of one number of x, the factors and y.
    """
    if plan.path == ROWS and not training:
        return CALL + _rows(lowered, tokens, plan, figures, itemsize)
    arithmetic = sum(_product(step, tokens) for step in lowered.tiles.steps) / figures.flops
    moved = itemsize * tokens * (lowered.in_features + lowered.out_features)
    passes = moved / figures.passes * (BEYOND if moved > figures.l3 else 1)
    threads = _useful(tokens, plan)
    if not training:
        return CALL + FORK * (threads > 1) + (arithmetic + passes) / threads
    last = {step.target for step in lowered.tiles.steps if step.target == len(lowered.tiles.sizes) - 1}
    again = sum(_product(s, tokens) for s in lowered.tiles.steps if s.target not in last) / figures.flops
    return CALL + BACKWARD + (3 * arithmetic + again + 3 * passes) / threads


def _rows(lowered: Lowered, tokens: int, plan: Plan, figures: Figures, itemsize: int) -> float:
    size = itemsize * sum(lowered.factor_numbers)
    flops = 2 * lowered.multiply_adds * tokens
    work = max(size / figures.read(size, plan.threads), flops / (ROW_SHARE * figures.flops * plan.threads))
    return work + (FORK * len(lowered.rows.steps) if plan.threads > 1 else 0.0)


def _product(step: Product, tokens: int) -> float:
    """FLOPs of a step, with those that a register tile's time of writing would have made."""
    flops = 2 * step.entries * step.cols * step.contracted * tokens
    return flops * (1 + STORED / min(step.contracted, 64))


def _useful(tokens: int, plan: Plan) -> float:
    """How many threads have work in whole tiles."""
    if plan.split or not plan.tile:
        return plan.threads
    tiles = -(-tokens // plan.tile)
    return min(plan.threads, tiles / -(-tiles // plan.threads))
