"""Whole decoders, dense against structured; `pytest bench/test_decoder.py --benchmark-json=decoder.json` runs it."""

from bench import decoder, whole


def pytest_generate_tests(metafunc):
    whole.parametrize(metafunc, decoder)


def test_decoder(rows, point, benchmark):
    rows.measure(point, decoder.measure_point, benchmark)
