"""The section of training runs: noise, ties, exponents and claims of made-up rows whose truth is known."""

from __future__ import annotations

import copy
import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from test_report import saved, small

from bench.__main__ import main
from bench.answers import losses
from bench.files import kinds, training_rows
from bench.files.errors import UsageError
from bench.files.fields import Fields
from bench.report.readme import training as readme_training
from bench.report.training import claims, fronts, tables
from bench.training.settings import TASKS, THETAS
from structures.algebra.taxonomy import seven_axes

RUN = small()["structures"]["run"]
SETTING = "language gpt sotu characters feed-forward"


def row(structure: str, loss: float | None, seed: int = 0, width: int = 128, **changes: Any) -> dict[str, Any]:
    control = structure in ("dense", "dense_narrow", "removed")
    budget = None if structure in ("dense", "removed") else "params=0.25"
    share = {"dense": 1.0, "removed": 0.0}.get(structure, 0.25)
    flops = 6.0 * 12 * width**2
    plain = {
        "setting": SETTING, "setting_key": "abc", "structure": structure, "way": "control" if control else "structure",
        "series": structure + (f" @ {budget}" if budget else ""), "budget": budget, "phase": "train",
        "task": "language", "model": "gpt", "layers": "ff", "data": "sotu", "options": {}, "width": width, "seed": seed,
        "lr": 0.003, "rate_at_end": False, "steps": 100, "tokens_per_step": 512, "loss": loss,
        "reason": None if loss else "the loss is not finite at step 3 of 100", "status": "ok" if loss else "diverged",
        "curve": [[0, 4.0], [100, loss]] if loss else [[0, 4.0]], "params": 12 * width**2, "train_flops": flops,
        "executed_train_flops": flops,
        **{key: share for key in training_rows.SHARES},
    }  # fmt: skip
    made = plain | changes
    return {**made, "key": "-".join(str(made[k]) for k in ("phase", "setting", "series", "width", "seed"))}


def time_row(structure: str, median: float) -> dict[str, Any]:
    speedup = {"median": median, "q1": median * 0.98, "q3": median * 1.02, "rounds": 5}
    own = {"phase": "time", "speedup": speedup, "step_seconds": 0.1 / median, "dense_seconds": 0.1, "flags": []}
    return row(structure, 1.0, **own)


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    section = {"schema": 1, "kind": "training", "run": copy.deepcopy(RUN), "setup": {"data": {}}, "rows": rows}
    return {"structures": section | {"refused": []}}


def comparison() -> list[dict[str, Any]]:
    """Seeds vary by 1 %; low_rank is truly 20 % worse, dyad_it as good as dense, btt diverged."""
    generator = random.Random(0)
    rows = [row("dense", 2.0 * math.exp(generator.gauss(0, 0.01)), seed) for seed in range(5)]
    rows += [row("dense_narrow", 2.2 * math.exp(generator.gauss(0, 0.01)), seed) for seed in range(5)]
    return [*rows, row("dyad_it", 2.01), row("low_rank", 2.4), row("btt", None)]


def read(rows: list[dict[str, Any]], folder: Path) -> list[training_rows.TrainingRun]:
    [path] = saved(folder, document(rows))
    file = kinds.parse(str(path), json.loads(path.read_text()), ("training",))
    return training_rows.read(file.rows)[0]


def test_differences_within_the_noise_are_ties(tmp_path: Path) -> None:
    runs = read(comparison(), tmp_path)
    known = losses.noise(runs)
    assert known is not None and known.freedom == 8 and 0.005 < known.deviation < 0.02
    [results] = losses.results(runs).values()
    by_name = {r.first.structure: r for r in results}
    assert by_name["dyad_it"].verdict == "tie" and by_name["low_rank"].verdict == "worse"
    assert by_name["dense_narrow"].verdict == "worse"
    assert (
        (by_name["dyad_it"].best, by_name["dyad_it"].last) == (by_name["dense"].best, by_name["dense"].last) == (1, 2)
    )
    assert by_name["low_rank"].best == 4
    assert by_name["btt"].loss is None and by_name["btt"].diverged == 1 and results[-1] is by_name["btt"]
    assert "a tie" in claims.difference(by_name["dyad_it"])
    assert "a tie" not in claims.difference(by_name["low_rank"])


LEVELS = (1.0, 3.0, 9.0)  # of three tasks, drawn by three seeds
NOISE = (1.00, 1.01, 0.99)


def drawn(paired: bool) -> losses.Result:
    """A structure that is 10 % worse than dense on each of the three tasks."""
    rows = [row("dense", level, s, paired=paired) for s, level in enumerate(LEVELS)]
    rows += [row("low_rank", 1.1 * NOISE[s] * level, s, paired=paired) for s, level in enumerate(LEVELS)]
    runs = [training_rows._run(Fields("made up", f)) for f in rows]
    [results] = losses.results(runs).values()
    return next(r for r in results if r.first.structure == "low_rank")


def test_pairs_remove_what_the_task_adds() -> None:
    paired, apart = drawn(True), drawn(False)
    assert paired.difference == pytest.approx(0.1, abs=1e-3) and paired.verdict == "worse"
    assert apart.difference == pytest.approx(0.1, abs=1e-3) and apart.verdict == "tie"
    assert paired.told and apart.told and paired.told < 0.1 < apart.told


def test_a_task_says_what_it_shows_and_from_which_difference_on(tmp_path: Path) -> None:
    runs = read(comparison(), tmp_path)
    [results] = losses.results(runs).values()
    noise, power, shows = tables.telling(losses.noise(runs), results)
    narrow = next(r for r in results if r.first.structure == "dense_narrow")  # of five seeds, all others of one
    assert narrow.told and "or more would be detected four times in five" in power
    assert f"{narrow.told * 100:.2g} %" not in power
    assert "over 8 degrees" in noise and "rank and mixing in a whole" in shows and "does not show how longer" in shows
    assert tables.telling(None, losses.results([run for run in runs if run.seed == 0]).popitem()[1])[1:] == [shows]
    read_me = (Path(training_rows.__file__).parents[1] / "training" / "README.md").read_text()
    assert all(f"| {shown} | {hidden} |" in read_me for shown, hidden in tables.SHOWS.values())
    assert set(tables.SHOWS) == set(TASKS)


def test_a_paired_interval_is_students_of_the_differences() -> None:
    """Two series alone: the classical t test of their differences."""
    from scipy import stats

    found = drawn(True)
    differences = [math.log(1.1 * n) for n in NOISE]
    low, high = stats.t.interval(0.95, 2, loc=sum(differences) / 3, scale=stats.sem(differences))
    assert found.interval == pytest.approx((math.expm1(low), math.expm1(high)), rel=1e-6)
    # of the size told, the estimate falls short of the margin in one run of five
    assert found.margin and found.told
    error = float(stats.sem(differences))
    assert stats.t.cdf((math.log1p(found.told) - found.margin) / error, 2) == pytest.approx(losses.POWER)


def test_the_neighbouring_rate_stands_beside(tmp_path: Path) -> None:
    tried = [{"lr": 0.001, "tune": 3.0, "loss": 2.2}, {"lr": 0.003, "tune": 2.0, "loss": 2.0},
             {"lr": 0.01, "tune": None, "loss": None}]  # fmt: skip
    [[found]] = losses.results(read([row("dense", 2.0, by_rate=tried)], tmp_path)).values()
    assert found.neighbour == (0.001, pytest.approx(0.1))
    assert tables._cells(found, {})["Rate"] == ("0.003", "0.001: +10.0 %")


def test_equal_structures_are_seldom_told_apart() -> None:
    """The interval keeps its level: of many made-up tables without any difference, few show one."""
    generator = random.Random(1)
    told_apart = 0
    for _ in range(100):
        some = [("dense", s) for s in range(3)] + [("dense_narrow", s) for s in range(3)]
        some += [(f"dyad_{k}", 0) for k in range(8)]
        fields = [row(name, math.exp(generator.gauss(0, 0.02)), seed) for name, seed in some]
        runs = [training_rows._run(Fields("made up", f)) for f in fields]
        [results] = losses.results(runs).values()
        told_apart += any(r.verdict in ("better", "worse") for r in results)
    assert told_apart <= 12  # 5 expected; 13 or more in less than 1 of 500 such tests


def test_one_seed_each_ranks_nothing(tmp_path: Path) -> None:
    [results] = losses.results(read([row("dense", 2.0), row("dyad_it", 1.0)], tmp_path)).values()
    assert {r.verdict for r in results} == {"not known"} and all(r.best is None for r in results)
    assert "no seeds" in claims.difference(results[0])


def test_exponents_are_those_the_losses_were_made_with(tmp_path: Path) -> None:
    generator = random.Random(2)
    rows = []
    for name, slope in (("dense", 0.3), ("low_rank", 0.1)):
        for width in (64, 128, 256, 512):
            at = row(name, 1.0, width=width)
            loss = 10 * (at["train_flops"] * 512 * 100) ** -slope * math.exp(generator.gauss(0, 0.002))
            rows.append(at | {"curve": [[0, 90.0], [50, 2 * loss], [100, loss]], "loss": loss})
    found = {f.structure: f for f in fronts.fronts(read(rows, tmp_path))}
    for name, slope in (("dense", 0.3), ("low_rank", 0.1)):
        front = found[name]
        assert front.exponent == pytest.approx(slope, abs=0.01) and front.low < slope < front.high
        assert front.widths == len(front.points) == 4  # the ends of runs alone
        assert all(a[1] > b[1] for a, b in zip(front.points, front.points[1:], strict=False))


def claimed(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What is said of each kind of measure, of made-up rows."""
    runs, times = training_rows.read([Fields("made up", r) for r in rows])
    results, fitted = losses.results(runs), fronts.fronts(runs)
    found = claims.claims(results, times, fitted)
    assert all(one.source and one.scale and one.figure and one.untested for one in found)
    assert claims.markdown(found).count("\n") == len(found) + 1
    asked = [one["measure"]["what"] for one in json.loads(claims.FILE.read_text())]
    return {what: list(one.measured) for what, one in zip(asked, found, strict=True)}


def test_claims_say_what_was_measured_and_no_more() -> None:
    said = claimed([*comparison(), time_row("dyad_it", 1.07)])
    [line] = said["time"]
    assert line == f"{SETTING}, width 128, params=0.25: speed of a step beside dense's: dyad_it 1.07x (1.05 to 1.09)"
    assert said["quality"] == said["widths"] == said["blocks"] == said["order"] == [claims.NOTHING]


def test_variants_whose_steps_take_the_same_time_are_compared_at_equal_time() -> None:
    """IT and OT within the quartiles; DT's step takes a third longer, and its loss is 20 % higher."""
    losses = {"dense": 2.0, "dyad_it": 2.2, "dyad_ot": 2.205, "dyad_dt": 2.64}
    rows = [row(name, loss + seed / 100, seed) for name, loss in losses.items() for seed in range(3)]
    times = [time_row("dyad_it", 1.5), time_row("dyad_ot", 1.53), time_row("dyad_dt", 1.125)]
    own = [line for line in claimed([*rows, *times])["equal time"] if "equal time" in line or "in equal steps" in line]
    assert own == [
        f"{SETTING}, width 128: dyad_it in equal time a tie with dyad_ot (its step takes 1.02 times as long, 0.98 to "
        "1.06); dyad_it in equal steps -16.6 % beside dyad_dt (its step takes 0.75 times as long, 0.72 to 0.78: equal "
        "time allows +33 % steps); dyad_ot in equal steps -16.4 % beside dyad_dt (its step takes 0.74 times as long, "
        "0.71 to 0.77: equal time allows +36 % steps)"
    ]


def test_quality_is_what_is_learned_beyond_the_best_constant() -> None:
    own = {"setting": "teacher", "task": "teacher"}
    rows = [row("dense", 0.2, seed, **own) for seed in range(2)] + [row("dyad_it", 0.4, **own)]
    assert claimed(rows)["quality"] == ["teacher, width 128, params=0.25: share of what dense learns: dyad_it 75 %"]


def test_numbers_of_blocks_and_widths_stand_in_order() -> None:
    rows = [row("dense", 2.0 + seed / 1000, seed, width) for seed in range(2) for width in (64, 256, 128)]
    rows += [row("dyad_it", 2.2, 0, width) for width in (256, 64)]
    rows += [row("dyad_it", 2.0 + n / 100, series=f"dyad_it n_blocks={n}", budget=None, replaced_params_share=2 / n,
                 options={"128x128": {"n_blocks": n}}) for n in (16, 4, 8)]  # fmt: skip
    said = claimed(rows)
    assert "4 blocks (50 %): +2.0 %, 8 blocks (25 %): +4.0 %, 16 blocks (12.5 %): +8.0 %" in said["blocks"][0]
    assert said["widths"] == [f"{SETTING}: dyad_it @ params=0.25: +10.0 % at width 64, +10.0 % at width 256"]


def test_members_of_the_claim_are_those_that_are_trained_with_their_exponents() -> None:
    [asked] = [one["measure"] for one in json.loads(claims.FILE.read_text()) if one["measure"]["what"] == "order"]
    wanted = {",".join(map(str, theta)): seven_axes(theta) for theta in THETAS}
    assert asked["members"].keys() == wanted.keys()
    for theta, axes in asked["members"].items():
        assert tuple(axes.values()) == pytest.approx(wanted[theta], abs=1e-4)


def test_members_are_ordered_by_what_they_share_and_their_rank() -> None:
    """Exponents are those that the losses were made with, so the order is known."""
    thetas = {"0.5,0,0.5,0,0.5,0.5,0": 0.3, "0.5,0.5,0,0.5,0.5,0,0": 0.1, "1,0,0,0,1,0,0.5": 0.2}
    rows = [
        row("einsum", (6 * 12 * width**2) ** -slope, seed, width, series=f"einsum theta=[{theta}]", budget=None)
        for theta, slope in thetas.items() for seed in range(2) for width in (64, 128, 256)
    ]  # fmt: skip
    [line] = claimed(rows)["order"]
    assert "3 members: omega 0, psi 1: 0.300" in line and "omega 0, psi 0.5: 0.200" in line
    assert "omega 0.5, psi 1: 0.100" in line and "exponent and omega -0.82" in line


def whole() -> list[dict[str, Any]]:
    """Everything that has a chart: three widths, times, numbers of blocks and a mix."""
    widths = {128: 1.0, 256: 0.9, 512: 0.8}
    rows = [
        r | {"width": w, "train_flops": 72.0 * w**2, "loss": r["loss"] and r["loss"] * less}
        for w, less in widths.items() for r in comparison()
    ]  # fmt: skip
    for r in rows:
        losses = [[step, (r["loss"] or 1) * (100 / step) ** 0.2] for step in (25, 50, 100)]
        r["curve"] = [[0, 4.0], *(losses if r["loss"] else [])]
    times = [time_row("dyad_it", 1.3), time_row("dense_narrow", 1.6)]
    own = {"setting": "blocks", "setting_key": "b", "task": "blocks", "budget": None}
    blocks = [row("dense", 2.0 + seed / 100, seed, **own) for seed in range(3)]
    blocks += [
        row("dyad_it", 2.0 + n / 100, series=f"dyad_it n_blocks={n}", **own | {"replaced_params_share": 2 / n})
        for n in (4, 8, 16)
    ]
    blocks += [row("dyad_it+dyad_ot", 2.1, series="dyad_it+dyad_ot n_blocks=8", **own)]
    return [*rows, *times, *blocks]


def test_a_file_makes_a_page_figures_and_a_table(tmp_path: Path) -> None:
    [path] = saved(tmp_path, document(whole()))
    out = tmp_path / "report"
    assert main(["report", str(path), "-o", str(out)]) == 0
    text = (out / "index.html").read_text()
    for said in ("dyad_it @ params=0.25", "a tie", "1 diverged", "degrees of freedom", "Published claims",
                 "Loss beside dense&#39;s", "Loss while training against FLOPs", "Exponents",
                 "Loss against the number of blocks", "100 steps of 512 tokens", "Dense&#39;s loss was still falling",
                 ):  # fmt: skip
        assert said in text, said
    with (out / "training.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    ends = [line for line in lines if line["series"] == "dyad_it @ params=0.25" and line["end"] == "True"]
    assert [float(line["loss"]) for line in ends] == pytest.approx([2.01, 2.01 * 0.9, 2.01 * 0.8])
    assert float(ends[0]["seconds"]) == pytest.approx(100 * 0.1 / 1.3)  # dense's step, over the paired ratio


def test_a_run_says_how_long_it_was_and_what_it_cannot_say(tmp_path: Path) -> None:
    curve = [[0, 4.0], [20, 2.5], [40, 2.0]]
    rows = [row("dense", 2.0, seed, curve=curve, steps=40) for seed in range(3)]
    rows[1] |= {"loss": 2.02}
    rows += [row("removed", 1.9, seed, curve=[[0, 4.0], [40, 1.9]], steps=40) for seed in range(3)]
    [several] = losses.results(read(rows, tmp_path)).values()
    assert "40 steps of 512 tokens; over the last half of them dense's loss changed by" in tables.how_long(several)
    short, removed = tables.warnings(several)
    assert "still falling (20.0 % over" in short and "ends below dense's loss" in removed
    settled = [r | {"curve": [[0, 4.0], [20, 2.0], [40, r["loss"]]]} for r in rows if r["structure"] == "dense"]
    [several] = losses.results(read(settled, tmp_path)).values()
    assert tables.warnings(several) == []


def test_the_readme_shows_the_tasks_that_tell_something(tmp_path: Path) -> None:
    away = [row("removed", 3.0, seed, width) for seed in range(3) for width in (128, 256, 512)]
    text, figure = readme_training.section([parsed(document([*whole(), *away]), tmp_path)])
    assert "| `dyad_it` | tie, +" in text and "`dense_narrow` (control)" in text and "still falling" in text
    assert figure and figure.name == "training"
    few = [r for r in whole() if r["seed"] == 0 and r["phase"] == "train"]
    for rows in (few, whole()):  # one seed alone; no control without the layers
        with pytest.raises(UsageError, match="no structure beside dense at equal parameters with several seeds"):
            readme_training.section([parsed(document(rows), tmp_path)])


def parsed(content: dict[str, Any], folder: Path) -> kinds.File:
    [path] = saved(folder, content)
    return kinds.parse(str(path), json.loads(path.read_text()), (kinds.TRAINING,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"curve": [[0, -1.0]]}, "curve"),
        ({"layers": "some"}, "layers"),
        ({"setting_key": "other"}, "trained in two ways"),
        ({"train_flops": None}, "train_flops"),
    ],
)
def test_a_bad_row_is_named(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = saved(tmp_path, document([row("dense", 2.0), row("dyad_it", 2.0) | changes]))
    assert main(["report", str(path), "-o", str(tmp_path / "report")]) == 2
    assert said in capsys.readouterr().err
