"""DDP and FSDP2 on two gloo processes train as one process does."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from processes import of_two
from torch import nn

import structures

NAMES = ("dyad_it", "monarch", "butterfly", "pixelfly", "low_rank", "dense", "btt_moe", "dense_moe")
STEPS = 3


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [structures.StructuredLinear(name, 48, 48, dtype=torch.float64) for name in NAMES]
    for layer in layers:
        if layer.structure.gate is not None:
            nn.init.normal_(layer.router)
    return nn.Sequential(*(part for made in layers for part in (made, nn.Tanh())))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(8, 48, generator=generator, dtype=torch.float64) for _ in range(2))


def train(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> list[float]:
    """Steps on the task's loss and the z losses: means over tokens, so that those of two halves average to the whole's.

    A balance loss is no such mean: each process balances its own tokens.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        with structures.collect_routing(net) as routings:
            y = net(x)
        loss = (y - target).square().mean() + 0.1 * routings.z_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def work(rank: int, kind: str) -> list[float]:
    net = model()
    if kind == "ddp":
        net = nn.parallel.DistributedDataParallel(net)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for part in net:
            if isinstance(part, structures.StructuredLinear):
                fully_shard(part, mesh=mesh)
        fully_shard(net, mesh=mesh)
    x, target = (half.chunk(2)[rank] for half in batch())
    losses = torch.tensor(train(net, x, target), dtype=torch.float64)
    dist.all_reduce(losses)
    return (losses / 2).tolist()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(kind):
    torch.testing.assert_close(torch.tensor(of_two(work, kind)), torch.tensor(train(model(), *batch())))
