"""The steps of any structure on a GPU, by Triton kernels: one source for all structures.

digits     offset tables as constants;  affine: steps in them, forward and back
launches   which steps share a launch, in what form and tile, by predicted price
kernels    the Triton source;  run: launches and gradients;  operators: the same in graphs
gated      experts as segments of sorted rows;  predicted: what a call launches, to print
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
from structures.backends.experts import segments
from structures.backends.triton import gated, run
from structures.backends.triton.operators import traced
from structures.backends.triton.predicted import LaunchPlan, plan
from structures.routing import Routing, route
from structures.structure import Structure

__all__ = ["LaunchPlan", "apply", "executed_flops", "plan", "prepare", "refuses", "weighted"]

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
    if structure.gate is not None and _transformed():
        return "its operator of experts has no rule for function transforms; all_experts transforms"
    return _missing() or (_old(x.device) if x.is_cuda else None) or _refusal(structure)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features); a router is the last of `factors`."""
    if structure.gate is not None:
        return weighted(structure, x, factors[:-1], route(structure.gate, x, factors[-1]), bias)
    if torch.compiler.is_compiling():
        return traced(structure, x, factors, bias)
    if _transformed() or x.is_meta:
        return planned.apply(structure, x, factors, bias)
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return traced(structure, x, factors, bias)
    return run.eager(structure, x, factors, bias)


def weighted(
    structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """The same of a structure with a gate for a routing that is decided; `factors` without the router."""
    return segments.weighted(apply, gated.experts, structure, x, factors, routing, bias)


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Floating-point operations of a call, 2 per multiply-add, without the bias."""
    return gated.executed_flops(structure, tokens, train=train)


def prepare(structure: Structure) -> None:
    """Cut the terms of a structure with a gate into parts."""
    if structure.gate is not None:
        segments.parts(structure)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _transformed() -> bool:
    return bool(torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


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
    return next((made.refusal for made in gated.programs(structure) if made.refusal is not None), None)


for _constant in (interpreted, _missing, _old, _refusal):
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010  # a trace goes on with the answer
