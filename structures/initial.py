"""How fresh factors are drawn. Every scale follows from the steps; only a source's own rule is read from the entry."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from structures.language.expressions import evaluate
from structures.structure import Structure

INITS = ("linear", "spectral", "paper")


class Draw(NamedTuple):
    """Uniform on [-scale, scale], or normal with standard deviation `scale`."""

    distribution: Literal["uniform", "normal"]
    scale: float


def draws(structure: Structure, init: str) -> tuple[Draw, ...]:
    """How each factor is drawn.

    Args:
        init: "linear": the layer's output variance is that of a fresh nn.Linear, every term and every factor of a term
            taking an equal part. "spectral": normal, std = sqrt(1/fan_in) min(1, sqrt(fan_out/fan_in)) over the slice
            that applies the factor, summed terms counting as fan-in (muP; Qiu et al. 2024, arXiv:2406.06248).
            "paper": what the entry's source does, where it says so.
    Raises:
        ValueError: another name, or "paper" for an entry that gives no rule of its own.
    """
    if init not in INITS:
        raise ValueError(f"{structure.name}: init is one of {', '.join(INITS)}, found {init!r}")
    rule = {"linear": _as_linear, "spectral": _spectral, "paper": _paper}[init]
    return tuple(rule(structure, factor) for factor in range(len(structure.factors)))


def bias_bound(structure: Structure) -> float:
    """The bias is uniform on [-bound, bound], as in nn.Linear."""
    return 1 / math.sqrt(structure.in_features)


def _summed(structure: Structure) -> int:
    """Terms with factors: a sum divides the variance among them."""
    return sum(bool(term.factors) for term in structure.terms)


def _as_linear(structure: Structure, factor: int) -> Draw:
    # A term's output variance for unit input is the product over its factors of fan_in * variance; nn.Linear's is 1/3.
    # The mean of n experts, which a router of zeros gives, has an n-th of the variance of one.
    term, gate = structure.term_of(factor), structure.gate
    gated = gate is not None and any(gate.axis in structure.factors[f] for f in term.factors)
    wanted = (gate.active if gate and gated else 1) / (3 * _summed(structure))
    gain = wanted ** (1 / len(term.factors))
    fan_in, _ = structure.fan(factor)
    return Draw("uniform", math.sqrt(3 * gain / fan_in))


def _spectral(structure: Structure, factor: int) -> Draw:
    fan_in, fan_out = structure.fan(factor)
    return Draw("normal", math.sqrt(1 / (_summed(structure) * fan_in)) * min(1.0, math.sqrt(fan_out / fan_in)))


def _paper(structure: Structure, factor: int) -> Draw:
    rule = dict(structure.spec.init)
    if not rule:
        raise ValueError(f"{structure.name}: the entry gives no initialisation of its own; use 'linear' or 'spectral'")
    distribution: Literal["uniform", "normal"] = "uniform" if "uniform" in rule else "normal"
    fan_in, fan_out = structure.fan(factor)
    widths = {"in_features": structure.in_features, "out_features": structure.out_features}
    names = {**widths, **dict(structure.sizes), **dict(structure.options), "fan_in": fan_in, "fan_out": fan_out}
    return Draw(distribution, float(evaluate(rule[distribution], names, real=True)))  # type: ignore[arg-type]
