"""The state of the run under way, beside the file of rows, marked with the checksum of its content."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.files.errors import UsageError
from structures import atomic
from structures.reading import BadFile, content

VERSION = 2  # of what is kept and how it is written; whoever changes either counts it up
MARK = re.compile(rb"structures: checkpoint of bench train, (\d{1,9})\n")  # then the SHA-256 of the rest: torch.save's
DIGEST = hashlib.sha256().digest_size
MOST_BYTES = 2**34


class Checkpoint:
    """Written atomically, read once, removed when the run is done."""

    def __init__(self, path: Path):
        self.path = path

    def save(self, value: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(value), buffer)
        data = buffer.getbuffer()
        mark = f"structures: checkpoint of bench train, {VERSION}\n".encode()
        parts = mark, hashlib.sha256(data).digest(), data
        try:
            atomic.write(lambda file: file.writelines(parts), self.path)
        except OSError as error:
            raise UsageError(f"-o: cannot write the checkpoint {self.path}: {error}") from None

    def load(self, say: Callable[[str], object]) -> dict[str, Any]:
        """What an earlier run left, if it left any; a file that is not whole is not used, and that is said."""
        try:
            return self._read()
        except BadFile as error:
            say(f"{error}; it is not used, and the run that it was of begins anew")
            return {}

    def _read(self) -> dict[str, Any]:
        if not os.path.lexists(self.path):
            return {}
        try:
            data = memoryview(content(self.path, MOST_BYTES))
        except OSError as error:
            raise BadFile(f"{self.path}: cannot be read: {error.strerror}") from None
        mark = MARK.match(data)
        if mark is None:
            raise BadFile(f"{self.path}: no checkpoint of bench train")
        if int(mark[1]) != VERSION:
            raise BadFile(f"{self.path}: a checkpoint of version {int(mark[1])}, where this reads version {VERSION}")
        start = mark.end() + DIGEST
        if hashlib.sha256(data[start:]).digest() != data[mark.end() : start]:
            raise BadFile(f"{self.path}: a checkpoint that is damaged or cut off: its checksum differs")
        try:
            held = torch.load(io.BytesIO(data[start:]), weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            held = None
        if not isinstance(held, dict):
            raise BadFile(f"{self.path}: whole, but not what bench train writes")
        return held

    def clear(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
