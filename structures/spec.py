"""One registry entry: checked when it is made, bound to widths when it is used."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from structures.binding import bind, check_option
from structures.checks import check
from structures.errors import SizeError, SpecError
from structures.expressions import WIDTHS
from structures.notation import Pattern, parse_term
from structures.structure import Structure

__all__ = ["SizeError", "Spec", "SpecError"]

MAX_WIDTH = 2**24


@dataclass(frozen=True)
class Spec:
    """A structured linear map of any width: its einsum terms, the sizes of their axes and the options behind them.

    Mappings and lists may be passed for the tuples; they are normalised and checked.

    Args:
        einsum: one term or several, which are summed: `input view, factor, ... -> output view`.
        sizes: expression for each axis (or for several at once, `"a b"`, from a list); earlier names may be used.
        options: what a user sets, with defaults: integers, floats, lists of numbers, or an expression of the widths.
        index: axes of the input view that are read through an integer expression of other axes.
        gate: makes an axis that no view holds an expert axis: `{"axis": name, "experts_active": expression}`, and
            optionally "jitter" and "capacity" (`structures.structure.Gate`).
        init: the source's own initialisation: `{"uniform" or "normal": expression, "source": text}`.
        file: where the entry stands, with `marks` giving line and column of each part, and whether it stands in one
            line, so that columns can be counted on.
    Raises:
        SpecError: anything that no width could make right.
    """

    name: str
    einsum: tuple[str, ...]
    sizes: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    index: tuple[tuple[str, str], ...] = ()
    init: tuple[tuple[str, str], ...] = ()
    gate: tuple[tuple[str, str], ...] = ()
    title: str = ""
    source: str = ""
    file: str = field(default="", compare=False, repr=False)
    marks: tuple[tuple[tuple[str, ...], tuple[int, int, bool]], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.einsum, str | list | tuple):
            raise SpecError(
                f"a Spec has a name and an einsum, text or a list of it; found {self.name!r}, {self.einsum!r}"
            )
        normal = {
            "einsum": (self.einsum,) if isinstance(self.einsum, str) else tuple(self.einsum),
            "sizes": _pairs(self.sizes, str),
            "options": tuple((k, _freeze(v)) for k, v in _pairs(self.options, lambda v: v)),
            "index": _pairs(self.index, str),
            "init": _pairs(self.init, str),
            "gate": _pairs(self.gate, str),
        }
        for key, value in normal.items():
            object.__setattr__(self, key, value)
        check(self)

    def __hash__(self) -> int:
        return hash((self.name, self.einsum, self.sizes))

    def bind(self, in_features: int, out_features: int, **options: object) -> Structure:
        """The Structure of these widths.

        Args:
            in_features, out_features: widths, 1 to 2**24.
            options: values for some of the entry's options; the others keep their defaults.
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
        return bind(self, widths[0], widths[1], given)

    def where(self, *path: str) -> str:
        """`file:line:column` of a part of the entry, or of the nearest part around it; empty without a file."""
        marks = dict(self.marks)
        while path not in marks and path:
            path = path[:-1]
        if not self.file:
            return ""
        line, column, _ = marks.get(path, (0, 0, False))
        return f"{self.file}:{line}:{column}" if line else self.file

    def error(self, message: str, *path: str, offset: int = 0, kind: type[SpecError] = SpecError) -> SpecError:
        """The error to raise about the part at `path`, with its place in front."""
        place = self.where(*path)
        line, column, in_one_line = dict(self.marks).get(path, (0, 0, False))
        if place and offset and in_one_line:
            place = f"{self.file}:{line}:{column + offset}"
        return kind(f"{place}: {self.name}: {message}" if place else f"{self.name}: {message}")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The parsed terms."""
        return tuple(parse_term(text) for text in self.einsum)

    @property
    def axis_sizes(self) -> dict[str, str]:
        """The size expression of each sized name, `"a b"` taken apart."""
        return {name: text for names, text in self.sizes for name in names.split()}


def _pairs(value, convert) -> tuple:  # type: ignore[no-untyped-def,type-arg]
    items = value.items() if isinstance(value, Mapping) else value or ()
    return tuple((str(k), convert(v)) for k, v in items)


def _freeze(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
