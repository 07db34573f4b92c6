"""The fields of a results file, taken one by one and checked: every complaint names the file, the row and the field."""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LARGEST = 1e30  # beside which nothing that is measured or counted is large
MOST_BYTES, MOST_DEPTH = 2**28, 32


class BadResults(ValueError):
    """A results file that cannot be used; the message names the file, the row and the field."""


class Fields:
    """One object of a results file, and where it stands."""

    def __init__(self, where: str, values: Any):
        if not isinstance(values, dict):
            raise BadResults(f"{where} is {_kind(values)}, must be an object")
        self.where = where
        self.values: Mapping[str, Any] = values

    def __contains__(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def bad(self, key: str, must: str) -> BadResults:
        """The complaint about a field, to be raised."""
        return BadResults(f"{self.where}: {key} is {_value(self.values.get(key))}, must be {must}")

    def get(self, key: str) -> Any:
        """The value as it stands; a missing key is an error, null is not."""
        if key not in self.values:
            raise BadResults(f"{self.where}: {key} is missing")
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
        if (
            not isinstance(values, list)
            or not all(type(v) in kinds for v in values)
            or count not in (None, len(values))
        ):
            raise self.bad(key, f"a list of {count or 'any number'} of {' or '.join(kind.__name__ for kind in kinds)}")
        return values

    def pairs(self, key: str) -> list[tuple[float, float]]:
        """A list of two positive numbers each."""
        values = self.get(key)
        if not isinstance(values, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(positive(number) for number in pair) for pair in values
        ):
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
    """The JSON value in a file, as `read_json` gives it.

    Raises:
        BadResults: it is missing, no regular file, too large or empty, or not JSON that can be used.
    """
    content = contents(path)
    if not content.strip():
        raise BadResults(f"{path}: is empty")
    return read_json(str(path), content)


def contents(path: Path) -> bytes:
    """The bytes of a regular file of bounded size; nothing else is opened to be read, so that a pipe cannot hang.

    Raises:
        BadResults: it is something else, or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadResults(f"{path}: is not a regular file")
            if found.st_size > MOST_BYTES:
                raise BadResults(f"{path}: holds {found.st_size:,} bytes; {MOST_BYTES:,} are read at most")
            return file.read()
    except OSError as error:
        raise BadResults(f"{path}: cannot be read: {error.strerror}") from None


def read_json(where: str, content: bytes) -> Any:
    """A JSON value of bounded depth, of finite numbers and strings that can be written again.

    Raises:
        BadResults: it is none; the message says where.
    """
    try:
        value = json.loads(content, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg else ""
        raise BadResults(f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise BadResults(f"{where}: not a results file: {error}") from None
    check(where, value)
    return value


def check(where: str, value: Any) -> None:
    """Raise BadResults where a number is not finite, a string cannot be encoded, or lists and objects are too deep."""
    left: list[tuple[Any, Any]] = [(value, None)]  # each with the keys that lead to it, innermost first
    while left:
        one, keys = left.pop()
        if isinstance(one, dict):
            inside = [*one.items()]
            odd = next((key for key in one if not _encodes(key)), None)
        else:
            inside = [*enumerate(one)] if isinstance(one, list) else []
            odd = one if isinstance(one, str) and not _encodes(one) else None
        if odd is not None:
            raise BadResults(f"{where}: {_at(keys)} {shown(odd)} has half of a surrogate pair, which is no text")
        if type(one) in (int, float) and not finite(one):
            raise BadResults(f"{where}: {_at(keys)} is {_value(one)}, must be a finite number")
        if inside and keys is not None and keys[2] >= MOST_DEPTH:
            raise BadResults(f"{where}: {_at(keys)}: lists and objects are nested deeper than {MOST_DEPTH}")
        left += [(item, (key, keys, keys[2] + 1 if keys else 1)) for key, item in inside]


def _encodes(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _at(keys: Any) -> str:
    """`benchmarks[0]: stats: median`, of keys from the innermost on."""
    path: list[str] = []
    while keys is not None:
        key, keys, _ = keys
        path.append(f"[{key}]" if isinstance(key, int) else f": {shown(key)[1:-1]}")
    return "".join(reversed(path)).removeprefix(": ") or "it"


def printable(text: str) -> str:
    """Text on one line: white space runs become a blank, what has no glyph a replacement mark."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shown(text: str) -> str:
    """A name from a file, quoted and shortened for a message; control characters come out escaped."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} stands twice in one object")
    return values


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else _value(value)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, (dict, list)):
        return _kind(value)
    return json.dumps(value)[:40]  # null, true, 1.5, NaN, -Infinity
