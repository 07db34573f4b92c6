"""A registry entry as it is written: its fields, and where each stands in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from structures.language.errors import SpecError
from structures.language.notation import Pattern, parse_chain

PAD = "pad"  # what every entry takes beside its own options: widths that do not fit are padded


@dataclass(frozen=True)
class Entry:
    """The fields of an entry, normalised and not yet checked."""

    name: str
    einsum: tuple[str, ...]
    sizes: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    index: tuple[tuple[str, str], ...] = ()
    init: tuple[tuple[str, str], ...] = ()
    gate: tuple[tuple[str, str], ...] = ()
    title: str = ""
    source: str = ""
    pad: bool = False  # whether it is padded where nothing else is said
    variant_of: str = ""  # the entry that it is a variant of: then it is left out of the default sweep
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

    def __hash__(self) -> int:
        return hash((self.name, self.einsum, self.sizes))

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
    def chains(self) -> tuple[tuple[Pattern, ...], ...]:
        """The parsed terms, each as its links: one where there is no `;`."""
        return tuple(parse_chain(text) for text in self.einsum)

    @property
    def links(self) -> tuple[tuple[str, Pattern], ...]:
        """All links of all terms, each with the number of its term, as `error` takes it."""
        return tuple((str(number), link) for number, chain in enumerate(self.chains) for link in chain)

    @property
    def axis_sizes(self) -> dict[str, str]:
        """The size expression of each sized name, `"a b"` taken apart."""
        return {name: text for names, text in self.sizes for name in names.split()}


def _pairs(value, convert) -> tuple:  # type: ignore[no-untyped-def,type-arg]
    items = value.items() if isinstance(value, Mapping) else value or ()
    return tuple((str(k), convert(v)) for k, v in items)


def _freeze(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
