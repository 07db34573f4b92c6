"""The sweep: its parts in this process, and whole tiny runs of `pytest bench` in another."""

import itertools
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench_runs import command, environment, quick, run
from made_up import dense, document
from made_up import point as made
from torch import nn

import structures
from bench.files import rounding, rows
from bench.files.errors import UsageError
from bench.files.progress import Progress
from bench.files.rows import parse
from bench.files.vocabulary import BFLOAT16, DENSE, FLOAT8, INT8_DYNAMIC, INT8_WEIGHTS, NARROW, RIVALS
from bench.machine import roofline, setup, timing
from bench.machine.roofline import Roofline
from bench.machine.timing import Effort
from bench.sweep import cell, facts, launch, output, points, progress, request, shapes
from bench.sweep.check import CheckFailed, check, sample, saved_bytes
from bench.sweep.points import Point
from bench.sweep.request import Budget
from bench.sweep.subject import Refused, subject
from bench.sweep.sweep import Done, Sweep

HALF = torch.finfo(torch.float32).eps ** 0.5  # half of the digits: no rounding takes more
POINT = Point(
    "dyad_it", "dyad_it n_blocks=4", "n_blocks=4", None, 64, 96, 16, "float32", "cpu", "train", "auto", 1, False
)


# -- whole runs


TINY = ("--widths=64", "--tokens=16", "--no-controls")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    status, text, document = run(
        folder, "--structures=dyad_it:n_blocks=4,5 monarch kronecker", "--budget=params=0.5", *TINY
    )
    return folder, status, text, document


def test_a_run_ends_well_and_its_file_has_the_fields_of_the_design(tiny):
    _, status, text, document = tiny
    assert status == 0, text
    section = document["structures"]
    assert section["schema"] == 1
    assert section["run"]["complete"] is True
    assert section["run"]["threads"] >= 1
    assert set(section["run"]["versions"]) == {"python", "torch", "structures", "numpy", "pytest_benchmark"}
    assert section["run"]["pinned_by"] == "set before torch was loaded"
    assert 0 <= section["run"]["foreign_load"] <= 1
    assert [limit["dtype"] for limit in section["roofline"]] == ["float32"]
    info = {
        (row["extra_info"]["series"], row["extra_info"]["mode"]): row["extra_info"] for row in document["benchmarks"]
    }
    names = {"dense", "dyad_it n_blocks=4", "monarch @ params 0.5", "kronecker"}
    assert set(info) == set(itertools.product(names, ("forward", "train")))
    dyad = info["dyad_it n_blocks=4", "train"]
    assert (dyad["in_features"], dyad["out_features"], dyad["tokens"]) == (64, 64, 16)
    assert dyad["options"] == {"n_blocks": 4}
    assert dyad["params_share"] == dyad["flops_share"] == 0.5
    assert dyad["flops"] == 0.5 * dyad["dense_flops"] == 0.5 * 3 * 2 * 16 * 64 * 64
    assert dyad["backend"] in structures.backends.names()
    assert dyad["activation_bytes"] >= 16 * 64 * 4
    assert 0 < dyad["speedup"]["q1"] <= dyad["speedup"]["median"] <= dyad["speedup"]["q3"]
    assert 0 < dyad["error"] < HALF
    assert dyad["roofline"]["bound"] in ("calls", "memory", "arithmetic")
    assert info["dense", "forward"]["speedup"] is None
    assert info["dense", "forward"]["activation_bytes"] is None
    assert info["monarch @ params 0.5", "forward"]["budget"] == "params=0.5"


def test_every_series_says_how_its_options_scale(tiny):
    document = tiny[3]
    rules = document["structures"]["rules"]
    assert set(rules) == {row["extra_info"]["series"] for row in document["benchmarks"]}
    assert rules["monarch @ params 0.5"] == "as near as can be to 0.5 of dense's parameters: n_blocks=4"


def test_a_point_that_cannot_run_is_a_row_with_its_reason_and_a_skip(tiny):
    _, _, text, document = tiny
    refused = {row["series"] or row["structure"]: row for row in document["structures"]["refused"]}
    assert set(refused) == {"dyad_it n_blocks=5", "kronecker"}
    assert "n=5 does not divide in_features=64" in refused["dyad_it n_blocks=5"]["reason"]
    assert refused["dyad_it n_blocks=5"]["mode"] in ("forward", "train")
    assert refused["kronecker"]["budget"] == "params=0.5"
    assert "the nearest share" in refused["kronecker"]["reason"]
    assert refused["kronecker"]["tokens"] is None
    assert "8 passed, 3 skipped" in text


def test_the_report_reads_what_the_sweep_wrote(tiny):
    results = rows.read([tiny[0] / "results.json"])
    assert len(results.rows) == 8
    assert len(results.refusals) == 3


def test_the_terminal_tells_the_ratio_the_time_left_and_the_next_command(tiny):
    folder, _, text, _ = tiny
    lines = [line for line in text.splitlines() if " left] " in line]
    assert len(lines) == 10
    assert sum("x dense" in line for line in lines) == 6
    assert lines[-1].startswith("[10/10  0:00 left]")
    assert "params=0.5   train   cpu float32 tokens 16    64x64: monarch" in text or "flagged 'load'" in text
    assert f"python -m bench report {folder / 'results.json'} -o report/" in text


def test_a_file_is_small(tiny):
    rows = tiny[3]["benchmarks"]
    assert all(row["stats"]["data"] == [] for row in rows)
    assert len(json.dumps(rows, indent=4)) / len(rows) < 1e6 / 300


MINE = """
mine:
  title: Two halves
  options: {n_blocks: 2}
  sizes: {n: n_blocks}
  einsum: (n i), n i o -> (n o)
"""
WRONG = '''
"""A backend that is off by a hundredth, and one that refuses."""
import types
from structures import backends
from structures.backends import einsum
wrong = types.ModuleType("wrong")
wrong.refuses = lambda structure, x: None
wrong.apply = lambda structure, x, factors, bias=None: 1.01 * einsum.apply(structure, x, factors, bias)
wrong.executed_flops = einsum.executed_flops
shy = types.ModuleType("shy")
shy.refuses = lambda structure, x: "it never runs"
shy.apply, shy.executed_flops = einsum.apply, einsum.executed_flops
backends.register("wrong", wrong)
backends.register("shy", shy)
'''


def test_a_wrong_backend_is_found_before_it_is_timed_and_an_entry_of_ones_own_is_swept(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "plugin_with_backends.py").write_text(WRONG)
    status, text, document = quick(
        tmp_path, "-p", "plugin_with_backends", "--registry", "mine.yaml", "--structures=mine:n_blocks=4",
        "--backend=wrong,shy,einsum", "--threads=1", *TINY,
    )  # fmt: skip
    assert status == 1, text
    timed = [(row["extra_info"]["series"], row["extra_info"]["backend"]) for row in document["benchmarks"]]
    assert sorted(set(timed)) == sorted(
        {("dense", t[1]) for t in timed if t[0] == "dense"} | {("mine n_blocks=4", "einsum")}
    )
    reasons = {(row["backend"], row["mode"]): row["reason"] for row in document["structures"]["refused"]}
    assert reasons["wrong", "forward"].startswith("CheckFailed: y is off by 0.0")
    assert reasons["wrong", "train"].startswith("CheckFailed: d")
    assert reasons["shy", "train"] == "backend 'shy': it never runs"
    assert document["structures"]["run"]["complete"] is True
    assert document["structures"]["run"]["pinned_by"].startswith("came too late")  # the plugin has loaded torch


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    arguments = (
        "--structures=dyad_it low_rank monarch",
        "--widths=64,128,256",
        "--tokens=16,17,18,19",
        "--no-controls",
        "--threads=1",
    )
    process = subprocess.Popen(
        [*command(tmp_path, *arguments)], cwd=tmp_path, env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen = 0
    for line in process.stdout:
        seen += " left] " in line
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 2, text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["structures"]["run"]["complete"] is False
    assert 3 <= len(document["benchmarks"]) < 200
    assert all("roofline" in row["extra_info"] for row in document["benchmarks"])
    assert len(rows.read([tmp_path / "results.json"]).rows) == len(document["benchmarks"])
    assert "not complete" in text


def test_list_prints_the_points_and_runs_none(tmp_path):
    status, text, document = quick(
        tmp_path, "--list", "--structures=dyad_it:n_blocks=4", "--shapes=opt-125m", "--tokens=7"
    )
    assert status == 0, text
    assert document is None
    assert "dyad_it_n_blocks=4-3072x768-t7-float32-cpu-train-auto-" in text
    listed = [line for line in text.splitlines() if "-t7-" in line]
    assert f"{len(listed)} points" in text
    assert " left] " not in text


def test_a_run_in_several_processes_ends_with_one_sentence(tmp_path):
    status, text, document = run(tmp_path, "-p", "xdist", "-n", "2")
    assert status == 4 and document is None
    assert "ERROR: -n: processes of pytest-xdist would disturb each other's times" in text
    assert "Traceback" not in text


OUTPUT = SimpleNamespace(benchmark_json="r.json", resume=None, overwrite=False, list=False, collectonly=False,
                         check=False, benchmark_disable=False, benchmark_enable=False)  # fmt: skip
REFUSED = [
    ({"benchmark_disable": True}, "--benchmark-disable: times nothing, so there is nothing to write; leave out --be"),
    ({"check": True}, "--check: times nothing, so there is nothing to write; leave out --benchmark-json"),
    ({"check": True, "resume": "r.json"}, "nothing to write; leave out --resume"),
    ({"benchmark_json": "old.json"}, "--benchmark-json: old.json exists; add --overwrite to replace it"),
    ({"benchmark_json": "cut.json"}, "to replace it, or go on with its run by --resume cut.json"),
    ({"benchmark_json": "no/r.json"}, "there is no folder no"),
    ({"resume": "other.json"}, "--benchmark-json names another file, r.json"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_a_results_file_that_would_be_lost_or_hold_nothing_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("old.json", "cut.json", "cut.json.journal"):
        Path(name).write_text("[]")
    asked = {**vars(OUTPUT), **options}
    with pytest.raises(UsageError) as error:
        launch.output(SimpleNamespace(**asked))
    assert message in str(error.value)
    if "exists" in str(error.value):
        for other in ("overwrite", "list"):
            assert launch.output(SimpleNamespace(**{**asked, other: True})) == Path(asked["benchmark_json"])


# -- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structures": "dyad_it:n_block=4"}, "option of dyad_it: 'n_block' is not known; did you mean 'n_blocks'"),
        ({"structures": "dyad_it:4"}, "names no option. Allowed: n_blocks"),
        ({"structures": "dyad_it:n_blocks=x"}, "'x' is not a number"),
        ({"structures": "kronecker:a=2"}, "kronecker has no options"),
        ({"structures": "dyad_it:pad=2"}, "pad='2' is not true or false"),
        ({"structures": " "}, "name some of"),
        ({"shapes": "opt-125"}, "did you mean 'opt-125m' or 'opt-125m-attention'? Allowed: "),
        ({"shapes": "768x"}, "or INxOUT, such as 768x3072"),
        ({"shapes": "0x5"}, "widths are from 1 to"),
        ({"widths": "1e3"}, "'1e3' is not allowed; write whole numbers from 1 to"),
        ({"tokens": "0"}, "whole numbers from 1"),
        ({"threads": "3"}, "whole numbers from 1 to 2"),
        ({"dtypes": "fp8"}, "Allowed: float64, float32, bfloat16, float16"),
        ({"device": "gpu"}, "did you mean 'cpu'? Allowed: cpu, cuda"),
        ({"device": "cuda"}, "there is no CUDA device here. Allowed: cpu"),
        ({"mode": "foward"}, "did you mean 'forward'"),
        ({"backend": "bm"}, "did you mean 'bmm'"),
        ({"budget": "param=0.5"}, "did you mean 'params'"),
        ({"budget": "params=2"}, "is not a share of dense"),
        ({"structures": "Dyad_I"}, "'Dyad_I' is not known; did you mean 'dyad_it'"),
        ({"registry": ["nowhere.yaml"]}, "nowhere.yaml: cannot be read"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(options, message):
    with pytest.raises(UsageError) as error:
        request.read(options, cuda=False, cores=2)
    assert message in str(error.value)


def test_structures_are_given_with_combinations_of_options():
    found = request.entries(
        "dyad_it:n_blocks=2,4 pixelfly:n_blocks=8,rank=0,8 monarch einsum:theta=[0.5,0.5,0,1,0,0,0]"
    )
    assert [(e.name, e.options) for e in found] == [
        ("dyad_it", {"n_blocks": 2}),
        ("dyad_it", {"n_blocks": 4}),
        ("pixelfly", {"n_blocks": 8, "rank": 0}),
        ("pixelfly", {"n_blocks": 8, "rank": 8}),
        ("monarch", None),
        ("einsum", {"theta": (0.5, 0.5, 0, 1, 0, 0, 0)}),
    ]
    for entry in found:
        assert request.read_options(request.options_text(entry.options or {})) == (entry.options or {})


SPELLINGS = [
    ({"structures": "dyad_it:n_blocks=2,4 monarch"}, {"structures": "DYAD_IT n_blocks=2,4,Monarch"}),
    ({"structures": "pixelfly:n_blocks=8,rank=4 btt"}, {"structures": "pixelfly n_blocks=8 rank=4, btt"}),
    ({"dtypes": "float32,bfloat16"}, {"dtypes": "FP32 bf16"}),
    ({"budget": "params=0.5,0.25 flops=0.125"}, {"budget": "50% 0.25, FLOPs=12.5%"}),
    ({"mode": "forward,train", "tokens": "1,8"}, {"mode": "Forward TRAIN", "tokens": "1 8"}),
    ({"shapes": "768x3072,opt-350m"}, {"shapes": "768X3072 OPT-350m"}),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS, ids=lambda asked: " ".join(asked.values()))
def test_words_are_spelled_with_commas_or_blanks_in_any_case(one, other):
    assert request.read(one, cuda=False, cores=2) == request.read(other, cuda=False, cores=2)


def test_widths_that_do_not_fit_are_swept_padded():
    asked = request.read(
        {"structures": "dyad_it:n_blocks=4,pad=true dense", "shapes": "1021x1021"}, cuda=False, cores=1
    )
    ran, unreachable = points.points(asked)
    assert not unreachable and {p.structure for p in ran} >= {"dyad_it", "dense"}
    one = next(p for p in ran if p.structure == "dyad_it")
    assert points.bound(one).widths == (1021, 1021) and points.bound(one).in_features == 1024
    assert request.read_options(one.options)["pad"] is True


def test_budgets_are_shares_of_parameters_or_of_flops():
    assert request.budgets("params=0.5,0.25 flops=0.125") == (
        Budget("params", 0.5), Budget("params", 0.25), Budget("flops", 0.125),
    )  # fmt: skip
    assert request.budgets("none") == ()


def test_named_shapes_are_real_layers():
    assert shapes.parse("opt-125m") == [(768, 3072), (3072, 768)]
    assert shapes.parse("LLAMA-7B,512x100,llama-7b") == [(4096, 11008), (11008, 4096), (512, 100)]
    assert shapes.parse("mistral-7b-attention") == [(4096, 4096), (4096, 1024)]


# -- points


@pytest.fixture(scope="module")
def default():
    return points.points(request.read({}, cuda=False, cores=2))


def test_the_default_sweep_covers_every_entry_forward_and_train_at_all_shapes(default):
    ran, _ = default
    squares = {(n, n) for n in (256, 512, 1024, 2048)}
    covered = {(p.structure, p.mode, p.shape) for p in ran}
    for name, mode in itertools.product(request.default_names(), ("forward", "train")):
        for shape in squares | {(768, 3072), (3072, 768)}:
            assert (name, mode, shape) in covered
    assert len(ran) == len(set(ran)) == len({str(p) for p in ran})


def test_budgets_are_met_or_said_to_be_out_of_reach(default):
    ran, unreachable = default
    met = set()
    for point in ran:
        if point.budget and not point.control:
            structure = points.bound(point)
            share = float(point.budget.partition("=")[2])
            assert abs(structure.params / structure.dense_params / share - 1) <= points.NEAR
            assert structure.flops() <= structure.dense_flops() * (1 + points.NEAR)
            met.add((point.structure, point.budget, point.shape))
    missed = {(u.structure, u.budget, (u.in_features, u.out_features)) for u in unreachable}
    assert not met & missed
    for name, share, n in itertools.product(request.default_names(), (0.5, 0.25, 0.125), (256, 512, 1024, 2048)):
        if n < 1024 and share != 0.25:
            continue  # the other budgets begin at 1024
        assert name == DENSE or (name, f"params={share}", (n, n)) in met | missed
    for name, _, shape in missed:  # what misses every budget is measured at its defaults
        assert any(p.structure == name and p.shape == shape for p in ran)


def test_cheap_points_come_first_and_structures_side_by_side_dense_before_dyad(default):
    ran, _ = default
    assert [p.dense_flops for p in ran] == sorted(p.dense_flops for p in ran)
    for _, group in itertools.groupby(ran, key=lambda p: p.cell):
        names = [p.structure for p in group]
        own = [name for name in names if name != DENSE and name not in RIVALS]
        assert names[0] == DENSE
        assert own[0].startswith("dyad")
    assert len({p.cell for p in ran}) == len(list(itertools.groupby(ran, key=lambda p: p.cell)))


def test_controls_are_denses_own_candidates_and_a_narrowed_layer(default):
    ran, _ = default
    controls = {p.backend for p in ran if p.control and p.structure == DENSE}
    assert controls == {"linear", "addmm", "entry", "onednn", "compiled"}
    for point in ran:
        if point.structure == NARROW:
            share = float(point.budget.partition("=")[2])
            assert points.bound(point).params == pytest.approx(share * point.in_features * point.out_features, rel=0.08)


def test_cuda_is_swept_too_where_there_is_one():
    ran, _ = points.points(request.read({"structures": "dyad_it:n_blocks=4", "widths": "256"}, cuda=True, cores=2))
    assert {(p.device, p.dtype) for p in ran} == {("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")}
    only = request.read({"structures": "dyad_it:n_blocks=4", "device": "cuda"}, cuda=True, cores=2)
    assert {p.device for p in points.points(only)[0]} == {"cuda"}


def test_the_full_sweep_is_longer():
    short, full = (
        points.points(request.read({"structures": "dyad_it monarch", "full": full}, cuda=False, cores=2))[0]
        for full in (False, True)
    )
    assert len(full) > 3 * len(short)
    assert {p.dtype for p in full} == {"float32", "bfloat16"}


def test_a_rule_says_what_is_constant_what_is_proportional_and_lists_the_rest():
    low = replace(POINT, structure="low_rank", series="low_rank")
    some = [replace(low, in_features=n, out_features=n, options="") for n in (64, 128)]
    assert points.rules(some) == {"low_rank": "default options: rank = smaller width / 4"}
    some = [replace(low, in_features=n, out_features=n, options=f"rank={r}") for n, r in ((64, 3), (128, 5))]
    assert points.rules(some) == {"low_rank": "options given: rank = 3 at 64x64; 5 at 128x128"}


# -- measuring


class Clock:
    """A clock that steps move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def step(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds

        return call


def test_pairs_alternate_and_the_ratio_is_denses_time_over_the_steps():
    clock = Clock()
    effort = Effort(paired=0.1, alone=0.1, rounds=4, slice=1e-3)
    found = timing.paired(clock.step("s", 2e-3), clock.step("d", 10e-3), effort, seconds=(2e-3, 10e-3), clock=clock)
    assert found.median == pytest.approx(5)
    assert found.rounds == 4  # 0.1 s at 24 ms a round: a slice of one call begins with another that warms the caches
    assert "".join(clock.calls) == "ssddddss" * 2


def test_short_calls_are_repeated_to_a_slice_and_long_ones_run_the_least_rounds():
    clock = Clock()
    effort = Effort(paired=0.01, alone=0.01, rounds=3, slice=1e-3)
    timing.paired(clock.step("s", 1e-4), clock.step("d", 2.0), effort, seconds=(1e-4, 2.0), clock=clock)
    assert clock.calls.count("s") == 3 * 10
    assert clock.calls.count("d") == 3 * 2  # one of each slice is not timed


def test_a_loop_ends_early_when_calls_take_much_longer_than_estimated():
    clock = Clock()
    effort = Effort(paired=0.1, alone=0.1, rounds=4, slice=1e-3)
    found = timing.paired(clock.step("s", 0.03), clock.step("d", 0.03), effort, seconds=(1e-3, 1e-3), clock=clock)
    assert found.rounds == 4  # the least; 50 were planned


def test_a_machine_that_slows_down_leaves_the_paired_ratio_alone():
    class Slowing(Clock):
        def step(self, name, seconds):
            def call():
                self.now += seconds * (1 + self.now)

            return call

    clock = Slowing()
    effort = Effort(paired=1.0, alone=0.1, rounds=3)
    found = timing.paired(clock.step("s", 1e-2), clock.step("d", 3e-2), effort, seconds=(1e-2, 3e-2), clock=clock)
    assert clock.now > 1.5
    assert found.median == pytest.approx(3, rel=0.05)


def test_the_fastest_of_several_is_found_with_the_order_rotating():
    clock = Clock()
    steps = [clock.step(name, seconds) for name, seconds in (("a", 3e-3), ("b", 1e-3), ("c", 2e-3))]
    best, times = timing.fastest(steps, Effort(paired=1, alone=0.02, rounds=3), clock)
    assert best == 1
    assert times == pytest.approx([3e-3, 1e-3, 2e-3])
    assert "".join(clock.calls[9:27]) == "aabbccbbccaaccaabb"


def test_quartiles_are_numpys():
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 7.0]
    found = timing.spread(values)
    assert (found.q1, found.median, found.q3) == tuple(np.percentile(values, [25, 50, 75]))
    assert timing.spread([2.0]).width == 0


def test_the_cuda_clock_waits_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    assert cell.clock_of("cuda")() <= cell.clock_of("cpu")()
    assert waited == [True]


def test_a_roofline_names_the_limit_that_takes_longest():
    limits = Roofline("cpu", "float32", 1, 1e11, ((1000, 1e11), (100_000, 1e9)), 1e-6, 1e-5)
    at = {"train": False, "seconds": 1e-3}
    assert limits.bound(flops=5e7, moved=1, steps=1, **at) == {"bound": "arithmetic", "fraction": pytest.approx(0.5)}
    assert limits.bound(flops=1, moved=800_000, steps=1, **at) == {"bound": "memory", "fraction": pytest.approx(0.8)}
    assert limits.bound(flops=1, moved=1, steps=100, **at) == {"bound": "calls", "fraction": pytest.approx(0.1)}
    assert limits.bandwidth(10_000) == pytest.approx(1e10)
    assert limits.bandwidth(1) == 1e11
    assert limits.copy_bytes_per_s == 1e9


def test_a_roofline_is_measured(monkeypatch):
    monkeypatch.setattr(roofline, "COPIES", (2**12, 2**14))
    monkeypatch.setattr(roofline, "GEMM", {"cpu": 32})
    monkeypatch.setattr(roofline, "SECONDS", 1e-4)
    found = roofline.measure("cpu", "float32", torch.get_num_threads(), clock=lambda: cell.clock_of("cpu")())
    assert found.gemm_flops_per_s > 0
    assert set(found.as_dict()) >= {"device", "dtype", "threads", "gemm_flops_per_s", "copy_bytes_per_s"}


# -- checking


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("backend", ["linear", "addmm", "entry"])
def test_denses_ways_pass_the_check(backend, mode):
    point = replace(POINT, structure=DENSE, options="", backend=backend, mode=mode)
    x, dy = cell.inputs(point)
    assert check(subject(point, x), x, dy) < HALF


def test_onednns_own_product_is_a_way_without_gradients_alone():
    point = replace(POINT, structure=DENSE, options="", backend="onednn", mode="forward")
    x, dy = cell.inputs(point)
    assert check(subject(point, x), x, dy) < 1e-5
    train = replace(point, mode="train")
    with pytest.raises(Refused, match="without gradients"):
        subject(train, cell.inputs(train)[0])
    asked = {"device": "cpu", "dtype": "float32", "mode": "forward"}
    assert points.runs_onednn(asked)
    for other in ({"device": "cuda"}, {"dtype": "bfloat16"}, {"mode": "train"}):
        assert not points.runs_onednn(asked | other)


def test_a_row_holds_the_ratio_to_the_best_dense_layer_and_to_nn_linear():
    slow = cell.Cell((), torch.empty(0), None, "entry", lambda: None, 2.0, {"linear": 3.0, "entry": 2.0})
    assert slow.over_linear == 1.5
    assert replace(slow, candidates={"entry": 2.0}).over_linear is None


def spoiled(what, change):
    return replace(what, forward=lambda x: change(what.forward(x)))


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        ("forward", lambda y: y + 1e-3, "y is off by"),
        ("forward", lambda y: y.half().float(), "y is off by"),
        ("forward", lambda y: y * float("nan"), "not finite"),
        ("forward", lambda y: y.roll(1, 0), "y is off by"),
        ("train", lambda y: y * 1.001, "dx is off by"),
        ("train", lambda y: y + y.mean(0) - y.mean(0).detach(), "not zero in rows"),
        ("train", lambda y: y * float("nan"), "d"),
    ],
)
def test_a_wrong_layer_fails_the_check(mode, change, message):
    point = replace(POINT, mode=mode)
    x, dy = cell.inputs(point)
    with pytest.raises(CheckFailed, match=message):
        check(spoiled(subject(point, x), change), x, dy)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_check_allows_what_the_dtype_explains(dtype):
    for mode in ("forward", "train"):
        point = replace(POINT, dtype=dtype, mode=mode)
        x, dy = cell.inputs(point)
        check(subject(point, x), x, dy)


def test_sampled_rows_are_spread_from_the_first_to_the_last():
    device = torch.device("cpu")
    assert sample(1, device).tolist() == [0]
    assert sample(3, device).tolist() == [0, 1, 2]
    assert sample(1000, device).tolist() == [0, 142, 285, 428, 570, 713, 856, 999]


def test_saved_bytes_of_a_linear_layer_are_its_input():
    point = replace(POINT, structure=DENSE, options="", backend="linear")
    x, _ = cell.inputs(point)
    assert saved_bytes(subject(point, x), x) == x.numel() * 4


# -- one sweep in this process


class Fixture:
    """Stands in for the benchmark fixture."""

    def __init__(self):
        self.extra_info, self.stats, self.ran = {}, None, 0

    def __call__(self, step):
        self.ran += 1
        step()


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a, **k: Roofline(*a, 1e11, ((1000, 1e10),), 1e-6, 1e-5))
    asked = request.read({"structures": "dyad_it:n_blocks=4"}, cuda=False, cores=torch.get_num_threads())
    return Sweep(asked, setup.Threads(1, (0,), True, False), "plain", ["pytest"])


def here(point):
    return replace(point, threads=torch.get_num_threads())


def test_cold_runs_rotate_copies_beyond_the_cache(sweep, monkeypatch):
    monkeypatch.setattr(setup, "last_level_cache", lambda: 50_000)
    point = here(POINT)
    x, dy = cell.inputs(point)
    what = subject(point, x)
    timed = cell.timed_step(point, what, x, dy, cold=True)
    own = sum(p.numel() * 4 for p in what.parameters)
    assert timed.copies * own >= 100_000 > (timed.copies - 1) * own
    timed.step()
    monkeypatch.setattr(setup, "available_memory", lambda: 0)
    assert cell.timed_step(point, what, x, dy, cold=True).copies == 1


@pytest.mark.parametrize("backend", ["best", "linear", "entry"])
def test_dense_is_measured_cold_too(sweep, monkeypatch, backend):
    monkeypatch.setattr(setup, "last_level_cache", lambda: 100_000)
    sweep.request = replace(sweep.request, cold=True)
    fixture = Fixture()
    sweep.measure(here(replace(POINT, structure=DENSE, series="dense", options="", backend=backend)), fixture)
    assert "copies fit the cache" not in fixture.extra_info["flags"]


# form, mode, dtype of the cell, bytes of a weight, least and most error; int8 rounds by 1/254 of a row's or a weight's
# largest number, bfloat16 by 1/512 of a number
LOW = [
    (BFLOAT16, "forward", "float32", 2, 2**-12, 2**-6),
    (BFLOAT16, "train", "float32", 2, 2**-12, 2**-6),
    (INT8_WEIGHTS, "forward", "float32", 1, 2**-12, 2**-6),
    (INT8_WEIGHTS, "forward", "bfloat16", 1, 2**-12, 2**-5),
    (INT8_DYNAMIC, "forward", "float32", 1, 2**-10, 2**-4),
    (FLOAT8, "forward", "bfloat16", 1, 2**-8, 2**-3),
]


@pytest.mark.parametrize(("form", "mode", "dtype", "size", "least", "most"), LOW)
def test_a_rival_in_fewer_bits_is_timed_against_the_same_dense_and_its_error_reported(
    sweep, form, mode, dtype, size, least, most
):
    fixture = Fixture()
    rival = here(replace(POINT, structure=form, series=form, options="", backend="", mode=mode, dtype=dtype))
    sweep.measure(rival, fixture)
    info, weights = fixture.extra_info, 64 * 96
    assert least < info["error"] < most and info["dtype"] == dtype and info["control"] is False
    assert size * weights < info["parameter_bytes"] < size * weights + 96 * 10
    assert info["speedup"]["rounds"] >= 3 and info["roofline"] is None
    assert info["params_share"] == info["flops_share"] == 1 and info["checkpoint_bytes"] > size * weights
    dense = replace(rival, structure=DENSE, backend="linear")
    full, _, _ = sweep._cell.subject(dense)
    assert (info["bytes"] < facts.counted(dense, full, sweep._cell.x)["bytes"]) == (size < full.parameters[0].itemsize)


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (INT8_DYNAMIC, {"mode": "train"}, "it has no gradients"),
        (INT8_WEIGHTS, {"mode": "train"}, "it has no gradients"),
        (
            INT8_DYNAMIC,
            {"mode": "forward", "dtype": "bfloat16"},
            r"^torch .* does not run it here: expected scalar type",
        ),
    ],
)
def test_a_rival_that_torch_does_not_have_is_refused_with_the_reason(sweep, form, changes, message):
    with pytest.raises(Refused, match=message):
        sweep.measure(here(replace(POINT, structure=form, options="", **changes)), Fixture())


def test_every_float32_cell_with_controls_has_all_rivals(default):
    ran, _ = default
    named = {name: {p.cell for p in ran if p.structure == name} for name in (DENSE, *RIVALS)}
    in_float32 = {p.cell for p in ran if p.dtype == "float32"}
    for name in set(RIVALS) - {FLOAT8}:  # for CUDA alone
        assert named[name] == in_float32, name
    assert all(p.control for p in ran if p.structure in RIVALS) and named[DENSE] > in_float32


def test_too_little_memory_is_a_refusal_in_advance_and_when_it_happens(sweep, monkeypatch):
    monkeypatch.setattr(setup, "available_memory", lambda: 1000)
    with pytest.raises(Refused, match="out of memory: needs about"):
        sweep.measure(here(POINT), Fixture())
    monkeypatch.undo()
    for error in (
        MemoryError("no"),
        torch.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x, e=error: (_ for _ in ()).throw(e))
        with pytest.raises(Refused, match="out of memory"):
            sweep.measure(here(replace(POINT, structure=DENSE, options="", backend="linear")), Fixture())


def test_benchmark_disable_checks_and_does_not_fail(sweep):
    fixture = Fixture()
    sweep.measure(here(POINT), fixture)
    assert fixture.ran
    assert fixture.extra_info["speedup"]["rounds"] >= 3
    assert [done.point for done in sweep.done] == [here(POINT)]


def test_points_under_load_are_flagged(sweep, monkeypatch):
    monkeypatch.setattr(sweep.load, "since", lambda: 0.5)
    fixture = Fixture()
    sweep.measure(here(POINT), fixture)
    assert "load" in fixture.extra_info["flags"]


def test_a_cuda_run_records_its_device_and_tf32(sweep, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    facts = sweep.run_facts()
    assert facts["device_names"]["cuda"] == "a GPU"
    assert facts["tf32"] is torch.backends.cuda.matmul.allow_tf32


def test_a_file_with_refusals_only_is_still_a_results_file(sweep, tmp_path):
    sweep.refuse(POINT, "it cannot")
    document = {"benchmarks": [], "machine_info": {}}
    output.extend(document, sweep)
    (tmp_path / "r.json").write_text(json.dumps(document))
    assert [r.reason for r in rows.read([tmp_path / "r.json"]).refusals] == ["it cannot"]


def test_numbers_are_rounded_to_five_digits_and_what_json_does_not_know_is_null():
    assert rounding.rounded({"a": [1.23456789e-7, float("nan"), 3], "b": (True, "x", None)}) == {
        "a": [1.2346e-07, None, 3], "b": [True, "x", None],
    }  # fmt: skip


def test_the_time_left_follows_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    said = []
    lines = Progress([1.0] * 4, said.append)
    lines.line(1.0, "text")  # sets up the machine, for however long
    now[0] = 10.0
    assert lines.line(1.0, "text") == "[2/4  0:20 left] text"
    lines.skip(1.0)
    assert lines.line(1.0, "text") == "[4/4  0:00 left] text"
    lines.expect(2.0)
    now[0] = 40.0  # two things in 40 seconds
    lines.within(2.0, 1, 4, "long")
    assert said == ["[  step 1/4  0:24 left] long"]  # 1.5 seconds at 16 seconds each
    begun = Progress([1.0, 1.0]).begin()
    now[0] = 47.0
    assert begun.line(1.0, "text") == "[1/2  0:07 left] text"
    begun.skip(1.0, "kept")
    assert begun.finished == 2


def test_the_summary_gives_the_verdict_at_the_largest_layer_of_each_cost(sweep, monkeypatch):
    at, half = {"in_features": 64, "out_features": 96}, " @ params 0.5"
    rows = [dense(**at), made(f"dyad_it{half}", speedup=(3, 3, 3), **at), made(f"monarch{half}", **at),
            made(f"dense_narrow{half}", speedup=(4, 4, 4), control=True, **at),
            made(f"monarch{half}", **at | {"in_features": 32}),
            made(f"low_rank{half}", speedup=(99, 99, 99), flags=["load"], **at)]  # fmt: skip
    sweep.rows = {row["name"]: row for row in rows}
    monkeypatch.setattr(progress.output, "results", lambda of: parse("this run", document(*rows)))
    sweep.done = [Done(POINT, 1e-3, 3.0, True)]
    text = "\n".join(progress.summary(sweep, None))
    assert text.startswith(
        "params=0.5   forward cpu float32 tokens 128   64x96: 1 dense_narrow 4.00x, 2 dyad_it 3.00x, 3 monarch 2.00x; "
        "1 not ranked: flagged load, ...\n1 point measured"
    )
    assert "1 point measured while others used" in text
    assert "add --benchmark-json=results.json" in text
    sweep.rows = {}
    assert next(progress.summary(sweep, None)) == "1 point measured, 0 refused or failed; not complete"


# -- machine


def test_threads_are_asked_for_before_openmp_is_loaded_and_the_users_settings_are_kept():
    empty = {}
    threads = setup.pin(empty, maps="")
    assert empty["OMP_PLACES"] == ",".join(f"{{{core}}}" for core in threads.cores)
    assert empty["OMP_NUM_THREADS"] == str(threads.count)
    assert threads.how.startswith("came too late")  # torch is loaded here
    own = {"OMP_NUM_THREADS": "3"}
    threads = setup.pin(own, maps="")
    assert own == {"OMP_NUM_THREADS": "3"}
    assert threads.count == 3
    assert threads.how == "OMP_* variables set by the user"


def test_one_thread_a_physical_core_within_the_quota(monkeypatch, tmp_path):
    for cpu in range(4):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(setup, "CPUS", tmp_path)
    monkeypatch.setattr(setup.os, "sched_getaffinity", lambda pid: {1, 2, 3}, raising=False)
    monkeypatch.setattr(setup, "_cpu_quota", lambda: None)
    assert setup.one_core_each() == (1, 2)
    monkeypatch.setattr(setup, "_cpu_quota", lambda: 1.5)
    assert setup.one_core_each() == (1,)


def test_pinning_is_read_from_the_kernel():
    script = """
        from bench.machine import setup
        threads = setup.pin()
        import torch
        torch.ones(2**20).add_(1)
        assert setup.pinned_cores(threads.count) == sorted(threads.cores), setup.pinned_cores(threads.count)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment(), timeout=120)


def test_busy_seconds_count_our_cores_and_stolen_time():
    stat = (
        "cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 100 10 20 999 5 1 2 3 7 7\ncpu1 50 0 0 999 0 0 0 0 0\ncpu2 1 1 1 1 1 1 1 1 0\n"
    )
    assert setup.busy_seconds(stat, (0, 1), 100) == pytest.approx((136 + 50) / 100)


def test_foreign_load_is_what_our_own_processes_did_not_use(monkeypatch):
    looks = iter([(0.0, 10.0, 5.0), (1.0, 11.5, 5.5), (2.0, 13.5, 7.5), None])
    monkeypatch.setattr(setup.Load, "_look", lambda self: next(looks))
    load = setup.Load((0, 1))
    assert load.since() == pytest.approx(0.5)  # two cores, one second, 1.5 busy, 0.5 of it ours
    assert load.since() == 0
    assert load.overall == pytest.approx(0.25)
    assert load.since() is None


def test_the_allocator_is_set_by_numbers_that_fit_an_int():
    script = "from bench.machine import setup; print(setup.tune_allocator())"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(("glibc", "plain: "))
    assert -(2**31) <= setup.TRIM_THRESHOLD < setup.MMAP_THRESHOLD < 2**31
