"""Errors of commands and of the sweep: one sentence that names the option, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """An option has a value that is not allowed; the message says what is."""


def one_of(option: str, word: str, allowed: Iterable[str], further: str = "") -> str:
    """The allowed word that `word` is, in upper or lower case.

    Raises:
        UsageError: with the nearest of the allowed words, and all of them.
    """
    words = list(allowed)
    folded = {known.lower(): known for known in words}
    if word in words or word.lower() in folded:
        return word if word in words else folded[word.lower()]
    close = get_close_matches(word.lower(), folded, n=1)
    near = f"; did you mean {folded[close[0]]!r}?" if close else "."
    hint = f", {further}" if further else ""
    raise UsageError(f"{option}: {word!r} is not known{near} Allowed: {', '.join(words)}{hint}")
