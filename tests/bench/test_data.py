"""The data sets of the training comparisons: every loader on files made here, and what is said of bad ones."""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.files.errors import UsageError
from bench.training import data
from bench.training.data import cache, images, records, tokens

# name as given, words of the error
REFUSED: list[tuple[str, type[Exception], str]] = [
    ("nothing", UsageError, "Allowed: digits, fashion-mnist"),
    ("fashionmnist", UsageError, "did you mean 'fashion-mnist'"),
    ("digits:folder", UsageError, "takes no folder"),
    ("folder", data.MissingData, "folder:PATH"),
    ("folder:", UsageError, "names no folder"),
    ("folder:not/there", data.MissingData, "there is no folder not/there"),
    ("fashion-mnist", data.MissingData, "python -m bench data fetch fashion-mnist"),
    ("sotu", data.MissingData, "python -m bench data fetch sotu"),
    ("mnist", data.MissingData, "python -m bench data fetch mnist-10k"),
    ("cifar-10", data.MissingData, "cifar-10:PATH"),
    ("babylm", data.MissingData, "*.train and *.dev"),
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))


# -- files made here


def idx_file(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist_folder(folder: Path, *, packed: bool = True) -> Path:
    """Twelve training and six test images of three classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, file in images.IDX.items():
        count = 12 if part.startswith("training") else 6
        values = random.integers(0, 256, (count, 4, 5)) if part.endswith("images") else np.arange(count) % 3
        content = idx_file(values.astype(np.uint8))
        (folder / (f"{file}.gz" if packed else file)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def cifar_folder(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for batch in images.BATCHES:
        x = random.integers(0, 256, (count, 3072)).astype(np.uint8)
        content = {b"data": x, b"labels": [i % 10 for i in range(count)], b"batch_label": batch.encode()}
        (folder / batch).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def text_folder(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"Document {i}.\r\nIts second line.\n", encoding="utf-8", newline="")
    return folder


# -- loading


def test_the_digits_are_the_known_ones_and_split_for_good():
    first, second = data.load("digits"), data.load("digits")
    assert first.train_x.shape == (1438, 8, 8) and first.test_x.shape == (359, 8, 8)
    assert first.train_x.dtype == np.uint8 and first.train_x.max() == 255
    assert set(np.unique(first.train_y)) == set(range(10)) == set(np.unique(first.test_y))
    assert first.sha256 == second.sha256 and np.array_equal(first.train_x, second.train_x)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_plain_or_gzipped(tmp_path, packed):
    folder = mnist_folder(tmp_path / "files", packed=packed)
    found = data.load(f"mnist:{folder}")
    wanted = np.random.default_rng(0).integers(0, 256, (12, 4, 5))
    assert np.array_equal(found.train_x, wanted) and found.train_x.dtype == np.uint8
    assert found.test_x.shape == (6, 4, 5) and found.classes == 3
    assert list(found.train_y[:4]) == [0, 1, 2, 0] and found.train_y.dtype == np.int64
    assert found.sha256 == data.load("mnist", root=folder).sha256


def test_the_checksum_is_of_the_decompressed_bytes(tmp_path):
    packed, plain = (mnist_folder(tmp_path / str(p), packed=p) for p in (True, False))
    content = b"".join((plain / file).read_bytes() for file in images.IDX.values())
    assert data.load(f"mnist:{packed}").sha256 == hashlib.sha256(content).hexdigest()


def test_fashion_mnist_is_not_taken_from_other_files_of_the_same_format(tmp_path):
    folder = mnist_folder(tmp_path / "files")
    with pytest.raises(data.BadData, match=r"fashion-mnist: the training images in .* have sha256 .*, not c59f468a"):
        data.load("fashion-mnist", root=folder)


def test_cifar_is_read_from_its_official_folder_or_the_one_above(tmp_path):
    folder = cifar_folder(tmp_path / "cifar-10-batches-py")
    found = data.load(f"cifar-10:{tmp_path}")
    assert found.train_x.shape == (20, 32, 32, 3) and found.test_x.shape == (4, 32, 32, 3) and found.classes == 10
    first = np.random.default_rng(0).integers(0, 256, (4, 3072))  # red, green, blue planes, each row by row
    assert list(found.train_x[1, 2, 3]) == [first[1, 32 * 2 + 3 + 1024 * channel] for channel in range(3)]
    assert found.sha256 == data.load(f"cifar-10:{folder}").sha256


def test_ten_files_of_digits_are_read_shuffled_and_split(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    for digit in range(10):
        pixels = [round(((digit * 20 + i) % 256) / 255, 3) for i in range(2 * 784)]
        (folder / f"{digit}.json").write_text(f'{{"data": {pixels}}}')
    found = images.json_digits("mine", folder, licence="", note="")
    assert found.train_x.shape == (16, 28, 28) and found.test_x.shape == (4, 28, 28)
    assert list(found.train_y) != sorted(found.train_y)
    for x, y in zip(found.train_x, found.train_y, strict=True):
        assert (x.ravel()[0] - y * 20) % 256 in (0, 784 % 256)


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


def test_a_folder_is_given_once(tmp_path):
    with pytest.raises(UsageError, match="names a folder, and root="):
        data.load(f"folder:{tmp_path}", root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar-10", "babylm", "folder"])
def test_a_folder_of_other_files_is_refused(tmp_path, name):
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(data.BadData, match=rf"{name}: .*holiday.jpg"):
        data.load(f"{name}:{tmp_path}")


def test_a_truncated_file_is_refused(tmp_path):
    folder = mnist_folder(tmp_path / "files")
    file = folder / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.BadData, match=r"train-images-idx3-ubyte\.gz cannot be decompressed"):
        data.load(f"mnist:{folder}")
    content = gzip.decompress(whole)
    file.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(data.BadData, match="holds 239 values, its header says 12 x 4 x 5"):
        data.load(f"mnist:{folder}")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", b"GIF89a"])
def test_what_is_no_idx_file_of_bytes_is_refused(tmp_path, content):
    folder = mnist_folder(tmp_path / "files", packed=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(data.BadData, match="t10k-labels-idx1-ubyte is no idx file"):
        data.load(f"mnist:{folder}")


def test_labels_for_another_number_of_images_are_refused(tmp_path):
    folder = mnist_folder(tmp_path / "files", packed=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_file(np.zeros(5, np.uint8)))
    with pytest.raises(data.BadData, match="5 labels for images of the sizes"):
        data.load(f"mnist:{folder}")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = cifar_folder(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [0]}))
    with pytest.raises(data.BadData, match=r"data_batch_2 is no batch of CIFAR-10: it holds .*pathlib"):
        data.load(f"cifar-10:{tmp_path}")
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, "holds float32"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, r"and \(1,\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "labels from 0 to 10"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "is no batch"),
        ([], "is no batch"),
    ],
)
def test_a_batch_of_another_kind_is_refused(tmp_path, content, words):
    folder = cifar_folder(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(data.BadData, match=words):
        data.load(f"cifar-10:{folder}")


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
    assert all(f"\n{name}  (" in said for name in data.names())
    assert said.count("licence: ") == len(data.names())
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


def test_bits_per_byte_count_bytes_and_not_characters():
    text = "naïve"  # six bytes
    assert records.bits_per_byte(6 * math.log(256), text) == pytest.approx(8)
