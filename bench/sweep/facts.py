"""What is known of a point without timing it: its counts, its bytes."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import structures
from bench.sweep.points import Point
from bench.sweep.request import read_options
from bench.sweep.subject import Subject
from structures import registry
from structures.structure import Structure


def counted(point: Point, what: Subject, x: Tensor) -> dict[str, Any]:
    """The fields of a row that are counted."""
    structure = what.structure
    flops = structure.flops(point.tokens, train=point.train)
    stored = sum(p.numel() * p.element_size() for p in what.parameters)
    in_full = sum(p.numel() for p in what.parameters) * x.element_size()
    options = read_options(point.options) if point.is_dense else dict(structure.options)
    return asdict(point) | {
        "options": json_options(options),
        **({} if point.control or registry.is_builtin(point.structure) else {"own": True}),  # of a user's registry file
        "backend": what.backend,
        "params": structure.params,
        "params_share": structure.params / (point.in_features * point.out_features),
        "flops": flops,
        "executed_flops": what.executed_flops(point.tokens, point.train),
        "dense_flops": point.dense_flops,
        "flops_share": flops / point.dense_flops,
        "bytes": structure.bytes(point.tokens, x.element_size(), train=point.train) + stored - in_full,
        "parameter_bytes": stored,
        "mixing_depth": mixing_depth(structure),
        "checkpoint_bytes": checkpoint_bytes(what, x.dtype),
    }


@lru_cache(maxsize=4096)
def mixing_depth(structure: Structure) -> int | None:
    """Layers until every output sees every input; 0 where it never does, None where that takes too long to find out."""
    try:
        return structures.mixing_depth(structure) or 0
    except ValueError:  # too large, or without a layer the other way round
        return None


def checkpoint_bytes(what: Subject, dtype: torch.dtype) -> int:
    """Bytes of the file that `torch.save` makes of the layer's state_dict."""
    key = (what.structure, what.backend, dtype)
    if key not in _saved:
        if len(_saved) > 4096:
            _saved.clear()
        sink = _Count()
        torch.save(what.state(), sink)
        _saved[key] = sink.bytes
    return _saved[key]


_saved: dict[tuple[Structure, str, torch.dtype], int] = {}


class _Count:
    """A file that only counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def json_options(options: dict[str, object]) -> dict[str, object]:
    """Options as JSON holds them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
