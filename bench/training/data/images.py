"""Images from the files they are published in: idx (MNIST and its kin), CIFAR-10's batches, digits as JSON."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.training.data.records import BadData, Bytes, Images, MissingData, check, sha256

IDX = {
    "training images": "train-images-idx3-ubyte",
    "training labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
HELD_OUT = 0.2  # of data without a test set of its own
SEED = 0  # of the order in which such data are split


def idx(name: str, folder: Path, *, expected: Mapping[str, str] = {}, licence: str, note: str) -> Images:
    """The four idx files, plain or gzipped, under their usual names.

    Args:
        expected: checksums of the decompressed files, by the keys of `IDX`; empty for a user's own.
    """
    parts = {part: _unzipped(name, folder, file) for part, file in IDX.items()}
    check(name, parts, expected, folder)
    train_x, train_y, test_x, test_y = (_idx(name, folder / IDX[part], parts[part]) for part in IDX)
    for images, labels in ((train_x, train_y), (test_x, test_y)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise BadData(f"{name}: {folder} has {len(labels)} labels for images of the sizes {images.shape}")
    classes = int(max(train_y.max(), test_y.max())) + 1
    labels = train_y.astype(np.int64), test_y.astype(np.int64)
    whole = sha256(parts.values())
    return Images(name, train_x, labels[0], test_x, labels[1], classes, whole, licence, note)


def digits(name: str, folder: Path, *, licence: str, note: str) -> Images:
    """The 1,797 digits of 8 x 8 that come with scikit-learn, 0 to 16 stretched to 0 to 255."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise MissingData(f"{name}: needs scikit-learn: pip install 'structures[training]'") from None
    bunch: Any = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return _split(name, x, bunch.target.astype(np.int64), licence, note)


def json_digits(name: str, folder: Path, *, expected: Mapping[str, str] = {}, licence: str, note: str) -> Images:
    """`0.json` ... `9.json`, each with `data`: the pixels of its digits one after another, 0 to 1 to three places."""
    by_class = []
    for digit in range(10):
        file = folder / f"{digit}.json"
        try:
            by_class.append(np.rint(np.array(json.loads(file.read_bytes())["data"]) * 255).astype(np.uint8))
        except FileNotFoundError:
            raise _lacks(name, folder, file.name) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f"{name}: {file} is not what the package holds: {error}") from None
    x = np.concatenate(by_class)
    check(name, {"images": x.tobytes()}, expected, folder)
    y = np.repeat(np.arange(10), [len(pixels) // 784 for pixels in by_class])
    return _split(name, x.reshape(-1, 28, 28), y, licence, note)


def cifar(name: str, folder: Path, *, licence: str, note: str) -> Images:
    """The official `cifar-10-batches-py`, or a folder that holds it; only arrays are read out of its pickles."""
    inside = folder / "cifar-10-batches-py"
    folder = inside if inside.is_dir() else folder
    x, y = zip(*(_batch(name, folder, batch) for batch in BATCHES), strict=True)
    images = [a.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for a in x]
    whole = sha256(a.tobytes() for pair in zip(x, y, strict=True) for a in pair)
    train_x, train_y = np.concatenate(images[:-1]), np.concatenate(y[:-1])
    return Images(name, train_x, train_y, np.ascontiguousarray(images[-1]), y[-1], 10, whole, licence, note)


def _split(name: str, x: Bytes, y: NDArray[np.int64], licence: str, note: str) -> Images:
    """Shuffled by a fixed seed, then cut: data without an official test set, often sorted by class."""
    order = np.random.default_rng(SEED).permutation(len(x))
    cut = len(x) - round(len(x) * HELD_OUT)
    train, test = order[:cut], order[cut:]
    whole = sha256([x.tobytes(), y.tobytes()])
    return Images(name, x[train], y[train], x[test], y[test], int(y.max()) + 1, whole, licence, note)


def _unzipped(name: str, folder: Path, file: str) -> bytes:
    """The bytes of `file` or `file.gz`."""
    for spelling in (file, file.replace("-idx", ".idx")):  # some unpackers write a dot
        plain, packed = folder / spelling, folder / f"{spelling}.gz"
        if plain.is_file():
            return plain.read_bytes()
        if packed.is_file():
            try:
                return gzip.decompress(packed.read_bytes())
            except (EOFError, OSError, zlib.error) as error:
                raise BadData(f"{name}: {packed} cannot be decompressed: {error}") from None
    raise _lacks(name, folder, f"{file} or {file}.gz")


def _idx(name: str, file: Path, data: bytes) -> Bytes:
    """An idx file of unsigned bytes: two zeros, type 8, number of axes, their sizes as big-endian int32, values."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise BadData(f"{name}: {file} is no idx file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}")
    sizes = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(values) != np.prod(sizes) or not len(values):
        raise BadData(f"{name}: {file} holds {len(values)} values, its header says {' x '.join(map(str, sizes))}")
    return values.reshape(sizes)


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays and plain values, nothing else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype") and module.startswith("numpy"):
            return {"_reconstruct": _empty, "ndarray": np.ndarray, "dtype": np.dtype}[name]
        if (module, name) == ("_codecs", "encode"):  # how a pickle of an older protocol writes bytes
            return _latin
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which CIFAR-10's batches do not")


def _empty(kind: type, shape: tuple[int, ...], dtype: bytes | str) -> NDArray[Any]:
    return np.empty((0,), np.uint8)


def _latin(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


def _batch(name: str, folder: Path, file: str) -> tuple[Bytes, NDArray[np.int64]]:
    path = folder / file
    if not path.is_file():
        raise _lacks(name, folder, file)
    try:
        found = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        x, y = np.asarray(found[b"data"]), np.asarray(found[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadData(f"{name}: {path} is no batch of CIFAR-10: {error}") from None
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or y.shape != x.shape[:1]:
        raise BadData(f"{name}: {path} holds {x.dtype} of the sizes {x.shape} and {y.shape}, not uint8 (N, 3072)")
    if len(y) and not 0 <= y.min() <= y.max() <= 9:
        raise BadData(f"{name}: {path} has labels from {y.min()} to {y.max()}, not 0 to 9")
    return x, y


def _lacks(name: str, folder: Path, file: str) -> BadData:
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    shown = f"it holds {', '.join(held[:6])}{', ...' if len(held) > 6 else ''}" if held else "it is empty"
    return BadData(f"{name}: {folder} has no {file}; {shown}")
