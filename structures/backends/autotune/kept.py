"""Records in small files beside the measured rates: one a shape, so that writers never meet.

A file is written whole, by a rename. One that is broken, or of another key, counts as absent and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from structures.backends.autotune.record import Key, Record, Timing, grad_text
from structures.backends.planned import rates
from structures.structure import Structure

FORMAT = 1


def read(structure: Structure, key: Key) -> Record | None:
    """What was chosen for a shape on this machine; None, with a warning where the file makes no sense."""
    text = _text(structure, key)
    found = load(text)
    if found is None:
        return None
    try:
        timings = tuple(Timing(**timing) for timing in found["timings"])
        again = found["again"] and tuple(found["again"])
        record = Record(**{**found, "timings": timings, "again": again, "kept": True})
        record.chosen.digest.encode()
    except (TypeError, KeyError, IndexError, AttributeError):
        warnings.warn(f"{_file(text)}: is no choice of this version; it is tuned again", stacklevel=2)
        return None
    return record


def write(structure: Structure, key: Key, record: Record) -> None:
    """Keep a record for the next process; a warning where that cannot be."""
    save(_text(structure, key), asdict(record))


def what(structure: Structure) -> str:
    """The structure with its options, as text."""
    options = "".join(f", {name}={value}" for name, value in structure.options)
    return f"{structure.name}({structure.in_features}, {structure.out_features}{options})"


def load(text: str) -> Mapping[str, Any] | None:
    """The fields kept under a text; None, with a warning where there is something that cannot be understood."""
    file = _file(text)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{file}: cannot be read ({error}); it is tuned again", stacklevel=2)
        return None
    if isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("record"), dict):
        if found.get("key") == text:
            return found["record"]  # type: ignore[no-any-return]
    warnings.warn(f"{file}: is no choice of this version; it is tuned again", stacklevel=2)
    return None


def save(text: str, record: Mapping[str, Any]) -> None:
    """Keep fields under a text; a warning where that cannot be."""
    file = _file(text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({"format": FORMAT, "key": text, "record": record}, opened, indent=1)
        os.replace(part, file)
    except OSError as error:
        warnings.warn(f"what was tuned is not kept beyond this process: {error}", stacklevel=2)


def _file(text: str) -> Path:
    return rates.folder() / "autotune" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _text(structure: Structure, key: Key) -> str:
    """Machine, versions and what was tuned: another one of any of these is another file."""
    machine = rates.machine(str(key.dtype).removeprefix("torch."), torch.get_num_threads(), key.device)
    # of the definition too: another entry of the same name is another structure
    meaning = hashlib.sha256(repr((structure.terms, structure.factor_shapes)).encode()).hexdigest()[:16]
    tuned = (
        f"{what(structure)} {meaning}, to {1 << key.bits} tokens, bias {not key.no_bias}, "
        f"gradients {grad_text(key.want)}"
    )
    return " / ".join((machine, f"structures {_version()}", tuned))


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("structures")
    except PackageNotFoundError:
        return "unknown"
