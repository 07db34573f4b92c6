"""What every layer must hold, whatever its structure and backend: shared by the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import structures
from structures import backends, exactness, reference
from structures.structure import Structure

# Widths that suit every entry's default options: two rectangles and a square, none a power of two.
SHAPES = ((48, 96), (144, 48), (240, 240))
LONG = ("kaleidoscope", "fastfood")  # chains of as many factors as a width has bits: 14 and 17 at 48 x 96
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of small matrices in float64, relative to their largest number: sums of well under 1000 products of up to 6 numbers.
ROUNDING = exactness.Sums(1000, 6).share(torch.float64)


def shapes(name: str) -> tuple[tuple[int, int], ...]:
    """Those widths; a quarter of them for a long chain, which takes a tenth of all tests' time at the whole ones."""
    return tuple((i // 4, o // 4) for i, o in SHAPES) if name in LONG else SHAPES


def _runs(dtype: torch.dtype) -> list[tuple[str, str]]:
    """Every entry with every backend that runs its kind in this dtype: with a gate or without."""
    runs = []
    for name in structures.names():
        structure = structures.get(name).bind(*SHAPES[0])
        x = torch.empty(1, SHAPES[0][0], dtype=dtype)
        runs += [(name, b) for b in backends.names() if backends.refusal(b, structure, x) is None]
    return runs


RUNS = _runs(torch.float64)  # in which a wrong program shows
RUNS_IN = [(name, backend, dtype) for dtype in DTYPES for name, backend in _runs(dtype)]
TRACED = [(name, backend) for name, backend in RUNS if backend != "grouped"]  # whose groups no graph can hold


def layer(
    name: str,
    shape: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    routed: bool = True,
    **more: object,
):
    """A layer with seeded parameters; a router too is drawn, which a fresh layer has of zeros."""
    torch.manual_seed(seed)
    made = structures.StructuredLinear(name, *shape, dtype=dtype, **more)
    if made.structure.gate is not None and routed:
        with torch.no_grad():
            made.router.normal_()
    return made


def tensors(made, tokens: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(x, dy) in `dtype`, drawn in float64 so that every dtype sees the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, made.in_features, generator=generator, dtype=torch.float64)
    dy = torch.randn(tokens, made.out_features, generator=generator, dtype=torch.float64)
    return x.to(dtype), dy.to(dtype)


def value_and_gradients(function, x: Tensor, parameters: list[Tensor], dy: Tensor) -> list[Tensor]:
    """[y, dx, a gradient for each parameter]."""
    x = x.detach().clone().requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    y = function(x, parameters)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], dy)]


def truth(made, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Value and gradients of the reference in float64, at the layer's own (rounded) parameters."""
    parameters = [p.double() for p in made.parameters()]
    return value_and_gradients(
        lambda x, p: reference.apply(made.structure, x, p[:-1], p[-1]),
        x.double(),
        parameters,
        dy.double(),
    )


def of_backend(made, backend: str, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Value and gradients of one backend, in the dtype of x."""

    def run(x: Tensor, p: list[Tensor]) -> Tensor:
        chosen = backends.choose(backend, made.structure, x)
        return backends.apply(chosen, made.structure, x, tuple(p[:-1]), p[-1])

    return value_and_gradients(run, x, list(made.parameters()), dy)


def plain(made, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Value and gradients of the plainest execution in the dtype of x: einsum's steps, or the reference's experts."""
    if made.structure.gate is None:
        return of_backend(made, "einsum", x, dy)
    parameters = list(made.parameters())
    return value_and_gradients(lambda x, p: reference.apply(made.structure, x, p[:-1], p[-1]), x, parameters, dy)


def limits(made, x: Tensor, dy: Tensor, wanted: list[Tensor], usual: list[Tensor]) -> list[float]:
    """The largest `error` of each of [y, dx, a gradient for each parameter] that the error rule allows.

    Args:
        x, dy: in the dtype that is judged.
        wanted: the `truth` for them.
        usual: the results of `plain`.
    """
    return limits_of(made.structure, x, list(made.parameters()), dy, wanted, usual)


def limits_of(
    structure: Structure,
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor | None,
    wanted: Sequence[Tensor],
    usual: Sequence[Tensor] | None = None,
) -> list[float]:
    """The same for a structure and its operands; without `dy` of y alone, without `usual` none of plain's errors."""
    double = [p.detach().double() for p in parameters]
    off = exactness.deviations(structure, x.double(), double, None if dy is None else dy.double(), wanted, x.dtype)
    found = zip(wanted if usual is None else usual, wanted, off, strict=True)
    return [exactness.allowed(error(p, w), float(d.norm() / _norm(w))) for p, w, d in found]


def assert_right(found: Sequence[Tensor], wanted: Sequence[Tensor], most: Sequence[float], said: str = "") -> None:
    """Shapes are as wanted and no error is above its limit."""
    for number, (f, w, limit) in enumerate(zip(found, wanted, most, strict=True)):
        assert f.shape == w.shape and error(f, w) <= limit, f"result {number}: {said}"


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative error in the Frobenius norm; 0 for two zeros."""
    found, wanted = found.detach().double(), wanted.detach().double()
    difference = (found - wanted).norm()
    return float(difference / _norm(wanted)) if difference != 0 else 0.0  # NaN where there is one


def _norm(wanted: Tensor) -> Tensor:
    return wanted.detach().double().norm().clamp_min(1e-300)
