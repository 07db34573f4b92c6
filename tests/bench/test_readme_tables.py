"""The README's figure and results: written from results made up here, never measured."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up import dense, document, point, refusal, saved

from bench.__main__ import main
from bench.files.rows import read
from bench.report.readme import tables as readme_tables
from bench.report.readme import write as readme
from bench.report.readme.panels import panels

README = "# A project\n\nBefore.\n\n<!-- results -->\nold\n<!-- end of results -->\n\nAfter.\n"
PLACE = readme.PanelChoice("params=0.25", "forward", "float32", "cpu")

# series: speed-ups at width 512 and 1024
SPEEDS = {
    "low_rank @ params 0.25": (1.5, 3.4),
    "dyad_it @ params 0.25": (1.1, 2.5),
    "monarch @ params 0.25": (0.8, 3.0),
    "dyad_ot @ params 0.25": (1.2, 2.75),
}
RULES = {
    "monarch @ params 0.25": "as near as can be to 0.25 of dense's parameters: n_blocks=8",
    "low_rank @ params 0.25": "as near as can be to 0.25 of dense's parameters: rank = 64 at 512x512; 128 at 1024x1024",
}


def spread(median: float) -> tuple[float, float, float]:
    return median, median * 0.9, median * 1.1


def benchmarks(**where: Any) -> list[dict[str, Any]]:
    """Dense, four structures at a quarter and the narrowed dense, at two widths; `where` changes all of them."""
    made = []
    for i, width in enumerate((512, 1024)):
        here: dict[str, Any] = {"in_features": width, "out_features": width} | where
        made.append(dense(**here))
        made.append(point("dense by addmm", control=True, speedup=spread(0.9), params_share=1.0, **here))
        made += [point(series, speedup=spread(speeds[i]), **here) for series, speeds in SPEEDS.items()]
        narrow = {"control": True, "options": {}} | here
        made.append(point("dense_narrow @ params 0.25", speedup=spread(3.9), **narrow))
    return made


def results(folder: Path, *rows: dict[str, Any], **section: Any) -> Path:
    [path] = saved(folder, a=document(*rows, rules=RULES, **section))
    return path


def written(path: Path, place: readme.PanelChoice = PLACE) -> str:
    """What would stand between the markers, without drawing."""
    found = panels(read([path]))
    return readme.section(found, readme.chosen(found, place))


def lines(section: str) -> list[list[str]]:
    """The lines of the tables, cell by cell."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def run(folder: Path, path: Path, *options: str, text: str = README) -> int:
    (folder / "README.md").write_bytes(text.encode())
    return again(folder, path, *options)


def again(folder: Path, path: Path, *options: str) -> int:
    figure = folder / "drawn" / "figure.png"
    return main(["readme", str(path), "--into", str(folder / "README.md"), "--figure", str(figure), *options])


def test_the_command_writes_the_figure_and_the_tables_and_then_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results(tmp_path, *benchmarks())
    assert run(tmp_path, path) == 0
    files = [tmp_path / "README.md", tmp_path / "drawn" / "figure.png", tmp_path / "drawn" / "figure.svg"]
    said = capsys.readouterr().out
    assert all(str(file) in said for file in files) and all(file.is_file() for file in files)
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert again(tmp_path, path) == 0
    assert capsys.readouterr().out.endswith("nothing changed\n")
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["figure.png", "figure.svg"]

    text, png, svg = (content for content, _ in before)
    assert text.decode().startswith("# A project\n\nBefore.\n\n<!-- results -->\n\n<!-- written by")
    assert text.decode().endswith("|\n\n<!-- end of results -->\n\nAfter.\n") and b"old" not in text
    assert png.startswith(b"\x89PNG")
    drawn = ElementTree.fromstring(svg)
    assert float(drawn.attrib["width"]) <= 900
    shown = set(drawn.itertext())
    assert {"dyad_it", "dyad_ot", "low_rank", "monarch", "dense_narrow", "dense"} <= shown
    assert {"speed-up over dense", "time of a call"} <= shown
    assert not {word for word in shown if "addmm" in word or word.startswith(("FLOPs", "Parameters"))}


def test_the_same_results_draw_the_same_bytes(tmp_path: Path) -> None:
    found = read([results(tmp_path, *benchmarks())])
    panel = readme.chosen(panels(found), PLACE)
    assert readme.drawn(panel) == readme.drawn(panel)


def test_dyad_comes_first_then_the_fastest_and_controls_last(tmp_path: Path) -> None:
    made = lines(written(results(tmp_path, *benchmarks())))
    assert made[0] == ["structure", "options at 0.25", "parameters, % of dense", "forward 0.25"]
    order = ["`dyad_ot`", "`dyad_it`", "`low_rank`", "`monarch`", "`dense_narrow` (control)"]
    tables = [[line[0] for line in made[start : start + 5]] for start in (2, 9, 16)]
    assert tables == [order] * 3 and len(made) == 21
    assert made[2][1:] == ["`n_blocks=4` at 1024", "25", "2.8×<br>2.5 to 3.0"]  # noqa: RUF001


def test_break_even_is_a_measured_width_from_which_on_the_lower_quartile_is_above_1(tmp_path: Path) -> None:
    more = [point("monarch @ params 0.25", speedup=(1.5, 0.99, 1.6), in_features=2048, out_features=2048)]
    made = lines(written(results(tmp_path, *benchmarks(), *benchmarks(dtype="bfloat16", mode="train"), *more)))
    at = next(i for i, line in enumerate(made) if line[1] == "forward, 128 tokens, float32")
    assert made[at] == ["structure", "forward, 128 tokens, float32", "train, 128 tokens, bfloat16"]
    cells = {line[0]: line[1:] for line in made[at + 2 : at + 7]}
    assert cells["`monarch`"] == ["*none*", "1024"]
    assert cells["`low_rank`"] == ["512 or less", "512 or less"]


def test_a_short_rule_is_shown_and_otherwise_the_options_at_this_width(tmp_path: Path) -> None:
    made = {line[0]: line for line in lines(written(results(tmp_path, *benchmarks())))[:7]}
    assert made["`monarch`"][1] == "`n_blocks=8`"
    assert made["`low_rank`"][1] == "`n_blocks=4` at 1024"
    assert made["`dense_narrow` (control)"][1] == "none"


def test_modes_and_budgets_with_data_are_columns_and_absent_points_empty_cells(tmp_path: Path) -> None:
    square = {"in_features": 1024, "out_features": 1024}
    more = [
        point("monarch @ params 0.5", speedup=spread(1.6), params_share=0.504, **square),
        point("monarch @ params 0.125", speedup=spread(5.0), in_features=512, out_features=512),
        point("monarch @ flops 0.25", speedup=spread(2.2), **square),
        *[row for row in benchmarks(mode="train") if "dyad" not in row["extra_info"]["structure"]],
    ]
    made = lines(written(results(tmp_path, *benchmarks(), *more)))
    assert made[0][3:] == ["forward 0.5", "forward 0.25", "train 0.25"]
    cells = {line[0]: line[2:] for line in made[2:7]}
    assert cells["`monarch`"] == ["50.4 / 25", "1.6×<br>1.4 to 1.8", "3.0×<br>2.7 to 3.3", "3.0×<br>2.7 to 3.3"]  # noqa: RUF001
    assert cells["`dyad_it`"] == ["– / 25", "", "2.5×<br>2.2 to 2.8", ""]  # noqa: RUF001


def test_flagged_points_have_a_dagger_that_is_explained(tmp_path: Path) -> None:
    rows = benchmarks()
    assert "†" not in written(results(tmp_path, *rows))
    next(r for r in rows if r["extra_info"]["series"].startswith("monarch"))["extra_info"]["flags"] = ["load"]
    rows[-2]["extra_info"]["flags"] = ["noisy"]
    section = written(results(tmp_path, *rows))
    assert section.count("2.8× †<br>") == 1 and section.count(" % † |") == 2  # noqa: RUF001
    assert "† flagged when measured: load, noisy." in section


def test_structures_that_meet_no_share_are_listed_with_their_own(tmp_path: Path) -> None:
    own = {"params_share": 0.002, "flops_share": 0.06, "speedup": spread(8.0), "options": {}}
    more = [point("kronecker", **own), point("monarch", options={"n_blocks": 4})]
    section = written(results(tmp_path, *benchmarks(), *more, refused=[refusal("kronecker", "cannot")]))
    said = next(line for line in section.splitlines() if line.startswith("These meet none of the shares"))
    assert said.endswith(
        "options: `kronecker` (0.2 % of dense's parameters, 6 % of its FLOPs, at 1024): forward 8.0× (7.2 to 8.8)."  # noqa: RUF001
    )
    assert "These meet none" not in written(results(tmp_path, *benchmarks()))


def test_the_share_of_the_saving_that_arrives_stands_by_width(tmp_path: Path) -> None:
    rows = benchmarks()
    for row in rows:
        if row["extra_info"]["structure"] == "low_rank":
            row["extra_info"]["flops"] = 4000.0
    made = lines(written(results(tmp_path, *rows)))
    assert made[14] == ["structure", "512", "1024"]
    assert [line[1:] for line in made[16:19]] == [["30 %", "69 %"], ["28 %", "62 %"], ["no saving", "no saving"]]


def test_the_caption_says_where_when_and_with_what(tmp_path: Path) -> None:
    section = written(results(tmp_path, *benchmarks()))
    for said in ("at 1024 × 1024**", "128 tokens", "Made-up CPU; cpu, float32, 2 threads, host clock", "torch 2.13"):  # noqa: RUF001
        assert said in section
    assert "2031-02-03, commit 0123456789ab." in section and "not complete" not in section
    unfinished = results(tmp_path, *benchmarks(), run={"complete": False})
    assert "This run is not complete: points are missing." in written(unfinished)


def test_the_panel_is_that_of_most_structures_unless_chosen(tmp_path: Path) -> None:
    few = [dense(tokens=1), point("monarch @ params 0.25", tokens=1)]
    path = results(tmp_path, *benchmarks(), *few)
    assert "128 tokens" in written(path)
    asked = readme.PanelChoice("params=.25", "forward", "float32", "cpu", tokens=1)
    assert "1 token," in written(path, asked)


HOSTILE = [
    "a|b",
    "a`b`c",
    "<!-- end of results -->",
    "<img src=x onerror=alert(1)>",
    "[a](https://example.org)",
    "**a** _b_ ~~c~~ $d$ @e #1",
    "&lt;script&gt;",
    "back\\slash",
    "x" * 300,
]


def test_text_from_results_is_shown_and_never_markup(tmp_path: Path) -> None:
    rows = []
    for name in HOSTILE:
        options = {"structure": name, "series": name, "options": {name: "a|b\n<b>"}, "flags": [name]}
        rows += [point(**options, budget="params=0.25"), point(**options | {"structure": name + "!", "budget": None})]
    run_facts = {"cpu": "CPU |\n\n# <b>`x`", "allocator": "<!-- results -->", "commit": "`|<"}
    section = written(results(tmp_path, dense(), *rows, run=run_facts))
    without = re.sub(r"`[^`|<>\\]+`", "", section.replace(readme_tables.GENERATED, "").replace("<br>", ""))
    assert not set("<>\\[]$@~`") & set(without)
    assert without.count("&") == without.count("&#") and "_b_" not in without and without.count("**") == 6
    made = lines(section)
    assert {len(line) for line in made[: 2 + len(HOSTILE)]} == {4}
    assert {len(line) for line in made[2 + len(HOSTILE) :]} == {2}
    assert not [line for line in section.splitlines() if line.startswith("#")]
    assert max(len(line[0]) for line in made) < 250


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("dyad_it", "`dyad_it`"),
        ("theta=[0.5, 0.25]", "`theta=[0.5, 0.25]`"),
        ("a|b", "a&#124;b"),
        ("a`", "a&#96;"),
        ("two\nlines", "`two lines`"),
        ("_a_b_", "`_a_b_`"),
        ("_é_b", "&#95;é&#95;b"),
    ],
)
def test_a_name_is_code_where_nothing_in_it_could_end_that(value: str, shown: str) -> None:
    assert readme_tables.code(value) == shown


WRONG = {
    "another budget": (
        ["--budget", "params=0.3"],
        README,
        "no panel with budget params=0.3, mode forward, dtype float32",
    ),
    "what there is": (
        ["--tokens", "7"],
        README,
        "hold params=0.25 forward float32 cpu (2 threads, host clock) at tokens 128",
    ),
    "another mode": (["--mode", "backward"], README, "no panel with budget params=0.25, mode backward"),
    "no budget": (["--budget", "quarter"], README, "--budget: 'quarter' is not a share of dense"),
    "no marker": ([], "# A project\n", "README.md: has 0 lines <!-- results --> and 0 lines <!-- end of results -->"),
    "one marker": ([], "<!-- results -->\n", "has 1 lines <!-- results --> and 0 lines <!-- end of results -->, must"),
    "two sections": ([], README + README, "has 2 lines <!-- results --> and 2 lines <!-- end of results -->"),
    "swapped": (
        [],
        "<!-- end of results -->\n<!-- results -->\n",
        "<!-- end of results --> stands before <!-- results",
    ),
    "within a line": ([], "see <!-- results --> and <!-- end of results -->\n", "has 0 lines <!-- results -->"),
}


@pytest.mark.parametrize(("options", "text", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_written(
    options: list[str], text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, results(tmp_path, *benchmarks()), *options, text=text) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == text and not (tmp_path / "drawn").exists()


def test_a_file_without_budgets_or_squares_is_refused(tmp_path: Path) -> None:
    with pytest.raises(readme.UsageError, match="the results hold none at equal cost"):
        written(results(tmp_path, dense(), point("monarch")))
    with pytest.raises(readme.UsageError, match="holds no square layer with a speed-up over dense"):
        written(results(tmp_path, dense(out_features=512), point(out_features=512)))


def test_panels_of_two_clocks_are_told_apart_by_an_option(tmp_path: Path) -> None:
    rows = [row for clock in ("host", "device") for row in (dense(clock=clock), point(clock=clock))]
    path = results(tmp_path, *rows)
    with pytest.raises(
        readme.UsageError,
        match=r"2 panels fit: Made-up CPU, 2 threads, device clock; .*host clock; choose by --threads",
    ):
        written(path)
    assert "device clock" in written(
        path, readme.PanelChoice("params=0.25", "forward", "float32", "cpu", clock="device")
    )


def test_a_readme_or_figure_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results(tmp_path, *benchmarks())
    assert again(tmp_path, path) == 2
    assert "README.md: cannot be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert again(tmp_path, path) == 2
    assert "README.md: is not UTF-8" in capsys.readouterr().err
    assert main(["readme", str(path), "--into", "README.md", "--figure", "figure.svg"]) == 2
    assert "--figure: 'figure.svg' must end in .png" in capsys.readouterr().err
    (tmp_path / "drawn" / "figure.svg").mkdir(parents=True)
    assert run(tmp_path, path) == 2
    assert "figure.svg: cannot be written: it is there and is not a plain file" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == README
    assert [file.name for file in (tmp_path / "drawn").iterdir()] == ["figure.svg"]


def test_line_endings_of_the_readme_are_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(README.replace("\n", "\r\n").encode())
    text = readme.replaced(tmp_path / "README.md", "one\ntwo")
    assert text == README.replace("old", "\none\ntwo\n").replace("\n", "\r\n")


def test_several_files_of_one_machine_are_one_table(tmp_path: Path) -> None:
    paths = saved(tmp_path, a=document(*benchmarks()), b=document(*benchmarks(mode="train")))
    found = panels(read(paths))
    assert lines(readme.section(found, readme.chosen(found, PLACE)))[0][3:] == ["forward 0.25", "train 0.25"]
    assert json.loads(paths[0].read_text())["structures"]["schema"] == 1
