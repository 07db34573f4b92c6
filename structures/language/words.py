"""Words as commands take them: values of options, settings, dtypes. Every command reads them here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def value(text: str) -> object:
    """A whole number, a real one, true or false, or a tuple of numbers: with commas or in brackets; else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    listed = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        numbers = [int(n) if re.fullmatch(r"\s*[-+]?\d+\s*", n) else float(n) for n in listed.split(",")]
    except ValueError:
        return text
    return tuple(numbers) if "," in text or listed != text else numbers[0]


def setting(text: str) -> tuple[str, object]:
    """`name=value`, or `--name=value` with hyphens in the name.

    Raises:
        ValueError: it is not written so.
    """
    name, equals, given = text.partition("=")
    if name.startswith("--"):
        name = name[2:].replace("-", "_")
    if not equals or not name or not given:
        raise ValueError(f"a setting is written name=value, found {text!r}")
    return name, value(given)


def settings(words: Iterable[str]) -> dict[str, object]:
    """Settings apart by blanks or commas, `n_blocks=4,rank=3`; a list keeps its commas: `theta=0.5,0.25,rank=3`.

    Raises:
        ValueError: one is not written name=value.
    """
    return dict(setting(one) for word in words for one in re.split(r",(?=\s*[^\W\d][\w-]*=|--)", word))


def share(text: str) -> float | None:
    """`10%` or `0.1` -> 0.1; None of anything else."""
    match = re.fullmatch(r"(\d*\.?\d+) ?(%?)", text.strip())
    return float(match[1]) / (100 if match[2] else 1) if match else None


def close(name: str, known: Iterable[str]) -> list[str]:
    """What a word may have been meant for: all that it begins, else the nearest in spelling, if one is near."""
    folded = {word.lower(): word for word in known}
    begun = [word for small, word in folded.items() if len(name) > 1 and small.startswith(name.lower())]
    return begun or [folded[small] for small in get_close_matches(name.lower(), folded, n=1)]


ALIASES = {"float": "float32", "double": "float64", "half": "float16"}


def dtype(text: str) -> str:
    """`fp32`, `FP32`, `f32`, `float` -> `float32`; other words as they are, in lower case."""
    short = re.fullmatch(r"(b?)(?:f|fp|float)(\d\d)", text.lower())
    return f"{short[1]}float{short[2]}" if short else ALIASES.get(text.lower(), text.lower())
