"""The layer: parameters, initialisation and forward of a structured linear map, in place of `nn.Linear`."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from structures import backends, initial, reference, registry
from structures.routing import Routing, route
from structures.spec import Spec
from structures.structure import Structure
from structures.weight import DenseWeight, warn_of_use

HOOKED = ("orig", "g", "v")  # endings of the parameters behind a hook: pruning, spectral norm, weight norm


class StructuredLinear(nn.Module):
    """`y = W x + bias` with W a structured matrix; behaves as `nn.Linear` of the same widths does.

    Args:
        structure: name of a registry entry, or a Spec.
        in_features, out_features: widths.
        bias: learn an additive bias (out_features,).
        device, dtype: of the parameters.
        backend: how it runs: "auto", or one of `structures.backends.names()`, which then never falls back.
        init: how fresh parameters are drawn: "linear" (output variance and bias of a fresh nn.Linear), "spectral"
            (muP), "paper" (the entry's source's own), "zero" (the output is 0, for the end of a residual branch) or
            "identity" (where the entry can be it); `structures.initial.draws` says it in full.
        options: the entry's options, such as `n_blocks=4`, and `pad=True`, which runs widths that do not fit as larger
            ones, the input zero-filled and the output cut.
    Shape:
        (..., in_features) -> (..., out_features), any number of leading dimensions.
    Raises:
        KeyError: no such entry.
        ValueError: sizes that do not fit the widths, or an option, backend or init that does not exist.

    The parameters are `factor_0`, `factor_1`, ... in the order and shape written in the einsum, `router` (experts,
    in_features) where the entry has a gate, and `bias`.
    """

    bias: Tensor | None
    # torch.jit.trace would read these properties and keep what they are as the traced module's
    __jit_ignored_attributes__ = ("backend", "factors", "operands", "weight")
    _is_fsdp_managed_module = False  # FSDP sets it on every module whose parameters it gathers

    def __init__(
        self,
        structure: str | Spec,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = backends.AUTO,
        init: str = "linear",
        **options: object,
    ):
        super().__init__()
        spec = registry.get(structure) if isinstance(structure, str) else structure
        self.structure: Structure = spec.bind(in_features, out_features, **options)
        self.in_features, self.out_features = self.structure.widths
        self.backend = backend
        self.ran: str | None = None  # the backend of the last eager forward
        self.init = init
        self.collected: list[Routing] | None = None  # where structures.collect_routing has the routing of calls put
        self._names = self.structure.factor_names
        initial.draws(self.structure, init)  # an unknown rule is an error before anything is allocated
        for name, shape in zip(self._names, self.structure.factor_shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if self.structure.gate is not None:
            self._names = (*self._names, "router")
            router = torch.empty(self.structure.router_shape, device=device, dtype=dtype)
            self.register_parameter("router", nn.Parameter(router))
        empty = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if empty is None else nn.Parameter(empty))
        if not self._parameters.keys() - {"bias"} and not bias:  # nothing else would know dtype and device
            self.register_buffer("like", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self.reset_parameters()
        self._prepare()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        errors: list[str] = more[-1]
        for name, shape in zip(self.structure.factor_names, self.structure.factor_shapes, strict=True):
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor) and tuple(found.shape) != shape:
                errors.append(
                    f"{prefix}{name} has shape {tuple(found.shape)}, the entry {self.structure.name} has {shape} here: "
                    "it was saved with other options, or by a version of the entry that was defined otherwise; project "
                    "the dense weight of that version anew"
                )
        super()._load_from_state_dict(state_dict, prefix, *more)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As any module's, by the class that can be imported: what is made of it takes the structure's own again."""
        function, args, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        own = self.__class__ is _classes.get(self.structure)
        return (_bare, (), *rest) if own else (function, args, *rest)

    def _prepare(self) -> None:
        backends.prepare(self.structure)
        if type(self) is StructuredLinear:
            self.__class__ = _class_for(self.structure)

    @property
    def backend(self) -> str:
        """How it was asked to run; another name may be assigned."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        backends.check_name(name)
        self._backend = name

    def release(self) -> None:
        """Free the copies of factors that the backend keeps for calls without gradients; `train()` does it too.

        They are made anew where PyTorch counts a change of a factor. After one that it does not count, through NumPy,
        `.data` in place or a collective of torch.distributed, call this.
        """
        backends.release(self.operands)

    def train(self, mode: bool = True) -> StructuredLinear:
        """As nn.Module's; kept copies of factors are freed."""
        if mode:
            self.release()
        return super().train(mode)

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The trainable factors in written order."""
        return self.operands[: self.structure.trainable]

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """What backends and the reference call factors: those, and last the router where there is one."""
        held: Mapping[str, Any] = self._parameters  # past __getattr__: 0.5 us a factor, a tenth of a small layer's call
        try:
            return tuple([held[name] for name in self._names])
        except KeyError:  # one was replaced by a plain tensor or a parametrization
            return tuple([getattr(self, name) for name in self._names])

    def held(self) -> dict[str, tuple[nn.Parameter, ...]]:
        """By the name of each factor, the router and the bias: the parameters that hold it.

        That is itself, or what it is computed from: by `torch.nn.utils.parametrize` (weight norm, orthogonal), or by a
        hook of the older kind (pruning).
        """
        found: dict[str, tuple[nn.Parameter, ...]] = {}
        for name in (*self._names, "bias"):
            own = self._parameters.get(name)
            if own is not None:
                found[name] = (own,)
            elif parametrize.is_parametrized(self, name):
                found[name] = tuple(self.get_submodule(f"parametrizations.{name}").parameters())
            else:
                held = [self._parameters.get(f"{name}_{ending}") for ending in HOOKED]
                found[name] = tuple(p for p in held if p is not None)
        return found

    @property
    def weight(self) -> Tensor:
        """What reads nn.Linear's weight finds: `to_dense()`, computed where an operation uses it; read-only."""
        if self.structure.gate is not None:
            raise AttributeError  # what __getattr__ says of it
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return self.to_dense()
        factors = self.factors
        like = factors[0] if factors else self._any()
        shape = self.out_features, self.in_features
        trains = any(f.requires_grad for f in factors)
        return DenseWeight(shape, like, self.to_dense, self._wrote, self._used, trains)

    @weight.setter
    def weight(self, value: object) -> NoReturn:
        self._wrote("=")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            self._wrote("=")
        super().register_parameter(name, param)

    def _wrote(self, operation: str) -> NoReturn:
        raise AttributeError(
            f"{self.structure.name}: weight is computed from `factors`, so {operation!r} cannot write to it; "
            "reset_parameters() draws the factors anew, structures.from_linear(linear, ...) makes a layer from a weight"
        )

    def _used(self) -> None:
        if "_weight_was_used" not in self.__dict__:
            self.__dict__["_weight_was_used"] = True
            warn_of_use(self.structure.name, (self.out_features, self.in_features))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, by the rule given as `init`.

        What a parametrization computes is drawn and put through its `right_inverse`, as when it was registered.

        Raises:
            ValueError: a hook of the older kind computes a factor (pruning, weight norm): it would undo the draw.
        """
        draws = dict(zip(self.structure.factor_names, initial.draws(self.structure, self.init), strict=True))
        if self.structure.gate is not None:
            draws["router"] = initial.ZERO  # all experts weigh alike, and the first ones are chosen
        if self.bias is not None:
            draws["bias"] = initial.bias_draw(self.structure, self.init)
        for name, draw in draws.items():
            if parametrize.is_parametrized(self, name):
                drawn = torch.empty_like(getattr(self, name))
                draw.fill(drawn)
                _assign(self.get_submodule(f"parametrizations.{name}"), drawn)
            elif name not in self._parameters and any(f"{name}_{ending}" in self._parameters for ending in HOOKED):
                raise ValueError(
                    f"{self.structure.name}: {name} is computed by a hook (torch.nn.utils.prune, weight_norm), which "
                    "would undo the draw; remove that, draw, and apply it again"
                )
            else:
                draw.fill(getattr(self, name))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features); the argument is called as nn.Linear's is.

        Raises:
            ValueError: the input has another width, dtype or device than the layer, or the backend asked for refuses.
        """
        if type(input) is not Tensor or input.is_nested:
            y = _unlike_a_tensor(self, input)
            if y is not None:
                return y
        if self.structure.gate is not None:
            return self.forward_with_routing(input)[0]
        x = input
        factors, bias = self.operands, self._parameters["bias"] if "bias" in self._parameters else self.bias
        if self._is_fsdp_managed_module:
            backends.release(factors)  # gathered anew for every call, without counting
        if not torch.compiler.is_compiling():
            y = backends.plain(self._backend, self.structure, x, factors, bias)
            if y is not None:
                self.__dict__["ran"] = "native"  # past __setattr__, which looks for parameters and modules
                return y
        shape = x.shape
        traced = not torch.compiler.is_compiling() and torch._C._is_tracing()  # its sizes are tensors
        if not shape or (not traced and shape[-1] != self.in_features):
            raise ValueError(_wrong_width(self, x))
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            x, factors, bias = _autocast(x, factors, bias)
        dtype, device = x.dtype, x.device
        for tensor in factors if bias is None else (*factors, bias):
            if tensor.dtype is not dtype or tensor.device != device:
                raise ValueError(_mismatch(self, x, tensor))
        flat = len(shape) == 2
        tokens = x if flat else x.reshape(-1, self.in_features)
        name = backends.choose(self._backend, self.structure, tokens)
        y = backends.apply(name, self.structure, tokens, factors, bias)
        if not torch.compiler.is_compiling():
            self.__dict__["ran"] = name
        return y if flat else y.reshape(*shape[:-1], self.out_features)

    def forward_with_routing(self, input: Tensor) -> tuple[Tensor, Routing]:
        """`forward`, and what the router decided, with its losses: of an entry with a gate.

        The choice of experts is made from the input and the router as they are given, before an autocast region's
        dtype. A gate's jitter and capacity hold in training mode alone, so that in eval mode a token's output depends
        on no other token.

        Raises:
            ValueError: as `forward`, or the entry has no gate.
        """
        gate, x, bias = self.structure.gate, input, self.bias
        if gate is None:
            raise ValueError(f"{self.structure.name} has no gate, so there is no routing; call the layer itself")
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(_wrong_width(self, x))
        operands = self.operands
        if self._is_fsdp_managed_module:
            backends.release(operands)  # as in forward
        tokens = x.reshape(-1, self.in_features)
        factors, router = operands[:-1], operands[-1]
        within = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
        for tensor in operands if bias is None else (*operands, bias):
            if tensor.device != x.device or (tensor.dtype is not x.dtype and not within):
                raise ValueError(_mismatch(self, x, tensor))
        routing = route(gate, tokens, router, training=self.training)
        if within:
            tokens, factors, bias = _autocast(tokens, factors, bias)
        name = backends.choose(self.backend, self.structure, tokens)
        if not torch.compiler.is_compiling():
            self.__dict__["ran"] = name
        y = backends.weighted(name, self.structure, tokens, factors, routing, bias)
        collected = self.collected
        if collected is not None and (torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1):
            collected.append(routing)  # not what a checkpoint computes again, inside a backward
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features), routing

    def plan(self, tokens: int, *, grad: bool = False) -> backends.Plan | backends.stages.StagePlans:
        """What runs for this many tokens, with its predicted cost; print it.

        Args:
            grad: with the gradients of the input and of every parameter, and as they are planned of constants too.
        """
        like = self._any()
        where: dict[str, Any] = {"dtype": like.dtype, "device": like.device.type, "bias": self.bias is not None}
        return backends.plan(self._backend, self.structure, tokens, grad=grad, **where)

    def to_dense(self, gates: Tensor | None = None) -> Tensor:
        """W of shape (out_features, in_features), what nn.Linear calls weight; gradients flow to the factors.

        Args:
            gates: of an entry with a gate, the weight of each expert (experts,): W is each token's own there.
        Raises:
            ValueError: the entry has a gate and there are no such weights, or it has none and there are.
        """
        gate = self.structure.gate
        if (gate is None) != (gates is None) or (gate and gates is not None and gates.shape != (gate.experts,)):
            raise ValueError(_wrong_gates(self, gates))
        return reference.to_dense(self.structure, self.factors, gates, self._any())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As any module's, on flat parameters: a memory format of images says nothing of a factor's four axes."""

        def flat(tensor: Tensor) -> Tensor:
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.dim() not in (4, 5):
                return fn(tensor)
            return fn(tensor.reshape(-1)).reshape(tensor.shape)

        return super()._apply(flat, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        parts = [repr(self.structure.name), str(self.in_features), str(self.out_features)]
        parts.append(f"bias={self.bias is not None}")
        parts += [f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in self.structure.options]
        like = self._any()
        if like.dtype != torch.float32:
            parts.append(f"dtype={like.dtype}")
        if like.device.type != "cpu":
            parts.append(f"device={str(like.device)!r}")
        if self.backend != backends.AUTO:
            parts.append(f"backend={self.backend!r}")
        if self.init != "linear":
            parts.append(f"init={self.init!r}")
        return ", ".join(parts)

    def _any(self) -> Tensor:
        """A tensor of the layer's dtype and device."""
        found = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.empty(()) if found is None else found

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name == "weight":
            raise AttributeError(
                f"{self.structure.name} has no dense weight; `factors` holds its parameters, and to_dense() computes "
                f"the ({self.out_features}, {self.in_features}) matrix"
            )
        return super().__getattr__(name)


def _assign(parametrizations: nn.Module, value: Tensor) -> None:
    """Set what a factor is computed from, so that it becomes `value`, or what its parametrization makes of that.

    Where there is no right inverse the parametrization is taken for its own, as torch does when it registers one.
    """
    made: Any = value
    for module in reversed(list(parametrizations.children())):
        try:
            made = module.right_inverse(made) if hasattr(module, "right_inverse") else made  # type: ignore[operator]
        except NotImplementedError:  # of the orthogonal maps that cannot be inverted
            continue
    originals = [p for name, p in parametrizations.named_parameters(recurse=False) if name.startswith("original")]
    several = [made] if isinstance(made, Tensor) else list(made)
    for original, new in zip(originals, several, strict=True):
        original.copy_(new)


_classes: weakref.WeakValueDictionary[Structure, type[StructuredLinear]] = weakref.WeakValueDictionary()


def _bare() -> StructuredLinear:
    """A layer before its state is set."""
    return StructuredLinear.__new__(StructuredLinear)


def _class_for(structure: Structure) -> type[StructuredLinear]:
    """A subclass whose forward is a code object of its own.

    torch.compile keeps at most 8 programs for a code object, whoever asked for them: the ninth structure or shape that
    is compiled by itself would run eagerly.
    """
    found = _classes.get(structure)
    if found is None:
        forward = cast(FunctionType, StructuredLinear.forward)
        own = FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__, forward.__defaults__)
        own.__doc__, own.__annotations__, own.__module__ = forward.__doc__, forward.__annotations__, forward.__module__
        body = {"forward": own, "__module__": __name__, "__qualname__": StructuredLinear.__qualname__}
        found = type(StructuredLinear.__name__, (StructuredLinear,), {**body, "__doc__": StructuredLinear.__doc__})
        _classes[structure] = found
    return found


def _unlike_a_tensor(layer: StructuredLinear, input: Tensor) -> Tensor | None:
    """y of what stands for tensors: torch.fx's proxy, a nested tensor. None of what is to be used as it is."""
    x: Any = input
    if isinstance(x, torch.fx.Proxy):  # a leaf of the graph, as torch's own modules are
        tracer: Any = x.tracer
        leaf: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), {})
        return leaf
    if not isinstance(x, Tensor) or not x.is_nested:
        return None
    if x.layout is not torch.jagged:
        return torch.nested.as_nested_tensor([layer(part) for part in x.unbind()])
    y: Tensor = layer(x.values())
    jagged: Any = x
    return torch.nested.nested_tensor_from_jagged(y, jagged.offsets(), jagged.lengths(), jagged._ragged_idx)


def _autocast(
    x: Tensor, factors: tuple[Tensor, ...], bias: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Inside an autocast region everything but float64 is cast to its dtype, as nn.Linear's operands are."""
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return cast(x), tuple(cast(f) for f in factors), None if bias is None else cast(bias)


def _wrong_gates(layer: StructuredLinear, gates: Tensor | None) -> str:
    name, gate = layer.structure.name, layer.structure.gate
    if gate is None:
        return f"{name} has no gate: to_dense() takes no gates"
    found = "none are given" if gates is None else f"found shape {tuple(gates.shape)}"
    return (
        f"{name}: there is no one dense matrix, since {gate.active} of {gate.experts} experts are chosen for every "
        f"token; to_dense(gates) takes the weight of each expert ({gate.experts},), {found}"
    )


def _wrong_width(layer: StructuredLinear, x: Tensor) -> str:
    hint = ""
    if x.dim() > 1 and x.shape[-2] == layer.in_features:
        hint = "; its last but one dimension fits: is it transposed?"
    name = layer.structure.name
    return f"{name}: x has shape {tuple(x.shape)}, its last dimension must be in_features={layer.in_features}{hint}"


def _mismatch(layer: StructuredLinear, x: Tensor, parameter: Tensor) -> str:
    name = layer.structure.name
    if x.device != parameter.device:
        return f"{name}: x is on {x.device}, the parameters are on {parameter.device}; move one with .to()"
    return (
        f"{name}: x is {x.dtype}, the parameters are {parameter.dtype}; convert one with .to(), or use torch.autocast"
    )
