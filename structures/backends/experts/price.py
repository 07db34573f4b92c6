"""Which of the two executions is faster: a price from FLOPs, numbers moved and calls.

The figures are fits to 96 measured points: three entries, widths 256 to 2048, 4 to 16 experts of which 2 are active,
1 to 1024 tokens, forward and with all gradients, random routers; 2 cores of a Sapphire Rapids class machine, torch
2.13.
Against the better of the two, the rule's choice took 1.05 times as long forward and 1.01 with gradients in float32
(1.03 and 1.06 in bfloat16), on average; always all experts 1.4 and 1.4, always grouped 1.2 and 1.1. All / grouped at
2 of 8 experts, width 1024, with gradients, by tokens:

                   1      16     128    1024
    btt_moe        0.9    1.1    2.1    2.8
    low_rank_moe   0.7    0.8    1.0    0.9
    dense_moe      1.1    1.2    2.1    2.9

Grouping wins where an expert's own product is large beside what is gathered and put back. Not measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.backends.experts import all_experts, grouped
from structures.structure import Structure


@dataclass(frozen=True)
class Figures:
    """Of one dtype class, forward or with gradients, where FLOPs and numbers moved are those of the forward alone."""

    flops: float  # a second
    moved: float  # numbers a second, all experts side by side
    gathered: float  # numbers a second, to the experts and back
    call: float  # seconds for each expert that is run for itself
    all_experts: float  # seconds of all other calls
    grouped: float


SINGLE = Figures(216e9, 8.3e9, 5.0e9, 28e-6, 102e-6, 129e-6)
SINGLE_TRAIN = Figures(68e9, 4.3e9, 3.4e9, 110e-6, 373e-6, 396e-6)
HALF = Figures(1190e9, 7.0e9, 5.0e9, 73e-6, 207e-6, 179e-6)
HALF_TRAIN = Figures(266e9, 4.5e9, 2.5e9, 248e-6, 728e-6, 539e-6)


def preferred(structure: Structure, x: Tensor) -> tuple[str, ...]:
    """What `auto` tries for a structure with a gate, in this order."""
    names = ("all_experts", "grouped")
    if torch.compiler.is_compiling() or type(x.shape[0]) is not int or grouped.refuses(structure, x) is not None:
        return names
    train, half = torch.is_grad_enabled(), x.element_size() < 4
    bucket = (x.shape[0] - 1).bit_length()
    key = f"experts {bucket} {train} {half}"
    found: tuple[str, ...] | None = structure.memo.get(key)
    if found is None:
        every, own = seconds(structure, 1 << max(bucket, 0) if x.shape[0] else 0, train=train, half=half)
        found = structure.memo[key] = names if every <= own else names[::-1]
    return found


def seconds(structure: Structure, tokens: int, *, train: bool, half: bool = False) -> tuple[float, float]:
    """Predicted seconds of all experts computed and of tokens grouped, without what both of them do."""
    gate = structure.gate
    assert gate is not None
    f = (HALF_TRAIN if train else HALF) if half else (SINGLE_TRAIN if train else SINGLE)
    hit = gate.experts * (1 - (1 - gate.active / gate.experts) ** tokens)  # experts that a random router reaches
    choices, passes = tokens * gate.active, 2 if train else 1
    every, own = f.all_experts, f.grouped
    for a, g in zip(all_experts.program(structure).terms, grouped.program(structure).terms, strict=True):
        held = [structure.factor_shapes[i] for i, at in g.slices if at >= 0]
        factors = sum(map(math.prod, held)) / gate.experts
        steps = sum(structure.numel(s.axes) for s in a.term.steps)
        weighted = a.outer * gate.experts * a.inner * (4 if a.sums or a.spread else 5)
        widths = structure.in_features + structure.out_features
        every += 2 * tokens * steps / f.flops
        every += (tokens * (widths + weighted) + passes * factors * gate.experts) / f.moved
        longest = choices / gate.experts + 1.2 * math.sqrt(choices / gate.experts)
        between = structure.activation_size / gate.active
        moved = choices * (3 * g.width + 2 * g.result + between) + passes * factors * hit
        alone = choices * g.flops / f.flops + hit * f.call
        padded = min(gate.experts * max(1.0, longest), gate.experts * choices) * g.flops / f.flops + f.call
        own += min(alone, padded) + moved / f.gathered
    return every, own
