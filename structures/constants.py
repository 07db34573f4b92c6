"""The constant factors of a structure as tensors: made anew for every dtype and device, and never saved."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from structures.algebra.constants import Constant, values
from structures.structure import Structure


def tensors(structure: Structure, like: Tensor) -> list[Tensor]:
    """One tensor a constant, in the dtype and on the device of `like`."""
    if not structure.constants:
        return []
    dtype, device = like.dtype, like.device
    if torch.compiler.is_compiling():
        numbered = enumerate(structure.constants)
        return [getattr(_held, _name(constant, number, dtype, device)) for number, constant in numbered]
    return [_made(constant, number, dtype, device) for number, constant in enumerate(structure.constants)]


@lru_cache(maxsize=256)
def _made(constant: Constant, number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of the constant of this number: of equal ones each its own, as a compiler takes no operand twice."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # a trace holds what was made, not its making
    try:
        with torch.inference_mode(False), torch.no_grad():  # one made under inference could not be saved for a backward
            return torch.from_numpy(values(constant).copy()).to(device=device, dtype=dtype)
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


# Constants of graphs as attributes of a module: a compiler can guard on such a place, and sees what was added later.
_held = ModuleType("structures_constants")


def _name(constant: Constant, number: int, dtype: torch.dtype, device: torch.device) -> str:
    made = _made(constant, number, dtype, device)
    name = f"constant_{id(made)}"
    setattr(_held, name, made)
    return name


# What torch.compiler.assume_constant_result does, without importing the compiler where nothing is compiled.
_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
