"""Compiling the native kernel with the machine's own C++ compiler: once, at first use or ahead, and kept.

The key of a build is its sources, flags, processor and compiler, so that whatever changes makes a new object. There is
no torch or Python in an object, and one serves all their versions. Two processes that build at once each publish a
whole object by a rename. A build that failed is remembered; `python -m structures build` tries it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from structures.backends.native import objects
from structures.backends.native.objects import Unavailable
from structures.backends.planned import rates

SWITCH = "STRUCTURES_NATIVE"  # 0 turns the native kernel off
SOURCES = Path(__file__).parent / "source"
MAIN = "native.cpp"  # the one translation unit, which includes the others
# Nothing of the arithmetic's meaning is given up: -ffast-math would make *loading* the object set the whole thread to
# flush subnormals, and -ffinite-math-only would drop NaN and inf. Sums are reordered by the source, not by flags.
FLAGS = (
    "-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC",
    "-shared",
)  # fmt: skip
MACHINE = ("-march=native",)
LIMIT = 120.0  # seconds for a build, which takes 2 to 3
ASK_LIMIT = 10.0  # seconds for a compiler to say its version
HOW = "install g++ or clang++, or set CXX to a C++17 compiler"
LEAST_SPACE = 2**20  # bytes
NO_SPACE = os.strerror(errno.ENOSPC)
AGAIN = "`python -m structures build` tries again"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered."""

    command: tuple[str, ...]
    version: str


def turned_off() -> str | None:
    """The reason, where the user has turned the native kernel off."""
    return f"{SWITCH}=0 turns it off" if os.environ.get(SWITCH) == "0" else None


def object_file(machine: Sequence[str] = MACHINE, sources: Path = SOURCES, *, again: bool = False) -> Path:
    """The compiled kernel: one kept, or built now.

    Args:
        machine: flags that say for which processor.
        again: try a build that failed before once more.
    Raises:
        Unavailable: there is no compiler, it fails or hangs, or the object cannot be kept.
    """
    code = _code(machine, sources)
    try:
        compiler = find_compiler()
    except Unavailable:
        kept = objects.find(code, None)  # built ahead where there was a compiler
        if kept is None:
            raise
        return kept
    by = _hash(" ".join(compiler.command), compiler.version)
    kept = objects.find(code, by)
    if kept is not None:
        return kept
    reason = None if again else objects.failure(code, by)
    if reason is not None:
        raise Unavailable(f"{reason} ({AGAIN})")
    return _built(compiler, machine, sources, code, by)


def find_compiler() -> Compiler:
    """CXX where it is set, else g++, else clang++.

    Raises:
        Unavailable: there is none, or it does not say its version in time.
    """
    named = os.environ.get("CXX", "").strip()
    try:
        commands = [shlex.split(named)] if named else [["g++"], ["clang++"]]
    except ValueError as error:
        raise Unavailable(f"CXX={named!r} is no command: {error}") from None
    command = next((c for c in commands if shutil.which(c[0])), None)
    if command is None:
        found = f"CXX={named!r} is not found" if named else "no C++ compiler is found"
        raise Unavailable(f"{found}, with which the native kernel is compiled; {HOW}")
    program = str(shutil.which(command[0]))
    stamp = os.stat(program)
    return Compiler(tuple(command), _version((program, *command[1:]), (stamp.st_size, stamp.st_mtime_ns)))


def compile_command(compiler: Compiler, machine: Sequence[str], sources: Path, target: Path) -> list[str]:
    """The command of a build."""
    return [*compiler.command, *FLAGS, *machine, str(sources / MAIN), "-o", str(target)]


@lru_cache(maxsize=8)
def _version(command: tuple[str, ...], _stamp: tuple[int, int]) -> str:
    with objects.scratch() as scratch:
        status, text = _run([*command, "--version"], Path(scratch), ASK_LIMIT)
    if status == 0 and text:
        return text.splitlines()[0]
    raise Unavailable(f"the compiler {command[0]} does not say its version ({_outcome(status, text)}); {HOW}")


def _built(compiler: Compiler, machine: Sequence[str], sources: Path, code: str, by: str) -> Path:
    """Compile, and keep the object."""
    name = Path(compiler.command[0]).name
    with objects.scratch() as scratch:
        target = Path(scratch) / "kernel.so"
        print(
            f"structures: compiling the native kernel with {name}, once (some ten seconds)", file=sys.stderr, flush=True
        )
        status, text = _run(compile_command(compiler, machine, sources, target), Path(scratch), LIMIT)
        if status == 0 and target.is_file():
            objects.remember(code, by, None)
            return objects.keep(target, code, by)
        if not text and shutil.disk_usage(scratch).free < LEAST_SPACE:  # not even the compiler's words had room
            text = f"error: {NO_SPACE}"
    reason = f"{name} did not compile the native kernel ({_outcome(status, text)})"
    if (status is None or status > 0) and NO_SPACE not in text:  # which passes, as kills do
        objects.remember(code, by, reason)
    raise Unavailable(f"{reason} ({AGAIN})")


def _run(command: Sequence[str], scratch: Path, limit: float) -> tuple[int | None, str]:
    """(exit status, None where the time was up; what the command said). Its temporary files stay in `scratch`."""
    said = scratch / "said"
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(scratch)}
    try:
        with said.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:  # the compiler's own children too, and where we are interrupted
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return status, said.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror or error}; {HOW}") from None


def _outcome(status: int | None, text: str) -> str:
    if status is None:
        return "it was stopped: its time was up"
    if status < 0:
        return f"it was killed by signal {-status}"
    lines = text.splitlines()
    line = next((x for x in lines if "error" in x), lines[0] if lines else "it said nothing")
    return f"exit status {status}: {line.strip()[:300]}"


def _code(machine: Sequence[str], sources: Path) -> str:
    """Hash of what the object is made of, besides the compiler."""
    try:
        files = sorted(file for file in sources.rglob("*") if file.suffix in (".cpp", ".h"))
        texts = [f"{file.relative_to(sources)}\n{file.read_text(encoding='utf-8')}" for file in files]
    except OSError as error:
        raise Unavailable(f"the native kernel's sources cannot be read: {error.strerror}: {error.filename}") from None
    if not texts:
        raise Unavailable(f"the native kernel's sources are missing: {sources}")
    return _hash(*texts, *FLAGS, *machine, *_processor())


@lru_cache(maxsize=1)
def _processor() -> tuple[str, ...]:
    """The processor's model and its instruction sets: a home folder may be shared by several machines."""
    features = ""
    try:
        with open("/proc/cpuinfo") as file:
            features = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        pass
    return rates.processor("cpu"), platform.machine(), " ".join(sorted(features.split()))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[: objects.DIGITS]
