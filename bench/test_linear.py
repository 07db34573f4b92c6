"""The sweep: every structure and dense, checked and then timed, on the same shapes."""

import pytest

from bench.sweep.points import SCALARS, Point, UnreachableBudget
from bench.sweep.subject import NotNow, Refused


@pytest.fixture
def point(request):
    return Point(**{name: request.node.callspec.params[name] for name in SCALARS})


def test_budget_is_out_of_reach(sweep, structure, budget, in_features, out_features, reason):
    sweep.refuse(UnreachableBudget(structure, budget, in_features, out_features, reason), reason)
    pytest.skip(reason)


@pytest.mark.usefixtures(*SCALARS)  # plain values: a point is chosen and shown by them
def test_linear(sweep, point, benchmark):
    try:
        sweep.measure(point, benchmark)
    except Refused as refusal:
        if isinstance(refusal, NotNow):
            sweep.not_now.add(str(point))
        pytest.skip(str(refusal))
