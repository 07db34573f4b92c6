"""Flagged points: told with the command that repeats them, measured again by it, and how merge takes them."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from bench_runs import quick
from made_up import document, point, saved

from bench.__main__ import main
from bench.files.errors import UsageError
from bench.sweep import rerun

TINY = ("--structures=low_rank:rank=4", "--widths=16,32", "--tokens=4", "--no-controls", "--mode=forward")


def flag(file, *names):
    """Mark the rows of these tests as noisy, and no others."""
    found = json.loads(file.read_text())
    for row in found["benchmarks"]:
        row["extra_info"]["flags"] = ["noisy"] if any(name in row["name"] for name in names) else []
    file.write_text(json.dumps(found))
    return found


def test_only_the_flagged_points_are_measured_again_and_merged(tmp_path):
    status, text, whole = quick(tmp_path, *TINY)
    assert status == 0, text
    base = tmp_path / "base.json"
    (tmp_path / "results.json").rename(base)
    flag(base, "low_rank_rank=4-32x32")
    status, text, again = quick(tmp_path, f"--rerun-flagged={base}", "--tokens=8")
    assert status == 4 and "takes its points and their options from the file; leave out" in text and "--tokens" in text
    status, text, again = quick(tmp_path, f"--rerun-flagged={base}", precise=False)
    assert status == 0, text
    assert [row["name"] for row in again["benchmarks"]] == [whole["benchmarks"][3]["name"]]
    run = again["structures"]["run"]
    assert run["rerun_of"] == {"file": "base.json", "datetime": whole["structures"]["run"]["datetime"], "points": 1}
    assert again["benchmarks"][0]["extra_info"]["precision"]["target"] == 0.9  # as the file was measured
    flag(tmp_path / "results.json")
    out = tmp_path / "all.json"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["merge", str(base), str(tmp_path / "results.json"), "-o", str(out)]) == 0
    assert "kept" in said.getvalue() and "flagged not at all, the other noisy" in said.getvalue()
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["benchmarks"]] == [row["name"] for row in whole["benchmarks"]]
    assert found["benchmarks"][3]["stats"] == again["benchmarks"][0]["stats"]
    assert found["structures"]["run"]["complete"] is True


def test_the_command_stands_where_something_is_flagged_alone():
    rows = [
        point(flags=["noisy"]),
        point(flags=[]),
        point(flags=["load", "noisy"]),
        point(flags=["copies fit the cache"]),
    ]
    assert rerun.command(Path("a/r.json"), rows) == {
        "flagged": 2,
        "command": "pytest bench --rerun-flagged a/r.json --benchmark-json=a/r-rerun.json && "
        "python -m bench merge a/r.json a/r-rerun.json -o a/r.json",
    }
    assert rerun.command(Path("r.json"), rows[1:2]) is None
    assert rerun.command(None, rows) is None


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (document(point(flags=[]), run={"request": {}}), "no point of .* is flagged: there is nothing to repeat"),
        (document(point(flags=["noisy"])), "does not say which options it was measured with"),
        (document(point(flags=["noisy"]), run={"request": 5}), "does not say which options"),
    ],
)
def test_a_file_that_cannot_be_repeated_says_why(tmp_path, file, message):
    [path] = saved(tmp_path, a=file)
    with pytest.raises(UsageError, match=message):
        rerun.flagged(path)


def test_flagged_points_of_merged_shards_are_found_by_the_options_of_each(tmp_path):
    parts = [{"file": n, "run": document()["structures"]["run"] | {"request": {"shard": n}}} for n in ("1/2", "2/2")]
    again = {"file": "x", "run": document()["structures"]["run"] | {"request": {"shard": None}, "rerun_of": {}}}
    [path] = saved(tmp_path, a=document(point(flags=["load"]), run={"merged_from": [*parts, again]}))
    found = rerun.flagged(path)
    assert [one["shard"] for one in found.requests] == ["1/2", "2/2"]
    assert found.ids == {"monarch_@_params_0.25-1024-1024-128-float32-cpu-forward"}


RERUN = {"rerun_of": {"file": "a.json", "datetime": "2031", "points": 1}}


@pytest.mark.parametrize(
    ("flags", "again", "kept", "why"),
    [
        (["noisy"], [], 1, "flagged not at all, the other noisy"),
        (["noisy", "load"], ["load"], 1, "flagged load, the other noisy and load"),
        (["noisy"], ["load"], 1, "the rerun's, flagged load as the other"),
        (["noisy"], ["noisy", "load"], 0, "flagged noisy, the other noisy and load"),
        ([], [], 1, "the rerun's, flagged not at all as the other"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_merge_keeps_of_a_point_and_its_rerun_the_one_with_fewer_flags_and_then_the_rerun(
    tmp_path, capsys, flags, again, kept, why, swapped
):
    files = {
        "a": document(point(flags=flags, rounds=99)),
        "b": document(point(flags=again, rounds=3), run=RERUN),
    }
    paths = saved(tmp_path, **dict(sorted(files.items(), reverse=swapped)))
    assert main(["merge", *map(str, paths), "-o", str(tmp_path / "all.json")]) == 0
    assert why in capsys.readouterr().out
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["benchmarks"][0]["stats"]["rounds"] == (99, 3)[kept]
    assert "rerun_of" not in found["structures"]["run"]


def test_files_of_different_sweeps_are_merged_with_a_line(tmp_path, capsys):
    def half(number):
        return {"request": {"tokens": number, "shard": f"{number}/2"}, "argv": ["pytest", f"--shard={number}/2"]}

    a = document(point(), run=half("1"))
    b = document(point(tokens=1), run=half("2") | {"complete": False})
    assert main(["merge", *map(str, saved(tmp_path, a=a, b=b)), "-o", str(tmp_path / "all.json")]) == 0
    said = capsys.readouterr().out
    assert "the files are no shards of one sweep: these options differ: tokens; all of them in merged_from" in said
    assert "b.json is not complete: its run ended before all points were measured" in said
    assert "shard 2/2 of the sweep of a.json is not among the files; marked as not complete" in said
    assert "shard 1/2 of the sweep of b.json is not among the files" in said
    assert "of 2 files; not complete" in said


def test_runs_that_were_gone_on_with_say_so_after_a_merge(tmp_path):
    times = [{"datetime": f"203{i}", "argv": []} for i in (1, 2)]
    a = document(point(), run={"resumed": times[:1]})
    b = document(point(tokens=1), run={"resumed": times})
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["merge", *map(str, saved(tmp_path, a=a, b=b)), "-o", str(tmp_path / "all.json")]) == 0
    assert json.loads((tmp_path / "all.json").read_text())["structures"]["run"]["resumed"] == times
