"""Launches of the kernels: a structure's forward and its gradients, as one autograd function for all structures."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from structures.backends import kept
from structures.backends.experts.segments import Segments
from structures.backends.native.lower import lower
from structures.backends.native.run import differentiable
from structures.backends.triton import launches as plans
from structures.backends.triton.affine import AffineProgram, AffineStep, NotAffine, affine
from structures.backends.triton.digits import Digits, dims
from structures.backends.triton.launches import Card, Launch, TiledLaunch
from structures.structure import Structure

CLASSES = (1, 16, 64, 256, 1024, 4096, 16384)  # a call runs the way of the first of these that holds its tokens
GROUP = 8  # tiles of rows that share a factor's blocks in L2


class TritonProgram:
    """A structure's launches. It holds no factor, and layers of equal structures share it."""

    def __init__(self, structure: Structure, segments: int = 0, apart: tuple[int, ...] = ()):
        self.refusal: str | None = None
        self.affine: AffineProgram | None = None
        try:
            self.affine = affine(lower(structure), segments, apart)
        except (NotAffine, ValueError) as error:
            self.refusal = str(error)
            return
        self.forward = plans.launches(self.affine.forward)
        self.backward = plans.launches(self.affine.backward)
        self.zeroed = not all(s.covers for s in self.affine.backward if s.target == 0)  # dx: what nothing reads
        if self.zeroed:
            self.backward = [replace(launch, add=launch.add or launch.target == 0) for launch in self.backward]
        self.segments = segments
        self.forced: str | None = None  # by `held_to`
        self._ways: dict[tuple[Any, ...], TiledLaunch] = {}
        self._tables: dict[tuple[AffineStep, torch.device], Tensor] = {}

    def way(self, launch: Launch, tokens: int, itemsize: int, on: Card, *, keep: bool = False) -> TiledLaunch:
        """How a launch runs for this many tokens, where copies of factors are kept or are not."""
        most = next((c for c in CLASSES if tokens <= c), CLASSES[-1])
        key = (id(launch), most, itemsize, on.name, keep, self.forced)  # launches live as long as this
        found = self._ways.get(key)
        if found is None:
            every = plans.ways(launch, most, itemsize, on, kept=keep)
            found = self._ways[key] = next((w for w in every if w.form == self.forced), every[0])
        return found

    def forms(self) -> set[str]:
        """Those of the launches so far, while held to the present form."""
        return {way.form for (*_, forced), way in self._ways.items() if forced == self.forced}

    def table(self, step: AffineStep, device: torch.device) -> Tensor | None:
        """The starts of a gather's runs, on the device."""
        if step.table is None:
            return None
        found = self._tables.get((step, device))
        if found is None:
            found = self._tables[step, device] = torch.tensor(step.table, dtype=torch.int32, device=device)
        return found


_programs: weakref.WeakKeyDictionary[Structure, dict[tuple[int, ...], TritonProgram]] = weakref.WeakKeyDictionary()


def program(structure: Structure, segments: int = 0, apart: tuple[int, ...] = ()) -> TritonProgram:
    """The launches of a structure without a gate, of sorted rows as `affine` says; equal structures share them."""
    found: dict[tuple[int, ...], TritonProgram] | None = structure.memo.get("triton")
    if found is None:
        found = structure.memo["triton"] = _programs.setdefault(structure, {})
    key = (segments, *apart)
    if key not in found:
        found[key] = TritonProgram(structure, segments, apart)
    return found[key]


@contextmanager
def held_to(programs: Sequence[TritonProgram], form: str | None) -> Iterator[None]:
    """Inside, every launch that can run in this form does, whatever its price; None: the cheapest, as ever."""
    for made in programs:
        made.forced = form
    try:
        yield
    finally:
        for made in programs:
            made.forced = None


@lru_cache(maxsize=16)
def card(device: torch.device) -> Card:
    """The card that a tensor lies on; of meta tensors the current one, and where there is none any one."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return plans.CARDS[0]
    properties = torch.cuda.get_device_properties(device if device.type == "cuda" else torch.cuda.current_device())
    return plans.card(properties.name, properties.major * 10 + properties.minor)


def forward(
    made: TritonProgram, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False,
    rows: Segments | None = None, weigh: bool = False,
) -> list[Tensor]:  # fmt: skip
    """All buffers, x first, y last: (tokens, features) each.

    Args:
        keep: copies of factors may be kept.
        rows: of sorted choices: x has a row a token, y and what lies between one a choice.
        weigh: y's rows are multiplied by their weights.
    """
    assert made.affine is not None  # what is refused is not run
    x = x if x.stride(1) == 1 else x.contiguous()
    count = x.shape[0] if rows is None else len(rows.order)
    buffers = [x, *(x.new_empty(count, size) for size in made.affine.sizes[1:])]
    if rows is not None and rows.drops:
        buffers[-1].zero_()
    if x.shape[0]:
        _run(made, made.forward, buffers, factors, bias, keep=keep, rows=rows, weigh=weigh)
    return buffers


def backward(
    made: TritonProgram, buffers: Sequence[Tensor], factors: Sequence[Tensor], dy: Tensor, want: Sequence[bool],
    rows: Segments | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x, the bias and every factor, None for those not wanted.

    Args:
        buffers: those of `forward`; x's and the intermediates are read where a factor's gradient is wanted.
        rows: of sorted choices: `dy` has a row a token, for all of its choices, and the gradient of x one a choice.
    """
    assert made.affine is not None
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    db = dy.sum(0) if want[1] else None
    found: list[Tensor | None] = [torch.empty_like(f) if w else None for f, w in zip(factors, want[2:], strict=True)]
    count = dy.shape[0] if rows is None else len(rows.order)
    gradients = [dy.new_empty(count, size) for size in made.affine.sizes[:-1]] + [dy]
    if not dy.shape[0]:
        return [gradients[0] if want[0] else None, db, *[None if g is None else g.zero_() for g in found]]
    if want[0] and (made.zeroed or (rows is not None and rows.drops)):
        gradients[0].zero_()
    needed = made.backward if want[0] else [launch for launch in made.backward if launch.target]
    if want[0] or any(want[2:]):
        _run(made, needed, gradients, factors, None, rows=rows, weigh=True)
    met: set[int] = set()
    for step in made.affine.forward:
        target = found[step.factor] if step.factor >= 0 else None
        if target is not None:
            add = step.factor in met
            _gradient(made, step, target, buffers[step.source], gradients[step.target], add=add, rows=rows)
            met.add(step.factor)
    return [gradients[0] if want[0] else None, db, *found]


class _Triton(torch.autograd.Function):
    """Forward and gradients by the kernels; every buffer is saved. With `create_graph` gradients are the planner's."""

    @staticmethod
    def forward(
        ctx: Any, structure: Structure, want: tuple[bool, ...], x: Tensor, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        buffers = forward(program(structure), x, factors, bias)
        ctx.structure, ctx.want, ctx.between = structure, want, len(buffers) - 2
        ctx.save_for_backward(x, *buffers[1:-1], *factors)
        return buffers[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        between, factors = rest[: ctx.between], rest[ctx.between :]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            found = differentiable(ctx.structure, ctx.want, x, factors, dy, graph=torch.is_grad_enabled())
        else:
            x = x if x.stride(1) == 1 else x.contiguous()
            found = backward(program(ctx.structure), [x, *between, dy], factors, dy, ctx.want)
        return None, None, *found


def eager(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y (tokens, out_features), with a graph where a gradient is wanted."""
    factors = [f if f.is_contiguous() else f.contiguous() for f in factors]
    if torch.is_grad_enabled():
        want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
        if True in want:
            return _Triton.apply(structure, want, x, bias, *factors)  # type: ignore[no-untyped-call,no-any-return]
    return forward(program(structure), x, factors, bias, keep=keepable(factors))[-1]


def keepable(factors: Sequence[Tensor]) -> bool:
    """Whether copies of these factors may be kept: not in a graph that is recorded, which has to copy each time."""
    return kept.keepable(factors) and not (factors and factors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def compile_ahead(structure: Structure, tokens: int, dtype: torch.dtype, *, train: bool) -> None:
    """Compile what a call with a bias launches, without running it: Triton keeps it on the disk for other processes."""
    empty = partial(torch.empty, dtype=dtype, device="meta")
    factors, made = [empty(shape) for shape in structure.factor_shapes], program(structure)
    x, bias = empty(tokens, structure.in_features), empty(structure.out_features)
    buffers = forward(made, x, factors, bias)
    if train:
        backward(made, buffers, factors, empty(tokens, structure.out_features), [True] * (2 + len(factors)))
    else:
        forward(made, x, factors, bias, keep=True)


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Floating-point operations of a call, 2 per multiply-add, without the bias. Nothing is worked out again."""
    return structure.flops(tokens, train=train)


def _run(
    made: TritonProgram, order: Sequence[Launch], buffers: Sequence[Tensor], factors: Sequence[Tensor],
    bias: Tensor | None, *, keep: bool = False, rows: Segments | None = None, weigh: bool = False,
) -> None:  # fmt: skip
    for launch in order:
        first_of_y = launch.target == len(buffers) - 1 and not launch.add
        _launch(made, launch, buffers, factors, bias if first_of_y else None, keep=keep, rows=rows, weigh=weigh)


def _launch(
    made: TritonProgram, launch: Launch, buffers: Sequence[Tensor], factors: Sequence[Tensor], bias: Tensor | None, *,
    keep: bool, rows: Segments | None, weigh: bool,
) -> None:  # fmt: skip
    from structures.backends.triton import kernels  # triton is imported where it runs

    c = buffers[launch.target]
    tokens, operands = c.shape[0], []
    way = made.way(launch, tokens, c.element_size(), card(c.device), keep=keep)
    for step, lies, copied, canonical in zip(way.steps, launch.steps, way.copied, way.canonical, strict=True):
        a = _copied(buffers[lies.source], lies) if copied else buffers[lies.source]
        w = _factor(factors, lies, c, canonical, keep=keep)
        table = made.table(step, c.device)
        operands.append((a, w, c if table is None else table, step.constants))
    (a0, w0, t0, d0), (a1, w1, t1, d1) = operands[0], operands[-1]
    bp, bm, bk = way.block
    precision, given = _precision(c), c if bias is None else bias
    many, tiles_m = tokens * way.steps[0].rows, -(-way.steps[0].cols // bm)
    if way.form == plans.TURNED:
        _start(kernels.turned, (-(-many // bp), tiles_m), c, (
            given, a0, w0, a1, w1, tokens, c.stride(0), a0.stride(0), a1.stride(0), d0, d1,
            len(operands), bp, bm, bk, bias is not None, launch.add, precision,
        ), way.warps, way.stages)  # fmt: skip
        return
    ends = (0, len(buffers) - 1)  # x and y are as they came, what lies between is sorted
    order, starts, scale, each = (c, c, c, 0) if rows is None else (rows.order, rows.starts, rows.weights, rows.active)
    read, write = each * (launch.steps[0].source in ends), int(rows is not None and launch.target in ends)
    tiles_p = -(-many // bp) if rows is None else many // bp + min(tokens, way.steps[0].segments)  # as the kernel says
    tiles = tiles_p * tiles_m * way.steps[0].batch
    work, count = _workspace(c, tiles, way.split, bp * bm)
    _start(kernels.step, (tiles, way.split), c, (
        given, a0, w0, t0, a1, w1, t1, work, count, order, starts, scale, tokens, c.stride(0), a0.stride(0),
        a1.stride(0), d0, d1, len(operands), bp, bm, bk, way.split, way.even, bias is not None, launch.add, precision,
        read, write, bool(write) and weigh, GROUP,
    ), way.warps, way.stages)  # fmt: skip


def _start(
    kernel: Any, grid: tuple[int, int], result: Tensor, arguments: tuple[Any, ...], warps: int, stages: int
) -> None:
    """Launch a kernel; on meta tensors compile it alone."""
    if result.is_meta:
        kernel.warmup(result, *arguments, grid=grid, num_warps=warps, num_stages=stages)
    else:
        kernel[grid](result, *arguments, num_warps=warps, num_stages=stages)


def _gradient(
    made: TritonProgram, step: AffineStep, target: Tensor, a: Tensor, g: Tensor, *, add: bool, rows: Segments | None
) -> None:
    from structures.backends.triton import kernels  # triton is imported where it runs

    assert made.affine is not None
    y, tokens = len(made.affine.sizes) - 1, g.shape[0] if rows is None else len(rows.order)
    bp, bm, bk = plans.gradient_block(step, g.element_size())
    many = tokens * step.rows
    tiles = step.batch * -(-step.contracted // bk) * -(-step.cols // bm) * (step.segments if step.w_segment else 1)
    split = max(1, min(card(g.device).processors // tiles, many // (4 * bp), 32)) if rows is None else 1
    length = -(-many // (split * bp)) * bp
    order, starts, scale, each = (g, g, g, 0) if rows is None else (rows.order, rows.starts, rows.weights, rows.active)
    table = made.table(step, g.device)
    work, count = _workspace(g, tiles, split, bk * bm)
    _start(kernels.gradient, (tiles, split), target, (
        a, g, g if table is None else table, work, count, order, starts, scale, tokens, a.stride(0), g.stride(0),
        step.constants, length, bp, bm, bk, split, add, _precision(g),
        each * (step.source == 0), each * (step.target == y),
    ), 8 if bk * bm >= 128 * 128 else 4, 3)  # fmt: skip


_counters: dict[tuple[torch.device, int], Tensor] = {}


def _workspace(like: Tensor, tiles: int, split: int, size: int) -> tuple[Tensor, Tensor]:
    """Room for the parts of a split, and a counter a tile, at zero: the kernel leaves it so.

    The counters of a stream are kept. While a graph is recorded they are its own, as graphs may run side by side.
    """
    if split == 1:
        return like, like
    work = like.new_empty(tiles * split * size, dtype=torch.float32)
    if like.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return work, like.new_zeros(tiles, dtype=torch.int32)
    key = (like.device, torch.cuda.current_stream(like.device).cuda_stream)
    count = _counters.get(key)
    if count is None or len(count) < tiles:
        count = _counters[key] = like.new_zeros(max(tiles, 4096), dtype=torch.int32)
    return work, count


def _precision(x: Tensor) -> str:
    """float32 is multiplied as torch multiplies it: in tf32 only where that is allowed."""
    return "tf32" if x.dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _factor(factors: Sequence[Tensor], step: AffineStep, like: Tensor, canonical: bool, *, keep: bool) -> Tensor:
    if step.factor < 0:
        return like.new_ones(1)
    factor = factors[step.factor]
    if not canonical:
        return factor
    if not keep or factor.is_meta:
        return _strided(factor, (), (), step.written)
    # by stream, as another one would not wait for the copy
    stream = torch.cuda.current_stream(factor.device).cuda_stream if factor.is_cuda else 0
    return kept.copy(("canonical", step.written, stream), [factor], lambda: _strided(factor, (), (), step.written))


def _copied(buffer: Tensor, step: AffineStep) -> Tensor:
    """The operand in the order batch, contracted: one copy, after which every read is a whole vector."""
    groups = ((step.a_batch, step.batch), (step.a_contracted, step.contracted))
    rows = buffer.shape[0]
    return _strided(buffer, (rows,), (buffer.stride(0),), groups).view(rows, -1)


def _strided(
    of: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], groups: Sequence[tuple[Digits, int]]
) -> Tensor:
    for digits, length in groups:
        more, apart = dims(digits, length)
        sizes, strides = (*sizes, *more), (*strides, *apart)
    return torch.as_strided(of, sizes, strides, of.storage_offset()).contiguous()
