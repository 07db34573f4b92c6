"""A layer run from a dense weight kept beside its factors: opt-in, for evaluation without gradients.

It costs the memory of a dense layer on top of the factors', and dense's FLOPs: the choice for a few tokens a call
where the structure saves parameters and no time. The weight is made anew when a factor was seen to change: in-place
operations, optimizers and load_state_dict count a tensor's version up, `.to()`, `assign=True` and `.data = ...` bring
other storages. What PyTorch does not count is not seen: writing in place through `.data`, through NumPy, DLPack or a
pointer, from another process into shared memory, by a collective of torch.distributed such as `broadcast`. After that
call `release()`, or `train()` and `eval()`. A captured CUDA graph goes on reading the weight of its
capture: capture anew.

Under FSDP it refuses: parameters are gathered before each call into the same tensors, without counting.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from structures.backends import einsum
from structures.structure import Structure

NAME = "dense_cache"
CHUNK = 1024  # rows of the identity that the weight is made from at a time

_functorch_active = torch._C._are_functorch_transforms_active


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Why this input cannot be run, as a sentence; what the layer must be is checked by `Keeper`."""
    if getattr(structure, "gate", None) is not None:
        return f"{structure.name} has a gate: W is each token's own, and there is no one weight to keep"
    if not x.is_floating_point():
        return f"{x.dtype} is not a real floating-point type"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the gradient of x is wanted, and the kept weight has none to the factors; use torch.no_grad()"
    return None


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """A dense layer's; making the weight is not counted."""
    return structure.dense_flops(tokens, train=train)


@dataclass(frozen=True)
class DensePlan:
    """What runs in place of a planner's program; print it."""

    in_features: int
    out_features: int
    bytes: int  # of the kept weight
    held: bool  # the weight exists now

    def flops(self, tokens: int) -> int:
        """Floating-point operations, 2 per multiply-add, without the bias."""
        return 2 * tokens * self.in_features * self.out_features

    def __str__(self) -> str:
        state = "held now" if self.held else "made at the next call"
        size = f"{self.bytes / 2**20:.3g} MiB"
        return (
            f"{self.in_features} -> {self.out_features}: F.linear with a dense weight of {size}, kept beside the "
            f"factors, {state}"
        )


@dataclass(frozen=True)
class _Held:
    """A dense weight, and what it was made of: each factor, an alias of its storage, and its version.

    The alias keeps the storage from being freed, so that no other one can have its address meanwhile.
    """

    weight: Tensor
    seen: tuple[tuple[Tensor, Tensor, int], ...]

    def of(self, factors: Sequence[Tensor], dtype: torch.dtype) -> bool:
        """Whether the weight is that of these factors in this dtype: the same tensors, unchanged, where they were."""
        if self.weight.dtype is not dtype or len(factors) != len(self.seen):
            return False
        for factor, (seen, alias, version) in zip(factors, self.seen, strict=True):
            if factor is not seen or factor._version != version:
                return False
            if factor.dtype is not alias.dtype or factor.device != alias.device or not factor.is_set_to(alias):
                return False
        return True


class Keeper:
    """The dense weight of one layer. Copies and pickles start without."""

    ran = NAME

    def __init__(self) -> None:
        self._held: _Held | None = None  # replaced whole: threads see one or the other
        self.number = next(_numbers)
        _keepers[self.number] = self

    @property
    def bytes(self) -> int:
        """Bytes held now beside the factors."""
        return 0 if self._held is None else self._held.weight.nbytes

    def __call__(
        self,
        structure: Structure,
        x: Tensor,
        factors: Sequence[Tensor],
        bias: Tensor | None,
        *,
        own: Sequence[Tensor],
        training: bool,
        gathered: bool = False,
    ) -> Tensor:
        """y (tokens, out_features). The weight is made of `own`; x and bias may have autocast's dtype.

        Raises:
            ValueError: the layer is in training mode, a gradient is wanted, or changes of a factor cannot be seen.
        """
        reason = refuses(structure, x) or _refusal(own, bias, training, gathered)
        if reason is not None:
            raise ValueError(f"backend {NAME!r}: {reason}")
        if torch.compiler.is_compiling():
            number = _number_of(structure, self.number)
            y: Tensor = torch.ops.structures.dense_cache(x, list(own), bias, structure.out_features, number)
            return y
        return self.linear(structure, x, own, bias)

    def linear(self, structure: Structure, x: Tensor, own: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """y, with the weight held, or a new one if it is not that of these factors."""
        held = self._held
        if held is None or not held.of(own, x.dtype):
            held = self._held = None  # the old weight is freed first: two need not fit
            with torch.no_grad(), torch.inference_mode(False):
                seen = tuple((factor, factor.detach(), factor._version) for factor in own)
                held = self._held = _Held(dense_weight(structure, own, x.dtype), seen)
        return functional.linear(x, held.weight, bias)

    def plan(
        self, structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, bias: bool, grad: bool
    ) -> DensePlan:
        """What runs, with the memory it takes.

        Raises:
            ValueError: gradients are asked for.
        """
        if grad:
            raise ValueError(f"backend {NAME!r}: it runs without gradients only")
        size = dtype.itemsize * structure.dense_params
        return DensePlan(structure.in_features, structure.out_features, size, self._held is not None)

    def release(self) -> None:
        """Forget the weight; the next call makes it anew."""
        self._held = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        return Keeper()

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, ()


_numbers = itertools.count()
_keepers: weakref.WeakValueDictionary[int, Keeper] = weakref.WeakValueDictionary()


def dense_weight(structure: Structure, factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """W (out_features, in_features) in `dtype`; worked out in float32 at least, rounded once."""
    exact = torch.promote_types(factors[0].dtype if factors else dtype, torch.float32)
    operands = [factor.detach().to(exact) for factor in factors]
    device = operands[0].device if operands else None
    weight = torch.empty(structure.out_features, structure.in_features, dtype=dtype, device=device)
    for start in range(0, structure.in_features, CHUNK):
        stop = min(start + CHUNK, structure.in_features)
        rows = torch.zeros(stop - start, structure.in_features, dtype=exact, device=device)
        rows.diagonal(start).fill_(1)
        weight[:, start:stop] = einsum.apply(structure, rows, operands).t()
    return weight


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) by a weight made for this one call: a layer keeps it instead."""
    return Keeper()(structure, x, factors, bias, own=factors, training=False)


def _refusal(factors: Sequence[Tensor], bias: Tensor | None, training: bool, gathered: bool) -> str | None:
    """Why a weight may not be kept for these parameters."""
    if gathered:
        return "FSDP gathers the parameters anew for every call, and changes are not counted; choose backend='auto'"
    if training:
        return "the layer is in training mode; call eval() first, or choose backend='auto'"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*factors, bias)):
        return (
            "gradients of the parameters are wanted, and the kept weight has none to them; call under "
            "torch.no_grad() or torch.inference_mode(), or freeze them with requires_grad_(False)"
        )
    if not torch.compiler.is_compiling():
        if _functorch_active():
            return "inside a function transform parameters have no storage to watch; choose backend='auto'"
        for factor in factors:
            if type(factor) not in (torch.nn.Parameter, Tensor):
                return f"changes of a {type(factor).__name__} cannot be seen; choose backend='auto'"
            if factor.is_inference():
                return "changes of tensors made under torch.inference_mode are not counted; make the layer outside it"
    return None


# -- in a compiled graph: one operator that looks at the versions when it runs

_structures: dict[int, Structure] = {}


def _number_of(structure: Structure, number: int) -> int:
    _structures[number] = structure
    return number


_number_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.custom_op("structures::dense_cache", mutates_args=())
def _operator(x: Tensor, factors: list[Tensor], bias: Tensor | None, out_features: int, number: int) -> Tensor:
    keeper = _keepers.get(number)
    if keeper is None:
        raise ValueError(f"backend {NAME!r}: the layer that this graph was compiled for is gone; compile it again")
    return keeper.linear(_structures[number], x, factors, bias)


@_operator.register_fake
def _(x: Tensor, factors: list[Tensor], bias: Tensor | None, out_features: int, number: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)
