"""Measuring this machine's rates, on request only: a few classes of operation, a few seconds for a dtype.

    python -c "from structures.backends.planned import measure; print(measure.measure())"

Nothing else should run meanwhile, and threads should be pinned. What was planned before is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from structures.backends.planned import function, rates
from structures.backends.planned.price import PRODUCTS, Curve, Rates

SIZES = (8, 16, 32, 64, 128, 256)  # extents of a matrix
FEW, MANY = 128, 4096  # tokens: operands that fit the caches, and those that do not
WIDTH = 1024


def measure(dtype: torch.dtype = torch.float32, *, keep: bool = True, seconds: float = 0.03) -> Rates:
    """Measures every class for one dtype and the present number of threads, and keeps the result in the cache file.

    Args:
        keep: write to the cache file (`rates.path()`); without it the result is only returned.
        seconds: time spent on one figure, at least; the fastest call counts.
    """
    name, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    with torch.no_grad():
        call = _call(dtype, seconds)
        products = {kind: _products(kind, dtype, seconds, call) for kind in PRODUCTS}
        copies = {
            "plain": _plain(dtype, seconds),
            "runs": _runs(dtype, seconds),
            "near": _turns(dtype, seconds, far=False),
            "far": _turns(dtype, seconds, far=True),
        }
    if keep:
        rates.write(rates.machine(name, threads), products, copies, call)
        function.forget()
    return rates.of(name, threads).replaced(products, copies, call)


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _call(dtype: torch.dtype, seconds: float) -> float:
    x = torch.ones(8, 8, dtype=dtype)
    return _fastest(lambda: torch.mm(x, x), seconds)


def _products(kind: str, dtype: torch.dtype, seconds: float, call: float) -> Curve:
    """GFLOP/s of `bmm` with square blocks of each size, the operand with the tokens lying as `kind` says."""
    tokens = MANY if kind.endswith("large") else FEW
    points = []
    for size in SIZES:
        blocks = WIDTH // size
        weight = torch.ones(blocks, size, size, dtype=dtype)
        if kind == "contiguous":
            x = torch.ones(blocks, tokens, size, dtype=dtype)
        else:
            x = torch.ones(tokens, blocks, size, dtype=dtype).transpose(0, 1)
        taken = _fastest(_turned(weight, x) if kind.startswith("turned") else _straight(x, weight), seconds)
        points.append((size, 2e-9 * blocks * tokens * size * size / max(taken - call, 1e-7)))
    low = points[0][1]
    return ((1, low / 5), (4, low / 1.9), *points)  # below 8: as dense at few tokens, not measured


def _straight(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: torch.bmm(x, weight)


def _turned(weight: Tensor, x: Tensor) -> Callable[[], object]:
    return lambda: torch.bmm(weight, x.transpose(1, 2))


def _plain(dtype: torch.dtype, seconds: float) -> Curve:
    points = []
    for total in (2**16, 2**20, 2**22, 2**24, 2**27):
        x = torch.ones(total // 2 // dtype.itemsize, dtype=dtype)
        y = torch.empty_like(x)
        points.append((total, _bandwidth(x, y, seconds)))
    return tuple(points)


def _bandwidth(x: Tensor, y: Tensor, seconds: float) -> float:
    """GB/s of `y.copy_(x)`, read and write."""
    return 2e-9 * x.numel() * x.element_size() / _fastest(lambda: y.copy_(x), seconds)


def _runs(dtype: torch.dtype, seconds: float) -> Curve:
    """(tokens, blocks, run) to (blocks, tokens, run)."""
    points = []
    for length in (1, 4, 16, 64, 256, 1024):
        x = torch.ones(FEW * 4, WIDTH * 2 // length, length, dtype=dtype).transpose(0, 1)
        points.append((length * dtype.itemsize, _bandwidth(x, torch.empty(x.shape, dtype=dtype), seconds)))
    return tuple(points)


def _turns(dtype: torch.dtype, seconds: float, *, far: bool) -> Curve:
    """The innermost two axes exchanged (near), or the outermost made innermost (far), by the extent walked inside."""
    points = []
    for inside in (32, 128, 512, 2048, 8192):
        other = max(2**20 // inside // 32, 1)
        x = torch.ones((inside, other, 32) if far else (other, inside, 32), dtype=dtype)
        turned = x.permute(1, 2, 0) if far else x.transpose(1, 2)
        points.append((inside * 64, _bandwidth(turned, torch.empty(turned.shape, dtype=dtype), seconds)))
    return tuple(points)
