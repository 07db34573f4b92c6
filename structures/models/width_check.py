"""Does a structure train alike at every width? The sizes of activations after a few steps (a coordinate check)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from structures.linear import StructuredLinear
from structures.models.rates import param_groups
from structures.spec import Spec

INPUTS, OUTPUTS, TOKENS = 16, 4, 32


class Coordinate(NamedTuple):
    """The root mean square of one hidden layer's output, before the nonlinearity, after `step` steps."""

    structure: str
    width: int
    step: int
    layer: int
    size: float


def coordinate_check(
    structure: str | Spec,
    widths: Sequence[int] = (128, 256, 512, 1024),
    *,
    steps: int = 4,
    lr: float = 0.01,
    layers: int = 2,
    init: str = "spectral",
    scaled: bool = True,
    seed: int = 0,
    **options: Any,
) -> list[Coordinate]:
    """Train a small network at each width on the same random regression and record its activations: rows for a plot.

    The network is Linear, `layers` structured layers with ReLU, Linear (zero at first); Adam at `lr`, the rate of a
    dense layer of the first width.

    Args:
        scaled: learn at the rates of `param_groups`; without it every hidden parameter learns at `lr`, which shows
            what the rule is for.
        options: of the structure, the same at every width.
    Raises:
        ValueError: fewer than two widths, one that stands twice, or a number that is none; options that do not fit.

    >>> rows = coordinate_check("dyad_it", (64, 256), steps=2)
    >>> last = {row.width: row.size for row in rows if (row.step, row.layer) == (2, 1)}
    >>> 0.5 < last[256] / last[64] < 2  # of one order, four times as wide
    True
    """
    widths = _checked(widths, steps, lr, layers)
    rows: list[Coordinate] = []
    for width in widths:
        torch.manual_seed(seed)
        x, target = torch.randn(TOKENS, INPUTS), torch.randn(TOKENS, OUTPUTS)
        first, last = nn.Linear(INPUTS, width), nn.Linear(width, OUTPUTS)
        nn.init.normal_(first.weight, std=INPUTS**-0.5)
        nn.init.zeros_(last.weight)
        hidden = [StructuredLinear(structure, width, width, init=init, **options) for _ in range(layers)]
        stack = nn.ModuleList(hidden)
        rates = param_groups(stack, lr, base_width=widths[0]) if scaled else [{"params": stack.parameters()}]
        plain: list[dict[str, Any]] = [
            {"params": first.parameters()},
            {"params": last.parameters(), "lr": lr * widths[0] / width},  # muP's rate for an output layer
        ]
        optimizer = torch.optim.Adam([*rates, *plain], lr=lr)
        for step in range(steps + 1):
            h = first(x)
            for number, layer in enumerate(hidden):
                h = layer(h.relu())
                size = float(h.detach().square().mean().sqrt())
                rows.append(Coordinate(layer.structure.name, width, step, number, size))
            loss = (last(h.relu()) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return rows


def _checked(widths: Sequence[int], steps: int, lr: float, layers: int) -> tuple[int, ...]:
    """The widths, in the order given: the first is the one that `lr` is for."""
    found = tuple(widths) if isinstance(widths, Sequence) and not isinstance(widths, str) else (widths,)
    if not all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in found):
        raise ValueError(f"coordinate_check: widths are whole numbers from 1, found {widths!r}")
    if len(set(found)) < max(2, len(found)):
        raise ValueError(
            f"coordinate_check: widths are two different ones or more, such as (128, 256, 512), found {widths!r}: "
            "what is checked is how activations change from one to the next"
        )
    for name, value in (("steps", steps), ("layers", layers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"coordinate_check: {name} is a whole number from 1, found {value!r}")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ValueError(f"coordinate_check: lr is a number above 0, found {lr!r}")
    return found
