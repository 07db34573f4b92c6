"""Reading the input as a term views it, shared by the backends."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from structures.structure import Gather, Structure, Term

_functorch_active = torch._C._are_functorch_transforms_active


def whole(y: Tensor) -> Tensor:
    """`y` as a tensor of its own on the same memory, where nothing records what is done with it.

    A view, which the last product of a chain may leave, cannot be changed in place behind an autograd function, nor,
    made where gradients are off, where they are on: `nn.ReLU(inplace=True)` takes every output of nn.Linear.
    """
    if not y._is_view() or _functorch_active() or torch._C._get_tracing_state() is not None:
        return y
    own: Tensor = torch.empty(0, dtype=y.dtype, device=y.device).set_(y)  # type: ignore[call-overload]
    return own


def load(structure: Structure, term: Term, x: Tensor) -> Tensor:
    """x (tokens, in_features) -> (tokens, *term.loaded): a view, but for the copy that a gather makes."""
    z, axes = x.reshape(x.shape[0], *structure.shape(term.input)), term.input
    for gather in term.gathers:
        at = axes.index(gather.axis)
        z = z.index_select(1 + at, index(gather, x.device))
        z = z.reshape(*z.shape[: 1 + at], *structure.shape(gather.by), *z.shape[2 + at :])
        axes = (*axes[:at], *gather.by, *axes[at + 1 :])
    return z


def index(gather: Gather, device: torch.device) -> Tensor:
    """The gather's table on `device`; kept, but while a graph is traced, where it becomes a constant of the graph."""
    if torch.compiler.is_compiling():
        return torch.tensor(gather.table, device=device)
    return _index(gather.table, device)


@lru_cache(maxsize=256)
def _index(table: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor kept here could not be saved for a later backward
        return torch.tensor(table, device=device)
