"""Where compiled objects are kept, and which of them may be loaded: the user's own, whole, and nobody else's to write.

An object is called `kernel-CODE-COMPILER-DIGEST.so`: CODE names sources, flags and processor, DIGEST what the file
holds, so that one cut short or damaged is known before the loader maps it, and a rename publishes both at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from structures import atomic, reading
from structures.backends.planned import rates

DIGITS = 16  # of each hash in a name
MOST_BYTES = 2**27  # of an object, which has about a megabyte
LEFT_BEHIND = 3600.0  # seconds after which a build's folder belongs to nobody: builds are stopped long before
WAY_OUT = f"set {rates.VARIABLE} to a folder of your own"


class Unavailable(RuntimeError):
    """Why there is no native kernel here, as a sentence."""


def folder() -> Path:
    """The folder of objects, made where there is none: the user's own, readable and writable by nobody else.

    Raises:
        Unavailable: it cannot be made, or others own it or can write to it.
    """
    base = rates.folder()
    if str(base).startswith("~"):
        raise Unavailable(f"no home folder is known to keep the compiled kernel in; {WAY_OUT}")
    base = base.absolute()
    found = base / "native"
    try:
        base.mkdir(parents=True, exist_ok=True)
        found.mkdir(mode=0o700, exist_ok=True)
        above, own = base.stat(), found.stat()
        if above.st_uid not in (0, os.geteuid()):
            raise Unavailable(f"{base} belongs to another user, who could exchange the compiled kernel; {WAY_OUT}")
        if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            raise Unavailable(f"{base} is writable by everyone, who could exchange the compiled kernel; {WAY_OUT}")
        if own.st_uid != os.geteuid():
            raise Unavailable(f"{found} belongs to another user, and no object of theirs is loaded; {WAY_OUT}")
        if own.st_mode & stat.S_IWOTH:
            raise Unavailable(f"{found} is writable by everyone, and no object from there is loaded; chmod 700 it")
        if own.st_mode & 0o077:
            found.chmod(0o700)
    except OSError as error:
        raise Unavailable(f"the compiled kernel cannot be kept: {_said(error)}; {WAY_OUT}") from None
    return found


def find(code: str, compiler: str | None) -> Path | None:
    """An object kept for this code, by this compiler or, with None, by any; a damaged or foreign one is no object."""
    pattern = f"kernel-{code}-{compiler or '?' * DIGITS}-{'?' * DIGITS}.so"
    return next((file for file in sorted(folder().glob(pattern)) if _sound(file)), None)


def keep(file: Path, code: str, compiler: str) -> Path:
    """Move a freshly built object, of this folder's file system, to its place; no reader sees half of it."""
    try:
        file.chmod(0o700)
        target = folder() / f"kernel-{code}-{compiler}-{digest(file)}.so"
        os.replace(file, target)
    except OSError as error:
        raise Unavailable(f"the compiled kernel cannot be kept: {_said(error)}; {WAY_OUT}") from None
    return target


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for one build beside the objects; those that killed builds left behind are removed."""
    home = folder()
    try:
        for old in home.glob("build-*"):
            if time.time() - old.lstat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(old, ignore_errors=True)
        return tempfile.TemporaryDirectory(dir=home, prefix="build-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Unavailable(f"the native kernel cannot be compiled: {_said(error)}; {WAY_OUT}") from None


def failure(code: str, compiler: str) -> str | None:
    """What an earlier build with the same outcome to come said; None where none failed."""
    try:
        text = reading.content(_failed(code, compiler)).decode("utf-8", errors="replace")[:1000]
    except (OSError, reading.BadFile):
        return None
    return " ".join(text.split()) or None


def remember(code: str, compiler: str, reason: str | None) -> None:
    """Keep why a build failed, so that no process waits for it again; None forgets it."""
    file = _failed(code, compiler)
    try:
        if reason is None:
            file.unlink(missing_ok=True)
        else:
            atomic.write(reason.encode("utf-8", errors="replace"), file)
    except OSError:
        pass  # then the next process tries to build again, and says the same


def digest(file: Path) -> str:
    """The first digits of the SHA-256 of what a file holds."""
    return hashlib.sha256(reading.content(file, MOST_BYTES)).hexdigest()[:DIGITS]


def _failed(code: str, compiler: str) -> Path:
    return folder() / f"kernel-{code}-{compiler}.failed"


def _sound(file: Path) -> bool:
    """Whether it may be loaded. What others may write is removed; what the group may write is narrowed first."""
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
            file.unlink()
            return False
        if found.st_mode & stat.S_IWGRP:
            file.chmod(0o700)
        if digest(file) == file.stem.rpartition("-")[2]:
            return True
        file.unlink()
    except (OSError, reading.BadFile):
        pass  # unreadable, gone meanwhile, huge, or a folder of that name: no object either way
    return False


def _said(error: OSError) -> str:
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
