"""The journal of a run: a line of JSON for all that a point brought, on the disk before the next point starts.

It stands beside the results file, as `results.json.journal`. The first line, the header, says what the run is: a run
that goes on with it must be the same. Whatever kills a run, at most the point under way is lost; a line that was cut
off is dropped. Every command that takes minutes keeps one: the sweep and `bench train` go on by `--resume`, the others
(`Records`) when the same command is given again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.files import declared
from bench.files.errors import UsageError
from bench.files.fields import Fields, contents
from bench.files.vocabulary import SCHEMA
from structures.atomic import sync_folder
from structures.reading import BadFile, json_text, shown

SUFFIX = ".journal"


class JournalFailed(UsageError):
    """A line could not be written; the journal ends with the line before it."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: cannot be written: {reason}; the points before this one are kept")
        self.reason = reason


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
            raise JournalFailed(self.path, error.strerror or str(error)) from None

    def remove(self) -> None:
        """Delete it: the results file holds everything now."""
        with suppress(OSError):
            self.path.unlink()
            sync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Close it; the file stays."""
        self._file.close()


def of(output: Path) -> Path:
    """Where the journal of a results file stands."""
    return output.with_name(output.name + SUFFIX)


def start(output: Path, header: Mapping[str, Any]) -> Journal:
    """A new journal for a results file.

    Raises:
        UsageError: an unfinished run has one there, or it cannot be written.
    """
    path = of(output)
    if path.exists() and path.stat().st_size:
        raise UsageError(
            f"{path} holds the points of a run that did not end: go on with it by --resume {output} and the same "
            "options, or delete it"
        )
    journal = _opened(path)
    try:
        journal.add([{"schema": SCHEMA, **header}])
    except JournalFailed as error:
        journal.remove()
        raise UsageError(f"{path}: cannot be written: {error.reason}") from None
    sync_folder(path.parent)
    return journal


def resume(output: Path, option: str = "--resume") -> tuple[Journal, dict[str, Any], list[Fields], list[str]]:
    """The journal of an unfinished run, opened to go on: its header, its entries, and what there is to say about it.

    Each entry knows its line, so that whoever reads its fields names it.

    Args:
        option: that asked for it, for messages.
    Raises:
        UsageError: there is none, another process writes it, or it is no journal of this version.
    """
    path = of(output)
    if not path.exists():
        raise UsageError(
            f"{option}: there is no {path}: "
            + ("the run that wrote the results file has ended" if output.exists() else "nothing was begun there")
        )
    journal = _opened(path)
    try:
        return journal, *_read(journal, option)
    except UsageError:
        journal.close()
        raise


def _read(journal: Journal, option: str) -> tuple[dict[str, Any], list[Fields], list[str]]:
    path, said = journal.path, []
    content = _bytes(path, option)
    lines, good = _lines(f"{option}: {path}", content)
    header = lines[0][0] if lines and lines[0] else None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UsageError(f"{option}: {path} is no journal of this version; delete it to start anew")
    if good < len(content):
        said.append(f"{path}: the last line was cut off when the run ended; dropped, its point is measured again")
        journal._file.truncate(good)
    at = f"{option}: {path}: line"
    try:
        return header, [Fields(f"{at} {i}", e) for i, line in enumerate(lines[1:], 2) for e in line], said
    except BadFile as error:
        raise UsageError(str(error)) from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What differs between two headers, in words."""
    for key in dict.fromkeys((*before, *now)):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{within}{key} ")
        elif a != b:
            yield f"{within}{key} was {shown(_text(a))} and is {shown(_text(b))}"


@dataclass(frozen=True)
class Left:
    """A record of what could not be done."""

    refused: declared.Words


class Records:
    """What a command has found so far, by stage and name, in the journal of its output: the same command goes on.

    Args:
        header: what the records depend on, such as the arguments.
        kinds: what the records of each stage are: a declared row; or Left too, where a thing may be left out.
        fresh: forget what there is.
    Raises:
        UsageError: the journal is of another run or of something else, a field of a record is missing or impossible,
            or it cannot be written.
    """

    def __init__(
        self, output: Path, header: Mapping[str, Any], kinds: Mapping[str, Sequence[type[Any]]], *, fresh: bool = False
    ):
        self.path, self.found = of(output), {}  # type: tuple[Path, dict[tuple[str, str], dict[str, Any]]]
        whole = not fresh and self.path.exists() and b"\n" in _bytes(self.path, "-o")
        if not whole:  # there is none, or it was cut off within its first line
            self.path.unlink(missing_ok=True)
            self._journal = start(output, header)
            return
        self._journal, before, entries, _ = resume(output, "-o")
        again = "choose another -o, or --fresh to start again"
        asked = json.loads(json.dumps(header))
        differ = list(differences({key: before.get(key) for key in asked}, asked))
        if differ:
            self.close()
            raise UsageError(f"-o: {self.path} was begun as another run: {'; '.join(differ)}; {again}")
        try:
            self.found = {(e.choice("stage", tuple(kinds)), e.words("name")): _record(e, kinds) for e in entries}
        except BadFile as error:
            self.close()
            raise UsageError(f"{error}; {again}") from None

    def get(self, stage: str, name: str) -> dict[str, Any] | None:
        """A record; None where there is none yet."""
        return self.found.get((stage, name))

    def add(self, stage: str, name: str, **found: Any) -> dict[str, Any]:
        """Keep a record; it is on the disk when this returns."""
        self.found[stage, name] = found
        self._journal.add([{"stage": stage, "name": name, "found": found}])
        return found

    def remove(self) -> None:
        """Delete the journal: the results file holds everything now."""
        self._journal.remove()

    def close(self) -> None:
        """Let go of the journal; the file stays."""
        self._journal.close()


def _record(entry: Fields, kinds: Mapping[str, Sequence[type[Any]]]) -> dict[str, Any]:
    """What was found, as it stands, its fields checked."""
    found, several = entry.inside("found"), kinds[entry.words("stage")]
    declared.read(Left if Left in several and "refused" in found else several[0], found)
    return entry.object("found")


def _bytes(path: Path, option: str) -> bytes:
    try:
        return contents(path)
    except BadFile as error:
        raise UsageError(f"{option}: {error}") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "not given" if value is None else json.dumps(value)


def _opened(path: Path) -> Journal:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path}: is not a regular file")
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(f"{path}: another run is writing it") from None
    return Journal(path, file)  # type: ignore[arg-type]


def _lines(where: str, content: bytes) -> tuple[list[Any], int]:
    """The lines that are whole, and how many bytes they take. Only the last line may be broken."""
    found, good = [], 0
    for line in content.splitlines(keepends=True):
        try:
            value = json_text(line, "") if line.endswith(b"\n") else None
        except BadFile:
            value = None
        if not isinstance(value, list):
            rest = content[good + len(line) :].strip(b"\0 \n")
            if rest:
                line = f"{where}: line {len(found) + 1}"
                raise UsageError(f"{line} is broken, and lines follow it; cut the file off there to keep the rest")
            break
        found.append(value)
        good += len(line)
    return found, good
