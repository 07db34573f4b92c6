"""Candidates timed beside dense: checked first, then paired ratios from one interleaved loop, as in the sweep."""

from __future__ import annotations

from typing import Any

import torch

from bench.files.vocabulary import DENSE
from bench.machine import timing
from bench.machine.timing import NOISY, Effort
from bench.search.request import SearchRequest
from bench.sweep import subject
from bench.sweep.cell import cell, grad_mode
from bench.sweep.check import CheckFailed, check
from bench.sweep.points import Point
from bench.sweep.subject import Refused
from structures import backends
from structures.structure import Structure

TRIES = 4
WAYS = ("linear", "addmm")  # of dense; the faster one is what is compared to


class Timer:
    """The input of a request, and dense's fastest way to run on it: nn.Linear, or addmm of the transposed weight."""

    def __init__(self, request: SearchRequest):
        layer = request.in_features, request.out_features, request.tokens
        how = request.dtype, "cpu", request.mode, "best", torch.get_num_threads()
        self.point = Point(DENSE, DENSE, "", None, *layer, *how, control=False)
        self.dense = cell(self.point, WAYS, timing.SHORT, cold=False)

    def measure(self, structure: Structure, effort: Effort) -> dict[str, Any]:
        """The ratio to dense with its quartiles, the seconds of a call and the backend; or why there is none."""
        try:
            x, dy = self.dense.x, self.dense.dy
            what = subject.structured(structure, dict(structure.options), backends.AUTO, x)
            error = check(what, x, dy)
        except (Refused, CheckFailed) as failure:
            return {"refused": str(failure).partition("\n")[0]}
        step = what.step(x, dy)
        with grad_mode(self.point):
            seconds = timing.once(step)
            both = seconds, self.dense.seconds
            several = []
            while not several or (len(several) < TRIES and min(s.width for s in several) > NOISY):
                several.append(timing.paired(step, self.dense.dense, effort, seconds=both))
        ratio = min(several, key=lambda s: s.width)
        kept = {key: getattr(ratio, key) for key in ("median", "q1", "q3", "rounds")}
        return {"speedup": kept, "seconds": seconds, "backend": what.backend, "error": error}
