"""A term of the space at given widths: axes by the operands they stand in, and every count of it in integers.

A kind of axis is written as the operands that hold it: `x` the input, a digit for each factor, `y` the output. `x1` is
contracted in factor 1 alone, `x12` is read by both factors, `12` is a bond, `2y` comes from factor 2, and `x1y` stands
in the input, factor 1 and the output: the blocks of a block-diagonal factor.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from structures.language.errors import SpecError

SEVEN = ("x1", "x2", "x12", "1y", "2y", "12y", "12")  # alpha beta gamma delta epsilon phi rho
MOST_FACTORS = 5  # orders of contraction are all looked at

_KIND = re.compile(r"x?[1-9]*y?\Z")


@dataclass(frozen=True)
class MemberTerm:
    """Sizes by kind, those of size 1 left out.

    Args:
        strided: views (`x`, `y`, `xy`) in which shared axes are the fastest; elsewhere they are the slowest.
    """

    sizes: tuple[tuple[str, int], ...]
    strided: str = ""

    @cached_property
    def size(self) -> Mapping[str, int]:
        return dict(self.sizes)

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """The digits of the factors, ascending."""
        return tuple(sorted({c for kind in self.size for c in kind if c.isdigit()}))

    @cached_property
    def widths(self) -> tuple[int, int]:
        return self._numel(k for k in self.size if "x" in k), self._numel(k for k in self.size if "y" in k)

    @cached_property
    def params(self) -> int:
        return sum(self._numel(k for k in self.size if f in k) for f in self.factors)

    @cached_property
    def multiply_adds(self) -> int:
        """Of a token, in the cheapest order in which every step has the activation as an operand."""
        return min(self._cost(order)[0] for order in _orders(self.factors))

    @cached_property
    def between(self) -> int:
        """Numbers of a token between the steps, in that order."""
        return min(self._cost(order) for order in _orders(self.factors))[1]

    @cached_property
    def rank_bound(self) -> int:
        """The least cut between input and output."""
        cuts = []
        for chosen in itertools.product("xy", repeat=len(self.factors)):
            side = {**dict(zip(self.factors, chosen, strict=True)), "x": "x", "y": "y"}
            cuts.append(self._numel(k for k in self.size if {side[c] for c in k} == {"x", "y"}))
        return min(cuts)

    def view(self, end: str) -> tuple[str, ...]:
        """The kinds of the input (`x`) or the output (`y`), slowest first."""
        shared = [k for k in self.size if role(k) == "n"]
        # more factors first, then later ones: (gamma beta alpha) and (phi epsilon delta), as in the source
        own = sorted((k for k in self.size if end in k and k not in shared), key=lambda k: (-len(k), -int(_digits(k))))
        return (*own, *shared) if end in self.strided else (*shared, *own)

    def _cost(self, order: tuple[str, ...]) -> tuple[int, int]:
        here, cost, between = {k for k in self.size if "x" in k}, 0, 0
        for number, factor in enumerate(order):
            here |= {k for k in self.size if factor in k}
            cost += self._numel(here)
            here = {k for k in here if "y" in k or any(f in k for f in order[number + 1 :])}
            between += self._numel(here) if number < len(order) - 1 else 0
        return cost, between

    def _numel(self, kinds: Iterable[str]) -> int:
        return math.prod(self.size[k] for k in kinds)


def term(sizes: Mapping[str, int], strided: str = "") -> MemberTerm:
    """The checked term of some sizes by kind.

    Raises:
        SpecError: a kind that is none, a size that is not a whole number from 1, or too many factors.
    """
    kept = []
    for kind, size in sizes.items():
        check_kind(kind)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SpecError(f"space: the size of {kind!r} is a whole number from 1, found {size!r}")
        if size > 1:
            kept.append((kind, size))
    found = MemberTerm(tuple(sorted(kept)), strided)
    if strided not in ("", "x", "y", "xy"):
        raise SpecError(f"space: strided is '', 'x', 'y' or 'xy', found {strided!r}")
    if len(found.factors) > MOST_FACTORS:
        raise SpecError(f"space: a term has at most {MOST_FACTORS} factors, found {len(found.factors)}")
    if not found.factors or not any("x" in k for k in found.size) or not any("y" in k for k in found.size):
        raise SpecError("space: a term has an input axis, an output axis and a factor of size above 1")
    return found


def role(kind: str) -> str:
    """`x` for an axis of the input, `y` of the output, `n` of both, `r` of factors alone."""
    return {(True, False): "x", (False, True): "y", (True, True): "n", (False, False): "r"}["x" in kind, "y" in kind]


def check_kind(kind: str) -> None:
    """Refuse what is no kind of axis."""
    digits = _digits(kind) if isinstance(kind, str) and _KIND.match(kind) else ""
    held = len(kind) if digits else 0
    if held < 2 or list(digits) != sorted(set(digits)):
        raise SpecError(
            f"space: {kind!r} is no kind of axis; a kind names two or more of x (input), 1 2 3 ... (factors, "
            "ascending) and y (output), with a factor among them, such as x1, x12, 12, 2y or x1y"
        )


def _digits(kind: str) -> str:
    return kind.strip("xy")


@lru_cache(maxsize=64)
def _orders(factors: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(itertools.permutations(factors))
