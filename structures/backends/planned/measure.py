"""Measuring this machine's figures, on request only: a few classes of operation, about five seconds for a dtype.

Nothing else should run meanwhile, and threads should be pinned. What was planned before is forgotten.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from structures.backends.planned import rates, run, search
from structures.backends.planned.figures import PRODUCTS, Curve, Rates, built_in
from structures.backends.planned.price import GRAIN, LINE, PAGE, TRAFFIC, Price
from structures.backends.planned.problem import pose
from structures.backends.planned.program import Want
from structures.spec import Spec

SECONDS = 0.008  # for a figure in a pass
PASSES = 4
DTYPES = (torch.float32, torch.bfloat16)
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)  # extents of a matrix
FEW, MANY = 128, 4096  # tokens: operands that fit the caches, and those that do not
WIDTH = 1024
OTHER = 2**24  # bytes of other work
TOTALS = (2**16, 2**19, 2**21, 2**22, 2**23, 2**25, 2**27)  # bytes read and written
TURNED = ((512, 32, 32), (16, 128, 128), (1, 2048, 128), (1, 4096, 128), (1, 1024, 1024))  # batch, rows, cols


def calibrate(dtypes: Iterable[torch.dtype] = DTYPES, *, seconds: float = SECONDS) -> list[Rates]:
    """Measures this machine for the present number of threads, and keeps the figures for all later processes.

    The planner then prices with them, here and wherever the same user runs the same processor, versions of torch and of
    these figures, dtype and number of threads; elsewhere built-in figures hold. Run it alone on the machine, with
    threads set and pinned as they will be.

    Args:
        dtypes: what to measure for.
        seconds: time spent on one figure in each of a few passes, at least; the fastest call counts.
    Returns:
        the figures, one set a dtype.
    Raises:
        ValueError: a dtype that is not real floating point.
    """
    made = []
    for dtype in dtypes:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"calibrate: {dtype} is not a real floating-point dtype; choose torch.float32 or the like")
        made.append(measured(dtype))
        name = str(dtype).removeprefix("torch.")
        rates.write(rates.machine(name, made[-1].threads), *rates.parts(made[-1]))
    run.forget()
    return made


class Clock:
    """The fastest time of each thing timed, over passes that time the same things in the same order.

    Another process may take the processor for a second: each thing is timed again a while later.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.best: list[float] = []
        self.at = 0
        self.other = torch.zeros(OTHER // 4)

    def __call__(self, run: Callable[[], object], *, among: bool = False, least: int = 3) -> float:
        """Seconds of the fastest call so far, this pass included.

        Args:
            least: calls made before the time is over.
            among: with other work between the calls, that takes the caches for itself.
        """
        run()
        best, end = float("inf"), time.perf_counter() + self.seconds
        for number in itertools.count():
            if among:
                self.other.add_(1)
            start = time.perf_counter()
            run()
            now = time.perf_counter()
            best = min(best, now - start)
            if now > end and number + 1 >= least:
                break
        if self.at == len(self.best):
            self.best.append(best)
        self.best[self.at] = min(self.best[self.at], best)
        self.at += 1
        return self.best[self.at - 1]


@torch.inference_mode(False)
def measured(dtype: torch.dtype, seconds: float = SECONDS) -> Rates:
    """The figures of this machine for one dtype and the present number of threads, measured and not kept."""
    clock = Clock(seconds)
    for _ in range(PASSES):
        clock.at = 0
        found = _pass(dtype, clock)
    return found


def _pass(dtype: torch.dtype, clock: Clock) -> Rates:
    found = built_in(str(dtype).removeprefix("torch."), torch.get_num_threads())
    with torch.no_grad():
        x = torch.ones(8, 8, dtype=dtype)
        call, view = clock(lambda: torch.mm(x, x)), clock(lambda: x.view(64))
        found = replace(found, call=max(call - 1e-7, 1e-7), view=max(view - 1e-7, 1e-8))  # the timer's own 0.1 us
        found = found.replaced({"fork": _fork(dtype, found, clock)}, {"plain": _plain(dtype, found, clock)})
        found = found.replaced(_loops(dtype, found, clock), {"turn": _turn(dtype, found, clock)})
        found = found.replaced({"item": _item(dtype, found, clock), "entry": _entry(dtype, clock)}, {})
        found = found.replaced({}, {kind: _products(kind, dtype, found, clock) for kind in PRODUCTS})
    with torch.enable_grad():
        return found.replaced(_autograd(dtype, found, clock), {})


def _price(found: Rates, dtype: torch.dtype) -> Price:
    return Price(pose(Spec("calibration", ("x, x y -> y",)).bind(8, 8)), 8, found, dtype.itemsize)


def _copying(x: Tensor, clock: Clock, around: int = 0) -> float:
    """Seconds to write a permuted tensor in order, by the loop that takes any strides.

    Args:
        around: bytes that the tensors copied in turn take together, as in a program, which never copies one twice:
            alone in the nearest cache 512 kB move at 317 GB/s, in a program at 120.
    """
    times = max(1, around // (2 * x.numel() * x.dtype.itemsize))
    pairs = [(x.clone(memory_format=torch.preserve_format)[None], torch.empty((1, *x.shape), dtype=x.dtype))]
    pairs += [(pairs[0][0].clone(memory_format=torch.preserve_format), pairs[0][1].clone()) for _ in range(times - 1)]
    turn = itertools.cycle(pairs)

    def copy() -> object:
        source, result = next(turn)
        return result.copy_(source)

    return clock(copy, least=times)


def _fork(dtype: torch.dtype, found: Rates, clock: Clock) -> float:
    if found.threads == 1:
        return 0.0
    alone, shared = (_copying(torch.ones(n, dtype=dtype), clock) for n in (GRAIN, 2 * GRAIN))
    return min(max(shared - alone, 1e-7), 2e-5)


def _plain(dtype: torch.dtype, found: Rates, clock: Clock) -> Curve:
    points = []
    for total in TOTALS:
        x = torch.ones(total // 2 // dtype.itemsize, dtype=dtype)
        over = found.call + (found.fork if x.numel() > GRAIN else 0.0)
        points.append((total, 1e-9 * total / _net(_copying(x, clock, 2 * found.l2), over)))
    return tuple(points)


def _net(taken: float, over: float) -> float:
    """Time without what is priced apart, of which noise must not leave nothing."""
    return max(taken - over, taken / 5)


def _loops(dtype: torch.dtype, found: Rates, clock: Clock) -> dict[str, float]:
    """Seconds of a row (8 numbers, their order kept) and of a pair of loops (2 x 2 numbers)."""
    price, rows, tiles = _price(found, dtype), 2**15, 2**13
    taken = _copying(torch.ones(256, 128, 8, dtype=dtype).transpose(0, 1), clock)
    row = _net(taken, found.call + price._stream(2 * 8 * rows * dtype.itemsize)) * found.threads / rows
    taken = _copying(torch.ones(256, 2, 2, 16, 2, dtype=dtype).permute(0, 3, 1, 4, 2), clock)
    return {"row": row, "tile": max(_net(taken, found.call) / tiles - 2 * row, row)}


def _turn(dtype: torch.dtype, found: Rates, clock: Clock) -> Curve:
    points: dict[int, float] = {}
    for batch, rows, cols in TURNED:
        x = torch.ones(batch, rows, cols, dtype=dtype).transpose(1, 2)
        between = rows * min(max(cols * dtype.itemsize, LINE), PAGE)
        total = 2 * x.numel() * dtype.itemsize
        points[between] = 1e-9 * total / _net(_copying(x, clock, 2 * found.l2), found.call + found.fork)
    return tuple(sorted(points.items()))


def _item(dtype: torch.dtype, found: Rates, clock: Clock) -> float:
    one, two = torch.ones(WIDTH, 1, 16, dtype=dtype), torch.ones(WIDTH, 16, 2, dtype=dtype)
    return _net(clock(lambda: torch.bmm(one, two)), found.call) / WIDTH


def _products(kind: str, dtype: torch.dtype, found: Rates, clock: Clock) -> Curve:
    """GFLOP/s of `bmm` with square blocks of each size, the operand with the tokens lying as `kind` says."""
    tokens, price = MANY if kind.endswith("large") else FEW, _price(found, dtype)
    x, w = torch.ones(1, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    points = [(1, 2e-9 * w.numel() / _net(clock(lambda: torch.mm(x, w)), found.call))]
    for size in SIZES:
        blocks = WIDTH // size
        total = dtype.itemsize * (2 * tokens * WIDTH + blocks * size * size)
        taken = clock(_product(kind, blocks, tokens, size, dtype))
        taken = _net(taken, found.call + blocks * found.item + TRAFFIC * price._stream(total))
        points.append((size, 2e-9 * tokens * WIDTH * size / taken))
    return tuple(points)


def _product(kind: str, blocks: int, tokens: int, size: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    weight = torch.ones(blocks, size, size, dtype=dtype)
    if kind in ("contiguous", "flipped"):
        straight = torch.ones(blocks, tokens, size, dtype=dtype)
        flipped = torch.ones(blocks, size, tokens, dtype=dtype).transpose(1, 2)
        x = straight if kind == "contiguous" else flipped
        return lambda: torch.bmm(x, weight)
    rows = torch.ones(tokens, blocks, size, dtype=dtype)
    if kind.startswith("strided"):
        strided = rows.transpose(0, 1)
        return lambda: torch.bmm(strided, weight)
    turned = rows.permute(1, 2, 0)
    return lambda: torch.bmm(weight, turned)


def _entry(dtype: torch.dtype, clock: Clock) -> float:
    """What a product costs more than a call, between other work: nothing but in 16 bits."""
    if dtype.itemsize != 2:
        return 0.0
    small, large = (torch.ones(size, size, dtype=dtype) for size in (8, 32))
    called = clock(lambda: torch.mm(small, small), among=True)
    return max(clock(lambda: torch.mm(large, large), among=True) - called, 0.0)


def _autograd(dtype: torch.dtype, found: Rates, clock: Clock) -> dict[str, float]:
    """What a backward, and an operation in it, cost besides their torch calls; between other work, as they are run."""
    short, longer = (_training(e, dtype, found, clock) for e in ("x, x y -> y", "x, x r, r y -> y"))
    node = max(longer - short - 3 * found.call, 1e-7)
    return {"node": node, "function": max(short - 3 * found.call - node, 1e-7)}


def _training(einsum: str, dtype: torch.dtype, found: Rates, clock: Clock) -> float:
    """Seconds of forward and backward of 8 wide matrices, the gradients left to autograd."""
    structure = Spec("calibration", (einsum,), sizes=(("r", "8"),) if "r" in einsum else ()).bind(8, 8)
    want = (True,) * (2 + len(structure.factors))
    price = replace(_price(found, dtype), problem=pose(structure))
    plans = search.plans(price.problem, price, bias=True, want=Want(True, want[2:], True))
    program = run.Program(next(plan for plan in plans if plan.native))
    shapes = [(8, 8), (8,), *structure.factor_shapes]
    leaves = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    dy = torch.ones(8, 8, dtype=dtype)
    return clock(
        lambda: torch.autograd.grad(program.run(want, leaves[0], leaves[2:], leaves[1]), leaves, dy), among=True
    )
