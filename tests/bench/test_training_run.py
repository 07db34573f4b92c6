"""`python -m bench train`: smoke runs of every task, the rows they write, and what is refused before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main

torch = pytest.importorskip("torch")

SHORT = "--structures dyad_it --rates 0.004 --tune-steps 2 --steps 4 --held-out 256 --seeds 1 --only losses".split()
DIGITS = 1e-4  # rows have five digits
TINY = {
    "regression": ["--widths", "64"],
    "images": ["--precision", "bfloat16", "--accumulate", "2"],
    "language": [],
    "distil": ["--teacher-steps", "4"],
    "blocks": ["--structures", "dyad_it+dyad_ot:n_blocks=8"],
}


def section(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["structures"]
    return found


@pytest.mark.parametrize("task", TINY)
def test_every_task_trains_and_says_what_it_took(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    assert main(["train", task, "--scale", "smoke", *SHORT, *TINY[task], "-o", str(path)]) == 0
    held = section(path)
    assert held["kind"] == "training" and held["run"]["complete"]
    rows = [row for row in held["rows"] if row["phase"] == "train"]
    named = {row["structure"] for row in rows}
    assert {"dense", "dense_narrow"} <= named and any("dyad_it" in name for name in named)
    assert ("removed" in named) == (task != "distil")
    assert len([row for row in rows if row["structure"] == "dense" and row["width"] == rows[0]["width"]]) == 3
    for row in rows:
        assert row["status"] == "ok" and row["loss"] == row["curve"][-1][1] and row["curve"][0][0] == 0
        assert len(row["data_sha256"]) == 64 and row["versions"]["torch"] == torch.__version__
        assert row["config"]["seed"] == row["seed"] and row["key"] and row["lr"] > 0
        share = row["replaced_params_share"]
        assert share == 1 if row["structure"] == "dense" else share < 0.62
        assert row["params"] >= row["replaced_params"] and row["train_flops"] == pytest.approx(
            3 * row["flops"], rel=DIGITS
        )
    assert not [file for file in tmp_path.iterdir() if file != path]  # no checkpoint is left
    assert "left]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("regresion", "regression, images, language, distil, blocks, all"),
        ("regression --scale tiny", "smoke, standard, long"),
        ("regression --structures monach", "did you mean 'monarch'"),
        ("regression --structures dyad_it+nothing", "'nothing' is not known"),
        ("regression --structures dyad_it:blocks=4", "n_blocks"),
        ("regression --budget memory=0.5", "params, flops, time"),
        ("regression --budget params=2", "params=0.5,0.25"),
        ("regression --model gpt", "mlp"),
        ("images --model gpt", "mixer"),
        ("language --layers some", "ff, all"),
        ("language --tokenizer words", "characters, bytes, bpe"),
        ("language --tokenizer bpe", "bpe:1024"),
        ("language --widths 33", "multiple of 8"),
        ("language --length 8", "grammar test has sentences of"),
        ("regression --shard 3/2", "K from 1 to N"),
        ("regression --rates fast", "learning rate"),
        ("regression --batch 7 --accumulate 2", "multiple of 2"),
        ("images --data nothing", "fashion-mnist"),
        ("images --data python-topics", "holds text"),
        ("language --data digits", "holds images"),
        ("regression --data digits", "regression learns a random network"),
        ("images --data teacher", "is not allowed for images"),
        ("regression --only some", "both, times, losses"),
        ("regression --parallel rpc", "ddp, fsdp"),
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
    assert main(["train", "images", "--scale", "standard", "-o", str(tmp_path / "rows.json")]) == 2
    assert "python -m bench data fetch fashion-mnist" in capsys.readouterr().err
