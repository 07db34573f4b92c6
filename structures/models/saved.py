"""A swapped model in a folder: its numbers as safetensors, and a small JSON of what was swapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from structures.linear import StructuredLinear
from structures.models import described, linears
from structures.models.put import put, set_fast_paths, untie
from structures.models.rules import linear_layers
from structures.reading import json_file

LAYERS = "structures.json"
NUMBERS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
CONFIG = "config.json"  # of transformers, where `save_pretrained` describes the layers
FORMAT = 1
CHECKSUM = "numbers_sha256"  # in LAYERS, of the whole file of numbers: 0.7 s a gigabyte, where saving takes 2.9 s
MARK = "saved_with"  # in the numbers, until somebody writes them again (converted, say): then they are to agree

Folder = str | os.PathLike[str]


def save_swapped(model: nn.Module, folder: Folder) -> None:
    """Write `model.safetensors` and `structures.json` into `folder`; a transformers model's
    config and generation config too, so that its `from_pretrained` reads the folder as well.

    Parameters that are shared are written once. Needs safetensors.

    Raises:
        ValueError: the model is wrapped or sharded, or a factor is computed by a parametrization or a hook, which no
            JSON can rebuild; the message has the way out. Nothing is written.
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
    for names, module in linear_layers(model):
        computed = linears.computed(module) if isinstance(module, StructuredLinear) else None
        if computed:
            raise ValueError(
                f"save_swapped: {names[0] or '(the model itself)'}: {computed}; take it off first "
                f"(torch.nn.utils.parametrize.remove_parametrizations and prune.remove keep its value)"
            )
    described.record(model)
    layers = described.describe(model)
    with _writing(folder) as beside:
        safetensors.torch.save_model(model, str(beside / NUMBERS), metadata={"format": "pt", MARK: LAYERS})
        written = {"format": FORMAT, CHECKSUM: _checksum(beside / NUMBERS), "layers": layers}
        (beside / LAYERS).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        for config in ("config", "generation_config"):
            save_config = getattr(getattr(model, config, None), "save_pretrained", None)
            if callable(save_config):
                save_config(beside)


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A folder in `folder` whose files take their places there once all are written, what describes them last.

    Places are taken by renames, so that links are replaced and not followed. An error of the system is raised in words
    that name the folder and a way out, and changes nothing.
    """
    beside = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (beside, *(p for p in folder.glob(".*.part") if _is_stale(p))):
            shutil.rmtree(left, ignore_errors=True)
        beside.mkdir()
        yield beside
        for file in sorted(beside.iterdir(), key=lambda file: file.name == LAYERS):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)
    except OSError as error:
        in_the_way = next((at for at in (folder, *folder.parents) if at.exists() and not at.is_dir()), None)
        if in_the_way is not None:
            why = f"{in_the_way} is a file; name a folder, or move that file away"
        else:
            why = f"{error.strerror or error}; choose a folder that you may write into, with space for the model"
        raise type(error)(f"save_swapped: cannot write into {folder}: {why}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_stale(part: Path) -> bool:
    """Whether a process that was killed left it; its number is the name."""
    number = part.name.split(".")[1]
    return number.isdigit() and Path("/proc/self").exists() and not Path(f"/proc/{number}").exists()


def load_swapped(model: nn.Module, folder: Folder) -> nn.Module:
    """Swap the layers of a dense `model` as those in `folder` were, then load the saved numbers into it.

    Args:
        model: of the architecture that was saved; its layers may be swapped already. What is on the meta device comes
            to be on the CPU.
        folder: of `save_swapped`, or of transformers' `save_pretrained`; the numbers may be in several files.
    Returns:
        the model, changed in place; the new layer where the model itself was one.
    Raises:
        FileNotFoundError: `folder` was not written by either.
        ValueError: a file is malformed or damaged, asks for an unknown structure or one that is defined otherwise
            here, or does not fit the model; the message names the layer or the numbers. The model is unchanged then.
    """
    _check(model, "load_swapped")
    folder = Path(folder)
    where, layers, checksum = _layers(folder)
    numbers = _Numbers(folder)
    if checksum is not None and numbers.marked and _checksum(numbers.what) != checksum:
        raise ValueError(f"{where}: was saved with other numbers than {numbers.what} has: damaged, or of another time")
    found = linear_layers(model)
    made = described.rebuilt(where, layers, {name: module for names, module in found for name in names})
    for names, module in found:
        if isinstance(module, StructuredLinear) and id(module) not in made:
            raise ValueError(f"{where}: {names[0]!r} is structured in the model and dense in the folder")
    olds = {id(new): old for old in model.modules() if (new := made.get(id(old))) is not None}
    root = put(model, made)
    try:
        _fill(root, numbers)
    except BaseException:
        put(root, olds)
        raise
    set_fast_paths(root)
    untie(root)
    described.record(root)
    return root


class _Numbers:
    """The tensors of a folder, in one file or several; the headers are read and checked at once."""

    def __init__(self, folder: Path):
        self.open = _safetensors().safe_open
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.marked = False
        files = _number_files(folder)
        self.what = files[0] if len(files) == 1 else folder / SHARDS
        for file in files:
            with self.reading(file) as read:
                self.marked = len(files) == 1 and MARK in (read.metadata() or {})
                for name in read.keys():
                    self.file_of[name] = file
                    self.shapes[name] = tuple(read.get_slice(name).get_shape())

    @contextmanager
    def reading(self, file: Path) -> Iterator[Any]:
        """The file opened; whatever is wrong with it is a ValueError that names it."""
        import safetensors

        try:
            with self.open(str(file), framework="pt") as read:
                yield read
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file}: damaged, or no safetensors file: {error}") from None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, one file after another."""
        for file in dict.fromkeys(self.file_of.values()):
            with self.reading(file) as read:
                for name, its in self.file_of.items():
                    if its == file:
                        yield name, read.get_tensor(name)


def _fill(model: nn.Module, numbers: _Numbers) -> None:
    """Load the numbers; nothing is written before all names and shapes were found to fit."""
    held = model.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for name, tensor in held.items():
        shared.setdefault(id(tensor), []).append(name)
    absent = [names[0] for names in shared.values() if not set(names) & numbers.shapes.keys()]
    unknown = sorted(numbers.shapes.keys() - held.keys())
    wrong = [
        f"{name} is {shape}, in the model {tuple(held[name].shape)}"
        for name, shape in numbers.shapes.items()
        if name in held and shape != tuple(held[name].shape)
    ]
    said = [f"{what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" for what, names in
            (("missing", absent), ("not in the model", unknown), ("other shapes", wrong)) if names]  # fmt: skip
    if said:
        renamed = unknown and hasattr(model, "from_pretrained") and not (numbers.what.parent / LAYERS).exists()
        hint = f"; {type(model).__name__}.from_pretrained knows names that transformers keeps otherwise"
        raise ValueError(f"{numbers.what}: {'; '.join(said)}{hint if renamed else ''}")
    unsaved = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in held]
    if unsaved:
        raise ValueError(
            f"load_swapped: {', '.join(unsaved[:5])} is on the meta device and in no file; build the model with "
            "accelerate.init_empty_weights(), which leaves such buffers real, or on a real device"
        )
    for name, tensor in [*numbers.tensors()]:  # all are read (mapped) before one is written
        for alias in shared[id(held[name])]:
            _assign(model, alias, held[name], tensor)
    for name, tensor in held.items():  # a shared one that was on the meta device: one parameter again
        first = shared[id(tensor)][0]
        if tensor.is_meta and first != name:
            _set(model, name, _get(model, first))


def _assign(model: nn.Module, name: str, held: Tensor, tensor: Tensor) -> None:
    if not held.is_meta:
        with torch.no_grad():
            held.copy_(tensor)
        return
    real = tensor.to(held.dtype)
    _set(model, name, nn.Parameter(real, held.requires_grad) if isinstance(held, nn.Parameter) else real)


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), own)
    return found


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    held: dict[str, Any] = module._parameters if own in module._parameters else module._buffers
    held[own] = tensor


def _check(model: object, what: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{what}: model is an nn.Module, found {type(model).__name__}")
    reason = linears.wrapped(model)
    if reason is not None:
        raise ValueError(f"{what}: {reason}")


def _layers(folder: Path) -> tuple[str, described.Layers, str | None]:
    """The file that describes the layers, what it says, and the checksum of their numbers."""
    file = folder / LAYERS
    if file.is_file():
        read = json_file(file)
        if not isinstance(read, dict) or read.get("format") != FORMAT or not isinstance(read.get("layers"), dict):
            expected = f'expected {{"format": {FORMAT}, "layers": {{...}}}}'
            raise ValueError(f"{file}: {expected}; was it written by this version?")
        return str(file), described.check(str(file), read["layers"]), read.get(CHECKSUM)
    config = folder / CONFIG
    read = json_file(config) if config.is_file() else None
    method = read.get("quantization_config") if isinstance(read, dict) else None
    if not isinstance(method, dict) or method.get("quant_method") != described.METHOD:
        raise FileNotFoundError(f"{folder} has no {LAYERS}: was it written by structures.save_swapped?")
    return str(config), described.check(str(config), method.get("layers")), None


def _number_files(folder: Path) -> list[Path]:
    index = folder / SHARDS
    if (folder / NUMBERS).is_file() or not index.is_file():
        files = [folder / NUMBERS]
    else:
        read = json_file(index)
        names = read.get("weight_map") if isinstance(read, dict) else None
        if not isinstance(names, Mapping) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError(f"{index}: weight_map maps names to files, found {str(names)[:80]}")
        if any(Path(name).name != name for name in names.values()):
            raise ValueError(f"{index}: weight_map names a file of another folder")
        files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}: was it written by structures.save_swapped?")
    return files


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as numbers:
        while data := numbers.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("a swapped model is saved with safetensors: pip install safetensors") from None
    return safetensors
