"""A swapped model in a folder: its numbers as safetensors, and a small JSON of what was swapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from structures import backends, initial, registry
from structures.linear import StructuredLinear
from structures.models import linears
from structures.models.rules import linear_layers
from structures.models.swap import put, set_fast_paths
from structures.spec import Spec

LAYERS = "structures.json"
NUMBERS = "model.safetensors"
FORMAT = 1
MAX_BYTES = 2**24  # of the JSON: about a hundred thousand layers
FIELDS = {"structure": str, "einsum": list, "options": dict, "widths": list, "bias": bool, "backend": str, "init": str}

Folder = str | os.PathLike[str]


def save_swapped(model: nn.Module, folder: Folder) -> None:
    """Write `model.safetensors` and `structures.json` into `folder`; a transformers model's config too.

    Parameters that are shared are written once. Needs safetensors.

    Raises:
        OSError: the folder cannot be made or written into; of the kind that the system raised, and names the folder.

    >>> from tempfile import TemporaryDirectory
    >>> from structures import swap
    >>> model = nn.Sequential(nn.Linear(64, 32))
    >>> rows = swap(model, {"*": "dyad_it"}).rows
    >>> with TemporaryDirectory() as folder:
    ...     save_swapped(model, folder)
    ...     again = load_swapped(nn.Sequential(nn.Linear(64, 32)), folder)  # a fresh dense model of that architecture
    >>> again[0].structure == model[0].structure, bool((again[0].factor_0 == model[0].factor_0).all())
    (True, True)
    """
    _check(model, "save_swapped")
    safetensors = _safetensors()
    folder = Path(folder)
    entries = {
        names[0]: {"aliases": list(names[1:]), **_entry(module)}
        for names, module in linear_layers(model)
        if isinstance(module, StructuredLinear)
    }
    save_config = getattr(getattr(model, "config", None), "save_pretrained", None)
    written = json.dumps({"format": FORMAT, "layers": entries}, indent=1)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LAYERS).write_text(written + "\n", encoding="utf-8")  # the little file first: it tells before long
        safetensors.save_model(model, str(folder / NUMBERS), metadata={"format": "pt"})
        if callable(save_config):
            save_config(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An error of the system, in words that name the folder and a way out."""
    try:
        yield
    except OSError as error:
        in_the_way = next((at for at in (folder, *folder.parents) if at.exists() and not at.is_dir()), None)
        if in_the_way is not None:
            why = f"{in_the_way} is a file; name a folder, or move that file away"
        else:
            why = f"{error.strerror or error}; choose a folder that you may write into, with space for the model"
        raise type(error)(f"save_swapped: cannot write into {folder}: {why}") from error


def load_swapped(model: nn.Module, folder: Folder) -> nn.Module:
    """Swap the layers of a dense `model` as those in `folder` were, then load the saved numbers into it.

    Args:
        model: of the architecture that was saved, on a real device; its layers may be swapped already.
    Returns:
        the model, changed in place; the new layer where the model itself was one.
    Raises:
        FileNotFoundError: `folder` was not written by `save_swapped`.
        ValueError: the JSON is malformed, asks for an unknown structure or one that is defined otherwise here, or
            does not fit the model; the message names the layer. The model is unchanged then, unless it is the numbers
            that do not fit.
    """
    _check(model, "load_swapped")
    safetensors = _safetensors()
    folder = Path(folder)
    for file in (LAYERS, NUMBERS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} has no {file}: was it written by structures.save_swapped?")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} is on the meta device; build it on a real one to load numbers")
    found = linear_layers(model)
    modules = {name: module for names, module in found for name in names}
    made: dict[int, nn.Module] = {}
    for name, entry in _read(folder / LAYERS).items():
        where = f"{folder / LAYERS}: layer {name!r}"
        made |= _rebuilt(where, [name, *entry.get("aliases", [])], entry, modules)
    for names, module in found:
        if isinstance(module, StructuredLinear) and id(module) not in made:
            raise ValueError(f"{folder / LAYERS}: {names[0]!r} is structured in the model and dense in the folder")
    root = put(model, made)
    set_fast_paths(root)
    try:
        safetensors.load_model(root, str(folder / NUMBERS), device=str(next(root.parameters()).device))
    except RuntimeError as error:
        raise ValueError(f"{folder / NUMBERS}: {error}") from error
    return root


def _check(model: object, what: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{what}: model is an nn.Module, found {type(model).__name__}")


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


def _read(file: Path) -> Mapping[str, Mapping[str, Any]]:
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: more than {MAX_BYTES} bytes")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(read, dict) or read.get("format") != FORMAT or not isinstance(read.get("layers"), dict):
        raise ValueError(f'{file}: expected {{"format": {FORMAT}, "layers": {{...}}}}; was it written by this version?')
    for name, entry in read["layers"].items():
        where = f"{file}: layer {name!r}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected a mapping, found {entry!r}")
        for field, expected in FIELDS.items():
            if not isinstance(entry.get(field), expected):
                raise ValueError(f"{where}: {field} is a {expected.__name__}, found {entry.get(field)!r}")
        for field in ("widths", "aliases"):
            kind = int if field == "widths" else str
            if not isinstance(entry.get(field, []), list) or not all(isinstance(v, kind) for v in entry.get(field, [])):
                raise ValueError(f"{where}: {field} is a list of {kind.__name__}, found {entry[field]!r}")
    linears: dict[str, dict[str, Any]] = read["layers"]
    return linears


def _rebuilt(
    where: str, names: list[str], entry: Mapping[str, Any], modules: Mapping[str, nn.Module]
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


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("a swapped model is saved with safetensors: pip install safetensors") from None
    return safetensors.torch
