"""How the options of every command are read: lists of words and numbers, dtypes, shares of dense, shards."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.files.errors import UsageError, one_of
from bench.files.vocabulary import DTYPES
from structures.language import words as typed

SHARDS = 1000  # the most that a run is divided into
QUANTITIES = ("params", "flops")


def words(text: str | None) -> list[str]:
    """The words of a list, which commas or blanks separate."""
    return [word for word in re.split(r"[,\s]+", text or "") if word]


def some_of(option: str, text: str | None, allowed: Iterable[str]) -> tuple[str, ...]:
    """The words of a list, each once.

    Raises:
        UsageError: one of them is not allowed.
    """
    known = list(allowed)
    return tuple(dict.fromkeys(one_of(option, word, known) for word in words(text)))


def dtype(option: str, word: str, allowed: Sequence[str] = DTYPES, further: str = "") -> str:
    """The dtype that a word stands for: `float32`, `fp32`, `f32` or `float`, in upper or lower case.

    Raises:
        UsageError: none that is allowed.
    """
    name = typed.dtype(word)
    return one_of(option, name if name in DTYPES else word, allowed, further)


def numbers(option: str, text: str | None, most: int) -> tuple[int, ...]:
    """The whole numbers of a list, each once.

    Raises:
        UsageError: one of them is not from 1 to `most`.
    """
    for word in words(text):
        if not word.isdigit() or not 1 <= int(word) <= most:
            raise UsageError(f"{option}: {word!r} is not allowed; write whole numbers from 1 to {most}")
    return tuple(dict.fromkeys(map(int, words(text))))


def shard(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8).

    Raises:
        UsageError: it is no shard K/N with K from 1 to N.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip())
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n <= SHARDS:
        raise UsageError(f"--shard: {text!r} is no shard. Allowed: K/N with K from 1 to N and N up to {SHARDS}: 1/4")
    return k, n


def check_output(option: str, path: Path) -> None:
    """Raise UsageError where a file cannot be written to."""
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}")


# -- shares of dense


@dataclass(frozen=True)
class Budget:
    """A share of dense's parameters or FLOPs that structures are brought to."""

    quantity: str
    share: float

    def __str__(self) -> str:
        return f"{self.quantity}={self.share:g}"


def budgets(text: str) -> tuple[Budget, ...]:
    """`"params=0.5,25% flops=0.5"` -> budgets, of parameters where none is named; `none` -> no budget.

    Raises:
        UsageError: not one of the quantities, or a share that is not between 0 and 1.
    """
    found, quantity = [], QUANTITIES[0]
    for word in words(text) if text.strip().lower() != "none" else ():
        left, equals, right = word.partition("=")
        quantity = one_of("--budget", left, QUANTITIES) if equals else quantity
        value = typed.share(right if equals else left)
        if value is None or not 0 < value <= 1:
            raise UsageError(f"--budget: {word!r} is not a share of dense; write params=0.5,25%, flops=0.5 or none")
        found.append(Budget(quantity, value))
    return tuple(dict.fromkeys(found))


# -- for argparse


def share(text: str) -> float:
    """`10%` or `0.1` -> 0.1."""
    value = typed.share(text)
    if value is None or value >= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; write 10% or 0.1")
    return value


def budget(text: str) -> str:
    """`params=25%` -> `params=0.25`, as rows have it."""
    return ",".join(map(str, budgets(text)))


def shares(text: str) -> tuple[float, ...]:
    """`0.5,25%` -> (0.5, 0.25): shares above 0 and below 1."""
    found = tuple(map(share, words(text)))
    if not found or not all(0 < value < 1 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r} has a share that is not between 0 and 1; write 0.5,0.25")
    return found


def count(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"[0-9]{1,12}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """`128,256` -> (128, 256): two or more whole numbers from 1, all different."""
    found = tuple(map(count, words(text)))
    if len(set(found)) < max(2, len(found)):
        raise argparse.ArgumentTypeError(f"{text!r} names no two different numbers; write 128,256,512")
    return found
