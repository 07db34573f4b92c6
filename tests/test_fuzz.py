"""Some hundred mutants of every kind of file that others may write; `python -m tests.fuzz` runs them for an hour."""

import random
from pathlib import Path

import pytest

from tests.fuzz import KINDS, Kind, faults

MUTANTS = 200


@pytest.mark.parametrize("name", KINDS)
def test_no_mutant_of_a_file_brings_anything_down(name: str) -> None:
    several = faults(KINDS[name](), random.Random(name))
    assert [fault for _ in range(MUTANTS) if (fault := next(several)) is not None] == []


def test_an_error_that_is_not_the_kind_s_own_is_a_fault() -> None:
    def use(data: bytes, number: int, folder: Path) -> None:
        raise KeyError if number else ValueError

    several = faults(Kind([b"one", b"two"], use, (ValueError,)), random.Random(0))
    found = [next(several) for _ in range(20)]
    assert 0 < sum(fault is not None and "KeyError" in fault for fault in found) < 20
