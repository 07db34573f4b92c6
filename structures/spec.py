"""One registry entry: checked when it is made, bound to widths when it is used."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from structures.algebra.binding import bind, build, check_option
from structures.language.checks import check
from structures.language.entry import Entry
from structures.language.errors import SizeError, SpecError
from structures.language.expressions import WIDTHS
from structures.structure import Structure

__all__ = ["SizeError", "Spec", "SpecError"]

MAX_WIDTH = 2**24
# Widths an entry is tried at when it is made: rich in divisors, so that mistakes of form show before the first use.
TRIAL_WIDTHS = ((4096, 4096), (5040, 5040), (720720, 720720), (768, 3072), (59049, 59049))


@dataclass(frozen=True)
class Spec(Entry):
    """A structured linear map of any width: its einsum terms, the sizes of their axes and the options behind them.

    Mappings and lists may be passed for the tuples; they are normalised and checked.

    Args:
        einsum: one term or several, which are summed: `input view, factor, ... -> output view`.
        sizes: expression for each axis (or for several at once, `"a b"`, from a list); earlier names may be used.
        options: what a user sets, with defaults: integers, floats, lists of numbers, or an expression of the widths.
        index: axes of the input view that are read through an integer expression of other axes.
        gate: makes an axis that no view holds an expert axis: `{"axis": name, "experts_active": expression}`, and
            optionally "jitter" and "capacity" (`structures.structure.Gate`).
        init: the source's own initialisation: `{"uniform" (its bound), "normal" (its standard deviation) or
            "spectral" (a multiple of that rule): expression, "bias": its bound, 0 for none, "source": text}`. Beside
            the entry's names an expression knows the factor's fan_in and fan_out, the factors of its term, as they are
            written, and the terms of the sum.
        pad: whether `pad=True` is the default.
        variant_of: the entry that this is a variant of.
        file: where the entry stands, with `marks` giving line and column of each part, and whether it stands in one
            line, so that columns can be counted on.
    Raises:
        SpecError: anything that no width could make right.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        _try_widths(self)

    def __hash__(self) -> int:
        return super().__hash__()

    def bind(self, in_features: int, out_features: int, **options: object) -> Structure:
        """The Structure of these widths.

        Args:
            in_features, out_features: widths, 1 to 2**24.
            options: values for some of the entry's options; the others keep their defaults. `pad=True` takes the
                widths above these at which the entry costs least (`structures.algebra.padding`); the structure's widths
                are then those, and `widths` are these.
        Raises:
            SizeError: a size that does not divide or is out of range; the message names what works.
            SpecError: an option that does not exist or is of the wrong kind.
        """
        widths = []
        for name, value in zip(WIDTHS, (in_features, out_features), strict=True):
            try:
                width = operator.index(value)
            except TypeError:
                raise SpecError(f"{self.name}: {name} is a whole number, found {value!r}") from None
            if isinstance(value, bool) or not 1 <= width <= MAX_WIDTH:
                raise SizeError(f"{self.name}: {name} is from 1 to {MAX_WIDTH}, found {value!r}")
            widths.append(width)
        given = tuple(sorted((k, check_option(self, k, v)) for k, v in options.items()))
        return Structure.of(bind(self, widths[0], widths[1], given))


def spec_of(structure: Structure) -> Spec:
    """The Spec that `structure` was bound from."""
    assert isinstance(structure.spec, Spec)  # a Structure comes from Spec.bind alone
    return structure.spec


def _try_widths(spec: Spec) -> None:
    """Binds at widths with many divisors; an error of form is raised, one of size is left to the widths in use."""
    for widths in TRIAL_WIDTHS:
        try:
            build(spec, *widths, {"pad": False})
        except SizeError:
            continue
        return
