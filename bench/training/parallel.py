"""One process or several: `torchrun` starts the same command on each, and this divides every batch among them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.training.models import Nothing
from structures import StructuredLinear
from structures.models import linears
from structures.models.rates import shard_placement

KINDS = ("ddp", "fsdp")


@dataclass(frozen=True)
class Processes:
    """The processes of a run; one process is a group of its own."""

    rank: int = 0
    size: int = 1
    kind: str = "ddp"
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def say(self, value: Any) -> Any:
        """The first process's value, on all."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as DDP or FSDP2 runs it."""
        if self.size == 1:
            return model
        if self.kind == "ddp":
            unused = any(isinstance(m, Nothing) for m in model.modules())  # the norm before a branch that is taken out
            return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        from torch.distributed.fsdp import fully_shard

        mesh = self._mesh
        owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        linear = (m for m in model.modules() if isinstance(m, StructuredLinear) or linears.kind(m) == "Linear")
        parts = [m for m in linear if all(owners[id(p)] == 1 for p in m.parameters())]  # tied ones stay with the root
        for part in parts:
            fully_shard(part, mesh=mesh, shard_placement_fn=shard_placement)
        fully_shard(model, mesh=mesh, shard_placement_fn=shard_placement)
        return model

    @cached_property
    def _mesh(self) -> Any:
        return dist.device_mesh.init_device_mesh(self.device.partition(":")[0], (self.size,))

    def no_sync(self, model: nn.Module, last: bool) -> Any:
        """Gradients of all but the last part of an accumulated step need not be exchanged yet."""
        if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()


@contextmanager
def group(kind: str, device: str) -> Iterator[Processes]:
    """The group that torchrun's environment describes, closed at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(device=device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(rank, size, kind, device)
    finally:
        dist.destroy_process_group()


def clip(model: nn.Module, most: float) -> None:
    """Scale gradients down to a norm, whether sharded or not."""
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], most)
