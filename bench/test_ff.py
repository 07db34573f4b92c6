"""The DYAD authors' measurement of feed-forward modules; `pytest bench/test_ff.py --benchmark-json=ff.json` runs it."""

from bench.modules import feed_forward, timed


def pytest_generate_tests(metafunc):
    timed.parametrize(metafunc, feed_forward)


def test_feed_forward(rows, point, benchmark):
    rows.measure(point, feed_forward.measure_point, benchmark)
