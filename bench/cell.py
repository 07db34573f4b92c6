"""What the points of one shape, batch, dtype, device and mode share: the input, and the fastest dense layer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench import machine, measure
from bench.check import CheckFailed, check
from bench.measure import Clock, Effort, Step
from bench.points import DENSE, NARROW, Point
from bench.request import read_options
from bench.subject import Refused, Subject, subject

COLD_MEMORY = 0.25  # share of the free memory that rotated copies may take
MOST_COPIES = 1024
SEED = 0


@dataclass(frozen=True)
class Cell:
    """The input, dy where gradients are taken, and dense's fastest way to run here."""

    key: tuple[object, ...]
    x: Tensor
    dy: Tensor | None
    way: str
    dense: Step
    seconds: float  # of one call of it
    candidates: dict[str, float]  # seconds of a call, every way

    def settled(self, point: Point) -> Point:
        """The point, with dense's fastest way where it asks for the best."""
        return replace(point, backend=self.way) if point.backend == "best" else point

    def subject(self, point: Point) -> tuple[Subject, Tensor, Tensor | None]:
        """What a settled point runs, on which x and dy."""
        if point.structure == NARROW:
            narrow = read_options(point.options)
            x, dy = inputs(point, int(narrow["in"]), int(narrow["out"]))  # type: ignore[call-overload]
            return subject(point, x), x, dy
        return subject(point, self.x), self.x, self.dy


def cell(point: Point, ways: Sequence[str], effort: Effort, cold: bool) -> Cell:
    """The cell of a point; which of dense's ways is fastest is decided by a few slices of each, in turn.

    Raises:
        Refused: dense runs in none of these ways.
    """
    x, dy = inputs(point)
    steps: dict[str, Step] = {}
    for way in ways:
        dense = replace(point, structure=DENSE, series=DENSE, options="", backend=way)
        try:
            what = subject(dense, x)
            check(what, x, dy)
        except (Refused, CheckFailed):
            continue  # the candidate has a row of its own that says so
        steps[way] = timed_step(dense, what, x, dy, cold)[0]
    if not steps:
        raise Refused("dense runs in none of its ways here")
    with grad_mode(point):
        best, times = measure.fastest(list(steps.values()), effort, clock_of(point.device))
    way = list(steps)[best]
    return Cell(point.cell, x, dy, way, steps[way], times[best], dict(zip(steps, times, strict=True)))


def timed_step(point: Point, what: Subject, x: Tensor, dy: Tensor | None, cold: bool) -> tuple[Step, int]:
    """One timed call, and the number of copies of the weights that calls rotate through."""
    if not cold:
        return what.step(x, dy), 1
    own = sum(p.numel() * p.element_size() for p in what.parameters)
    free = machine.available_memory()
    room = int((2**33 if free is None else free) * COLD_MEMORY)
    count = max(1, min(-(-2 * machine.last_level_cache() // own), room // own, MOST_COPIES))
    turn = itertools.cycle([subject(point, x).step(x, dy) for _ in range(count)])
    return lambda: next(turn)(), count


def grad_mode(point: Point) -> AbstractContextManager[object]:
    """What a point is timed in: no gradients in forward mode."""
    return nullcontext() if point.train else torch.no_grad()


def inputs(
    point: Point, in_features: int | None = None, out_features: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """x (tokens, in_features), and dy (tokens, out_features) where gradients are taken; the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, point.dtype)

    def draw(width: int) -> Tensor:
        return torch.randn(point.tokens, width, generator=generator).to(device=point.device, dtype=dtype)

    x = draw(in_features or point.in_features)
    if not point.train:
        return x, None
    return x.requires_grad_(), draw(out_features or point.out_features)


def clock_of(device: str) -> Clock:
    """The host's clock; on CUDA read after everything queued has finished."""
    return synchronised if device == "cuda" else time.perf_counter


def synchronised() -> float:
    """Seconds of the host's clock once the CUDA device is idle."""
    torch.cuda.synchronize()
    return time.perf_counter()
