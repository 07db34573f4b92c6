"""What the README shows runs, and what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import processes
import pytest
from bench_runs import QUICK, STILL, environment

import structures
from bench.__main__ import main
from structures import registry
from structures.__main__ import table

ROOT = Path(__file__).parent.parent
README, STRUCTURES, SPACE = (
    (ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in (".", "structures", "structures/space")
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def in_a_folder_with_the_yaml(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_added", {})


@pytest.mark.parametrize("block", [block for text in (README, SPACE) for block in blocks("python", text)])
def test_every_python_block_runs(block, in_a_folder_with_the_yaml, capsys):
    exec(compile(block, "a block of a README", "exec"), {})


def test_the_answer_shown_is_what_the_command_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (line,) = re.findall(r"(?m)^python -m bench (recommend bench/.*)", README)
    assert main(line.split()) == 0
    assert capsys.readouterr().out.strip() == blocks("text")[0].strip(), "run: python -m bench readme --into README.md"


# what makes a line of a sweep short enough for a test
SHORT = ["--widths=64", "--tokens=4", "--mode=forward", "--dtypes=float32", "--budget=params=0.25", "--no-controls",
         "--threads=1"]  # fmt: skip


def test_every_line_from_a_structure_to_its_place_in_the_picture_runs(in_a_folder_with_the_yaml, tmp_path):
    lines = [line.partition(" #")[0].split() for line in blocks("bash")[2].strip().splitlines()]
    assert len(lines) == 5
    measured = ["pytest", "bench", "--structures=dyad_it", "--benchmark-json=results.json"]
    for words in (measured, *lines):
        words = [{"1024": "64", "128": "4" if "recommend" in words else "128"}.get(word, word) for word in words]
        done = sweep(tmp_path, *words[2:], *SHORT) if words[0] == "pytest" else shell(tmp_path, *words[1:])
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert "low_rank_blocks" in done.stdout and "merged results.json, mine.json" in done.stdout
    assert "low_rank_blocks" in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def sweep(folder, *options):
    (folder / "plugin_quick.py").write_text(QUICK)
    given = ["-p", "plugin_quick", "--benchmark-precision=0.9", f"--rootdir={ROOT}", *STILL]
    return shell(folder, "-m", "pytest", str(ROOT / "bench"), *given, *options)


def shell(folder, *words):
    return processes.python(folder, list(words), environment())


def test_every_other_line_of_the_shell_is_one_that_is_run_elsewhere():
    """The sweep, its report, the tests; recommend above; the five lines of a structure."""
    told = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(told) == 3 + 5 and all("&& .venv/bin/p" in line for line in told[:2])
    assert told[2].startswith("python -m bench recommend bench/results/")


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 150


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_first_block_is_at_most_eight_lines():
    assert len(blocks("python")[0].strip().splitlines()) <= 10


def test_the_yaml_block_is_a_structure_of_three_lines(in_a_folder_with_the_yaml):
    (name,) = structures.load("mine.yaml")
    assert len(blocks("yaml")[0].strip().splitlines()) == 4  # its name and three lines
    made = structures.StructuredLinear(name, 64, 128)
    assert made.to_dense().shape == (128, 64)


def test_the_table_of_structures_is_the_generated_one():
    shown = STRUCTURES.split("<!-- table: python -m structures table -->\n")[1].split("<!-- end of table -->")[0]
    assert shown.strip().splitlines() == "\n".join(table()).splitlines(), "run: python -m structures table"


def test_the_commands_name_files_and_extras_that_exist():
    commands = " ".join(blocks("bash"))
    for file in re.findall(r"-c (\S+)", commands):
        assert (ROOT / file).exists()
    for extra in re.findall(r"\.\[(\w+)\]", commands):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
