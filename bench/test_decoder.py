"""Whole decoders, dense against structured; `pytest bench/test_decoder.py --benchmark-json=decoder.json` runs it."""

import pytest

from bench import decoder, whole
from bench.wrong import Wrong


def pytest_generate_tests(metafunc):
    try:
        metafunc.parametrize("point", whole.params(decoder.points(metafunc.config.option)))
    except Wrong as error:
        raise pytest.UsageError(str(error)) from None


def test_decoder(request, sweep, point, benchmark):
    decoder.measure_point(point, whole.rows_of(decoder.KIND, request, sweep), benchmark)
