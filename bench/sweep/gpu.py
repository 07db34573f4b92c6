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

from bench.files import journal, options

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
EXPERTS = "dense_moe:n_experts=8 btt_moe low_rank_moe"


@dataclass(frozen=True)
class Portion:
    """A part of the sweep: what it asks `pytest bench` for, and the most seconds it takes."""

    name: str
    seconds: float
    options: Mapping[str, str]
    rivals: bool = False  # dense in other ways and in fewer bits, as rows of their own


def portion(
    name: str, seconds: float, shapes: str, named: str, tokens: str, mode: str, *, rivals: bool = False, **more: str
) -> Portion:
    """A portion in bfloat16 by the device's clock, unless it says otherwise."""
    given = {"structures": named, "shapes": shapes, "tokens": tokens, "mode": mode}
    return Portion(name, seconds, {"dtypes": "bfloat16", "backend": BACKENDS, "clock": "device"} | given | more, rivals)


# in the order of worth; each may leave time to the next, and what one had no time for is gone on with at the end
PORTIONS = (
    portion("1-llama-up", 50, "4096x11008", MAIN, "1,128,4096", "forward"),
    portion("2-llama-up-train", 40, "4096x11008", MAIN, "4096", "train"),
    portion("3-others", 60, "4096x4096", OTHERS, "1,128,4096", "forward", rivals=True),
    portion("4-opt", 50, "768x3072,768x768", MAIN, "1,128,4096", "forward"),
    portion("5-llama-rest", 60, "11008x4096,4096x4096", MAIN, "1,128,4096", "forward"),
    portion("6-widths", 40, "1024x1024,2048x2048,8192x8192", MAIN, "4096", "forward"),
    portion("7-host", 40, "4096x11008,768x3072", MAIN, "1,128,4096", "forward", clock="host"),
    portion("8-rest-train", 40, "4096x4096,768x3072", MAIN, "4096", "train"),
    portion("9-experts", 40, "4096x4096", EXPERTS, "1,128,4096", "forward", backend="all_experts,grouped,triton"),
    portion("10-float32", 30, "4096x4096", MAIN, "4096", "forward", dtypes="float32"),
)


REHEARSED = {"shapes": "64x64", "tokens": "8", "dtypes": "float32"}  # the interpreter has no bfloat16


class RentedRun:
    """The stages of a run, which share one clock. A rehearsal is the same run on a stand-in, its sizes tiny."""

    def __init__(self, folder: Path, seconds: float, *, rehearsal: bool = False):
        self.folder, self.rehearsal = folder, rehearsal
        self.begun, self.end = time.monotonic(), time.monotonic() + seconds
        self.scale = min(1.0, seconds / FULL)  # of every stage, where the run is shorter than it is made for
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    def check(self) -> bool:
        """Outputs and gradients of every structure by every backend, on half of the cores.

        On the other half the kernels of all that follows are compiled; what is left is compiled where it is timed.
        """
        count = max(1, min(8, (os.cpu_count() or 1) // 2))
        most = self.scale * CHECK
        asked = {"dtypes": "float32,bfloat16", "mode": "forward,train", "shapes": "256x384", "tokens": "19",
                 "backend": BACKENDS, "time-budget": f"{int(most - SPARE)}s", "point-timeout": "40s"}  # fmt: skip
        parts = [f"{k}/{count}" for k in range(1, count + 1)]
        compiling = [self._again(f"--compile={part}", f"compile-{part[0]}.log") for part in parts]
        checking = [
            self._begin([*self._pytest(asked), "--check", f"--shard={part}"], f"check-{part[0]}.log", threads=1)
            for part in parts
        ]
        wrong = 0
        for part, process in zip(parts, checking, strict=True):
            self._finish(process, self.begun + most - time.monotonic())
            lines = self._lines(f"check-{part[0]}.log")
            faults = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            wrong += len(faults)
            for line in [*faults, *_left_out(lines), *lines[-1:]]:
                self.say(f"check {part}: {line}")
        for part, process in zip(parts, compiling, strict=True):
            code = self._finish(process, self.begun + most - time.monotonic())
            self.say(f"compile {part}: {' '.join(self._lines(f'compile-{part[0]}.log')[-1:])}{_ended(code)}")
        return not wrong

    def first_minute(self) -> None:
        """What decides whether the step kernel and its forms are worth a sweep."""
        code = self._finish(self._again("--only-first-minute", "first-minute.log"), min(self.scale * FIRST, self.left))
        for line in self._lines("first-minute.log"):
            if not code or " tokens, " in line:
                self.say(line)
        if code:
            self.say(f"the first minute{_ended(code)}")

    def sweep(self, one: Portion) -> None:
        """One portion, in a file of its own; where its journal lies there, what it has left."""
        seconds = min(self.scale * one.seconds, self.left - SPARE)
        file = self.folder / f"{one.name}.json"
        more = ["--resume", str(file)] if journal.of(file).exists() else []
        limits = {"time-budget": f"{int(seconds)}s", "point-timeout": "30s", "benchmark-json": str(file)}
        words = [*self._pytest({**one.options, **limits}, rivals=one.rivals), "--cold", *more]
        code = self._finish(self._begin(words, f"{one.name}.log"), seconds + SPARE)
        lines = self._lines(f"{one.name}.log")
        self.say(f"{one.name}: {'; '.join([*_left_out(lines), *lines[-1:]])}{_ended(code)}")

    def unfinished(self, one: Portion) -> bool:
        """Whether a portion was begun and has points left."""
        return journal.of(self.folder / f"{one.name}.json").exists()

    def _pytest(self, asked: Mapping[str, str], *, rivals: bool = False) -> list[str]:
        """A sweep with no plugin but the one it needs, whatever else is installed, and warnings of strange versions."""
        given = {**asked, **(REHEARSED if self.rehearsal else {})}
        return [
            "-m", "pytest", "bench/test_linear.py", "-q", "-W", "ignore", "-p", "pytest_benchmark.plugin",
            "--device=cuda", *([] if rivals else ["--no-controls"]), *(["-p", "standin"] if self.rehearsal else []),
            *(f"--{name}={value}" for name, value in given.items()),
        ]  # fmt: skip

    def _again(self, what: str, log: str) -> subprocess.Popen[bytes]:
        """This command for one of its stages."""
        rehearse = ["--rehearse"] if self.rehearsal else []
        return self._begin(["-m", "bench.sweep.gpu", str(self.folder), what, *rehearse], log, threads=1)

    def _lines(self, log: str) -> list[str]:
        return (self.logs / log).read_text(errors="replace").splitlines()

    def _begin(self, words: Sequence[str], log: str, *, threads: int | None = None) -> subprocess.Popen[bytes]:
        """A process of its own, on `threads` of the CPU where it is one of several: each would take the first core."""
        paths = [str(ROOT), *([str(ROOT / "tests/support")] if self.rehearsal else [])]
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        more = {"PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if threads:
            more["OMP_NUM_THREADS"] = str(threads)
        with (self.logs / log).open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | more
            )

    def _finish(self, process: subprocess.Popen[bytes], seconds: float) -> int:
        """The exit status; a process that is late is interrupted, and after some more seconds killed."""
        for stop in (lambda: process.send_signal(2), process.kill):
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                stop()
                seconds = SPARE
        return process.wait()


def _left_out(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if "left out for lack of time" in line or "interrupted" in line]


def _ended(code: int) -> str:
    return f" (ended with {code}, see its log)" if code else ""


def compile_part(k: int, n: int, *, rehearsal: bool) -> None:
    """Compile every n-th call of the first minute and of the sweep, in their order: about a second a kernel."""
    import torch

    from bench.sweep import first_minute, points, request
    from structures.backends import stages
    from structures.backends.triton import gated, run

    calls = dict.fromkeys(first_minute.launched(first_minute.TINY if rehearsal else first_minute.FULL))
    for one in PORTIONS:
        asked = {**one.options, **(REHEARSED if rehearsal else {}), "device": "cuda", "no_controls": True}
        for p in points.points(request.read(asked, cuda=True, cores=1))[0]:
            if p.backend == "triton":
                calls[points.bound(p), None, p.tokens, getattr(torch, p.dtype), p.train] = None
    mine = list(calls)[k - 1 :: n]
    for number, (structure, form, tokens, dtype, train) in enumerate(mine, 1):
        for stage in stages.every(structure):
            with run.held_to(gated.programs(stage), form):
                gated.compile_ahead(stage, tokens, dtype, train=train)
        print(f"{number} of {len(mine)} calls", flush=True)


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
    parser.add_argument("--compile", metavar="K/N", help="only compile a part of the kernels")
    given = parser.parse_args(argv)
    if lacks := missing():
        print(f"python -m bench.sweep.gpu: this machine lacks {', '.join(lacks)}: put wheels into bench/wheels/")
        return 2
    if given.rehearse and (given.compile or given.only_first_minute):
        import standin  # of tests/support

        standin.begin()
    if given.compile:
        compile_part(*options.shard(given.compile), rehearsal=given.rehearse)
        return 0
    if given.only_first_minute:
        from bench.sweep import first_minute

        first_minute.run(
            given.folder / "first-minute.jsonl", first_minute.TINY if given.rehearse else first_minute.FULL
        )
        return 0
    return _whole(RentedRun(given.folder.resolve(), 60 * given.minutes, rehearsal=given.rehearse))


def _whole(run: RentedRun) -> int:
    run.say(facts())
    right = run.check()
    run.say("checked" if right else "some checks failed, see logs/check-*.log; what is wrong is not timed")
    run.first_minute()
    for one in PORTIONS:
        if run.left > LEAST + SPARE:
            run.sweep(one)
        else:
            run.say(f"no time left for {one.name}")
    for one in PORTIONS:
        if run.left > LEAST + SPARE and run.unfinished(one):
            run.sweep(one)
    run.say("done")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
