"""Which figures a machine has: those measured, kept in a small file for each machine and setting; else built-in."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from structures import reading
from structures.backends.planned.figures import COPIES, PRODUCTS, SECONDS, Curve, Rates, built_in

VARIABLE = "STRUCTURES_CACHE"  # a folder; else the user's cache folder
MAX_BYTES = 2**20  # of the file
VERSION = 3  # of what is measured and of the file's format


def of(dtype: str, threads: int, device: str = "cpu") -> Rates:
    """The figures to plan with: measured ones where they were kept.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
        device: a torch device type.
    """
    return _of(dtype, threads, device, str(folder()))


def folder() -> Path:
    """Where measured figures are kept."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "structures"


def path(key: str) -> Path:
    """The file of a machine's figures: one a key, so that two processes never write into each other's."""
    return folder() / f"rates-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def machine(dtype: str, threads: int, device: str = "cpu") -> str:
    """The key of a measurement: processor, torch version, version of the figures, dtype, threads."""
    parts = processor(device), f"torch {_torch_version()}", f"figures {VERSION}", dtype, f"{threads} threads"
    return " / ".join(parts)


def parts(rates: Rates) -> tuple[dict[str, float], dict[str, Curve]]:
    """What is measured of a machine's figures: those in seconds, and the curves."""
    return {name: getattr(rates, name) for name in SECONDS}, {**dict(rates.product), **dict(rates.copy)}


def write(key: str, seconds: dict[str, float], curves: dict[str, Curve]) -> bool:
    """Keep a measurement, by a rename: no reader sees half of it. False, with a warning, where it cannot be kept."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder(), prefix="rates-", suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump({"version": VERSION, "machine": key, "seconds": seconds, "curves": curves}, file, indent=1)
        os.replace(name, path(key))
    except OSError as error:
        warnings.warn(f"measured rates are not kept: {error}; set {VARIABLE} to a folder to write to", stacklevel=2)
        return False
    finally:
        _of.cache_clear()
    return True


@lru_cache(maxsize=64)
def _of(dtype: str, threads: int, device: str, _folder: str) -> Rates:
    base = built_in(dtype, threads, device)
    key = machine(dtype, threads, device)
    file = path(key)
    try:
        found = reading.json_file(file, MAX_BYTES)
        if found["machine"] != key or found["version"] != VERSION:
            raise ValueError("it is of another machine or version")
        return base.replaced(_seconds(found["seconds"]), _curves(found["curves"]))
    except (FileNotFoundError, NotADirectoryError):
        return base
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{file}: ")
        warnings.warn(f"{file}: {reason}; built-in rates are used, delete it or calibrate again", stacklevel=2)
        return base


def _seconds(found: dict[str, object]) -> dict[str, float]:
    seconds = {name: float(found[name]) for name in SECONDS}  # type: ignore[arg-type]
    if not all(0 <= value < 1 for value in seconds.values()):
        raise ValueError("seconds must lie between 0 and 1")
    return seconds


def _curves(found: dict[str, list[list[float]]]) -> dict[str, Curve]:
    curves = {}
    for kind in (*PRODUCTS, *COPIES):
        curve = tuple(sorted((int(size), float(rate)) for size, rate in found[kind]))
        if not curve or not all(size >= 1 and math.isfinite(rate) and 0 < rate < 1e9 for size, rate in curve):
            raise ValueError(f"{kind}: rates must be positive")
        curves[kind] = curve
    return curves


@lru_cache(maxsize=4)
def processor(device: str) -> str:
    """The processor's model, as the system names it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            found[name.strip()] = value.strip()
    except OSError:
        pass
    named = [found[name] for name in ("model name", "cpu family", "model", "stepping") if name in found]
    return " ".join(named) or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _torch_version() -> str:
    from importlib.metadata import version

    return version("torch")
