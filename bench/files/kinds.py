"""What kind of results file a document is, and a file of rows read as far as all kinds share it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.files.fields import Fields
from bench.files.rows import Run, check_schema, parse_run
from structures.reading import BadFile, shown

# what `kind` of a file's section says; the sweep's own files have none
MINILM, COORDINATES, TRAINING, SEARCH, FEED_FORWARD, DECODER = (
    "minilm", "coordinates", "training", "search", "ff", "decoder")  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file of a kind: its run, its setup, and its rows and refusals, their fields not checked yet."""

    kind: str
    run: Run
    setup: Fields
    rows: tuple[Fields, ...]
    refused: tuple[Fields, ...]


def kind_of(document: Any) -> Any:
    """The kind that a document says it is of; None for the sweep's."""
    section = document.get("structures") if isinstance(document, dict) else None
    return section.get("kind") if isinstance(section, dict) else None


def parse(name: str, document: Any, kinds: Iterable[str]) -> File:
    """What a file of one of these kinds holds.

    Raises:
        BadFile: another kind or schema, a field that is missing or impossible, or no rows.
    """
    section = Fields(name, document).inside("structures")
    kind = section.choice("kind", tuple(kinds))
    check_schema(name, section)
    rows, refused = tuple(section.each("rows")), tuple(section.each("refused"))
    for fields in (*rows, *refused):
        fields.where += f" ({shown(fields.name('structure'))})"
    if not rows:
        raise BadFile(f"{name}: holds no rows; the run ended before the first one")
    run = parse_run(name, Fields(section.where, {**section.values, "roofline": [], "rules": {}}))
    return File(kind, run, section.inside("setup"), rows, refused)
