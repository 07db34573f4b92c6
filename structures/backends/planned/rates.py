"""Which figures a machine has: those measured, kept in a small file for each machine and setting; else built-in."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from structures import atomic, reading
from structures.backends.planned.figures import COPIES, PRODUCTS, SECONDS, Curve, Rates, built_in

VARIABLE = "STRUCTURES_CACHE"  # a folder; else the user's cache folder
MAX_BYTES = 2**20  # of the file
Figures = dict[str, "float | Curve"]  # by name
VERSION = 5  # of what is measured and of the file's format


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


def known(key: str) -> bool:
    """Whether there is a file of these figures; reading it says whether it is whole."""
    return path(key).exists()


def parts(rates: Rates) -> Figures:
    """What is measured of a machine's figures: those in seconds, and the curves."""
    return {**{name: getattr(rates, name) for name in SECONDS}, **dict(rates.product), **dict(rates.copy)}


def write(key: str, figures: Figures) -> bool:
    """Keep a measurement, by a rename: no reader sees half of it. False, with a warning, where it cannot be kept."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        atomic.write(json.dumps({"version": VERSION, "machine": key, "figures": figures}, indent=1), path(key))
    except OSError as error:
        warnings.warn(f"measured rates are not kept: {error}; set {VARIABLE} to a folder to write to", stacklevel=2)
        return False
    finally:
        _of.cache_clear()
    return True


def read(key: str, names: Sequence[str]) -> Figures | None:
    """The figures of these names that were kept; None where there are none, with a warning if the file is not whole."""
    file = path(key)
    try:
        found = reading.json_file(file, MAX_BYTES)
        if found["machine"] != key or found["version"] != VERSION:
            raise ValueError("it is of another machine or version")
        return {name: _checked(name, found["figures"][name]) for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{file}: ")
        warnings.warn(f"{file}: {reason}; delete it or calibrate again, it is not used", stacklevel=2)
        return None


def _checked(name: str, found: Any) -> float | Curve:
    if name in SECONDS:
        if not 0 <= float(found) < 1:
            raise ValueError(f"{name}: seconds must lie between 0 and 1")
        return float(found)
    curve = tuple(sorted((int(size), float(rate)) for size, rate in found))
    if not curve or not all(size >= 1 and 0 < rate < 1e15 for size, rate in curve):
        raise ValueError(f"{name}: rates must be positive")
    return curve


@lru_cache(maxsize=64)
def _of(dtype: str, threads: int, device: str, _folder: str) -> Rates:
    base = built_in(dtype, threads, device)
    found: Any = read(machine(dtype, threads, device), (*SECONDS, *PRODUCTS, *COPIES))
    if found is None:
        return base
    return base.replaced({name: found[name] for name in SECONDS}, found)


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
