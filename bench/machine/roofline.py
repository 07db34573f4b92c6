"""What the machine can do, measured in the same run, and which of its limits a point runs into."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import nn

import structures
from bench.machine import device as devices
from bench.machine.timing import Clock, Step, timed
from structures import backends

GEMM = {"cpu": 1024, "cuda": 8192}  # width of a square product that reaches the peak
COPIES = (2**18, 2**20, 2**22, 2**24, 2**26, 2**28)  # bytes read and written by a copy, from cache to memory
SECONDS = 0.06  # for each of these measurements


@dataclass(frozen=True)
class Roofline:
    """Limits of one device, dtype and number of threads."""

    device: str
    dtype: str
    threads: int
    gemm_flops_per_s: float
    copy_bytes_per_s_by_size: tuple[tuple[int, float], ...]  # bytes moved, bytes a second
    seconds_per_step: float  # one product too small to take time itself, forward
    seconds_per_train_step: float

    @property
    def copy_bytes_per_s(self) -> float:
        """Of the largest copy: what main memory gives."""
        return self.copy_bytes_per_s_by_size[-1][1]

    def bandwidth(self, moved: float) -> float:
        """Bytes a second of a copy that moves so many bytes, between the sizes that were measured."""
        (low, slow), *rest = self.copy_bytes_per_s_by_size
        if moved <= low:
            return slow
        for high, fast in rest:
            if moved <= high:
                share = math.log(moved / low) / math.log(high / low)
                return slow * math.exp(share * math.log(fast / slow))
            low, slow = high, fast
        return slow

    def bound(self, *, flops: float, moved: float, steps: int, train: bool, seconds: float) -> dict[str, object]:
        """The limit that takes longest for this work, and its share of the time taken."""
        limits = {
            "arithmetic": flops / self.gemm_flops_per_s,
            "memory": moved / self.bandwidth(moved),
            "calls": steps * (self.seconds_per_train_step if train else self.seconds_per_step),
        }
        name = max(limits, key=limits.__getitem__)
        return {"bound": name, "fraction": limits[name] / seconds}

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "copy_bytes_per_s": self.copy_bytes_per_s}


def measure(device: str, dtype: str, threads: int, clock: Clock = time.perf_counter) -> Roofline:
    """Measure the limits; takes well under a second."""
    where = str(devices.place(device))
    with torch.no_grad():
        gemm = _gemm(GEMM[where], where, getattr(torch, dtype), clock)
        copies = _copies(where, threads, clock)
    forward, train = _step(where, getattr(torch, dtype), clock)
    return Roofline(device, dtype, threads, gemm, copies, forward, train)


def _best(step, clock: Clock) -> float:  # type: ignore[no-untyped-def]
    step()
    one = timed(step, 1, clock)
    calls = max(1, int(SECONDS / 6 / max(one, 1e-7)))
    return min(timed(step, calls, clock) for _ in range(5))


def _gemm(n: int, device: str, dtype: torch.dtype, clock: Clock) -> float:
    """FLOP/s of the best product there is: one library reached 200 of 490 GFLOP/s on an AMD Zen 5 in float32."""
    a, b, out = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(3))
    dense = structures.get("dense").bind(n, n)
    steps: list[Step] = [lambda: torch.mm(a, b, out=out)]
    if device == "cpu" and backends.refusal("native", dense, a) is None:
        steps.append(lambda: backends.apply("native", dense, a, (b,), None))
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        steps.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return 2 * n**3 / min(_best(step, clock) for step in steps)


@cache
def _copies(device: str, threads: int, clock: Clock) -> tuple[tuple[int, float], ...]:
    return tuple((size, _copy(size, device, clock)) for size in COPIES)


def _copy(moved: int, device: str, clock: Clock) -> float:
    source = torch.zeros(moved // 8, device=device)  # float32, read once and written once
    target = torch.zeros_like(source)
    return moved / _best(lambda: target.copy_(source), clock)


def _step(device: str, dtype: torch.dtype, clock: Clock) -> tuple[float, float]:
    layer = nn.Linear(4, 4, device=device, dtype=dtype)
    x = torch.ones(1, 4, device=device, dtype=dtype, requires_grad=True)
    dy = torch.ones_like(x)
    with torch.no_grad():
        forward = _best(lambda: layer(x), clock)
    return forward, _best(lambda: torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy), clock)
