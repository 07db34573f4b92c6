"""Autotuning: who wins is decided by a fake clock here; programs, choices and files are real."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import structures
from structures import StructuredLinear, backends, reference
from structures.autotune import TunedLinear
from structures.backends import autotune
from structures.backends.autotune import kept, tuning
from structures.backends.autotune.race import GAIN, race

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]


class Stopwatch:
    """A clock that only its steps move: step i takes the next of its durations each call."""

    def __init__(self, *durations: list[float]):
        self.now = 0.0
        self.durations = [itertools.cycle(each) for each in durations]
        self.steps = [lambda each=each: self.pass_(next(each)) for each in self.durations]

    def pass_(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files in a folder of their own, and nothing known from other tests."""
    monkeypatch.setenv("STRUCTURES_CACHE", str(tmp_path / "cache"))
    autotune.forget()
    yield tmp_path / "cache" / "autotune"
    autotune.forget()


@pytest.fixture
def winner(monkeypatch: pytest.MonkeyPatch):
    """The loop of times in which the program of a number wins, without looking at a clock."""

    def let(number: int) -> list[int]:
        counted = []

        def fake(steps, clock):
            counted.append(len(steps))
            order = [[1.0], *([2.0] for _ in steps[1:])]
            order[number % len(steps)] = [0.5] if number else [1.0]
            watch = Stopwatch(*order)
            return race(watch.steps, watch)

        monkeypatch.setattr(tuning, "race", fake)
        return counted

    return let


def layer(name: str = "dyad_it", backend: str = "auto", **more) -> StructuredLinear:
    torch.manual_seed(0)
    return StructuredLinear(name, 48, 96, backend=backend, **more)


def meaning(made: StructuredLinear, x: torch.Tensor) -> torch.Tensor:
    return reference.apply(made.structure, x, made.factors, made.bias)


# -- who wins

MS = 1e-3
RACES = {  # durations of each program, default first; the winner, words of the reason
    "alone": ([[MS]], 0, "no other program"),
    "slower": ([[MS], [2 * MS]], 0, "0.50 times as fast"),
    "gain inside noise": ([[MS], [MS / 1.05]], 0, "1.05 times as fast, below 1.1"),
    "gain just below": ([[MS], [MS / (GAIN - 0.01)]], 0, "below 1.1"),
    "gain beyond noise": ([[MS], [MS / 1.3]], 1, "1.30 times faster than the default"),
    "the fastest of several": ([[MS], [MS / 1.3], [MS / 2], [3 * MS]], 2, "2.00 times faster"),
    # medians 2 and 1.5 ms, but each quartile reaches into the other's
    "quartiles overlap": ([[MS, 2 * MS, 3 * MS], [0.5 * MS, 1.5 * MS, 2.5 * MS]], 0, "quartiles overlap"),
}


@pytest.mark.parametrize("case", RACES, ids=str)
def test_another_program_wins_only_by_a_gain_beyond_noise(case):
    durations, wanted, words = RACES[case]
    watch = Stopwatch(*durations)
    outcome = race(watch.steps, watch)
    assert outcome.winner == wanted and words in outcome.reason
    assert outcome.times[0].q1 <= outcome.times[0].median <= outcome.times[0].q3


def test_a_winner_by_luck_is_timed_anew_and_loses():
    watch = Stopwatch([MS], [MS])
    lucky = itertools.chain([0.5 * MS] * 42, itertools.repeat(MS))  # for the whole first loop
    watch.steps[1] = lambda: watch.pass_(next(lucky))
    outcome = race(watch.steps, watch)
    assert outcome.times[1].median == pytest.approx(0.5 * MS)
    assert outcome.winner == 0 and outcome.reason.startswith("timed anew, the best other program is 1.00 times")


# -- every program


@pytest.mark.parametrize("name", ["dyad_dt", "monarch", "pixelfly", "kronecker", "dense"])
@pytest.mark.parametrize("grad", [False, True])
def test_whatever_wins_computes_the_same(name, grad, winner):
    made = layer(name)
    x = torch.randn(5, 7, 48)
    winner(0)
    count = len([t for t in structures.autotune(made, x, grad=grad).timings if t.median is not None])
    assert count >= 3
    for number in range(count):
        winner(number)
        record = structures.autotune(made, x, grad=grad)
        assert record.winner == number and "> " in str(record)
        leaf = x.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            y = made(leaf)
        wanted = meaning(made.double(), x.double().reshape(35, 48).requires_grad_()).reshape(5, 7, 96)
        made.float()
        torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-5)
        assert made.ran == "autotune"
        if grad:
            y.sum().backward()
            assert leaf.grad.isfinite().all() and all(p.grad is not None for p in made.parameters())


def test_a_wrong_program_is_left_out_and_a_wrong_default_is_an_error(winner, monkeypatch):
    winner(0)
    right = tuning.run_of

    def wrong_at(number):
        seen = []

        def run_of(structure, key, digest):
            seen.append(digest)
            run = right(structure, key, digest)
            return (lambda x, f, b: run(x, f, b) + 0.01) if len(seen) == number + 1 else run

        return run_of

    monkeypatch.setattr(tuning, "run_of", wrong_at(1))
    record = structures.autotune(layer(), torch.randn(9, 48), grad=False)
    [bad] = [t for t in record.timings if t.median is None]
    assert "is off by" in bad.note and bad.note in str(record)
    monkeypatch.setattr(tuning, "run_of", wrong_at(0))
    with pytest.raises(RuntimeError, match=r"the planner's program .* is wrong: result 0 is off by"):
        structures.autotune(layer(), torch.randn(9, 48), grad=False)


# -- which shapes


def test_a_choice_holds_for_its_tokens_and_gradients_alone(winner):
    made = layer()
    winner(1)
    structures.autotune(made, torch.randn(100, 48), grad=False)
    [record] = made.tuned
    assert (record.tokens, record.grad, record.winner) == (100, "none", 1)
    with torch.no_grad():
        for tokens, ran in ((128, "autotune"), (65, "autotune"), (64, "planned"), (129, "planned"), (0, "planned")):
            made(torch.randn(tokens, 48))
            assert made.ran == ran, tokens
    made(torch.randn(100, 48))
    assert made.ran == "planned"  # gradients are recorded
    assert made.plan(100) != layer().plan(100) and made.plan(64) == layer().plan(64)


def test_as_a_backend_each_new_shape_is_tuned_once_and_said_on_the_layer(winner):
    counted = winner(0)
    made = layer(backend="autotune")
    assert made.tuned == ()
    for tokens in (100, 128, 65):
        made(torch.randn(tokens, 48))
    assert len(counted) == len(made.tuned) == 1 and made.ran == "autotune"
    with torch.no_grad():
        made(torch.randn(100, 48))
    made(torch.randn(3, 48))
    assert len(counted) == len(made.tuned) == 3
    other = layer(backend="autotune")
    other(torch.randn(120, 48))
    assert len(counted) == 3 and other.tuned == made.tuned[:1]  # equal layers share what was found


def test_random_numbers_gradients_and_hooks_of_the_user_are_left_alone(winner):
    winner(1)
    made = layer(backend="autotune")
    x = torch.randn(20, 48, requires_grad=True)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.bfloat16 and torch.equal(torch.get_rng_state(), before)
    assert x.grad is None and all(p.grad is None for p in made.parameters())
    y.float().sum().backward()
    assert x.grad is not None


# -- kept, copied, pickled


def test_choices_are_data_that_goes_with_copies_and_no_part_of_the_state_dict(winner):
    winner(1)
    made = layer(backend="autotune")
    x = torch.randn(20, 48)
    y = made(x)
    counted = winner(0)
    autotune.forget()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.tuned == made.tuned and torch.equal(other(x), y)
        assert other.choices is not made.choices
    assert counted == [] and set(made.state_dict()) == {"factor_0", "factor_1", "bias"}
    assert layer().load_state_dict(made.state_dict())


def test_a_choice_is_found_again_in_the_file_by_another_process(winner, folder):
    winner(1)
    made = layer(backend="autotune")
    x = torch.arange(960.0).reshape(20, 48) / 960
    made(x)
    assert len(list(folder.iterdir())) == 1
    script = (
        f"import torch, structures; torch.set_num_threads({torch.get_num_threads()}); torch.manual_seed(0)\n"
        "made = structures.StructuredLinear('dyad_it', 48, 96, backend='autotune')\n"
        "y = made(torch.arange(960.).reshape(20, 48) / 960); [r] = made.tuned\n"
        "print(r.kept, r.winner, r.chosen.digest)"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.split() == ["True", "1", made.tuned[0].chosen.digest], done.stderr
    assert "kept from" in str(replace(made.tuned[0], kept=True))


def test_another_structure_dtype_or_thread_count_has_another_file(winner, folder):
    winner(0)
    for made in (layer(), layer(n_blocks=8), layer("dyad_ot"), layer(dtype=torch.float64), layer(bias=False)):
        structures.autotune(made, torch.randn(20, 48, dtype=made.factors[0].dtype))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        structures.autotune(layer(), torch.randn(20, 48))
    finally:
        torch.set_num_threads(threads)
    assert len(list(folder.iterdir())) == 6


BROKEN = ["", "{", "[]", '{"format": 99}', '{"format": 1, "key": "another", "record": {}}', "\x00\xff"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_tuned_again_with_a_warning(text, winner, folder):
    winner(1)
    layer(backend="autotune")(torch.randn(20, 48))
    [file] = folder.iterdir()
    file.write_text(text, encoding="latin-1")
    autotune.forget()
    counted = winner(0)
    with pytest.warns(UserWarning, match="tuned again"):
        layer(backend="autotune")(torch.randn(20, 48))
    assert len(counted) == 1 and json.loads(file.read_text())["record"]["winner"] == 0


@pytest.mark.parametrize("change", [{"winner": 99}, {"timings": 3}, {"other": 1}], ids=str)
def test_a_record_that_makes_no_sense_is_tuned_again(change, winner, folder):
    winner(1)
    layer(backend="autotune")(torch.randn(20, 48))
    [file] = folder.iterdir()
    found = json.loads(file.read_text())
    found["record"] |= change
    file.write_text(json.dumps(found))
    autotune.forget()
    counted = winner(0)
    with pytest.warns(UserWarning, match="no choice of this version; it is tuned again"):
        layer(backend="autotune")(torch.randn(20, 48))
    assert len(counted) == 1


def test_a_program_that_the_planner_no_longer_offers_is_tuned_again(winner, folder):
    winner(1)
    made = layer(backend="autotune")
    made(torch.randn(20, 48))
    [(key, record)] = made.choices.records.items()
    gone = replace(record, timings=tuple(replace(t, digest="0" * 16) for t in record.timings))
    other = layer(backend="autotune")
    other.choices.records[key] = gone
    [file] = folder.iterdir()
    file.unlink()
    autotune.forget()
    counted = winner(0)
    other(torch.randn(20, 48))
    assert len(counted) == 1 and other.tuned[0].winner == 0


def test_a_home_that_cannot_be_written_is_a_warning(winner, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STRUCTURES_CACHE", str(tmp_path / "file"))
    winner(1)
    made = layer(backend="autotune")
    with pytest.warns(UserWarning, match="not kept beyond this process"):
        made(torch.randn(20, 48))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(torch.randn(20, 48))
    assert made.tuned[0].winner == 1


def _write_often(folder: str, number: int) -> None:
    os.environ["STRUCTURES_CACHE"] = folder
    for i in range(100):
        kept.save("one", {"number": number, "long": "x" * 5000})
        kept.save(f"{number}", {"i": i})


def test_two_processes_leave_whole_files(folder):
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_write_often, args=(str(folder.parent), n)) for n in (1, 2)]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs):
        found = kept.load("one")
        assert found is None or len(found["long"]) == 5000
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert kept.load("1") == kept.load("2") == {"i": 99}
    assert not list(folder.glob("*.part"))


# -- compiled


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("number", [0, 1, -1], ids=["default", "another program", "another backend"])
def test_a_graph_has_what_was_tuned_before(number, winner, fresh_compiler):
    winner(number)
    made = layer(backend="autotune")
    x = torch.randn(40, 48)
    made(x)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (40, 7):
        x = torch.randn(tokens, 48, requires_grad=True)
        with pytest.raises(Exception, match="nothing was tuned before for float32 on cpu with gradients of: x bias"):
            compiled(x)
    structures.autotune(made, torch.randn(40, 48), grad=True)
    torch.compiler.reset()
    counted = winner(0)
    for tokens in (40, 7):
        x = torch.randn(tokens, 48, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, meaning(made, x))
        leaves = [x, *made.parameters()]
        dy = torch.randn_like(y)
        found, wanted = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(meaning(made, x), leaves, dy)
        torch.testing.assert_close(found, wanted)
    assert counted == []


# -- refusals


def test_refusals_name_the_reason(winner):
    winner(0)
    made = layer()
    cases = [
        (nn.Conv2d(1, 1, 1), torch.randn(2, 48), "a StructuredLinear or an nn.Linear, found Conv2d"),
        (made, torch.randn(2, 96), r"x has shape \(2, 96\), its last dimension must be 48"),
        (made, torch.randn(2, 48).double(), "x is torch.float64 on cpu, the layer is torch.float32"),
        (made, torch.randn(0, 48), "x has no tokens: there is nothing to time"),
        (layer(backend="einsum"), torch.randn(2, 48), "backend is 'einsum', which never runs another one"),
        (layer(device="meta"), torch.randn(2, 48, device="meta"), "meta device: there is nothing to time"),
    ]
    for wrong, x, message in cases:
        with pytest.raises(ValueError, match=message):
            structures.autotune(wrong, x)
    with pytest.raises(ValueError, match=r"unknown backend 'autotone'; did you mean 'autotune'\?"):
        layer(backend="autotone")
    assert backends.opt_in() == ("autotune", "dense_cache")


# -- dense


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_has_the_same_choice(grad, bias, monkeypatch):
    from structures import autotune as public

    for number in range(3):
        watch = Stopwatch(*([0.5] if i == number and i else [1.0] for i in range(3)))
        monkeypatch.setattr(sys.modules["structures.autotune"], "race", lambda s, c, w=watch: race(w.steps, w))
        torch.manual_seed(0)
        linear, plain = nn.Linear(12, 20, bias=bias), nn.Linear(12, 20, bias=bias)
        plain.load_state_dict(linear.state_dict())
        x = torch.randn(2, 5, 12)
        record = public(linear, x, grad=grad)
        assert record.winner == number and record.what == "nn.Linear(12, 20)"
        for made in (linear, copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
            assert isinstance(made, TunedLinear) and isinstance(made, nn.Linear)
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(made(x), plain(x))
            assert list(made.state_dict()) == list(plain.state_dict())
        assert torch.equal(linear(x[:0]), plain(x[:0]))
        linear(x).sum().backward()
        plain(x).sum().backward()
        torch.testing.assert_close(linear.weight.grad, plain.weight.grad)
