"""The sweep: every structure and dense, checked and then timed, on the same shapes."""

import pytest

from bench.sweep.points import Point, UnreachableBudget
from bench.sweep.subject import NotNow, Refused


@pytest.fixture
def point(structure, series, options, budget, in_features, out_features, tokens, dtype, device, mode, backend, threads,
          control, clock):  # fmt: skip
    what = (structure, series, options, budget)
    where = (in_features, out_features, tokens, dtype, device, mode, backend, threads)
    return Point(*what, *where, control, clock)


def test_budget_is_out_of_reach(sweep, structure, budget, in_features, out_features, reason):
    sweep.refuse(UnreachableBudget(structure, budget, in_features, out_features, reason), reason)
    pytest.skip(reason)


def test_linear(sweep, point, benchmark):
    try:
        sweep.measure(point, benchmark)
    except Refused as refusal:
        if isinstance(refusal, NotNow):
            sweep.not_now.add(str(point))
        pytest.skip(str(refusal))
