"""A GPU run of ten minutes on a bare rented machine: check everything, compare what decides, sweep in order of worth.

    python -m bench.sweep.gpu FOLDER [--minutes 9.5]

Needs the repository, torch with CUDA, triton, pytest, pytest-benchmark and scipy; installs nothing, asks nobody. Every
point is written at once, so that a run that is cut off is a whole result; what is left of the time goes to the sweep.
The report is written elsewhere: `python -m bench report FOLDER/*.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
FULL = 9.5 * 60  # seconds that the stages are made for: a rented machine ends a command after ten minutes
CHECK, FIRST = 90.0, 75.0  # seconds at most
LEAST = 15.0  # a portion of the sweep that has less is not begun
SPARE = 15.0  # seconds in which a process that is told to end does so
BACKENDS = "planned,bmm,triton"
MODULES = {"torch": "torch", "numpy": "numpy", "einops": "einops", "opt_einsum": "opt_einsum", "yaml": "pyyaml",
           "scipy": "scipy", "pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}  # fmt: skip
BENCHMARK = (5, 3, 1)  # the least version of pytest-benchmark: before it there was no --benchmark-precision
MAIN = "dyad_it:n_blocks=4,8 monarch:n_blocks=4,64"
OTHERS = "blast:n_blocks=16 btt low_rank block_diagonal:n_blocks=4 pixelfly butterfly dense"
LLAMA, OPT = "4096x11008,11008x4096,4096x4096", "768x3072,3072x768,768x768"


@dataclass(frozen=True)
class Portion:
    """A part of the sweep: what it asks `pytest bench` for, and the most seconds it takes."""

    name: str
    seconds: float
    options: Mapping[str, str]


def portion(name: str, seconds: float, shapes: str, named: str, tokens: str, mode: str, **more: str) -> Portion:
    """A portion in bfloat16 by the device's clock, unless it says otherwise."""
    given = {"structures": named, "shapes": shapes, "tokens": tokens, "mode": mode}
    return Portion(name, seconds, {"dtypes": "bfloat16", "backend": BACKENDS, "clock": "device"} | given | more)


# in the order of worth; each may leave time to the next
PORTIONS = (
    portion("1-llama-forward", 80, LLAMA, MAIN, "1,128,4096", "forward"),
    portion("2-llama-train", 60, LLAMA, MAIN, "4096", "train"),
    portion("3-opt-forward", 50, OPT, MAIN, "1,128,4096", "forward"),
    portion("4-others-forward", 60, "4096x4096", OTHERS, "1,128,4096", "forward"),
    portion("5-widths", 50, "1024x1024,2048x2048,8192x8192", MAIN, "4096", "forward"),
    portion("6-llama-host", 40, "4096x11008", MAIN, "1,128,4096", "forward", clock="host"),
    portion("7-opt-train", 40, OPT, MAIN, "4096", "train"),
    portion("8-float32", 40, "4096x4096", MAIN, "4096", "forward", dtypes="float32"),
)


@dataclass(frozen=True)
class Rehearsal:
    """How the same run is made small where there is no GPU; None of its figures mean anything."""

    shapes: str = "64x64"
    tokens: str = "8"


class RentedRun:
    """The stages of a run, which share one clock."""

    def __init__(self, folder: Path, seconds: float, rehearsal: Rehearsal | None):
        self.folder, self.rehearsal = folder, rehearsal
        self.begun, self.end = time.monotonic(), time.monotonic() + seconds
        self.scale = min(1.0, seconds / FULL)  # of every stage, where the run is shorter than it is made for
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    def check(self) -> bool:
        """Outputs and gradients of every structure by every backend, in half as many processes as there are cores."""
        count = max(1, min(8, (os.cpu_count() or 1) // 2))
        options = {"dtypes": "float32,bfloat16", "mode": "forward,train", "shapes": "256x384", "tokens": "19"}
        most = self.scale * CHECK
        options |= {"backend": BACKENDS, "time-budget": f"{int(most - SPARE)}s", "point-timeout": "40s"}
        shards = [
            self._begin(["-m", "pytest", "bench/test_linear.py", "--check", "--no-controls", f"--shard={k}/{count}",
                         *self._options(options)], f"check-{k}.log")
            for k in range(1, count + 1)
        ]  # fmt: skip
        wrong = 0
        for k, process in enumerate(shards, 1):
            self._finish(process, self.begun + most - time.monotonic())
            lines = (self.folder / f"check-{k}.log").read_text().splitlines()
            faults = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            wrong += len(faults)
            for line in faults + lines[-1:]:
                self.say(f"check {k}/{count}: {line}")
        return not wrong

    def first_minute(self) -> None:
        """What decides whether the step kernel and its forms are worth a sweep."""
        rehearse = ["--rehearse"] if self.rehearsal else []
        process = self._begin(
            ["-m", "bench.sweep.gpu", str(self.folder), "--only-first-minute", *rehearse], "first-minute.log"
        )
        code = self._finish(process, min(self.scale * FIRST, self.left))
        for line in (self.folder / "first-minute.log").read_text().splitlines():
            self.say(line)
        if code:
            self.say(f"the first minute ended with {code}")

    def sweep(self, one: Portion) -> None:
        """One portion, in a file of its own with its journal."""
        seconds = min(self.scale * one.seconds, self.left - SPARE)
        options = {**one.options, "time-budget": f"{int(seconds)}s", "point-timeout": "30s"}
        options["benchmark-json"] = str(self.folder / f"{one.name}.json")
        words = ["-m", "pytest", "bench/test_linear.py", "--device=cuda", "--cold", *self._options(options)]
        code = self._finish(self._begin(words, f"{one.name}.log"), seconds + SPARE)
        last = (self.folder / f"{one.name}.log").read_text().splitlines()[-1:]
        self.say(f"{one.name}: {' '.join(last)}" + (f" (ended with {code})" if code else ""))

    def _options(self, options: Mapping[str, str]) -> list[str]:
        if self.rehearsal:
            options = {**options, "shapes": self.rehearsal.shapes, "tokens": self.rehearsal.tokens}
        made = [f"--{name}={value}" for name, value in options.items()]
        return [*made, "--device=cuda", "-q", *(["-p", "standin"] if self.rehearsal else [])]

    def _begin(self, words: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        paths = [str(ROOT), *([str(ROOT / "tests/support")] if self.rehearsal else [])]
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        with (self.folder / log).open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip

    def _finish(self, process: subprocess.Popen[bytes], seconds: float) -> int:
        """The exit status; a process that is late is interrupted, and after some more seconds killed."""
        for stop in (lambda: process.send_signal(2), process.kill):
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                stop()
                seconds = SPARE / 2
        return process.wait()


def facts() -> str:
    """What the machine is, for the reader of the results."""
    import torch

    names = [f"python {sys.version.split()[0]}", f"torch {torch.__version__}, CUDA {torch.version.cuda}"]
    try:
        import triton

        names.append(f"triton {triton.__version__}")
    except ImportError:
        names.append("no triton")
    if torch.cuda.is_available():
        names.append(torch.cuda.get_device_name())
    return ", ".join(names)


def missing() -> list[str]:
    """Packages that this machine lacks, by the names that pip knows; a wheel of each in bench/wheels/ is enough."""
    found = [name for module, name in MODULES.items() if importlib.util.find_spec(module) is None]
    try:
        has = version("pytest-benchmark")
    except PackageNotFoundError:
        return found
    if tuple(int(part) for part in has.split(".")[:3] if part.isdigit()) < BENCHMARK:
        found.append(f"pytest-benchmark>={'.'.join(map(str, BENCHMARK))} (here is {has})")
    return found


def main(argv: Sequence[str]) -> int:
    """The whole run; 1 where a check failed. A wrong point is not timed: the sweep checks each before it."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=FULL / 60)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a stand-in; the figures mean nothing")
    parser.add_argument("--only-first-minute", action="store_true")
    given = parser.parse_args(argv)
    if given.only_first_minute:
        _first_minute(given.folder, given.rehearse)
        return 0
    if lacks := missing():
        print(f"python -m bench.sweep.gpu: this machine lacks {', '.join(lacks)}: put wheels into bench/wheels/")
        return 2
    run = RentedRun(given.folder.resolve(), 60 * given.minutes, Rehearsal() if given.rehearse else None)
    run.say(facts())
    right = run.check()
    run.say("checked" if right else "some checks failed, see check-*.log; what is wrong is not timed")
    run.first_minute()
    for one in PORTIONS:
        if run.left < LEAST + SPARE:
            run.say(f"no time left for {one.name}")
            continue
        run.sweep(one)
    run.say("done")
    return 0 if right else 1


def _first_minute(folder: Path, rehearse: bool) -> None:
    from bench.sweep import first_minute

    path = folder / "first-minute.jsonl"
    if not rehearse:
        first_minute.run(path)
        return
    import standin  # of tests/support

    from bench.machine import device

    device.use(standin, "cpu")
    first_minute.run(path, width=64, out=96, tokens=(4, 8))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
