"""One reader and one writer of files that others may have made: what is refused, and what is never touched."""

import csv
import io
import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
from made_up import document, point, refusal

from bench.files import fields, rows
from bench.files.cells import harmless
from bench.report.sweep import tables
from structures import atomic
from structures.reading import BadFile


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


# previously failed: what stands in a results file, the complaint
REFUSED = [
    (point(error=10**400), "benchmarks[0]: extra_info: error is 1000000"),
    (point(spare=float("inf")), "benchmarks[0]: extra_info: spare is Infinity, must be a finite number"),
    (point(spare=[[{"a": -(10**400)}]]), "extra_info: spare[0][0]: a is -1000000"),
    (point(spare="\ud800"), "benchmarks[0]: extra_info: spare '\\ud800' has half of a surrogate pair"),
    (point(options={"a\udfff": 1}), "benchmarks[0]: extra_info: options 'a\\udfff' has half of a surrogate pair"),
    (point(options={"a": nested(800)}), "lists and objects are nested deeper than 32"),
    (point(spare=nested(32)), "lists and objects are nested deeper than 32"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_no_arithmetic_no_file_and_no_reader_bears_is_refused_with_its_place(
    row: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document(row)))
    with pytest.raises(BadFile) as error:
        rows.read([path])
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_what_is_odd_and_harmless_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document(point(spare=nested(20), more=["\U0001f600", "é", 10**29, -0.0]))))
    assert rows.read([path]).rows[0].extra["more"][0] == "\U0001f600"


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"[" + b" " * 100 + b"]")
    monkeypatch.setattr(fields, "MOST_BYTES", 100)
    for name, message in (("pipe", "is not a regular file"), ("large", "holds 102 bytes; 100 are read at most"),
                          ("none", "No such file"), (".", "directory")):  # fmt: skip
        with pytest.raises(BadFile, match=message):
            fields.load(tmp_path / name)


def test_a_link_is_replaced_and_what_it_leads_to_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine")
    link.symlink_to(target)
    part = tmp_path / f".link.{threading.get_native_id()}.{os.getpid()}.part"
    part.symlink_to(target)  # where the writer begins
    atomic.write("new", link)
    assert target.read_text() == "mine" and link.read_text() == "new" and not link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, target]


def test_parts_that_killed_processes_left_go_and_those_at_work_stay(tmp_path: Path) -> None:
    """Previously failed: in a container a killed run's number is soon another's own, which could then write no more."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    numbers = {"gone": gone.pid, "ours": os.getpid(), "alive": os.getppid()}
    left = {name: tmp_path / f".r.json.1.{number}.part" for name, number in numbers.items()}
    for part in left.values():
        part.write_text("half")

    def write(file: IO[bytes]) -> None:
        assert [name for name, part in left.items() if part.exists()] == ["alive"]
        with ThreadPoolExecutor(8) as several:  # of one process, each with a part of its own
            list(several.map(lambda i: atomic.write(str(i) * 1000, tmp_path / "r.json"), range(8)))
        file.write(b"whole")

    atomic.write(write, tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == "whole"
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", left["alive"].name}


@pytest.mark.parametrize(("value", "cell"), [("=1+1", "'=1+1"), ("+1", "'+1"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"),
                                             ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), (-1.5, -1.5), ("a=1", "a=1"),
                                             ("", ""), (None, None)])  # fmt: skip
def test_text_that_a_spreadsheet_would_run_stands_behind_an_apostrophe(value: Any, cell: Any) -> None:
    assert harmless(value) == cell


def test_no_cell_of_the_tables_begins_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    made = document(point("=A1", spare="@x", **{"=key": "+1", "number": -1.5}), refused=[refusal("=A1", "@SUM(A1)")])
    path.write_text(json.dumps(made))
    found = rows.read([path])
    tables.write_points(found, tmp_path / "points.csv")
    tables.write_refused(found, tmp_path / "refused.csv")
    texts = [(tmp_path / name).read_text() for name in ("points.csv", "refused.csv")]
    cells = [cell for text in texts for line in csv.reader(io.StringIO(text)) for cell in line]
    assert {"'=A1", "'@x", "'+1", "'@SUM(A1)", "-1.5"} <= set(cells)
    assert {cell for cell in cells if cell[:1] in "=+-@"} - {""} == {"-1.5"}
