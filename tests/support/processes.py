"""Processes forked from one that has torch loaded: two of a gloo group, or a run of pytest.

A spawned one imports torch for one second and the sharding of models for three.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
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
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
        made = multiprocessing.get_context("forkserver").Process(
            target=_pytest, args=(folder, words, dict(environment), log.name)
        )
        made.start()
        made.join(300)
        made.kill()
        made.join()
        return made.exitcode, log.read()


def _pytest(folder: Path, words: list[str], environment: dict[str, str], log: str) -> None:
    output = os.open(log, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    sys.exit(int(pytest.main(words)))
