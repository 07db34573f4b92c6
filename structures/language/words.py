"""Words as commands take them: values of options, settings, dtypes. Every command reads them here."""

from __future__ import annotations

import re


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


def dtype(text: str) -> str:
    """`fp32`, `FP32`, `f32` -> `float32`; other words as they are, in lower case."""
    short = re.fullmatch(r"(b?)(?:f|fp|float)(\d\d)", text.lower())
    return f"{short[1]}float{short[2]}" if short else text.lower()
