"""What the README shows runs, and what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    (line,) = re.findall(r"python -m bench (recommend .*)", README)
    assert main(line.split()) == 0
    assert capsys.readouterr().out.strip() == blocks("text")[0].strip(), f"run: python -m bench {line}"


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
