"""What `python -m bench readme` writes between the markers of a README, from results made up here."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import dense, document, point, saved
from test_training_report import comparison, row
from test_training_report import document as trained

from bench.__main__ import main
from bench.answers import inputs, qualities
from bench.answers.qualities import KINDS, NONE, LossBeside, Qualities
from bench.report.drawing.words import TIMES
from bench.report.readme import answer, tables

README = "# A project\n\nBefore.\n\n<!-- answer -->\nold\n<!-- end of answer -->\n\nAfter.\n"
SPEEDS = {"low_rank": 3.6, "dyad_it": 3.0, "monarch": 2.0}


@pytest.fixture(autouse=True)
def nothing_committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qualities, "COMMITTED", tmp_path / "pictures")


def square(series: str, speed: float, width: int = 1024, mode: str = "forward", **info: Any) -> dict[str, Any]:
    at = {"in_features": width, "out_features": width, "mode": mode}
    return point(f"{series} @ params 0.25", speedup=(speed, speed * 0.99, speed * 1.01), **at, **info)


def sweep(scale: float = 1.0, *more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Both modes at one layer; in training everything is half as fast."""
    rows = list(more)
    for mode, slower in (("forward", 1.0), ("train", 0.5)):
        rows.append(dense(mode=mode))
        rows += [
            square(name, scale * slower * s, mode=mode, mixing_depth=i) for i, (name, s) in enumerate(SPEEDS.items())
        ]
        rows.append(square("dense_narrow", 3.8 * slower, mode=mode, control=True))
    return document(*rows, **changes)


def losses() -> dict[str, Any]:
    return trained([*comparison(), *(row("removed", 2.6, seed) for seed in range(3))])


def files(folder: Path, **documents: Any) -> inputs.Inputs:
    return inputs.read(saved(folder, **documents), KINDS)


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def run(folder: Path, *paths: Path, text: str = README) -> int:
    (folder / "README.md").write_bytes(text.encode())
    return main(["readme", *map(str, paths), "--into", str(folder / "README.md")])


def test_the_table_has_the_baseline_the_rival_the_fastest_what_keeps_most_and_dyad(tmp_path: Path) -> None:
    given = files(tmp_path, a=sweep(), b=sweep(0.9, run={"cpu": "Other CPU"}), training=losses())
    text, figure = answer.section(given.results, qualities.read(given.others))
    found = {line[0]: line[1:] for line in lines(text)[2:]}
    assert list(found) == ["baseline", "narrower", "fastest", "keeps most", "best trade", "DYAD"]
    assert found["fastest"][:4] == [
        "`low_rank`",
        "25 %",
        "3.2 to 3.6\N{MULTIPLICATION SIGN}",
        "1.6 to 1.8\N{MULTIPLICATION SIGN}",
    ]
    assert found["keeps most"][0] == found["DYAD"][0] == "`dyad_it`" and found["DYAD"][-1] == "1"
    assert found["fastest"][-1] == "never" and found["fastest"][4].startswith("+2")
    assert found["baseline"][1:5] == ["100 %", "1", "1", "0"]
    assert "on Made-up CPU and Other CPU. Loss: language gpt sotu" in text
    assert "as fast as any structure, or faster, in 4 of 4 comparisons" in text
    assert figure and figure.charts[0].series


def test_without_losses_the_table_says_so_and_names_no_structure_that_keeps_most(tmp_path: Path) -> None:
    text, figure = answer.section(files(tmp_path, a=sweep()).results, NONE)
    assert [line[0] for line in lines(text)[2:]] == ["baseline", "narrower", "fastest", "DYAD"]
    assert "not measured" in text and figure is None


def test_a_structure_that_is_disturbed_on_one_machine_is_not_the_fastest(tmp_path: Path) -> None:
    bad = [square("btt", 3.9), square("btt", 1.9, mode="train", flags=["load"])]
    text, _ = answer.section(files(tmp_path, a=sweep(1.0, *bad)).results, NONE)
    assert "`btt`" not in text


def test_the_command_fills_what_markers_there_are_and_then_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = saved(tmp_path, a=sweep(), training=losses())
    assert run(tmp_path, *paths) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# A project\n\nBefore.\n\n<!-- answer -->\n\n<!-- written by") and text.endswith("After.\n")
    assert "](pictures/quality.png)" in text and (tmp_path / "pictures/quality.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main(["readme", *map(str, paths), "--into", str(tmp_path / "README.md")]) == 0
    assert capsys.readouterr().out == "nothing changed\n"


def test_the_answer_of_recommend_is_that_of_the_line_shown(tmp_path: Path) -> None:
    [path] = saved(tmp_path, a=sweep())
    line = f"python -m bench recommend {path} --in 1024 --out 1024 --tokens 128 --params 25%"
    text = f"```bash\n{line}\n```\n<!-- recommend -->\n<!-- end of recommend -->\n"
    assert run(tmp_path, path, text=text) == 0
    assert "Take low_rank: 3.60 times faster" in (tmp_path / "README.md").read_text()


def test_the_long_tables_are_of_each_machine(tmp_path: Path) -> None:
    wide = [square("monarch", 0.9, 512), square("btt", 3.0, 512), square("btt", 0.9), square("low_rank", 2.0, 512)]
    given = files(tmp_path, a=sweep(1.0, *wide), b=sweep(run={"cpu": "Other CPU"}))
    text = tables.section(given.results)
    assert text.count("### ") == 2 and "### Made-up CPU" in text
    first = lines(text)
    assert first[0] == ["layer", "options at 0.25", "forward 0.25", "train 0.25"]
    assert first[2][:3] == ["`dense_narrow`", "`n_blocks=4`", f"3.8{TIMES}<br>3.8 to 3.8"]
    starts = {line[0]: line[1] for line in reversed(first) if len(line) == 3}
    assert starts["`monarch`"] == "1024" and starts["`btt`"] == "*none*" and starts["`low_rank`"] == "512 or less"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing\n", "has no markers, such as <!-- answer -->"),
        ("<!-- answer -->\n", "has 1 lines <!-- answer --> and 0 lines <!-- end of answer -->, must have one of each"),
        ("<!-- end of answer -->\n<!-- answer -->\n", "<!-- end of answer --> stands before <!-- answer -->"),
        ("<!-- recommend -->\n<!-- end of recommend -->\n", "shows no line python -m bench recommend"),
    ],
)
def test_a_readme_without_its_markers_is_refused_and_left_alone(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = saved(tmp_path, a=sweep())
    assert run(tmp_path, path, text=text) == 2
    assert message in capsys.readouterr().err and (tmp_path / "README.md").read_text() == text


def test_results_that_answer_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [path] = saved(tmp_path, a=document(dense()))
    assert run(tmp_path, path) == 2
    assert "nothing can be answered" in capsys.readouterr().err


def test_names_from_files_stay_words(tmp_path: Path) -> None:
    rows = [dense(), square("a|b<c>", 2.0)]
    text = tables.section(files(tmp_path, a=document(*rows, run={"cpu": "<b>*CPU*"})).results)
    assert "a&#124;b&#60;c&#62;" in text and "&#60;b&#62;&#42;CPU&#42;" in text and "<c>" not in text


def test_a_committed_training_run_counts_only_with_every_rate_at_full_length(tmp_path: Path) -> None:
    (tmp_path / "pictures/there").mkdir(parents=True)
    content = losses()
    rows = content["structures"]["rows"]
    for by_rate, counts in (([], False), ([{"lr": 0.003, "tune": 2.0, "loss": 2.0}], True)):
        for one in rows:
            one["by_rate"] = by_rate
        (tmp_path / "pictures/there/training.json").write_text(json.dumps(content))
        assert bool(qualities.given_or_committed(()).trained) == counts


def test_what_a_narrower_dense_layer_loses_is_told_task_by_task() -> None:
    def lost(difference: float) -> LossBeside:
        return LossBeside("a task", difference, difference - 0.02, difference + 0.02, "worse")

    class Known(Qualities):
        def narrowed(self, share: float) -> list[tuple[str, LossBeside, str, LossBeside]]:
            losses = {"one": (0.1, 0.3), "two": (0.2, 0.1), "a tie": (0.20, 0.21)}
            return [(task, lost(narrow), "btt", lost(own)) for task, (narrow, own) in losses.items()]

    assert answer._kept(Known(), 0.25) == (
        " On real data, after training it loses less than every structure on one (+10.0 %, the best structure, `btt`, "
        "+30.0 %), but more than `btt` on two (+20.0 % for +10.0 %)."
    )
    assert answer._kept(Qualities(), 0.25) == ""
