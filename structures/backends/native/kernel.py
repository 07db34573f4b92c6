"""The native library of this process: found or compiled, loaded and checked at the first call that wants it.

Where that fails the reason is kept, said once as a warning, and the next backend runs.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence

from structures.backends.native.build import MACHINE, object_file, turned_off
from structures.backends.native.library import Library, torch_openmp
from structures.backends.native.objects import Unavailable

_state: Library | str | None = None  # None: nobody has asked yet
_lock = threading.Lock()


def reason() -> str | None:
    """Why the native kernel cannot run in this process, as a sentence; None where it can."""
    state = _state if _state is not None else _start()
    return state if isinstance(state, str) else None


def library() -> Library:
    """The library of this process.

    Raises:
        ValueError: there is none; the reason is the message.
    """
    state = _state if _state is not None else _start()
    if isinstance(state, str):
        raise ValueError(f"backend 'native': {state}")
    return state


def state() -> Library | str | None:
    """The library, the reason why there is none, or None where nobody has asked yet."""
    return _state


def load(machine: Sequence[str] = MACHINE, *, again: bool = False) -> Library:
    """The library for a processor, compiled now where it is not kept; arguments as `object_file` takes them.

    Raises:
        Unavailable: it cannot be compiled, kept or loaded.
    """
    file = object_file(machine, again=again)
    try:
        return Library(file, openmp=torch_openmp())
    except (OSError, ValueError) as error:  # no right to execute files there, or an object of other source
        raise Unavailable(f"the compiled kernel cannot be loaded: {error}") from None


def use(state: Library | str | None) -> Library | str | None:
    """Run this library from now on, or none for the reason given, or with None ask anew; returns what was before."""
    global _state
    before, _state = _state, state
    return before


def _start() -> Library | str:
    global _state
    with _lock:
        if _state is not None:  # another thread was first
            return _state
        off = turned_off()
        found: Library | str
        try:
            found = off or load()
        except Unavailable as error:
            found = str(error)
        _state = found
    if isinstance(found, str) and off is None:
        warnings.warn(f"the native kernel does not run, and torch's own products do: {found}", stacklevel=2)
    return found


def _alone() -> None:
    """In a forked child, which has one thread of its parent's and none of its parent's OpenMP team.

    libgomp still counts on that team there, and a call that asks for it never returns.
    """
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held it
    if isinstance(_state, Library):
        _state.stay_on_one_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone)
