"""`python -m bench recommend`: the verdict at a layer or the nearest measured, and what is said without data."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import BROKEN, dense, document, point, refusal, saved

from bench.__main__ import main
from bench.answers import qualities
from bench.answers.qualities import NONE
from bench.answers.recommend import Answer, Query, recommend
from bench.files.errors import UsageError
from bench.files.rows import read

HERE = Query(1024, 1024, 128, params=0.25)
MONARCH, BTT = "monarch @ params 0.25", "btt @ params 0.25"


@pytest.fixture(autouse=True)
def nothing_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualities, "COMMITTED", Path("absent"))


def answer(folder: Path, *points: dict[str, Any], query: Query = HERE, **changes: Any) -> Answer:
    return recommend(read(saved(folder, results=document(*points, **changes))), query, NONE)


def asked(folder: Path, content: Any, *arguments: str, at: tuple[int, int, int] = (1024, 1024, 128)) -> int:
    [path] = saved(folder, results=content)
    where = ["--in", str(at[0]), "--out", str(at[1]), "--tokens", str(at[2])]
    return main(["recommend", str(path), *where, *(arguments or ("--params", "25%"))])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def named(found: Answer) -> list[str]:
    return [one.name for one in found.verdict.ranking] if found.verdict else []


def test_the_verdict_is_that_at_the_nearest_layer_within_a_factor_of_two(tmp_path: Path) -> None:
    rows = [point(BTT, in_features=2048), point(MONARCH, in_features=1400), point("blast @ params 0.25", tokens=512)]
    found = answer(tmp_path, *rows)
    assert named(found) == ["monarch"] and not found.exact
    found = answer(tmp_path, *rows, point("low_rank @ params 0.25"))
    assert named(found) == ["low_rank"] and found.exact


@pytest.mark.parametrize("place", [(2048, 1024, 128), (1024, 512, 128), (1024, 1024, 256), (2048, 2048, 64)])
def test_near_is_within_a_factor_of_two_in_each_size(place: tuple[int, int, int], tmp_path: Path) -> None:
    farther = {1: lambda size: 2 * size + 1, 0: lambda size: size, -1: lambda size: size // 2 - 1}
    pairs = zip(place, HERE.sizes, strict=True)
    beyond = [farther[(size > asked) - (size < asked)](size) for size, asked in pairs]
    keys = ("in_features", "out_features", "tokens")
    assert answer(tmp_path, point(**dict(zip(keys, place, strict=True)))).verdict
    assert not answer(tmp_path, point(**dict(zip(keys, beyond, strict=True)))).verdict


def test_the_answer_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [point(BTT, speedup=(4.0, 3.9, 4.1)), point(MONARCH, speedup=(4.0, 3.7, 4.2)), dense()]
    rows += [point("dense_narrow @ params 0.25", control=True), point("blast @ params 0.25", flags=["noisy"])]
    no = [refusal("kronecker", "no such share"), refusal("pixelfly", "elsewhere", in_features=512)]
    assert asked(tmp_path, document(*rows, refused=no)) == 0
    text = said(capsys)
    conditions = "1024x1024, 128 tokens, forward (default), float32 (default), cpu, 2 threads"
    assert f"{conditions}, at 25 % of dense's parameters Take btt: 4.00 times faster" in text
    assert "1= btt n_blocks=4 4.00x (3.90 to 4.10) 25 % 25 % 100 %" in text and "= cannot be told apart" in text
    assert "not ranked: blast 2.00x: flagged noisy" in text
    assert "refused here: kronecker: no such share" in text and "pixelfly" not in text
    assert "loss not measured: python -m bench train" in text and "log2" not in text


def test_a_neighbour_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(tmp_path, document(dense(), point(BTT)), at=(1000, 1000, 128)) == 0
    text = said(capsys)
    assert "The nearest layer measured is 1024x1024, 128 tokens; all figures are of it. To measure yours: " in text
    assert "pytest bench --shapes 1000x1000 --tokens 128 --dtypes float32" in text


def test_programs_get_the_whole_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [point(f"{name} @ params 0.25", speedup=(s, s, s)) for name, s in (("monarch", 2.0), ("dyad_it", 3.0))]
    assert asked(tmp_path, document(*rows), "--params", "25%", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    ranked = [(one["rank"], one["structure"], one["speedup"]["median"]) for one in found["verdict"]["ranking"]]
    assert ranked == [(1, "dyad_it", 3.0), (2, "monarch", 2.0)]
    assert found["exact"] and found["sentence"].startswith("Take dyad_it") and found["measure"] is None
    assert asked(tmp_path, document(*rows), "--params", "50%", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] is None and "nearest in cost is" in found["missing"] and "pytest bench" in found["measure"]


def test_only_the_best_are_shown_unless_more_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = document(*(point(f"s{i} @ params 0.25", speedup=(i / 2,) * 3) for i in range(1, 9)))
    assert asked(tmp_path, content) == 0
    text = said(capsys)
    assert "and 3 more; --top 8 shows them" in text and "s4 " in text and "s3 " not in text
    assert asked(tmp_path, content, "--params", "0.25", "--top", "8") == 0
    assert "s1 " in said(capsys)


@pytest.mark.parametrize(
    ("points", "arguments", "message"),
    [
        (
            [point(MONARCH, tokens=1024)],
            ("--params", "25%"),
            "the nearest layer at this cost is 1024x1024, 1024 tokens",
        ),
        (
            [point("monarch @ params 0.5"), point("btt @ params 0.125")],
            ("--params", "25%"),
            "nearest in cost is monarch @ params 0.5, with 50 %, at 1024x1024, 128 tokens",
        ),
        ([point()], ("--params", "25%", "--dtype", "bf16"), "the files hold dtype float32 only"),
        ([point()], ("--params", "25%", "--device", "cuda"), "the files hold device cpu only"),
        ([point()], ("--params", "25%", "--mode", "train"), "the files hold mode forward only"),
        ([point()], ("--params", "25%", "--threads", "8"), "the files hold threads 2 only"),
        ([dense()], ("--params", "25%"), "no structure was measured under these conditions"),
    ],
)
def test_without_data_near_it_says_so_and_how_to_measure(
    points: list[dict[str, Any]],
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert asked(tmp_path, document(*points), *arguments) == 1
    text = said(capsys)
    assert "nothing was measured near 1024x1024, 128 tokens" in text and message in text
    assert "pytest bench --shapes 1024x1024 --tokens 128" in text and "--budget params=0.25 --benchmark" in text


def test_a_file_of_refusals_alone_has_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(tmp_path, document(refused=[refusal("btt", "out of memory")])) == 1
    assert "the files hold no rows" in said(capsys)


@pytest.mark.parametrize("word", ["bf16", "BF16", "bfloat16"])
def test_types_have_their_usual_short_names(word: str, tmp_path: Path) -> None:
    assert asked(tmp_path, document(point(dtype="bfloat16"), point()), "--params", "0.25", "--dtype", word) == 0


def test_forward_and_float32_are_meant_where_they_are_left_open(tmp_path: Path) -> None:
    rows = (point(MONARCH, mode="train"), point(BTT), point("blast @ params 0.25", dtype="bfloat16"))
    assert named(answer(tmp_path, *rows)) == ["btt"]
    assert named(answer(tmp_path, *rows, query=Query(1024, 1024, 128, params=0.25, mode="train"))) == ["monarch"]
    assert named(answer(tmp_path, point(dtype="bfloat16", mode="train"))) == ["monarch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--dtype: the files hold float64, bfloat16; name one"),
        (("--flops", "0.1"), "--params and --flops are two questions: name one"),
        (("--dtype", "bfloat61"), "--dtype: 'bfloat61' is not known; did you mean 'bfloat16'?"),
        (("--dtype", "bfloat61"), "of which the files hold float64, bfloat16"),
        (("--dtype", "fp64", "--mode", "trian"), "--mode: 'trian' is not known; did you mean 'train'?"),
        (("--dtype", "fp64", "--mode", "trian"), "Allowed: forward, train, of which the files hold forward"),
        (("--device", "gpu"), "--device: 'gpu' is not known"),
        (("--params", "0"), "--params: 0 % is not a share of dense; write 50% or 0.5"),
        (("--params", "50"), "--params: 5000 % is not a share of dense; write 50% or 0.5"),
    ],
)
def test_a_wrong_value_names_what_the_file_holds(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document(point(dtype="float64"), point(dtype="bfloat16"))
    assert asked(tmp_path, content, "--params", "25%", *arguments) == 2
    err = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert message in err and err.count("\n") == 1


def test_a_cost_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a cost: --params 50% or --flops 25%; without one the smallest"):
        answer(tmp_path, point(), query=Query(1024, 1024, 128))


@pytest.mark.parametrize("wrong", [("--in", "0"), ("--out", "-4"), ("--tokens", "1.5"), ("--params", "half")])
def test_a_number_that_is_none_is_refused(
    wrong: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        asked(tmp_path, document(point()), "--params", "25%", f"{wrong[0]}={wrong[1]}")
    assert f"argument {wrong[0]}: '{wrong[1]}' is not a" in capsys.readouterr().err


def test_files_of_several_machines_are_asked_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved(tmp_path, a=document(point()), b=document(point(BTT), run={"cpu": "Other CPU"}))
    sizes = ["--in", "1024", "--out", "1024", "--tokens", "128", "--params", "25%"]
    assert main(["recommend", *map(str, paths), *sizes]) == 2
    assert "--machine: the files hold Made-up CPU; Other CPU; name one" in capsys.readouterr().err
    for machine, number in (("Xeon", 0), ("cpu", 2)):
        assert main(["recommend", *map(str, paths), *sizes, "--machine", machine]) == 2
        assert f"{machine!r} names {number} of Made-up CPU; Other CPU" in capsys.readouterr().err
    assert main(["recommend", *map(str, paths), *sizes, "--machine", "other"]) == 0
    assert "Take btt" in said(capsys)


def test_files_of_one_machine_are_merged_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = point("mine @ params 0.25", speedup=(3.0, 2.9, 3.1))
    paths = saved(tmp_path, results=document(dense(), point(BTT)), mine=document(dense(rounds=5), mine))
    sizes = ["--in", "1024", "--out", "1024", "--tokens", "128", "--params", "25%"]
    assert main(["recommend", *map(str, paths), *sizes]) == 0
    text = said(capsys)
    assert text.startswith("merged ") and "Take mine" in text and "2 btt" in text


def test_the_tables_fit_a_terminal_of_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"options": {"theta": [0.123456] * 12}, "backend": "planned"}
    names = [f"a_structure_with_a_long_name_{i} @ params 0.25" for i in range(6)]
    rows = [dense(), *(point(name, **long) for name in names)]
    assert asked(tmp_path, document(*rows, point(MONARCH, flags=["noisy", "load"]))) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_refused_in_one_sentence(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(tmp_path, content) == 2
    found = capsys.readouterr()
    assert message in found.err and found.err.count("\n") == 1 and not found.out
