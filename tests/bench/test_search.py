"""The search: what it looks at, what it asks of it, that it ends and goes on, and that its result runs as it is."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from bench_runs import environment, quick
from test_minilm import run_of
from test_report import rendered

import structures
from bench.__main__ import _parser, main
from bench.files.errors import UsageError
from bench.files.journal import Records
from bench.files.journal import of as journal_of
from bench.search import quality, request
from bench.search.candidates import Candidate, all_candidates, chosen, exponents, refusal
from bench.search.front import FrontPoint, front, layers, reasons, verdict
from bench.search.records import KINDS
from bench.search.request import SearchRequest
from bench.search.run import Search, taxonomy_points
from bench.search.timing import Timer
from structures import registry, space

ROOT = Path(__file__).parents[2]
GIVEN: dict[str, Any] = {
    "in_features": 32, "out_features": 64, "tokens": 16, "params": "0.25", "flops": None, "rank": 0.0, "omega": None,
    "memory": None, "time": None, "mode": "forward", "dtype": "float32", "quality": "none", "weight": None,
    "key": None, "inputs": None, "candidates": 40, "finalists": 4, "seed": 0,
}  # fmt: skip
COMMAND = ["search", "--in", "32", "--out", "64", "--tokens", "16", "--params", "0.25"]

# 64 -> 64 at a quarter of dense's FLOPs, by kind of axis
FULL_RANK_UNSHARED = [
    {"x1": 8, "x12": 8, "12y": 8, "2y": 8},
    {"x1y": 4, "x1": 16, "1y": 16},  # block-diagonal
]
LESS = [
    {"x1": 64, "12": 8, "2y": 64},  # low rank
    {"x1": 8, "x2": 8, "1y": 8, "2y": 8},  # Kronecker: every parameter used eight times
    {"x1": 8, "x2": 4, "x12": 2, "1y": 4, "2y": 8, "12y": 2},
]

WRONG = [
    ([*COMMAND[:-2]], "give --params 0.25 or --flops 0.25"),
    ([*COMMAND, "--params", "much"], "--params: 'much' is no share of dense; write 0.25, 25% or a range"),
    ([*COMMAND, "--params", "0.5-0.25"], "--params: '0.5-0.25' holds no share"),
    ([*COMMAND, "--flops", "0"], "--flops: '0' holds no share"),
    ([*COMMAND, "--quality", "good"], "--quality: 'good' is not known. Allowed: none, projection, training"),
    ([*COMMAND, "--mode", "backward"], "--mode: 'backward' is not known"),
    ([*COMMAND, "--dtype", "floats"], "--dtype: 'floats' is not known; did you mean"),
    ([*COMMAND, "--until", "tea"], "--until: 'tea' is not known. Allowed: time, quality, final"),
    ([*COMMAND, "--rank", "2"], "--rank: a share of full rank from 0 to 1, found 2"),
    ([*COMMAND, "--weight", "w.npy"], "--weight is for --quality projection or training"),
    ([*COMMAND, "--key", "a"], "--key names a tensor in the file of --weight"),
    ([*COMMAND, "--candidates", "4"], "--finalists 16 are chosen among --candidates 4"),
    ([*COMMAND, "--quality", "training", "--weight", "absent.npy"], "--weight: absent.npy cannot be read"),
    ([*COMMAND, "--quality", "training", "--weight", "w.txt"], "a .npy, .pt or .safetensors file, found 'w.txt'"),
    ([*COMMAND, "--inputs", "x.npy"], "--inputs is what a layer is trained on: it is for --quality training"),
    ([*COMMAND, "--quality", "training", "--inputs", "absent.npy"], "--inputs: absent.npy cannot be read"),
    (["search", "--in", "99999", "--out", "4", "--tokens", "1", "--params", "0.5"], "--in: at most 65536 features"),
]


def asked(**given: Any) -> SearchRequest:
    return request.read({**GIVEN, **given})


@pytest.fixture(autouse=True)
def few_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.search.candidates.SAMPLES", 400)


@pytest.fixture
def no_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave this process's threads and allocator alone."""
    threads = run_of("search", tmp_path / "threads.json").threads
    monkeypatch.setattr("bench.files.run.setup.pin", lambda: threads)
    monkeypatch.setattr("bench.files.run.setup.tune_allocator", lambda: "plain")


@pytest.fixture
def timed_by_count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times that follow from parameters and intermediates, so that a search is the same every time; who was timed."""
    calls: list[str] = []

    def measure(self: Timer, structure: Any, effort: Any) -> dict[str, Any]:
        calls.append(structure.name)
        ratio = structure.dense_params / (structure.params + 3 * structure.activation_size)
        return {
            "speedup": {"median": ratio, "q1": ratio * 0.9, "q3": ratio * 1.1, "rounds": 5},
            "seconds": 1e-3, "backend": "einsum", "error": 0.0,
        }  # fmt: skip

    monkeypatch.setattr(Timer, "__init__", lambda self, request: None)
    monkeypatch.setattr(Timer, "measure", measure)
    return calls


def records(path: Path, asked_for: SearchRequest) -> Records:
    return Records(path, {"search": asdict(asked_for)}, KINDS)


def search(path: Path, asked_for: SearchRequest, **kwargs: Any) -> Search:
    made = Search(asked_for, run_of("search", path), records(path, asked_for), **kwargs)
    made.said = made.search()  # type: ignore[attr-defined]
    made.journal.close()
    return made


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["structures"]  # type: ignore[no-any-return]


# -- candidates


@pytest.mark.parametrize("widths", [(32, 64), (48, 36)])
def test_candidates_count_as_their_structures_do_and_meet_the_constraints(widths: tuple[int, int]) -> None:
    r = asked(in_features=widths[0], out_features=widths[1], rank=0.5, omega=0.2, memory=0.9, flops="0-0.5")
    found, rejected = all_candidates(r)
    families = {c.family for c in found}
    assert {"registry", "two_factors", "blocks_of_two", "block_sums"} <= families
    assert "three_factors" in families or widths != (32, 64)
    for candidate in random.Random(0).sample(found, 60):
        structure = candidate.structure(r)
        counts = (structure.params, structure.flops() // 2, structure.activation_size)
        assert counts == (candidate.params, candidate.multiply_adds, candidate.between), candidate
        assert structure.rank is not None and structure.rank <= candidate.rank_bound
        assert r.params.holds(structure.params / r.dense) and structure.flops() <= r.dense
        assert candidate.rank_bound >= 0.5 * min(widths)
        assert exponents(*counts[:2], candidate.rank_bound, r)[0] <= 0.2 + 1e-9
    assert len({c.name for c in found}) == len(found)
    assert all(count > 0 for count in rejected.values()) and "rank below 0.5 of full" in rejected


def test_each_constraint_rejects_what_does_not_meet_it() -> None:
    base = Candidate("c", "f", "t", params=512, multiply_adds=1024, between=100, rank_bound=8)
    cases = [
        (asked(), None),
        (asked(params="0.5"), "parameters outside"),
        (asked(flops="0-0.4"), "FLOPs outside"),
        (asked(rank=0.5), "rank below 0.5 of full"),
        (asked(omega=0.1), "omega above 0.1"),
        (asked(memory=0.5), "memory above 0.5 of dense"),
    ]
    for r, reason in cases:
        found = refusal(base, r)
        assert found is None if reason is None else found is not None and found.startswith(reason)


def test_what_is_timed_is_the_same_for_a_seed_and_another_for_another() -> None:
    r = asked(candidates=60)
    found, _ = all_candidates(r)
    again, _ = all_candidates(asked(candidates=60))
    names = [c.name for c in chosen(found, r)]
    assert names == [c.name for c in chosen(again, r)] and len(set(names)) == len(names) == 60
    other = replace(r, seed=1)
    assert set(names) != {c.name for c in chosen(all_candidates(other)[0], other)}
    named = [c.name for c in chosen(found, r) if c.named]
    assert {"dyad_it", "low_rank", "block_diagonal"} <= set(named)


def test_a_search_names_every_entry_that_does_not_meet_the_budget() -> None:
    found, rejected = all_candidates(asked())
    assert "kronecker" not in {c.name for c in found}
    assert sum(rejected.values()) > 0


# -- the whole search


def test_the_result_is_the_front_and_runs_as_it_is(
    tmp_path: Path, timed_by_count: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    r = asked(quality="projection", params="0.1-0.3")
    done = search(path, r)
    rows = content(path)["rows"]
    finished = [row for row in rows if row["finished"]]
    survivors = {row["structure"] for row in rows if row["reason"]}
    for row in finished:  # by hand: nobody is faster and better
        beaten = any(
            o["speedup"]["median"] >= row["speedup"]["median"] and o["quality"] <= row["quality"] and o is not row
            and (o["speedup"]["median"], -o["quality"]) != (row["speedup"]["median"], -row["quality"])
            for o in finished
        )  # fmt: skip
        assert not (beaten and row["structure"] in survivors)
        assert beaten or row["structure"] in survivors or any(
            o["quality"] == row["quality"] for o in finished if o["structure"] in survivors
        )  # fmt: skip
    assert content(path)["run"]["complete"] and len(finished) >= 4 and survivors
    assert any(row["named"] for row in rows) and any(not row["named"] for row in rows)
    rejected = content(path)["setup"]["rejected"]
    assert sum(
        count for reason, count in rejected.items() if reason.startswith(("dropped in favour", "slower"))
    ) == len(rows) - len(finished)

    monkeypatch.setattr(registry, "_added", {})
    names = structures.load(path.with_suffix(".yaml"))
    assert len(names) == len(survivors)
    for name in names:
        layer = structures.StructuredLinear(name, 32, 64, backend="einsum")
        own = next(row for row in rows if name in (row["structure"], f"search_{row['structure']}"))
        assert layer.structure.params / r.dense == pytest.approx(own["params_share"], rel=1e-4)
        assert layer(torch.randn(3, 32)).shape == (3, 64)
    assert "Survivors as entries" in done.said  # type: ignore[attr-defined]


def test_the_result_is_swept(tmp_path: Path, timed_by_count: list[str]) -> None:
    path = tmp_path / "found.json"
    search(path, asked(candidates=20))
    (name,) = registry.read(path.with_suffix(".yaml"))
    status, text, swept = quick(
        tmp_path, f"--registry={path.with_suffix('.yaml')}", "--structures", name, "--shapes", "32x64", "--tokens", "4",
        "--mode", "forward", "--no-controls",
    )  # fmt: skip
    assert status == 0, text
    rows = swept["benchmarks"]
    assert name in {row["extra_info"]["structure"] for row in rows}


def test_a_search_goes_on_where_it_stopped(tmp_path: Path, timed_by_count: list[str]) -> None:
    path, r = tmp_path / "found.json", asked(quality="projection", candidates=24, finalists=2)
    search(path, r)
    whole, order = content(path)["rows"], list(timed_by_count)
    journal = journal_of(path)
    lines = journal.read_text().splitlines(keepends=True)
    for kept in (1, 7, 25, len(lines) - 1):
        journal.write_text("".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])  # cut off within a line
        timed_by_count.clear()
        search(path, r)
        assert content(path)["rows"] == whole
        there = sum('"stage":"time"' in line or '"stage":"final"' in line for line in lines[:kept])
        assert timed_by_count == order[there:]
        assert journal.read_text().splitlines() == [line.strip() for line in lines]


def test_quality_is_measured_of_the_fastest_of_full_rank_too(tmp_path: Path, timed_by_count: list[str]) -> None:
    """Speed alone would enter those that leave most out."""
    path, r = tmp_path / "found.json", asked(quality="projection", candidates=40, finalists=5)
    done = search(path, r, until="time")
    passed = sorted((c for c in done.timed), key=lambda c: (done._time(c), c.name))
    entered = done._entrants(passed, 20)
    named = [c for c in passed if c.named]
    free = [c for c in passed if not c.named]
    full = [c for c in free if c.rank_bound == 32]
    assert set(named) <= set(entered) and free[0] in entered and set(full[:2]) <= set(entered)
    assert len(done._entrants(passed, 10**6)) == len(passed) and len(entered) == max(20, len(named))


def test_the_time_ends_a_search_and_what_is_finished_is_kept(tmp_path: Path, timed_by_count: list[str]) -> None:
    path, r = tmp_path / "found.json", asked(candidates=20)
    early = search(path, r, seconds=0.0)
    assert "not complete: the same command goes on" in early.said  # type: ignore[attr-defined]
    assert not content(path)["run"]["complete"] and content(path)["rows"] == []
    search(path, r, until="time")
    assert not content(path)["run"]["complete"] and len(content(path)["rows"]) == 20
    search(path, r)
    assert content(path)["run"]["complete"]


def test_a_search_that_is_killed_goes_on(tmp_path: Path, no_setup: None) -> None:
    path = tmp_path / "found.json"
    words = [*COMMAND, "--candidates", "14", "--finalists", "2", "-o", str(path)]
    process = processes.started(ROOT, ["-m", "bench", *words], environment())
    journal = journal_of(path)
    deadline = time.monotonic() + 120
    while (
        process.is_alive()
        and time.monotonic() < deadline
        and (not journal.exists() or journal.read_text().count("\n") < 4)
    ):
        time.sleep(0.02)
    process.kill()
    process.join()
    kept = [line for line in journal.read_text().split("\n")[1:-1]]
    assert len(kept) >= 3 and not path.exists()
    assert main(words) == 0
    assert content(path)["run"]["complete"] and len(content(path)["rows"]) >= 10
    assert journal.read_text().split("\n")[1 : 1 + len(kept)] == kept  # taken over, not measured again
    assert all(row["speedup"]["median"] > 0 for row in content(path)["rows"])


TIMED = {
    "speedup": {"median": 2.0, "q1": 1.5, "q3": 2.5, "rounds": 5}, "seconds": 1.0, "backend": "einsum", "error": None
}  # fmt: skip
BAD_ENTRIES = [  # previously failed: each was taken up, and ended the search in a traceback or stood in its file
    ({"stage": "time", "name": "a", "found": None}, "line 2: found is null, must be an object"),
    ({"stage": "time", "name": "a", "found": {}}, "line 2: found: speedup is missing"),
    ({"stage": "time", "name": "a", "found": TIMED | {"speedup": 2}}, "found: speedup is 2, must be an object"),
    ({"stage": "time", "name": "a", "found": TIMED | {"seconds": -1}}, "found: seconds is -1, must be a positive"),
    ({"stage": "time", "name": "a", "found": TIMED | {"backend": []}}, "found: backend is a list, must be a name"),
    ({"stage": "final", "name": "a", "found": {"refused": 3}}, "found: refused is 3, must be text"),
    ({"stage": "quality 0", "name": "a", "found": {"refused": "no"}}, "found: value is missing"),
    ({"stage": "quality 0", "name": "a", "found": {"value": "low"}}, "value is the text 'low', must be a number"),
    ({"stage": "tea", "name": "a", "found": TIMED}, "stage is the text 'tea', must be one of time, final, quality 0"),
]


def test_a_pipe_in_a_weights_place_is_not_waited_on(tmp_path: Path) -> None:
    for name in ("w.npy", "w.pt", "w.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UsageError, match=f"--weight: .*{name} is not a regular file"):
            quality.load(tmp_path / name, None, 4, 6)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    path = journal_of(output)
    kept = records(output, asked())
    kept.add("time", "a", **TIMED)
    kept.add("time", "b", refused="no")
    kept.add("quality 0", "a", value=0.5)
    kept.close()
    header = path.read_text().splitlines()[0]
    with pytest.raises(
        UsageError, match="search seed was '0' and is '1'; choose another -o, or --fresh to start again"
    ):
        records(output, asked(seed=1))
    again = records(output, asked())
    again.close()
    assert again.get("time", "a") == TIMED
    for text, message in (
        ("hello\n", "is no journal of this version"),
        (f"{header}\n[1]\n", "line 2 is 1, must be an object"),
        *((f"{header}\n{json.dumps([entry])}\n", message) for entry, message in BAD_ENTRIES),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            records(output, asked())
        assert path.read_text() == text
    path.write_text("no line end")
    anew = records(output, asked())
    anew.close()
    assert not anew.found


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_argument_is_one_line(
    words: list[str], message: str, no_setup: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.txt").touch()
    assert main([*words, "-o", "found.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("found.*"))


def test_the_command_of_the_readme_is_a_request(tmp_path: Path, timed_by_count: list[str]) -> None:
    lines = re.findall(
        r"python -m bench (search .*)", (ROOT / "structures/space/README.md").read_text(encoding="utf-8")
    )
    assert lines
    for line in lines:
        arguments = _parser().parse_args(shlex.split(line, comments=True))
        r = request.read(vars(arguments))
        search(tmp_path / "found.json", replace(r, candidates=20, finalists=2, quality="none"))
        assert content(tmp_path / "found.json")["rows"]


def test_the_output_is_json_in_a_folder_that_exists(no_setup: None, capsys: pytest.CaptureFixture[str]) -> None:
    for output, message in (("found.yaml", "must end in .json"), ("absent/found.json", "there is no folder absent")):
        assert main([*COMMAND, "-o", output]) == 2
        assert message in capsys.readouterr().err


# -- timing and quality


def test_a_timer_checks_and_pairs_with_dense() -> None:
    timer = Timer(asked(mode="train"))
    found = timer.measure(structures.get("low_rank").bind(32, 64, rank=4), request_effort())
    assert set(found) == {"speedup", "seconds", "backend", "error"}
    assert 0 <= found["error"] < torch.finfo(torch.float32).eps ** 0.5  # half of the digits: no rounding takes more
    assert found["speedup"]["q1"] <= found["speedup"]["median"] <= found["speedup"]["q3"]
    assert timer.dense.way in ("linear", "addmm") and timer.dense.seconds > 0


def request_effort() -> Any:
    from bench.machine.timing import SHORT

    return replace(SHORT, paired=0.01, rounds=3)


def test_full_rank_without_sharing_comes_first_at_equal_flops() -> None:
    """What the source found, on a weight that needs every direction: trained for 180 steps, and projected."""
    weight = quality.flat(64, 64, seed=0)
    for kind, amount in (("training", 180), ("projection", 16)):
        groups = []
        for sizes in (FULL_RANK_UNSHARED, LESS):
            members = [space.of_sizes(s, 64, 64).structure for s in sizes]
            assert all(m.flops() == m.dense_flops() // 4 for m in members)
            groups.append([quality.measure(kind, m, amount, weight, seed=0) for m in members])
        assert max(groups[0]) < min(groups[1]) - 0.02, kind


def test_a_weight_of_low_rank_turns_it_round() -> None:
    """The measure is not made for the finding: where low rank is all that is needed, it comes first."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 6, generator=draw) @ torch.randn(6, 64, generator=draw)
    low, *_ = [space.of_sizes(s, 64, 64).structure for s in LESS]
    others = [space.of_sizes(s, 64, 64).structure for s in FULL_RANK_UNSHARED]
    for kind, amount in (("training", 180), ("projection", 16)):
        best = quality.measure(kind, low, amount, weight, seed=0)
        assert best < min(quality.measure(kind, m, amount, weight, seed=0) for m in others) - 0.02, kind


def test_quality_is_the_same_every_time_and_more_effort_is_better() -> None:
    weight = quality.trained(24, 36, seed=0)
    assert torch.equal(weight, quality.trained(24, 36, seed=0)) and weight.shape == (36, 24)
    structure = structures.get("monarch").bind(24, 36, n_blocks=2)
    losses = [quality.measure("training", structure, steps, weight, seed=3) for steps in (5, 40, 40)]
    assert losses[0] > losses[1] == losses[2]
    assert torch.linalg.svdvals(quality.flat(24, 36, 0)) == pytest.approx(np.ones(24), abs=1e-5)


def test_quality_may_be_trained_on_inputs_of_ones_own(tmp_path: Path) -> None:
    """Inputs of four directions: two bonds, which a Gaussian input shows to be few, do nearly as well as four."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, 2, generator=draw) @ torch.randn(2, 24, generator=draw)
    np.save(tmp_path / "x.npy", rows.numpy())
    inputs = quality.load_inputs(tmp_path / "x.npy", 24)
    weight, low = quality.flat(24, 36, seed=0), structures.get("low_rank").bind(24, 36, rank=2)
    gaussian, own = (quality.measure("training", low, 180, weight, 0, given) for given in (None, inputs))
    assert own < 0.3 < 0.6 < gaussian
    for wrong, text in (
        (rows[:99], "(2048 or more, 24) is wanted"),
        (rows * float("nan"), "does not hold finite"),
        (rows * 0, "vary by 0"),
    ):
        np.save(tmp_path / "w.npy", wrong.numpy())
        with pytest.raises(UsageError, match=re.escape(text)):
            quality.load_inputs(tmp_path / "w.npy", 24)


def test_a_weight_is_read_from_three_kinds_of_file(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    np.save(tmp_path / "w.npy", weight.numpy())
    torch.save({"a.weight": weight, "b": torch.zeros(2)}, tmp_path / "w.pt")
    torch.save(weight, tmp_path / "one.pt")
    from safetensors.torch import save_file

    save_file({"a.weight": weight}, tmp_path / "w.safetensors")
    for name, key in (("w.npy", None), ("w.pt", "a.weight"), ("one.pt", None), ("w.safetensors", "a.weight")):
        assert torch.equal(quality.load(tmp_path / name, key, 4, 6), weight)
    np.save(tmp_path / "nan.npy", weight.numpy() * np.nan)
    np.save(tmp_path / "whole.npy", np.ones((6, 4), dtype=np.int64))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:40])
    for name, key, widths, message in (
        ("w.pt", "c", (4, 6), r"--key: 'c' is not in .*; it holds a.weight \(6, 4\), b \(2,\)"),
        ("w.pt", None, (4, 6), r"--key: name one of a.weight"),
        ("w.npy", "a", (4, 6), r"holds one array; leave --key out"),
        ("w.npy", None, (6, 4), r"\(out, in\) = \(4, 6\) is wanted, .* has \(6, 4\); it fits transposed"),
        ("nan.npy", None, (4, 6), r"does not hold finite floating-point numbers"),
        ("whole.npy", None, (4, 6), r"does not hold finite floating-point numbers"),
        ("cut.pt", None, (4, 6), r"cut.pt cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            quality.load(tmp_path / name, key, *widths)


# -- the front


def test_the_front_is_what_nobody_beats() -> None:
    dice = random.Random(0)
    for _ in range(50):
        points = [FrontPoint(f"p{i}", dice.randint(1, 6), dice.randint(1, 6), dice.random() < 0.5) for i in range(8)]
        best = front(points)
        for point in points:
            own = (point.time, point.quality)
            others = [(o.time, o.quality) for o in points]
            beaten = any(t <= own[0] and q <= own[1] and (t, q) != own for t, q in others)  # type: ignore[operator]
            assert beaten == (own not in {(p.time, p.quality) for p in best})
        assert sorted(p.name for p in layers(points)) == sorted(p.name for p in points)
        assert set(layers(points)[: len(best)]) == set(best)
        assert set(reasons(points)) == {p.name for p in best}
        assert all(a.time < b.time and a.quality > b.quality for a, b in itertools.pairwise(best))  # type: ignore[operator]


def test_reasons_and_verdict_say_what_stands_next() -> None:
    points = [
        FrontPoint("fast", 0.2, 0.9, False),
        FrontPoint("mid", 0.3, 0.5, True),
        FrontPoint("good", 0.5, 0.4, False),
        FrontPoint("slow", 0.6, 0.45, True),
    ]
    told = reasons(points)
    assert told["fast"] == "the fastest of all"
    assert "better than all that are faster, of which the best, fast, has 0.900" in told["mid"]
    assert told["good"].startswith("the best quality of all") and "slow, takes 1.20 times as long" in told["good"]
    assert "slow" not in told
    assert verdict(points) == (
        "No member of the space is faster than the fastest named entry, mid, at its quality or better. "
        "good is 1.20 times as fast as the best named entry, slow, at its quality or better."
    )
    assert "No named entry" in verdict(points[:1])
    unclear = [replace(points[2], quartiles=(0.45, 0.58)), replace(points[3], quartiles=(0.55, 0.65)), points[1]]
    assert "good cannot be told from the best named entry, slow, in time: the quartiles touch" in verdict(unclear)
    alone = [FrontPoint("a", 0.2, None, False), FrontPoint("b", 0.3, None, True)]
    assert [p.name for p in front(alone)] == ["a"] and "a is 1.50 times as fast" in verdict(alone)


# -- the report


def test_the_report_has_the_fronts_the_reasons_and_the_taxonomy(tmp_path: Path, timed_by_count: list[str]) -> None:
    path = tmp_path / "found.json"
    search(path, asked(quality="projection", candidates=24))
    text = rendered(tmp_path, {"structures": content(path)})
    plain = re.sub(r"<[^>]*>|\s+", " ", text)
    setup = content(path)["setup"]
    assert setup["verdict"].split(",")[0] in plain and 'id="search"' in text
    for reason, count in setup["rejected"].items():
        assert re.search(rf"{re.escape(reason)} +{count}\b", plain), reason
    for row in content(path)["rows"]:
        assert row["reason"] is None or row["reason"][:60] in plain
    for title in ("Quality against time", "Time against FLOPs", "places of the taxonomy"):
        assert title in text


def test_every_entry_and_every_named_point_has_its_place() -> None:
    places = taxonomy_points(asked(in_features=1024, out_features=1024))
    assert {p["name"] for p in places if p["kind"] == "entry"} == set(structures.names())
    assert len([p for p in places if p["kind"] == "point"]) == 23
    dense = next(p for p in places if p["name"] == "dense")
    assert (dense["omega"], dense["psi"], dense["nu"]) == (0, 1, 1)


def test_a_broken_file_is_named(tmp_path: Path, timed_by_count: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    search(path, asked(candidates=20))
    whole = path.read_text()
    for old, new, message in (
        ('"named": true', '"named": 1', "named is 1, must be true or false"),
        ('"verdict":', '"verdicts":', "verdict is missing"),
        ('"kind": "entry"', '"kind": "thing"', "kind is the text 'thing'"),
    ):
        path.write_text(whole.replace(old, new, 1))
        assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "bench/results").glob("*/search-*.json")), ids=lambda p: p.stem)
def test_a_committed_search_is_complete_and_its_entries_bind(path: Path) -> None:
    found = content(path)
    r = found["setup"]["request"]
    survivors = {row["structure"] for row in found["rows"] if row["reason"]}
    specs = registry.read(path.with_suffix(".yaml"))
    assert found["run"]["complete"] and {name.removeprefix("search_") for name in specs} == survivors
    for name, spec in specs.items():
        row = next(row for row in found["rows"] if row["structure"] == name.removeprefix("search_"))
        bound = spec.bind(r["in_features"], r["out_features"])
        assert bound.params / bound.dense_params == pytest.approx(row["params_share"], rel=1e-4)
