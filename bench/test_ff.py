"""The DYAD authors' measurement of feed-forward modules; `pytest bench/test_ff.py --benchmark-json=ff.json` runs it."""

import pytest

from bench import ff, whole
from bench.wrong import Wrong


def pytest_generate_tests(metafunc):
    try:
        metafunc.parametrize("point", whole.params(ff.points(metafunc.config.option)))
    except Wrong as error:
        raise pytest.UsageError(str(error)) from None


def test_feed_forward(request, sweep, point, benchmark):
    ff.measure_point(point, whole.rows_of(ff.KIND, request, sweep), benchmark)
