"""The check before a point is timed: its output on the timed input against a float64 reference, on a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bench.sweep.subject import Subject
from structures import exactness

ROWS = 8  # compared with the reference


class CheckFailed(AssertionError):
    """What was computed is further from the reference than the plain einsum explains."""


def check(subject: Subject, x: Tensor, dy: Tensor | None) -> float:
    """The largest error of y, or of every gradient if `dy` is given, relative to the largest number of each tensor.

    Gradients are taken with dy zero outside the sampled rows, so that the reference needs those rows alone.
    Raises:
        CheckFailed: an error above what the error rule allows (`structures.exactness`), or a number that is not finite.
            Of a layer with `originals` the error is against these, and any is allowed.
    """
    rows = sample(x.shape[0], x.device)
    x_rows = x.detach()[rows]
    parameters = [p.detach() for p in subject.parameters]
    exact_parameters = [p.double() for p in subject.originals or parameters]
    if dy is None:
        with torch.no_grad():
            y = subject.forward(x)
            if not y.isfinite().all():
                raise CheckFailed("y has numbers that are not finite")
            exact_operands = x_rows.double(), exact_parameters
            meant = subject.meaning(*exact_operands)
            if subject.originals is not None:
                return _error(y[rows], meant)
            off = _deviations(subject, *exact_operands, None, [meant], x.dtype)
            return compare(("y",), (y[rows],), (meant,), (subject.plain(x_rows, parameters),), off)
    dy_rows = torch.zeros_like(dy)
    dy_rows[rows] = dy[rows]
    zeros = subject.router_may_idle
    found = torch.autograd.grad(subject.forward(x), (x, *subject.parameters), dy_rows, materialize_grads=zeros)
    operands = x_rows.double(), exact_parameters, dy[rows].double()
    meant, *exact = _results(subject.meaning, *operands, zeros)
    if subject.originals is not None:
        return max(_error(f, e) for f, e in zip((found[0][rows], *found[1:]), exact, strict=True))
    plain = _results(subject.plain, x_rows, parameters, dy[rows], zeros)[1:]
    elsewhere = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    elsewhere[rows] = False
    if found[0][elsewhere].count_nonzero():
        raise CheckFailed("the gradient of x is not zero in rows where dy is zero")
    names = ["dx", *(f"d{i}" for i in range(len(parameters) - 1)), "dbias"]
    off = _deviations(subject, *operands, [meant, *exact], x.dtype)[1:]
    return compare(names, (found[0][rows], *found[1:]), exact, plain, off)


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


def _results(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor,
    zeros: bool,
) -> list[Tensor]:
    """y, and the gradients of x and of all parameters."""
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    y = function(leaves[0], leaves[1:])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy, materialize_grads=zeros)]


def _deviations(
    subject: Subject,
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor | None,
    exact: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[float]:
    """The largest deviation of each result, relative to its largest number."""
    if subject.sums is not None:
        return [s.share(dtype) for s in subject.sums(x.shape[0])]
    meaning = None if subject.structure.constants else subject.meaning  # constants are squared with the factors there
    found = exactness.deviations(subject.structure, x, parameters, dy, exact, dtype, meaning=meaning)
    return [_largest(d) / _scale(e) for d, e in zip(found, exact, strict=True)]


def compare(
    names: Iterable[str],
    found: Sequence[Tensor],
    exact: Sequence[Tensor],
    plain: Sequence[Tensor],
    deviations: Iterable[float],
    least: float = 0.0,
) -> float:
    """The largest error of all tensors, each relative to its largest number, or to `least` where that is larger.

    Raises:
        CheckFailed: one is larger than the plain computation's error and the deviation explain.
    """
    worst = 0.0
    for name, f, e, p, deviation in zip(names, found, exact, plain, deviations, strict=False):
        error, usual = _error(f, e, least), _error(p, e, least)
        allowed = exactness.allowed(usual, deviation)
        if not error <= allowed:  # also for NaN
            raise CheckFailed(
                f"{name} is off by {error:.3g} of its largest number; plain einsum steps by {usual:.3g}, and "
                f"{allowed:.3g} is allowed"
            )
        worst = max(worst, error)
    return worst


def _error(found: Tensor, exact: Tensor, least: float = 0.0) -> float:
    return _largest(found.double() - exact) / max(_scale(exact), least)


def _scale(exact: Tensor) -> float:
    return max(_largest(exact), torch.finfo(torch.float64).tiny)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
