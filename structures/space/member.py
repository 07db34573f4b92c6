"""theta -> exact divisors -> Spec -> Structure and layer; the realised theta stands beside the one asked for."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from structures.language.errors import SizeError, SpecError
from structures.language.expressions import divisors, split_by_weights
from structures.linear import StructuredLinear
from structures.space.term import SEVEN, MemberTerm, check_kind, role, term
from structures.space.text import to_yaml
from structures.spec import Spec
from structures.structure import Structure

SLACK = 0.015  # of an exponent: what two digits leave open
LETTERS = ("xyrn", "uvsm", "ghqk", "abed")  # input, output, bond and shared axes of each term of a sum
SOURCE = "after Potapczynski et al. 2024, arXiv:2410.02117"
MIDDLE = "min(in_features, out_features)"


@dataclass(frozen=True)
class Member:
    """A point of the space at two widths, or a sum of several.

    Attributes:
        spec: the registry entry; at other widths its axes keep their exponents, shared axes their sizes.
        asked: exponents asked for, by kind, of each term; those realised where only sizes were given.
    """

    spec: Spec
    terms: tuple[MemberTerm, ...]
    asked: tuple[tuple[tuple[str, float], ...], ...]
    in_features: int
    out_features: int

    @cached_property
    def structure(self) -> Structure:
        return self.spec.bind(self.in_features, self.out_features)

    @property
    def realised(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Exponents by kind of each term: input axes as powers of in_features, output axes of out_features, bonds and
        shared axes of the smaller width."""
        return tuple(tuple(_powers(t, self.in_features, self.out_features).items()) for t in self.terms)

    @property
    def exact(self) -> bool:
        """Whether every exponent is the one asked for, within the slack of two digits."""
        return self.difference <= SLACK

    @property
    def difference(self) -> float:
        """The largest distance of an exponent from the one asked for."""
        pairs = zip(self.asked, self.realised, strict=True)
        return max((_distance(dict(a), dict(b)) for a, b in pairs), default=0.0)

    def yaml(self) -> str:
        """The entry as registry YAML."""
        return to_yaml(self.spec)

    def layer(self, **arguments: Any) -> StructuredLinear:
        """A `StructuredLinear` of it; arguments such as bias, dtype and device are passed on."""
        return StructuredLinear(self.spec, self.in_features, self.out_features, **arguments)

    def __str__(self) -> str:
        lines = [f"{self.spec.name}: {self.in_features} -> {self.out_features}, {' + '.join(self.spec.einsum)}"]
        for asked, realised, sizes in zip(self.asked, self.realised, self.terms, strict=True):
            wanted, found = dict(asked), dict(realised)
            lines += [
                f"  {kind:4} size {sizes.size.get(kind, 1):6}  theta {found.get(kind, 0.0):.3f}"
                + ("" if _near(wanted, found, kind) else f", asked for {wanted.get(kind, 0.0):.3f}")
                for kind in dict.fromkeys((*wanted, *found))
            ]
        return "\n".join(lines)


def member(
    theta: Sequence[float] | Mapping[str, float],
    in_features: int,
    out_features: int,
    *,
    strided: str = "",
    strict: bool = False,
    name: str | None = None,
) -> Member:
    """The member nearest to theta with axes that divide the widths exactly: nothing is padded or cut off.

    Args:
        theta: seven exponents (alpha beta gamma delta epsilon phi rho) of the two-factor space, or exponents by kind of
            axis (`structures.space.term`), for up to five factors. Input axes are powers of in_features and sum to 1
            with the shared ones, output axes likewise; bonds and shared axes are powers of the smaller width.
        strided: views (`x`, `y`, `xy`) that run over shared axes fastest.
        strict: raise where an exponent is missed by more than 0.015; otherwise that is a warning, and `exact`,
            `realised` and `difference` of the member tell.
    Raises:
        SpecError: a theta that is none. SizeError: strict, and not reachable at these widths.
    """
    powers = _read(theta)
    found = _nearest(powers, in_features, out_features, strided)
    made = _made([found], [powers], in_features, out_features, name)
    if not made.exact:
        missed = ", ".join(line.strip() for line in str(made).splitlines()[1:] if "asked for" in line)
        message = f"space: theta is not reachable at {in_features} -> {out_features}; the nearest: {missed}"
        if strict:
            raise SizeError(f"{message}; choose widths with these divisors, or strict=False for the nearest")
        warnings.warn(message, stacklevel=2)
    return made


def of_sizes(
    sizes: Mapping[str, int] | MemberTerm,
    in_features: int,
    out_features: int,
    *,
    strided: str = "",
    name: str | None = None,
) -> Member:
    """The member with these sizes by kind of axis; those that are left out are 1.

    Raises:
        SpecError: sizes that do not multiply to the widths, or a kind that is none.
    """
    found = sizes if isinstance(sizes, MemberTerm) else term(sizes, strided)
    for end, product, width in zip(("x", "y"), found.widths, (in_features, out_features), strict=True):
        if product != width:
            raise SizeError(
                f"space: the axes of {end} multiply to {product}, not to {width}: {_told(found)}; "
                f"divisors of {width}: {', '.join(map(str, divisors(width)))}"
            )
    return _made([found], [_powers(found, in_features, out_features)], in_features, out_features, name)


def add(first: Member, *others: Member, name: str | None = None) -> Member:
    """The sum of members of the same widths.

    Raises:
        SpecError: other widths, or more than four terms.
    """
    members = (first, *others)
    widths = {(m.in_features, m.out_features) for m in members}
    if len(widths) > 1:
        raise SpecError(f"space: members of a sum have the same widths, found {', '.join(map(str, sorted(widths)))}")
    terms = [t for m in members for t in m.terms]
    asked = [dict(a) for m in members for a in m.asked]
    if len(terms) > len(LETTERS):
        raise SpecError(f"space: a sum has at most {len(LETTERS)} terms, found {len(terms)}")
    return _made(terms, asked, first.in_features, first.out_features, name)


def _made(
    terms: Sequence[MemberTerm],
    asked: Sequence[Mapping[str, float]],
    in_features: int,
    out_features: int,
    name: str | None,
) -> Member:
    title = f"{' + '.join(map(_told, terms))} at {in_features} -> {out_features}"
    digest = hashlib.sha256(title.encode()).hexdigest()[:8]
    options: dict[str, object] = {}
    sizes: dict[str, str] = {}
    einsum = [_written(t, number, len(terms) > 1, options, sizes) for number, t in enumerate(terms)]
    spec = Spec(name or f"member_{digest}", tuple(einsum), sizes, options, title=title, source=SOURCE)  # type: ignore[arg-type]
    made = Member(spec, tuple(terms), tuple(tuple(a.items()) for a in asked), in_features, out_features)
    _check(made)
    return made


def _written(found: MemberTerm, number: int, several: bool, options: dict[str, object], sizes: dict[str, str]) -> str:
    """The einsum of a term; its options and size expressions are added to the others'."""
    letters = dict(zip("xyrn", LETTERS[number], strict=True))
    suffix = f"_{number + 1}" if several else ""
    names = {kind: letters[role(kind)] + kind.strip("xy") for kind in found.size}
    shared = [k for k in found.size if role(k) == "n"]
    for kind in shared:
        options[f"blocks{suffix}" if len(shared) == 1 else f"blocks_{kind.strip('xy')}{suffix}"] = found.size[kind]
        sizes[names[kind]] = list(options)[-1]
    divided = "".join(f" / {names[kind]}" for kind in shared)
    for end, word, width in (("x", "inputs", "in_features"), ("y", "outputs", "out_features")):
        kinds = [k for k in found.view(end) if k not in shared]
        if len(kinds) < 2:
            continue  # found by division
        rest = math.prod(found.size[k] for k in kinds)
        options[f"{word}{suffix}"] = tuple(round(math.log(found.size[k]) / math.log(rest), 6) for k in kinds)
        sizes[" ".join(names[k] for k in kinds)] = f"split({width}{divided}, {word}{suffix})"
    bonds = [k for k in found.size if role(k) == "r"]
    if bonds:
        least = min(found.widths)
        options[f"bonds{suffix}"] = tuple(round(math.log(found.size[k]) / math.log(least), 6) for k in bonds)
    for position, kind in enumerate(bonds):
        sizes[names[kind]] = f"round({MIDDLE} ** bonds{suffix}[{position}])"
    factors = [" ".join(names[k] for k in _in_order(found, f)) for f in found.factors]
    views = [f"({' '.join(names[k] for k in found.view(end))})" for end in "xy"]
    return f"{views[0]}, {', '.join(factors)} -> {views[1]}"


def _in_order(found: MemberTerm, factor: str) -> list[str]:
    """The axes of a factor: shared, input, bonds, output."""
    return sorted((k for k in found.size if factor in k), key=lambda k: ("nxry".index(role(k)), -len(k), k))


def _check(made: Member) -> None:
    """The exponents of the Spec, rounded to six digits, give back the sizes."""
    bound = made.structure
    wanted = sorted(size for t in made.terms for size in t.size.values())
    assert sorted(size for size in bound.size.values() if size > 1) == wanted, (made.spec, bound.size, wanted)
    assert bound.params == sum(t.params for t in made.terms)


def _read(theta: Sequence[float] | Mapping[str, float]) -> dict[str, float]:
    if isinstance(theta, Mapping):
        powers = {kind: value for kind, value in theta.items() if _is_power(kind, value) and value}
    else:
        values = list(theta)
        if len(values) != len(SEVEN):
            raise SpecError(
                f"space: theta has seven exponents (alpha beta gamma delta epsilon phi rho), or is a mapping by kind "
                f"such as {{'x1': 0.5, 'x12': 0.5, ...}}; found {len(values)} numbers"
            )
        powers = {kind: value for kind, value in zip(SEVEN, values, strict=True) if _is_power(kind, value) and value}
    for end, word in (("x", "input"), ("y", "output")):
        total = sum(value for kind, value in powers.items() if end in kind)
        if abs(total - 1) > SLACK and not any(role(kind) == "n" for kind in powers):
            raise SpecError(f"space: the exponents of the {word}'s axes sum to 1, found {total:.3g}")
    return powers


def _is_power(kind: str, value: object) -> bool:
    check_kind(kind)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SpecError(f"space: the exponent of {kind} is a number from 0 to 1, found {value!r}")
    return True


def _nearest(powers: Mapping[str, float], in_features: int, out_features: int, strided: str) -> MemberTerm:
    """Exact divisors nearest to the exponents: shared axes first, then each view, then bonds."""
    least, common = min(in_features, out_features), math.gcd(in_features, out_features)
    sizes: dict[str, int] = {}
    for kind, value in powers.items():
        if role(kind) == "n":
            target = value * math.log(least)
            allowed = divisors(common // math.prod(sizes.values()))
            sizes[kind] = min(allowed, key=lambda d: (abs(math.log(d) - target), d))
    blocks = math.prod(sizes.values())
    for end, width in (("x", in_features), ("y", out_features)):
        own = {k: v for k, v in powers.items() if end in k and role(k) != "n"}
        total = sum(own.values())
        if own:
            found = split_by_weights(width // blocks, tuple(v / total for v in own.values()))
            sizes |= dict(zip(own, found, strict=True))
        elif width != blocks:
            raise SpecError(f"space: no axis of {'input' if end == 'x' else 'output'} takes the {width // blocks} "
                            f"features of a block")  # fmt: skip
    for kind, value in powers.items():
        if role(kind) == "r":
            sizes[kind] = round(least**value)
    return term(sizes, strided)


def _powers(found: MemberTerm, in_features: int, out_features: int) -> dict[str, float]:
    least = min(in_features, out_features)
    base = {"x": in_features, "y": out_features, "r": least, "n": least}
    return {kind: math.log(size) / math.log(base[role(kind)]) for kind, size in found.sizes}


def _distance(asked: Mapping[str, float], found: Mapping[str, float]) -> float:
    return max((abs(asked.get(k, 0.0) - found.get(k, 0.0)) for k in {*asked, *found}), default=0.0)


def _near(asked: Mapping[str, float], found: Mapping[str, float], kind: str) -> bool:
    return abs(asked.get(kind, 0.0) - found.get(kind, 0.0)) <= SLACK


def _told(found: MemberTerm) -> str:
    strided = f" strided {found.strided}" if found.strided else ""
    return " ".join(f"{kind}={size}" for kind, size in found.sizes) + strided
