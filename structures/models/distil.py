"""Warm start: train structured layers to match the dense ones they replaced, one layer at a time, on given inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from structures.linear import StructuredLinear
from structures.models import linears
from structures.models.runs import call
from structures.spec import spec_of

MIN_SCALE = 1e-3  # a factor of zeros moves as if its entries were this large
RATES = (1.0, 0.1, 0.01)  # of the rate asked for, until the held-out error falls


class Match(NamedTuple):
    """|y - y_dense| / |y_dense| of a layer on inputs held out from training."""

    layer: str
    before: float
    after: float


def distil(
    model: nn.Module,
    teacher: nn.Module,
    inputs: Tensor | Iterable[Any],
    *,
    steps: int = 200,
    lr: float = 0.02,
    batch: int = 256,
    tokens: int = 2048,
    held_out: float = 0.25,
    seed: int = 0,
    progress: Callable[[Match], None] | None = None,
) -> list[Match]:
    """Train each StructuredLinear of `model`, in place, to give what `teacher`'s layer of that name gives.

    Every layer is trained alone, by Adam with a falling rate, on inputs that the teacher's layer sees; nothing is
    backpropagated through the model. A layer whose held-out error did not fall is trained again at a tenth and at a
    hundredth of the rate (BLAST nearest to a weight needs it), and keeps the parameters it had if that does not help.
    A projection with `inputs=` has the same aim and reaches it sooner; this needs no projection at all.

    Args:
        model: a swapped model or a StructuredLinear, best started by projecting (`swap(..., project=True)`).
        teacher: the dense model or layer, such as a deepcopy from before the swap. It is not changed.
        inputs: for a layer, one tensor (..., in_features); for a model, its batches: tensors, tuples of arguments or
            mappings of keyword arguments, run through the teacher once.
        lr: the first step of an entry, as a share of its factor's root mean square.
        batch: rows a step.
        tokens: rows kept of each layer's inputs, a uniform sample of all: this bounds the memory.
        held_out: share of these rows that measures and does not train.
        progress: called with each layer's result as it is done.
    Returns:
        the error of each layer before and after.
    Raises:
        ValueError: there is nothing to train, or the teacher has no such layer of these widths.

    >>> _ = torch.manual_seed(0)
    >>> teacher = nn.Linear(32, 32)
    >>> inputs = torch.randn(512, 16) @ torch.randn(16, 32)  # of half the inputs' dimensions
    >>> student = from_linear(teacher, "monarch", n_blocks=4)
    >>> match, = distil(student, teacher, inputs, steps=100)
    >>> match.after < 0.8 * match.before
    True
    """
    _check_numbers(steps, batch, tokens, held_out, lr, seed)
    if progress is not None and not callable(progress):
        raise ValueError(f"distil: progress is called with each layer's Match, found {progress!r}")
    for what, module in (("model", model), ("teacher", teacher)):
        if not isinstance(module, nn.Module):
            raise ValueError(f"distil: {what} is an nn.Module, found {type(module).__name__}")
    pairs = _pairs(model, teacher)
    generator = torch.Generator().manual_seed(seed)
    samples = {name: _Sample(tokens, generator) for name in pairs}
    if isinstance(model, StructuredLinear):
        if not isinstance(inputs, Tensor):
            raise ValueError(f"distil: for one layer inputs is a tensor, found {type(inputs).__name__}")
        samples[""].add(inputs)
    else:
        _watch(teacher, {name: dense for name, (_, dense) in pairs.items()}, samples, inputs)
    matches = []
    for name, (layer, dense) in pairs.items():
        x = samples.pop(name).rows(name, layer)
        x = x[torch.randperm(len(x), generator=generator).to(x.device)]
        before, after = _match(layer, dense, x, max(1, int(held_out * len(x))), steps, lr, batch, generator)
        matches.append(Match(name, before, after))
        if progress is not None:
            progress(matches[-1])
    return matches


def _check_numbers(steps: object, batch: object, tokens: object, held_out: object, lr: object, seed: object) -> None:
    whole = (("steps", steps, 0), ("batch", batch, 1), ("tokens", tokens, 2), ("seed", seed, 0))
    for name, value, least in whole:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"distil: {name} is a whole number from {least}, found {value!r}")
    for name, value, most in (("held_out", held_out, 1.0), ("lr", lr, math.inf)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
            below = f" and below {most:g}" if most < math.inf else ""
            raise ValueError(f"distil: {name} is a number above 0{below}, found {value!r}")


class _Sample:
    """A uniform sample of the rows that went by (reservoir sampling), at most `limit` of them."""

    def __init__(self, limit: int, generator: torch.Generator):
        self.limit, self.generator = limit, generator
        self.kept: Tensor | None = None
        self.seen = 0

    def add(self, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1])
        room = self.limit - (0 if self.kept is None else len(self.kept))
        head, rest = x[:room], x[room:]
        if len(head):
            self.kept = head.clone() if self.kept is None else torch.cat([self.kept, head])
        self.seen += len(head)
        if not len(rest) or self.kept is None:
            return
        draws = torch.rand(len(rest), generator=self.generator, dtype=torch.float64)
        places = (draws * torch.arange(self.seen + 1, self.seen + len(rest) + 1)).long()
        self.seen += len(rest)
        for row in (places < self.limit).nonzero().flatten().tolist():  # in order: a later row replaces an earlier one
            self.kept[int(places[row])] = rest[row]

    def rows(self, name: str, layer: StructuredLinear) -> Tensor:
        if self.kept is None or len(self.kept) < 2:
            raise ValueError(f"distil: layer {name!r} has seen {self.seen} rows of inputs; it needs two or more")
        if self.kept.shape[-1] != layer.in_features or not self.kept.isfinite().all():
            found = "inputs that are not finite" if self.kept.isfinite().logical_not().any() else tuple(self.kept.shape)
            raise ValueError(f"distil: layer {name!r} takes in_features={layer.in_features} numbers, found {found}")
        return self.kept


def _pairs(model: nn.Module, teacher: nn.Module) -> dict[str, tuple[StructuredLinear, nn.Module]]:
    pairs = {}
    theirs = dict(teacher.named_modules(remove_duplicate=False))
    for name, layer in model.named_modules():
        if not isinstance(layer, StructuredLinear):
            continue
        dense = theirs.get(name)
        if dense is None or linears.kind(dense) is None:
            found = "nothing" if dense is None else type(dense).__name__
            raise ValueError(f"distil: layer {name!r} has {found} of that name in the teacher, not a linear layer")
        if dense is layer:
            raise ValueError("distil: the teacher is the model itself; take copy.deepcopy(model) before the swap")
        if linears.widths(dense) != (layer.in_features, layer.out_features):
            mine = (layer.in_features, layer.out_features)
            raise ValueError(f"distil: layer {name!r} is {mine}, the teacher's is {linears.widths(dense)}")
        if linears.computed(layer):
            raise ValueError(
                f"distil: layer {name!r}: {linears.computed(layer)}; match it before, and register that afterwards"
            )
        pairs[name] = (layer, dense)
    if not pairs:
        raise ValueError(f"distil: {type(model).__name__} has no StructuredLinear; swap(model, ...) makes them")
    return pairs


@torch.no_grad()
def _watch(
    teacher: nn.Module, watched: Mapping[str, nn.Module], samples: Mapping[str, _Sample], inputs: Iterable[Any]
) -> None:
    """Run the batches through the teacher in eval mode and sample what each layer is given."""
    if not isinstance(inputs, Iterable):
        raise ValueError(
            f"distil: inputs are the model's batches, such as a list of tensors, found {type(inputs).__name__}"
        )
    handles = [
        dense.register_forward_pre_hook(
            lambda module, args, kwargs, sample=samples[name]: sample.add((*args, *kwargs.values())[0]),
            with_kwargs=True,
        )
        for name, dense in watched.items()
    ]
    training = [module for module in teacher.modules() if module.training]
    teacher.eval()
    try:
        for given in [inputs] if isinstance(inputs, Tensor) else inputs:
            call(teacher, given)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def _match(
    layer: StructuredLinear,
    dense: nn.Module,
    x: Tensor,
    held_out: int,
    steps: int,
    lr: float,
    batch: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Train one layer; half precision is trained in float32. Returns the held-out error before and after."""
    own = list(layer.parameters())
    dtype = torch.float64 if own[0].dtype == torch.float64 else torch.float32
    x = x.to(own[0].device, own[0].dtype)
    with torch.no_grad():
        y = torch.cat([dense.forward(x[i : i + batch]) for i in range(0, len(x), batch)]).to(dtype)
    x = x.to(dtype)
    held, trained = slice(0, held_out), slice(held_out, None)
    copy = StructuredLinear(
        spec_of(layer.structure),
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        device=own[0].device,
        dtype=dtype,
        backend=layer.backend,
        **dict[str, Any](layer.structure.options),
    )
    copy.load_state_dict(layer.state_dict())

    @torch.no_grad()
    def error() -> float:
        copy.eval()  # a gate's jitter and capacity hold in training alone
        found = float((copy(x[held]) - y[held]).norm() / y[held].norm().clamp_min(torch.finfo(dtype).tiny))
        copy.train()
        return found

    before = error()
    scales = [max(float(p.detach().square().mean().sqrt()), MIN_SCALE) for p in copy.parameters()]
    size = y[trained].square().mean().clamp_min(torch.finfo(dtype).tiny)

    def train(rate: float) -> None:
        groups: list[dict[str, Any]] = [
            {"params": [p], "lr": rate * s} for p, s in zip(copy.parameters(), scales, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
        for _ in range(steps):
            rows = torch.randint(len(x) - held_out, (batch,), generator=generator).to(x.device)
            loss = (copy(x[trained][rows]) - y[trained][rows]).square().mean() / size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fall.step()

    after = before
    for share in RATES:
        copy.load_state_dict(layer.state_dict())
        with torch.enable_grad():
            train(share * lr)
        after = error()
        if after < before:
            break
    if not after < before:  # also where it is not a number
        return before, before
    with torch.no_grad():
        for mine, theirs in zip(own, copy.parameters(), strict=True):
            mine.copy_(theirs)
    return before, after
