"""The structured layers of a model as data that JSON holds, and the layers that such data describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from structures import backends, initial, registry
from structures.linear import StructuredLinear
from structures.models import linears
from structures.spec import Spec

FIELDS = {"structure": str, "einsum": list, "options": dict, "widths": list, "bias": bool, "backend": str, "init": str}
METHOD = "structures.models.transformers"  # what a config.json calls it: the module that reads it

Layers = Mapping[str, Mapping[str, Any]]


def describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every structured layer once, by its first name in the model."""
    found: dict[int, dict[str, Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, StructuredLinear):
            continue
        if id(module) in found:
            found[id(module)]["aliases"].append(name)
        else:
            found[id(module)] = layers[name] = {"aliases": [], **_entry(module)}
    return layers


def record(model: nn.Module) -> None:
    """Write into the config of every transformers model what is structured in it, so that `save_pretrained` keeps it.

    A config that holds another quantization is left alone, and its model's structured layers with it.
    """
    done: list[str] = []
    for name, part in model.named_modules():
        config = getattr(part, "config", None)
        if not _is_pretrained(part) or config is None or any(name.startswith(outer) for outer in done):
            continue
        done.append(f"{name}." if name else "")
        other = getattr(config, "quantization_config", None)
        method = other.get("quant_method") if isinstance(other, Mapping) else getattr(other, "quant_method", None)
        if other is not None and method != METHOD:
            continue
        layers = describe(part)
        if layers:
            config.quantization_config = {"quant_method": METHOD, "layers": layers}
        elif other is not None:
            del config.quantization_config


def check(where: str, layers: object) -> Layers:
    """The description of layers, if it is well formed.

    Raises:
        ValueError: it is not; the message begins with `where` and names the layer.
    """
    if not isinstance(layers, Mapping):
        raise ValueError(f"{where}: layers is a mapping, found {layers!r}")
    for name, entry in layers.items():
        place = f"{where}: layer {name!r}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{place}: expected a mapping, found {entry!r}")
        for field, expected in FIELDS.items():
            if not isinstance(entry.get(field), expected):
                raise ValueError(f"{place}: {field} is a {expected.__name__}, found {entry.get(field)!r}")
        for field in ("widths", "aliases"):
            kind = int if field == "widths" else str
            if not isinstance(entry.get(field, []), list) or not all(isinstance(v, kind) for v in entry.get(field, [])):
                raise ValueError(f"{place}: {field} is a list of {kind.__name__}, found {entry[field]!r}")
    return layers


def rebuilt(where: str, layers: Layers, modules: Mapping[str, nn.Module]) -> dict[int, nn.Module]:
    """The new layers that are described, by the ids of the modules whose places they take; nothing is replaced yet.

    Args:
        modules: the linear layers of the model, by every name.
    Raises:
        ValueError: one does not fit; the message begins with `where` and names it.
    """
    made: dict[int, nn.Module] = {}
    for name, entry in layers.items():
        made |= _rebuilt(f"{where}: layer {name!r}", [name, *entry.get("aliases", [])], entry, modules)
    return made


def _is_pretrained(module: nn.Module) -> bool:
    """Whether it is a model of transformers, told by its class's name, so that transformers is not imported."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def _entry(layer: StructuredLinear) -> dict[str, object]:
    structure = layer.structure
    return {
        "structure": structure.name,
        "einsum": list(structure.spec.einsum),
        **({"gate": dict(structure.spec.gate)} if structure.gate else {}),
        "options": dict(structure.options),
        "widths": [layer.in_features, layer.out_features],
        "bias": layer.bias is not None,
        "backend": layer.backend,
        "init": layer.init,
    }


def _rebuilt(
    where: str, names: Iterable[str], entry: Mapping[str, Any], modules: Mapping[str, nn.Module]
) -> dict[int, nn.Module]:
    """The modules that the entry's names stand for, by id, each mapped to the one new layer."""
    for name in names:
        if name not in modules:
            raise ValueError(f"{where}: the model has no linear layer {name!r}")
    olds = [modules[name] for name in names]
    widths, has_bias = tuple(entry["widths"]), olds[0]._parameters.get("bias") is not None
    for name, old in zip(names, olds, strict=True):
        if linears.widths(old) != widths:
            raise ValueError(f"{where}: {widths} was saved, {name!r} of the model is {linears.widths(old)}")
    if has_bias != entry["bias"]:
        raise ValueError(f"{where}: bias={entry['bias']} was saved, the model's layer has bias={has_bias}")
    spec = _spec(where, entry)
    if entry["init"] not in initial.INITS:
        raise ValueError(f"{where}: init is one of {', '.join(initial.INITS)}, found {entry['init']!r}")
    like = next(olds[0].parameters())
    options: dict[str, Any] = entry["options"]
    try:
        backends.check_name(entry["backend"])
        new = StructuredLinear(
            spec,
            widths[0],
            widths[1],
            has_bias,
            device=like.device,
            dtype=like.dtype,
            backend=entry["backend"],
            init=entry["init"],
            **options,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    linears.carry(olds[0], new)
    return {id(old): new for old in olds}


def _spec(where: str, entry: Mapping[str, Any]) -> Spec:
    try:
        spec = registry.get(entry["structure"])
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]}; structures.load(file) adds entries of your own") from None
    if list(spec.einsum) != entry["einsum"]:
        raise ValueError(
            f"{where}: {spec.name} was saved as {entry['einsum']}, the registry has {list(spec.einsum)}; load the file "
            "that it was defined in"
        )
    if dict(spec.gate) != entry.get("gate", {}):
        raise ValueError(
            f"{where}: {spec.name} was saved with the gate {entry.get('gate')}, the registry has {dict(spec.gate)}; "
            "load the file that it was defined in"
        )
    return spec
