"""Whether tensors are still what they were when a copy of them was made, as far as PyTorch counts changes.

In-place operations, optimizers and `load_state_dict` count a tensor's version up; `.to()`, `assign=True` and
`.data = ...` bring another storage. What PyTorch does not count is not seen: writing in place through `.data`, through
NumPy, DLPack or a pointer, from another process into shared memory, by a collective of torch.distributed such as
`broadcast`; FSDP gathers parameters into the same tensors before each call, without counting.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_functorch_active = torch._C._are_functorch_transforms_active


@dataclass(frozen=True)
class Versions:
    """The state of some tensors: each one, which may go meanwhile, an alias of its storage, and its version.

    The alias keeps the storage from being freed, so that no other one can have its address meanwhile.
    """

    seen: tuple[tuple[weakref.ref[Tensor], Tensor, int], ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Versions:
        """The state of `tensors` now; `unwatchable` must have found nothing against them."""
        with torch.no_grad(), torch.inference_mode(False):
            return cls(tuple((weakref.ref(tensor), tensor.detach(), tensor._version) for tensor in tensors))

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        """Whether `tensors` are the same ones, unchanged, in the same storage, shape and order."""
        if len(tensors) != len(self.seen):
            return False
        for tensor, (seen, alias, version) in zip(tensors, self.seen, strict=True):
            if tensor is not seen() or tensor._version != version:
                return False
            if tensor.dtype is not alias.dtype or tensor.device != alias.device or not tensor.is_set_to(alias):
                return False
        return True


def unwatchable(tensors: Sequence[Tensor]) -> str | None:
    """Why changes of these tensors cannot be seen, as a sentence; None where they can."""
    if _functorch_active():
        return "inside a function transform parameters have no storage to watch"
    for tensor in tensors:
        if type(tensor) not in (torch.nn.Parameter, Tensor):
            return f"changes of a {type(tensor).__name__} cannot be seen"
        if tensor.is_inference():
            return "changes of tensors made under torch.inference_mode are not counted; make the layer outside it"
    return None
