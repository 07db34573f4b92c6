"""The data sets of the training comparisons: every loader on files made here, and what is said of bad ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.files.errors import UsageError
from bench.training import data
from bench.training.data import cache, tokens
from bench.training.data.sources import SOURCES

# name as given, words of the error
REFUSED: list[tuple[str, type[Exception], str]] = [
    ("nothing", UsageError, "Allowed: sotu, python-topics"),
    ("sotuu", UsageError, "did you mean 'sotu'"),
    ("python-topics:folder", UsageError, "takes no folder"),
    ("folder", data.MissingData, "folder:PATH"),
    ("folder:", UsageError, "names no folder"),
    ("folder:not/there", data.MissingData, "there is no folder not/there"),
    ("sotu", data.MissingData, "python -m bench data fetch sotu"),
    ("babylm", data.MissingData, "*.train and *.dev"),
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))


# -- files made here


def text_folder(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"Document {i}.\r\nIts second line.\n", encoding="utf-8", newline="")
    return folder


# -- loading


def test_a_folder_is_split_by_whole_documents(tmp_path):
    found = data.load(f"folder:{text_folder(tmp_path / 'texts')}")
    assert len(found.train) == 38
    assert found.validation == [f"Document {i}.\r\nIts second line.\n" for i in (19, 39)]
    joined = "\n\n".join(f"Document {i}.\r\nIts second line.\n" for i in range(40))
    assert found.sha256 == hashlib.sha256(joined.encode()).hexdigest()


def test_of_few_documents_the_last_is_held_out(tmp_path):
    found = data.load(f"folder:{text_folder(tmp_path / 'texts', 3)}")
    assert len(found.train) == 2 and found.validation[0].startswith("Document 2.")


def test_babylm_keeps_its_own_split(tmp_path):
    (tmp_path / "train_10M").mkdir()
    (tmp_path / "train_10M" / "childes.train").write_text("a child speaks")
    (tmp_path / "bnc.train").write_text("a grown-up speaks")
    (tmp_path / "childes.dev").write_text("another child")
    found = data.load(f"babylm:{tmp_path}")
    assert found.train == ["a grown-up speaks", "a child speaks"] and found.validation == ["another child"]


def test_the_topics_of_python_come_without_a_file():
    found = data.load("python-topics")
    assert len(found.train) > 50 and len(found.validation) >= 3
    assert not set(found.train) & set(found.validation)


# -- refusals


@pytest.mark.parametrize(("name", "kind", "words"), REFUSED)
def test_what_is_not_there_is_an_error_that_says_how_to_get_it(name, kind, words):
    with pytest.raises(kind) as error:
        data.load(name)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["babylm", "folder"])
def test_a_folder_of_other_files_is_refused(tmp_path, name):
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(data.BadData, match=rf"{name}: .*holiday.jpg"):
        data.load(f"{name}:{tmp_path}")


def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "all.txt").write_text("Everything in one file.")
    with pytest.raises(data.BadData, match=r"has 1 document with text; .* at least two files"):
        data.load(f"folder:{tmp_path}")


def test_a_text_that_is_not_utf_8_is_refused(tmp_path):
    folder = text_folder(tmp_path / "texts")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(data.BadData, match=r"latin\.txt is not UTF-8: .* at byte 3"):
        data.load(f"folder:{folder}")


# -- the cache


def test_the_cache_is_where_the_variables_say(tmp_path, monkeypatch):
    assert cache.cache() == tmp_path / "cache"
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache() == tmp_path / "xdg" / "structures"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache() == Path.home() / ".cache" / "structures"


def test_the_list_names_every_data_set_and_its_licence(capsys):
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}  " in said for name in SOURCES)
    assert said.count("licence: ") == len(SOURCES)
    assert "python -m bench data fetch sotu" in said


# -- tokenizers

TEXT = "We, the people: naïve \U0001f40b 12\n\n  Of the  United States.\tEnd. " * 300


@pytest.mark.parametrize(
    "tokenizer",
    [lambda: data.bytes_(), lambda: data.characters(TEXT), lambda: data.bpe(TEXT, 300)],
    ids=["bytes", "characters", "bpe"],
)
def test_a_tokenizer_gives_the_same_text_back(tokenizer):
    made = tokenizer()
    ids = made.encode(TEXT)
    assert made.decode(ids) == TEXT
    assert ids.dtype == np.uint16 and int(ids.max()) < made.size
    assert len(made.encode("")) == 0 and made.decode([]) == ""


def test_characters_are_those_of_every_document():
    made = data.characters(["cab", "d"])
    assert made.size == 4 and list(made.encode("abcd")) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"'\?', 'e' not in the vocabulary of 4; build it from all documents"):
        made.encode("abe?")
    with pytest.raises(UsageError, match="the text is empty"):
        data.characters("")


def test_bpe_encodes_in_pieces_as_it_would_the_whole(monkeypatch):
    made = data.bpe(TEXT, 300)
    monkeypatch.setattr(tokens, "PIECE", 7)
    pieces = made.encode(TEXT)
    monkeypatch.setattr(tokens, "PIECE", len(TEXT))
    assert np.array_equal(pieces, made.encode(TEXT))
    assert len(pieces) < len(TEXT.encode())


def test_bpe_is_trained_once_and_alike(tmp_path, monkeypatch):
    first = data.bpe(TEXT, 300)
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    files = {file.name: file.read_bytes() for file in kept.iterdir()}
    changed = (kept / "merges.txt").stat().st_mtime_ns
    data.bpe(TEXT, 300)
    assert (kept / "merges.txt").stat().st_mtime_ns == changed
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "other"))
    assert np.array_equal(first.encode(TEXT), data.bpe(TEXT, 300).encode(TEXT))
    (again,) = (tmp_path / "other" / "tokenizers").iterdir()
    assert {file.name: file.read_bytes() for file in again.iterdir()} == files
    assert data.bpe(TEXT, 280).size == 280 and len(list((tmp_path / "other" / "tokenizers").iterdir())) == 2
    with pytest.raises(UsageError, match="vocab=100 is too small"):
        data.bpe(TEXT, 100)
