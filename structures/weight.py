"""What stands where `nn.Linear` holds its weight: it is looked at for free, and computed when an operation uses it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_T = torch.Tensor
# What is told without computing a number. Tensor's attributes are found by their getters, as torch's overrides are.
_ATTRIBUTES = ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad", "grad_fn", "itemsize",
    "nbytes", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_sparse_csr", "is_quantized",
    "is_nested", "retains_grad", "output_nr", "name", "_version", "_backward_hooks")  # fmt: skip
_LOOKS = frozenset({
    *(getattr(_T, name).__get__ for name in _ATTRIBUTES),
    _T.size, _T.dim, _T.numel, _T.stride, _T.storage_offset, _T.is_contiguous, _T.is_floating_point, _T.is_complex,
    _T.element_size, _T.get_device, _T.ndimension, _T.nelement, _T.__len__, _T.__hash__, _T.is_signed,
    _T.is_inference, torch.numel, torch.is_floating_point, torch.is_complex,
})  # fmt: skip
_DETACHED = frozenset({_T.data.__get__, _T.detach, torch.detach})  # type: ignore[attr-defined]
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_WRITES = frozenset({
    *("__set__", "__delete__", "__setitem__", "backward", "retain_grad", "register_hook"),
    *(f"__i{operator}__" for operator in _OPERATORS),
})  # fmt: skip


class DenseWeight(Tensor):
    """A read-only stand-in for a weight that exists as its factors alone.

    Shape, dtype and device are known without computing. Any other use computes the matrix anew, with gradients to the
    factors, and calls `used` first. What shares memory with that matrix is read-only as well, since a number written
    there would be lost.

    Args:
        like: a tensor of the weight's dtype and device.
        make: computes the weight.
        used: called before the weight is computed.
        wrote: raises the error for a write; it is given the name of the operation.
    """

    @staticmethod
    def __new__(
        cls,
        shape: Iterable[int],
        like: Tensor,
        make: Callable[[], Tensor],
        wrote: Callable[[str], None],
        used: Callable[[], None] | None = None,
        requires_grad: bool = False,
    ) -> DenseWeight:
        made: DenseWeight = Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=like.dtype, device=like.device, requires_grad=requires_grad
        )
        made._make, made._wrote, made._used, made._like = make, wrote, used, like
        return made

    _is_hf_initialized = True  # transformers' initialisation leaves alone what says so
    _make: Callable[[], Tensor]
    _wrote: Callable[[str], None]
    _used: Callable[[], None] | None
    _like: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        with torch._C.DisableTorchFunctionSubclass():
            return f"{type(self).__name__}({tuple(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._value().detach().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self._value().detach().clone()
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if written is not None:
            written._wrote(getattr(func, "__name__", str(func)))
        if func in _DETACHED:
            return args[0]._detached()
        values: list[DenseWeight] = []
        computed: dict[int, Tensor] = {}

        def value(weight: DenseWeight) -> Tensor:
            if id(weight) not in computed:
                values.append(weight)
                computed[id(weight)] = weight._value()
            return computed[id(weight)]

        args, kwargs = tree_map_only(DenseWeight, value, (args, dict(kwargs)))
        result = func(*args, **kwargs)
        for weight in values:
            result = tree_map_only(_T, partial(weight._shared, computed[id(weight)]), result)
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Below autograd, where a gradient could not reach the factors any more, nothing is computed."""
        raise RuntimeError(f"{func}: the weight of a structured layer is used where its gradients would be lost")

    def _value(self) -> Tensor:
        if self._used is not None:
            self._used()
        return self._make()

    def _detached(self) -> DenseWeight:
        return DenseWeight(self.shape, self._like, lambda: self._value().detach(), self._wrote)

    def _shared(self, value: Tensor, result: Tensor) -> Tensor:
        """A result that is a view of the weight's numbers is read-only as they are."""
        if type(result) is not Tensor or result.layout is not torch.strided or result.is_meta:
            return result
        if not value.numel() or result.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
            return result
        return DenseWeight(result.shape, result, lambda: result, self._wrote, None, result.requires_grad)


def warn_of_use(name: str, shape: tuple[int, int]) -> None:
    """Say that reading a structured layer's weight costs what the structure saves."""
    warnings.warn(
        f"{name}: its weight is read, so the dense {shape} matrix is computed at every use; call the layer itself "
        "where you can. Said once for each layer",
        stacklevel=2,
    )


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DenseWeight | None:
    """The weight that an operation would write to, if it would."""
    out = kwargs.get("out")
    name = getattr(func, "__name__", "")
    in_place = name in _WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
    candidates = out if isinstance(out, tuple | list) else [out]
    if in_place:
        first = args[0] if args else next(iter(kwargs.values()), None)
        candidates = [*candidates, *(first if isinstance(first, tuple | list) else [first])]
    return next((each for each in candidates if isinstance(each, DenseWeight)), None)
