"""Candidates timed beside dense: checked first, then paired ratios from one interleaved loop, as in the sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.machine import timing
from bench.machine.timing import NOISY, Effort, Step
from bench.search.request import SearchRequest
from bench.sweep.check import CheckFailed, check
from structures import StructuredLinear, backends, reference
from structures.structure import Structure

PLAIN = "einsum"  # the backend whose error others are measured against
SEED = 0
TRIES = 4


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
        linear = nn.Linear(request.in_features, request.out_features, dtype=dtype)
        turned = linear.weight.detach().t().contiguous().requires_grad_()
        bias = linear.bias

        def addmm(x: Tensor) -> Tensor:
            return torch.addmm(bias, x, turned)

        ways = [self._step(linear, (linear.weight, bias)), self._step(addmm, (turned, bias))]
        with torch.set_grad_enabled(self.train):
            best, times = timing.fastest(ways, timing.SHORT)
        self.dense, self.way, self.seconds = ways[best], ("linear", "addmm")[best], times[best]

    def measure(self, structure: Structure, effort: Effort) -> dict[str, Any]:
        """The ratio to dense with its quartiles, the seconds of a call and the backend; or why there is none."""
        try:
            ran = backends.choose(backends.AUTO, structure, self.x)
            widths, options = structure.widths, dict(structure.options)
            layer = StructuredLinear(structure.spec, *widths, dtype=self.x.dtype, **options)  # type: ignore[arg-type]
            error = check(_Checked(structure, layer), self.x, self.dy)  # type: ignore[arg-type]
        except (ValueError, CheckFailed) as failure:
            return {"refused": str(failure).partition("\n")[0]}
        step = self._step(layer, tuple(layer.parameters()))
        with torch.set_grad_enabled(self.train):
            seconds = timing.once(step)
            several = []
            while not several or (len(several) < TRIES and min(s.width for s in several) > NOISY):
                several.append(timing.paired(step, self.dense, effort, seconds=(seconds, self.seconds)))
        ratio = min(several, key=lambda s: s.width)
        kept = {key: getattr(ratio, key) for key in ("median", "q1", "q3", "rounds")}
        return {"speedup": kept, "seconds": seconds, "backend": ran, "error": error}

    def _step(self, forward: Any, parameters: tuple[Tensor, ...]) -> Step:
        if self.dy is None:
            return lambda: forward(self.x)
        wanted = (self.x, *parameters)
        return lambda: torch.autograd.grad(forward(self.x), wanted, self.dy)


class _Checked:
    """What `bench.sweep.check` asks of a layer."""

    router_may_idle = False  # entries with a gate are not searched
    sums = None

    def __init__(self, structure: Structure, layer: StructuredLinear):
        assert layer.bias is not None
        self.structure, self.forward = structure, layer
        self.parameters = (*layer.factors, layer.bias)
        self.meaning = lambda x, p: reference.apply(structure, x, p[:-1], p[-1])
        self.plain = lambda x, p: backends.apply(PLAIN, structure, x, p[:-1], p[-1])
