"""New layers in the old ones' places, and what else in the model knows of these places."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from structures.linear import StructuredLinear


def put(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Put the new layers in the old ones' places, all or none; returns the model, or what takes its place."""
    places = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
    done: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent, name, child in places:
            if child is not None and id(child) in made:
                done.append((parent, name, child))
                setattr(parent, name, made[id(child)])
    except BaseException:
        for parent, name, child in done:
            parent._modules[name] = child
        raise
    return made.get(id(model), model)


def set_fast_paths(model: nn.Module) -> None:
    """Turn the fast path of nn.TransformerEncoder off where a layer is structured, and on again where none is.

    It hands the weights of linear1 and linear2 to one fused function, in eval and without gradients. The layers'
    `activation_relu_or_gelu` and the encoder's `use_nested_tensor` say whether it may be taken, and nothing else.
    """
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            continue
        structured = any(isinstance(m, StructuredLinear) for m in module.modules())
        for flag in ("activation_relu_or_gelu", "use_nested_tensor"):
            if structured and getattr(module, flag, None):
                module.__dict__[f"_dense_{flag}"] = getattr(module, flag)
                setattr(module, flag, 0 if flag == "activation_relu_or_gelu" else False)
            elif not structured and f"_dense_{flag}" in module.__dict__:
                setattr(module, flag, module.__dict__.pop(f"_dense_{flag}"))


def untie(model: nn.Module) -> None:
    """Take structured layers off a transformers model's records of tied weights, in each of its parts.

    `tie_weights()`, which transformers calls when embeddings are resized and when a model is loaded, would otherwise
    look for the dense weight. Where no tie is left, the config says so too.
    """
    configs: dict[int, tuple[object, bool]] = {}  # each config, and whether a part that reads it has ties left
    for part in model.modules():
        tied = getattr(part, "_tied_weights_keys", None)
        if not isinstance(tied, Mapping):
            continue
        gone = [f"{name}.weight" for name, module in part.named_modules() if isinstance(module, StructuredLinear)]
        left = {target: source for target, source in tied.items() if not _names_any((target, source), gone)}
        if len(left) < len(tied):
            setattr(part, "_tied_weights_keys", left)  # noqa: B010
        if "all_tied_weights_keys" in part.__dict__:
            for target in set(part.__dict__["all_tied_weights_keys"]).intersection(gone):
                del part.__dict__["all_tied_weights_keys"][target]
        config = getattr(part, "config", None)
        if config is not None and (len(left) < len(tied) or id(config) in configs):
            configs[id(config)] = config, bool(left)
    for config, has_ties in configs.values():
        if not has_ties and getattr(config, "tie_word_embeddings", False):
            setattr(config, "tie_word_embeddings", False)  # noqa: B010


def _names_any(patterns: tuple[str, ...], names: list[str]) -> bool:
    """Whether a pattern of transformers' table, a parameter's name or a regex for it, names one of these."""
    return any(name == pattern or re.fullmatch(pattern, name) for pattern in patterns for name in names)
