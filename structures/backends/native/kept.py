"""Copies of factors in the layout that the kernel reads fastest, kept while the factors do not change.

A copy belongs to its factors: it is made anew where one of them was seen to change (`structures.backends.versions`),
and goes when one of them goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends.versions import Versions, unwatchable


@dataclass(frozen=True)
class _Copy:
    """A copy of one kind, what it was made of, and what forgets it when a factor goes."""

    buffer: Tensor
    versions: Versions
    watchers: tuple[weakref.ref[Tensor], ...]


Key = tuple[int, ...]
_copies: dict[Key, dict[int, _Copy]] = {}  # by the identities of the factors, then by kind


def keepable(factors: Sequence[Tensor]) -> bool:
    """Whether copies of these tensors may be kept: parameters, whose changes are counted."""
    return all(type(factor) is torch.nn.Parameter for factor in factors) and unwatchable(factors) is None


def copy(kind: int, factors: Sequence[Tensor], size: int, make: Callable[[Tensor], None]) -> Tensor:
    """The copy of one kind: the one kept, or a new one of `size` bytes that `make` fills."""
    key = tuple([id(factor) for factor in factors])
    held = _copies.get(key)
    found = None if held is None else held.get(kind)
    if found is not None and found.versions.hold(factors):
        return found.buffer
    if held is not None:
        held.pop(kind, None)  # freed first: two need not fit
    versions = Versions.of(factors)
    with torch.inference_mode(False):
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    make(buffer)
    watchers = tuple(weakref.ref(factor, lambda _: _copies.pop(key, None) and None) for factor in factors)
    _copies.setdefault(key, {})[kind] = _Copy(buffer, versions, watchers)
    return buffer


def release(factors: Sequence[Tensor]) -> None:
    """Forget the copies of these factors, or of some of them; the next call that wants one makes it anew."""
    these = {id(factor) for factor in factors}
    for key in [key for key in _copies if these.issuperset(key)]:
        _copies.pop(key, None)


def held_bytes(factors: Sequence[Tensor]) -> int:
    """Bytes of the copies kept of these factors."""
    held = _copies.get(tuple([id(factor) for factor in factors]), {})
    return sum(each.buffer.nbytes for each in held.values())
