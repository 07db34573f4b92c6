"""Some hundred mutants of every kind of file that others may write; `python -m tests.fuzz` runs them for an hour."""

import random
from pathlib import Path

import pytest

from tests.fuzz import KINDS
from tests.support.mutants import Kind, faults

MUTANTS = 150


@pytest.mark.parametrize("name", KINDS)
def test_no_mutant_of_a_file_brings_anything_down(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]()
    for number, good in enumerate(kind.files):
        (tmp_path / str(number)).mkdir()
        kind.use(good, number, tmp_path / str(number))
    several = faults(kind, random.Random(name))
    assert [fault for _ in range(MUTANTS) if (fault := next(several)) is not None] == []


@pytest.mark.parametrize("error", [KeyError("b"), ValueError(""), ValueError("two\nlines")])
def test_an_error_that_is_not_the_kind_s_own_or_no_sentence_is_a_fault(error: Exception) -> None:
    def use(data: bytes, number: int, folder: Path) -> None:
        raise error if number else ValueError("a sentence")

    several = faults(Kind([b"one", b"two"], use, (ValueError,)), random.Random(0))
    found = [next(several) for _ in range(20)]
    assert 0 < sum(fault is not None and type(error).__name__ in fault for fault in found) < 20
