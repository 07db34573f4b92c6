"""`python -m bench merge`: shards of one sweep into one file, nothing mixed that must not be, nothing lost."""

import contextlib
import copy
import errno
import io
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import BROKEN, dense, document, point, refusal, saved

from bench.__main__ import main
from bench.answers import qualities
from bench.answers.compare import compare
from bench.files.rows import read

REPOSITORY = Path(__file__).parents[2]


def merged(folder: Path, **documents: Any) -> tuple[dict[str, Any], str]:
    """The merged document, and what was said; the command must succeed."""
    paths = saved(folder, **documents)
    out = folder / "out" / "all.json"
    out.parent.mkdir(exist_ok=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["merge", *map(str, paths), "-o", str(out), "--overwrite"]) == 0
    return json.loads(out.read_text()), said.getvalue().replace(f"{folder}/", "")


def refused(folder: Path, capsys: pytest.CaptureFixture[str], **documents: Any) -> str:
    """What is said where files must not be merged; no file may appear."""
    paths = saved(folder, **documents)
    out = folder / "all.json"
    assert main(["merge", *map(str, paths), "-o", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out and not out.exists()
    return said.err.replace(f"{folder}/", "")


def series(found: dict[str, Any]) -> list[str]:
    return [benchmark["extra_info"]["series"] for benchmark in found["benchmarks"]]


def test_shards_of_a_sweep_become_one_file_that_is_read_again(tmp_path: Path) -> None:
    a = document(dense(), point("monarch @ params 0.25"), rules={"dense": "no options", "monarch @ params 0.25": "x"})
    b = document(point("btt @ params 0.25"), rules={"btt @ params 0.25": "y"}, run={"pinned": [2, 3]})
    found, said = merged(tmp_path, a=a, b=b)
    assert series(found) == ["dense", "monarch @ params 0.25", "btt @ params 0.25"]
    assert found["benchmarks"] == a["benchmarks"] + b["benchmarks"]
    assert found["structures"]["rules"] == a["structures"]["rules"] | b["structures"]["rules"]
    assert said == "out/all.json: 3 points, 0 refused, of 2 files; complete\n"
    out = tmp_path / "out" / "all.json"
    assert len(read([out]).rows) == 3
    assert compare(read([out]), read([tmp_path / "a.json"])).in_both == 2


def test_commands_lose_the_folders_of_the_machine_and_nothing_else(tmp_path: Path) -> None:
    argv = ["pytest", "--benchmark-json=/home/me/a.json", "--resume", "/b/c.json", "--budget=params=0.5", "x/y"]
    again = {"datetime": "2031-01-01T00:00:00+00:00", "argv": ["pytest", "--resume=/home/me/a.json"]}
    found, _ = merged(tmp_path, a=document(point(), run={"argv": argv, "resumed": [again]}))
    run = found["structures"]["run"]
    told = ["pytest", "--benchmark-json=a.json", "--resume", "c.json", "--budget=params=0.5", "x/y"]
    assert run["argv"] == run["merged_from"][0]["run"]["argv"] == told
    assert run["resumed"] == [again | {"argv": ["pytest", "--resume=a.json"]}] and "/home" not in json.dumps(run)


def test_the_run_keeps_the_earliest_date_the_highest_load_and_every_command(tmp_path: Path) -> None:
    early = {"datetime": "2031-01-01T00:00:00+00:00", "foreign_load": 0.5, "pinned": [4, 5]}
    a, b = document(point()), document(point(tokens=1), run=early | {"argv": ["pytest", "bench", "-q"]})
    found, _ = merged(tmp_path, a=a, b=b)
    run = found["structures"]["run"]
    assert (run["datetime"], run["foreign_load"], run["pinned"]) == (early["datetime"], 0.5, [0, 1, 4, 5])
    assert run["argv"] == ["pytest", "bench", "&&", "pytest", "bench", "-q"] and run["complete"]
    assert [part["file"] for part in run["merged_from"]] == ["a.json", "b.json"]
    assert [part["run"] for part in run["merged_from"]] == [d["structures"]["run"] for d in (a, b)]


VERSIONS = document()["structures"]["run"]["versions"]
MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "machine": ({"cpu": "Other CPU"}, "cpu is 'Made-up CPU' and 'Other CPU'"),
    "device": ({"device_names": {"cpu": "c", "cuda": "Made-up GPU"}}, "gpu is 'none' and 'Made-up GPU'"),
    "threads": ({"threads": 4}, "threads is '2' and '4'"),
    "allocator": ({"allocator": "tuned"}, "allocator is 'plain' and 'tuned'"),
    "tf32": ({"tf32": True}, "tf32 is 'not set' and 'on'"),
    "weights": ({"cold": True}, "weights is 'hot in cache' and 'cold'"),
    "torch": ({"versions": VERSIONS | {"torch": "2.12"}}, "torch is '2.13' and '2.12'"),
    "python": ({"versions": VERSIONS | {"python": "3.12"}}, "python is '3.11' and '3.12'"),
    "structures": ({"versions": VERSIONS | {"structures": "0.2"}}, "structures is '0.1' and '0.2'"),
    "commit": ({"commit": "fedcba9876543210"}, "commit is '0123456789ab' and 'fedcba987654'"),
    "changes": ({"dirty": True}, "commit is '0123456789ab' and '0123456789ab with uncommitted changes'"),
    "two": ({"cpu": "Other CPU", "threads": 4}, "cpu is 'Made-up CPU' and 'Other CPU'; threads is '2' and '4'"),
}


@pytest.mark.parametrize(("changes", "message"), MIXED.values(), ids=MIXED)
def test_what_must_not_be_mixed_is_refused_with_both_values(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(tmp_path, capsys, a=document(point()), b=document(point(tokens=1), run=changes))
    assert said == f"error: a.json and b.json must not be mixed: {message}\n"


def test_of_a_point_in_two_files_the_one_with_more_rounds_is_kept_and_then_the_narrower(tmp_path: Path) -> None:
    base = document(point(), point(tokens=1), point(tokens=2), point(tokens=4), dense(rounds=5))
    other = document(
        point(rounds=31),
        point(tokens=1, speedup=(2.0, 1.99, 2.01)),
        point(tokens=2, time=(1.0, 0.9, 1.1)),
        point(tokens=4),
        dense(rounds=3, backend="addmm"),  # the same test, where another way to run dense was fastest
    )
    found, said = merged(tmp_path, a=base, b=other)
    expected = [other, other, base, base, base]
    assert found["benchmarks"] == [source["benchmarks"][i] for i, source in enumerate(expected)]
    lines = said.splitlines()
    assert len(lines) == 6 and all(": in a.json and b.json; kept " in line for line in lines[:5])
    assert lines[0].endswith("kept b.json's: 31 rounds, the other 9")
    assert lines[1].endswith("kept b.json's: quartiles 1.0% apart, the other's 10.0%")
    assert lines[2].endswith("kept a.json's: as many rounds and as wide, so the first given")
    assert lines[3].endswith("kept a.json's: same figures")
    assert lines[4].endswith("kept a.json's: 5 rounds, the other 3; ran by linear, the other by addmm")
    assert "monarch_@_params_0.25-1024-1024-128-float32-cpu-forward" in lines[0]


def test_two_backends_of_one_file_are_two_points(tmp_path: Path) -> None:
    found, _ = merged(tmp_path, a=document(point(), point(backend="einsum")))
    assert len(found["benchmarks"]) == 2


def test_a_point_that_stands_twice_with_the_same_figures_is_kept_once_with_a_line(tmp_path: Path) -> None:
    found, said = merged(tmp_path, a=document(point(), point()))
    assert len(found["benchmarks"]) == 1 and "stands twice in a.json with the same figures; kept once" in said


def test_a_refused_point_that_another_shard_measured_is_kept_measured_with_a_line(tmp_path: Path) -> None:
    a = document(point(), refused=[refusal("btt", "out of memory"), refusal("monarch", "own file: stays")])
    found, said = merged(tmp_path, a=a, b=document(point("btt @ params 0.25", backend="planned")))
    assert series(found) == ["monarch @ params 0.25", "btt @ params 0.25"]
    assert [one["structure"] for one in found["structures"]["refused"]] == ["monarch"]
    assert said.splitlines()[0] == (
        "btt @ params 0.25 1024x1024, 128 tokens, float32, cpu, forward: refused in a.json (out of memory), "
        "measured in b.json; kept measured"
    )


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"tokens": 1},
        {"dtype": "bfloat16"},
        {"mode": "train"},
        {"in_features": 512},
        {"budget": "params=0.5"},
        {"series": "btt rank=4"},
        {"threads": 1},
        {"backend": "einsum"},
        {"options": {"n_blocks": 8}},
    ],
    ids=str,
)
def test_a_refusal_of_another_point_stays(elsewhere: dict[str, Any], tmp_path: Path) -> None:
    a = document(refused=[refusal("btt", "no", **elsewhere)])
    found, _ = merged(tmp_path, a=a, b=document(point("btt @ params 0.25")))
    assert found["structures"]["refused"] == a["structures"]["refused"]


def test_a_refusal_in_several_files_is_kept_once_and_another_reason_is_told(tmp_path: Path) -> None:
    open_ended = dict.fromkeys(("series", "options", "tokens", "dtype", "device", "mode", "backend", "threads"))
    a = document(point(), refused=[refusal("btt", "out of memory"), refusal("blast", "no budget", **open_ended)])
    b = document(point(tokens=1), refused=[refusal("btt", "timed out"), refusal("blast", "no budget", **open_ended)])
    found, said = merged(tmp_path, a=a, b=b)
    assert found["structures"]["refused"] == a["structures"]["refused"]
    assert "refused in a.json (out of memory) and in b.json (timed out); kept a.json's" in said
    assert "refusals that stand in several files, with the same reason: 1 left out, each kept once" in said


def test_a_point_refused_on_either_clock_is_refused_twice_and_measured_on_one_is_refused_on_the_other(
    tmp_path: Path,
) -> None:
    a = document(refused=[refusal("btt", "no", clock="host"), refusal("btt", "no", clock="device")])
    found, said = merged(tmp_path, a=a, b=document(point("btt @ params 0.25", clock="device")))
    assert found["structures"]["refused"] == a["structures"]["refused"][:1]
    assert "refused in a.json (no), measured in b.json; kept measured" in said
    found, said = merged(tmp_path, a=a, b=document(point(tokens=1)))
    assert found["structures"]["refused"] == a["structures"]["refused"] and "left out" not in said


def test_the_higher_roof_is_kept_with_a_line(tmp_path: Path) -> None:
    low = {"device": "cpu", "dtype": "float32", "threads": 2, "gemm_flops_per_s": 1e11, "copy_bytes_per_s": 1e10}
    high, other = low | {"gemm_flops_per_s": 2e11}, low | {"dtype": "bfloat16"}
    a, b = document(point(), roofline=[low]), document(point(tokens=1), roofline=[high, other])
    found, said = merged(tmp_path, a=a, b=b)
    assert found["structures"]["roofline"] == [high, other]
    assert "the roofline of cpu, float32, 2 threads was measured more than once: 2e+11 FLOP/s kept, 1e+11 left" in said


def test_a_shard_that_is_not_there_makes_the_whole_incomplete(tmp_path: Path) -> None:
    shards = {
        f"s{k}": document(point(tokens=k), run={"argv": ["pytest", "bench", "--shard", f"{k}/3"]}) for k in (1, 2, 3)
    }
    found, said = merged(tmp_path, s1=shards["s1"], s3=shards["s3"])
    assert not found["structures"]["run"]["complete"] and "shard 2/3 is not among the files; marked as not" in said
    assert "not complete: points are missing" in said
    again, said = merged(tmp_path, found=found, s2=shards["s2"])
    assert again["structures"]["run"]["complete"] and "not among" not in said


def test_differences_that_do_not_matter_are_told_and_kept(tmp_path: Path) -> None:
    a, b = document(point()), document(point(tokens=1), run={"pinned_by": "the user"}, spare=1)
    b["machine_info"] = {"node": "there"}
    found, said = merged(tmp_path, a=a, b=b)
    assert "'machine_info' differs between the files; a.json's is kept, all of them in merged_from" in said
    assert "run.pinned_by differs between the files" in said and "structures.spare differs between the files" in said
    assert [part["machine_info"]["node"] for part in found["structures"]["run"]["merged_from"]] == ["here", "there"]


def test_merging_in_steps_is_merging_at_once(tmp_path: Path) -> None:
    dice = random.Random(0)
    names = ["blast", "btt", "low_rank", "monarch"]
    for _ in range(5):
        shards = {}
        for name in "abc":
            chosen = dice.sample(names, 3)
            rows = [point(f"{s} @ params 0.25", rounds=dice.choice([3, 9]), backend=dice.choice("xy")) for s in chosen]
            left = [refusal(s, dice.choice(["p", "q"])) for s in names if s not in chosen]
            shards[name] = document(*rows, refused=left, rules={chosen[0]: dice.choice("uv")})
        at_once, _ = merged(tmp_path, **shards)
        first, _ = merged(tmp_path, a=shards["a"], b=shards["b"])
        in_steps, _ = merged(tmp_path, first=first, c=shards["c"])
        assert in_steps == at_once


def test_the_output_is_a_file_of_pytest_benchmark(tmp_path: Path) -> None:
    merged(tmp_path, a=document(point()), b=document(point(tokens=1)))
    program = "from pytest_benchmark.cli import main; main()"
    path = str(tmp_path / "out" / "all.json")
    done = subprocess.run([sys.executable, "-c", program, "compare", path], capture_output=True, text=True)
    assert done.returncode == 0 and "monarch_@_params_0.25-1024-1024-128" in done.stdout, done.stderr


def test_an_input_may_be_the_output(tmp_path: Path) -> None:
    a, b = saved(tmp_path, a=document(point()), b=document(point(tokens=1)))
    assert main(["merge", str(a), str(b), "-o", str(a)]) == 0
    assert len(read([a]).rows) == 2


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_refused_in_one_sentence(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tmp_path, capsys, a=document(point(tokens=1)), b=content)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (5, "merged_from must be a list of files with their runs"),
        ([], "merged_from must be a list of files with their runs"),
        ([5], "merged_from[0] is 5, must be an object"),
        ([{"file": "x"}], "merged_from[0]: run is missing"),
        ([{"run": {}}], "merged_from[0]: run: versions is missing"),
        ([{"run": document()["structures"]["run"] | {"foreign_load": "much"}}], "foreign_load is the text 'much'"),
        ([{"run": document()["structures"]["run"] | {"threads": 8}}], "must not be mixed: threads is '2' and '8'"),
    ],
    ids=str,
)
def test_an_edited_list_of_merged_files_is_refused(
    parts: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(tmp_path, capsys, a=document(point(), run={"merged_from": parts}))
    assert message in said.replace("run: run", "run")


def test_a_file_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [a] = saved(tmp_path, a=document(point()))
    assert main(["merge", str(a), str(tmp_path / "." / "a.json"), "-o", str(tmp_path / "all.json")]) == 2
    assert "a.json: is given twice" in capsys.readouterr().err


def test_nan_in_a_field_that_is_only_copied_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = document(point(spare=float("nan")))
    assert "benchmarks[0]: extra_info: spare is NaN, must be a finite number" in refused(tmp_path, capsys, a=odd)


def test_what_was_there_is_left_alone_where_the_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    [a] = saved(tmp_path, a=document(point()))
    out = tmp_path / "all.json"
    out.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["merge", str(a), "-o", str(out)]) == 2
    assert "all.json exists and is none of the files to merge; add --overwrite" in capsys.readouterr().err
    assert main(["merge", str(a), "-o", str(out), "--overwrite"]) == 2
    assert "all.json: cannot be written: No space left on device; nothing was changed" in capsys.readouterr().err
    assert out.read_text() == "before" and sorted(os.listdir(tmp_path)) == ["a.json", "all.json"]


WITHOUT_CHARTS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vl_convert", "jinja2", "torch"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent())
from bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "{a}", "{b}", "-o", "{out}"],
        ["merge", "{ff}", "-o", "{out}"],
        ["merge", "{training}", "-o", "{out}"],
        ["compare", "{a}", "{a}"],
        ["recommend", "{a}", "--in", "1024", "--out", "1024", "--tokens", "128", "--params", "25%"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_chart_library_and_no_torch_is_needed(words: list[str], tmp_path: Path) -> None:
    a, b = saved(tmp_path, a=document(point()), b=document(point(tokens=1)))
    results = REPOSITORY / "bench/results"
    committed = {"ff": results / "intel-xeon/ff.json", "training": results / "epyc-zen4/training.json"}
    places = {"a": a, "b": b, "out": tmp_path / "out.json", **committed}
    command = [sys.executable, "-c", WITHOUT_CHARTS, *(word.format(**places) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_made_by_one_run_cannot_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = REPOSITORY / "bench/results/intel-xeon/minilm.json"
    assert main(["merge", str(file), str(file), "-o", str(tmp_path / "out.json")]) == 2
    assert "a file of kind 'minilm' is made by one run, so there is nothing to merge" in capsys.readouterr().err


def test_a_write_cut_off_by_the_system_leaves_nothing_behind(tmp_path: Path) -> None:
    [a] = saved(tmp_path, a=document(*(point(tokens=t) for t in range(1, 9))))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "merge", str(a), "-o", str(tmp_path / "all.json")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2 and "all.json: cannot be written: File too large; nothing was changed" in done.stderr
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("absent/all.json", "absent/all.json: cannot be written: No such file or directory"),
        ("a.json/all.json", "a.json/all.json: cannot be written: Not a directory"),
        (".", "cannot be written: it is there and is not a plain file"),
        ("/dev/null", "/dev/null: cannot be written: it is there and is not a plain file"),
    ],
)
def test_an_output_that_cannot_be_is_named(
    output: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [a] = saved(tmp_path, a=document(point()))
    assert main(["merge", str(a), "-o", str(tmp_path / output)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_no_point_of_any_shard_is_lost(tmp_path: Path) -> None:
    starts = {"a": 1, "b": 4, "c": 9}
    shards = {name: document(*(point(tokens=t) for t in range(i, i + 6))) for name, i in starts.items()}
    before = copy.deepcopy(shards)
    found, said = merged(tmp_path, **shards)
    wanted = {b["extra_info"]["tokens"] for one in before.values() for b in one["benchmarks"]}
    assert {b["extra_info"]["tokens"] for b in found["benchmarks"]} == wanted
    assert said.count("; kept ") == 18 - len(found["benchmarks"]) == 4


ODD = [None, ..., [], {}, "", "x\x00\n\x1b[2J", -1, 0, 1.5, float("nan"), float("inf"), 10**30, True, "\ud800", "日本"]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value of a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inside for place in places(part, (*at, key)))]


def edited(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place, or without it for `...`."""
    *above, last = place
    copied = inner = copy.deepcopy(content)
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copied


def test_no_edit_of_any_field_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qualities, "COMMITTED", Path("absent"))  # not read 300 times
    whole = document(dense(), point(flags=["noisy"]), sized(2048), refused=[refusal("btt", "no")], rules={"dense": "x"})
    whole["structures"]["run"]["merged_from"] = [{"file": "x", "run": copy.deepcopy(whole["structures"]["run"])}]
    [good] = saved(tmp_path, good=document(dense(), point(), sized(512)))
    edits = [(place, value) for place in places(whole)[1:] for value in ODD]
    for place, value in random.Random(0).sample(edits, 300):
        [path] = saved(tmp_path, edited=edited(whole, place, value))
        for command in (
            ["merge", str(path), str(good), "-o", str(tmp_path / "all.json")],
            ["compare", str(good), str(path), "--list", "--absolute"],
            ["recommend", str(path), "--in", "1500", "--out", "1500", "--tokens", "128", "--params", "25%"],
        ):
            code, said = main(command), capsys.readouterr()
            assert code in (0, 1, 2) and said.err.count("\n") == (code == 2), (command[0], place, value)
            assert not {"\x00", "\x1b"} & set(said.out + said.err), (command[0], place, value)


def sized(width: int) -> dict[str, Any]:
    return point(in_features=width, out_features=width)


def test_names_that_a_terminal_cannot_show_are_escaped_and_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    a, b = saved(tmp_path, a=document(point("日本 n=4")), b=document(point("日本 n=4", speedup=(1.0, 1.0, 1.0))))
    command = [sys.executable, "-m", "bench", "compare", str(a), str(b)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "\\u65e5\\u672c n=4" in done.stdout
    reading, writing = os.pipe()
    os.close(reading)
    fails = subprocess.run([*command, "--fail-above", "10%"], stdout=writing, stderr=subprocess.PIPE, cwd=REPOSITORY)
    os.close(writing)
    assert (fails.returncode, fails.stderr) == (1, b"")
