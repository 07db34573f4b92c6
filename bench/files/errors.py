"""Errors of commands and of the sweep: one sentence that names the option, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from structures.language.words import close


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
    meant = close(word, words)
    near = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else "."
    hint = f", {further}" if further else ""
    raise UsageError(f"{option}: {word!r} is not known{near} Allowed: {', '.join(words)}{hint}")
