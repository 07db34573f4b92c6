"""A file that appears whole or not at all: written beside its place, brought to the disk, renamed."""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from pathlib import Path


def write(text: str, output: Path) -> None:
    """Put a text in place of whatever `output` holds, through links.

    Raises:
        OSError: it cannot be written; `output` is then what it was, and nothing is left beside it.
    """
    target = Path(os.path.realpath(output))
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        _remove_stale(left)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def _remove_stale(part: Path) -> None:
    """Remove what a process that was killed left; its number stands in the name."""
    number = part.name.split(".")[-2]
    if number.isdigit() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with suppress(OSError):  # some file systems refuse to open or sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
