"""The steps of any structure without a gate on a GPU, by Triton kernels: one source for all structures.

digits     offset tables as constants;  affine: steps in them, forward and back
launches   which steps share a launch, in what form and tile, by predicted price
kernels    the Triton source;  run: launches and gradients;  operators: the same in graphs
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import planned
from structures.backends.triton import run
from structures.backends.triton.operators import traced
from structures.backends.triton.run import LaunchPlan, executed_flops, plan
from structures.structure import Structure

__all__ = ["LaunchPlan", "apply", "executed_flops", "plan", "refuses"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability: what has cp.async and bfloat16


def refuses(structure: Structure, x: Tensor) -> str | None:
    """The kernels run float32, bfloat16 and float16 on CUDA, where triton is installed; interpreted on the CPU."""
    if x.dtype not in DTYPES:
        return f"it runs float32, bfloat16 and float16, x is {str(x.dtype).removeprefix('torch.')}"
    if not x.is_cuda and not x.is_meta:
        if not interpreted():
            return f"it runs on cuda, x is on {x.device}; for tests TRITON_INTERPRET=1 runs it in Triton's interpreter"
        if x.dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 wrongly; float16 and float32 are right"
    return _missing() or (_old(x.device) if x.is_cuda else None) or _refusal(structure)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features)."""
    if torch.compiler.is_compiling():
        return traced(structure, x, factors, bias)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or x.is_meta:
        return planned.apply(structure, x, factors, bias)
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return traced(structure, x, factors, bias)
    return run.eager(structure, x, factors, bias)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: PyTorch for CUDA on Linux brings it, or pip install triton"
    return None


@lru_cache(maxsize=16)
def _old(device: torch.device) -> str | None:
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}, {name} has {found[0]}.{found[1]}"
    return None


def _refusal(structure: Structure) -> str | None:
    return run.program(structure).refusal


for _constant in (interpreted, _missing, _old, _refusal):
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010  # a trace goes on with the answer
