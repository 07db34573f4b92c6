"""Whole runs of `pytest bench` in processes of their own, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

from processes import run_pytest

from bench.machine import setup

ROOT = Path(__file__).parents[2]
# What takes seconds and is no part of the test, and what may change while it runs: somebody may commit.
QUICK = """
import pytest, pytest_benchmark.plugin
from bench.machine import setup
setup.commit = lambda: {"commit": "0" * 40, "dirty": False}
pytest_benchmark.plugin.get_cpu_info = lambda: {}
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):  # not before: it brings torch, and its threads come first
    from bench.machine import roofline
    roofline.COPIES, roofline.GEMM, roofline.SECONDS = (2**12, 2**14), {"cpu": 64}, 1e-3
"""
STILL = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # which is imported for a second at the end of a run


def environment():
    # PYTEST_XDIST_*: pytest-benchmark measures nothing in what it takes for a worker of this run
    kept = {n: value for n, value in os.environ.items() if n not in setup.OPENMP and not n.startswith("PYTEST_")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    return kept | {"PYTHONPATH": paths, "STRUCTURES_CACHE": str(_cache())}


def _cache() -> Path:
    """A folder for what these processes measure: the plans of this one must not depend on it."""
    own = Path(os.environ["STRUCTURES_CACHE"])
    folder = own / "runs"
    folder.mkdir(exist_ok=True)
    if (own / "native").exists() and not (folder / "native").exists():
        (folder / "native").symlink_to(own / "native")
    return folder


def command(folder, *arguments):
    return [sys.executable, "-m", "pytest", str(ROOT / "bench"), f"--rootdir={ROOT}", *STILL,
            f"--benchmark-json={folder / 'results.json'}", *arguments]  # fmt: skip


def run(folder, *arguments, json_file=True, forked=False, **process):
    """A finished run: its exit status, what it printed, and its results file, if there is one."""
    words = [word for word in command(folder, *arguments) if json_file or not word.startswith("--benchmark-json")]
    if forked:
        status, text = run_pytest(folder, words[3:], environment())
    else:
        done = subprocess.run(
            words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, **process
        )
        status, text = done.returncode, done.stdout + done.stderr
    file = folder / "results.json"
    return status, text, json.loads(file.read_text()) if file.exists() else None


def quick(folder, *arguments, precise=True, **process):
    """As `run`, without what takes seconds beside the points, from torch's import on where the process allows it."""
    (folder / "plugin_quick.py").write_text(QUICK)
    still = ["-p", "plugin_quick", "-p", "no:xdist"]
    # a second thread would spin on a core that another test runs on
    still += [] if any(word.startswith(("--threads", "--rerun")) for word in arguments) else ["--threads=1"]
    still += ["--benchmark-precision=0.9"] if precise else []
    return run(folder, *still, *arguments, forked="preexec_fn" not in process, **process)
