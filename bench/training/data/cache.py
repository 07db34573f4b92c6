"""Where fetched data and what is derived from it lie."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "STRUCTURES_DATA"


def cache() -> Path:
    """The folder named by `STRUCTURES_DATA`, or `structures` in the user's cache (`XDG_CACHE_HOME`, `~/.cache`)."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # a relative path in it is to be ignored: XDG base directory specification
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "structures"


def place(name: str) -> Path:
    """The folder of one data set."""
    return cache() / "data" / name
