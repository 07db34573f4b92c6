"""What a data set is: texts with their checksum, licence and what must be said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.files.errors import UsageError


class MissingData(UsageError):
    """A data set is not there; the message says how to get it or what its folder has to hold."""


class BadData(UsageError):
    """A data set is there and is not what it has to be: damaged, incomplete or of another format."""


@dataclass(frozen=True)
class Text:
    """Whole documents to train on and whole documents held out.

    sha256: of all documents in order, joined by two line ends, in UTF-8.
    """

    name: str
    train: list[str]
    validation: list[str]
    sha256: str
    licence: str
    note: str


def sha256(parts: Iterable[bytes]) -> str:
    """Of the parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def check(name: str, parts: Mapping[str, bytes], expected: Mapping[str, str], folder: Path) -> None:
    """Compare the decompressed parts of a data set with the checksums it is known by.

    Raises:
        BadData: a part differs.
    """
    for part, wanted in expected.items():
        found = sha256([parts[part]])
        if found != wanted:
            raise BadData(
                f"{name}: the {part} in {folder} have sha256 {found}, not {wanted}: the files are damaged or of "
                f"another version; get them anew: python -m bench data fetch {name}"
            )
