"""Two processes of a gloo group, forked from one that has torch loaded: a spawned one imports it for four seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOADED = ["torch", "torch.distributed.fsdp", "structures.linear", "structures.models.swap"]
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
