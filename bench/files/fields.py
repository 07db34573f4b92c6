"""The fields of a results file, taken one by one and checked: every complaint names the file, the row and the field."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from structures import reading
from structures.reading import BadFile, printable, worded

LARGEST = 1e30  # beside which nothing that is measured or counted is large
MOST_BYTES = 2**28


class Fields:
    """One object of a results file, and where it stands."""

    def __init__(self, where: str, values: Any):
        if not isinstance(values, dict):
            raise BadFile(f"{where} is {worded(values)}, must be an object")
        self.where = where
        self.values: Mapping[str, Any] = values

    def __contains__(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def bad(self, key: str, must: str) -> BadFile:
        """The complaint about a field, to be raised."""
        return BadFile(f"{self.where}: {key} is {worded(self.values.get(key))}, must be {must}")

    def get(self, key: str) -> Any:
        """The value as it stands; a missing key is an error, null is not."""
        if key not in self.values:
            raise BadFile(f"{self.where}: {key} is missing")
        return self.values[key]

    def inside(self, key: str) -> "Fields":
        """The object under a key."""
        return Fields(f"{self.where}: {key}", self.get(key))

    def each(self, key: str) -> list["Fields"]:
        """The objects of the list under a key."""
        values = self.get(key)
        if not isinstance(values, list):
            raise self.bad(key, "a list")
        return [Fields(f"{self.where}: {key}[{i}]", value) for i, value in enumerate(values)]

    def name(self, key: str) -> str:
        """A text that identifies something: printable, on one line."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.bad(key, "a name: text on one line, without control characters")
        return value

    def words(self, key: str) -> str:
        """Free text, brought to one printable line."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.bad(key, "text")
        return printable(value)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of the allowed words."""
        value = self.get(key)
        if value not in allowed:
            raise self.bad(key, f"one of {', '.join(allowed)}")
        return str(value)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def count(self, key: str) -> int:
        """A whole number from 1."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value < 2**63:
            raise self.bad(key, "a whole number from 1")
        return value

    def number(self, key: str) -> float:
        """A positive finite number: everything measured or counted here is one."""
        value = self.get(key)
        if not positive(value):
            raise self.bad(key, "a positive number")
        return float(value)

    def within(self, key: str, low: float, high: float) -> float:
        """A finite number between two, both included."""
        value = self.get(key)
        if not finite(value) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def object(self, key: str) -> dict[str, Any]:
        """An object taken as it is."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return value

    def values_of(self, key: str, kinds: tuple[type, ...], count: int | None = None) -> list[Any]:
        """A list of values of some types, of so many where `count` is given."""
        values = self.get(key)
        good = isinstance(values, list) and all(type(v) in kinds for v in values)
        if not good or count not in (None, len(values)):
            raise self.bad(key, f"a list of {count or 'any number'} of {' or '.join(kind.__name__ for kind in kinds)}")
        return values

    def pairs(self, key: str) -> list[tuple[float, float]]:
        """A list of two positive numbers each."""
        values = self.get(key)
        good = isinstance(values, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in values)
        if not good or not all(positive(number) for pair in values for number in pair):
            raise self.bad(key, "a list of pairs of positive numbers")
        return [(float(a), float(b)) for a, b in values]

    def names(self, key: str) -> tuple[str, ...]:
        """A list of printable words."""
        values = self.get(key)
        if not isinstance(values, list) or not all(isinstance(v, str) and v.isprintable() for v in values):
            raise self.bad(key, "a list of names")
        return tuple(values)

    def error(self, key: str) -> Any:
        """null, a relative error, or an object of them."""
        value = self.values.get(key)
        parts = list(value.values()) if isinstance(value, dict) else [value]
        if not all(part is None or (finite(part) and part >= 0) for part in parts):
            raise self.bad(key, "null, a number from 0, or an object of them")
        return value

    def budget(self, key: str) -> str | None:
        """`params=0.25` or `flops=0.5`, the share written in its shortest form; None for options of the user's own."""
        value = self.get(key)
        if value is None:
            return None
        match = re.fullmatch(r"(params|flops)=([0-9]*\.?[0-9]+)", value) if isinstance(value, str) else None
        if not match or not float(match[2]):
            raise self.bad(key, "null, params=SHARE or flops=SHARE")
        return f"{match[1]}={float(match[2]):g}"


def finite(value: Any) -> bool:
    """Whether a value is a number, no truth value, of a size that all arithmetic here bears."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def positive(value: Any) -> bool:
    """Whether a value of a results file is a positive finite number of sensible size."""
    return finite(value) and value > 1 / LARGEST


def load(path: Path) -> Any:
    """The JSON value in a file, as `reading.json_file` gives it; a larger one is read than of the library's own.

    Raises:
        BadFile: it is missing, no regular file, too large or empty, or not JSON that can be used.
    """
    try:
        return reading.json_file(path, MOST_BYTES)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from None


def contents(path: Path) -> bytes:
    """The bytes of a file, as `reading.content` gives them.

    Raises:
        BadFile: it is no regular file, too large, or cannot be read.
    """
    try:
        return reading.content(path, MOST_BYTES)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from None
