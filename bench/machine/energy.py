"""Energy of a call, from the counters that a machine offers: RAPL of a CPU's packages, NVML of a GPU.

A RAPL counter covers the whole package, idle cores and other processes included; NVML covers the whole board. Both
count up by themselves and are read before and after a loop of calls. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
SECONDS = {"cpu": 0.03, "cuda": 0.2}  # of the loop: RAPL counts every millisecond, NVML every 20 to 100 ms


class Counter(Protocol):
    """Joules that have been taken, from some moment on."""

    name: str

    def joules(self) -> float: ...


class Rapl:
    """The packages of a CPU, through /sys/class/powercap. Counters that wrapped around are unwrapped."""

    name = "RAPL"

    def __init__(self, zones: list[Path]):
        self.zones = zones
        self.ranges = [int((zone / "max_energy_range_uj").read_text()) + 1 for zone in zones]
        self.last = [self._microjoules(zone) for zone in zones]
        self.total = 0

    def joules(self) -> float:
        for i, zone in enumerate(self.zones):
            now = self._microjoules(zone)
            self.total += (now - self.last[i]) % self.ranges[i]
            self.last[i] = now
        return self.total / 1e6

    @staticmethod
    def _microjoules(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())


class Nvml:
    """The board of the first GPU, through NVML."""

    name = "NVML"

    def __init__(self, library: Any):
        library.nvmlInit()
        self.library, self.handle = library, library.nvmlDeviceGetHandleByIndex(0)
        self.joules()

    def joules(self) -> float:
        return float(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3  # in millijoules


def counter(device: str) -> tuple[Counter | None, str]:
    """The counter of a device and its name; None, and why there is none."""
    return _nvml() if device == "cuda" else _rapl(POWERCAP)


def _rapl(root: Path) -> tuple[Counter | None, str]:
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not zones:
        return None, f"no counter: {root} has no RAPL package"
    try:
        return Rapl(zones), f"{Rapl.name}, {len(zones)} package{'s' if len(zones) > 1 else ''}"
    except OSError as error:
        return None, f"no counter: {error.filename}: {error.strerror}; RAPL may be for root alone"
    except ValueError:
        return None, f"no counter: {root} holds something else than numbers"


def _nvml() -> tuple[Counter | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, "no counter: NVML needs the package nvidia-ml-py"
    try:
        return Nvml(pynvml), Nvml.name
    except pynvml.NVMLError as error:
        return None, f"no counter: NVML: {error}"


def joules_per_call(
    step: Callable[[], object], seconds_a_call: float, device: str, meter: Counter, clock: Callable[[], float]
) -> float | None:
    """Joules of a call, from a loop long enough for the counter; None where the counter did not move.

    Args:
        clock: read before and after the loop; on CUDA one that waits for the device.
    """
    calls = max(1, round(SECONDS[device] / max(seconds_a_call, 1e-9)))
    clock()
    start = meter.joules()
    for _ in range(calls):
        step()
    clock()
    taken = meter.joules() - start
    return taken / calls if taken > 0 else None
