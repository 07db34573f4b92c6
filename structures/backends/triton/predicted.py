"""What a call launches, with predicted times: `LaunchPlan`, to print."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from structures.backends.triton import gated, run
from structures.backends.triton.launches import Card, TiledLaunch
from structures.structure import Structure


@dataclass(frozen=True)
class LaunchPlan:
    """The launches of a call of so many tokens, with predicted times; print it. No launch was timed on a card."""

    structure: Structure
    tokens: int
    grad: bool
    card: Card
    ways: tuple[TiledLaunch, ...]  # forward, then the launches that take the gradient of y to that of x

    @property
    def seconds(self) -> float:
        """Predicted, without the factors' gradients, and where there are experts without the router and the sorting."""
        return sum(way.predicted for way in self.ways)

    def flops(self, tokens: int) -> int:
        """Floating-point operations, 2 per multiply-add, without the bias."""
        return gated.executed_flops(self.structure, tokens, train=self.grad)

    def __str__(self) -> str:
        s = self.structure
        head = f"{s.in_features} -> {s.out_features}, {self.tokens} tokens on {self.card.name}: Triton launches"
        return "\n".join([f"{head}, times predicted on paper", *(f"  {way}" for way in self.ways)])


def plan(structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, grad: bool) -> LaunchPlan:
    """What a call launches; where there is no card, on the first of `launches.CARDS`.

    Raises:
        ValueError: the structure has steps that the kernels do not take.
    """
    programs = gated.programs(structure)
    for made in programs:
        if made.refusal is not None:
            raise ValueError(f"backend 'triton': {made.refusal}")
    on = run.card(torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device("cpu"))
    ways = []
    for back in (False, True)[: 1 + grad]:
        for made in reversed(programs) if back else programs:
            rows = tokens * structure.gate.active if made.segments and structure.gate else tokens
            again = made.forward if made.segments else []  # experts are worked out once more
            found = [*again, *made.backward] if back else made.forward
            ways += [made.way(launch, rows, dtype.itemsize, on, keep=not grad) for launch in found]
    return LaunchPlan(structure, tokens, grad, on, tuple(ways))
