"""Source text as functions, and the tables of positions that they read."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Source:
    """Text of a function, and the tables of positions that it reads as `table0`, `table1`, ..."""

    text: str
    tables: tuple[tuple[int, ...], ...] = ()


def compiled(source: Source, name: str) -> Run:
    """The function called `name` that the source defines."""
    return _compiled(source, name)


@lru_cache(maxsize=4096)
def _compiled(source: Source, name: str) -> Run:
    scope: dict[str, object] = {"torch": torch, "index": index}
    scope.update((f"table{i}", IndexTable(positions)) for i, positions in enumerate(source.tables))
    # by what it says, so that two traces of one program name one file: hash() differs between processes
    file = f"<plan {hashlib.sha256(repr((source.text, source.tables)).encode()).hexdigest()[:16]}>"
    lines = source.text.splitlines(keepends=True)
    linecache.cache[file] = (len(source.text), None, lines, file)  # shown in tracebacks
    exec(compile(source.text, file, "exec"), scope)
    return scope[name]  # type: ignore[return-value]


class IndexTable:
    """Positions to gather from, with a tensor of them on each device where they were used."""

    def __init__(self, positions: tuple[int, ...]):
        self.positions = positions
        self.tensors: dict[torch.device, Tensor] = {}

    def on(self, like: Tensor) -> Tensor:
        """The positions on the device of `like`."""
        found = self.tensors.get(like.device)
        if found is None or type(like) is not Tensor:
            found = index(self.positions, like)
            if type(found) is Tensor:  # a fake tensor must not be met outside its mode
                self.tensors[like.device] = found
        return found


def index(positions: tuple[int, ...], like: Tensor) -> Tensor:
    """A table as a tensor; an inference tensor could not be saved for a later backward."""
    if torch.compiler.is_compiling():
        return torch.tensor(positions, device=like.device)
    with torch.inference_mode(False):
        return torch.tensor(positions, device=like.device)
