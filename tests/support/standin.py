"""A stand-in for `torch.cuda` on the CPU: the same names, for the lines that time, capture and watch a GPU.

`pytest bench --device cuda -p standin`, with this folder on the path, runs every path of a GPU on a machine without
one. The figures mean nothing, and the device's name says so. A graph records the operations below autograd and runs
them again on replay.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from bench.machine import setup

NAME = "stand-in for a CUDA device, on the CPU"
L2 = 2**14  # bytes; small, so that cold runs rotate few copies
_peak: _Allocations | None = None


class Event:
    """An event of a stream that is always idle."""

    def __init__(self, enable_timing: bool = False):
        self.timing, self.at = enable_timing, 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Everything has run already."""

    def elapsed_time(self, later: Event) -> float:
        if not (self.timing and later.timing):
            raise RuntimeError("both events must be created with enable_timing=True")
        return (later.at - self.at) * 1e3


class Stream:
    """A stream that runs each operation at once."""

    def wait_stream(self, other: Stream) -> None:
        """Nothing is ever pending."""


class CUDAGraph:
    """Operations recorded by `graph` and run again by `replay`, into the tensors that the recording made."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, made in self.recorded:
                _copy(made, function(*args, **kwargs), (args, kwargs))


class _Recording(TorchDispatchMode):
    def __init__(self, graph: CUDAGraph):
        super().__init__()
        self.to = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if not function.is_view:  # a view shows what lies there, whenever it is looked at
            self.to.recorded.append((function, args, kwargs or {}, made))
        return made


class _Allocations(TorchDispatchMode):
    """Bytes of all tensors made: an upper bound of the peak, as nothing is seen to be freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        self.bytes += sum(t.untyped_storage().nbytes() for t in _tensors(made)
                          if t.untyped_storage().data_ptr() not in given)  # fmt: skip
        return made


@contextmanager
def graph(into: CUDAGraph) -> Iterator[None]:
    """Record what runs inside."""
    with _Recording(into):
        yield


@contextmanager
def stream(_: Stream) -> Iterator[None]:
    """Run what is inside on a stream: there is one."""
    yield


def current_stream() -> Stream:
    return Stream()


def synchronize() -> None:
    """Nothing is ever pending."""


def is_available() -> bool:
    return True


def get_device_name() -> str:
    return NAME


def get_device_properties(_: int = 0) -> SimpleNamespace:
    return SimpleNamespace(L2_cache_size=L2, name=NAME)


def mem_get_info() -> tuple[int, int]:
    free = setup.available_memory() or 2**33
    return free, free


def memory_allocated() -> int:
    return 0


def reset_peak_memory_stats() -> None:
    """Watch the tensors that are made from here on, until the peak is read."""
    global _peak
    _peak = _Allocations()
    _peak.__enter__()


def max_memory_allocated() -> int:
    """Bytes made since `reset_peak_memory_stats`."""
    global _peak
    if _peak is None:
        return 0
    _peak.__exit__(None, None, None)
    found, _peak = _peak.bytes, None
    return found


@pytest.hookimpl(tryfirst=True)  # before the sweep asks which devices there are
def pytest_configure(config: Any) -> None:
    """As a plugin of pytest: take the place of `torch.cuda` in a run of the sweep."""
    begin()


def begin() -> None:
    """Take the place of `torch.cuda`; Triton interprets its kernels, or compiles them for a card that is not there."""
    from bench.machine import device

    device.use(sys.modules[__name__], "cpu")
    if find_spec("triton") is None:
        return
    import without_card

    without_card.interpret() if os.environ.get("TRITON_INTERPRET") == "1" else without_card.compile_for(90)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor)]


def _copy(made: Any, again: Any, given: Any) -> None:
    """Bring what was made in the recording up to date; a view of what was given is so already."""
    inputs = {t.untyped_storage().data_ptr() for t in _tensors(given)}
    for old, new in zip(_tensors(made), _tensors(again), strict=True):
        if old.untyped_storage().data_ptr() not in inputs:
            old.copy_(new)
