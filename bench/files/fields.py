"""The fields of a results file, taken one by one and checked: every complaint names the file, the row and the field."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def object(self, key: str) -> dict[str, Any]:
        """An object taken as it is."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return value

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
        if not all(part is None or (type(part) in (int, float) and 0 <= part < math.inf) for part in parts):
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


def positive(value: Any) -> bool:
    """Whether a value of a results file is a positive finite number of sensible size."""
    return type(value) in (int, float) and 1e-30 < value < 1e30


def load(path: Path) -> Any:
    """The JSON value in a file; NaN and Infinity are let through for the checks to name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadResults(f"{path}: cannot be read: {error.strerror}") from None
    if not content.strip():
        raise BadResults(f"{path}: is empty")
    try:
        return json.loads(content, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg else ""
        raise BadResults(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise BadResults(f"{path}: not a results file: {error}") from None


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
