"""Which rates a machine has: those measured and kept in a small file, else the built-in ones."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from structures.backends.planned.price import Curve, Rates, built_in

VARIABLE = "STRUCTURES_CACHE"  # a folder; else the user's cache folder
VERSION = 1  # of the file's format


def of(dtype: str, threads: int, device: str = "cpu") -> Rates:
    """The rates to plan with: measured ones where the file has them.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
        device: a torch device type.
    """
    return _of(dtype, threads, device, str(path()))


def path() -> Path:
    """The file of measured rates."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder) / "rates.json"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "structures" / "rates.json"


def machine(dtype: str, threads: int, device: str = "cpu") -> str:
    """The key of a measurement: processor, torch version, dtype, threads."""
    return " / ".join((processor(device), _torch_version(), dtype, f"{threads} threads"))


def write(key: str, product: dict[str, Curve], copy: dict[str, Curve], call: float) -> bool:
    """Add a measurement to the file: by a rename, so that no reader sees half of it. False where it cannot be kept."""
    entries = _read(path())
    entries[key] = {"call": call, "product": product, "copy": copy}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path().parent, prefix="rates-", suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump({"version": VERSION, "machines": entries}, file, indent=1)
        os.replace(name, path())
    except OSError as error:
        warnings.warn(f"measured rates are not kept: {error}", stacklevel=2)
        return False
    finally:
        _of.cache_clear()
    return True


@lru_cache(maxsize=64)
def _of(dtype: str, threads: int, device: str, file: str) -> Rates:
    base = built_in(dtype, threads, device)
    entry = _read(Path(file)).get(machine(dtype, threads, device))
    if entry is None:
        return base
    try:
        return base.replaced(_curves(entry["product"]), _curves(entry["copy"]), _call(entry["call"]))
    except (KeyError, TypeError, ValueError):
        warnings.warn(f"{file}: the rates of this machine are malformed; built-in rates are used", stacklevel=2)
        return base


def _call(found: object) -> float:
    if not isinstance(found, float) or not 0 < found < 1:
        raise ValueError("the seconds of a call are a positive number")
    return found


def _curves(found: object) -> dict[str, Curve]:
    if not isinstance(found, dict):
        raise TypeError("curves are a mapping")
    curves = {}
    for kind, points in found.items():
        curve = tuple(sorted((int(size), float(rate)) for size, rate in points))
        if not curve or any(size < 1 or not 0 < rate < 1e9 for size, rate in curve):
            raise ValueError("a rate is positive")
        curves[str(kind)] = curve
    return curves


def _read(file: Path) -> dict[str, dict[str, object]]:
    """All measurements in the file; none, with a warning, where it cannot be understood."""
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        warnings.warn(f"{file}: cannot be read ({error}); built-in rates are used", stacklevel=2)
        return {}
    try:
        found = json.loads(text)
        if found["version"] == VERSION and all(isinstance(e, dict) for e in found["machines"].values()):
            return dict(found["machines"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    warnings.warn(f"{file}: not a file of rates of this version; built-in rates are used", stacklevel=2)
    return {}


@lru_cache(maxsize=4)
def processor(device: str) -> str:
    """The processor's model, as the system names it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    except OSError:
        pass
    named = [found[key] for key in ("model name", "cpu family", "model", "stepping") if key in found]
    return " ".join(named) or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _torch_version() -> str:
    from importlib.metadata import version

    return version("torch")
