"""Calls of the native library: a structure's program for one dtype, and the one autograd function of all structures."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from structures.backends import kept, planned
from structures.backends.native import kernel
from structures.backends.native.library import CANONICAL, PAIRS, PAIRS_BACK, Bound, Library, Plan, explain
from structures.backends.native.lower import Lowered, lower
from structures.structure import Structure

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
MOST = 1024  # plans and arrays of pointers that a program remembers; beyond it forgets them all


class Program:
    """A structure opened in the library for one dtype. It holds no factor, and layers of equal structures share it."""

    def __init__(self, library: Library, lowered: Lowered, dtype: torch.dtype):
        self.library, self.lowered = library, lowered
        self.bound = Bound(library, lowered, DTYPES[dtype])
        self.address, self._forward = self.bound.address, library.forward
        self.in_features, self.out_features = lowered.in_features, lowered.out_features
        self.decided: dict[tuple[int, int], bool] = {}  # whether `auto` runs it, by tokens and threads
        self.decided_train: dict[tuple[int, int], bool] = {}  # the same where gradients are enabled
        self.copies = {kind: self.bound.copies_bytes(kind) for kind in (CANONICAL, PAIRS, PAIRS_BACK)}
        self.keeps = sum(kind for kind in (CANONICAL, PAIRS) if self.copies[kind])
        self._plans: dict[tuple[int, int, int], Plan] = {}
        self._arrays: dict[tuple[int, ...], Any] = {}

    def plan(self, tokens: int, threads: int, keeps: int) -> Plan:
        """How a call runs, `keeps` being the kinds of copies that are kept for it."""
        key = (tokens, threads, keeps)
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= MOST:
                self._plans.clear()
            found = self._plans[key] = self.bound.plan(tokens, threads, keeps=keeps)
        return found

    def forward(
        self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, *, keep: bool, copies: Tensor | None = None
    ) -> Tensor:
        """y (tokens, out_features), without a graph.

        Args:
            keep: copies of the factors may be kept.
            copies: a copy of kind PAIRS_BACK made for this call.
        """
        tokens = x.shape[0]
        y = x.new_empty(tokens, self.out_features)
        if tokens:
            if x.stride(1) != 1:
                x = x.contiguous()
            pointers, threads = [factor.data_ptr() for factor in factors], torch.get_num_threads()
            self.write(y, x, x.stride(0), tokens, factors, bias, pointers, threads, keep=keep, copies=copies)
        return y

    def write(
        self, y: Tensor, x: Tensor, stride: int, tokens: int, factors: Sequence[Tensor], bias: Tensor | None,
        pointers: list[int], threads: int, *, keep: bool, copies: Tensor | None = None,
    ) -> None:  # fmt: skip
        """The result of a call into y, which is contiguous as factors and bias are; rows of x lie `stride` apart."""
        array, how = self.array(pointers), 0
        if copies is not None:
            plan = self.plan(tokens, threads, PAIRS)
            copies, how = (copies, plan.how) if plan.needs == PAIRS else (None, 0)
        elif self.keeps and keep and kept.keepable(factors):
            plan = self.plan(tokens, threads, self.keeps)
            if plan.needs:
                copies, how = self._kept(plan.needs, factors, array, threads), plan.how
        code = self._forward(
            self.address, array, address(copies), x.data_ptr(), stride, tokens, address(bias), y.data_ptr(), threads,
            how,
        )  # fmt: skip
        if code:
            raise RuntimeError(f"backend 'native': {explain(code)}")

    def pairs(self, factors: Sequence[Tensor], tokens: int) -> Tensor | None:
        """The factors in the pairs that forward and backward of one training step both read; None where it has none."""
        threads = torch.get_num_threads()
        if not self.copies[PAIRS_BACK] or not tokens or self.plan(tokens, threads, PAIRS).needs != PAIRS:
            return None
        return self._made(PAIRS_BACK, self.array([factor.data_ptr() for factor in factors]), threads)

    def backward(
        self, x: Tensor, factors: Sequence[Tensor], dy: Tensor, want: tuple[bool, ...], copies: Tensor | None
    ) -> list[Tensor | None]:
        """Gradients of x, the bias and every factor, None for those not wanted."""
        tokens = x.shape[0]
        dx = x.new_empty(x.shape) if want[0] else None
        db = dy.new_empty(dy.shape[1]) if want[1] else None
        df = [
            factor.new_empty(factor.shape) if wanted else None for factor, wanted in zip(factors, want[2:], strict=True)
        ]
        found = [dx, db, *df]
        if not tokens:
            return [None if gradient is None else gradient.zero_() for gradient in found]
        x, dy = (t if t.stride(1) == 1 else t.contiguous() for t in (x, dy))
        targets = None
        if any(want[2:]):
            targets = self.bound.pointers(*map(address, df))
        code = self.library.backward(
            self.address, self.array([factor.data_ptr() for factor in factors]), address(copies), x.data_ptr(),
            x.stride(0), dy.data_ptr(), dy.stride(0), tokens, address(dx), targets, address(db),
            torch.get_num_threads(), 0,
        )  # fmt: skip
        if code:
            raise RuntimeError(f"backend 'native': {explain(code)}")
        return found

    def array(self, pointers: list[int]) -> Any:
        """The factors' addresses as the library takes them: an array that never changes, found by what it holds."""
        key = tuple(pointers)
        found = self._arrays.get(key)
        if found is None:
            if len(self._arrays) >= MOST:
                self._arrays.clear()
            found = self._arrays[key] = self.bound.pointers(*key)
        return found

    def _kept(self, kind: int, factors: Sequence[Tensor], array: Any, threads: int) -> Tensor:
        return kept.copy(kind, factors, lambda: self._made(kind, array, threads))

    def _made(self, kind: int, array: Any, threads: int) -> Tensor:
        buffer = torch.empty(self.copies[kind], dtype=torch.uint8, device="cpu")
        self.make(kind, array, buffer, threads)
        return buffer

    def make(self, kind: int, array: Any, buffer: Tensor, threads: int) -> None:
        """Write a copy of one kind into memory for it."""
        code = self.library.make_copies(self.bound.address, kind, array, buffer.data_ptr(), threads)
        if code:
            raise RuntimeError(f"backend 'native': {explain(code)}")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Programs:
    """The programs of one structure, and of its equals: by dtype, each opened when first used."""

    def __init__(self, structure: Structure):
        self.lowered: Lowered | None = None
        self.refusal: str | None = None
        try:
            self.lowered = lower(structure)
        except ValueError as error:
            self.refusal = str(error)
        self.opened: dict[torch.dtype, Program] = {}

    def of(self, dtype: torch.dtype) -> Program:
        """The program for a dtype in the library of this process."""
        found = self.opened.get(dtype)
        library = kernel.library()
        if found is None or found.library is not library:
            assert self.lowered is not None  # what is refused is not run
            found = self.opened[dtype] = Program(library, self.lowered, dtype)
        return found


_programs: weakref.WeakKeyDictionary[Structure, Programs] = weakref.WeakKeyDictionary()


def programs(structure: Structure) -> Programs:
    """The programs of a structure; equal structures share them."""
    found = structure.memo.get("native")
    if found is None:
        found = _programs.get(structure)
        if found is None:
            found = _programs[structure] = Programs(structure)
        structure.memo["native"] = found
    return found


def eager(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, *, keep: bool = True
) -> Tensor:
    """y (tokens, out_features) by the kernel, with a graph where a gradient is wanted."""
    program = programs(structure).of(x.dtype)
    factors = [factor if factor.is_contiguous() else factor.contiguous() for factor in factors]
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if torch.is_grad_enabled():
        want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
        if True in want:
            return _Native.apply(program, structure, want, x, bias, *factors)  # type: ignore[no-untyped-call,no-any-return]
    return program.forward(x, factors, bias, keep=keep)


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Floating-point operations of a call, 2 per multiply-add, without the bias.

    Training works the intermediates out again: all steps but the last one of each term are run once more.
    """
    again = sum(structure.numel(step.axes) for term in structure.terms for step in term.steps[:-1]) if train else 0
    return structure.flops(tokens, train=train) + 2 * tokens * again


def differentiable(
    structure: Structure, want: tuple[bool, ...], x: Tensor, factors: Sequence[Tensor], dy: Tensor, *, graph: bool
) -> list[Tensor | None]:
    """Gradients of x, the bias and every factor by the planner's torch programs, of any further order with `graph`.

    y is linear in the bias, whose gradient needs no value.
    """

    def y(x: Tensor, *factors: Tensor) -> Tensor:
        return planned.apply(structure, x, factors)

    dx, *df = gradients(y, (want[0], *want[2:]), (x, *factors), dy, graph=graph)
    return [dx, dy.sum(0) if want[1] else None, *df]


def gradients(
    function: Callable[..., Tensor], want: Sequence[bool], operands: Sequence[Tensor], dy: Tensor, *, graph: bool
) -> list[Tensor | None]:
    """Gradients of those operands of a function of tensors that are wanted, of any further order with `graph`.

    Views of the operands keep paths between them (x computed from a factor) out of these gradients.
    """
    with torch.enable_grad():
        operands = [t.view_as(t) if graph else t.detach().requires_grad_() for t in operands]
        wanted = [t for t, w in zip(operands, want, strict=True) if w]
        found: list[Tensor] = []
        if wanted:
            y = function(*operands)
            found += torch.autograd.grad(y, wanted, dy, create_graph=graph, materialize_grads=True)
    return [found.pop(0) if w else None for w in want]


def transformed(dy: Tensor) -> bool:
    """Whether a function transform, or is_grads_batched=True, runs this backward: it shows no numbers."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(dy)


class _Native(torch.autograd.Function):
    """Forward and gradients by the kernel; x and the factors are saved, and the intermediates worked out again.

    With `create_graph`, or batched by a transform, the gradients are those of the planner's torch programs.
    """

    @staticmethod
    def forward(
        ctx: Any, program: Program, structure: Structure, want: tuple[bool, ...], x: Tensor, bias: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.program, ctx.structure, ctx.want = program, structure, want
        ctx.copies = program.pairs(factors, x.shape[0])
        ctx.save_for_backward(x, *factors)
        return program.forward(x, factors, bias, keep=False, copies=ctx.copies)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        graph = torch.is_grad_enabled()
        if graph or transformed(dy):
            found = differentiable(ctx.structure, ctx.want, x, factors, dy, graph=graph)
        else:
            found = ctx.program.backward(x, factors, dy, ctx.want, ctx.copies)
        return None, None, None, *found
