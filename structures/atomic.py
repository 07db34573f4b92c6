"""Files that appear whole or not at all: each is written beside its place, brought to the disk, then renamed.

The one writer of the library and of the bench; it knows nothing, torch least of all.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

_under_way: set[Path] = set()  # parts that this process writes now
Content = str | bytes | Callable[[IO[bytes]], object]  # what a file holds, or what writes it


def write(content: Content, output: Path) -> None:
    """Put one file in place of whatever is at `output`, a link too: what it leads to is left alone; see `write_all`."""
    write_all({output: content})


def write_all(contents: Mapping[Path, Content]) -> None:
    """Put files in place of whatever is there, none of them before all could be written.

    Raises:
        OSError: one cannot be written; all are then what they were, and nothing is left beside them.
    """
    targets = {path: Path(os.path.realpath(path.parent), path.name) for path in contents}
    own = f"{threading.get_native_id()}.{os.getpid()}.part"
    parts = {path: target.with_name(f".{target.name}.{own}") for path, target in targets.items()}
    try:
        for path, content in contents.items():
            for left in targets[path].parent.glob(f".{glob.escape(targets[path].name)}.*.part"):
                _remove_stale(left)
            _under_way.add(parts[path])
            with parts[path].open("xb") as file:
                content(file) if callable(content) else file.write(_bytes(content))
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            os.replace(part, targets[path])
            sync_folder(targets[path].parent)
    finally:
        for part in _under_way.intersection(parts.values()):
            with suppress(OSError):
                part.unlink()
            _under_way.discard(part)


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content


def _remove_stale(part: Path) -> None:
    """Remove what a process that was killed left; its number stands in the name, and may be ours by now."""
    number = part.name.split(".")[-2]
    if part in _under_way or not number.isdigit() or not Path("/proc/self").exists():
        return
    if number == str(os.getpid()) or not Path(f"/proc/{number}").exists():
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
