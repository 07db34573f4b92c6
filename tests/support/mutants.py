"""Files that somebody edited, cut or damaged, made from good ones by a seed; and what goes wrong with them."""

from __future__ import annotations

import copy
import json
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD = [
    "0", "-1", "1e999", "-0.0", "1" + "0" * 400, "NaN", "Infinity", "null", "true", "[]", "{}", '""', '"\\ud800"',
    '"a"', "1.5", str(2**53), str(2**63), "[" * 800 + "]" * 800, "[" * 90000, '{"a": 1}', "[1, 2]", "~", "%", "**",
    "^ 3", "//", ";", "->", ", ", "t", "[t+1]", "[:]", "(", ")", "hadamard(x z)", "permutation.3(x z)", "min(",
    "split(in_features, 2)", "\u0000", "\ufb01", "\u0663", "in_features", "out_features", "\n", "  ", ":", "#",
    "&a", "*a", "!!python/object:os.system", "1e308", "2**28", '"=1+1"', '"a\\nb\\u0000"', "[[]]", "[null]",
    '{"": null}', '"params=0"', '"1/2"', '"' + "x" * 1000 + '"', "[" * 40 + "]" * 40,
]  # fmt: skip


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except (ValueError, RecursionError):
        return False
    return True


ODD_VALUES = [word for word in ODD if _is_json(word)]


@dataclass(frozen=True)
class Kind:
    """A kind of file: good ones, what is done with a changed one in a folder, and the errors that are right."""

    files: list[bytes]
    use: Callable[[bytes, int, Path], None]  # what a mutant is, of which file, and an empty folder
    right: tuple[type[Exception], ...]


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: of bytes, of words, of lines, and of the values of what is JSON, whole or line by line."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice((_bytes, _words, _words, _values, _values, _values, _lines, _cut))(data, rng)
    return data


def _values(data: bytes, rng: random.Random) -> bytes:
    """A value becomes an odd one, goes, is doubled or buried, or its key another; where nothing is JSON, a word."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    for before, part, after in (([], data, []), (lines[:at], lines[at], lines[at + 1 :])):
        try:
            changed = json.dumps(_changed(json.loads(part), rng)).encode()
        except (ValueError, RecursionError):
            continue
        return b"\n".join([*before, changed, *after])
    return _words(data, rng)


def _changed(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value:
        return json.loads(rng.choice(ODD_VALUES))
    places = list(value if isinstance(value, dict) else range(len(value)))
    at = rng.choice(places)
    how = 5 if isinstance(value[at], dict | list) and rng.random() < 0.85 else rng.randrange(6)
    if how == 0:
        del value[at]
    elif how == 1 and isinstance(value, dict):
        value[rng.choice([*places, "new", "\ud800", ""])] = value.pop(at)
    elif how == 2 and isinstance(value, list):
        value.append(copy.deepcopy(value[at]))
    elif how == 3:
        for _ in range(rng.choice((1, 40, 200))):
            value[at] = [value[at]]
    else:
        value[at] = _changed(value[at] if how == 5 else None, rng)
    return value


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _words(data: bytes, rng: random.Random) -> bytes:
    """A word, number or sign becomes an odd one, another one of the file, or goes."""
    found = list(re.finditer(rb"[A-Za-z_]+|-?[0-9.]+(?:e-?[0-9]+)?|[^\sA-Za-z0-9]", data[: 2**16]))
    if not found:
        return data
    at, other = rng.choice(found), rng.choice(found)
    new = rng.choice((rng.choice(ODD).encode(), other.group(), b"", at.group() * 2))
    return data[: at.start()] + new + data[at.end() :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines[one], lines[two] = lines[two], lines[one]
    else:
        lines.insert(one, lines[two])
    return b"\n".join(lines)


def _cut(data: bytes, rng: random.Random) -> bytes:
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:low], data[:low] + data[high:], data[:low] + data[low:high] * 2 + data[high:]))


def faults(kind: Kind, rng: random.Random) -> Iterator[str | None]:
    """For each mutant None, or what went wrong: an error of none of these kinds, or none that is told in one line."""
    while True:
        number = rng.randrange(len(kind.files))
        data = mutant(kind.files[number], rng)
        with tempfile.TemporaryDirectory() as folder:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    kind.use(data, number, Path(folder))
            except kind.right as error:
                told = str(error).strip()
                yield None if told and "\n" not in told else f"not one line: {error!r:.400} of file {number}"
            except Exception:
                yield f"{traceback.format_exc(limit=-4)}of file {number}: {data[:4000]!r}"
            else:
                yield None
