"""Files that others may have written, read with care: a pipe, a huge or a deep one never hurts who reads it.

The one reader of the library and of the bench; it knows nothing, torch least of all.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

MOST_BYTES = 2**24  # of a JSON: about a hundred thousand layers
MOST_DEPTH = 32  # of its lists and objects
LARGEST = 2.0**1000  # of any number: larger ones are no floats, and no machine counts so far


class BadFile(ValueError):
    """A file that cannot be used; the message names it, and the place in it: the row and the field."""


def content(file: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        BadFile: it is something else (a pipe would be waited on), or larger than that.
        OSError: it is not there or cannot be read.
    """
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadFile(f"{os.fspath(file)}: is not a regular file")
        data = handle.read(min(found.st_size, most) + 1)  # no more: as much memory is taken at once
    if len(data) > most:
        raise BadFile(f"{os.fspath(file)}: holds {max(found.st_size, len(data)):,} bytes; {most:,} are read at most")
    return data


def json_file(file: str | os.PathLike[str], most: int = MOST_BYTES) -> Any:
    """What a JSON file holds, as `content` and `json_text` read it."""
    data = content(file, most)
    if not data.strip():
        raise BadFile(f"{os.fspath(file)}: is empty")
    return json_text(data, os.fspath(file))


def json_text(text: str | bytes, where: str) -> Any:
    """What a JSON text holds, its numbers finite and its strings such as can be written again.

    Raises:
        BadFile: it is none, holds a key twice in one object, is nested deeper than 32, or holds `NaN`, `1e999`,
            `10**400` or half of a surrogate pair; the message begins with `where` and names the field.
    """
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg else ""
        raise BadFile(f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: not JSON that can be used: {error}") from None
    check(where, found)
    return found


def check(where: str, value: Any) -> None:
    """Raise BadFile where a number is not finite, a string cannot be encoded, or lists and objects are too deep."""
    left: list[tuple[Any, Any]] = [(value, None)]  # each with the keys that lead to it, innermost first
    while left:
        one, keys = left.pop()
        if isinstance(one, dict):
            inside: list[tuple[Any, Any]] = [*one.items()]
            odd = next((key for key in one if not _encodes(key)), None)
        else:
            inside = [*enumerate(one)] if isinstance(one, list) else []
            odd = one if isinstance(one, str) and not _encodes(one) else None
        if odd is not None:
            raise BadFile(f"{where}: {_at(keys)} {shown(odd)} has half of a surrogate pair, which is no text")
        if type(one) in (int, float) and not -LARGEST < one < LARGEST:
            raise BadFile(f"{where}: {_at(keys)} is {worded(one)}, must be a finite number")
        if inside and keys is not None and keys[2] >= MOST_DEPTH:
            raise BadFile(f"{where}: {_at(keys)}: lists and objects are nested deeper than {MOST_DEPTH}")
        depth = keys[2] + 1 if keys else 1
        left += [(item, (key, keys, depth)) for key, item in inside if not _sound(item)]


def printable(text: str) -> str:
    """Text on one line: white space runs become a blank, what has no glyph a replacement mark."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shown(text: str) -> str:
    """A name from a file, quoted and shortened for a message; control characters come out escaped."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def worded(value: Any) -> str:
    """A value of a file, in a few words for a message."""
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)[:40]  # null, true, 1.5, NaN, -Infinity


def _sound(value: Any) -> bool:
    """What most values of a file are: an ordinary number or text."""
    return -LARGEST < value < LARGEST if type(value) in (int, float) else isinstance(value, str) and value.isascii()


def _encodes(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _at(keys: Any) -> str:
    """`benchmarks[0]: stats: median`, of keys from the innermost on."""
    path: list[str] = []
    while keys is not None:
        key, keys, _ = keys
        path.append(f"[{key}]" if isinstance(key, int) else f": {shown(key)[1:-1]}")
    return "".join(reversed(path)).removeprefix(": ") or "it"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} stands twice in one object")
    return values
