"""`python -m bench train`: smoke runs of every task, the rows they write, and what is refused before any training."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.answers import losses
from bench.files import encoder, kinds, training_rows
from bench.files.vocabulary import FEWER_BITS

torch = pytest.importorskip("torch")

from bench.training import encoder as activations  # noqa: E402

SHORT = "--structures dyad_it --rates 0.003,0.01 --steps 4 --held-out 256 --only losses".split()
DIGITS = 1e-4  # rows have five digits


def section(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["structures"]
    return found


@pytest.mark.parametrize("task", ["teacher", "facts", "language", "encoder"])
def test_every_task_trains_and_says_what_it_took(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "TRAIN", 1024)  # tokens that go through the encoder: half a minute for 24000
    if task == "encoder" and not (find_spec(encoder.PACKAGE) and find_spec("transformers")):
        pytest.skip("the encoder's package is not installed")
    path = tmp_path / "rows.json"
    assert main(["train", task, "--scale", "smoke", *SHORT, "-o", str(path)]) == 0
    held = section(path)
    assert held["kind"] == "training" and held["run"]["complete"]
    rows = held["rows"]
    assert {row["series"] for row in rows} == {
        "dense",
        "dense_narrow @ params=0.25",
        "removed",
        "dyad_it @ params=0.25",
    }
    assert {row["seed"] for row in rows} == {0, 1}
    for row in rows:
        assert row["loss"] == (row["curve"][-1][1] if row["status"] == "ok" else None) and row["curve"][0][0] == 0
        assert len(row["data_sha256"]) == 64 and row["versions"]["torch"] == torch.__version__
        assert row["config"]["seed"] == row["seed"] and row["key"] and row["lr"] > 0
        assert len(row["by_rate"]) >= 2 and row["loss"] in [tried["loss"] for tried in row["by_rate"]]
        assert set(row.get("rounded", ())) == (set(FEWER_BITS) if row["structure"] == "dense" else set())
        assert all(loss == pytest.approx(row["loss"], rel=0.02) for loss in row.get("rounded", {}).values())
        share = row["replaced_params_share"]
        assert share == 1 if row["structure"] == "dense" else share < 0.62
        assert row["params"] >= row["replaced_params"] and row["train_flops"] == pytest.approx(
            3 * row["flops"], rel=DIGITS
        )
    runs, _ = training_rows.read(kinds.parse("rows.json", json.loads(path.read_text()), (kinds.TRAINING,)).rows)
    [compared] = losses.results(runs).values()
    assert len(compared) == 4 and sum(c.told is not None for c in compared) >= 1
    assert not [file for file in tmp_path.iterdir() if file != path]  # no checkpoint is left
    assert "left]" in capsys.readouterr().out


def test_steps_are_timed_beside_dense(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    assert main(["train", "facts", "--scale", "smoke", *SHORT[:-1], "times", "-o", str(path)]) == 0
    rows = section(path)["rows"]
    assert [row["structure"] for row in rows] == ["dense_narrow", "removed", "dyad_it"]
    assert all(row["phase"] == "time" and row["step_seconds"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("regresion", "encoder, teacher, facts, language, all"),
        ("teacher --scale tiny", "smoke, standard, claims, full"),
        ("language --scale claims", "has no setting of language: teacher have"),
        ("teacher --structures monach", "did you mean 'monarch'"),
        ("teacher --structures dyad_it+nothing", "'nothing' is not known"),
        ("teacher --structures dyad_it:blocks=4", "n_blocks"),
        ("teacher --budget memory=0.5", "params, flops"),
        ("teacher --budget params=2", "params=0.5,25%"),
        ("language --layers some", "ff, all"),
        ("language --tokenizer words", "characters, bytes, bpe"),
        ("language --tokenizer bpe", "bpe:1024"),
        ("language --widths 33", "multiple of 8"),
        ("encoder --widths 256", "a width of 384"),
        ("teacher --shard 3/2", "K from 1 to N"),
        ("teacher --rates fast", "learning rate"),
        ("facts --batch 1000", "more than the 512 keys"),
        ("language --data nothing", "python-topics"),
        ("encoder --data layer:6", "is not allowed for encoder"),
        ("teacher --data sotu", "is not allowed for teacher"),
        ("teacher --only some", "both, times, losses"),
    ],
)
def test_what_is_not_allowed_is_refused_before_any_training(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    scale = [] if "--scale" in words else ["--scale", "smoke"]
    assert main(["train", *words.split(), *scale, "-o", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.startswith("error:") and complaint.count("\n") == 1
    assert not path.exists()


def test_missing_data_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRUCTURES_DATA", str(tmp_path / "nothing"))
    assert main(["train", "language", "--scale", "full", "-o", str(tmp_path / "rows.json")]) == 2
    assert "python -m bench data fetch sotu" in capsys.readouterr().err
