"""Before a point is timed: what it computes on the timed input, against its meaning in float64, on a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bench.sweep.subject import Subject

ROWS = 8  # compared with the reference
TWICE = 2.0  # the error allowed, in errors of the plain einsum steps in the same dtype
FLOOR = 8  # units in the last place of the largest number, allowed on top


class CheckFailed(AssertionError):
    """What was computed is further from the reference than the plain einsum explains."""


def check(subject: Subject, x: Tensor, dy: Tensor | None) -> float:
    """The largest error of y, or of every gradient if `dy` is given, relative to the largest number of each tensor.

    Gradients are taken with dy zero outside the sampled rows, so that the reference needs those rows alone.
    Raises:
        CheckFailed: an error above twice the plain einsum's plus a few units in the last place, or a number that is
            not finite.
    """
    rows = sample(x.shape[0], x.device)
    x_rows = x.detach()[rows]
    parameters = [p.detach() for p in subject.parameters]
    if dy is None:
        with torch.no_grad():
            y = subject.forward(x)
            if not y.isfinite().all():
                raise CheckFailed("y has numbers that are not finite")
            meant = subject.meaning(x_rows.double(), _double(parameters))
            return _compare({"y": (y[rows], meant, subject.plain(x_rows, parameters))}, x.dtype)
    dy_rows = torch.zeros_like(dy)
    dy_rows[rows] = dy[rows]
    zeros = subject.router_may_idle
    found = torch.autograd.grad(subject.forward(x), (x, *subject.parameters), dy_rows, materialize_grads=zeros)
    exact = _gradients(subject.meaning, x_rows.double(), _double(parameters), dy[rows].double(), zeros)
    plain = _gradients(subject.plain, x_rows, parameters, dy[rows], zeros)
    elsewhere = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    elsewhere[rows] = False
    if found[0][elsewhere].count_nonzero():
        raise CheckFailed("the gradient of x is not zero in rows where dy is zero")
    names = ["dx", *(f"d{i}" for i in range(len(parameters) - 1)), "dbias"]
    triples = zip((found[0][rows], *found[1:]), exact, plain, strict=True)
    return _compare(dict(zip(names, triples, strict=True)), x.dtype)


def sample(tokens: int, device: torch.device) -> Tensor:
    """Up to 8 rows, evenly spread, the first and the last among them."""
    count = min(tokens, ROWS)
    return torch.tensor([i * (tokens - 1) // max(1, count - 1) for i in range(count)], device=device)


def saved_bytes(subject: Subject, x: Tensor) -> int:
    """Bytes that a forward keeps for its backward, the input included."""
    return saved_by(lambda: subject.forward(x), subject.parameters)


def saved_by(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for its backward: storages counted once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    del y
    return sum(kept.values())


def _gradients(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor,
    zeros: bool,
) -> Sequence[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    return torch.autograd.grad(function(leaves[0], leaves[1:]), leaves, dy, materialize_grads=zeros)


def _double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


def _compare(tensors: dict[str, tuple[Tensor, Tensor, Tensor]], dtype: torch.dtype) -> float:
    worst = 0.0
    for name, (found, exact, plain) in tensors.items():
        error, usual = _error(found, exact), _error(plain, exact)
        allowed = TWICE * usual + FLOOR * torch.finfo(dtype).eps
        if not error <= allowed:  # also for NaN
            raise CheckFailed(f"{name} is off by {error:.3g} of its largest number; plain einsum steps by {usual:.3g}")
        worst = max(worst, error)
    return worst


def _error(found: Tensor, exact: Tensor) -> float:
    if found.numel() == 0:
        return 0.0
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - exact).abs().max() / scale)
