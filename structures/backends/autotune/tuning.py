"""Check and time the programs for one input."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from structures.backends.autotune import kept
from structures.backends.autotune.exactness import Truth, call_like
from structures.backends.autotune.programs import offered, run_of
from structures.backends.autotune.race import Clock, race
from structures.backends.autotune.record import NAME, Key, Record, recorded
from structures.structure import Structure


def tune(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, key: Key) -> Record:
    """Time the programs for this input, x (tokens, in_features), and keep the record in the file.

    Raises:
        ValueError: there is nothing to time: no tokens, the meta device, fake tensors, or a CUDA graph is captured.
        RuntimeError: the planner's own choice computes something else than the plain einsum.
    """
    check_can_time(x)
    timings, steps, failed = [], [], []
    with torch.autocast(x.device.type, enabled=False), torch.inference_mode(False):
        call = call_like(x, factors, bias, key.want, structure.out_features)
        truth = Truth(structure, call)
        for timing in offered(structure, key):
            run = run_of(structure, key, timing.digest)
            worse = truth.worse(run)
            if worse is None:
                timings.append(timing)
                steps.append(call.step(run))
            elif not timings:
                raise RuntimeError(f"{structure.name}: the planner's program {timing.name} is wrong: {worse}")
            else:
                failed.append(replace(timing, note=worse))
        with torch.set_grad_enabled(key.want is not None):
            outcome = race(steps, clock_of(x.device.type))
    timed = [replace(t, median=o.median, q1=o.q1, q3=o.q3) for t, o in zip(timings, outcome.times, strict=True)]
    record = recorded(kept.what(structure), x, key.want, (*timed, *failed), outcome)
    kept.write(structure, key, record)
    return record


def check_can_time(x: Tensor) -> None:
    """Raises ValueError where calls on x cannot be timed."""
    reason = None
    if type(x) not in (Tensor, torch.nn.Parameter):
        reason = f"a {type(x).__name__} has nothing to time"
    elif x.device.type == "meta":
        reason = "x is on the meta device: there is nothing to time"
    elif x.shape[0] == 0:
        reason = "x has no tokens: there is nothing to time"
    elif x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        reason = "nothing can be timed while a CUDA graph is captured; run the layer once before"
    if reason is not None:
        raise ValueError(f"backend {NAME!r}: {reason}")


def clock_of(device: str) -> Clock:
    """The host's clock; on CUDA read once everything queued has finished."""
    if device != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised
