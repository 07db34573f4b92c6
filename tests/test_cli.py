"""`python -m structures`: what it prints, and that a user's mistake is one line and status 2, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import structures
from structures import registry
from structures.__main__ import TABLE_END, TABLE_START, main, table

ROOT = Path(registry.__file__).parents[1]
MINE = "mine:\n  title: Mine\n  options: {rank: 4}\n  sizes: {r: rank}\n  einsum: x, x r, r y -> y\n"

# the arguments after `show`, the same in Python
SHOWN: list[tuple[list[str], tuple[str, int, int], dict[str, object]]] = [
    (["dense", "4", "6"], ("dense", 4, 6), {}),
    (["monarch", "64", "128", "--n_blocks", "8"], ("monarch", 64, 128), {"n_blocks": 8}),
    (["monarch", "64", "128", "--n_blocks=8"], ("monarch", 64, 128), {"n_blocks": 8}),
    (["monarch", "64", "128", "--n-blocks", "8"], ("monarch", 64, 128), {"n_blocks": 8}),
    (["low_rank", "64", "128", "--rank", "3"], ("low_rank", 64, 128), {"rank": 3}),
    (["Monarch", "64", "128", "n_blocks=8"], ("monarch", 64, 128), {"n_blocks": 8}),
    (["butterfly", "16", "16", "block_size=4", "--radix", "4"], ("butterfly", 16, 16), {"radix": 4, "block_size": 4}),
    (["butterfly", "16", "16", "radix=4,block_size=4"], ("butterfly", 16, 16), {"radix": 4, "block_size": 4}),
    (["butterfly", "16", "16", "--radix=4", "--block_size", "4"], ("butterfly", 16, 16), {"radix": 4, "block_size": 4}),
    (
        ["einsum", "64", "64", "--theta", "0.5,0.25,0.25,0.5,0.25,0.25,0.5"],
        ("einsum", 64, 64),
        {"theta": [0.5, 0.25, 0.25, 0.5, 0.25, 0.25, 0.5]},
    ),
    (["einsum", "64", "64", "--theta=0,0,1,1,0,0,0"], ("einsum", 64, 64), {"theta": [0, 0, 1, 1, 0, 0, 0]}),
]
# arguments, words of the one line on stderr
MISTAKES: list[tuple[list[str], tuple[str, ...]]] = [
    (["show", "monach", "4", "4"], ("unknown structure 'monach'", "did you mean 'monarch'?")),
    (["show", "Monach", "4", "4"], ("unknown structure 'Monach'", "did you mean 'monarch'?")),
    (["show", "dyad", "4", "4"], ("unknown structure 'dyad'", "did you mean", "'dyad_it'", "'dyad_ot'", "'dyad_dt'")),
    (["show", "zzz", "4", "4"], ("unknown structure 'zzz'", "there are: ", "dense")),
    (["show", "monarch", "60", "60", "--n_blocks", "7"], ("monarch", "60 / 7", "n_blocks that work here: 3, 4, 5, 6")),
    (["show", "monarch", "64", "64", "--nblocks", "4"], ("no option 'nblocks'", "did you mean 'n_blocks'?")),
    (["show", "dense", "64", "64", "--n_blocks", "4"], ("no option 'n_blocks'", "there are none")),
    (["show", "dense", "0", "4"], ("dense: in_features is from 1 to", "found 0")),
    (["show", "dense", "-4", "4"], ("dense: in_features is from 1 to", "found -4")),
    (["show", "dense", "4", "99999999"], ("dense: out_features is from 1 to", "found 99999999")),
    (["show", "monarch", "64", "64", "--n_blocks"], ("monarch: an option is written n_blocks=8 or", "'--n_blocks'")),
    (["show", "monarch", "64", "64", "8"], ("monarch: an option is written n_blocks=8 or", "'8'")),
    (["show", "monarch", "64", "64", "n_blocks", "8"], ("monarch: an option is written n_blocks=8 or", "'n_blocks'")),
    (["show", "monarch", "64", "64", "--n_blocks", "x"], ("option n_blocks is a number", "'x'")),
    (["show", "monarch", "64", "64", "--n_blocks="], ("an option is written", "'--n_blocks='")),
    (["show", "monarch", "64", "64", "--n_blocks", "2.5"], ("option n_blocks is a whole number", "2.5")),
    (["show", "monarch", "64", "64", "--n_blocks", "-2"], ("option n_blocks cannot be negative", "-2")),
    (["show", "monarch", "64", "64", "--n_blocks", "4,8"], ("option n_blocks", "(4, 8)")),
    (["show", "low_rank", "64", "64", "--rank", "1" + "0" * 400], ("low_rank: option rank",)),
    (["show", "low_rank", "64", "64", "--rank", "1" + "0" * 5000], ("low_rank: option rank",)),
    (["show", "einsum", "64", "64", "--theta", "0.5,a"], ("option theta is a number", "'0.5,a'")),
    (["show", "einsum", "64", "64", "--theta", "1,2"], ("einsum: size a b g", "theta=[1, 2]")),
    (["show", "mine", "4", "4", "--registry", "/no/such/file.yaml"], ("/no/such/file.yaml: cannot be read",)),
    (["calibrate", "--dtype", "int8,fp32"], ("--dtype int8: choose from float32, bfloat16",)),
    (["--registry", "/no/such/file.yaml", "list"], ("/no/such/file.yaml: cannot be read",)),
    (["--registry", "/", "list"], ("/: cannot be read",)),
]
# arguments that argparse refuses: it prints the usage first; words of the last line
MISUSES: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: command"),
    (["shw", "dense", "4", "4"], "invalid choice: 'shw'"),
    (["show"], "the following arguments are required: name, in_features, out_features\n"),
    (["show", "dense", "4"], "the following arguments are required: out_features\n"),
    (["show", "dense", "four", "4"], "invalid int value: 'four'"),
    (["show", "dense", "4.0", "4"], "invalid int value: '4.0'"),
    (["list", "all"], "unrecognized arguments: all"),
    (["table", "--width", "64"], "unrecognized arguments: --width 64"),
    (["--registry"], "expected one argument"),
    (["show", "block_diagonal", "--n_blocks", "8", "64", "64"], "--n_blocks"),
]


pytestmark = pytest.mark.usefixtures("nothing_added_stays")


def command(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    run = [sys.executable, "-m", "structures", *arguments]
    return subprocess.run(run, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)


@pytest.mark.parametrize(("arguments", "entry", "options"), SHOWN)
def test_show_prints_the_structure(
    capsys: pytest.CaptureFixture[str], arguments: list[str], entry: tuple[str, int, int], options: dict[str, object]
) -> None:
    assert main(["show", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == f"{structures.get(entry[0]).bind(entry[1], entry[2], **options)}\n"
    assert err == ""


def test_list_has_every_entry_with_options_and_einsum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in structures.names():
        spec = structures.get(name)
        (line,) = [line for line in out.splitlines() if line.split()[0] == name]
        assert spec.title in line
        assert all(f"{option}=" in line for option, _ in spec.options)
        assert all(term in out for term in spec.einsum)


def test_table_is_markdown_with_every_entry_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table"]) == 0
    out, err = capsys.readouterr()
    head, rule, *rows = out.splitlines()
    assert err == ""
    assert head == "| name | einsum | parameters | FLOPs a token | omega, psi, nu | source |"
    assert {line.count("|") - line.count("\\|") for line in (head, rule, *rows)} == {7}
    assert [row.split("`")[1] for row in rows] == structures.names()
    dense = next(row for row in rows if row.startswith("| `dense`"))
    assert "1,048,576 (1)" in dense
    assert "2,097,152 (1) | 0, 1, 1 |" in dense
    for name, row in zip(structures.names(), rows, strict=True):
        assert f"{structures.get(name).bind(1024, 1024).params:,}" in row


def test_the_table_is_written_between_the_markers_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"above\n\n{TABLE_START}\n\nold\n\n{TABLE_END}\n\nbelow\n")
    for _ in range(2):  # again: nothing changes
        assert main(["table", "--into", str(file)]) == 0
        rows = "\n".join(table())
        assert file.read_text() == f"above\n\n{TABLE_START}\n\n{rows}\n\n{TABLE_END}\n\nbelow\n"
    assert capsys.readouterr().out == f"{file}: {len(structures.names())} entries\n" * 2
    file.write_text("no markers\n")
    for path, word in ((file, "there are no lines"), (tmp_path / "absent.md", "No such file")):
        assert main(["table", "--into", str(path)]) == 2
        assert word in capsys.readouterr().err
    assert file.read_text() == "no markers\n" and len(list(tmp_path.iterdir())) == 1


def test_a_users_file_is_listed_shown_and_tabled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    other = tmp_path / "other.yaml"
    other.write_text(MINE.replace("mine", "other"))
    files = ["--registry", str(file), f"--registry={other}"]
    for arguments in (["list"], ["table"], ["show", "mine", "8", "8", "--rank", "2"]):
        assert main([*files, *arguments]) == main([*arguments, *files]) == 0
        out, err = capsys.readouterr()
        assert "mine" in out
        assert err == ""
    assert {"mine", "other"} <= set(structures.names())


def test_a_mistake_in_a_users_file_is_its_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, message in (
        (MINE.replace("{r: rank}", "{r: rnk}"), ":4:14: mine: unknown name 'rnk' in 'rnk'; did you mean 'rank'?"),
        ("[" * 10_000, ":1:11: nested deeper than 10"),
        ("", ":1:1: the file is empty"),
    ):
        file.write_text(text)
        assert main(["--registry", str(file), "list"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"{file}{message}")
        assert err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(m[0])[:60] for m in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize(("arguments", "words"), MISUSES)
def test_a_misuse_prints_the_usage_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    out, err = capsys.readouterr()
    assert error.value.code == 2
    assert out == ""
    assert err.startswith("usage: python -m structures")
    assert words in err.splitlines(keepends=True)[-1]


def test_the_command_itself_gives_text_status_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE.replace("title: Mine", "title: Café 😀"), encoding="utf-8")
    good = command(["--registry", str(file), "list"], tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert "Caf" in good.stdout
    bad = command(["show", "monach", "8", "8"], tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "unknown structure 'monach'; did you mean 'monarch'?\n"


def test_the_rules_of_a_plan_may_be_a_file(tmp_path, capsys):
    pytest.importorskip("transformers", reason="transformers is the extra `models`")
    file = tmp_path / "rules.json"
    file.write_text(structures.SwapConfig({"*.fc[12]": ("dyad_it", {"n_blocks": 8})}).to_json())
    assert main(["plan", "opt-125m", "--rules", str(file)]) == 0
    by_file = capsys.readouterr().out
    assert main(["plan", "opt-125m", "--rule", "*.fc[12]", "dyad_it", "n_blocks=8"]) == 0
    assert capsys.readouterr().out == by_file and "dyad_it(n_blocks=8)" in by_file
    file.write_text("{}")
    assert main(["plan", "opt-125m", "--rules", str(file)]) == 2
    assert "rules.json: a swap's config has the field rules" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert main(["plan", "opt-125m", "--rules", str(tmp_path / "pipe")]) == 2
    assert "pipe: is not a regular file" in capsys.readouterr().err
    assert main(["plan", "opt-125m"]) == 2
    assert "plan takes rules by --rule" in capsys.readouterr().err
