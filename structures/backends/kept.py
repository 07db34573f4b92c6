"""Copies of factors in the layout that a kernel reads fastest, kept while the factors do not change.

A copy belongs to its factors: it is made anew where one of them was seen to change (`structures.backends.versions`),
and goes when one of them goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
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


# by the identity of the first factor, then by the kind and the identities of all: who releases a layer's factors
# names the copies of any of them, though a call of one stage of a chain is given some alone
_copies: dict[int, dict[Hashable, _Copy]] = {}


def keepable(factors: Sequence[Tensor]) -> bool:
    """Whether copies of these tensors may be kept: parameters, whose changes are counted."""
    return all(type(factor) is torch.nn.Parameter for factor in factors) and unwatchable(factors) is None


def copy(kind: Hashable, factors: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
    """The copy of one kind: the one kept, or a new one."""
    first, key = id(factors[0]), (kind, *[id(factor) for factor in factors])
    held = _copies.get(first)
    found = None if held is None else held.get(key)
    if found is not None and found.versions.hold(factors):
        return found.buffer
    if held is not None:
        held.pop(key, None)  # freed first: two need not fit
    versions = Versions.of(factors)
    with torch.inference_mode(False), torch.no_grad():
        buffer = make()
    watchers = tuple(weakref.ref(factor, lambda _: _copies.pop(first, None) and None) for factor in factors)
    _copies.setdefault(first, {})[key] = _Copy(buffer, versions, watchers)
    return buffer


def release(factors: Sequence[Tensor]) -> None:
    """Forget the copies of these factors; the next call that wants one makes it anew."""
    for factor in factors:
        _copies.pop(id(factor), None)


def held_bytes(factors: Sequence[Tensor]) -> int:
    """Bytes of the copies kept of these factors."""
    return sum(each.buffer.nbytes for factor in factors for each in _copies.get(id(factor), {}).values())
