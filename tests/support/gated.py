"""Structures with a gate, the registry's and users' own, and layers of them with a router that spreads the tokens."""

from __future__ import annotations

import torch
from contract import value_and_gradients

import structures
from structures.spec import Spec

GATED = [name for name in structures.names() if structures.get(name).gate]
SMALL = {"btt_moe": {}, "low_rank_moe": {"rank": 3}, "dense_moe": {}}  # options at 48 -> 96

# Users' own: factors before, between and after the experts, a term without, a gather, an axis in one factor of several.
OWN: dict[str, dict[str, object]] = {
    "monarch_experts": {"einsum": "(k p), e k p l q, l k q s -> (s l)", "sizes": {"k": "4", "l": "4", "q": "3"}},
    "shared_ends": {"einsum": "x, x h, e h r, r q, q y -> y", "sizes": {"h": "7", "r": "3", "q": "5"}},
    "beside_dense": {"einsum": ["x, x h, e h r, e r y -> y", "x, x y -> y"], "sizes": {"h": "7", "r": "3"}},
    "two_terms": {"einsum": ["(n i), e n i o -> (n o)", "(i n), n i o, e n -> (o n)"], "sizes": {"n": "4"}},
    "gathered": {
        "einsum": "(b i), u k i r, r e o -> (u o)",
        "sizes": {"u": "4", "b": "4", "k": "2", "r": "3"},
        "index": {"b": "u ^ k"},
    },
    "gathered_first": {
        "einsum": "(b i), u k e i r, r e o -> (u o)",
        "sizes": {"u": "4", "b": "4", "k": "2", "r": "3"},
        "index": {"b": "u ^ k"},
    },
}


def own(name: str, experts: int = 5, active: int = 3, **gate: str) -> Spec:
    fields = {**OWN[name], "sizes": {**OWN[name]["sizes"], "e": str(experts)}}  # type: ignore[dict-item]
    return Spec(name=name, gate={"axis": "e", "experts_active": str(active), **gate}, **fields)  # type: ignore[arg-type]


def made(structure: str | Spec, shape: tuple[int, int] = (48, 96), *, routed: float = 1.0, **more: object):
    torch.manual_seed(0)
    more = {"dtype": torch.float64, **(SMALL.get(structure, {}) if isinstance(structure, str) else {}), **more}
    layer = structures.StructuredLinear(structure, *shape, **more)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.router.normal_(std=routed)
    return layer


def gradients(layer, x, dy):
    """[y, dx, a gradient for each parameter], by the layer's backend."""
    names = list(dict(layer.named_parameters()))
    call = torch.func.functional_call
    return value_and_gradients(
        lambda x, p: call(layer, dict(zip(names, p, strict=True)), (x,)), x, list(layer.parameters()), dy
    )
