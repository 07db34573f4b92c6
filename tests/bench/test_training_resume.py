"""A killed run that is taken up ends as an unbroken one; shards join to the whole grid."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import processes
import pytest
from bench_runs import environment

from bench.__main__ import main
from bench.files import journal

torch = pytest.importorskip("torch")

from bench.training.checkpoint import Checkpoint  # noqa: E402

ROOT = Path(__file__).parents[2]
SHORT = "train teacher --scale smoke --structures dyad_it --rates 0.003,0.01 --seeds 2 --only losses"
AS_RUN = ("seconds_as_run", "versions")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """By key, without what may differ from run to run."""
    found = json.loads(path.read_text())["structures"]["rows"]
    return {row["key"]: {k: v for k, v in row.items() if k not in AS_RUN} for row in found}


def journalled(path: Path) -> list[str]:
    """The keys of the rows that the journal of a file has."""
    text = journal.of(path).read_bytes().rpartition(b"\n")[0] if journal.of(path).exists() else b""
    return [entry["row"]["key"] for line in text.splitlines()[1:] for entry in json.loads(line) if "row" in entry]


def under_way(path: Path) -> bool:
    """Whether a checkpoint was written after the last row."""
    checkpoint = Path(f"{path}.checkpoint")
    return checkpoint.exists() and checkpoint.stat().st_mtime_ns > journal.of(path).stat().st_mtime_ns


def test_a_killed_run_is_taken_up_to_the_same_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT.split(), "--steps", "80"]
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    command = ["-m", "bench", *words, "--checkpoint-every", "0", "-o", str(broken)]
    process = processes.started(ROOT, command, environment())
    try:
        while process.is_alive() and not (len(journalled(broken)) >= 3 and under_way(broken)):
            time.sleep(0.02)
        assert process.is_alive(), "it ended before it could be killed"
    finally:
        process.kill()
        process.join()
    left = journalled(broken)
    assert not broken.exists() and main([*words, "-o", str(broken)]) == 2
    assert "a run that did not end: go on with it by --resume" in capsys.readouterr().err
    assert main([*words, "--resume", str(broken)]) == 0
    said = capsys.readouterr().out
    assert "taken up at step" in said and 2 * said.count(" kept") == len(left)
    assert main([*words, "-o", str(whole)]) == 0
    assert rows(broken) == rows(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.json", "whole.json"]


def saved(path: Path) -> Checkpoint:
    """A checkpoint as a run leaves it: of one tensor, for the sake of speed."""
    checkpoint = Checkpoint(path)
    checkpoint.save({"key": "a", "done": {0.1: [{"tune": 0.5}]}, "members": {"networks": [torch.ones(64)]}})
    return checkpoint


def test_a_damaged_checkpoint_is_not_read(tmp_path: Path) -> None:
    checkpoint, said, dice = saved(tmp_path / "rows.json.checkpoint"), [], random.Random(0)
    whole = checkpoint.path.read_bytes()
    held = checkpoint.load(said.append)
    assert held["done"] == {0.1: [{"tune": 0.5}]} and held["members"]["networks"][0].sum() == 64 and not said
    for _ in range(600):
        at, more = dice.randrange(len(whole)), bytes([dice.randrange(256)])
        damaged = dice.choice((whole[:at], whole[:at] + more + whole[at + 1 :], whole[:at] + more + whole[at:]))
        checkpoint.path.write_bytes(damaged)
        said.clear()
        assert (checkpoint.load(said.append) == {} and len(said) == 1) or damaged == whole
    for foreign in (b"", b"[]", whole + b"x", whole[::-1]):
        checkpoint.path.write_bytes(foreign)
        assert checkpoint.load(said.append) == {}
        assert "it is not used, and the run that it was of begins anew" in said[-1] and "\n" not in said[-1]


class Evil:
    """Pickled, it asks for a folder to be made."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_checkpoint_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    checkpoint, said = saved(tmp_path / "rows.json.checkpoint"), []
    first, rest = checkpoint.path.read_bytes().split(b"\n", 1)
    assert first.endswith(b", 2")
    checkpoint.path.write_bytes(first[:-1] + b"22\n" + rest)
    assert checkpoint.load(said.append) == {}
    assert said == [
        f"{checkpoint.path}: a checkpoint of version 22, where this reads version 2; it is not used, and the run that "
        "it was of begins anew"
    ]


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    checkpoint, said = Checkpoint(tmp_path / "rows.json.checkpoint"), []
    checkpoint.save({"key": Evil(tmp_path / "evil")})
    assert checkpoint.load(said.append) == {} and "not what bench train writes" in said[0]
    assert not (tmp_path / "evil").exists()


def test_what_is_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint, said = Checkpoint(tmp_path / "rows.json.checkpoint"), []
    assert checkpoint.load(said.append) == {} and not said
    os.mkfifo(checkpoint.path)
    assert checkpoint.load(said.append) == {} and "not a regular file" in said[0]
    checkpoint.path.unlink()
    checkpoint.path.symlink_to(tmp_path / "nothing")
    assert checkpoint.load(said.append) == {} and "No such file" in said[1]


def test_a_checkpoint_follows_no_link(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "rows.json.checkpoint"
    other.write_text("mine")
    path.symlink_to(other)
    Path(f"{path}.part").symlink_to(other)
    assert saved(path).load(print)["key"] == "a"
    assert other.read_text() == "mine" and not path.is_symlink()


def test_a_run_whose_checkpoint_is_damaged_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT.split(), "--steps", "2", "--depth", "1"]
    path = tmp_path / "rows.json"
    checkpoint = saved(tmp_path / "rows.json.checkpoint").path
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    assert main([*words, "-o", str(path)]) == 0
    assert capsys.readouterr().out.count("damaged or cut off") == 1 and not checkpoint.exists()


BAD_ROWS: list[tuple[dict[str, Any], str]] = [  # previously failed: tracebacks, or taken up as they are
    ({"versions": []}, "rows[0]: versions is a list, must be an object"),
    ({"key": {}}, "rows[0]: key is an object, must be a name"),
    ({"phase": None}, "rows[0]: phase is null, must be one of"),
    ({"flags": 5, "loss": "low"}, "rows[0]: "),
]


def test_what_cannot_be_taken_up_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    words = [*SHORT.split(), "--steps", "2"]
    assert main([*words, "-o", str(path)]) == 0
    before = rows(path)
    assert main([*words, "--depth", "1", "--resume", str(path)]) == 0
    assert all(rows(path)[key] == row for key, row in before.items())  # what is not asked for now is not lost
    assert "were not asked for; they are kept" in capsys.readouterr().out
    added = ["--structures", "dyad_it:n_blocks=5 low_rank:rank=4", "--resume", str(path)]
    assert main([*words, *added]) == 0
    assert main(["train", "facts", *words[2:], *added]) == 0
    section = json.loads(path.read_text())["structures"]
    assert [row["setting"].split()[0] for row in section["refused"]] == ["facts", "teacher"]
    assert set(section["setup"]["data"]) == {"teacher", "facts"} and len(section["setup"]["settings"]) == 2
    document = json.loads(path.read_text())
    document["structures"]["rows"][0]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    assert main([*words, "--resume", str(path)]) == 2
    assert 'another torch, "1.0"' in capsys.readouterr().err
    for change, message in BAD_ROWS:
        bad = copy.deepcopy(document)
        bad["structures"]["rows"][0] |= change
        path.write_text(json.dumps(bad))
        assert main([*words, "--resume", str(path)]) == 2
        assert message in capsys.readouterr().err
    document["structures"]["kind"] = "minilm"
    path.write_text(json.dumps(document))
    assert main([*words, "--resume", str(path)]) == 2
    assert "no file of bench train" in capsys.readouterr().err
    assert main([*words, "--resume", str(tmp_path / "nothing.json")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_shards_join_to_the_whole_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT.split(), "--steps", "2"]
    whole, joined = tmp_path / "whole.json", tmp_path / "joined.json"
    parts = [tmp_path / f"{k}.json" for k in (1, 2, 3)]
    assert main([*words, "-o", str(whole)]) == 0
    for k, part in enumerate(parts, start=1):
        assert main([*words, "--shard", f"{k}/3", "-o", str(part)]) == 0
    assert main(["merge", *map(str, parts), "-o", str(joined)]) == 0
    assert rows(joined) == rows(whole)
    assert all(rows(part) for part in parts)
    assert str(tmp_path) not in joined.read_text() and '"3.json"' in joined.read_text()  # of whose folders nobody asked

    document = json.loads(parts[0].read_text())
    document["structures"]["rows"][0]["loss"] = 9.0
    parts[0].write_text(json.dumps(document))
    capsys.readouterr()
    assert main(["merge", str(whole), str(parts[0]), "-o", str(tmp_path / "bad.json")]) == 2
    assert "has the loss 9.0" in capsys.readouterr().err
    document["structures"]["rows"][0]["versions"]["torch"] = "1.0"
    parts[0].write_text(json.dumps(document))
    assert main(["merge", str(whole), str(parts[0]), "-o", str(tmp_path / "bad.json")]) == 2
    assert "made with torch 1.0" in capsys.readouterr().err
