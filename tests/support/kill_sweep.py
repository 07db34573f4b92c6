"""Kill a real sweep at random moments, go on with it each time, and compare its file with that of an unbroken run.

    python tests/support/kill_sweep.py FOLDER KILLS SEED

prints what was found as JSON. Each run is a process forked from this one, which has torch loaded, so that a hundred
kills take a minute; it is killed by SIGKILL, SIGTERM and SIGHUP in turn.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SWEEP = ("--structures=dyad_it:n_blocks=2,3,4 monarch low_rank:rank=4", "--widths=16", "--tokens=4",
         "--no-controls", "--benchmark-precision=0.9", "--threads=1", "--backend=einsum",
         "-p", "no:hypothesispytest", "-p", "no:xdist")  # fmt: skip


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)  # a kernel out of memory, a scheduler, a closed terminal


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """What was seen; see the assertions of `run_until_done` for what must hold after every kill."""
    import pytest_benchmark.plugin

    import bench.sweep.launch  # noqa: F401  # so that forked processes have it
    from bench.machine import roofline, setup

    # The ends of a run take seconds that no point is in: without them, the kills fall among the points.
    roofline.COPIES, roofline.GEMM, roofline.SECONDS = (2**12, 2**14), {"cpu": 64}, 1e-3
    pytest_benchmark.plugin.get_cpu_info = lambda: {}  # it starts another Python, for a second
    setup.commit = lambda: {"commit": "0" * 40, "dirty": False}  # somebody may commit meanwhile
    torch.set_num_threads(1)
    dice = random.Random(seed)
    run(folder / "first", [])
    unbroken, seconds = run(folder / "unbroken", [])
    killed, rounds, begun = 0, 0, 0
    while killed < kills:
        begun += 1
        here = folder / f"broken{begun}"
        killed, some = run_until_done(here, dice, seconds, killed, kills)
        rounds += some
        same(json.loads((here / "r.json").read_text()), unbroken, broken=some > 1)
        assert set(os.listdir(here)) <= {"log", "r.json", ".benchmarks"}, os.listdir(here)
    return {"kills": killed, "runs": rounds, "sweeps": begun, "points": len(unbroken["benchmarks"])}


def run_until_done(here: Path, dice: random.Random, seconds: float, killed: int, kills: int) -> tuple[int, int]:
    """Kill and go on until the sweep ends; after each kill no point that was shown may be missing."""
    runs = 0
    while not (here / "r.json").exists() or (here / "r.json.journal").exists():
        runs += 1
        assert runs < 200, (here / "log").read_text()[-2000:]
        resumed = ["--resume=r.json"] if (here / "r.json.journal").exists() else []
        if resumed and not (here / "r.json.journal").read_bytes().count(b"\n"):
            (here / "r.json.journal").unlink()  # killed before the header was whole: nothing to go on with
            resumed = []
        process = start(here, resumed)
        if killed < kills:
            time.sleep(dice.uniform(0, seconds))
            os.kill(process, SIGNALS[killed % len(SIGNALS)])
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert os.waitstatus_to_exitcode(status) == 0, (here / "log").read_text()[-2000:]
        journal = here / "r.json.journal"
        if journal.exists():
            shown = len(re.findall(r"^\[ *\d+/", (here / "log").read_text(), re.MULTILINE))
            kept = len(points_in(journal.read_bytes()))
            assert shown <= kept <= shown + runs, (shown, kept, runs, (here / "log").read_text()[-2000:])
    return killed, runs


def points_in(journal: bytes) -> set[str]:
    """The ids of the points that the whole lines of a journal hold."""
    entries = [
        entry for line in journal.splitlines(keepends=True) if line.endswith(b"\n") for entry in json.loads(line)
    ]
    return {entry["id"] for entry in entries if "-t4-" in entry.get("id", "")}


def run(here: Path, arguments: list[str]) -> tuple[Any, float]:
    """The results file of a run that is left alone, and its seconds."""
    begun = time.perf_counter()
    _, status = os.waitpid(start(here, arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 0, (here / "log").read_text()[-2000:]
    return json.loads((here / "r.json").read_text()), time.perf_counter() - begun


def start(here: Path, arguments: list[str]) -> int:
    """A sweep in a process of its own; its number."""
    here.mkdir(exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        log = os.open(here / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(here)
        output = [] if arguments else ["--benchmark-json=r.json"]
        code = int(
            pytest.main(
                [str(ROOT / "bench"), f"--rootdir={ROOT}", "-p", "no:cacheprovider", *SWEEP, *output, *arguments]
            )
        )
    finally:
        sys.stdout.flush()
        os._exit(code)


def same(found: Any, unbroken: Any, *, broken: bool) -> None:
    """The same rows, order, fields and sections; figures may differ."""
    assert [b["name"] for b in found["benchmarks"]] == [b["name"] for b in unbroken["benchmarks"]]
    for one, other in zip(found["benchmarks"], unbroken["benchmarks"], strict=True):
        assert keys(one) == keys(other), (one, other)
    a, b = found["structures"], unbroken["structures"]
    assert list(a) == list(b) and a["refused"] == b["refused"] and a["rules"] == b["rules"]
    assert [list(limits) for limits in a["roofline"]] == [list(limits) for limits in b["roofline"]]
    run, other = dict(a["run"]), dict(b["run"])
    assert run["complete"] is True
    resumed = run.pop("resumed", [])
    assert not broken or not resumed or all(one["datetime"] >= run["datetime"] for one in resumed)
    assert set(run) == set(other) and run["request"] == other["request"]


def keys(value: Any) -> Any:
    """The keys of a row, those inside it included; names of ways to run dense, which are timed, are timed."""
    return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
