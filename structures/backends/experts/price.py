"""Which of the executions is faster: the predicted times of their products, and of what surrounds these.

Products are priced by whoever runs them, from figures of this machine: the planner those of all experts and of grouped
tokens, the native kernel its own (`native.price`). For numbers that are moved and for Python's calls there are figures
here, fits to 96 measured points: three entries, widths 256 to 2048, 4 to 16 experts of which 2 are active, 1 to 1024
tokens, forward and with all gradients, random routers; 2 cores of a Sapphire Rapids class machine, torch 2.13. Not
measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends import native, planned
from structures.backends.experts import all_experts, grouped, kernel
from structures.backends.experts.parts import Part
from structures.backends.planned import measure
from structures.structure import Structure

HOW = {
    "native": "tokens sorted by expert inside the native kernel",
    "grouped": "tokens grouped by expert, by the planner's programs",
    "all_experts": "all experts for every token, by the planner's programs",
}


@dataclass(frozen=True)
class ExpertsPlan:
    """How a call of so many tokens runs that have experts to choose; print it."""

    structure: Structure
    tokens: int
    grad: bool
    runs: str  # the execution
    seconds: tuple[
        tuple[str, float], ...
    ]  # predicted of each, for a router that spreads the tokens, without the router

    def __str__(self) -> str:
        s, gate = self.structure, self.structure.gate
        assert gate is not None
        what = "forward and backward" if self.grad else "forward"
        predicted = ", ".join(f"{name} {seconds * 1e6:.3g} us" for name, seconds in self.seconds)
        return (
            f"{s.in_features} -> {s.out_features}, {self.tokens} tokens, {gate.active} of {gate.experts} experts each, "
            f"{what}: {self.runs}, {HOW.get(self.runs, 'a backend of your own')}\n"
            f"predicted for tokens spread evenly, without the router: {predicted}"
        )


@dataclass(frozen=True)
class Figures:
    """Of one dtype class, forward or with gradients, where numbers moved are those of the forward alone."""

    moved: float  # numbers a second, all experts side by side
    gathered: float  # numbers a second, to the experts and back
    call: float  # seconds for each expert that is run for itself
    all_experts: float  # seconds of all other calls
    grouped: float


SINGLE = Figures(8.3e9, 5.0e9, 28e-6, 102e-6, 129e-6)
SINGLE_TRAIN = Figures(4.3e9, 3.4e9, 110e-6, 373e-6, 396e-6)
HALF = Figures(7.0e9, 5.0e9, 73e-6, 207e-6, 179e-6)
HALF_TRAIN = Figures(4.5e9, 2.5e9, 248e-6, 728e-6, 539e-6)


def preferred(structure: Structure, x: Tensor) -> tuple[str, ...]:
    """What `auto` tries for a structure with a gate, in this order."""
    if torch.compiler.is_compiling() or type(x.shape[0]) is not int or grouped.refuses(structure, x) is not None:
        return ("all_experts", "grouped")
    return order(structure, x.shape[0], x.dtype, x.device.type, torch.is_grad_enabled())


def order(structure: Structure, tokens: int, dtype: torch.dtype, device: str, train: bool) -> tuple[str, ...]:
    """The executions, the one predicted to be fastest first; decided once for a power of two."""
    bucket = 1 << (max(tokens, 1) - 1).bit_length()
    kept = structure.memo.setdefault("experts", {})
    key = (bucket, dtype, device, train, torch.get_num_threads(), native.state())
    found: tuple[str, ...] | None = kept.get(key)
    if found is None:
        predicted = seconds(structure, bucket, dtype=dtype, device=device, train=train)
        own = predicted.pop("native", None)
        others = sorted(predicted, key=predicted.__getitem__)
        first = own is not None and native.faster(own, predicted[others[0]], dtype, train)
        found = ("native", *others) if first else (*others, "native")
        kept[(*key[:-1], native.state())] = found  # which may have been opened meanwhile
    return found


def plan(
    structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, grad: bool, asked: str | None
) -> ExpertsPlan:
    """What runs for so many tokens: what is asked for, or what `auto` takes."""
    runs = asked or order(structure, tokens, dtype, device, grad)[0]
    predicted = seconds(structure, tokens, dtype=dtype, device=device, train=grad)
    return ExpertsPlan(structure, tokens, grad, runs, tuple(sorted(predicted.items(), key=lambda item: item[1])))


def seconds(
    structure: Structure, tokens: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu", train: bool
) -> dict[str, float]:
    """Predicted seconds of each execution that is possible, without the router, which all of them have."""
    if device == "cpu":
        measure.ensure(dtype)
    found = {
        "all_experts": _all_experts(structure, tokens, dtype, device, train),
        "grouped": _grouped(structure, tokens, dtype, device, train),
    }
    if kernel.refuses(structure, torch.empty(0, structure.in_features, dtype=dtype, device=device)) is None:
        found["native"] = _native(structure, tokens, dtype, train)
    return found


def _all_experts(structure: Structure, tokens: int, dtype: torch.dtype, device: str, train: bool) -> float:
    gate, f, made = structure.gate, _figures(dtype, train), all_experts.program(structure)
    assert gate is not None
    total = f.all_experts + _planned(made.rest, tokens, dtype, device, train)
    for term in made.terms:
        weighted = term.outer * gate.experts * term.inner * (4 if term.sums or term.spread else 5)
        total += sum(_planned(part, tokens, dtype, device, train) for part in (term.head, term.tail))
        total += tokens * weighted / f.moved
    return total


def _grouped(structure: Structure, tokens: int, dtype: torch.dtype, device: str, train: bool) -> float:
    gate, f, made = structure.gate, _figures(dtype, train), grouped.program(structure)
    assert gate is not None
    hit = gate.experts * (1 - (1 - gate.active / gate.experts) ** tokens)  # experts that a random router reaches
    choices, passes = tokens * gate.active, 2 if train else 1
    each = choices / gate.experts
    total = f.grouped + _planned(made.rest, tokens, dtype, device, train)
    for term in made.terms:
        held = [structure.factor_shapes[i] for i, at in term.slices if at >= 0]
        factors = sum(map(math.prod, held)) / gate.experts
        between = structure.activation_size / gate.active
        moved = choices * (3 * term.width + 2 * term.result + between) + passes * factors * hit
        alone = hit * (_planned(term.alone, choices / hit, dtype, device, train) + f.call)
        longest = min(max(1.0, each + 1.2 * math.sqrt(each)), choices)
        padded = _planned(term.together, longest, dtype, device, train) + f.call
        total += sum(_planned(part, tokens, dtype, device, train) for part in (term.head, term.tail))
        total += min(alone, padded) + moved / f.gathered
    return total


def _native(structure: Structure, tokens: int, dtype: torch.dtype, train: bool) -> float:
    gate, made = structure.gate, grouped.program(structure)
    assert gate is not None
    plain = [made.rest, *(part for term in made.terms for part in (term.head, term.tail))]
    total = sum(native.predicted(p.structure, dtype, tokens, train) for p in plain if p.structure is not None)
    for term in made.terms:
        assert term.alone.structure is not None  # it holds a factor
        own = [at >= 0 for _, at in term.slices]
        total += native.predicted_mixed(term.alone.structure, dtype, tokens, gate.active, gate.experts, own, train)
        moved = [
            structure.factor_shapes[f] for f, at in term.slices if at > 0
        ]  # to have the experts along the first axis
        total += sum(map(math.prod, moved)) * (2 if train else 1) / _figures(dtype, train).gathered
    return total


def _figures(dtype: torch.dtype, train: bool) -> Figures:
    if dtype.itemsize < 4:
        return HALF_TRAIN if train else HALF
    return SINGLE_TRAIN if train else SINGLE


def _planned(part: Part, tokens: float, dtype: torch.dtype, device: str, train: bool) -> float:
    if part.structure is None:
        return 0.0
    return planned.plan(part.structure, max(1, round(tokens)), dtype=dtype, device=device, grad=train).seconds
