"""Whole decoders, dense against structured; `pytest bench/test_decoder.py --benchmark-json=decoder.json` runs it."""

from bench.modules import decoder, timed


def pytest_generate_tests(metafunc):
    timed.parametrize(metafunc, decoder)


def test_decoder(rows, point, benchmark):
    rows.measure(point, decoder.measure_point, benchmark)
