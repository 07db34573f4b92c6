"""Limits of a run: shards, a budget of time, a limit for each point, and rounds that end when they are precise."""

import signal
import time
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from bench.files import options
from bench.files.errors import UsageError
from bench.machine import roofline, setup, timing
from bench.machine.roofline import Roofline
from bench.machine.timing import Effort
from bench.sweep import limits, points, progress, request, shards
from bench.sweep.limits import TimeBudget, TimedOut, alarm
from bench.sweep.points import Point
from bench.sweep.subject import NotNow, Refused
from bench.sweep.sweep import Sweep

POINT = Point("dyad_it", "dyad_it", "n_blocks=4", None, 64, 64, 16, "float32", "cpu", "forward", "auto", 1, False)


# -- shards


@pytest.fixture(scope="module")
def default():
    return points.points(request.read({}, cuda=False, cores=2))


def cost(point):
    return progress.expected(point, timing.SHORT)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_are_disjoint_and_together_the_whole_sweep_in_its_order(default, n):
    ran, missed = default
    parts = [shards.of(ran, (k, n), cost) for k in range(1, n + 1)]
    assert Counter(p for part in parts for p in part) == Counter(ran)
    for part in parts:
        assert part == [p for p in ran if p in set(part)]
    left = [shards.unreachable_of(missed, (k, n)) for k in range(1, n + 1)]
    assert Counter(u for part in left for u in part) == Counter(missed)


def test_a_curve_is_whole_in_one_shard_and_the_shards_take_about_as_long(default):
    ran, _ = default
    of_curve = defaultdict(set)
    totals = []
    for k in (1, 2, 3, 4):
        mine = shards.of(ran, (k, 4), cost)
        totals.append(sum(map(cost, mine)))
        for point in mine:
            of_curve[shards.curve(point)].add(k)
    assert all(len(found) == 1 for found in of_curve.values())
    assert len({p.tokens for p in ran}) > 1  # curves over tokens are whole as well
    assert max(totals) / min(totals) < 1.1
    assert shards.of(ran, (2, 4), cost) == shards.of(list(ran), (2, 4), cost)


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/9999"])
def test_a_wrong_shard_says_what_is_allowed(text):
    with pytest.raises(UsageError, match=r"is no shard. Allowed: K/N with K from 1 to N"):
        options.shard(text)
    assert options.shard("2/8") == (2, 8)


# -- time


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (".5s", 0.5)])
def test_times_are_numbers_with_a_unit(text, seconds):
    assert limits.duration("--time-budget", text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "-5m", "1d", "10 m", "1e3s", "9999h"])
def test_a_wrong_time_says_what_is_allowed(text):
    with pytest.raises(UsageError, match=r"--time-budget: .* is not a time. Allowed: 90s, 10m, 1.5h"):
        limits.duration("--time-budget", text)


def test_times_are_told_as_they_are_given():
    assert [limits.words(s) for s in (90, 600, 3600, 7200, 0.5)] == ["90s", "10m", "60m", "2h", "0.5s"]


def cells(*widths):
    """Three structures at each width."""
    return [replace(POINT, in_features=n, out_features=n, structure=s) for n in widths for s in ("a", "b", "c")]


def simulated(budget_seconds, *, takes, widths=(64, 128, 256, 512), expected=1.0, setup=0.0):
    """Which points run, each taking `takes` seconds where `expected` were estimated; and the reasons of the others."""
    now = [0.0]
    some = cells(*widths)
    budget = TimeBudget(budget_seconds, some, lambda p: expected, since=0.0, clock=lambda: now[0])
    ran, reasons = [], []
    for i, point in enumerate(some):
        reason = budget.admit(point)
        if reason:
            reasons.append(reason)
            continue
        now[0] += takes + (0 if i else setup)
        budget.finished(point)
        ran.append(point)
    return ran, reasons, now[0]


@pytest.mark.parametrize("takes", [0.2, 1.0, 1.3])
@pytest.mark.parametrize("seconds", [0.5, 4, 7, 11, 30])
def test_a_budget_leaves_out_whole_cells_and_is_kept(seconds, takes):
    ran, reasons, took = simulated(seconds, takes=takes)
    assert took <= seconds + (takes if any("sooner" in r for r in reasons) else 0)
    if not any("sooner" in r for r in reasons):
        assert set(Counter(p.in_features for p in ran).values()) <= {3}
    assert len(ran) + len(reasons) == 12
    widths = [p.in_features for p in ran]
    assert widths == sorted(widths)  # the cheap ones


def test_a_run_that_is_slower_than_estimated_learns_its_pace():
    ran, reasons, took = simulated(20, takes=3.0)
    assert len(ran) == 6 and took == 18  # two cells of 9 seconds; 3 were estimated
    assert all("leaves no time for all structures" in reason for reason in reasons)


def test_the_first_point_sets_up_the_machine_and_tells_no_pace():
    ran, *_ = simulated(30, takes=1.0, setup=10.0)
    assert len(ran) == 12


def test_a_cell_that_takes_much_longer_is_broken_off():
    ran, reasons, took = simulated(4, takes=3.0)
    assert len(ran) == 2 and took == 6
    assert "--time-budget 4s ran out earlier than estimated" in reasons[0]


def test_an_alarm_ends_a_call_even_where_its_errors_are_swallowed():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimedOut), alarm(0.02):
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                pass
    with pytest.raises(TimedOut), alarm(0.02):
        try:
            time.sleep(5)
        except BaseException:
            time.sleep(5)  # the alarm rings again
    with alarm(None), alarm(60):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a, **k: Roofline(*a, 1e11, ((1000, 1e10),), 1e-6, 1e-5))
    asked = request.read({"structures": "dyad_it:n_blocks=4"}, cuda=False, cores=torch.get_num_threads())
    return Sweep(asked, setup.Threads(1, (0,), True, False), "plain", ["pytest"])


def test_a_point_that_takes_too_long_is_a_refusal_with_its_reason(sweep, monkeypatch):
    sweep.point_timeout = 0.05
    monkeypatch.setattr(timing, "paired", lambda *a, **k: time.sleep(10))
    with pytest.raises(Refused, match=r"^timed out: took longer than --point-timeout 0.05s$"):
        sweep.measure(replace(POINT, threads=torch.get_num_threads()), None)
    assert sweep._cell is None


def test_a_point_under_way_when_the_budget_ends_is_left_for_another_run(sweep, monkeypatch):
    point = replace(POINT, threads=torch.get_num_threads())
    sweep.budget = TimeBudget(0.3, [point], lambda p: 0.0, since=time.perf_counter())
    monkeypatch.setattr(timing, "paired", lambda *a, **k: time.sleep(10))
    with pytest.raises(NotNow, match="not run to its end"):
        sweep.measure(point, None)
    sweep.not_now.add(str(point))
    sweep.refuse(point, "not run")
    assert str(point) not in sweep.finished and not any("refused" in entry for entry in sweep.news)
    assert [row["reason"] for row in sweep.refused] == ["not run"]


# -- rounds


class Noisy:
    """A clock, and a step whose times spread by a share around a second's thousandth."""

    def __init__(self, spread):
        self.now, self.spread, self.calls = 0.0, spread, 0

    def __call__(self):
        return self.now

    def step(self):
        self.calls += 1
        self.now += 1e-3 * (1 + self.spread * (-1 if self.calls % 3 else 1))


@pytest.mark.parametrize(("spread", "rounds"), [(0.0, 4), (0.02, 6), (0.5, 100)])
def test_quiet_points_get_few_rounds_and_noisy_ones_many(spread, rounds):
    clock, other = Noisy(spread), Noisy(0.0)
    effort = Effort(paired=10, alone=1, rounds=4, most=100, precision=0.03)

    def dense():
        clock.now += 1e-3

    found = timing.paired(clock.step, dense, effort, seconds=(1e-3, 1e-3), clock=clock)
    assert other.calls == 0
    assert found.rounds == 4 if rounds == 4 else 4 <= found.rounds <= rounds
    assert found.rounds % 2 == 0  # both orders as often
    assert found.margin <= 0.03 or found.rounds == 100


def test_the_margin_is_pytest_benchmarks():
    values = [1.0, 1.1, 0.9, 1.05]
    mean, n = sum(values) / 4, 4
    deviation = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    assert timing.margin_of_error(values, 0.95) == pytest.approx(1.959964 * deviation / n**0.5 / mean)
    assert timing.margin_of_error([1.0], 0.95) == float("inf")
    assert timing.spread([1.0]).margin is None
