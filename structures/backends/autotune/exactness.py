"""A program's results and gradients, compared with the plain einsum in float64 on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends import einsum
from structures.backends.autotune.programs import Run
from structures.backends.autotune.record import Want
from structures.structure import Structure

ROWS = 8
TWICE, FLOOR = 2.0, 8  # errors of the plain einsum in the same dtype, and units in the last place on top


@dataclass(frozen=True)
class Call:
    """What programs are called with: leaves that ask for the gradients wanted, and dy (tokens, out_features)."""

    x: Tensor  # (tokens, in_features)
    factors: tuple[Tensor, ...]
    bias: Tensor | None
    dy: Tensor
    want: Want | None

    def step(self, run: Run) -> Callable[[], object]:
        """One forward, and backward where gradients are wanted."""
        x, factors, bias, dy, leaves = self.x, self.factors, self.bias, self.dy, self._leaves()
        if not leaves:
            return lambda: run(x, factors, bias)
        return lambda: torch.autograd.grad(run(x, factors, bias), leaves, dy)

    def results(self, run: Run) -> list[Tensor]:
        """y and the gradient of x in the rows looked at, and those of factors and bias with dy zero in all others."""
        rows, leaves = self.rows(), self._leaves()
        with torch.set_grad_enabled(self.want is not None):
            y = run(self.x, self.factors, self.bias)
            found = [y.detach()[rows]]
            if leaves:
                masked = torch.zeros_like(self.dy)
                masked[rows] = self.dy[rows]
                gradients = torch.autograd.grad(y, leaves, masked)
                found += [g[rows] if t is self.x else g for t, g in zip(leaves, gradients, strict=True)]
        return found

    def few(self, dtype: torch.dtype) -> Call:
        """The same in the rows looked at alone, in another dtype."""
        rows = self.rows()
        bias = None if self.bias is None else self.bias.to(dtype)
        factors = [factor.to(dtype) for factor in self.factors]
        return _call(self.x[rows].to(dtype), factors, bias, self.dy[rows].to(dtype), self.want)

    def rows(self) -> Tensor:
        """The numbers of the rows looked at, first and last among them."""
        tokens = self.x.shape[0]
        count = min(tokens, ROWS)
        return torch.tensor([i * (tokens - 1) // max(1, count - 1) for i in range(count)], device=self.x.device)

    def _leaves(self) -> list[Tensor]:
        return [t for t in (self.x, *self.factors, self.bias) if t is not None and t.requires_grad]


def call_like(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, want: Want | None, out_features: int) -> Call:
    """The same numbers with a graph of their own, and a random dy; the user's random numbers stay as they are."""
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(x.shape[0], out_features, generator=generator).to(x.device, x.dtype)
    return _call(x, factors, bias, dy, want)


def _call(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dy: Tensor, want: Want | None) -> Call:
    def leaf(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor.detach().requires_grad_(wanted)

    flags = want or (False,) * (2 + len(factors))
    own = tuple(leaf(factor, wanted) for factor, wanted in zip(factors, flags[2:], strict=True))
    return Call(leaf(x, flags[0]), own, None if bias is None else leaf(bias, flags[1]), dy, want)


class Truth:
    """The results of the plain einsum for one call: exact ones, and how far off it is in the call's dtype."""

    def __init__(self, structure: Structure, call: Call):
        def plain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
            return einsum.apply(structure, x, factors, bias)

        self.call = call
        self.exact = call.few(torch.float64).results(plain)
        self.usual = [_error(u, e) for u, e in zip(call.few(call.x.dtype).results(plain), self.exact, strict=True)]

    def worse(self, run: Run) -> str | None:
        """What a program gets further from the truth than the plain einsum explains; None where nothing is."""
        floor = FLOOR * torch.finfo(self.call.x.dtype).eps
        for number, found in enumerate(self.call.results(run)):
            error, usual = _error(found, self.exact[number]), self.usual[number]
            if not error <= TWICE * usual + floor:  # also for NaN
                return f"result {number} is off by {error:.2g} of its largest number, the plain einsum by {usual:.2g}"
        return None


def _error(found: Tensor, exact: Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - exact).abs().max() / scale)
