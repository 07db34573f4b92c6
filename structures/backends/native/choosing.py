"""Whether the native kernel can run a call, and whether `auto` lets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends import planned
from structures.backends.native import kernel, price
from structures.backends.native.library import Plan
from structures.backends.native.run import DTYPES, MOST, executed_flops, programs
from structures.backends.planned import measure
from structures.exporting import exporting
from structures.structure import Structure

# What the planner's programs take, times their price, and a margin, by dtype and with gradients. By figures measured
# alone on the machine, 16 structures at the shapes of the default sweep, two threads of an AMD Zen 4: forward no call
# of either dtype would be below 0.9 of the planner's at any margin from 0.9 to 1.3; with gradients in float32, of 163
# calls, none at 0.95 and one from 1 to 1.3 (Monarch of 2048 with 4 blocks: 0.88), and 17, 6 and 2 more than a tenth
# faster ones would be left to the planner at 0.9, 0.95 and 1.
OVER = {
    (torch.float32, False): 1.3,
    (torch.float32, True): 0.95,
    (torch.bfloat16, False): 1.3,
    (torch.bfloat16, True): 1.0,
}
# Python around the planner's torch operators, which its price of a forward leaves out: calls of two products of
# 32 x 32 took 26 and 29 us where 8 and 10 were predicted (AMD Zen 4, 256 and 1024 features, 1 token). That of a
# backward has its own: 84 to 97 us were predicted for dense, Kronecker, butterfly and low rank 256 x 256 at 1 token,
# which took 76 to 99.
AROUND = 15e-6
TRACED_TOKENS = 2048  # what a graph of an unknown number of tokens is decided for


def refuses(structure: Structure, x: Tensor) -> str | None:
    """The kernel runs float32 and bfloat16 on the CPU, where it can be compiled."""
    if x.dtype not in DTYPES:
        return f"it runs float32 and bfloat16, x is {str(x.dtype).removeprefix('torch.')}"
    if not x.is_cpu and not x.is_meta:
        return f"it runs on the CPU, x is on {x.device}"
    return _refusal(structure)


def preferred(structure: Structure, x: Tensor) -> bool:
    """Whether `auto` runs the kernel: it can, nobody exports or traces, and it is predicted to be fastest.

    An exported or traced model holds torch's own operations instead, so that it needs nothing of this package.
    """
    if not x.is_cpu or refuses(structure, x) is not None:
        return False
    if torch.compiler.is_compiling():
        return not exporting() and _decided(structure, x.dtype, TRACED_TOKENS, False)
    if torch._C._get_tracing_state() is not None or type(x.shape[0]) is not int:
        return False
    return _decided(structure, x.dtype, x.shape[0], torch.is_grad_enabled())


def _decided(structure: Structure, dtype: torch.dtype, tokens: int, grad: bool) -> bool:
    """Whether the kernel is predicted to be faster than the planner's program; decided once for a power of two."""
    program, threads = programs(structure).of(dtype), torch.get_num_threads()
    decided = program.decided_train if grad else program.decided
    known = decided.get((tokens, threads))
    if known is None:
        bucket = 1 << (max(tokens, 1) - 1).bit_length()
        known = decided.get((bucket, threads))
        if known is None:
            known = _faster(structure, dtype, bucket, grad)
        if len(decided) >= MOST:
            decided.clear()
        decided[bucket, threads] = decided[tokens, threads] = known
    return known


def _faster(structure: Structure, dtype: torch.dtype, tokens: int, grad: bool) -> bool:
    """Whether the kernel is predicted to be faster than the planner's program, by figures of this machine for both."""
    measure.ensure(dtype)
    other = planned.plan(structure, tokens, dtype=dtype, grad=grad)
    return faster(predicted(structure, dtype, tokens, grad), other.seconds, dtype, grad)


def faster(native: float, other: float, dtype: torch.dtype, grad: bool) -> bool:
    """Whether the kernel is taken, of its predicted seconds and those of the planner's program."""
    return native <= (other + (0.0 if grad else AROUND)) * OVER[dtype, grad]


def predicted(structure: Structure, dtype: torch.dtype, tokens: int, grad: bool) -> float:
    """Seconds of a call by the kernel, forward or with `grad` forward and backward."""
    program, threads = programs(structure).of(dtype), torch.get_num_threads()
    work = price.Work(program.lowered, price.kernel(program.library, DTYPES[dtype]), dtype.itemsize)
    backward = program.bound.plan(tokens, threads, backward=True) if grad else None
    return price.seconds(work, tokens, _way(structure, dtype, tokens, grad), backward)


def predicted_mixed(
    structure: Structure, dtype: torch.dtype, tokens: int, active: int, experts: int, own: Sequence[bool], grad: bool
) -> float:
    """Seconds of `experts.mixed` for one expert's structure; `own` as in `experts.Choices`."""
    program, threads = programs(structure).of(dtype), torch.get_num_threads()
    work = price.Work(program.lowered, price.kernel(program.library, DTYPES[dtype]), dtype.itemsize)
    hit = experts * (1 - (1 - active / experts) ** tokens)
    numbers = sum(n * (experts if o else 1) for n, o in zip(program.lowered.factor_numbers, own, strict=True))
    share = price.Share(active, hit, max(1, round(tokens * active / hit)), numbers)
    backward = program.bound.plan(share.each, 1, backward=True) if grad else None
    return price.mixed_seconds(work, tokens, share, threads, program.plan(share.each, 1, 0), backward)


def _way(structure: Structure, dtype: torch.dtype, tokens: int, grad: bool) -> Plan:
    program = programs(structure).of(dtype)
    return program.plan(tokens, torch.get_num_threads(), 0 if grad else program.keeps)


_decided._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a trace goes on with the answer


@dataclass(frozen=True)
class CallPlan:
    """How the kernel runs a call of so many tokens; print it."""

    structure: Structure
    tokens: int
    grad: bool
    way: Plan
    seconds: float  # predicted

    def flops(self, tokens: int) -> int:
        """Floating-point operations, 2 per multiply-add, without the bias."""
        return executed_flops(self.structure, tokens, train=self.grad)

    def __str__(self) -> str:
        s = self.structure
        what = "forward and backward" if self.grad else "forward"
        steps = ", ".join(str(tuple(s.numel(g) for g in (x.batch, x.rows, x.contracted, x.cols))) for x in s.steps)
        return (
            f"{s.in_features} -> {s.out_features}, {self.tokens} tokens, {what}: the native kernel, {self.way}; "
            f"predicted {self.seconds * 1e6:.3g} us\n"
            f"steps (batch, rows, contracted, cols): {steps}"
        )


def plan(
    structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, grad: bool, asked: bool
) -> CallPlan | None:
    """What the kernel runs, where it is what runs: it is asked for by name, or `auto` prefers it.

    Raises:
        ValueError: it is asked for and refuses.
    """
    x = torch.empty(0, structure.in_features, dtype=dtype, device=device)
    reason = refuses(structure, x)
    if asked and reason is not None:
        raise ValueError(f"backend 'native': {reason}")
    if reason is not None or not (asked or (x.is_cpu and _decided(structure, dtype, tokens, grad))):
        return None
    way, seconds = _way(structure, dtype, tokens, grad), predicted(structure, dtype, tokens, grad)
    return CallPlan(structure, tokens, grad, way, seconds)


def _refusal(structure: Structure) -> str | None:
    return programs(structure).refusal or kernel.reason()


_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a trace goes on with the answer
