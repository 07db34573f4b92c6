"""The paths of a GPU, run on a stand-in: clocks, graphs, memory, energy; and the counters of energy by themselves."""

import itertools
import sys
import types
from dataclasses import replace

import pytest
import standin
import torch
from bench_runs import quick

from bench.files import rows
from bench.machine import device, energy
from bench.sweep import cell
from bench.sweep.points import Point
from bench.sweep.subject import subject

POINT = Point("low_rank", "low_rank rank=4", "rank=4", None, 32, 24, 8, "float32", "cuda", "train", "einsum", 1, False,
              "device")  # fmt: skip


@pytest.fixture
def stand_in():
    device.use(standin, "cpu")
    yield standin
    device.use(torch.cuda, "cuda")


# -- clocks


def test_the_devices_clock_is_the_time_between_its_events(stand_in, monkeypatch):
    now = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(standin, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))
    clock = device.clock_of("cuda", "device")
    start = clock()
    assert clock() - start == pytest.approx(0.5)
    assert clock() - start == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="enable_timing"):
        standin.Event().elapsed_time(standin.Event(enable_timing=True))


def test_the_hosts_clock_waits_for_the_device(stand_in, monkeypatch):
    waited = []
    monkeypatch.setattr(standin, "synchronize", lambda: waited.append(True))
    device.clock_of("cuda")()
    assert waited == [True]
    assert device.clock_of("cpu", "host")() > 0 and waited == [True]


# -- graphs


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize(("name", "options"), [("low_rank", "rank=4"), ("dyad_it", "n_blocks=4"), ("monarch", "")])
def test_a_captured_call_is_run_again_on_what_its_input_holds_now(stand_in, mode, name, options):
    point = replace(POINT, structure=name, options=options, mode=mode, out_features=32)
    x, dy = cell.inputs(point)
    what = subject(point, x)
    with cell.grad_mode(point):
        step, how = device.graphed(what.step(x, dy))
        assert how == "graph"
        with torch.no_grad():
            x.mul_(-2.0)
        found, expected = step(), what.step(x, dy)()
    for a, b in zip(device._tensors(found), device._tensors(expected), strict=True):
        torch.testing.assert_close(a, b)


def test_what_cannot_be_captured_is_timed_by_events_and_says_so(stand_in):
    step, how = device.graphed(lambda: torch.ones(3) * torch.ones(3).sum().item())
    assert how == "events alone: operation not permitted when stream is capturing"
    assert torch.equal(step(), torch.full((3,), 3.0))


def test_a_graph_with_another_result_is_noticed(stand_in, monkeypatch):
    monkeypatch.setattr(standin.CUDAGraph, "replay", lambda self: None)
    with pytest.raises(device.NoGraph, match="another result"):
        device.graphed(lambda: torch.ones(3) + 1)


# -- memory


def test_the_peak_of_a_call_counts_what_it_makes(stand_in):
    x = torch.ones(256)
    assert device.peak_bytes("cuda", lambda: (x + 1).relu_().view(16, 16)) == 1024
    assert device.peak_bytes("cuda", lambda: (x + 1) * 2) == 2048
    assert device.peak_bytes("cpu", lambda: x + 1) is None


def test_cold_calls_rotate_graphs_beyond_the_devices_cache(stand_in, monkeypatch):
    monkeypatch.setattr(standin, "L2", 2000)
    x, dy = cell.inputs(POINT)
    what = subject(POINT, x)
    timed = cell.timed_step(POINT, what, x, dy, cold=True)
    own = sum(p.numel() * 4 for p in what.parameters)
    assert timed.captured == "graph" and timed.copies * own >= 4000 > (timed.copies - 1) * own > 0
    assert timed.step() is not timed.step()


# -- energy


def powercap(folder, values, most=1000):
    """A tree as Linux has it: packages, and below them parts that must not be counted twice."""
    for name, value in values.items():
        zone = folder / name
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text(f"{most - 1}\n")
    return folder


def test_the_packages_of_a_cpu_are_summed_and_counters_that_wrapped_are_unwrapped(tmp_path, monkeypatch):
    zones = {"intel-rapl:0": 900, "intel-rapl:1": 100, "intel-rapl:0:0": 5}
    monkeypatch.setattr(energy, "POWERCAP", powercap(tmp_path, zones))
    meter, told = energy.counter("cpu")
    assert told == "RAPL, 2 packages"
    assert meter.joules() == 0
    powercap(tmp_path, {"intel-rapl:0": 50, "intel-rapl:1": 130, "intel-rapl:0:0": 900})
    assert meter.joules() == pytest.approx((150 + 30) / 1e6)
    powercap(tmp_path, {"intel-rapl:1": 230})
    assert meter.joules() == pytest.approx(280 / 1e6)


def test_a_machine_without_a_counter_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.counter("cpu") == (None, f"no counter: {tmp_path} has no RAPL package")
    powercap(tmp_path, {"intel-rapl:0": 1})
    monkeypatch.setattr(energy.Rapl, "_microjoules", staticmethod(denied))
    meter, told = energy.counter("cpu")
    assert meter is None and told.endswith("energy_uj: Permission denied; RAPL may be for root alone")
    monkeypatch.undo()
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("many")
    assert energy.counter("cpu")[0] is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.counter("cuda") == (None, "no counter: NVML needs the package nvidia-ml-py")


def denied(zone):
    raise PermissionError(13, "Permission denied", str(zone / "energy_uj"))


class NVMLError(Exception):
    pass


def nvml(readings, broken=False):
    """A library like pynvml whose counter gives these readings, in millijoules."""
    numbers = iter(readings)

    def read(handle):
        if broken:
            raise NVMLError("Not Supported")
        return next(numbers)

    return types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: i,
                                 nvmlDeviceGetTotalEnergyConsumption=read)  # fmt: skip


def test_the_board_of_a_gpu_is_read_through_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(itertools.count(1000, 250)))
    meter, told = energy.counter("cuda")
    assert told == "NVML"
    assert meter.joules() == pytest.approx(1.25)
    calls = []
    found = energy.joules_per_call(lambda: calls.append(1), 0.02, "cuda", meter, lambda: 0.0)
    assert len(calls) == 10 and found == pytest.approx(0.025)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], broken=True))
    assert energy.counter("cuda") == (None, "no counter: NVML: Not Supported")


def test_a_counter_that_stands_still_gives_no_figure():
    still = types.SimpleNamespace(name="still", joules=lambda: 7.0)
    assert energy.joules_per_call(lambda: None, 1.0, "cpu", still, lambda: 0.0) is None


# -- a whole run

FAKE_NVML = """
import itertools, sys, types
from bench.machine import energy, setup
energy.SECONDS = {"cpu": 1e-3, "cuda": 1e-3}
setup.last_level_cache = lambda: 5_000  # a whole one takes a hundred thousand copies of so small a layer
readings = itertools.count(1000, 500)
sys.modules["pynvml"] = types.SimpleNamespace(NVMLError=OSError, nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings))
"""
TINY = ("--structures=low_rank:rank=4", "--widths=16", "--tokens=4", "--no-controls")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "plugin_nvml.py").write_text(FAKE_NVML)
    status, text, document = quick(
        folder, "-p", "plugin_nvml", *TINY, "--device=cuda", "-p", "standin", "--dtypes=float32,bfloat16", "--cold"
    )
    assert status == 0, text
    return folder, text, document


def test_host_time_and_device_time_are_rows_of_their_own(gpu):
    folder, text, document = gpu
    found = [row["extra_info"] for row in document["benchmarks"]]
    assert len(found) == 2 * 2 * 2 * 2  # structures with dense, modes, dtypes, clocks
    timers = {(row["extra_info"]["clock"], row["options"]["timer"]) for row in document["benchmarks"]}
    assert timers == {("host", "synchronised"), ("device", "device_seconds")}
    for info in found:
        assert info["captured"] == ("graph" if info["clock"] == "device" else None)
        assert info["clock"] == "host" or info["roofline"]["bound"] != "calls"
        assert info["cache"] == "cold" and info["copies"] > 1
        assert info["peak_bytes"] > 0
        assert info["energy_joules"] > 0
        assert info["checkpoint_bytes"] > info["parameter_bytes"] > 0
    assert "cuda (device time)" in text
    read = rows.read([folder / "results.json"])
    assert len(read.rows) == len(found) and {row.clock for row in read.rows} == {"host", "device"}


def test_a_stand_in_is_named_wherever_the_device_is(gpu):
    run = gpu[2]["structures"]["run"]
    assert run["device_names"]["cuda"] == standin.NAME
    assert run["energy"] == {"cuda": "NVML"} and run["tf32"] in (True, False)


def test_parameters_and_checkpoints_are_counted_in_their_dtype(gpu):
    by_dtype = {}
    for row in gpu[2]["benchmarks"]:
        info = row["extra_info"]
        if info["series"] == "low_rank rank=4":
            by_dtype[info["dtype"]] = info["parameter_bytes"]
    assert by_dtype == {"float32": 4 * (2 * 16 * 4 + 16), "bfloat16": 2 * (2 * 16 * 4 + 16)}


def test_a_check_runs_every_point_and_times_none(tmp_path):
    status, text, document = quick(tmp_path, *TINY, "--device=cuda", "-p", "standin", "--check", json_file=False)
    assert status == 0 and document is None, text
    assert text.count("passed the check") == 8 and " ms " not in text
    assert "8 points checked, 0 refused or failed" in text
    status, text, _ = quick(tmp_path, *TINY, "--check")
    assert status == 4 and "--check: times nothing, so there is nothing to write; leave out --benchmark-json" in text
