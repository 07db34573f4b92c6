"""The journal: a run that is killed, or whose disk is full, loses the point under way and goes on."""

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kill_sweep
import pytest
from bench_runs import environment, quick
from made_up import point

from bench.files import journal, rows
from bench.files.errors import UsageError
from bench.files.journal import Records
from bench.machine import setup
from bench.sweep import launch, request
from bench.sweep.points import points
from bench.sweep.sweep import Sweep
from structures import registry

ROOT = Path(__file__).parents[2]
TINY = ("--structures=dyad_it:n_blocks=2,3 low_rank:rank=4", "--widths=16", "--tokens=4", "--backend=einsum",
        "--no-controls")  # fmt: skip


def test_a_sweep_killed_at_random_moments_ends_with_the_file_of_an_unbroken_run(tmp_path):
    # three: each of the signals once
    script = [sys.executable, str(ROOT / "tests" / "support" / "kill_sweep.py"), str(tmp_path), "3", "0"]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 3 and found["runs"] > found["sweeps"] and found["points"] >= 12


def test_a_file_that_differs_from_the_unbroken_one_is_noticed():
    row = {"name": "a", "extra_info": {"speedup": {"median": 1.0}}}
    run = {"complete": True, "datetime": "2031", "request": {}}
    section = {"schema": 1, "run": run, "roofline": [], "rules": {}, "refused": []}
    whole = {"benchmarks": [row, {**row, "name": "b"}], "structures": section}
    kill_sweep.same(whole, whole, broken=False)
    for other in (
        {**whole, "benchmarks": whole["benchmarks"][:1]},
        {**whole, "benchmarks": whole["benchmarks"][::-1]},
        {**whole, "benchmarks": [row, {"name": "b", "extra_info": {"speedup": None}}]},
        {**whole, "structures": {**section, "refused": [{"reason": "no"}]}},
        {**whole, "structures": {**section, "run": {**run, "complete": False}}},
    ):
        with pytest.raises(AssertionError):
            kill_sweep.same(other, whole, broken=False)


# -- lines


@pytest.fixture
def begun(tmp_path):
    """A results file's place with a journal of a header and two lines."""
    output = tmp_path / "r.json"
    kept = journal.start(output, {"options": {}})
    kept.add([{"row": 1}, {"load": 2}])
    kept.add([{"row": 3}])
    kept.close()
    return output


@pytest.mark.parametrize(
    "tail", [b'[{"row":4}', b"[", b"\0" * 8, b'[{"row":4}]', b"{}\n", b"\xff\xfe\n"], ids=lambda tail: repr(tail)[:12]
)
def test_a_torn_last_line_is_dropped_with_a_line_saying_so(begun, tail):
    whole = journal.of(begun).read_bytes()
    journal.of(begun).write_bytes(whole + tail)
    kept, header, entries, said = journal.resume(begun)
    assert [entry.values for entry in entries] == [{"row": 1}, {"load": 2}, {"row": 3}] and header["options"] == {}
    assert len(said) == 1 and "the last line was cut off when the run ended; dropped" in said[0]
    kept.add([{"row": 5}])
    kept.close()
    assert journal.of(begun).read_bytes() == whole + b'[{"row":5}]\n'


def test_a_whole_journal_has_nothing_to_say(begun):
    kept, _, entries, said = journal.resume(begun)
    assert len(entries) == 3 and not said
    kept.remove()
    assert not journal.of(begun).exists()


def test_a_line_broken_in_the_middle_is_refused(begun):
    lines = journal.of(begun).read_bytes().splitlines(keepends=True)
    journal.of(begun).write_bytes(lines[0] + b"[{\n" + lines[2])
    with pytest.raises(UsageError, match=r"line 2 is broken, and lines follow it"):
        journal.resume(begun)


@pytest.mark.parametrize("content", [b"", b"[]\n", b'[{"schema":99}]\n', b"[1]\n"], ids=repr)
def test_a_journal_without_a_header_of_this_version_is_refused(tmp_path, content):
    journal.of(tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UsageError, match="is no journal of this version; delete it"):
        journal.resume(tmp_path / "r.json")


def test_what_is_there_is_never_overwritten_and_one_process_writes_at_a_time(begun):
    with pytest.raises(
        UsageError, match=r"a run that did not end: go on with it by --resume .*r.json .*, or delete it"
    ):
        journal.start(begun, {})
    kept, *_ = journal.resume(begun)
    with pytest.raises(UsageError, match="another run is writing it"):
        journal.resume(begun)
    kept.close()


def test_nothing_to_go_on_with_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*r.json.journal: nothing was begun there"):
        journal.resume(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(UsageError, match="the run that wrote the results file has ended"):
        journal.resume(tmp_path / "r.json")


# -- a full disk


class Full:
    """A file on a disk with so many bytes left."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 5, 11])
def test_a_line_that_a_full_disk_cut_off_is_taken_back(begun, room):
    whole = journal.of(begun).read_bytes()
    kept, *_ = journal.resume(begun)
    kept._file = Full(kept._file, room)
    with pytest.raises(journal.JournalFailed, match="No space left on device"):
        kept.add([{"row": 4}])
    kept.close()
    assert journal.of(begun).read_bytes() == whole
    kept, *_, said = journal.resume(begun)
    kept.close()
    assert not said


def test_a_sweep_on_a_full_disk_stops_with_a_sentence_and_goes_on_when_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # Python would leave the half of a module that there is room for

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))

    status, text, document = quick(tmp_path, *TINY, preexec_fn=limited)
    assert status == 2 and "Traceback" not in text and document is None, text
    assert "results.json.journal: cannot be written: File too large; the points before this one are kept" in text
    assert f"results.json: cannot be written: File too large; all points are in {tmp_path}/results.json.journal" in text
    kept = [json.loads(line) for line in (tmp_path / "results.json.journal").read_bytes().splitlines()]
    before = sum("row" in entry for line in kept for entry in line)
    assert before >= 2
    again = f"--resume={tmp_path / 'results.json'}"
    status, text, found = quick(tmp_path, *TINY, again)
    assert status == 0, text
    assert found["structures"]["run"]["complete"] and len(found["structures"]["run"]["resumed"]) == 1
    assert len(rows.read([tmp_path / "results.json"]).rows) == 6 and not (tmp_path / "results.json.journal").exists()


# -- the same run


def swept(monkeypatch, **changes):
    """A sweep of one shape, as `launch` makes it."""
    monkeypatch.setattr(setup, "commit", lambda: {"commit": "0" * 40, "dirty": False})
    options = {"structures": "dyad_it:n_blocks=2", "widths": "16", "tokens": "4", **changes}
    asked = request.read(options, cuda=False, cores=1)  # loads the registry files
    made = Sweep(asked, setup.Threads(1, (0,), True, False), "plain", ["pytest"], asked=launch.asked(options))
    made.points, made.unreachable = points(made.request)
    made.selected = [str(point) for point in made.points]
    return made


def test_another_run_is_not_gone_on_with_and_what_differs_is_named(tmp_path, monkeypatch):
    output = tmp_path / "r.json"
    kept, _ = launch.journal_of(output, swept(monkeypatch), resume=False)
    kept.close()

    def refused(sweep):
        with pytest.raises(UsageError) as error:
            launch.journal_of(output, sweep, resume=True)
        text = str(error.value)
        assert text.startswith(f"--resume: {output} was begun as another run: ")
        return text

    assert "options tokens was '4' and is '8'" in refused(swept(monkeypatch, tokens="8"))
    assert "options cold was 'not given' and is 'true'" in refused(swept(monkeypatch, cold=True))
    fewer = swept(monkeypatch)
    fewer.selected = fewer.selected[1:]
    assert "points was" in refused(fewer)
    monkeypatch.setattr(registry, "_added", {})
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine:\n  einsum: x, x y -> y\n")
    text = refused(swept(monkeypatch, registry=[str(mine)]))
    assert "options registry all entries was" in text and "mine.yaml was 'not given' and is" in text
    with monkeypatch.context() as other:
        other.setattr(setup, "cpu_model", lambda: "Other CPU")
        assert "conditions cpu was" in refused(swept(other)) and "is 'Other CPU'" in refused(swept(other))
    with monkeypatch.context() as other:
        other.setattr(setup, "versions", lambda: dict.fromkeys(rows.VERSIONS, "9.9"))
        assert "conditions torch was" in refused(swept(other))
    elsewhere = replace(swept(monkeypatch), allocator="tuned")
    elsewhere.selected = [str(point) for point in elsewhere.points]
    assert "conditions allocator was 'plain' and is 'tuned'" in refused(elsewhere)


ODD = [
    ([5], "line 2 is 5, must be an object"),
    ([[]], "line 2 is a list, must be an object"),
    ([{"id": "x", "row": None}], "line 2: resumed is missing"),
    ([{"id": "x", "row": 1}], "line 2: row is 1, must be an object"),
    ([{"id": "x", "row": {"name": "n", "extra_info": {}}}], "line 2: row ('n'): stats is missing"),
    ([{"id": "x", "row": point()}], "line 2: id is the text 'x', must be the id of a point of this sweep"),
    ([{"id": "x", "refused": {"structure": "a"}}], "line 2: refused: reason is missing"),
    ([{"id": "x", "whole": {}, "benchmark": {}}], "line 2: whole: structure is missing"),
    ([{"roofline": {"device": "cpu"}}], "line 2: roofline: dtype is missing"),
    ([{"cell": [[]], "way": "linear"}], "line 2: cell is a list, must be a list of any number of str or int"),
    ([{"load": [1]}], "line 2: load is a list, must be a list of 2 of int or float"),
    ([{"load": [True, 1.0]}], "line 2: load is a list"),
]


@pytest.mark.parametrize(("line", "message"), ODD, ids=[message for _, message in ODD])
def test_an_odd_but_valid_line_is_refused_with_its_number(line, message, tmp_path, monkeypatch):
    output = tmp_path / "r.json"
    kept, _ = launch.journal_of(output, swept(monkeypatch), resume=False)
    kept.add(line)
    kept.close()
    before = journal.of(output).read_bytes()
    with pytest.raises(UsageError) as error:
        launch.journal_of(output, swept(monkeypatch), resume=True)
    assert f"--resume: {journal.of(output)}: {message}" in str(error.value)
    assert journal.of(output).read_bytes() == before and not output.exists()


@pytest.mark.parametrize(
    "line", [b"[" * 90_000, b"[1e999]", b'["\\ud800"]', b"[" + b"9" * 5000 + b"]"], ids=lambda b: str(b[:9])
)
def test_a_line_that_cannot_be_used_is_as_a_broken_one(line, begun):
    journal.of(begun).write_bytes(journal.of(begun).read_bytes() + line + b"\n[]\n")
    with pytest.raises(UsageError, match="line 4 is broken, and lines follow it"):
        journal.resume(begun)


@pytest.mark.parametrize(
    "read", [journal.resume, lambda output: journal.start(output, {}), lambda o: Records(o, {}, {})]
)
def test_a_pipe_in_a_journals_place_is_refused_at_once(read, tmp_path):
    os.mkfifo(journal.of(tmp_path / "r.json"))
    with pytest.raises(UsageError, match="is not a regular file"):
        read(tmp_path / "r.json")


def test_a_link_in_a_journals_place_is_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    journal.of(tmp_path / "r.json").symlink_to(tmp_path / "target")
    with pytest.raises(UsageError, match="is not a regular file"):
        journal.start(tmp_path / "r.json", {})
    assert (tmp_path / "target").read_bytes() == b""


def test_without_time_all_points_are_rows_with_the_reason_and_the_run_goes_on(tmp_path):
    status, text, document = quick(tmp_path, *TINY, "--time-budget=0.01s")
    assert status == 0, text
    refused = document["structures"]["refused"]
    assert len(refused) == 8 and not document["benchmarks"]
    assert all("not run: --time-budget 0.01s leaves no time for all structures" in row["reason"] for row in refused)
    assert document["structures"]["run"]["complete"] is False
    assert f"Go on later: the same command with --resume {tmp_path / 'results.json'}" in text
    status, text, document = quick(tmp_path, *TINY, f"--resume={tmp_path / 'results.json'}")
    assert status == 0, text
    assert len(document["benchmarks"]) == 6 and len(document["structures"]["refused"]) == 2
    assert document["structures"]["run"]["complete"] is True
