"""The journal of a run: a line of JSON for all that a point brought, on the disk before the next point starts.

It stands beside the results file, as `results.json.journal`. The first line, the header, says what the run is: a run
that goes on with it must be the same. Whatever kills a run, at most the point under way is lost; a line that was cut
off is dropped. Nothing here imports torch.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bench.files.atomic import sync_folder
from bench.files.errors import Wrong
from bench.files.fields import shown

SUFFIX = ".journal"
SCHEMA = 1


class JournalFailed(OSError):
    """A line could not be written; the journal ends with the line before it."""


class Journal:
    """An open journal; one process at a time has it."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self._file = path, file

    def add(self, entries: Sequence[Any]) -> None:
        """Append entries as one line; it is on the disk when this returns.

        Raises:
            JournalFailed: it cannot be written, the disk is full for example.
        """
        line = json.dumps(entries, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(start)
            raise JournalFailed(error.errno, error.strerror, str(self.path)) from None

    def remove(self) -> None:
        """Delete it: the results file holds everything now."""
        with suppress(OSError):
            self.path.unlink()
            sync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Let go of it; the file stays."""
        self._file.close()


def of(output: Path) -> Path:
    """Where the journal of a results file stands."""
    return output.with_name(output.name + SUFFIX)


def start(output: Path, header: Mapping[str, Any]) -> Journal:
    """A new journal for a results file.

    Raises:
        Wrong: an unfinished run has one there, or it cannot be written.
    """
    path = of(output)
    if path.exists() and path.stat().st_size:
        raise Wrong(
            f"{path} holds the points of a run that did not end: go on with it by --resume {output} and the same "
            "options, or delete it"
        )
    journal = _opened(path)
    try:
        journal.add([{"schema": SCHEMA, **header}])
    except JournalFailed as error:
        journal.remove()
        raise Wrong(f"{path}: cannot be written: {error.strerror}") from None
    sync_folder(path.parent)
    return journal


def resume(output: Path) -> tuple[Journal, dict[str, Any], list[Any], list[str]]:
    """The journal of an unfinished run, opened to go on: its header, its entries, and what was said on the way.

    Raises:
        Wrong: there is none, another process writes it, or it is no journal of this version.
    """
    path = of(output)
    if not path.exists():
        raise Wrong(
            f"--resume: there is no {path}: "
            + ("the run that wrote the results file has ended" if output.exists() else "nothing was begun there")
        )
    journal = _opened(path)
    try:
        return journal, *_read(journal)
    except Wrong:
        journal.close()
        raise


def _read(journal: Journal) -> tuple[dict[str, Any], list[Any], list[str]]:
    path, said = journal.path, []
    content = path.read_bytes()
    lines, good = _lines(path, content)
    if good < len(content):
        said.append(f"{path}: the last line was cut off when the run ended; dropped, its point is measured again")
        journal._file.truncate(good)
    header = lines[0][0] if lines and isinstance(lines[0], list) and lines[0] else None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise Wrong(f"--resume: {path} is no journal of this version; delete it to start anew")
    return header, [entry for line in lines[1:] for entry in line], said


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What differs between two headers, in words."""
    for key in dict.fromkeys((*before, *now)):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{within}{key} ")
        elif a != b:
            yield f"{within}{key} was {shown(_text(a))} and is {shown(_text(b))}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "not given" if value is None else json.dumps(value)


def _opened(path: Path) -> Journal:
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise Wrong(f"{path}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Wrong(f"{path}: another run is writing it") from None
    return Journal(path, file)  # type: ignore[arg-type]


def _lines(path: Path, content: bytes) -> tuple[list[Any], int]:
    """The lines that are whole, and how many bytes they take. Only the last line may be broken."""
    found, good = [], 0
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, list):
            rest = content[good + len(line) :].strip(b"\0 \n")
            if rest:
                where = f"{path}: line {len(found) + 1}"
                raise Wrong(
                    f"--resume: {where} is broken, and lines follow it; cut the file off there to keep the rest"
                )
            break
        found.append(value)
        good += len(line)
    return found, good
