"""How a structure runs. A backend is a module with

    refuses(structure, x) -> str | None                    why it cannot run this, as a sentence
    apply(structure, x, factors, bias) -> y                x: (tokens, in_features), y: (tokens, out_features)
    executed_flops(structure, tokens, train) -> int        what it really computes, 2 per multiply-add

`choose` is the one place that selects. A backend named by the user never falls back to another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from structures.backends import bmm, einsum
from structures.expressions import nearest
from structures.structure import Structure

_BACKENDS: dict[str, ModuleType] = {"einsum": einsum, "bmm": bmm}
AUTO = "auto"
PREFERENCE = ("bmm", "einsum")  # what `auto` tries, in this order


def names() -> tuple[str, ...]:
    """The names of all backends; `auto` chooses among them."""
    return tuple(_BACKENDS)


def register(name: str, backend: ModuleType) -> None:
    """Add a backend; the contract tests then cover it."""
    if name == AUTO or name in _BACKENDS:
        raise ValueError(f"there is a backend {name!r} already")
    _BACKENDS[name] = backend


def check_name(name: str) -> None:
    """Raises ValueError unless `name` is a backend or `auto`."""
    if name != AUTO and name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}{nearest(name, [AUTO, *_BACKENDS])}")


def get(name: str) -> ModuleType:
    """The backend called `name`."""
    check_name(name)
    return _BACKENDS[name]


def choose(name: str, structure: Structure, x: Tensor) -> str:
    """The backend that runs: the one asked for, or for `auto` the first of PREFERENCE that does not refuse.

    Raises:
        ValueError: the backend asked for refuses; its reason is the message.
    """
    if name == AUTO:
        return next(n for n in PREFERENCE if _BACKENDS[n].refuses(structure, x) is None)
    reason = _BACKENDS[name].refuses(structure, x)
    if reason is not None:
        raise ValueError(f"backend {name!r}: {reason}")
    return name


def apply(name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y (tokens, out_features) = W x + bias by the backend called `name`, which must not refuse."""
    return _BACKENDS[name].apply(structure, x, factors, bias)
