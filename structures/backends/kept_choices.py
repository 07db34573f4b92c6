"""What autotuning chose, kept in small files beside the measured rates: one a shape, so that writers never meet.

A file is written whole, by a rename. One that is broken, or of another key, counts as absent and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from structures.backends.planned import rates

FORMAT = 1


def folder() -> Path:
    """Where choices are kept."""
    return rates.folder() / "autotune"


def key(dtype: str, threads: int, device: str, what: str) -> str:
    """Machine, versions and what was tuned, as one text."""
    return " / ".join((rates.machine(dtype, threads, device), f"structures {_version()}", what))


def read(key: str) -> Mapping[str, Any] | None:
    """What was kept under the key; None, with a warning where there is something that cannot be understood."""
    file = _file(key)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{file}: cannot be read ({error}); it is tuned again", stacklevel=2)
        return None
    if isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("record"), dict):
        if found.get("key") == key:
            return found["record"]  # type: ignore[no-any-return]
    warnings.warn(f"{file}: is no choice of this version; it is tuned again", stacklevel=2)
    return None


def write(key: str, record: Mapping[str, Any]) -> bool:
    """Keep a record; False, with a warning, where it cannot be kept."""
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({"format": FORMAT, "key": key, "record": record}, opened, indent=1)
        os.replace(part, file)
    except OSError as error:
        warnings.warn(f"what was tuned is not kept beyond this process: {error}", stacklevel=2)
        return False
    return True


def _file(key: str) -> Path:
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("structures")
    except PackageNotFoundError:
        return "unknown"
