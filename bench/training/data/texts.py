"""Texts as whole documents, split by document: every 20th is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.training.data.records import BadData, Text, check, sha256

EVERY = 20  # of so many documents one, the last, is held out
SUFFIXES = (".txt", ".text", ".md")
JOIN = "\n\n"


def folder(name: str, place: Path, *, expected: Mapping[str, str] = {}, licence: str, note: str) -> Text:
    """Every text file in a folder and its subfolders, in the order of their paths; each is a document.

    Args:
        expected: checksum of the joined `documents`; empty for a user's own.
    """
    files = [file for file in _files(place) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise BadData(f"{name}: {place} has no text files ({', '.join(SUFFIXES)}){_held(place)}")
    documents = [text for file in files if (text := _read(name, file)).strip()]
    check(name, {"documents": JOIN.join(documents).encode()}, expected, place)
    return split(name, documents, licence=licence, note=note, where=str(place))


def own_split(name: str, place: Path, *, licence: str, note: str) -> Text:
    """A corpus that comes split, by suffix: `*.train` and `*.dev`, in the folder or its subfolders."""
    files = _files(place)
    train = [_read(name, file) for file in files if file.suffix == ".train"]
    held_out = [_read(name, file) for file in files if file.suffix == ".dev"]
    if not train or not held_out:
        lacking = " and ".join(s for s, f in (("*.train", train), ("*.dev", held_out)) if not f)
        raise BadData(
            f"{name}: {place} has no {lacking}{_held(place)}; "
            f"to split any folder of .txt files by document, name it folder:{place}"
        )
    return Text(name, train, held_out, sha256([JOIN.join(train + held_out).encode()]), licence, note)


def python_topics(name: str, place: Path, *, licence: str, note: str) -> Text:
    """The topics of Python's own help, which come with the interpreter."""
    from pydoc_data.topics import topics

    documents = [topics[topic] for topic in sorted(topics)]
    return split(name, documents, licence=licence, note=note, where="pydoc_data")


def split(name: str, documents: Sequence[str], *, licence: str, note: str, where: str) -> Text:
    """Every 20th document held out; of fewer than 20, the last.

    Raises:
        BadData: fewer than two documents.
    """
    if len(documents) < 2:
        raise BadData(
            f"{name}: {where} has {len(documents)} document{'' if len(documents) == 1 else 's'} with text; "
            "whole documents are held out, so at least two files are needed: cut the text into files"
        )
    every = min(EVERY, len(documents))
    train = [text for i, text in enumerate(documents) if i % every != every - 1]
    held_out = [text for i, text in enumerate(documents) if i % every == every - 1]
    return Text(name, train, held_out, sha256([JOIN.join(documents).encode()]), licence, note)


def _files(place: Path) -> list[Path]:
    found = [file for file in place.rglob("*") if file.is_file()]
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(place).parts))


def _read(name: str, file: Path) -> str:
    try:
        return file.read_bytes().decode()  # line ends as they are: the checksum is of the file
    except UnicodeDecodeError as error:
        raise BadData(f"{name}: {file} is not UTF-8: {error.reason} at byte {error.start}") from None


def _held(place: Path) -> str:
    names = [str(file.relative_to(place)) for file in _files(place)[:4]]
    return f"; it holds {', '.join(names)}, ..." if names else "; it is empty"
