"""`python -m bench recommend`: structures ranked by what was measured near a layer, and what is said without data."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import BROKEN, dense, document, point, refusal, saved

from bench.__main__ import main
from bench.answers.recommend import BETWEEN, EXACT, NEIGHBOUR, Answer, Estimate, Query, recommend
from bench.files.errors import UsageError
from bench.files.rows import Spread, read

HERE = Query(1024, 1024, 128, params=0.25)


def answer(folder: Path, *points: dict[str, Any], query: Query = HERE, **changes: Any) -> Answer:
    return recommend(read(saved(folder, results=document(*points, **changes))), query)


def asked(folder: Path, content: Any, *arguments: str, at: tuple[int, int, int] = (1024, 1024, 128)) -> int:
    [path] = saved(folder, results=content)
    where = ["--in", str(at[0]), "--out", str(at[1]), "--tokens", str(at[2])]
    return main(["recommend", str(path), *where, *(arguments or ("--params", "25%"))])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def sized(series: str, width: int, tokens: int, speed: float, **info: Any) -> dict[str, Any]:
    """A square layer with a speed-up whose quartiles are a tenth below and above."""
    sizes = {"in_features": width, "out_features": width, "tokens": tokens}
    return point(series, speedup=(speed, 0.9 * speed, 1.1 * speed), **sizes, **info)


def only(found: Answer) -> Estimate:
    [group] = found.groups
    [(_, estimate)] = group.ranked
    return estimate


MONARCH, BTT = "monarch @ params 0.25", "btt @ params 0.25"


def test_structures_are_ranked_by_the_speedup_measured_at_the_very_point(tmp_path: Path) -> None:
    [group] = answer(tmp_path, dense(), sized(MONARCH, 1024, 128, 2.0), sized(BTT, 1024, 128, 3.0)).groups
    assert [(rank, e.rows[0].structure, e.kind) for rank, e in group.ranked] == [
        (1, "btt", EXACT),
        (2, "monarch", EXACT),
    ]


def test_whoever_reaches_the_quartiles_of_the_first_of_a_rank_shares_it(tmp_path: Path) -> None:
    spreads = {
        "a": (4.0, 3.5, 4.5),
        "b": (3.6, 3.4, 3.8),
        "c": (3.45, 3.3, 3.49),
        "d": (3.4, 3.2, 3.45),
        "e": (1, 1, 1),
    }
    [group] = answer(tmp_path, *(point(f"{name} @ params 0.25", speedup=s) for name, s in spreads.items())).groups
    # c reaches b but not a, the first of the rank; d reaches c
    assert [(rank, e.rows[0].structure) for rank, e in group.ranked] == [
        (1, "a"),
        (1, "b"),
        (3, "c"),
        (3, "d"),
        (5, "e"),
    ]


def test_between_two_near_points_of_a_series_the_logarithm_is_a_straight_line(tmp_path: Path) -> None:
    points = (sized(MONARCH, 512, 128, 2.0), sized(MONARCH, 2048, 128, 8.0), sized(MONARCH, 4096, 128, 99.0))
    found = only(answer(tmp_path, *points))
    assert found.kind == BETWEEN and [row.in_features for row in found.rows] == [512, 2048]
    assert found.speedup == Spread(pytest.approx(4.0), pytest.approx(1.8), pytest.approx(8.8), 9)  # type: ignore[arg-type]
    rows = (sized(MONARCH, 1024, 128, 2.0), sized(MONARCH, 2048, 128, 8.0))
    nearer = only(answer(tmp_path, *rows, query=Query(1218, 1218, 128, params=0.25)))  # 1024 * 2**0.25
    assert nearer.speedup.median == pytest.approx(2.0 * 4**0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((512, 1024, 128), (2048, 1024, 128)),
        ((1024, 512, 128), (1024, 2048, 128)),
        ((1024, 1024, 64), (1024, 1024, 256)),
        ((512, 2048, 128), (2048, 512, 128)),
        ((512, 512, 64), (2048, 2048, 256)),
    ],
)
def test_any_two_near_points_with_the_asked_one_on_the_line_between_them_serve(
    one: tuple[int, int, int], other: tuple[int, int, int], tmp_path: Path
) -> None:
    keys = ("in_features", "out_features", "tokens")
    rows = [
        point(MONARCH, speedup=(s, s, s), **dict(zip(keys, place, strict=True)))
        for s, place in ((1.0, one), (4.0, other))
    ]
    found = only(answer(tmp_path, *rows))
    assert found.kind == BETWEEN and found.speedup.median == pytest.approx(2.0)


def test_nothing_is_extrapolated_nor_bent_around_a_corner(tmp_path: Path) -> None:
    same_side = (sized(MONARCH, 1500, 128, 2.0), sized(MONARCH, 2000, 128, 8.0))
    found = only(answer(tmp_path, *same_side))
    assert found.kind == NEIGHBOUR and found.place == (1500, 1500, 128) and found.speedup.median == 2.0
    corner = (sized(MONARCH, 2048, 128, 2.0), sized(MONARCH, 1024, 64, 8.0))
    assert only(answer(tmp_path, *corner)).kind == NEIGHBOUR


def test_two_series_are_never_joined(tmp_path: Path) -> None:
    rows = (sized("monarch n_blocks=4", 512, 128, 2.0), sized("monarch n_blocks=8", 2048, 128, 8.0))
    assert {e.kind for group in answer(tmp_path, *rows).groups for _, e in group.ranked} == {NEIGHBOUR}


def test_speedups_of_different_places_are_ranked_apart(tmp_path: Path) -> None:
    rows = (sized(BTT, 2048, 128, 9.0), sized(MONARCH, 1024, 128, 2.0), sized("blast @ params 0.25", 1200, 128, 5.0))
    groups = answer(tmp_path, *rows).groups
    assert [group.place for group in groups] == [None, (1200, 1200, 128), (2048, 2048, 128)]
    assert [[rank for rank, _ in group.ranked] for group in groups] == [[1], [1], [1]]


@pytest.mark.parametrize("place", [(2048, 1024, 128), (1024, 512, 128), (1024, 1024, 256), (2048, 2048, 64)])
def test_near_is_within_a_factor_of_two_in_each_size(place: tuple[int, int, int], tmp_path: Path) -> None:
    farther = {1: lambda size: 2 * size + 1, 0: lambda size: size, -1: lambda size: size // 2 - 1}
    pairs = zip(place, HERE.place, strict=True)
    beyond = [farther[(size > asked) - (size < asked)](size) for size, asked in pairs]
    keys = ("in_features", "out_features", "tokens")
    assert answer(tmp_path, point(**dict(zip(keys, place, strict=True)))).groups
    assert not answer(tmp_path, point(**dict(zip(keys, beyond, strict=True)))).groups


def test_structures_are_compared_at_equal_cost_only(tmp_path: Path) -> None:
    shares = {"a": (0.2875, 0.25), "b": (0.2124, 0.25), "c": (0.25, 0.9), "d": (0.125, 0.125)}
    rows = [point(f"{name} own", params_share=p, flops_share=f) for name, (p, f) in shares.items()]

    def found(**cost: float) -> list[str]:
        groups = answer(tmp_path, *rows, query=Query(1024, 1024, 128, **cost)).groups  # type: ignore[arg-type]
        return sorted(e.rows[0].structure for group in groups for _, e in group.ranked)

    assert found(params=0.25) == ["a", "c"]  # within 15 %
    assert found(flops=0.25) == ["a", "b"]
    assert found(params=0.25, flops=0.25) == ["a"]


def test_dense_and_its_controls_are_not_recommended(tmp_path: Path) -> None:
    rows = [
        dense(params_share=0.25),
        point("dense_narrow @ params 0.25", control=True, speedup=(9.0, 8.0, 10.0)),
        point(MONARCH),
    ]
    found = answer(tmp_path, *rows)
    assert only(found).series == MONARCH
    assert [e.series for e in found.narrow] == ["dense_narrow @ params 0.25"]


def test_one_layer_measured_under_two_names_counts_once_with_the_smaller_spread(tmp_path: Path) -> None:
    rows = (point(MONARCH, speedup=(2.0, 1.0, 3.0)), point("monarch n_blocks=4", speedup=(2.1, 2.0, 2.2)))
    assert only(answer(tmp_path, *rows)).series == "monarch n_blocks=4"


def test_several_backends_of_a_series_are_ranked_each(tmp_path: Path) -> None:
    rows = (point(MONARCH), point(MONARCH, backend="planned", speedup=(3.0, 3.0, 3.0)))
    [group] = answer(tmp_path, *rows).groups
    assert [e.rows[0].backend for _, e in group.ranked] == ["planned", "bmm"]


def test_the_answer_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [sized(MONARCH, 512, 128, 2.0), sized(MONARCH, 2048, 128, 8.0, options={"n_blocks": 8}, flags=["noisy"])]
    rows += [sized(BTT, 1024, 128, 4.1), sized("blast @ params 0.25", 1024, 64, 0.5), dense()]
    rows += [point("dense_narrow @ params 0.25", control=True)]
    no = [refusal("kronecker", "no such share"), refusal("pixelfly", "elsewhere", in_features=512)]
    assert asked(tmp_path, document(*rows, refused=no)) == 0
    text = said(capsys)
    assert "1024x1024, 128 tokens, float32, cpu, forward, 2 threads, at 25 % of dense's parameters" in text
    assert "1= btt n_blocks=4 4.10x (3.69 to 4.51) 25 % 25 % bmm measured here" in text
    assert "n_blocks=8 4.00x (1.80 to 8.80) 25 % 25 % bmm between noisy" in text
    assert "= cannot be told apart" in text
    assert (
        "measured at 512x512, 128 tokens (log2 away: in -1.00, out -1.00, tokens 0): monarch 2.00x (1.80 to 2.20)"
        in text
    )
    assert "from 1024x1024, 64 tokens (log2 away: in 0, out 0, tokens -1.00), a neighbour on one side only: " in text
    assert "slower than dense: blast @ params 0.25" in text
    assert "for comparison, dense_narrow @ params 0.25: 2.00x (1.90 to 2.10), measured here" in text
    assert "refused at this layer: kronecker: no such share" in text and "pixelfly" not in text
    assert "dense itself has no row" not in text and "speed only:" in text


def test_programs_get_every_rank_and_the_rows_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speeds = {"monarch": 2.0, "dyad_it": 3.0, "low_rank": 1.2}
    rows = [sized(f"{name} @ params 0.25", 1024, 128, speed) for name, speed in speeds.items()]
    assert asked(tmp_path, document(*rows), "--params", "25%", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    [group] = found["groups"]
    ranks = [(one["rank"], one["structure"]) for one in group["ranked"]]
    assert ranks == [(1, "dyad_it"), (2, "monarch"), (3, "low_rank")]
    [basis] = group["ranked"][0]["rests_on"]
    assert basis["speedup"] == group["ranked"][0]["speedup"] and basis["in_features"] == 1024
    assert found["query"]["tokens"] == 128 and found["measure"] is None and found["missing"] is None
    assert asked(tmp_path, document(*rows), "--params", "50%", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["groups"] == [] and "nearest in cost is" in found["missing"] and "pytest bench" in found["measure"]


def test_only_the_best_are_shown_unless_more_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = document(*(point(f"s{i} @ params 0.25", speedup=(i, i, i)) for i in range(1, 9)))
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
            "nearest is monarch @ params 0.25 at 1024x1024, 1024 tokens (log2 away: in 0, out 0, tokens +3.00)",
        ),
        (
            [point("monarch @ params 0.5"), point("btt @ params 0.125")],
            ("--params", "25%"),
            "nearest in cost is monarch @ params 0.5 with 50 % of the parameters, 50 % of the FLOPs; "
            "budgets measured there: params=0.125, params=0.5",
        ),
        ([point()], ("--params", "25%", "--dtype", "bf16"), "holds dtype float32 only on cpu"),
        ([point()], ("--params", "25%", "--device", "cuda"), "holds device cpu only"),
        ([point()], ("--params", "25%", "--mode", "train"), "holds mode forward only on cpu, float32"),
        ([point()], ("--params", "25%", "--threads", "8"), "holds threads 2 only on cpu, float32, forward"),
        ([dense()], ("--params", "25%"), "only dense layers were measured under these conditions"),
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
    assert "no data near 1024x1024, 128 tokens" in text and message in text
    assert "pytest bench --shapes 1024x1024 --tokens 128" in text and "--budget params=0.25 --benchmark" in text


def test_a_file_of_refusals_alone_has_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(tmp_path, document(refused=[refusal("btt", "out of memory")])) == 1
    assert "every point was refused" in said(capsys)


@pytest.mark.parametrize("word", ["bf16", "BF16", "bfloat16"])
def test_types_have_their_usual_short_names(word: str, tmp_path: Path) -> None:
    assert asked(tmp_path, document(point(dtype="bfloat16"), point()), "--params", "0.25", "--dtype", word) == 0


def test_forward_is_meant_where_the_mode_is_left_open(tmp_path: Path) -> None:
    rows = (point(MONARCH, mode="train"), point(BTT))
    assert only(answer(tmp_path, *rows)).series == BTT
    assert only(answer(tmp_path, *rows, query=Query(1024, 1024, 128, params=0.25, mode="train"))).series == MONARCH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--dtype: results.json holds float32, bfloat16; name one"),
        (("--dtype", "bfloat61"), "--dtype: 'bfloat61' is not known; did you mean 'bfloat16'?"),
        (("--dtype", "bfloat61"), "of which results.json holds float32, bfloat16"),
        (("--dtype", "fp32", "--mode", "trian"), "--mode: 'trian' is not known; did you mean 'train'?"),
        (("--dtype", "fp32", "--mode", "trian"), "Allowed: forward, train, of which results.json holds forward"),
        (("--device", "gpu"), "--device: 'gpu' is not known"),
        (("--params", "0"), "--params: 0 % is not a share of dense; write 50% or 0.5"),
        (("--params", "50"), "--params: 5000 % is not a share of dense; write 50% or 0.5"),
    ],
)
def test_a_wrong_value_names_what_the_file_holds(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document(point(), point(dtype="bfloat16"))
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


def test_files_of_two_machines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved(tmp_path, a=document(point()), b=document(point(tokens=1), run={"cpu": "Other CPU"}))
    sizes = ["--in", "1024", "--out", "1024", "--tokens", "128", "--params", "25%"]
    assert main(["recommend", *map(str, paths), *sizes]) == 2
    assert "were measured differently: cpu Made-up CPU | Other CPU; give one of them" in capsys.readouterr().err


def test_the_tables_fit_a_terminal_of_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"options": {"theta": [0.123456] * 12}, "flags": ["noisy", "load", "hot"], "backend": "planned"}
    names = [f"a_structure_with_a_long_name_{i} @ params 0.25" for i in range(6)]
    rows = [sized(name, width, 128, 1.0, **long) for name in names for width in (512, 2048)]
    assert asked(tmp_path, document(*rows, point())) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_refused_in_one_sentence(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(tmp_path, content) == 2
    found = capsys.readouterr()
    assert message in found.err and found.err.count("\n") == 1 and not found.out
