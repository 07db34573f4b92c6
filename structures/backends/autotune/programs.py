"""What is offered for a shape: the planner's programs, each found again by a digest, and the plain backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

import torch
from torch import Tensor

from structures.backends import bmm, einsum
from structures.backends.autotune.record import Key, Timing
from structures.backends.planned import choose, emit, function, rates
from structures.backends.planned.program import Plan
from structures.structure import Structure

FEW = 5  # of the planner's programs, cheapest first; beyond them the cheapest of a kind not among these
DEEP = 64  # programs among which a kept choice is looked for
PLAIN = {"einsum": einsum, "bmm": bmm}  # their names stand for digests

Run = Callable[[Tensor, Sequence[Tensor], Tensor | None], Tensor]  # x, factors, bias -> y


def offered(structure: Structure, key: Key) -> list[Timing]:
    """The planner's first few different programs, the first of every other kind, and the plain backends; not timed."""
    found: dict[str, Timing] = {}
    kinds: set[tuple[bool, bool]] = set()
    for plan in _plans(structure, key, torch.get_num_threads()):
        kind = plan.native, plan.chunk > 0
        if len(found) >= FEW and kind in kinds:
            continue
        digest = _digest(plan)
        if digest not in found:
            kinds.add(kind)
            found[digest] = Timing(_summary(plan), digest, plan.seconds)
    return [*found.values(), *(Timing(f"backend {name}", name) for name in PLAIN)]


def run_of(structure: Structure, key: Key, digest: str) -> Run:
    """What runs a program.

    Raises:
        LookupError: the planner offers no such program.
    """
    if digest in PLAIN:
        backend = PLAIN[digest]
        return lambda x, factors, bias: backend.apply(structure, x, factors, bias)
    program, want = program_of(structure, key, digest), key.want
    return lambda x, factors, bias: program.run(want, x, factors, bias)


@lru_cache(maxsize=1024)
def program_of(structure: Structure, key: Key, digest: str) -> function.Program:
    """The planner's program of that digest, with the functions that run it.

    Raises:
        LookupError: the planner offers no such program.
    """
    for plan in _plans(structure, key, torch.get_num_threads()):
        if _digest(plan) == digest:
            return function.Program(plan)
    raise LookupError(f"{structure.name}: the planner offers no program {digest} for this shape")


def forget() -> None:
    """Plan anew from now on."""
    _plans.cache_clear()
    program_of.cache_clear()


@lru_cache(maxsize=16)
def _plans(structure: Structure, key: Key, threads: int) -> list[Plan]:
    """The planner's programs for a key, cheapest first."""
    setting = function.setting(key.dtype, key.device, not key.no_bias, key.want)
    measured = rates.of(setting.dtype, threads, setting.device)
    return choose.candidates(structure, 1 << key.bits, setting, measured)[:DEEP]


def _digest(plan: Plan) -> str:
    """The emitted source, shortened: what tells programs apart, in every process."""
    sources = [emit.forward_source(plan, pure=plan.native)]
    if plan.backward:
        sources.append(emit.backward_source(plan, pure=False))
    text = "\n".join([str(plan.native), *(source.text for source in sources), *map(str, sources[0].tables)])
    return sha256(text.encode()).hexdigest()[:16]


def _summary(plan: Plan) -> str:
    words = [type(op).__name__.lower() for op in plan.forward]
    back = [type(op).__name__.lower() for op in plan.backward]
    chunk = f", {plan.chunk} tokens at a time" if plan.chunk else ""
    ending = ", gradients by autograd" if plan.native else f"; backward {' '.join(back)}" if back else ""
    return " ".join(words) + chunk + ending
