"""Training a model with structured layers: learning rates for each factor, and the axis that FSDP2 shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from structures.linear import StructuredLinear
from structures.structure import Structure

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard

Groups = list[dict[str, Any]]

BY_GRADIENT = ("SGD", "ASGD")  # optimizers whose step grows with the gradient; the others normalise it


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    base_width: int | None = None,
    optimizer: type[Optimizer] = torch.optim.AdamW,
    only: Callable[[str, nn.Parameter], bool] | None = None,
) -> Groups:
    """Groups for an optimizer, in which every factor learns at the rate of the structured muP rule.

    A factor's rate is `lr * multiplier(...)`, which is relative to a dense layer of the same widths: `lr` is the rate
    that suits the model with nn.Linear in these places, at this width. So is that of all parameters that a factor is
    computed from (weight norm, orthogonal, pruning). Every other parameter gets `lr` itself.

    Args:
        weight_decay: of everything but biases, norms and other vectors. A factor's is divided by its multiplier, so
            that one step shrinks it by `lr * weight_decay`, as it shrinks plain weights (AdamW, SGD, Muon).
        base_width: `lr` was found for dense layers of base_width inputs instead; factors then get
            lr * base_width / in_features * multiplier. Plain parameters still get `lr`.
        optimizer: the class that the groups are for; it chooses the rule.
        only: `(name, parameter) -> bool`, which parameters to take: to divide a model between two optimizers.
    Returns:
        groups of equal rate and decay, each with `params`, `lr`, `weight_decay`, `multiplier` and `names`. Frozen
        parameters are left out, shared ones occur once.
    Raises:
        ValueError: Muon and a parameter that is not a matrix; the message names it.

    >>> model = nn.Sequential(nn.Linear(8, 256), StructuredLinear("low_rank", 256, 256, rank=16))
    >>> groups = param_groups(model, lr=1e-3, weight_decay=0.1)
    >>> for group in groups:
    ...     print(*group["names"], group["lr"], group["weight_decay"])
    0.weight 0.001 0.1
    0.bias 1.bias 0.001 0.0
    1.factor_0 0.0005 0.2
    1.factor_1 0.008 0.0125
    >>> optimizer = torch.optim.AdamW(groups)

    Source: Qiu et al. 2024, arXiv:2406.06248; Potapczynski et al. 2024, arXiv:2410.02117. The rule for Muon is ours.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"param_groups: model is an nn.Module, found {type(model).__name__}")
    _check_rates(lr, weight_decay, base_width, optimizer)
    factors = {
        id(p): (layer, i)
        for layer in _structured(model)
        for i, (name, held) in enumerate(layer.held().items())
        if name != "bias"
        for p in held
    }
    norms = {id(p) for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    refused = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (only is not None and not only(name, parameter)):
            continue
        layer, factor = factors.get(id(parameter), (None, 0))
        if optimizer.__name__ == "Muon" and not _is_matrix(parameter, layer, factor):
            refused.append(f"{name} {tuple(parameter.shape)}{f' of {layer.structure.name}' if layer else ''}")
        times = 1.0
        if layer is not None:
            times = multiplier(layer.structure, factor, optimizer=optimizer)
            times *= base_width / layer.in_features if base_width else 1
        decays = parameter.dim() > 1 and id(parameter) not in norms
        decay = weight_decay / times if decays else 0.0
        empty = {"params": [], "lr": lr * times, "weight_decay": decay, "multiplier": times, "names": []}
        group = groups.setdefault((times, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    if refused:
        refused.sort(key=lambda text: " of " not in text)  # factors first: norms and biases are no surprise
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ValueError(
            f"Muon orthogonalises matrices, and these are none: {', '.join(refused[:5])}{more}; give them to AdamW: "
            "param_groups(..., only=lambda name, parameter: ...) divides a model between two optimizers"
        )
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter to train{' that `only` takes' if only else ''}")
    return list(groups.values())


def multiplier(structure: Structure, factor: int, *, optimizer: type[Optimizer] = torch.optim.AdamW) -> float:
    """A factor's learning rate relative to the weight of a dense layer of these widths; the last one is the router's.

    With fan_in and fan_out of one slice of the product that applies the factor, and n = (terms of the sum) x (factors
    of its term), each of which contributes to a step's change of the output:

    - steps of normalised gradients (Adam and most others): in_features / (fan_in n)
    - steps that grow with the gradient (SGD): (fan_out / fan_in) / (out_features / in_features) / n
    - orthogonalised steps (Muon, whose step for shape (rows, columns) has norm sqrt(max(1, rows / columns))): the
      ratio of the norms that are wanted, sqrt(fan_out / fan_in), to those steps, over the same for dense, / n

    A router is a dense layer with as many outputs as experts, and is alone in what it adds: n = 1.
    """
    wide, tall = structure.widths
    if factor == structure.trainable:
        shape, fan_in, fan_out, n = structure.router_shape, wide, structure.router_shape[0], 1
    else:
        shape, (fan_in, fan_out) = structure.factor_shapes[factor], structure.fan(factor)
        trained = [sum(f < structure.trainable for f in term.factors) for term in structure.terms]
        n = sum(map(bool, trained)) * trained[structure.terms.index(structure.term_of(factor))]
    if optimizer.__name__ == "Muon":
        rows, columns = shape[:2]
        wanted = math.sqrt((fan_out / fan_in) / (tall / wide))
        return wanted * math.sqrt(max(1, tall / wide) / max(1, rows / columns)) / n
    if optimizer.__name__ in BY_GRADIENT:
        return (fan_out / fan_in) / (tall / wide) / n
    return wide / (fan_in * n)


def shard_placement(parameter: nn.Parameter, *, shards: int | None = None) -> Shard | None:
    """The axis along which FSDP2 shards `parameter`: pass it as `fully_shard(..., shard_placement_fn=shard_placement)`.

    The first axis where the shards are equal (FSDP2 gathers it without a copy), else the longest axis where they are.
    A factor's first axis is often a number of blocks smaller than the number of processes: sharding that would leave
    some with nothing. None where no axis divides: FSDP2 then pads the first.

    Args:
        shards: how many; the number of processes by default. With a mesh of fewer, use functools.partial.

    >>> shard_placement(nn.Parameter(torch.zeros(4, 96, 64)), shards=8)  # 4 blocks do not divide among 8 processes
    Shard(dim=1)
    """
    from torch.distributed.tensor import Shard

    if not isinstance(parameter, torch.Tensor):
        raise ValueError(f"shard_placement: a parameter is a tensor, found {type(parameter).__name__}")
    if shards is None:
        shards = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if not isinstance(shards, int) or shards < 1:
        raise ValueError(f"shards is at least 1, found {shards!r}")
    divides = [axis for axis, size in enumerate(parameter.shape) if size and size % shards == 0]
    if not divides:
        return None
    return Shard(0 if divides[0] == 0 else max(divides, key=lambda axis: parameter.shape[axis]))


def _structured(model: nn.Module) -> list[StructuredLinear]:
    return [module for module in model.modules() if isinstance(module, StructuredLinear)]


def _is_matrix(parameter: nn.Parameter, layer: StructuredLinear | None, factor: int) -> bool:
    """Two axes, both of the product: a batch axis would make it a stack of vectors."""
    if parameter.dim() != 2 or layer is None or factor == layer.structure.trainable:
        return parameter.dim() == 2
    if parameter.shape != layer.structure.factor_shapes[factor]:
        return False  # the norms that weight norm has taken apart
    step = next(step for step in layer.structure.steps if step.factor == factor)
    return not step.batch and len(step.contracted) == len(step.cols) == 1


def _check_rates(lr: float, weight_decay: float, base_width: int | None, optimizer: type[Optimizer]) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"param_groups: {name} is a number from 0, found {value!r}")
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise ValueError(f"param_groups: optimizer is a class such as torch.optim.AdamW, found {optimizer!r}")
    if base_width is None:
        return
    if not isinstance(base_width, int) or base_width < 1:
        raise ValueError(f"param_groups: base_width is a whole number from 1, found {base_width!r}")
    if optimizer.__name__ in (*BY_GRADIENT, "Muon"):
        raise ValueError(
            f"param_groups: base_width is for Adam; {optimizer.__name__}'s rate does not change with width"
        )
