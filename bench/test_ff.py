"""The DYAD authors' measurement of feed-forward modules; `pytest bench/test_ff.py --benchmark-json=ff.json` runs it."""

from bench import ff, whole


def pytest_generate_tests(metafunc):
    whole.parametrize(metafunc, ff)


def test_feed_forward(rows, point, benchmark):
    rows.measure(point, ff.measure_point, benchmark)
