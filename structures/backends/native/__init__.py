"""The native kernel: one C++ library that runs the steps of any structure without a gate on the CPU.

lower      steps as offset tables
build      the library compiled by the machine's own compiler;  objects: where it is kept and what may be loaded
library    the library by ctypes;  kernel: the one of this process
run        calls, and the gradients;  kept: copies of factors that are kept;  operators: the same in graphs
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import planned
from structures.backends.native import kept, kernel
from structures.backends.native.operators import traced
from structures.backends.native.run import DTYPES, eager, executed_flops, programs
from structures.structure import Structure

__all__ = ["apply", "executed_flops", "refuses", "release"]

PLAIN = (Tensor, torch.nn.Parameter)  # what has its numbers where data_ptr() says

_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def refuses(structure: Structure, x: Tensor) -> str | None:
    """The kernel runs float32 and bfloat16 on the CPU, where it can be compiled."""
    if x.dtype not in DTYPES:
        return f"it runs float32 and bfloat16, x is {str(x.dtype).removeprefix('torch.')}"
    if not x.is_cpu and not x.is_meta:
        return f"it runs on the CPU, x is on {x.device}"
    return _refusal(structure)


def apply(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None, *, keep: bool = True
) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features).

    Args:
        keep: copies of the factors may be kept between calls without gradients, where they pay.
    """
    if torch.compiler.is_compiling():
        return traced(structure, x, factors, bias)
    if _functorch_active() or forward_ad._current_level >= 0 or x.is_meta:
        return planned.apply(structure, x, factors, bias)
    if _dispatch_modes() or torch._C._get_tracing_state() is not None or type(x) not in PLAIN:
        return traced(structure, x, factors, bias)
    return eager(structure, x, factors, bias, keep=keep)


def release(factors: Sequence[Tensor]) -> None:
    """Forget what is kept of these factors."""
    kept.release(factors)


def _refusal(structure: Structure) -> str | None:
    return programs(structure).refusal or kernel.reason()


_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a trace goes on with the answer
