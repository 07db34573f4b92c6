"""The machine a sweep runs on: set up from inside before torch is loaded, watched while it runs, described after.

Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# glibc's mallopt takes an int, so "never" is the largest one (2 GiB) for the first and -1 for the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD, TRIM_THRESHOLD = 2**31 - 1, -1
FOREIGN_LOAD = 0.1  # share of our cores used by others from which a point is flagged

CPUS = Path("/sys/devices/system/cpu")
OPENMP = ("OMP_PROC_BIND", "OMP_PLACES", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")
PACKAGES = ("torch", "structures", "numpy", "pytest_benchmark")


# -- threads


@dataclass(frozen=True)
class Threads:
    """How many threads a run uses, and the cores they were asked to stay on."""

    count: int
    cores: tuple[int, ...]
    early: bool  # the environment was set before an OpenMP runtime was loaded
    by_user: bool  # OMP_* was set by the user and left alone

    @property
    def how(self) -> str:
        if self.by_user:
            return "OMP_* variables set by the user"
        return "set before torch was loaded" if self.early else "came too late: an OpenMP runtime was loaded already"


def one_core_each() -> tuple[int, ...]:
    """The first hardware thread of each physical core that this process may use, within its CPU quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores: dict[str, int] = {}
    for cpu in allowed:
        siblings = _read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        cores.setdefault(siblings, cpu)
    quota = _cpu_quota()
    return tuple(cores.values())[: max(1, int(quota))] if quota else tuple(cores.values())


def pin(environment: dict[str, str] | os._Environ[str] = os.environ, maps: str | None = None) -> Threads:
    """Ask OpenMP for one thread a physical core, each bound to its core. Settings of the user are left alone.

    OpenMP reads its environment once, when its library is loaded: call this before torch is imported.

    Args:
        maps: what is loaded into this process, as in /proc/self/maps.
    """
    cores = one_core_each()
    by_user = any(name in environment for name in OPENMP)
    loaded = (_read(Path("/proc/self/maps")) or "") if maps is None else maps
    early = "torch" not in sys.modules and not any(name in loaded for name in ("libgomp", "libomp", "libiomp"))
    if not by_user:
        environment["OMP_PROC_BIND"] = "true"
        environment["OMP_PLACES"] = ",".join(f"{{{core}}}" for core in cores)
        environment["OMP_NUM_THREADS"] = str(len(cores))
    asked = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    return Threads(int(asked) if asked.isdigit() and int(asked) else len(cores), cores, early, by_user)


def pinned_cores(threads: int) -> list[int] | None:
    """The cores that this process's threads are bound to, one each; None where they are free to move.

    What the kernel says, so it holds whoever asked for it. Call it after a parallel region has started the threads.
    """
    bound = []
    for task in Path("/proc/self/task").glob("*/status") if Path("/proc/self/task").exists() else []:
        for line in (_read(task) or "").splitlines():
            if line.startswith("Cpus_allowed_list:"):
                cores = line.split(":")[1].strip()
                if cores.isdigit():
                    bound.append(int(cores))
    return sorted(set(bound)) if len(set(bound)) >= threads else None


def _cpu_quota() -> float | None:
    """CPUs that the control group allows, as containers do; None where there is no limit."""
    words = (_read(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / int(words[1])
    return None


# -- allocator


def tune_allocator() -> str:
    """Keep large tensors on the heap and never give memory back, so that no call pays for fresh pages.

    Returns:
        what was done, in words.
    """
    if platform.libc_ver()[0] != "glibc":
        return "plain: no glibc, nothing set"
    mallopt = ctypes.CDLL(None).mallopt
    name = f"glibc {platform.libc_ver()[1]}"
    if not mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD):
        return f"plain: {name} refused mallopt(M_MMAP_THRESHOLD, {MMAP_THRESHOLD})"
    if not mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD):
        return f"{name}, mmap threshold {MMAP_THRESHOLD}, trimmed as by default"
    return f"{name}, mmap threshold {MMAP_THRESHOLD}, never trimmed"


def plain_allocator() -> str:
    """What is left when nothing is set."""
    libc, number = platform.libc_ver()
    return f"plain: {libc or 'libc unknown'} {number}".strip()


# -- load


class Load:
    """CPU time that others took on our cores, as a share of these cores, since the last look."""

    def __init__(self, cores: tuple[int, ...]):
        self.cores = cores
        self.all_foreign = self.all_seconds = 0.0
        self.last = self._look()

    def since(self) -> float | None:
        """The share since the last call; None where the machine does not report it."""
        now, before = self._look(), self.last
        self.last = now
        if now is None or before is None:
            return None
        seconds = now[0] - before[0]
        if seconds <= 0:
            return 0.0
        foreign = max(0.0, (now[1] - before[1]) - (now[2] - before[2]))
        self.all_foreign += foreign
        self.all_seconds += seconds
        return min(1.0, foreign / (seconds * len(self.cores)))

    @property
    def overall(self) -> float | None:
        """The share over all points; None before the first one, and where the machine does not report it."""
        return self.all_foreign / (self.all_seconds * len(self.cores)) if self.all_seconds else None

    def _look(self) -> tuple[float, float, float] | None:
        """Now, busy seconds of our cores, seconds of our own processes."""
        stat = _read(Path("/proc/stat"))
        if stat is None:
            return None
        own = os.times()
        busy = busy_seconds(stat, self.cores, os.sysconf("SC_CLK_TCK"))
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system


def busy_seconds(stat: str, cores: tuple[int, ...], ticks: int) -> float:
    """Seconds in which the cores were not idle, time stolen by the host included, from the text of /proc/stat."""
    names = {f"cpu{core}" for core in cores}
    total = 0
    for line in stat.splitlines():
        words = line.split()
        if words and words[0] in names:
            user, nice, system, _idle, _iowait, *others = map(int, words[1:9])
            total += user + nice + system + sum(others)
    return total / ticks


# -- description


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a time."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = getattr(sys.modules.get(package), "__version__", "unknown")
    return found


def cpu_model() -> str:
    """The processor's name."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def commit() -> dict[str, object]:
    """`{"commit": hash or None, "dirty": bool}` of the working tree that holds this file.

    Files that git does not know, as a user's registry and results, change no code.
    """
    here = Path(__file__).resolve().parent
    found, status = _git("rev-parse", "HEAD", at=here), _git("status", "--porcelain", "--untracked-files=no", at=here)
    return {"commit": found or None, "dirty": bool(status) or found is None}


def last_level_cache() -> int:
    """Bytes of the largest cache of a core; 32 MiB where the machine does not report it."""
    sizes = [_bytes(_read(path) or "") for path in CPUS.glob("cpu0/cache/index*/size")]
    return max([size for size in sizes if size], default=32 * 2**20)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, within the control group's limit; None where unknown."""
    free = None
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if limit and used and limit.isdigit() and used.isdigit():
        left = int(limit) - int(used)
        free = left if free is None else min(free, left)
    return free


def _bytes(text: str) -> int:
    units: Mapping[str, int] = {"K": 2**10, "M": 2**20, "G": 2**30}
    digits, unit = text[:-1], text[-1:]
    return int(digits) * units[unit] if digits.isdigit() and unit in units else 0


def _git(*arguments: str, at: Path) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
