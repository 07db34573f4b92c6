"""Candidates timed beside dense: checked first, then paired ratios from one interleaved loop, as in the sweep."""

from __future__ import annotations

from typing import Any

import torch

import structures
from bench.files.vocabulary import DENSE
from bench.machine import timing
from bench.machine.timing import NOISY, Effort
from bench.search.request import SearchRequest
from bench.sweep import subject
from bench.sweep.check import CheckFailed, check
from bench.sweep.subject import Refused
from structures import backends
from structures.structure import Structure

SEED = 0
TRIES = 4
WAYS = ("linear", "addmm")  # of dense; the faster one is what is compared to


class Timer:
    """The input of a request, and dense's fastest way to run on it: nn.Linear, or addmm of the transposed weight."""

    def __init__(self, request: SearchRequest):
        self.train = request.mode == "train"
        dtype = getattr(torch, request.dtype)
        draw = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(request.tokens, request.in_features, generator=draw).to(dtype)
        self.dy = None
        if self.train:
            self.x.requires_grad_()
            self.dy = torch.randn(request.tokens, request.out_features, generator=draw).to(dtype)
        dense = structures.get(DENSE).bind(request.in_features, request.out_features)
        steps = [subject.dense(dense, way, self.x).step(self.x, self.dy) for way in WAYS]
        with torch.set_grad_enabled(self.train):
            best, times = timing.fastest(steps, timing.SHORT)
        self.dense, self.way, self.seconds = steps[best], WAYS[best], times[best]

    def measure(self, structure: Structure, effort: Effort) -> dict[str, Any]:
        """The ratio to dense with its quartiles, the seconds of a call and the backend; or why there is none."""
        try:
            what = subject.structured(structure, dict(structure.options), backends.AUTO, self.x)
            error = check(what, self.x, self.dy)
        except (Refused, CheckFailed) as failure:
            return {"refused": str(failure).partition("\n")[0]}
        step = what.step(self.x, self.dy)
        with torch.set_grad_enabled(self.train):
            seconds = timing.once(step)
            several = []
            while not several or (len(several) < TRIES and min(s.width for s in several) > NOISY):
                several.append(timing.paired(step, self.dense, effort, seconds=(seconds, self.seconds)))
        ratio = min(several, key=lambda s: s.width)
        kept = {key: getattr(ratio, key) for key in ("median", "q1", "q3", "rounds")}
        return {"speedup": kept, "seconds": seconds, "backend": what.backend, "error": error}
