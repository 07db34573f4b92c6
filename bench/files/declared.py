"""Rows of results files, declared: a dataclass whose annotations say how each field is read and what it must be.

`read` makes one from an object of a file. A field with a default may be absent; `| None` may be null; `Key` names
another key. Complaints name the file, the row, the field and its value, as `Fields` makes them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.files.fields import Fields
from bench.files.vocabulary import CLOCKS, DEVICES, DTYPES, MODES

Read = Callable[[Fields, str], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """How a field is read and checked."""

    read: Read


@dataclass(frozen=True)
class Key:
    """The key in the file, where it is not the field's name."""

    name: str


def within(low: float, high: float) -> Reader:
    """A number between two."""
    return Reader(lambda fields, key: fields.within(key, low, high))


def choice(*allowed: str) -> Reader:
    """One of some words."""
    return Reader(lambda fields, key: fields.choice(key, allowed))


Name = Annotated[str, Reader(Fields.name)]
Words = Annotated[str, Reader(Fields.words)]
Names = Annotated[tuple[str, ...], Reader(Fields.names)]
Flag = Annotated[bool, Reader(Fields.flag)]
Count = Annotated[int, Reader(Fields.count)]
Number = Annotated[float, Reader(Fields.number)]
FromZero = Annotated[float, within(0, 1e30)]
Share = Annotated[float, within(0, 1)]
Object = Annotated[Mapping[str, Any], Reader(Fields.object)]
Error = Annotated[Any, Reader(Fields.error)]
Budget = Annotated[Union[str, None], Reader(Fields.budget)]  # noqa: UP007  # null stands for itself
Dtype = Annotated[str, choice(*DTYPES)]
Device = Annotated[str, choice(*DEVICES)]
Mode = Annotated[str, choice(*MODES)]
Clock = Annotated[str, choice(*CLOCKS)]


def read(kind: type[T], found: Fields, **known: Any) -> T:
    """A row of a kind; what is `known` is not read.

    Raises:
        BadFile: a field is missing or impossible.
    """
    return kind(**known, **{name: get(found) for name, get in _getters(kind).items() if name not in known})


@cache
def _getters(kind: type[Any]) -> dict[str, Callable[[Fields], Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _getter(f.name, hints[f.name], f.default) for f in fields(kind)}


def _getter(name: str, hint: Any, default: Any) -> Callable[[Fields], Any]:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    null = type(None) in parts
    own = next(part for part in parts if part is not type(None))
    extras = getattr(own, "__metadata__", ())
    reader = next((e.read for e in extras if isinstance(e, Reader)), None) or _nested(getattr(own, "__origin__", own))
    key = next((e.name for e in extras if isinstance(e, Key)), name)

    def get(found: Fields) -> Any:
        if default is not MISSING and key not in found:
            return default
        return None if null and found.get(key) is None else reader(found, key)

    return get


def _nested(kind: Any) -> Read:
    """The reader of an object that is a row itself, with its own check where it has one."""

    def inside(found: Fields, key: str) -> Any:
        own = found.inside(key)
        made = read(kind, own)
        if hasattr(made, "check"):
            made.check(own)
        return made

    return inside
