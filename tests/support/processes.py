"""Processes forked from one that has torch loaded: two of a gloo group, or a run of a module such as pytest.

A spawned one imports torch for one second and the sharding of models for three.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOADED = ["torch", "torch.distributed.fsdp", "structures.linear", "structures.models.swap", "pytest_benchmark.plugin"]
multiprocessing.set_forkserver_preload(LOADED)


def of_two(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(rank, *arguments)` returns on the first of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("forkserver").SimpleQueue()
    started = mp.start_processes(_run, (port, results, work, arguments), 2, join=False, start_method="forkserver")
    while not started.join():
        pass
    return results.get()


def _run(rank: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = work(rank, *arguments)
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def run_pytest(folder: Path, words: list[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
    """The status and the output of `python -m pytest WORDS`, run in `folder` with this environment."""
    done = python(folder, ["-m", "pytest", *words], environment, together=True)
    return done.returncode, done.stdout


def python(
    folder: Path, words: list[str], environment: Mapping[str, str], *, together: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python -m NAME ...` or `python -c CODE ...`, run in `folder` with this environment, which comes after the
    imports of `LOADED`.

    Args:
        together: what goes to stderr stands in stdout, in the order in which it was written.
    """
    with (
        tempfile.NamedTemporaryFile("r", encoding="utf-8") as out,
        tempfile.NamedTemporaryFile("r", encoding="utf-8") as err,
    ):
        made = started(folder, words, environment, out.name, out.name if together else err.name)
        made.join(300)
        made.kill()
        made.join()
        return subprocess.CompletedProcess(words, made.exitcode, out.read(), err.read())


def started(
    folder: Path, words: list[str], environment: Mapping[str, str], out: str = os.devnull, err: str = os.devnull
) -> BaseProcess:
    """The same, begun, and writing to files."""
    made = multiprocessing.get_context("forkserver").Process(
        target=_python, args=(folder, words, dict(environment), out, err)
    )
    made.start()
    return made


def _python(folder: Path, words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    option, what, *rest = words
    sys.argv = [what, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
