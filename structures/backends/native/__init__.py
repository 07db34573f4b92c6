"""The native kernel: one C++ library that runs the steps of any structure on the CPU, or of each expert of one.

lower      steps as offset tables
build      the library compiled by the machine's own compiler;  objects: where it is kept and what may be loaded
library    the library by ctypes;  kernel: the one of this process
run        calls, and the gradients;  quick: the call with nothing to consider;  operators: the same in graphs
experts    calls in which every token has its own experts
choosing   whether `auto` runs it
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import planned
from structures.backends.native.choosing import (
    CallPlan,
    faster,
    plan,
    predicted,
    predicted_mixed,
    preferred,
    refuses,
)
from structures.backends.native.experts import Choices, mixed
from structures.backends.native.kernel import state
from structures.backends.native.operators import traced
from structures.backends.native.quick import PLAIN, plain
from structures.backends.native.run import eager, executed_flops
from structures.structure import Structure

__all__ = [
    "PLAIN", "CallPlan", "Choices", "apply", "executed_flops", "faster", "mixed", "plain", "plan", "predicted",
    "predicted_mixed", "preferred", "refuses", "state",
]  # fmt: skip


def apply(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None, *, keep: bool = True
) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features).

    Args:
        keep: copies of the factors may be kept between calls without gradients, where they pay.
    """
    if torch.compiler.is_compiling():
        return traced(structure, x, factors, bias)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or x.is_meta:
        return planned.apply(structure, x, factors, bias)
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None or type(x) not in PLAIN:
        return traced(structure, x, factors, bias)
    return eager(structure, x, factors, bias, keep=keep)
