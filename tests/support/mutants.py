"""Files that somebody edited, cut or damaged: made from good ones by a seed, and what reading them must end in."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e308, 10**40, 10**400, 2**63, float("nan"), float("inf"), "", "x", "\ud800",
    "=1+1", "a\nb\x00", "x" * 1000, [], {}, [[]], [None], [1, "a"], {"a": 1}, {"": None}, "params=0", "1/2",
)  # fmt: skip


@dataclass(frozen=True)
class FuzzedKind:
    """A kind of file: a good one, and what reads it; a mutant is read or refused by one of `allowed`, nothing else."""

    make: Callable[[], bytes]
    read: Callable[[Path], object]
    allowed: tuple[type[Exception], ...]
    lines: bool = False  # each line is JSON of its own


def mutant(content: bytes, dice: random.Random, lines: bool) -> bytes:
    """One of many: a value replaced, removed, doubled or buried, a key renamed, or bytes changed, cut or doubled."""
    if dice.random() < 0.3:
        return _bytes(content, dice)
    parts = content.splitlines() if lines else [content]
    at = dice.randrange(len(parts))
    value = json.loads(parts[at])
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        value = _edited(value, dice)
    parts[at] = json.dumps(value).encode()
    return b"\n".join(parts) + b"\n"


def fallen(kind: FuzzedKind, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """How many of so many mutants were refused; and of those that fell, the error and the seed that makes it again."""
    path, good, refused, found = folder / "mutant.json", kind.make(), 0, []
    for number in range(seed, seed + count):
        path.write_bytes(mutant(good, random.Random(number), kind.lines))
        try:
            kind.read(path)
        except kind.allowed as error:
            refused += 1
            if not str(error) or "\n" in str(error):
                found.append(f"{number}: no sentence: {error!r:.200}")
        except Exception as error:
            found.append(f"{number}: {error!r:.200}")
    return refused, found


def _edited(value: Any, dice: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value:
        return copy.deepcopy(dice.choice(ODD))
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    at = dice.choice(places)
    if isinstance(value[at], dict | list) and value[at] and dice.random() < 0.85:
        value[at] = _edited(value[at], dice)
        return value
    how = dice.randrange(6)
    if how == 0:
        del value[at]
    elif how == 1 and isinstance(value, dict):
        value[dice.choice([*places, "new", "\ud800", ""])] = value.pop(at)
    elif how == 2 and isinstance(value, list):
        value.append(copy.deepcopy(value[at]))
    elif how == 3:
        for _ in range(dice.choice((1, 40, 200))):
            value[at] = [value[at]]
    else:
        value[at] = copy.deepcopy(dice.choice(ODD))
    return value


def _bytes(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content))
    end = min(len(content), start + dice.choice((1, 1, 2, 10, 1000)))
    piece = bytes(dice.randrange(256) for _ in range(dice.choice((0, 1, 1, 3))))
    return dice.choice((content[:start], content[:start] + piece + content[end:], content[:end] + content[start:]))
