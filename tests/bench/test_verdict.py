"""The verdict on made-up rows: who wins, who ties, who is not believed, what is said first, and what it costs."""

from pathlib import Path
from typing import Any

import pytest
from made_up import dense, document, point, refusal, saved
from test_training_report import comparison, row
from test_training_report import document as trained

from bench.answers import inputs, qualities
from bench.answers.qualities import NONE, Agreement, Qualities
from bench.answers.question import FLOPS, PARAMS, questions
from bench.answers.sentence import brief, sentence
from bench.answers.verdict import Contender, Verdict, verdict
from bench.files.rows import Results

ROOF = {"device": "cpu", "dtype": "float32", "threads": 2, "gemm_flops_per_s": 1e11, "copy_bytes_per_s": 1e10,
        "copy_bytes_per_s_by_size": [[1000, 5e10], [2000, 5e10], [100000, 1e10]]}  # fmt: skip


def at(name: str, median: float, apart: float = 1.02, **info: Any) -> dict[str, Any]:
    """A structure at a quarter of dense, with the quartiles a factor of `apart` from each other."""
    series = name if " " in name else f"{name} @ params 0.25"
    return point(series, speedup=(median, median / apart**0.5, median * apart**0.5), **info)


def narrow(median: float, **info: Any) -> dict[str, Any]:
    return at("dense_narrow", median, control=True, **info)


def read(folder: Path, *points: dict[str, Any], **changes: Any) -> Results:
    return inputs.read(saved(folder, results=document(*points, **changes)), ()).results


def judged(
    folder: Path, *points: dict[str, Any], equal: str = PARAMS, known: Qualities = NONE, **changes: Any
) -> Verdict:
    results = read(folder, *points, **changes)
    [question] = [q for q in questions(results.rows) if (q.equal, q.share) == (equal, 0.25)]
    return verdict(results.rows, question, known, results.refusals)


def ranks(several: tuple[Contender, ...]) -> list[tuple[int | None, str]]:
    return [(one.rank, one.name) for one in several]


# -- the ranking


def test_the_order_is_that_of_lower_quartiles_and_whoever_reaches_the_first_of_a_rank_ties_with_it(
    tmp_path: Path,
) -> None:
    found = judged(tmp_path, dense(), at("btt", 4.0), at("monarch", 4.05, 1.3), at("blast", 3.5), at("low_rank", 3.46))
    assert ranks(found.ranking) == [(1, "btt"), (1, "monarch"), (3, "blast"), (3, "low_rank"), (5, "dense")]
    assert [one.tied for one in found.ranking] == [True, True, True, True, False]
    assert found.best and found.best.name == "btt" and [one.name for one in found.ties] == ["monarch"]


@pytest.mark.parametrize(
    ("disturbed", "reason"),
    [
        (at("monarch", 3.9, flags=["load", "noisy"]), "flagged load and noisy"),
        (at("monarch", 3.9, 1.6), "quartiles a factor of 1.60 apart"),
        (at("monarch", 70.0), "implausible: 70.0x, but it runs 4.00x fewer FLOPs and moves 1.00x fewer bytes"),
    ],
)
def test_one_disturbed_row_neither_wins_nor_ties(disturbed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = judged(tmp_path, dense(), disturbed, at("btt", 3.8), at("low_rank", 2.0))
    assert ranks(found.ranking) == [(1, "btt"), (2, "low_rank"), (3, "dense")]
    assert [(one.rank, one.name, one.doubts) for one in found.below] == [(None, "monarch", (reason,))]
    assert "monarch" not in sentence(found) and "1 not ranked: " + reason in brief(found)


def test_where_every_row_is_disturbed_nothing_is_said_to_be_the_fastest(tmp_path: Path) -> None:
    found = judged(tmp_path, dense(), at("btt", 3.0, flags=["load"]), at("monarch", 2.0, flags=["load"]))
    assert found.best is None and ranks(found.ranking) == [(1, "dense")]
    assert sentence(found) == (
        "Nothing can be said: of 2 structures with 25 % of its parameters none is fit to rank (btt: flagged load)."
    )


@pytest.mark.parametrize("median", [1.005, 1.0, 0.9])
def test_dense_wins_what_does_not_beat_it(median: float, tmp_path: Path) -> None:
    found = judged(tmp_path, dense(), at("btt", median, 1.1))
    assert found.best is None and found.winner is None
    assert sentence(found).startswith("Keep dense: no structure with 25 % of its parameters beats it here; btt reaches")
    assert [one.tied for one in found.ranking] == [median > 0.96] * 2


def test_a_ratio_beyond_flops_and_bytes_is_believed_only_where_dense_leaves_the_cache(tmp_path: Path) -> None:
    fast, far, large = at("btt", 7.0), at("btt", 30.0), dense(bytes=4000)
    assert judged(tmp_path, dense(), fast, roofline=[ROOF]).below  # dense's 1000 bytes stay in the cache
    assert judged(tmp_path, large, fast, roofline=[]).below  # and without a measured cache nobody knows
    found = judged(tmp_path, large, fast, roofline=[ROOF])
    assert found.best and "dense's 0 MB leave the cache, which is 5.00x faster" in found.best.notes[0]
    assert judged(tmp_path, large, far, roofline=[ROOF]).below  # 5 times 4 is less than 30


def test_of_a_structure_the_nearest_in_cost_counts_then_what_is_not_disturbed_then_the_fastest(tmp_path: Path) -> None:
    rows = [at("btt", 2.0), at("btt n_blocks=5", 3.0, params_share=0.27), at("dyad_it", 9.0, flags=["load"]),
            at("dyad_it n_blocks=4", 1.5), at("monarch n_blocks=4", 3.0),
            at("monarch n_blocks=4", 3.5, backend="planned"),
            at("blast n_blocks=4", 3.0, params_share=0.28),
            at("blast n_blocks=5", 1.2, params_share=0.26)]  # fmt: skip
    found = judged(tmp_path, dense(), *rows)
    speeds = {one.name: one.speedup.median for one in found.ranking}
    assert speeds == {"btt": 2.0, "dyad_it": 1.5, "monarch": 3.5, "blast": 1.2, "dense": 1.0} and not found.below


# -- what is held equal


def gated(median: float, **info: Any) -> dict[str, Any]:
    return at("low_rank_moe", median, executed_flops=500.0, **info)


def test_what_runs_fewer_flops_says_so_and_competes_at_equal_executed_flops_only_with_its_like(tmp_path: Path) -> None:
    rows = (dense(), gated(6.0), at("btt", 3.0), at("monarch @ params 0.125", 5.0, executed_flops=500.0))
    found = judged(tmp_path, *rows)
    assert found.best and found.best.name == "low_rank_moe" and "12.5 % of the FLOPs" in sentence(found)
    assert found.best.notes == ("runs 12.5 % of dense's FLOPs",)
    assert ranks(judged(tmp_path, *rows, equal=FLOPS).ranking) == [(1, "btt"), (2, "dense")]
    results = read(tmp_path, *rows)
    [eighth] = [q for q in questions(results.rows) if (q.equal, q.share) == (FLOPS, 0.125)]
    assert ranks(verdict(results.rows, eighth).ranking) == [(1, "low_rank_moe"), (2, "monarch"), (3, "dense")]


def test_the_questions_of_a_file_are_those_with_a_structure_the_richest_first(tmp_path: Path) -> None:
    rows = (dense(), at("btt", 2.0), dense(tokens=1), at("btt", 2.0, tokens=1), at("monarch", 2.0, tokens=1))
    found = questions(read(tmp_path, *rows, dense(tokens=512), narrow(3.0, tokens=512)).rows)
    assert [(q.tokens, q.equal) for q in found] == [(1, PARAMS), (128, PARAMS), (1, FLOPS), (128, FLOPS)]
    assert questions(()) == ()
    own = questions(read(tmp_path, point("btt n_blocks=2", params_share=0.31, executed_flops=1000.0)).rows)
    assert [(q.equal, q.share) for q in own] == [(PARAMS, 0.31), (FLOPS, 0.25)]


def test_one_row_alone_is_an_answer(tmp_path: Path) -> None:
    found = judged(tmp_path, at("btt", 2.0))
    assert ranks(found.ranking) == [(1, "btt")] and found.best and found.best.memory_share is None
    assert sentence(found) == (
        "Take btt: 2.00 times faster than the best dense layer, 25 % of the parameters, loss not measured."
    )


# -- dense and its rivals


def test_both_ratios_are_those_of_the_paired_loop(tmp_path: Path) -> None:
    linear = point("dense by linear", structure="dense", control=True, speedup=(0.5, 0.4, 0.625), params_share=1.0)
    found = judged(tmp_path, dense(), linear, at("btt", 3.0))
    over = {one.name: one.over_linear.median for one in found.ranking if one.over_linear}
    assert over == {"btt": 6.0, "dense": 2.0} and "(6.00 than nn.Linear)" in sentence(found)
    candidates = {"linear": 3e-3, "native": 1e-3}
    found = judged(tmp_path, dense(candidates=candidates), at("btt", 3.0))
    assert {one.over_linear and one.over_linear.median for one in found.ranking} == {3.0, 9.0}


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (3.5, "If you can change the width of the whole network, take a narrower dense layer: 3.50x, faster than any"),
        (3.0, "If you can change the width of the whole network, take a narrower dense layer: 3.00x, as fast as any"),
    ],
)
def test_a_rival_that_wins_or_ties_is_said_first(speed: float, said: str, tmp_path: Path) -> None:
    found = judged(tmp_path, dense(), at("btt", 3.0), narrow(speed))
    assert found.best and found.best.name == "btt" and [one.name for one in found.rivals] == ["dense_narrow"]
    assert sentence(found).startswith(said) and " Take btt: 3.00 times faster" in sentence(found)


def test_other_rivals_stand_behind_and_dense_in_other_numbers_is_in_every_ranking(tmp_path: Path) -> None:
    int8 = point(
        "dense_int8_weights",
        control=True,
        speedup=(2.0, 1.9, 2.1),
        params_share=1.0,
        executed_flops=4000.0,
        error=0.0123,
    )
    found = judged(
        tmp_path, dense(), at("btt", 3.0), narrow(2.5), int8, at("dense_narrow @ params 0.5", 9.0, control=True)
    )
    assert [one.name for one in found.ranking] == ["btt", "dense_narrow", "dense_int8_weights", "dense"]
    assert sentence(found).startswith("Take btt") and "A narrower dense layer: 2.50x." in sentence(found)
    doubted = sentence(judged(tmp_path, dense(), at("btt", 3.0), narrow(9.0, flags=["noisy"])))
    assert doubted.startswith("Take btt") and "A narrower dense layer: 9.00x, but flagged noisy." in doubted
    alone = sentence(judged(tmp_path, dense(), at("btt", 0.5), int8))
    assert alone.startswith(
        "If an error of 1.2 % will do, take dense in int8 (weights alone): 2.00x, faster than any structure"
    )
    assert "Keep dense" in alone


def test_refusals_at_the_very_layer_are_told(tmp_path: Path) -> None:
    no = [refusal("kronecker", "no such share"), refusal("pixelfly", "elsewhere", in_features=512),
          refusal("btt", "another backend")]  # fmt: skip
    assert judged(tmp_path, dense(), at("btt", 3.0), refused=no).refused == {"kronecker": "no such share"}


# -- quality


def known(folder: Path, *rows: dict[str, Any]) -> Qualities:
    return qualities.read(inputs.read(saved(folder, training=trained(list(rows))), qualities.KINDS).others)


def test_the_sentence_says_what_is_lost_and_who_keeps_more(tmp_path: Path) -> None:
    losses = known(tmp_path, *comparison(), *(row("removed", 2.6, seed) for seed in range(3)))
    found = judged(tmp_path, dense(), at("low_rank", 3.0), at("dyad_it", 2.0), at("blast", 1.5), known=losses)
    said = sentence(found)
    assert "25 % of the parameters, loss +2" in said and "dyad_it keeps more: loss +" in said and "a tie" in said
    assert found.kept and found.kept.name == "dyad_it"
    quality = {one.name: one.quality for one in found.ranking}
    assert quality["blast"].loss is None and quality["low_rank"].loss and quality["low_rank"].loss.verdict == "worse"
    assert found.qualities.missing() == {"agreement": qualities.CONVERT}


def test_of_ties_the_one_that_keeps_most_is_taken_and_wide_quartiles_win_nothing(tmp_path: Path) -> None:
    losses = known(tmp_path, *comparison(), *(row("removed", 2.6, seed) for seed in range(3)))
    found = judged(tmp_path, dense(), at("low_rank", 3.0), at("dyad_it", 2.99), known=losses)
    assert [one.rank for one in found.ranking] == [1, 1, 3]
    assert found.best and found.best.name == "dyad_it" and [one.name for one in found.ties] == ["low_rank"]
    wide = at("low_rank", 3.0, 1.4)  # reaches the first; dyad_it is faster by its median, and keeps more
    found = judged(tmp_path, dense(), at("blast", 3.2), wide, at("dyad_it", 3.05), known=losses)
    assert ranks(found.ranking)[:3] == [(1, "blast"), (1, "low_rank"), (2, "dyad_it")]
    assert found.best and found.best.name == "dyad_it" and sentence(found).startswith("Take dyad_it")


def test_what_loses_as_much_as_no_layers_at_all_is_ranked_and_not_taken(tmp_path: Path) -> None:
    losses = known(tmp_path, *comparison(), *(row("removed", 2.39, seed) for seed in range(3)))  # low_rank: 2.4
    found = judged(tmp_path, dense(), at("low_rank", 3.0), at("dyad_it", 2.0), known=losses)
    assert ranks(found.ranking)[:2] == [(1, "low_rank"), (2, "dyad_it")]
    assert found.ranking[0].notes == ("loses no less than without layers",)
    assert found.best is found.winner is found.kept is found.ranking[1] and not found.ties
    said = sentence(found)
    assert said.startswith("Take dyad_it: ") and "low_rank (3.00x) loses no less than without layers" in said
    alone = judged(tmp_path, dense(), at("low_rank", 3.0), known=losses)
    assert alone.best is None and "is worth its place here; low_rank reaches 3.00x" in sentence(alone)
    assert found.record()["best"] == "dyad_it" and alone.record()["winner"] is None
    beside = judged(tmp_path, dense(), at("low_rank", 4.0), narrow(3.0), at("dyad_it", 2.0), known=losses)
    assert "faster than any structure that keeps more" in sentence(beside)
    larger = known(tmp_path, *comparison(), *(row("removed", 2.39, s, replaced_params_share=0.3) for s in range(3)))
    assert (
        judged(tmp_path, dense(), at("low_rank", 3.0), known=larger).best is not None
    )  # a larger control shows nothing


def test_a_task_that_does_not_tell_dense_from_nothing_tells_no_loss(tmp_path: Path) -> None:
    for removed in ([], [row("removed", 2.0, seed) for seed in range(3)]):
        losses = known(tmp_path, *comparison(), *removed)
        assert losses.of("low_rank", 0.25, 0.25).loss is None
    assert "python -m bench train" in NONE.missing()["loss"]


def test_a_loss_holds_for_the_share_that_was_trained(tmp_path: Path) -> None:
    losses = known(tmp_path, *comparison(), *(row("removed", 2.6, seed) for seed in range(3)))
    assert losses.of("low_rank", 0.24, 0.25).loss and losses.of("low_rank", 0.5, 0.25).loss is None
    less = [row("removed", 2.6, seed) for seed in range(3)] + [row("blast", 2.2, 0, replaced_params_share=0.24)]
    losses = known(tmp_path, *comparison(), *less)  # one a little less than a quarter, the other a little more
    assert losses.of("blast", 0.284, 0.25).loss and losses.of("blast", 0.284, 0.3).loss is None


def test_a_rival_in_fewer_bits_loses_what_rounding_costs_the_trained_dense_network(tmp_path: Path) -> None:
    off = (1.03, 1.05, 1.04)
    rounded = [{"dense_int8_dynamic": 2.0 * by, "dense_bfloat16": 2.0} for by in off]
    rows = [row("dense", 2.0, seed, rounded=one) for seed, one in enumerate(rounded)]
    rows += [row("low_rank", 2.4, seed) for seed in range(3)] + [row("removed", 2.6, seed) for seed in range(3)]
    losses = known(tmp_path, *rows)
    eight, sixteen = (losses.of(name, 1.0, 0.25).loss for name in ("dense_int8_dynamic", "dense_bfloat16"))
    assert eight and eight.difference == pytest.approx(0.04, abs=1e-4) and eight.verdict == "worse"
    assert 0 < eight.low < eight.difference < eight.high
    assert sixteen and sixteen.difference == 0 and sixteen.verdict == "tie"
    assert losses.of("dense_int8_weights", 1.0, 0.25).loss is None  # not measured


def test_agreement_is_that_of_the_best_conversion_at_the_share(tmp_path: Path) -> None:
    from test_minilm import encoder

    found = qualities.read(inputs.read(saved(tmp_path, minilm=encoder()), qualities.KINDS).others)
    assert found.of("monarch", 0.5, 0.5).agreement == Agreement(pytest.approx(0.95), 0.5)  # type: ignore[arg-type]
    assert found.of("monarch", 0.1, 0.1).agreement is None


# -- files


def test_files_of_one_machine_are_merged_and_those_of_others_stand_beside(tmp_path: Path) -> None:
    files = {"results": document(dense(), at("btt", 2.0)), "mine": document(dense(rounds=5), at("mine", 3.0)),
             "other": document(dense(), at("btt", 3.9), run={"cpu": "Other"})}  # fmt: skip
    found = inputs.read(saved(tmp_path, **files), ())
    assert len(found.results.runs) == 2 and len(found.said) == 1
    assert found.said[0].endswith(
        "1 points and facts stand in several of them: python -m bench merge says what was kept"
    )
    asked = questions(found.results.rows)
    names = [ranks(verdict(found.results.rows, q).ranking) for q in asked if q.equal == PARAMS]
    assert names == [[(1, "mine"), (2, "btt"), (3, "dense")], [(1, "btt"), (2, "dense")]]
