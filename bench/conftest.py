"""Wires the sweep into pytest: options, points, what the terminal shows, and the results file.

Threads are set up in the first lines, before anything imports torch: OpenMP reads its environment only once.
"""

from bench import machine

THREADS = machine.pin()

import warnings  # noqa: E402
from collections.abc import Generator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from pytest_benchmark.logger import PytestBenchmarkWarning  # noqa: E402

from bench import output, points, progress, request  # noqa: E402
from bench.cell import clock_of  # noqa: E402
from bench.sweep import Sweep  # noqa: E402
from bench.wrong import Wrong, one_of  # noqa: E402

SWEEP = pytest.StashKey[Sweep]()
PROGRESS = pytest.StashKey[progress.Progress]()
UNREACHABLE_TEST = "test_budget_is_out_of_reach"


def pytest_addoption(parser: pytest.Parser) -> None:
    request.add_options(parser.getgroup("structures", "the sweep of structured layers"))


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.benchmark_verbose:
        config.option.benchmark_quiet = True  # a line a point takes the place of one wide table
    # A point that is refused or fails leaves its fixture unused, and a sweep may have refusals only.
    config.addinivalue_line("filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
    try:
        config.stash[SWEEP] = _sweep(config)
    except Wrong as error:
        raise pytest.UsageError(str(error)) from None


def _sweep(config: pytest.Config) -> Sweep:
    allocator = one_of("--allocator", config.option.allocator, ("tuned", "plain"))
    asked = request.read(vars(config.option), cuda=torch.cuda.is_available(), cores=THREADS.count)
    sweep = Sweep(
        request=asked,
        threads=THREADS,
        allocator=machine.tune_allocator() if allocator == "tuned" else machine.plain_allocator(),
        argv=["pytest", *map(str, config.invocation_params.args)],
    )
    sweep.points, sweep.unreachable = points.points(asked)
    return sweep


# -- points


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sweep = metafunc.config.stash[SWEEP]
    if metafunc.function.__name__ == "test_linear":
        rows = [pytest.param(*points.scalars(p), id=str(p), marks=_marks(p)) for p in sweep.points]
        metafunc.parametrize(points.SCALARS, rows)
    elif metafunc.function.__name__ == UNREACHABLE_TEST:
        rows = [pytest.param(*points.scalars(u), id=str(u)) for u in sweep.unreachable]
        metafunc.parametrize(points.UNREACHABLE_SCALARS, rows)


def _marks(point: points.Point) -> list[pytest.MarkDecorator]:
    return [pytest.mark.benchmark(disable_gc=True, timer=clock_of(point.device))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.stash[SWEEP].unreachable:  # pytest puts one skipped test in place of none
        items[:] = [item for item in items if getattr(item, "originalname", "") != UNREACHABLE_TEST]


def _of_sweep(item: pytest.Item) -> bool:
    return point_of(item) is not None or getattr(item, "originalname", "") == UNREACHABLE_TEST


def point_of(item: pytest.Item) -> points.Point | None:
    """The point that a test measures."""
    values = getattr(getattr(item, "callspec", None), "params", {})
    if set(points.SCALARS) <= set(values):
        return points.Point(**{name: values[name] for name in points.SCALARS})
    return None


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> Sweep:
    """The run that this test belongs to."""
    return request.config.stash[SWEEP]


# -- the terminal


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = _reporter(session.config)
    if reporter is not None and session.config.get_verbosity() <= 0:
        reporter.showfspath = False  # no file name in front of the first line
        reporter._show_progress_info = False  # and no percentage: our lines tell what is left


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if not config.option.list:
        todo = [p for item in session.items if (p := point_of(item)) is not None]
        config.stash[PROGRESS] = progress.Progress(todo, config.stash[SWEEP].effort)
        return None
    if reporter := _reporter(config):
        ids = [item.callspec.id for item in session.items if isinstance(item, pytest.Function) and _of_sweep(item)]
        for line in (*ids, f"{len(ids)} points"):
            reporter.write_line(line)
    return True


def _reporter(config: pytest.Config) -> pytest.TerminalReporter | None:
    return config.pluginmanager.get_plugin("terminalreporter")  # None under -p no:terminal


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    point = point_of(item)
    if point is None or report.when == "teardown" or (report.when == "setup" and report.passed):
        return report
    sweep = item.config.stash[SWEEP]
    if report.passed:
        text = progress.outcome(sweep.done[-1])
    else:
        error = call.excinfo
        named = f"{error.typename}: {error.value}" if error is not None and not report.skipped else ""
        sweep.refuse(point, named or (str(error.value) if error is not None else report.outcome))
        text = f"{report.outcome}: {sweep.refused[-1]['reason']}"
    if reporter := _reporter(item.config):
        reporter.ensure_newline()
        reporter.write_line(item.config.stash[PROGRESS].line(point, text))
    return report


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    ours = "bench/test_linear.py::" in report.nodeid
    if ours and config.get_verbosity() <= 0 and (report.when == "call" or not report.passed):
        return report.outcome, "", ""
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    sweep = config.stash.get(SWEEP, None)
    if sweep is None or config.option.list or config.option.collectonly:
        return
    terminalreporter.section("fastest against dense", sep="-")
    for line in progress.summary(sweep, config.option.benchmark_json):
        terminalreporter.write_line(line)


# -- the results file


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
    sweep = session.config.stash.get(SWEEP, None)
    if sweep is not None and hasattr(session, "items"):
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        sweep.complete = ended and len(sweep.done) + len(sweep.refused) == sum(map(_of_sweep, session.items))
        output.save_refusals(session.config, sweep)
    with warnings.catch_warnings():  # outside of pytest's own filters here
        warnings.simplefilter("ignore", PytestBenchmarkWarning)  # that no times were found, under --list
        yield


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, object]) -> None:
    output.extend(output_json, config.stash[SWEEP])
