"""`python -m bench compare`: what two results files share, what changed beyond noise, and the exit code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import BROKEN, dense, document, point, refusal, saved

from bench.__main__ import main
from bench.answers import compare_text
from bench.answers.compare import RATIO, TIME, Comparison, compare
from bench.files.rows import read
from bench.files.terminal import percent, shortened, table
from structures.reading import BadFile

AGED = {"commit": "fedcba9876543210", "datetime": "2031-02-04T04:05:06+00:00"}


def compared(folder: Path, before: Any, after: Any, **options: Any) -> Comparison:
    a, b = saved(folder, a=before, b=after)
    return compare(read([a]), read([b]), **options)


def run(folder: Path, before: Any, after: Any, *arguments: str) -> int:
    a, b = saved(folder, a=before, b=after)
    return main(["compare", str(a), str(b), *arguments])


def test_the_change_is_of_time_relative_to_dense_with_the_quartiles_that_are_nearest_and_farthest(
    tmp_path: Path,
) -> None:
    [change] = compared(
        tmp_path, document(point(speedup=(2.0, 1.9, 2.1))), document(point(speedup=(1.6, 1.5, 1.7)), run=AGED)
    ).ratios
    assert change.measure == RATIO and change.clear
    assert change.change == pytest.approx(2.0 / 1.6 - 1)  # a quarter more time
    assert (change.low, change.high) == pytest.approx((1.9 / 1.7 - 1, 2.1 / 1.5 - 1))


def test_an_absolute_change_is_of_the_medians_of_time(tmp_path: Path) -> None:
    before = document(dense(time=(1.0, 0.9, 1.1)))
    [change] = compared(tmp_path, before, document(dense(time=(1.5, 1.2, 1.6)))).times
    assert change.measure == TIME and change.clear
    assert (change.change, change.low, change.high) == pytest.approx((0.5, 1.2 / 1.1 - 1, 1.6 / 0.9 - 1))


@pytest.mark.parametrize(
    ("speedup", "rounds", "clear"),
    [
        ((1.8, 1.7, 1.89), 9, True),  # slower, the ranges do not meet
        ((1.8, 1.7, 1.9), 9, False),  # they meet
        ((2.2, 2.1, 2.3), 9, False),
        ((2.2, 2.11, 2.3), 9, True),  # faster
        ((9.0, 9.0, 9.0), 2, False),  # two rounds have no spread worth the name
    ],
)
def test_a_change_is_beyond_noise_where_the_quartile_ranges_do_not_meet(
    speedup: tuple[float, float, float], rounds: int, clear: bool, tmp_path: Path
) -> None:
    before = document(point(speedup=(2.0, 1.9, 2.1)))
    assert compared(tmp_path, before, document(point(speedup=speedup, rounds=rounds))).ratios[0].clear is clear


@pytest.mark.parametrize(
    ("slower", "limit", "code"),
    [
        (2.0 / 1.2, "10%", 1),
        (2.0 / 1.2, "0.1", 1),
        (2.0 / 1.2, "19.9%", 1),
        (2.0 / 1.2, "20.1%", 0),
        (4.0, "10%", 0),  # faster
    ],
)
def test_the_exit_code_says_whether_a_point_got_slower_than_allowed(
    slower: float, limit: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = document(point(speedup=(slower, slower, slower)))
    assert run(tmp_path, document(point()), after, "--fail-above", limit) == code
    assert f"beyond noise: {code} (ratios to dense are judged)" in capsys.readouterr().out
    assert run(tmp_path, document(point()), after) == 0


def test_noise_never_fails_however_large_the_change(tmp_path: Path) -> None:
    after = document(point(speedup=(1.0, 0.5, 2.0)))
    assert run(tmp_path, document(point()), after, "--fail-above", "10%") == 0


def test_absolute_times_are_judged_only_where_they_were_asked_for(tmp_path: Path) -> None:
    before, after = document(dense(time=(1.0, 0.9, 1.1))), document(dense(time=(2.0, 1.9, 2.1)))
    assert run(tmp_path, before, after, "--fail-above", "10%") == 0
    assert run(tmp_path, before, after, "--fail-above", "10%", "--absolute") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "Other CPU"}, "differs: cpu: Made-up CPU | Other CPU"),
        ({"threads": 4}, "differs: threads: 2 | 4"),
        ({"allocator": "tuned"}, "differs: allocator: plain | tuned"),
        ({"cold": True}, "differs: weights: hot in cache | cold"),
        ({"tf32": True}, "differs: tf32: not set | on"),
    ],
)
def test_other_conditions_are_named_at_the_top_and_keep_absolute_times_apart(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = document(point(threads=changes.get("threads", 2)), run=changes)
    assert run(tmp_path, document(point()), after) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].strip() == said
    assert f"not compared: {said.split(': ')[1]} differs (--absolute compares them)" in lines[5]
    assert not any(line.startswith("Absolute") for line in lines) and any("1 points in both" in line for line in lines)
    assert run(tmp_path, document(point()), after, "--absolute") == 0
    assert "Absolute times (compared as asked for, though" in capsys.readouterr().out


def test_another_commit_keeps_absolute_times_comparable(tmp_path: Path) -> None:
    found = compared(tmp_path, document(point()), document(point(), run=AGED))
    assert list(found.differs) == ["commit"] and len(found.times) == 1
    other = document(point(), run={"versions": {**document()["structures"]["run"]["versions"], "torch": "2.14"}})
    assert not compared(tmp_path, document(point()), other).times


def test_changes_beyond_noise_come_first_the_worst_in_front(tmp_path: Path) -> None:
    speeds = {"blast": 2.0, "btt": 1.0, "dyad_it": 1.5, "low_rank": 4.0, "monarch": 3.0}
    before = document(*(point(f"{name} @ params 0.25") for name in speeds))
    after = document(*(point(f"{name} @ params 0.25", speedup=(s, s, s)) for name, s in speeds.items()))
    found = compared(tmp_path, before, after)
    assert [change.after.structure for change in found.ratios] == ["btt", "dyad_it", "low_rank", "monarch", "blast"]
    said = compare_text.text(found, limit=None, times=False)
    assert "against dense 2 slower and 2 faster beyond noise, 1 unchanged" in said
    assert said.index("btt p=0.25") < said.index("dyad_it p=0.25") < said.index("low_rank p=0.25")
    assert "blast" not in said and "1 unchanged: the quartile ranges meet" in said
    assert "blast p=0.25" in compare_text.text(found, limit=None, times=False, everything=True)


def test_what_only_one_file_has_is_counted_and_named_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document(point(), point(tokens=1), point(tokens=2))
    after = document(point(), point(tokens=4), refused=[refusal("monarch", "out of memory", tokens=2)])
    assert run(tmp_path, before, after) == 0
    said = capsys.readouterr().out
    assert "only in a: 2, only in b: 1 (--list names them)" in said
    assert "refused in b, measured in a: monarch @ params 0.25 1024x1024, 2 tokens" in said and "out of memory" in said
    assert run(tmp_path, before, after, "--list") == 0
    said = capsys.readouterr().out
    assert "only in a: monarch @ params 0.25 1024x1024, 1 tokens" in said
    assert "only in b: monarch @ params 0.25 1024x1024, 4 tokens" in said


def test_a_point_that_another_backend_ran_is_the_same_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = document(point(backend="planned", speedup=(4.0, 3.9, 4.1)))
    assert run(tmp_path, document(point()), after) == 0
    assert "bmm>planned" in capsys.readouterr().out


def test_where_a_point_ran_with_several_backends_each_is_compared_with_its_own(tmp_path: Path) -> None:
    before = document(point(), point(backend="einsum", speedup=(1.0, 0.9, 1.1)))
    after = document(point(backend="einsum", speedup=(1.0, 0.9, 1.1)), point(backend="planned"), point())
    found = compared(tmp_path, before, after)
    assert {(c.before.backend, c.after.backend) for c in found.ratios} == {("bmm", "bmm"), ("einsum", "einsum")}
    assert [row.backend for row in found.only_after] == ["planned"] and not found.only_before


def test_other_options_under_the_same_name_are_another_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = document(point(options={"n_blocks": 8}, params=131072, speedup=(1.0, 1.0, 1.0)))
    assert run(tmp_path, document(point()), after, "--fail-above", "10%") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not the same layer: monarch @ params 0.25 1024x1024" in said
    assert "n_blocks=4, 262144 parameters | n_blocks=8, 131072 parameters" in said


def test_files_without_a_common_point_say_what_keeps_them_apart(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"no point is in both .*a\.json and .*b\.json; dtype: float32 \| bfloat16"):
        compared(tmp_path, document(point()), document(point(dtype="bfloat16")))
    refused = document(refused=[refusal("monarch", "out of memory")])
    with pytest.raises(BadFile, match=r"device: cpu \| no points"):
        compared(tmp_path, document(point()), refused)


def test_host_time_and_device_time_are_never_compared(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"clock: host \| device"):
        compared(tmp_path, document(point()), document(point(clock="device")))


def test_a_summary_is_the_geometric_mean_of_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("monarch @ params 0.25", "monarch @ params 0.5", "btt @ params 0.25")
    before = document(*(point(name, speedup=(1.0, 1.0, 1.0)) for name in names))
    # times 2 and 1/8 of before: sqrt(2 / 8) = 0.5
    after = document(*(point(n, speedup=(s, s, s)) for n, s in zip(names, (0.5, 8.0, 1.0), strict=True)))
    assert run(tmp_path, before, after, "--by", "structure") == 0
    lines = [line.split() for line in capsys.readouterr().out.split("By structure")[1].splitlines()]
    assert ["+0.0", "%", "btt", "1", "0", "0"] in lines and ["-50", "%", "monarch", "2", "1", "1"] in lines


def test_the_json_holds_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = document(point(), point(tokens=1))
    after = document(point(speedup=(1.0, 1.0, 1.0), flags=["noisy"]), run=AGED)
    assert run(tmp_path, before, after, "--json", "--fail-above", "10%") == 1
    found = json.loads(capsys.readouterr().out)
    [change] = found["ratios"]
    assert change["change"] == 1.0 and change["beyond_noise"] and change["flags"] == ["noisy"]
    assert (change["before"]["median"], change["after"]["median"]) == (2.0, 1.0)
    assert found["failed"] == [change] and found["differs"] == {"commit": ["0123456789ab", "fedcba987654"]}
    assert len(found["only_before"]) == 1 and found["points_in_both"] == 1


def test_the_table_fits_a_terminal_of_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [
        {"mode": mode, "tokens": tokens, "dtype": dtype}
        for mode in ("forward", "train")
        for tokens in (1, 4096)
        for dtype in ("float32", "bfloat16")
    ]
    series = "a structure of a very long name " + "x" * 80
    before = document(*(point(series, speedup=(1.0, 1.0, 1.0), **kind) for kind in kinds))
    flags = {"flags": ["noisy", "load"], "backend": "planned"}
    after = document(*(point(series, speedup=(0.012, 0.012, 0.012), **kind, **flags) for kind in kinds))
    assert run(tmp_path, before, after) == 0
    said = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in said if str(tmp_path) not in line) <= 100
    assert any("a st" in line and "xx" in line and "train" in line for line in said)


def test_many_changes_are_cut_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = document(*(point(tokens=t) for t in range(1, 60)))
    after = document(*(point(tokens=t, speedup=(1.0, 1.0, 1.0)) for t in range(1, 60)))
    assert run(tmp_path, before, after) == 0
    assert "and 19 more changes beyond noise; --list names them" in capsys.readouterr().out
    assert run(tmp_path, before, after, "--list") == 0
    relative, absolute = capsys.readouterr().out.split("Absolute times")
    assert relative.count("monarch p=0.25") == absolute.count("monarch p=0.25") == 59 and "more changes" not in relative


@pytest.mark.parametrize("which", ["before", "after"])
@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_refused_in_one_sentence(
    content: Any, message: str, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = document(point())
    assert run(tmp_path, *((content, good) if which == "before" else (good, content))) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ") and not said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fail-above", "ten"), "'ten' is not a share; write 10% or 0.1"),
        (("--fail-above=-5%",), "'-5%' is not a share; write 10% or 0.1"),
        (("--by", "structur"), "--by: 'structur' is not known; did you mean 'structure'? Allowed: structure, series"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(tmp_path, document(point()), document(point()), *arguments)
    except SystemExit as stopped:
        assert stopped.code == 2
    else:
        assert code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [path] = saved(tmp_path, a=document(point()))
    assert main(["compare", str(path), str(tmp_path / "absent.json")]) == 2
    assert "absent.json: cannot be read: No such file or directory" in capsys.readouterr().err


def test_only_the_columns_that_may_be_cut_are_cut() -> None:
    lines = table(["number", "name"], [["1234567890", "n" * 200]], right=("number",), cut=("name",))
    assert [len(line) for line in lines] == [16, 100] and lines[1].startswith("1234567890  nnn")
    assert shortened("abcdefgh", 6) == "ab..gh" and shortened("abc", 6) == "abc"
    assert [percent(value) for value in (0.25, 0.125, 0.002, 12.0)] == ["25 %", "12.5 %", "0.2 %", "1200 %"]


def test_neither_torch_nor_the_layers_nor_charts_are_imported(tmp_path: Path) -> None:
    modules = "bench.__main__, bench.files.merge, bench.answers.compare_text, bench.answers.recommend_text"
    code = f"import sys, {modules}; print({{'torch', 'structures.public', 'vl_convert'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("set()\n", "")
