"""How a structure runs. A backend is a module with

    refuses(structure, x) -> str | None                    why it cannot run this, as a sentence
    apply(structure, x, factors, bias) -> y                x: (tokens, in_features), y: (tokens, out_features)
    executed_flops(structure, tokens, train) -> int        what it really computes, 2 per multiply-add
    prepare(structure) -> None                             optional: what can be worked out when a layer is made
    release(factors) -> None                               optional: free what is kept of these factors
    GATED = True                                           optional: it runs structures with a gate, and no others;
                                                           `native` names one of each kind, `triton` runs both

Structures of several links (`;`) are cut into stages that have none: a backend is only ever given those.

For a structure with a gate the router is the last of `factors`; `weighted` of such a backend takes a routing instead.

`choose` is the one place that selects. A backend named by the user never falls back to another one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from structures.backends import bmm, einsum, kept, native, planned, stages, triton
from structures.backends.experts import ExpertsPlan as ExpertsPlan
from structures.backends.experts import all_experts, grouped, kernel, preferred
from structures.backends.experts import plan as plan_experts
from structures.backends.views import whole
from structures.exporting import exporting
from structures.language.expressions import nearest
from structures.routing import Routing, route
from structures.structure import Structure


class Backend(Protocol):
    """What a backend's module holds."""

    def refuses(self, structure: Structure, x: Tensor) -> str | None: ...

    def apply(self, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor: ...

    def executed_flops(self, structure: Structure, tokens: int = 1, *, train: bool = False) -> int: ...


Plan = planned.Plan | native.CallPlan | triton.LaunchPlan | ExpertsPlan
Weighted = Callable[[Structure, Tensor, Sequence[Tensor], Routing, Tensor | None], Tensor]

_BACKENDS: dict[str, Backend] = {"einsum": einsum, "bmm": bmm, "planned": planned, "native": native, "triton": triton}
# with a gate
_EXPERTS: dict[str, Backend] = {"native": kernel, "triton": triton, "all_experts": all_experts, "grouped": grouped}
AUTO = "auto"
OTHERWISE = ("planned", "einsum")  # what `auto` tries, in this order, where the native kernel is not preferred
EXPORTED = ("bmm", "einsum")  # the same in an export, whose file is to hold the factors and no matrix made of them
REMOVED = {  # names of former versions, and what to use now
    "autotune": "no measurement showed a gain; 'auto' runs the fastest program that is predicted",
    "dense_cache": "structures.to_linear(layer) gives the dense layer",
}


def names() -> tuple[str, ...]:
    """The names of all backends; `auto` chooses among them."""
    return tuple({**_BACKENDS, **_EXPERTS})


def register(name: str, backend: Backend) -> None:
    """Add a backend; the contract tests then cover it."""
    if name == AUTO or name in names():
        raise ValueError(f"there is a backend {name!r} already")
    (_EXPERTS if getattr(backend, "GATED", False) else _BACKENDS)[name] = backend


def check_name(name: str) -> None:
    """Raises ValueError unless `name` is a backend or `auto`."""
    if name in REMOVED:
        raise ValueError(f"backend {name!r} was removed: {REMOVED[name]}")
    if name != AUTO and name not in _BACKENDS and name not in _EXPERTS:
        raise ValueError(f"unknown backend {name!r}{nearest(name, [AUTO, *names()])}")


def get(name: str) -> Backend:
    """The backend called `name`; it runs chains too, stage by stage."""
    check_name(name)
    return _ByName(name)


class _ByName:
    """A backend by its name, for structures with links and without."""

    def __init__(self, name: str):
        self.name = name

    def refuses(self, structure: Structure, x: Tensor) -> str | None:
        for stage in stages.every(structure):
            reason = _module(_runs(self.name, stage, structure), stage).refuses(stage, x)
            if reason is not None:
                return reason
        return None

    def apply(self, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        return apply(self.name, structure, x, factors, bias)

    def executed_flops(self, structure: Structure, tokens: int = 1, *, train: bool = False, **more: Any) -> int:
        """As the backend's own; `more` is passed on."""
        if structure.plain:
            own: Any = _module(self.name, structure)
            return int(own.executed_flops(structure, tokens, train=train, **more))
        count = 0
        for one in itertools.chain.from_iterable(stages.stages(structure)):
            stage = one.structure
            gated = {} if stage.gate is None else more
            name = _runs(self.name, stage, structure)
            module: Any = _module(name, stage)
            count += module.executed_flops(stage, tokens, train=train, **gated)
            if train and name != "planned":  # a constant has no gradient; a plan may have merged it with others
                fixed = {i for i, f in enumerate(one.factors) if f >= structure.trainable}
                count -= 2 * tokens * sum(stage.active(step.axes) for step in stage.steps if step.factor in fixed)
            # each gated stage has counted a router of its own width; there is one, of the whole's
            count -= 2 * tokens * math.prod(stage.router_shape) * (3 if train else 1)
        return count + 2 * tokens * math.prod(structure.router_shape) * (3 if train else 1)


def _runs(name: str, stage: Structure, structure: Structure) -> str:
    """What runs a stage: the backend asked for, but the planner where only other stages hold experts and it cannot."""
    return "planned" if structure.gate is not None and stage.gate is None and name not in _BACKENDS else name


def _module(name: str, structure: Structure) -> Backend:
    """The backend called `name` that is for this structure, or the one that says why it is not."""
    own, other = (_BACKENDS, _EXPERTS) if structure.gate is None else (_EXPERTS, _BACKENDS)
    return own[name] if name in own else other[name]


def choose(name: str, structure: Structure, x: Tensor) -> str:
    """The backend that runs: the one asked for, or for `auto` the one predicted to be fastest that does not refuse.

    Raises:
        ValueError: the backend asked for refuses; its reason is the message.
    """
    if name == AUTO and structure.gate is None and _native_preferred(structure, x):
        return "native"
    reason = None
    automatic = (EXPORTED if exporting() else OTHERWISE) if structure.gate is None else preferred(_gated(structure), x)
    for candidate in automatic if name == AUTO else (name,):
        reason = refusal(candidate, structure, x)
        if reason is None:
            return candidate
    raise ValueError(f"backend {name!r}: {reason}")


def _native_preferred(structure: Structure, x: Tensor) -> bool:
    if structure.plain:
        return native.preferred(structure, x)
    for stage in stages.every(structure):  # a loop, as torch.compile does not follow a generator into all()
        if not native.preferred(stage, x):
            return False
    return True


def _gated(structure: Structure) -> Structure:
    """The structure, or of a chain the first stage that holds experts."""
    if structure.plain:
        return structure
    return next(stage for stage in stages.every(structure) if stage.gate is not None)


def refusal(name: str, structure: Structure, x: Tensor) -> str | None:
    """Why a backend cannot run this, as a sentence; None where it can."""
    if name not in _BACKENDS:
        check_name(name)
    if structure.gate is not None and name not in _EXPERTS:
        able = ", ".join(_EXPERTS)
        return f"{structure.name} has a gate, and W is each token's own; backends that run experts: {able}"
    return get(name).refuses(structure, x) if not structure.plain else _module(name, structure).refuses(structure, x)


def prepare(structure: Structure) -> None:
    """Let every backend work out what it can before the first call: a compiler's trace then finds plain constants."""
    for stage in stages.every(structure):
        for backend in (_BACKENDS if stage.gate is None else _EXPERTS).values():
            getattr(backend, "prepare", lambda structure: None)(stage)


def release(factors: Sequence[Tensor]) -> None:
    """Free the copies of these factors that are kept between calls, and let every backend free what else it keeps."""
    kept.release(factors)
    for backend in (*_BACKENDS.values(), *_EXPERTS.values()):
        getattr(backend, "release", lambda factors: None)(factors)


def plan(name: str, structure: Structure, tokens: int, *, bias: bool, **where: Any) -> Plan | stages.StagePlans:
    """What the backend called `name` runs for so many tokens, with its predicted cost; print it.

    Args:
        where: dtype, device (its type) and grad, of the call.
    Raises:
        ValueError: a kernel or an execution of experts is asked for by name and refuses.
    """
    every = stages.every(structure)
    if name == AUTO and structure.gate is None:
        preferred = [native.plan(stage, tokens, asked=False, **where) for stage in every]
        found = [each for each in preferred if each is not None]
        if len(found) == len(every):  # as `_native_preferred` has it, all or none
            return found[0] if len(found) == 1 else stages.StagePlans(structure.name, tuple(found))
        name = "planned"
    plans = []
    for number, chain in enumerate(stages.stages(structure)):
        for stage in chain:  # a padded one adds the bias to what it has cut off, a sum in its first chain
            own = bias and structure.asked is None and not number and stage is chain[-1]
            runs = _runs(name, stage.structure, structure)
            plans.append(_plan(runs, stage.structure, tokens, bias=own, **where))
    return plans[0] if len(plans) == 1 else stages.StagePlans(structure.name, tuple(plans))


def _plan(name: str, stage: Structure, tokens: int, *, bias: bool, **where: Any) -> Plan:
    if name == "triton":
        return triton.plan(stage, tokens, **where)
    if stage.gate is not None:
        x = torch.empty(0, stage.in_features, dtype=where["dtype"])
        reason = None if name == AUTO else refusal(name, stage, x)
        if reason is not None:
            raise ValueError(f"backend {name!r}: {reason}")
        return plan_experts(stage, tokens, asked=None if name == AUTO else name, **where)
    if name == "native":
        found = native.plan(stage, tokens, asked=True, **where)
        assert found is not None  # asked for by name, it says why not
        return found
    return planned.plan(stage, tokens, bias=bias, **where)


def weighted(
    name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], routing: Routing, bias: Tensor | None
) -> Tensor:
    """y of a structure with a gate by the backend called `name`, for a routing that is decided."""
    own: Weighted = getattr(_EXPERTS[name], "weighted")  # noqa: B009
    if structure.plain:
        return _given(own(structure, x, factors, routing, bias))
    plain = _BACKENDS.get(name, planned)

    def run(stage: Structure, z: Tensor, held: Sequence[Tensor], b: Tensor | None) -> Tensor:
        return plain.apply(stage, z, held, b) if stage.gate is None else own(stage, z, held, routing, b)

    return _given(stages.run(structure, x, factors, bias, run))


def plain(name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """y (..., out_features) of a call with nothing to choose or to check, the native kernel's; None for others."""
    if name != AUTO and name != "native":
        return None
    if not structure.plain:
        only = stages.alone(structure)
        if only is None or torch.is_grad_enabled():
            return None
        structure, factors = only.structure, only.held(factors)
    return native.plain(structure, x, factors, bias, asked=name != AUTO)


def apply(name: str, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """y (tokens, out_features) = W x + bias by the backend called `name`, which must not refuse."""
    if structure.plain:
        return _given(_module(name, structure).apply(structure, x, factors, bias))
    if structure.gate is not None:
        return weighted(name, structure, x, factors[:-1], route(structure.gate, x, factors[-1]), bias)
    return _given(stages.run(structure, x, factors, bias, _BACKENDS[name].apply))


def _given(y: Tensor) -> Tensor:
    """Never a view where gradients are off: it could not be changed in place once they are on again."""
    return y if torch.is_grad_enabled() or torch.compiler.is_compiling() else whole(y)
