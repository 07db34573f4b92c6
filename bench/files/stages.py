"""What a search has found so far, a line for each measurement: whatever ends the process, finished work is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from bench.files.errors import Wrong


class Fingerprinted(Protocol):
    """A request, told from others."""

    @property
    def fingerprint(self) -> str: ...


class StageJournal:
    """Lines of JSON; the first names the request, the others are records by (stage, candidate).

    `kind` is the command's work in a word, `differs` what another fingerprint means.

    A last line that was cut off, as by `kill -9`, is dropped and measured again.
    """

    def __init__(self, path: Path, request: Fingerprinted, kind: str = "search", differs: str = "other arguments"):
        self.kind, self.differs = kind, differs
        self.path, self.records = path, {}  # type: tuple[Path, dict[tuple[str, str], dict[str, Any]]]
        self.resumed = self._read(request)
        try:
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise Wrong(f"-o: cannot write the journal {path}: {error.strerror}") from None
        if not self.resumed:
            self._line({self.kind: request.fingerprint})

    def get(self, stage: str, name: str) -> dict[str, Any] | None:
        return self.records.get((stage, name))

    def add(self, stage: str, name: str, **found: Any) -> dict[str, Any]:
        """Write a record; it is on the disk when this returns."""
        self.records[stage, name] = found
        self._line({"stage": stage, "name": name, **found})
        return found

    def close(self) -> None:
        self.file.close()

    def _line(self, value: dict[str, Any]) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _read(self, request: Fingerprinted) -> bool:
        """Whether there was a journal of this request; its records are taken over."""
        if not self.path.exists():
            return False
        whole, sep, _ = self.path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        lines = [_value(line) for line in whole.split("\n")] if sep else []
        if not lines:
            self.path.unlink()  # cut off within its first line
            return False
        if not isinstance(lines[0], dict) or self.kind not in lines[0]:
            raise Wrong(f"-o: {self.path} is no journal of a {self.kind}; move it away or choose another -o")
        if lines[0][self.kind] != request.fingerprint:
            raise Wrong(
                f"-o: {self.path} was written by a {self.kind} with {self.differs}; give the same ones to go on, "
                "choose another -o, or --fresh to start again"
            )
        for record in lines[1:]:
            if not isinstance(record, dict) or not {"stage", "name"} <= set(record):
                raise Wrong(
                    f"-o: {self.path} has a line that is no record; choose another -o, or --fresh to start again"
                )
            self.records[record.pop("stage"), record.pop("name")] = record
        self.path.write_text(whole + "\n", encoding="utf-8")  # without what was cut off
        return True


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
