"""What counts as a linear layer of a model: its kind, its widths, why it may not be replaced, and its dense form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from structures.linear import StructuredLinear

CALL_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
REPLACED = "replaced"  # on a layer that took the place of a Conv1D: the class to go back to


def kind(module: nn.Module) -> str | None:
    """`Linear`, `Conv1D`, the name of a structure, or None for what is no linear layer."""
    if isinstance(module, StructuredLinear):
        return module.structure.name
    if isinstance(module, nn.Linear):
        return "Linear"
    return "Conv1D" if _is_conv1d(type(module)) else None


def widths(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    if isinstance(module, StructuredLinear | nn.Linear):
        return module.in_features, module.out_features
    rows, columns = _parameter(module, "weight").shape  # Conv1D holds (in_features, out_features)
    return rows, columns


def refusal(module: nn.Module) -> str | None:
    """Why a linear layer cannot be replaced, as a sentence; None where it can."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its widths are unknown until the model has run once"
    if isinstance(module, nn.Linear) and "weight" not in module._parameters:
        return "its weight is computed (a parametrization, weight norm or pruning); remove that first"
    if isinstance(module, StructuredLinear) and computed(module):
        return f"{computed(module)}; remove that first"
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        return f"{type(module).__name__} has a forward of its own"
    for parameter in module.parameters(recurse=False):
        if type(parameter) is not nn.Parameter:
            what = type(parameter).__name__
            return f"it holds a {what}, not a plain parameter; swap before sharding or quantising"
        if not parameter.is_floating_point():
            return f"its numbers are {parameter.dtype}"
    return None


def computed(layer: StructuredLinear) -> str | None:
    """Which factor, router or bias of a structured layer is no parameter, as a sentence; None where all are."""
    for name, held in layer.held().items():
        if held and name not in layer._parameters:
            return f"its {name} is computed (a parametrization, weight norm or pruning)"
    return None


def wrapped(model: nn.Module) -> str | None:
    """Why no layer of this model may be replaced, saved or loaded now: something outside holds its parameters.

    As a sentence with the way out; None where nothing does.
    """
    for name, module in model.named_modules():
        where = f"{name or type(model).__name__!r} "
        bases = {c.__name__ for c in type(module).__mro__}
        if "DistributedDataParallel" in bases:
            return f"{where}is DistributedDataParallel, which holds the parameters it was given; swap before wrapping"
        if bases & {"FullyShardedDataParallel", "FSDPModule"} or any(
            "DTensor" in {c.__name__ for c in type(p).__mro__} for p in module.parameters(recurse=False)
        ):
            return (
                f"{where}is sharded; swap and load before sharding it, and gather to save: get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict, loaded "
                "into an unsharded model"
            )
        if hasattr(module, "_hf_hook"):
            return (
                f"{where}is dispatched or offloaded by accelerate; "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True) first, and dispatch it again afterwards"
            )
    return None


def reader(parent: nn.Module, child: str) -> str | None:
    """Why replacing `child` of `parent` gains no time: the parent's forward uses its weight. None where it does not.

    Looked for in the methods that forward calls too, inherited ones included; to ask for the weight's dtype or device
    is no use of it. nn.TransformerEncoderLayer uses weights on its fast path alone, which `swap` turns off.
    """
    if isinstance(parent, nn.TransformerEncoderLayer) and child in ("linear1", "linear2"):
        return None
    name = re.escape(child)
    looked = rf"isinstance\(\s*self\.{name}\.weight\b|\bself\.{name}\.weight\.(dtype|device|shape|size|ndim)\b"
    text = re.sub(looked, "", _reached(type(parent)))  # type: ignore[arg-type]
    if not re.search(rf"\bself\.{name}\.weight\b", text):
        return None
    return f"{type(parent).__name__} reads {child}.weight itself, so that it would be computed anew in every call"


def as_linear(module: nn.Module) -> nn.Linear:
    """An nn.Linear of the same map: it shares the parameters where they have nn.Linear's form, and no hooks."""
    in_features, out_features = widths(module)
    bias = module._parameters.get("bias")
    if bias is None and isinstance(module, StructuredLinear) and module.bias is not None:
        bias = nn.Parameter(module.bias.detach())  # computed by a parametrization
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    if isinstance(module, StructuredLinear):
        linear.weight = nn.Parameter(module.to_dense().detach(), requires_grad=trains(module))
    elif isinstance(module, nn.Linear):
        linear.weight = module.weight
    else:
        weight = _parameter(module, "weight")
        linear.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = bias
    return linear.train(module.training)


def to_linear(layer: nn.Module) -> nn.Linear:
    """The nn.Linear of the same map, with parameters of its own: what undoes a structure.

    Training flag, device, dtype and requires_grad are kept. Takes a StructuredLinear, an nn.Linear or a Conv1D.

    Raises:
        ValueError: `layer` is no linear layer, or has no numbers because it is on the meta device.

    >>> layer = StructuredLinear("monarch", 64, 32, n_blocks=4)
    >>> x = torch.randn(5, 64)
    >>> torch.allclose(to_linear(layer)(x), layer(x), atol=1e-5)
    True
    """
    if kind(layer) is None:
        raise ValueError(f"to_linear takes a linear layer, found {type(layer).__name__}; for a model use swap(...)")
    if any(parameter.is_meta for parameter in layer.parameters()):
        raise ValueError(f"{kind(layer)} is on the meta device: it has no numbers to make a dense weight of")
    linear = as_linear(layer)
    for name, parameter in list(linear.named_parameters()):
        setattr(linear, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    return linear


def restored(layer: nn.Module) -> nn.Module:
    """The dense layer for `layer`, of the class that `swap` replaced: nn.Linear, or transformers' Conv1D."""
    linear = to_linear(layer)
    conv = layer.__dict__.get(REPLACED)
    if conv is None:
        return linear
    with torch.device("meta"):
        made: nn.Module = conv(linear.out_features, linear.in_features)
    weight = linear.weight.detach().T.contiguous()
    made.register_parameter("weight", nn.Parameter(weight, requires_grad=linear.weight.requires_grad))
    made.register_parameter("bias", linear.bias)
    return made


def carry(old: nn.Module, new: nn.Module) -> None:
    """Give `new` what `old` was given by its user: training flag, requires_grad and the hooks on calls.

    The dicts of hooks are taken over as they are, so handles go on working. Hooks on the state_dict know the old
    parameters' names and are left behind.
    """
    new.train(old.training)
    for name, parameter in new.named_parameters():
        bias = old._parameters.get("bias")
        parameter.requires_grad_(bias.requires_grad if name == "bias" and bias is not None else trains(old))
    for hooks in CALL_HOOKS:
        new.__dict__[hooks] = old.__dict__[hooks]
    if kind(old) == "Conv1D":
        new.__dict__[REPLACED] = type(old)
    elif isinstance(new, StructuredLinear) and REPLACED in old.__dict__:
        new.__dict__[REPLACED] = old.__dict__[REPLACED]


def trains(layer: nn.Module) -> bool:
    """Whether the weight, or any factor, of a linear layer asks for gradients."""
    if isinstance(layer, StructuredLinear):
        return any(p.requires_grad for name, held in layer.held().items() if name != "bias" for p in held)
    return any(p.requires_grad for name, p in layer.named_parameters(recurse=False) if name != "bias")


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _is_conv1d(cls: type) -> bool:
    """transformers' Conv1D, told by its name, so that transformers is not imported."""
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in cls.__mro__)


@lru_cache(maxsize=1024)
def _reached(cls: type[nn.Module]) -> str:
    """The source of a module's forward and of the methods that it calls on itself, of all classes it inherits from."""
    own = [c.__dict__ for c in cls.__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
    texts: dict[str, str] = {}
    to_read = ["forward"]
    while to_read:
        name = to_read.pop()
        texts[name] = "\n".join(_source(methods[name]) for methods in own if name in methods)
        called = set(re.findall(r"\bself\.(\w+)\(", texts[name])) - texts.keys()
        to_read += [n for n in called if any(callable(methods.get(n)) for methods in own)]
    return "\n".join(texts.values())


@lru_cache(maxsize=4096)
def _source(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # no source at hand: nothing can be told
        return ""
