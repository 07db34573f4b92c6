"""Options of the sweep that cannot be: one sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class Wrong(ValueError):
    """A value of an option of the sweep that is not allowed; the message says what is."""


def one_of(option: str, word: str, allowed: Iterable[str], further: str = "") -> str:
    """`word` if it is allowed.

    Raises:
        Wrong: with the nearest of the allowed words, and all of them.
    """
    words = list(allowed)
    if word in words:
        return word
    close = get_close_matches(word, words, n=1)
    near = f"; did you mean {close[0]!r}?" if close else "."
    raise Wrong(f"{option}: {word!r} is not known{near} Allowed: {', '.join(words)}{f', {further}' if further else ''}")
