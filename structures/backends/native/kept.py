"""Copies of factors in the layout that the kernel reads fastest, kept while the factors do not change.

A copy belongs to its factors: it is made anew when one of them was seen to change, and goes when one of them goes.
In-place operations, optimizers and load_state_dict count a tensor's version up; `.to()`, `assign=True` and
`.data = ...` bring other storages. What PyTorch does not count is not seen: writing in place through `.data`, NumPy,
DLPack or a pointer, or from another process into shared memory. After that call `release`, as `train()` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Copy:
    """A copy of one kind, and what it was made of: each factor, an alias of its storage, and its version.

    The alias keeps the storage from being freed, so that no other one can have its address meanwhile.
    """

    buffer: Tensor
    seen: tuple[tuple[weakref.ref[Tensor], Tensor, int], ...]

    def of(self, factors: Sequence[Tensor]) -> bool:
        """Whether it is a copy of these factors as they are now."""
        for factor, (seen, alias, version) in zip(factors, self.seen, strict=True):
            if seen() is not factor or factor._version != version or not factor.is_set_to(alias):
                return False
        return True


Key = tuple[int, ...]
_copies: dict[Key, dict[int, _Copy]] = {}  # by the identities of the factors, then by kind


def keepable(factors: Sequence[Tensor]) -> bool:
    """Whether changes of these tensors can be seen: parameters that PyTorch counts the versions of."""
    return all(type(factor) is torch.nn.Parameter and not factor.is_inference() for factor in factors)


def copy(kind: int, factors: Sequence[Tensor], size: int, make: Callable[[Tensor], None]) -> Tensor:
    """The copy of one kind: the one kept, or a new one of `size` bytes that `make` fills."""
    key = tuple([id(factor) for factor in factors])
    held = _copies.get(key)
    found = None if held is None else held.get(kind)
    if found is not None and found.of(factors):
        return found.buffer
    with torch.no_grad(), torch.inference_mode(False):
        if held is not None:
            held.pop(kind, None)  # freed first: two need not fit
        seen = tuple((_watched(factor, key), factor.detach(), factor._version) for factor in factors)
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    make(buffer)
    _copies.setdefault(key, {})[kind] = _Copy(buffer, seen)
    return buffer


def release(factors: Sequence[Tensor]) -> None:
    """Forget the copies of these factors; the next call that wants one makes it anew."""
    _copies.pop(tuple([id(factor) for factor in factors]), None)


def held_bytes(factors: Sequence[Tensor]) -> int:
    """Bytes of the copies kept of these factors."""
    held = _copies.get(tuple([id(factor) for factor in factors]), {})
    return sum(each.buffer.nbytes for each in held.values())


def _watched(factor: Tensor, key: Key) -> weakref.ref[Tensor]:
    return weakref.ref(factor, lambda _: _copies.pop(key, None) and None)
