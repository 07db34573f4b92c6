"""The device that points run on: where its tensors live, its clocks, its graphs, its memory.

All that the sweep asks of CUDA goes through `runtime`: `torch.cuda`, or in tests a stand-in with the same names, so
that these lines are tested on machines without a GPU.

Two clocks, never mixed in one row. *host*: the host's clock, read once the device is idle: what a program waits for,
launches included. *device*: elapsed time between events of the device, around replays of a graph that holds one call,
so that the host's launches are not in it, but for the launch of the graph itself (a few microseconds, which a call
shorter than that shows).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from bench.machine import setup
from bench.machine.timing import Clock, Step

CUDA = "cuda"
HOST, DEVICE = "host", "device"

WARM = 3  # calls on a stream of their own before a capture, as CUDA graphs need

runtime: Any = torch.cuda
_tensors_on = CUDA  # where tensors of a point on CUDA live
_last: Any = None  # the event at which the device's clock was read last
_elapsed = 0.0


class NoGraph(RuntimeError):
    """A graph gives another result than the call it was captured from."""


def use(other: Any, tensors_on: str) -> None:
    """Take another runtime in place of `torch.cuda`, with its tensors on another device."""
    global runtime, _tensors_on, _last
    runtime, _tensors_on, _last = other, tensors_on, None


def available() -> bool:
    """Whether there is a CUDA device."""
    return bool(runtime.is_available())


def place(device: str) -> torch.device:
    """Where the tensors of a point live."""
    return torch.device(_tensors_on if device == CUDA else device)


def name() -> str:
    """The CUDA device's name."""
    return str(runtime.get_device_name())


def free_memory(device: str) -> int | None:
    """Bytes that can be allocated; None where unknown."""
    return int(runtime.mem_get_info()[0]) if device == CUDA else setup.available_memory()


def cache_bytes(device: str) -> int:
    """Bytes of the last cache before memory: L2 on CUDA, the last level of a CPU."""
    if device == CUDA:
        return int(runtime.get_device_properties(0).L2_cache_size)
    return setup.last_level_cache()


# -- clocks


def clock_of(device: str, clock: str = HOST) -> Clock:
    """The clock that a point is timed by."""
    if device != CUDA:
        return time.perf_counter
    return device_seconds if clock == DEVICE else synchronised


def synchronised() -> float:
    """Seconds of the host's clock once the CUDA device is idle."""
    runtime.synchronize()
    return time.perf_counter()


def device_seconds() -> float:
    """Seconds of the CUDA device's own clock, from the first reading on: sums of the times between events."""
    global _last, _elapsed
    event = runtime.Event(enable_timing=True)
    event.record()
    event.synchronize()
    if _last is not None:
        _elapsed += _last.elapsed_time(event) / 1e3  # in milliseconds
    _last = event
    return _elapsed


# -- graphs


def graphed(step: Step) -> tuple[Step, str]:
    """A replay of a call captured in a CUDA graph, and `graph`; where it cannot be captured the call, and why.

    Raises:
        NoGraph: the replay gives another result than the call.
    """
    stream = runtime.Stream()
    stream.wait_stream(runtime.current_stream())
    with runtime.stream(stream):
        for _ in range(WARM):
            expected = step()
    runtime.current_stream().wait_stream(stream)
    graph = runtime.CUDAGraph()
    try:
        with runtime.graph(graph):
            found = step()
    except RuntimeError as error:
        runtime.synchronize()
        return step, f"events alone: {str(error).strip().partition(chr(10))[0] or 'no graph'}"
    _compare_replay(graph, _tensors(found), _tensors(expected))

    def replay() -> object:
        graph.replay()
        return found  # kept, as the graph writes into its memory

    return replay, "graph"


@torch.no_grad()
def _compare_replay(graph: Any, found: list[Tensor], expected: list[Tensor]) -> None:
    for tensor in found:
        tensor.detach().fill_(float("nan"))
    graph.replay()
    runtime.synchronize()
    for a, b in zip(found, expected, strict=True):
        # the same kernels on the same numbers: half of the digits tell it from one that reads other memory, and leave
        # room for atomic additions, which come in any order
        allowed = torch.finfo(b.dtype).eps ** 0.5 * float(b.detach().abs().max()) if b.numel() else 0.0
        if not torch.allclose(a, b, rtol=0, atol=allowed):
            raise NoGraph("a replay of the captured graph gives another result than the call")


def _tensors(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)  # type: ignore[call-overload,no-any-return]


# -- memory


def peak_bytes(device: str, step: Step) -> int | None:
    """The most that the device's allocator holds during one call, beyond what it held before; None on a CPU."""
    if device != CUDA:
        return None
    runtime.synchronize()
    before = int(runtime.memory_allocated())
    runtime.reset_peak_memory_stats()
    kept = step()
    runtime.synchronize()
    found = int(runtime.max_memory_allocated()) - before
    del kept
    return found
