"""How a structure runs. A backend is a module with

    refuses(structure, x) -> str | None                    why it cannot run this, as a sentence
    apply(structure, x, factors, bias) -> y                x: (tokens, in_features), y: (tokens, out_features)
    executed_flops(structure, tokens, train) -> int        what it really computes, 2 per multiply-add
    prepare(structure) -> None                             optional: what can be worked out when a layer is made
    release(factors) -> None                               optional: free what is kept of these factors
    GATED = True                                           optional: it runs structures with a gate, and no others

For a structure with a gate the router is the last of `factors`; `weighted` of such a backend takes a routing instead.

`choose` is the one place that selects. A backend named by the user never falls back to another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from structures.backends import bmm, einsum, native, planned
from structures.backends.experts import all_experts, grouped, preferred
from structures.language.expressions import nearest
from structures.routing import Routing
from structures.structure import Structure


class Backend(Protocol):
    """What a backend's module holds."""

    def refuses(self, structure: Structure, x: Tensor) -> str | None: ...

    def apply(self, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor: ...

    def executed_flops(self, structure: Structure, tokens: int = 1, *, train: bool = False) -> int: ...


_BACKENDS: dict[str, Backend] = {"einsum": einsum, "bmm": bmm, "planned": planned, "native": native}
_BACKENDS |= {"all_experts": all_experts, "grouped": grouped}
AUTO = "auto"
OTHERWISE = ("planned", "einsum")  # what `auto` tries, in this order, where the native kernel is not preferred
REMOVED = {  # names of former versions, and what to use now
    "autotune": "no measurement showed a gain; 'auto' runs the fastest program that is predicted",
    "dense_cache": "structures.to_linear(layer) gives the dense layer",
}


def names() -> tuple[str, ...]:
    """The names of all backends; `auto` chooses among them."""
    return tuple(_BACKENDS)


def register(name: str, backend: Backend) -> None:
    """Add a backend; the contract tests then cover it."""
    if name == AUTO or name in _BACKENDS:
        raise ValueError(f"there is a backend {name!r} already")
    _BACKENDS[name] = backend


def check_name(name: str) -> None:
    """Raises ValueError unless `name` is a backend or `auto`."""
    if name in REMOVED:
        raise ValueError(f"backend {name!r} was removed: {REMOVED[name]}")
    if name != AUTO and name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}{nearest(name, [AUTO, *_BACKENDS])}")


def get(name: str) -> Backend:
    """The backend called `name`."""
    check_name(name)
    return _BACKENDS[name]


def choose(name: str, structure: Structure, x: Tensor) -> str:
    """The backend that runs: the one asked for, or for `auto` the one predicted to be fastest that does not refuse.

    Raises:
        ValueError: the backend asked for refuses; its reason is the message.
    """
    if name == AUTO and structure.gate is None and native.preferred(structure, x):
        return "native"
    reason = None
    automatic = OTHERWISE if structure.gate is None else preferred(structure, x)
    for candidate in automatic if name == AUTO else (name,):
        reason = refusal(candidate, structure, x)
        if reason is None:
            return candidate
    raise ValueError(f"backend {name!r}: {reason}")


def refusal(name: str, structure: Structure, x: Tensor) -> str | None:
    """Why a backend cannot run this, as a sentence; None where it can."""
    backend = get(name)
    if structure.gate is not None and not getattr(backend, "GATED", False):
        able = ", ".join(n for n, b in _BACKENDS.items() if getattr(b, "GATED", False))
        return f"{structure.name} has a gate, and W is each token's own; backends that run experts: {able}"
    return backend.refuses(structure, x)


def prepare(structure: Structure) -> None:
    """Let every backend work out what it can before the first call: a compiler's trace then finds plain constants."""
    for backend in _BACKENDS.values():
        if getattr(backend, "GATED", False) == (structure.gate is not None):
            getattr(backend, "prepare", lambda structure: None)(structure)


def release(factors: Sequence[Tensor]) -> None:
    """Let every backend free what it keeps of these factors between calls."""
    for backend in _BACKENDS.values():
        getattr(backend, "release", lambda factors: None)(factors)


def plan(
    name: str, structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, bias: bool, grad: bool
) -> planned.Plan | native.CallPlan:
    """What the backend called `name` runs for so many tokens, with its predicted cost; print it.

    Raises:
        ValueError: the native kernel is asked for by name and refuses.
    """
    if name in (AUTO, "native"):
        found = native.plan(structure, tokens, dtype=dtype, device=device, grad=grad, asked=name != AUTO)
        if found is not None:
            return found
    return planned.plan(structure, tokens, dtype=dtype, device=device, bias=bias, grad=grad)


def weighted(
    name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """y of a structure with a gate by the backend called `name`, for a routing that is decided."""
    y: Tensor = getattr(_BACKENDS[name], "weighted")(structure, x, factors, routing, bias)  # noqa: B009
    return y


def plain(name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """y (..., out_features) of a call with nothing to choose or to check, the native kernel's; None for others."""
    if name == AUTO or name == "native":
        return native.plain(structure, x, factors, bias, asked=name != AUTO)
    return None


def apply(name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y (tokens, out_features) = W x + bias by the backend called `name`, which must not refuse."""
    return _BACKENDS[name].apply(structure, x, factors, bias)
