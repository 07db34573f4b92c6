"""Wires the sweep into pytest: options, points, what the terminal shows, the journal and the results file.

Threads are set up in the first lines, before anything imports torch: OpenMP reads its environment only once.
"""

import time

STARTED = time.perf_counter()

from bench.machine import setup  # noqa: E402

THREADS = setup.pin()

import signal  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Generator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from pytest_benchmark.logger import PytestBenchmarkWarning  # noqa: E402

from bench.files import journal  # noqa: E402
from bench.files.errors import UsageError  # noqa: E402
from bench.files.progress import Progress  # noqa: E402
from bench.files.rounding import rounded  # noqa: E402
from bench.files.terminal import many  # noqa: E402
from bench.machine.device import clock_of  # noqa: E402
from bench.modules import timed  # noqa: E402
from bench.sweep import launch, output, points, progress, request, rerun  # noqa: E402
from bench.sweep.sweep import Sweep  # noqa: E402
from structures.reading import BadFile  # noqa: E402

SWEEP = pytest.StashKey[Sweep]()
PROGRESS = pytest.StashKey[Progress]()
JOURNAL = pytest.StashKey[journal.Journal]()
OUTPUT = pytest.StashKey[Path | None]()
SAID = pytest.StashKey[list[str]]()
UNREACHABLE_TEST = "test_budget_is_out_of_reach"

collect_ignore = ["test_ff.py", "test_decoder.py"]  # whole modules and models take minutes: they run by path alone


def pytest_addoption(parser: pytest.Parser) -> None:
    request.add_options(parser.getgroup("structures", "the sweep of structured layers"))


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.benchmark_verbose:
        config.option.benchmark_quiet = True  # a line a point takes the place of one wide table
    # A point that is refused or fails leaves its fixture unused, and a sweep may have refusals only.
    config.addinivalue_line("filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
    config.stash[SAID] = []
    try:
        config.stash[OUTPUT] = launch.output(config.option)
        argv = ["pytest", *map(str, config.invocation_params.args)]
        layers = not config.args or any(Path(arg.split("::")[0]).name not in collect_ignore for arg in config.args)
        config.stash[SWEEP] = launch.sweep(config.option, THREADS, argv, since=STARTED, layers=layers)
    except (UsageError, BadFile) as error:
        raise pytest.UsageError(str(error)) from None


# -- points


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sweep = metafunc.config.stash[SWEEP]
    if metafunc.function.__name__ == "test_linear":
        rows = [pytest.param(*points.scalars(p), id=str(p), marks=_marks(p, sweep)) for p in sweep.mine]
        metafunc.parametrize(points.SCALARS, rows)
    elif metafunc.function.__name__ == UNREACHABLE_TEST:
        rows = [pytest.param(*points.scalars(u), id=str(u)) for u in sweep.unreachable]
        metafunc.parametrize(points.UNREACHABLE_SCALARS, rows)


def _marks(point: points.Point, sweep: Sweep) -> list[pytest.MarkDecorator]:
    effort = sweep.effort
    rounds = {"min_rounds": effort.rounds, "max_time": effort.alone, "min_time": effort.slice, "warmup": False}
    stop = {"precision": effort.precision, "confidence": effort.confidence, "calibration_precision": 100}
    timer = clock_of(point.device, point.clock)
    return [pytest.mark.benchmark(disable_gc=True, timer=timer, **rounds, **stop)]


@pytest.hookimpl(trylast=True)  # after -k and the like have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sweep = config.stash[SWEEP]
    if not sweep.unreachable:  # pytest puts one skipped test in place of none
        items[:] = [item for item in items if getattr(item, "originalname", "") != UNREACHABLE_TEST]
    sweep.selected = [_id(item) for item in items if _of_sweep(item)]
    wholes = [_id(item) for item in items if timed.is_whole(item)]
    if wholes:
        try:
            timed.begin(config, sweep, wholes)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
    if config.option.list or config.option.collectonly or config.option.check or hasattr(config, "workerinput"):
        return
    if not sweep.selected or config.stash[OUTPUT] is None:
        return
    try:
        opened, said = launch.journal_of(config.stash[OUTPUT], sweep, resume=bool(config.option.resume))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[JOURNAL] = opened
    config.stash[SAID] += said
    done = sweep.finished
    left = [item for item in items if not (_of_sweep(item) and _id(item) in done)]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left


def _id(item: pytest.Item) -> str:
    return str(getattr(item, "callspec").id)  # noqa: B009


def _of_sweep(item: pytest.Item) -> bool:
    return point_of(item) is not None or timed.is_whole(item) or getattr(item, "originalname", "") == UNREACHABLE_TEST


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


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> timed.Rows:
    """Those of the whole modules or models of this run."""
    return request.config.stash[timed.ROWS]


# -- the terminal


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config._benchmarksession.json = None  # the file is written here: whole or not at all
    _stop_at_ctrl_c(session)
    reporter = _reporter(session.config)
    if reporter is not None and session.config.get_verbosity() <= 0:
        reporter.showfspath = False  # no file name in front of the first line
        reporter._show_progress_info = False  # and no percentage: our lines tell what is left


def _stop_at_ctrl_c(session: pytest.Session) -> None:
    """End the run after the point under way; a second ctrl-C ends it at once.

    An exception raised anywhere would be dropped inside a destructor, or break what pytest is about to print.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler:
        return

    def stop(number: int, frame: object) -> None:
        session.shouldstop = "interrupted; the points before are kept"
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, stop)
    session.config.add_cleanup(lambda: signal.signal(signal.SIGINT, usual) and None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if not config.option.list:
        if reporter := _reporter(config):
            for line in config.stash[SAID]:
                reporter.write_line(line)
        config.stash[SAID].clear()
        expected = [seconds for item in session.items if (seconds := _expected(item)) is not None]
        config.stash[PROGRESS] = Progress(expected)
        return None
    if reporter := _reporter(config):
        if timed.ROWS in config.stash:
            for name in (*(names := config.stash[timed.ROWS].ids), many(len(names), "point")):
                reporter.write_line(name)
            return True
        items = [item for item in session.items if _of_sweep(item)]
        for line in launch.listing([(_id(item), point_of(item)) for item in items], config.stash[SWEEP]):
            reporter.write_line(line)
    return True


def _reporter(config: pytest.Config) -> pytest.TerminalReporter | None:
    return config.pluginmanager.get_plugin("terminalreporter")  # None under -p no:terminal


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not _of_sweep(item) or report.when == "teardown" or (report.when == "setup" and report.passed):
        return report
    point = point_of(item)
    text = f"{progress.shown(point):76} {_record(item, call, report, point)}" if point is not None else ""
    _keep(item)  # before it is shown: what was shown is never lost
    reporter, seconds = _reporter(item.config), _expected(item)
    if timed.is_whole(item):
        text = item.config.stash[timed.ROWS].said(_id(item))
    if reporter and seconds is not None:
        shown = item.config.stash[PROGRESS]
        if _id(item) in item.config.stash[SWEEP].not_now:
            shown.skip(seconds)
        elif point is not None or report.passed:
            reporter.ensure_newline()
            reporter.write_line(shown.line(seconds, text))
            reporter.flush()  # through a pipe too, and before a kill
    return report


def _expected(item: pytest.Item) -> float | None:
    """About how many seconds a point takes; of whole modules, in units of their own."""
    if timed.is_whole(item):
        return float(getattr(item, "callspec").params["point"].cost)  # noqa: B009
    point = point_of(item)
    return None if point is None else progress.expected(point, item.config.stash[SWEEP].effort)


def _record(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, point: points.Point) -> str:
    """Take a point's row or its refusal into the sweep; what the terminal says of it."""
    sweep = item.config.stash[SWEEP]
    if report.passed:
        measured = getattr(item, "funcargs", {}).get("benchmark")
        if measured is not None and measured.stats is not None:
            sweep.add(_id(item), output.row_of(measured.stats))
        return progress.outcome(sweep.done[-1])
    error = call.excinfo
    named = f"{error.typename}: {error.value}" if error is not None and not report.skipped else ""
    sweep.refuse(point, named or (str(error.value) if error is not None else report.outcome))
    return f"{report.outcome}: {sweep.refusals[_id(item)]['reason']}"


def _keep(item: pytest.Item) -> None:
    """Bring what is new into the journal; a journal that cannot be written ends the run."""
    config = item.config
    sweep, kept = config.stash[SWEEP], config.stash.get(JOURNAL, None)
    if kept is None or not sweep.news:
        sweep.news.clear()
        return
    try:
        kept.add(rounded([*sweep.news, {"load": [sweep.load.all_foreign, sweep.load.all_seconds]}]))
    except journal.JournalFailed as error:
        item.session.shouldstop = str(error)
        config.stash[SAID].append(str(error))
    sweep.news.clear()


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    ours = any(f"bench/{name}.py::" in report.nodeid for name in ("test_linear", "test_ff", "test_decoder"))
    if ours and config.get_verbosity() <= 0 and (report.when == "call" or not report.passed):
        return report.outcome, "", ""
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    sweep = config.stash.get(SWEEP, None)
    if sweep is None or config.option.list or config.option.collectonly:
        return
    if timed.ROWS in config.stash:
        for line in (*config.stash[timed.ROWS].summary(config.stash[OUTPUT]), *config.stash[SAID]):
            terminalreporter.write_line(line)
    if not (sweep.done or sweep.refusals):
        return
    terminalreporter.section("verdict", sep="-")
    for line in (*progress.summary(sweep, config.stash[OUTPUT]), *config.stash[SAID]):
        terminalreporter.write_line(line)


# -- the results file


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
    config = session.config
    sweep = config.stash.get(SWEEP, None)
    if sweep is not None and hasattr(session, "items"):
        sweep.complete = set(sweep.selected) <= sweep.finished
        if sweep.complete and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and sweep.selected:
            session.exitstatus = pytest.ExitCode.OK  # a run gone on with had nothing left to measure
    with warnings.catch_warnings():  # outside of pytest's own filters here
        warnings.simplefilter("ignore", PytestBenchmarkWarning)  # that no times were found, under --list
        if sweep is not None and not config.option.list and not config.option.collectonly:
            _write(session, sweep)
        yield


def _write(session: pytest.Session, sweep: Sweep) -> None:
    """Write the results file, and where it is complete remove the journal."""
    config = session.config
    path, kept = config.stash[OUTPUT], config.stash.get(JOURNAL, None)
    sweep.journalled = kept is not None
    measured = sweep.rows or sweep.whole or sweep.refusals or config._benchmarksession.benchmarks
    if path is None or hasattr(config, "workerinput") or not measured:
        if kept is not None and not measured:
            kept.remove()  # it ended before its first point
        return
    sweep.extra_facts["rerun"] = rerun.command(path, list(sweep.rows.values()))
    try:
        output.write(config, path)
    except OSError as error:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
        where = f"; all points are in {kept.path}: make room and add --resume {path}" if kept else ""
        config.stash[SAID].append(f"{path}: cannot be written: {error.strerror}{where}")
        if kept is not None:
            kept.close()
        return
    if kept is not None:
        kept.remove() if sweep.complete else kept.close()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, object]) -> None:
    output.extend(output_json, config.stash[SWEEP])
