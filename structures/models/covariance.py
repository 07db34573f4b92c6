"""Second moments of the inputs of a model's layers, collected over batches."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from structures.language.expressions import nearest
from structures.models import linears
from structures.projection.covariance import kind_of


class _Moment:
    """The sum of x x^T over all tokens seen."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, x: Tensor, dtype: torch.dtype) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).to(dtype)
        if self.total is None:
            self.total = torch.zeros(x.shape[-1], x.shape[-1], dtype=dtype, device=x.device)
        self.total.addmm_(flat.mT, flat)
        self.tokens += len(flat)


class _Collector:
    """Forward hooks that accumulate. Layers that read the same tensors in the first batch share one sum after it."""

    def __init__(self, names: Sequence[str], dtype: torch.dtype):
        self.dtype = dtype
        self.moments = {name: _Moment() for name in names}
        self.leader = {name: name for name in names}  # the first layer with the same inputs
        self.known: dict[tuple[int, int], tuple[weakref.ref[Tensor], int]] = {}
        self.reads: dict[str, list[int]] = {name: [] for name in names}  # serial numbers of the tensors of this batch
        self.count = 0
        self.first = True

    def hook(self, name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        serial, call = self._serial(x), len(self.reads[name])
        self.reads[name].append(serial)
        leader = self.leader[name]
        if leader == name:
            self.moments[name].add(x, self.dtype)
        elif self.reads[leader][call : call + 1] != [serial]:
            raise self._parted(name)

    def _serial(self, x: Tensor) -> int:
        """A number for each tensor, in each state, of a batch."""
        key = (id(x), 0 if x.is_inference() else x._version)
        reference, serial = self.known.get(key, (None, -1))
        if reference is None or reference() is not x:
            self.count += 1
            serial = self.count
            self.known[key] = (weakref.ref(x), serial)
        return serial

    def _parted(self, name: str) -> ValueError:
        return ValueError(
            f"{name} read the same tensors as {self.leader[name]} in the first batch, but not in a later one; collect "
            "them in two passes, by names="
        )

    def end_batch(self) -> None:
        if self.first:
            leaders: dict[tuple[int, ...], str] = {}
            for name, reads in self.reads.items():
                self.leader[name] = leaders.setdefault(tuple(reads), name) if reads else name
                if self.leader[name] != name:
                    del self.moments[name]
            self.first = False
        for name, leader in self.leader.items():
            if self.reads[name] != self.reads[leader]:
                raise self._parted(name)
        self.reads = {name: [] for name in self.reads}
        self.known.clear()


@torch.no_grad()
def collect_covariances(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[object] | Mapping[str, object]],
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The mean of x x^T over all inputs x of each linear layer, in one pass over the batches.

    The layers' inputs are not kept: memory is one (in_features, in_features) matrix for each layer, and one for all
    layers that read the same tensor, such as query, key and value. Means are not taken off (see `project_factors`).
    Padding counts as tokens: leave it out of the batches where that matters. The model runs as it is (call `.eval()`
    first to switch dropout off) and is left as it was.

    Args:
        batches: for each call of the model a tensor, a sequence of arguments or a mapping of keyword arguments; a
            tensor in place of them all is one batch.
        names: names of modules, as in `model.named_modules()`. By default all linear layers that are called: nn.Linear,
            transformers' Conv1D (whose input is (..., in_features) too) and StructuredLinear.
        dtype: of the sums, float32 or float64.
    Returns:
        name -> (in_features, in_features), to be given as `inputs=`; layers with the same inputs share one tensor.
    Raises:
        ValueError: unknown names, no batches, a layer of `names` that was never called (nn.MultiheadAttention reads
            its out_proj without a call; so does what the batches do not reach), or inputs that are not finite.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    >>> seen = collect_covariances(model, [torch.randn(32, 8) for _ in range(4)])
    >>> {name: tuple(matrix.shape) for name, matrix in seen.items()}
    {'0': (8, 8), '2': (16, 16)}
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"collect_covariances: model is an nn.Module, found {type(model).__name__}")
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        found = type(batches).__name__
        raise ValueError(f"batches: a list of batches, one for each call of the model, or a tensor; found {found}")
    modules = dict(model.named_modules())
    names = [names] if isinstance(names, str) else names
    asked = names is not None
    if names is None:
        names = [name for name, module in modules.items() if linears.kind(module) is not None]
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"collect_covariances: dtype is torch.float32 or torch.float64, found {dtype}")
    unknown = [name for name in names if name not in modules]
    if unknown:
        linear = [name for name, module in modules.items() if linears.kind(module) is not None]
        raise ValueError(f"names: the model has no module {unknown[0]!r}{nearest(unknown[0], linear)}")
    if not names:
        raise ValueError("names: no linear layers")
    collector = _Collector(names, dtype)
    handles = [
        modules[name].register_forward_pre_hook(partial(collector.hook, name), with_kwargs=True) for name in names
    ]
    try:
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, Tensor):
                model(batch)
            elif isinstance(batch, tuple | list):
                model(*batch)
            else:
                raise ValueError(
                    f"batches: each is a tensor, a tuple or a mapping of arguments, found {kind_of(batch)}"
                )
            collector.end_batch()
    finally:
        for handle in handles:
            handle.remove()
    called = [name for name in names if collector.moments[collector.leader[name]].tokens]
    if not called and not asked:
        raise ValueError(f"batches: none of the {len(names)} linear layers was called; were there any batches?")
    return _means(collector, names if asked else called)


def _means(collector: _Collector, names: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in names:
        leader = collector.leader[name]
        moment = collector.moments[leader]
        if moment.total is None or moment.tokens == 0:
            raise ValueError(f"{name} was never called with any tokens")
        if leader not in found:
            if not bool(torch.isfinite(moment.total).all()):
                raise ValueError(f"{name}: its inputs hold NaN or infinity, or their squares overflow")
            found[leader] = moment.total.div_(moment.tokens)
        found[name] = found[leader]
    return {name: found[name] for name in names}
