"""Errors of commands and of the sweep: one sentence that names the option, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """An option has a value that is not allowed; the message says what is."""


def one_of(option: str, word: str, allowed: Iterable[str], further: str = "") -> str:
    """`word` if it is allowed.

    Raises:
        UsageError: with the nearest of the allowed words, and all of them.
    """
    words = list(allowed)
    if word in words:
        return word
    close = get_close_matches(word, words, n=1)
    near = f"; did you mean {close[0]!r}?" if close else "."
    hint = f", {further}" if further else ""
    raise UsageError(f"{option}: {word!r} is not known{near} Allowed: {', '.join(words)}{hint}")
