"""What the points of one shape, batch, dtype, device and mode share: the input, and the fastest dense layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.files.vocabulary import BFLOAT16, DENSE, NARROW, RIVALS
from bench.machine import device, timing
from bench.machine.device import clock_of
from bench.machine.timing import Effort, Step
from bench.sweep.check import CheckFailed, check
from bench.sweep.points import Point, bound
from bench.sweep.request import read_options
from bench.sweep.rivals import rival
from bench.sweep.subject import Refused, Subject, subject

COLD_MEMORY = 0.25  # share of the free memory that rotated copies may take
MOST_COPIES = 1024
SEED = 0
LINEAR = "linear"


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

    @property
    def over_linear(self) -> float | None:
        """What a ratio to the fastest dense layer is multiplied by to be one to nn.Linear."""
        return self.candidates[LINEAR] / self.seconds if LINEAR in self.candidates else None

    def settled(self, point: Point) -> Point:
        """The point, with dense's fastest way where it asks for the best."""
        return replace(point, backend=self.way) if point.backend == "best" else point

    def subject(self, point: Point) -> tuple[Subject, Tensor, Tensor | None]:
        """What a settled point runs, on which x and dy."""
        if point.structure == NARROW:
            narrow = read_options(point.options)
            x, dy = inputs(point, int(narrow["in"]), int(narrow["out"]))  # type: ignore[call-overload]
            return subject_of(point, x), x, dy
        x, dy = self.x, self.dy
        if point.structure == BFLOAT16:
            x = x.detach().to(torch.bfloat16).requires_grad_(x.requires_grad)
            dy = None if dy is None else dy.to(torch.bfloat16)
        return subject_of(point, x), x, dy


def cell(point: Point, ways: Iterable[str], effort: Effort, cold: bool, decided: str | None = None) -> Cell:
    """The cell of a point. The fastest dense variant is chosen by timing a few slices of each in turn.

    Args:
        decided: the variant chosen by the run that is being resumed; it is timed again but not chosen again.
    Raises:
        Refused: dense runs in none of these ways.
    """
    x, dy = inputs(point)
    steps: dict[str, Step] = {}
    if decided:
        ways = dict.fromkeys([decided, *(way for way in ways if way == LINEAR)])  # what a user has is timed always
    for way in ways:
        dense = replace(point, structure=DENSE, series=DENSE, options="", backend=way)
        try:
            what = subject(dense, x)
            check(what, x, dy)
        except (Refused, CheckFailed):
            continue  # the candidate has a row of its own that says so
        with grad_mode(point):
            steps[way] = timed_step(dense, what, x, dy, cold).step
    if not steps:
        raise Refused("dense runs in none of its ways here")
    with grad_mode(point):
        best, times = timing.fastest(list(steps.values()), effort, clock_of(point.device, point.clock))
    found = list(steps)
    way = decided if decided in steps else found[best]
    return Cell(point.cell, x, dy, way, steps[way], times[found.index(way)], dict(zip(steps, times, strict=True)))


@dataclass(frozen=True)
class Timed:
    """A call as it is timed."""

    step: Step
    copies: int  # of the weights, that calls rotate through
    captured: str | None  # on the device's clock: `graph`, or why the call is no graph


def timed_step(point: Point, what: Subject, x: Tensor, dy: Tensor | None, cold: bool) -> Timed:
    """One timed call: on the device's clock a graph, if it can be captured; cold ones take turns with copies."""
    count = 1
    if cold:
        own = sum(p.numel() * p.element_size() for p in what.parameters)
        free = device.free_memory(point.device)
        room = int((2**33 if free is None else free) * COLD_MEMORY)
        count = max(1, min(-(-2 * device.cache_bytes(point.device) // own), room // own, MOST_COPIES))
    subjects = [what, *(subject_of(point, x) for _ in range(count - 1))]
    steps, captured = [one.step(x, dy) for one in subjects], None
    if point.clock == device.DEVICE:
        pairs = [device.graphed(step) for step in steps]
        steps = [step for step, _ in pairs]
        captured = next((how for _, how in pairs if how != "graph"), "graph")
    if not cold:
        return Timed(steps[0], 1, captured)
    turn = itertools.cycle(steps)
    return Timed(lambda: next(turn)(), count, captured)


def subject_of(point: Point, x: Tensor) -> Subject:
    """The subject of any point.

    Raises:
        Refused: it does not run here.
    """
    if point.structure in RIVALS and point.structure != NARROW:
        return rival(bound(point), point.structure, x, getattr(torch, point.dtype))
    return subject(point, x)


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
        return torch.randn(point.tokens, width, generator=generator).to(device=device.place(point.device), dtype=dtype)

    x = draw(in_features or point.in_features)
    if not point.train:
        return x, None
    return x.requires_grad_(), draw(out_features or point.out_features)
