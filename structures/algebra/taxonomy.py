"""Where a structure stands in the taxonomy of arXiv 2410.02117: how cost, rank and sharing grow with the width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from structures.algebra import rank
from structures.algebra.binding import bind
from structures.algebra.growth import axis_powers, free_options
from structures.algebra.map import Map, Term
from structures.algebra.steps import Axes
from structures.language.errors import SpecError

MAX_ORDERED = 5  # factors of a term whose orders of contraction are all looked at
DOUBLINGS = 10  # of the widths, for a fit
LARGEST = 2**22  # width of a fit
LEAST_POINTS = 4


@dataclass(frozen=True)
class Taxonomy:
    """Exponents of the width d, both widths growing together and the options as they are.

    Attributes:
        omega: parameter sharing: FLOPs / parameters grow as d**omega; 0 where every parameter is used once a token.
        psi: rank of W grows as d**psi; 1 is full rank up to a constant.
        nu: FLOPs a token grow as d**(1 + nu); dense has 1.
        how: "closed form", or over which widths it was fitted.
        psi_bound: psi is known from above alone.
    """

    omega: float
    psi: float
    nu: float
    how: str
    psi_bound: bool = False


def taxonomy(structure: Map) -> Taxonomy | None:
    """The exponents of a bound structure; None where neither its sizes nor its counts at other widths tell.

    Closed form where every axis is a power of the width: nu is the largest product over the steps in the best order,
    psi the least cut between input and output (reached up to a constant), the least of a
    chain's links, the largest of the terms of a sum. Otherwise
    slopes of the counts over widths of the same ratio, doubled up to ten times: a logarithmic factor then shows as
    about 0.1.
    """
    powers = axis_powers(structure)
    if powers is None or any(link.gathers for term in structure.terms for link in term.chain):
        return _fitted(structure, powers)
    psi = max(min(_cut(structure, link, powers) for link in term.chain) for term in structure.terms)
    bound = structure.chained and len(set(rank.rank_bounds(structure))) > 1  # no more than any link has, perhaps less
    return _closed(structure, powers, min(1.0, psi), bound, "closed form")


def seven_axes(theta: Sequence[float]) -> tuple[float, float, float]:
    """(omega, psi, nu) of the two-factor space at theta = (alpha, beta, gamma, delta, epsilon, phi, rho).

    Source: structures of Potapczynski et al. 2024; the rank's exponent is the least of three cuts.
    """
    a, b, g, d, e, f, r = theta
    nu = r + min(max(d + f, b + g), max(e + f, a + g))
    params = r + g + f + max(a + d, b + e)
    return 1 + nu - params, min(1.0, g + f + r + min(a, d) + min(b, e)), nu


def _closed(structure: Map, powers: Mapping[str, float], psi: float, bound: bool, how: str) -> Taxonomy:
    links = [link for term in structure.terms for link in term.chain]
    steps = max((_largest_step(structure, link, powers) for link in links), default=0.0)
    factors = max((sum(powers[a] for a in factor) for factor in structure.factors), default=0.0)
    omega, nu = steps - factors, steps - 1
    return Taxonomy(_clean(omega), _clean(psi), _clean(nu), how, bound)


def _clean(value: float) -> float:
    return round(value, 9) + 0.0


def _largest_step(structure: Map, term: Term, powers: Mapping[str, float]) -> float:
    """The power of the costliest step, in the order of contraction where it is least."""
    order = tuple(structure.factors[step.factor] for step in term.steps)
    several = itertools.permutations(order) if len(order) <= MAX_ORDERED else [order]
    return min(_cost(term, factors, powers) for factors in several)


def _cost(term: Term, factors: Sequence[Axes], powers: Mapping[str, float]) -> float:
    here, worst = set(term.loaded), 0.0
    for position, factor in enumerate(factors):
        involved = here | set(factor)
        worst = max(worst, sum(powers[axis] for axis in involved))
        here = involved & set(term.output).union(*factors[position + 1 :])
    return worst


def _cut(structure: Map, term: Term, powers: Mapping[str, float]) -> float:
    if len(term.factors) > rank.MAX_CUT_FACTORS:
        return 1.0
    return sum(powers[axis] for axis in rank.least_cut(structure, term, powers))


def _fitted(structure: Map, powers: Mapping[str, float] | None) -> Taxonomy | None:
    """Slopes over widths; where the axes' powers are known, of the rank alone."""
    points = _at_widths(structure)
    if len(points) < LEAST_POINTS:
        return None
    widths = [math.sqrt(s.in_features * s.out_features) for s in points]
    bounds = [rank.rank_bounds(s) for s in points]
    psi = min(1.0, _slope(widths, [upper for _, upper in bounds]))
    between = any(lower != upper for lower, upper in bounds)
    how = f"fitted over widths of {widths[0]:.0f} to {widths[-1]:.0f}"
    if powers is not None:
        return _closed(structure, powers, psi, between, f"closed form, its rank {how}")
    flops, params = _slope(widths, [s.flops() for s in points]), _slope(widths, [s.params for s in points])
    return Taxonomy(_clean(flops - params), _clean(psi), _clean(flops - 1), how, between)


def _at_widths(structure: Map) -> list[Map]:
    """The entry at this ratio of widths, doubled again and again, as far as it can be bound."""
    free = free_options(structure)
    given = {name: value for name, value in structure.options if name not in free}
    points = [structure]
    for _ in range(DOUBLINGS):
        widths = 2 * points[-1].widths[0], 2 * points[-1].widths[1]
        if max(widths) > LARGEST:
            break
        try:
            points.append(bind(structure.spec, *widths, tuple(sorted(given.items()))))
        except SpecError:
            break
    return points


def _slope(widths: Sequence[float], counts: Sequence[int]) -> float:
    """Least squares on logarithms."""
    x, y = [math.log(w) for w in widths], [math.log(n) for n in counts]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle) ** 2 for a in x)
