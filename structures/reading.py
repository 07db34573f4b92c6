"""Small files that others may have written, read with care: a pipe, a huge or a deep one never hurts who reads it."""

from __future__ import annotations

import json
import os
import stat
from typing import Any, NoReturn

MAX_BYTES = 2**24  # of a JSON: about a hundred thousand layers
MAX_DEPTH = 32  # of its lists and objects
MAX_NUMBER = 2**1000  # of any number: larger ones are no floats, and no machine counts so far


class BadFile(ValueError):
    """A file that cannot be used; the message names it, and the place in it."""


def content(file: str | os.PathLike[str], largest: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        BadFile: it is something else (a pipe would be waited on), or larger than that.
        OSError: it is not there or cannot be read.
    """
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadFile(f"{os.fspath(file)}: cannot be read: not a regular file")
        data = handle.read(min(found.st_size, largest) + 1)  # no more: as much memory is taken at once
    if len(data) > largest:
        raise BadFile(f"{os.fspath(file)}: more than {largest} bytes")
    return data


def json_file(file: str | os.PathLike[str], largest: int = MAX_BYTES) -> Any:
    """What a JSON file holds, as `json_text` reads it."""
    data = content(file, largest)
    try:
        return json_text(data.decode("utf-8"), os.fspath(file))
    except UnicodeDecodeError as error:
        raise BadFile(f"{os.fspath(file)}: not JSON: {error}") from None


def json_text(text: str, where: str) -> Any:
    """What a JSON text holds, its numbers finite and its strings such as can be written again.

    Raises:
        BadFile: it is none, nested deeper than 32, or holds `NaN`, `1e999`, `10**400` or half of a surrogate pair; the
            message begins with `where` and names the field.
    """

    def constant(name: str) -> NoReturn:
        raise BadFile(f"{where}: {name} is no number that JSON knows")

    try:
        found = json.loads(text, parse_constant=constant)
    except BadFile:
        raise
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: not JSON: {str(error) or 'nested too deeply'}") from None
    left: list[tuple[str, int, Any]] = [("", 1, found)]
    while left:
        at, depth, value = left.pop()
        if depth > MAX_DEPTH:
            raise BadFile(f"{where}: {at[:80]}: nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            left += [(f"{at}.{key}" if at else str(key), depth + 1, inner) for key, inner in value.items()]
            left += [(f"a name in {at or 'it'}", depth, key) for key in value]
        elif isinstance(value, list):
            left += [(f"{at}[{i}]", depth + 1, inner) for i, inner in enumerate(value)]
        elif isinstance(value, str) and not _encodable(value):
            raise BadFile(f"{where}: {_encoded(at)}: half of a surrogate pair is no character")
        elif isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
            raise BadFile(f"{where}: {_encoded(at)}: a number beyond all bounds")
    return found


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _encoded(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")[:80]
