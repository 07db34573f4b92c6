"""How fresh factors are drawn. Every scale follows from the steps; only a source's own rule is read from the entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structures.algebra.identity import identity
from structures.algebra.steps import chained
from structures.language.expressions import WIDTHS, evaluate
from structures.structure import Structure

INITS = ("linear", "spectral", "paper", "zero", "identity")


class Draw(NamedTuple):
    """Uniform on [-scale, scale], or normal with standard deviation `scale`, 0 for zeros; or these `values`."""

    distribution: Literal["uniform", "normal"]
    scale: float
    values: NDArray[np.float32] | None = None

    @torch.no_grad()
    def fill(self, tensor: Tensor) -> None:
        """Draw all of `tensor` anew, in place."""
        if self.values is not None:
            tensor.copy_(torch.from_numpy(self.values))
        elif not self.scale:
            tensor.zero_()
        elif self.distribution == "uniform":
            tensor.uniform_(-self.scale, self.scale)
        else:
            tensor.normal_(0, self.scale)


ZERO = Draw("normal", 0.0)


def draws(structure: Structure, init: str) -> tuple[Draw, ...]:
    """How each factor is drawn.

    Args:
        init: "linear": the terms with factors have together the output variance of a fresh nn.Linear, every term and
            every factor of a term taking an equal part. A term without factors (`x -> x`) has none that is drawn and
            comes on top: with a variance of 1 for unit input it is above nn.Linear's 1/3 alone.
            "spectral": normal, std = sqrt(1/fan_in) min(1, sqrt(fan_out/fan_in)) over the slice that applies the
            factor, summed terms counting as fan-in (muP; Qiu et al. 2024, arXiv:2406.06248).
            "paper": what the entry's source does, where it says so, the factors applied as they are written.
            "zero": as "linear", but the last factor of every term is zero, and so is the bias: a residual branch then
            starts as nothing, and every factor but the last waits for one step.
            "identity": zeros and ones with which one term is the identity, the others being as with "zero"; no bias.
    Raises:
        ValueError: another name, "paper" for an entry that gives no rule of its own, or "identity" where no factors of
            zeros and ones were found for it.
    """
    if init not in INITS:
        raise ValueError(f"{structure.name}: init is one of {', '.join(INITS)}, found {init!r}")
    if init == "identity":
        return _identity(structure)
    rule = {"linear": _as_linear, "spectral": _spectral, "paper": _paper, "zero": _zero_last}[init]
    return tuple(rule(structure, factor) for factor in range(structure.trainable))


def bias_draw(structure: Structure, init: str) -> Draw:
    """How the bias is drawn: uniform within 1 / sqrt(in_features), as in nn.Linear, unless the source says otherwise.

    Args:
        init: as in `draws`.
    """
    if init in ("zero", "identity"):
        return ZERO
    rule = dict(structure.spec.init).get("bias") if init == "paper" else None
    return Draw("uniform", 1 / math.sqrt(structure.widths[0]) if rule is None else _value(structure, rule, {}))


def _summed(structure: Structure) -> int:
    """Terms with factors: a sum divides the variance among them."""
    return sum(any(f < structure.trainable for f in term.factors) for term in structure.terms)


def _as_linear(structure: Structure, factor: int) -> Draw:
    # A term's output variance for unit input is the product over its factors of fan_in * variance; nn.Linear's is 1/3.
    # The mean of n experts, which a router of zeros gives, has an n-th of the variance of one.
    term, gate = structure.term_of(factor), structure.gate
    gated = gate is not None and any(gate.axis in structure.factors[f] for f in term.factors)
    wanted = (gate.active if gate and gated else 1) / (3 * _summed(structure))
    wanted *= structure.in_features / structure.widths[0]  # the zeros that fill a padded input bring nothing
    gain = wanted ** (1 / sum(f < structure.trainable for f in term.factors))  # constants keep the variance
    fan_in, _ = structure.fan(factor)
    return Draw("uniform", math.sqrt(3 * gain / fan_in))


def _spectral(structure: Structure, factor: int) -> Draw:
    return Draw("normal", _spectral_std(structure, *structure.fan(factor)))


def _spectral_std(structure: Structure, fan_in: int, fan_out: int) -> float:
    return math.sqrt(1 / (_summed(structure) * fan_in)) * min(1.0, math.sqrt(fan_out / fan_in))


def _zero_last(structure: Structure, factor: int) -> Draw:
    last = max(f for f in structure.term_of(factor).factors if f < structure.trainable)
    return ZERO if factor == last else _as_linear(structure, factor)


def _identity(structure: Structure) -> tuple[Draw, ...]:
    found = identity(structure)
    if found is None:
        raise ValueError(
            f"{structure.name}: no factors of zeros and ones make the identity of {structure.in_features} -> "
            f"{structure.out_features} with these options; structures.project(torch.eye({structure.out_features}, "
            f"{structure.in_features}), ...) gives the nearest factors, and says how near"
        )
    one = {factor: Draw("normal", 1.0, values) for factor, values in found.items()}
    return tuple(one.get(factor) or _zero_last(structure, factor) for factor in range(len(structure.factors)))


def _paper(structure: Structure, factor: int) -> Draw:
    rule = dict(structure.spec.init)
    kind = next((kind for kind in ("uniform", "normal", "spectral") if kind in rule), None)
    if kind is None:
        raise ValueError(f"{structure.name}: the entry gives no initialisation of its own; use 'linear' or 'spectral'")
    fan_in, fan_out = _written_fan(structure, factor)
    factors = sum(f < structure.trainable for f in structure.term_of(factor).factors)
    known = {"fan_in": fan_in, "fan_out": fan_out, "terms": len(structure.terms), "factors": factors}
    scale = _value(structure, rule[kind], known)
    if kind == "spectral":
        return Draw("normal", scale * _spectral_std(structure, fan_in, fan_out))
    return Draw("uniform" if kind == "uniform" else "normal", scale)


def _value(structure: Structure, text: str, known: Mapping[str, int]) -> float:
    widths = dict(zip(WIDTHS, structure.widths, strict=True))
    names = {**widths, **dict(structure.sizes), **dict(structure.options), **known}
    return float(evaluate(text, names, real=True))  # type: ignore[arg-type]


def _written_fan(structure: Structure, factor: int) -> tuple[int, int]:
    """(fan_in, fan_out) of a factor where a term's factors are applied as they are written, as their sources do.

    The cheapest order, which `Structure.fan` is of, changes with the widths; a source's does not.
    """
    term = next(link for link in structure.term_of(factor).chain if factor in link.factors)
    gate = structure.gate
    held = {f: structure.factors[f] for f in term.factors}
    steps = chained(term.loaded, term.factors, held, term.output, gate.axis if gate else None)
    step = next(step for step in steps if step.factor == factor)
    counted = ([a for a in axes if gate is None or a != gate.axis] for axes in (step.contracted, step.cols))
    fan_in, fan_out = (structure.numel(tuple(axes)) for axes in counted)
    return fan_in, fan_out
