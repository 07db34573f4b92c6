"""One thread a process, and a file's tests in one process: they are small, and share what their fixtures have made."""

import gc
import math
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

# Before torch and numpy are loaded. A command run in this process keeps to one thread too; where a test takes two, the
# one that waits leaves its core to the other processes.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import torch

from structures import registry
from structures.backends.planned import measure, rates


class _All(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


# Many processes are started: what they import is compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# nothing is measured on the way, or again: plans must not change from one test to the next
measure._tried, measure.AGAIN = _All(), math.inf

_own = Path(tempfile.mkdtemp(prefix="structures-"))
_objects = rates.folder().absolute() / "native"
try:
    _objects.mkdir(mode=0o700, parents=True, exist_ok=True)
    (_own / "native").symlink_to(_objects)  # the kernel's object is the same for all: compiled once, not a process each
except OSError:  # no home to write to
    pass
os.environ["STRUCTURES_CACHE"] = str(_own)  # plans must not depend on what was measured
torch.set_num_threads(1)


# Files of few tests that take more than eight seconds. They come first: what comes last is short, so that no process
# is left alone with a long file.
FIRST = {"test_browser", "test_compile", "test_encoder", "test_fuzz", "test_journal", "test_options",
        "test_random_einsums", "test_readme", "test_search", "test_sequential", "test_sweep", "test_training_resume",
        "test_training_run", "test_transformers"}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By files, unless `--dist` says otherwise: each process would make the runs that a module's tests look at."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_modifyitems(items):
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.stem not in FIRST, -tests[item.path], item.path))


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def nothing_added_stays():
    """Of what a test adds to the registry."""
    added = dict(registry._added)
    yield
    registry._added.clear()
    registry._added.update(added)


def pytest_runtest_teardown():
    torch.set_num_threads(1)


def pytest_sessionfinish():
    gc.collect()
    gc.freeze()  # pytest collects five times more, and Python when it ends


def pytest_collection_finish():
    gc.freeze()  # torch and nine thousand tests are no garbage: no collection need walk them again
    gc.set_threshold(20_000, 20, 50)  # what planners and compilers keep is no garbage either: looked at less often
