"""Measuring what torch's own products and copies reach on this machine: some twenty figures in about 50 ms.

`auto` measures a dtype when it first has to choose between the kernel and the planner, and keeps the figures;
`calibrate` does it anew, for longer. What they leave out (one loop, a turned copy) keeps its built-in share of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from structures.backends.planned import rates, run
from structures.backends.planned.figures import Curve, Rates, built_in
from structures.backends.planned.price import GRAIN, TRAFFIC, interpolated

SECONDS = 0.003  # for a figure, when `auto` measures
LONGER = 0.05  # and when a user does
DTYPES = (torch.float32, torch.bfloat16)
SIZES = (2, 8, 32, 128, 512)  # extents of a matrix
TOKENS, WIDTH = 128, 1024
BUSY = 0.02  # seconds: the largest product took 0.7 ms (AMD Zen 4, two threads); among other processes any took 30
TOTALS = (2**16, 2**21, 2**23)  # bytes read and written
OURS = 0.8  # of two processors' time that others must leave to a product of all threads; more may be idle in it
STEADY = 1.3  # times as long as before the figures that product may take after them
FAR = 0.7  # times the rate of products whose operands lie in order, beyond the nearest cache: 0.4 to 1.2 (AMD Zen 4)


AGAIN = 5.0  # seconds after which `auto` looks again whether figures come from a moment that others took
_tried: set[str] = set()  # what this process has measured
_looked: dict[str, float] = {}  # and when it looked again


class BusyError(ValueError):
    """The machine has no time to be measured."""


def calibrate(dtypes: Iterable[torch.dtype] = DTYPES, *, seconds: float | None = None) -> list[Rates]:
    """Measures this machine anew for the present number of threads, and keeps the figures for all later processes.

    They hold wherever the same user runs the same processor, versions of torch and of these figures, dtype and number
    of threads. Run it alone on the machine, with threads set and pinned as they will be.

    Args:
        dtypes: what to measure for.
        seconds: time spent on one figure, at least; the fastest call counts; 0.05 unless given.
    Returns:
        the figures, one set a dtype.
    Raises:
        ValueError: a dtype that is not real floating point.
        BusyError: other processes take the processors.
    """
    made: list[Rates] = []
    try:
        return _calibrated(dtypes, LONGER if seconds is None else seconds, made)
    finally:
        if made:
            run.forget()


def _calibrated(dtypes: Iterable[torch.dtype], seconds: float, made: list[Rates]) -> list[Rates]:
    for dtype in dtypes:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"calibrate: {dtype} is not a real floating-point dtype; choose torch.float32 or the like")
        made.append(measured(dtype, seconds))
        rates.write(_key(dtype), rates.parts(made[-1]))
    return made


def ensure(dtype: torch.dtype) -> None:
    """Measure this machine for a dtype and the present number of threads, unless figures of it are kept.

    Where others take its processors nothing is kept: built-in figures hold in this process, and the next one tries.
    Every few seconds one product is measured again: where it is far faster than the figures say, they come from a bad
    moment, and all are measured anew.
    """
    key = _key(dtype)
    if rates.known(key):
        if time.monotonic() - _looked.get(key, -math.inf) <= AGAIN:
            return
        _looked[key] = time.monotonic()
        if not _outdone(dtype):
            return
    elif key in _tried:
        return
    _tried.add(key)
    try:
        calibrate([dtype], seconds=SECONDS)
    except BusyError:
        return


def _outdone(dtype: torch.dtype) -> bool:
    """Whether a product takes far less than by the figures that are kept."""
    threads = torch.get_num_threads()
    found, size = rates.of(str(dtype).removeprefix("torch."), threads), SIZES[-1]

    def now() -> float:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return _product_rate("contiguous", size, dtype, found, SECONDS)

    try:
        with ThreadPoolExecutor(1) as alone:
            return alone.submit(now).result() > STEADY * interpolated(dict(found.product)["contiguous"], size)
    except BusyError:
        return False


def measured(dtype: torch.dtype, seconds: float) -> Rates:
    """The figures of this machine for one dtype and the present number of threads, measured and not kept.

    In a thread of its own, which knows nothing of modes, transforms and devices of the one that asks.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(_measured, dtype, threads, seconds).result()


def _key(dtype: torch.dtype) -> str:
    return rates.machine(str(dtype).removeprefix("torch."), torch.get_num_threads())


@torch.no_grad()
def _measured(dtype: torch.dtype, threads: int, seconds: float) -> Rates:
    torch.set_num_threads(threads)  # of this thread
    base = built_in(str(dtype).removeprefix("torch."), threads)
    before = _undisturbed(dtype, threads, seconds)
    x = torch.ones(8, 8, dtype=dtype)
    call = max(_best(lambda: torch.mm(x, x), seconds), 1e-7)
    found = replace(base, call=call, view=base.view * call / base.call)
    plain = tuple((total, _copied(dtype, total, found, seconds)) for total in TOTALS)
    own = dict(base.copy)["plain"]
    plain += tuple((n, r * plain[-1][1] / interpolated(own, TOTALS[-1])) for n, r in own if n > TOTALS[-1])
    near = interpolated(plain, 2**21) / interpolated(own, 2**21)
    found = found.replaced({}, {"plain": plain, "turn": _times(dict(base.copy)["turn"], near)})
    curves = {"contiguous": _products("contiguous", dtype, found, seconds)}
    for kind in ("flipped", "strided", "turned"):
        curves[kind] = _products(kind, dtype, found, seconds)
    for kind in ("strided", "turned"):
        curves[f"{kind}_large"] = _times(curves[kind], FAR)
    one = ((1, _one_row(dtype, found, seconds)),)  # however its operands lie
    curves = {kind: one + curve for kind, curve in curves.items()}
    if _undisturbed(dtype, threads, seconds) > STEADY * before:
        raise BusyError("the same product became slower in between: other processes take this machine's processors")
    return found.replaced({}, curves)


def _undisturbed(dtype: torch.dtype, threads: int, seconds: float) -> float:
    """Seconds of a product of all threads, the fastest.

    A figure is what is left of a time without others: figures measured beside other processes would not be a little
    but several times too high or too low.

    Raises:
        BusyError: other processes ran on its processors meanwhile.
    """
    product = _product("contiguous", WIDTH // SIZES[-1], SIZES[-1], dtype)
    _best(product, 0.0)
    wall, own = time.perf_counter(), time.process_time()
    best = _best(product, seconds)
    share = (time.process_time() - own) / (time.perf_counter() - wall) / min(threads, _processors(), 2)
    if share < OURS:
        raise BusyError(f"others left {share:.0%} of the processors: other processes take this machine's processors")
    return best


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of at least five calls."""
    call()
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - start), calls + 1
        if best > BUSY:
            raise BusyError(f"a measured call took {best:.2g} s: other processes take this machine's processors")
    return best


def _times(curve: Curve, factor: float) -> Curve:
    return tuple((size, rate * factor) for size, rate in curve)


def _net(taken: float, over: float) -> float:
    """Time without what is priced apart, of which noise must not leave nothing."""
    return max(taken - over, taken / 5)


def _copied(dtype: torch.dtype, total: int, found: Rates, seconds: float) -> float:
    """GB/s of copying so many bytes, read and written."""
    x = torch.ones(total // 2 // dtype.itemsize, dtype=dtype)
    y = torch.empty_like(x)
    over = found.call + (found.fork if x.numel() > GRAIN else 0.0)
    return 1e-9 * total / _net(_best(lambda: y.copy_(x), seconds), over)


def _products(kind: str, dtype: torch.dtype, found: Rates, seconds: float) -> Curve:
    """GFLOP/s of `bmm` with square blocks of each size, the operand with the tokens lying as `kind` says."""
    return tuple((size, _product_rate(kind, size, dtype, found, seconds)) for size in SIZES)


def _product_rate(kind: str, size: int, dtype: torch.dtype, found: Rates, seconds: float) -> float:
    blocks = WIDTH // size
    total = dtype.itemsize * (2 * TOKENS * WIDTH + blocks * size * size)
    over = found.call + blocks * found.item + TRAFFIC * total / (interpolated(dict(found.copy)["plain"], total) * 1e9)
    taken = _net(_best(_product(kind, blocks, size, dtype), seconds), over)
    return 2e-9 * TOKENS * WIDTH * size / taken


def _one_row(dtype: torch.dtype, found: Rates, seconds: float) -> float:
    """GFLOP/s of a matrix times one row.

    Not a block of one number: with the rate of blocks of 2 x 2, dense 1024 x 1024 at 1 token was predicted to take
    2.6 ms forward and backward, and took 0.6 (AMD Zen 4, two threads).
    """
    x, weight = torch.ones(1, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    size = dtype.itemsize * (x.numel() + weight.numel())
    over = found.call + TRAFFIC * size / (interpolated(dict(found.copy)["plain"], size) * 1e9)
    return 2e-9 * weight.numel() / _net(_best(lambda: torch.mm(x, weight), seconds), over)


def _product(kind: str, blocks: int, size: int, dtype: torch.dtype) -> Callable[[], object]:
    weight = torch.ones(blocks, size, size, dtype=dtype)
    if kind in ("contiguous", "flipped"):
        straight = torch.ones(blocks, TOKENS, size, dtype=dtype)
        flipped = torch.ones(blocks, size, TOKENS, dtype=dtype).transpose(1, 2)
        x = straight if kind == "contiguous" else flipped
        return lambda: torch.bmm(x, weight)
    rows = torch.ones(TOKENS, blocks, size, dtype=dtype)
    if kind == "strided":
        strided = rows.transpose(0, 1)
        return lambda: torch.bmm(strided, weight)
    turned = rows.permute(1, 2, 0)
    return lambda: torch.bmm(weight, turned)
