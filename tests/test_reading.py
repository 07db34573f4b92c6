"""Files that others may have written: each bad one is a sentence that names it, and a cache never breaks a layer."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

import structures
from structures import reading
from structures.backends.planned import rates

DEEP = "[" * 200_000
BAD = [  # what a file holds, and what is said of it
    (b"", "is empty"),
    (b"\xff\xfe", "not JSON"),
    (b"\xff\xff\xff", "not JSON"),
    (DEEP.encode(), "not JSON"),
    (b"1" * 5000, "not JSON"),
    (b'{"a": 1', r"1:8: not JSON: Expecting ',' delimiter \(cut off\?\)"),
    (b"[" * 40 + b"]" * 40, "nested deeper than 32"),
    (b'{"seconds": {"call": 1' + b"0" * 400 + b"}}", "seconds: call is 1000000.*, must be a finite number"),
    (b'{"seconds": {"call": 1e999}}', "seconds: call is Infinity, must be a finite number"),
    (b'{"curves": {"contiguous": [[Infinity, 1.0]]}}', r"contiguous\[0\]\[0\] is Infinity"),
    (b'{"a": [1, "\\ud800"]}', r"a\[1\] '\\ud800' has half of a surrogate pair"),
    (b'{"a": {"\\ud800": 1}}', r"a '\\ud800' has half of a surrogate pair"),
    (b'{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
    (b" " * 2**20 + b" 1", "holds 1,048,578 bytes; 1,048,576 are read at most"),
]


@pytest.mark.parametrize("content, message", BAD)
def test_a_bad_file_is_a_sentence_with_its_name_and_the_field(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_bytes(content)
    with pytest.raises(reading.BadFile, match=rf"{file}:.*{message}"):
        reading.json_file(file, 2**20)


@pytest.mark.parametrize(
    "number, content, message", [(i, *b) for i, b in enumerate([*BAD, (None, "is not a regular file")])]
)
def test_no_cache_of_rates_breaks_a_layer(
    number: int, content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previously failed: OverflowError or RecursionError in every planned layer of the machine; a FIFO hung it."""
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path))
    file = rates.path(rates.machine("float32", torch.get_num_threads()))
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    width = 48 + 16 * number  # no plan of an earlier case serves it
    layer = structures.StructuredLinear("monarch", width, width, backend="planned")
    with pytest.warns(UserWarning, match=rf"{message}.*; delete it or calibrate again, it is not used"):
        layer(torch.ones(3, width))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        layer(torch.ones(5, width))


@pytest.mark.parametrize(
    "name, value",
    [("figures", []), ("figures", 3), ("call", "soon"), ("call", 2), ("contiguous", 3), ("turn", [[1, 0]])],
)
def test_a_cache_of_other_fields_is_not_used(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path))
    key = rates.machine("float64", 3)
    built_in = rates.of("float64", 3)
    figures = rates.parts(built_in)
    good = {"version": rates.VERSION, "machine": key, "figures": figures}
    assert name in {**good, **figures}
    found = {**good, name: value} if name in good else {**good, "figures": {**figures, name: value}}
    rates.path(key).write_text(json.dumps(found))
    rates._of.cache_clear()
    with pytest.warns(UserWarning, match="delete it or calibrate again, it is not used"):
        assert rates.of("float64", 3) == built_in


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    whole = {"a": [1, -2.5, None, True, "é", 2**53], "b": {}}
    (tmp_path / "good.json").write_text(json.dumps(whole))
    assert reading.json_file(tmp_path / "good.json") == whole
