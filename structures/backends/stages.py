"""Chains and constants as structures of one einsum a term, one after another: a backend never sees them.

Links that can be joined are (`structures.algebra.links`), so that most chains run as one structure, of the same
numbers under other axes. What is left apart is run link by link, the result of one the input of the next. Constants
are factors like others there, only without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from structures import constants
from structures.algebra.links import joined, link_map
from structures.structure import Structure, Term

Apply = Callable[[Structure, Tensor, Sequence[Tensor], Tensor | None], Tensor]


@dataclass(frozen=True)
class Stage:
    """A structure without chains, and which of the whole's factors it takes, in its own shapes."""

    structure: Structure
    factors: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]  # of a factor whose axes are cut; None as it is

    @staticmethod
    def of(whole: Structure, structure: Structure, factors: tuple[int, ...]) -> Stage:
        """The stage of these factors of `whole`."""
        shapes = (
            None if whole.shape(whole.factors[f]) == shape else shape
            for f, shape in zip(factors, structure.factor_shapes, strict=True)
        )
        return Stage(structure, factors, tuple(shapes))

    def held(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Its factors, of the whole's."""
        return [
            factors[f] if shape is None else factors[f].reshape(shape)
            for f, shape in zip(self.factors, self.shapes, strict=True)
        ]


Stages = tuple[tuple[Stage, ...], ...]  # chains, which are summed


@dataclass(frozen=True)
class StagePlans:
    """What a structure runs whose links cannot be joined at its sizes: one program after another; print it.

    Chains of a sum stand one after another, and adding them up is not shown. Gradients of constants are counted too.
    """

    name: str
    plans: tuple[Any, ...]

    def flops(self, tokens: int) -> int:
        """Floating-point operations, 2 per multiply-add."""
        return sum(plan.flops(tokens) for plan in self.plans)

    def __str__(self) -> str:
        programs = (f"program {number}: {plan}" for number, plan in enumerate(self.plans, 1))
        return "\n".join([f"{self.name}, {len(self.plans)} programs", *programs])


def stages(structure: Structure) -> Stages:
    """The stages of a structure; kept with it."""
    found: Stages | None = structure.memo.get("stages")
    if found is None:
        found = structure.memo["stages"] = tuple(_chains(structure))
    return found


def every(structure: Structure) -> tuple[Structure, ...]:
    """The structures of all stages; of one that needs none, itself."""
    if structure.plain:
        return (structure,)
    return tuple([stage.structure for chain in stages(structure) for stage in chain])


def alone(structure: Structure) -> Stage | None:
    """The stage that is all of a chain: of its own widths, without constants. None where there is more to do."""
    found: tuple[Stage | None] | None = structure.memo.get("alone")
    if found is None:
        chains = stages(structure)
        simple = len(chains) == 1 and len(chains[0]) == 1 and structure.asked is None and not structure.constants
        found = structure.memo["alone"] = (chains[0][0] if simple else None,)
    return found[0]


def run(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, apply: Apply) -> Tensor:
    """y (tokens, out_features) by `apply`, which runs one stage; the bias is added by the last stage of one chain."""
    total = None
    asked, after = structure.asked, bias
    if asked is not None:  # zeros in, cut off again out of what comes
        x, bias = torch.nn.functional.pad(x, (0, structure.in_features - asked[0])), None
    factors = [*factors, *constants.tensors(structure, x)]
    for number, chain in enumerate(stages(structure)):
        z = x
        for stage in chain[:-1]:
            z = apply(stage.structure, z, stage.held(factors), None)
        z = apply(chain[-1].structure, z, chain[-1].held(factors), None if number else bias)
        total = z if total is None else total + z
    assert total is not None  # a Structure has a term
    if asked is None:
        return total
    y = total[:, : asked[1]]
    return y.contiguous() if after is None else y + after


def _chains(structure: Structure) -> Iterator[tuple[Stage, ...]]:
    whole = Structure.of(joined(structure))
    if not whole.chained:
        yield (
            Stage.of(
                structure, Structure.of(replace(whole, constants=(), asked=None)), tuple(range(len(whole.factors)))
            ),
        )
        return
    single = [term for term in whole.terms if not term.links]
    if single:
        yield (_together(structure, whole, single),)
    for term in whole.terms:
        if term.links:
            yield tuple(Stage.of(structure, Structure.of(link_map(whole, link)), link.factors) for link in term.links)


def _together(structure: Structure, whole: Structure, terms: Sequence[Term]) -> Stage:
    """Terms of one einsum each, as one structure."""
    kept = tuple(f for term in terms for f in term.factors)
    number = {f: i for i, f in enumerate(kept)}
    renumbered = [
        replace(
            term,
            factors=tuple(number[f] for f in term.factors),
            steps=tuple(replace(step, factor=number[step.factor]) for step in term.steps),
        )
        for term in terms
    ]
    gate = whole.gate if whole.gate and any(whole.gate.axis in whole.factors[f] for f in kept) else None
    part = Structure.of(whole.part([whole.factors[f] for f in kept], renumbered, gate))
    return Stage.of(structure, part, kept)
