"""The comparisons that come first on a new card: they say whether the step kernel and its forms are worth a sweep.

    python -m bench.sweep.first_minute FILE           a line of JSON for each comparison, written at once

1. a dense layer of 4096 x 4096 for 4096 tokens by the step kernel and by the vendor's library: its rate is the ceiling
   of every other launch;
2. DYAD with 4 blocks at 128, 512 and 4096 tokens: strided, copied, turned, and the planner's programs;
3. DYAD's products by `baddbmm` straight into y's blocks, against the planner's programs.

Times are the device's, of graphs that hold one call, and cold: calls rotate copies of the weights beyond twice the L2.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import structures
from bench.machine import device, timing
from bench.machine.timing import Effort, Step
from structures import backends, reference
from structures.backends import triton
from structures.structure import Structure


@dataclass(frozen=True)
class Sizes:
    """What is compared: a layer's widths, the tokens, the dtype."""

    width: int = 4096
    out: int = 11008
    tokens: tuple[int, ...] = (128, 512, 4096)
    dtype: torch.dtype = torch.bfloat16
    effort: Effort = Effort(paired=0.4, alone=0.1, rounds=6, most=60, precision=0.01)  # noqa: RUF009  # it is frozen


FULL = Sizes()
TINY = Sizes(32, 64, (4, 8), torch.float32, Effort(0, 0, rounds=1))  # for a rehearsal
MOST_COPIES = 32
NEAR = 0.02  # of the reference: bfloat16 rounds by 2**-9, a wrong block is off by far more
Call = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """One way to run a structure: a call of (x, factors, bias), and the form that the kernel is held to."""

    name: str
    structure: Structure
    call: Call
    form: str | None = None


@dataclass(frozen=True)
class FirstComparison:
    """Rivals on one input; the first is what the others are compared to."""

    name: str
    tokens: int
    rivals: tuple[Rival, ...]


def comparisons(sizes: Sizes) -> Iterator[FirstComparison]:
    """All comparisons, at these sizes."""
    width, out, most = sizes.width, sizes.out, sizes.tokens[-1]
    square, wide = (structures.get("dense").bind(width, o) for o in (width, out))
    yield FirstComparison("dense by the step kernel", most, (_library(square), _by("triton", square)))
    dyad = structures.get("dyad_it").bind(width, out, n_blocks=4)
    for count in sizes.tokens:
        forms = tuple(_by("triton", dyad, form) for form in ("strided", "copied", "turned"))
        rivals = (_library(wide), _by("planned", dyad), _by("bmm", dyad), *forms)
        if count == most:
            rivals += (Rival("baddbmm into y's blocks", dyad, _into_blocks),)
        yield FirstComparison("DYAD-IT, 4 blocks", count, rivals)


def launched(sizes: Sizes) -> Iterator[tuple[Structure, str | None, int, torch.dtype, bool]]:
    """What the kernels run: structure, form, tokens, dtype and whether with gradients."""
    for comparison in comparisons(sizes):
        for rival in comparison.rivals:
            if rival.name.startswith("triton"):
                yield rival.structure, rival.form, comparison.tokens, sizes.dtype, False


def run(path: Path, sizes: Sizes = FULL) -> None:
    """Write a line for each rival of each comparison, as soon as it is known."""
    with path.open("a") as file:
        for comparison in comparisons(sizes):
            for row in measured(comparison, sizes):
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(_line(row), flush=True)


def measured(comparison: FirstComparison, sizes: Sizes) -> Iterator[dict[str, object]]:
    """A row for each rival: its time and the first one's time over it; or why it has none."""
    first: Step | None = None
    for rival in comparison.rivals:
        s = rival.structure
        row: dict[str, object] = {
            "comparison": comparison.name, "way": rival.name, "tokens": comparison.tokens,
            "in_features": s.in_features, "out_features": s.out_features, "dtype": str(sizes.dtype)[6:], "cold": True,
        }  # fmt: skip
        try:
            with torch.no_grad():
                step, row["error"], row["captured"] = _step(rival, comparison.tokens, sizes.dtype)
                clock = device.clock_of(device.CUDA, device.DEVICE)
                seconds = timing.once(step, clock)
                first = first or step
                _, (mine, *_) = timing.fastest([step], sizes.effort, clock)
                ratio = timing.paired(
                    step, first, sizes.effort, seconds=(seconds, timing.once(first, clock)), clock=clock
                )
        except (ValueError, RuntimeError) as error:  # refused, wrong, or too large for the card: the next one may run
            yield row | {"reason": str(error).partition("\n")[0]}
            continue
        flops = s.flops(tokens=comparison.tokens)
        yield row | {"seconds": mine, "of_first": ratio.as_dict(), "tflops": flops / mine / 1e12}


def _step(rival: Rival, tokens: int, dtype: torch.dtype) -> tuple[Step, float, str]:
    """A cold call as a graph, how far its result is from the reference, and how it was captured."""
    s = rival.structure
    draw = partial(torch.randn, device=device.place(device.CUDA), dtype=dtype)
    x = draw(tokens, s.in_features)
    count = max(1, min(-(-2 * device.cache_bytes(device.CUDA) // (dtype.itemsize * s.params)), MOST_COPIES))
    steps, captured, error = [], "graph", 0.0
    for _ in range(count):
        factors = [draw(*shape) * shape[-1] ** -0.5 for shape in s.factor_shapes]
        bias = draw(s.out_features)
        call = partial(rival.call, x, factors, bias)
        if not steps:
            error = _error(s, x, factors, bias, call())
        step, how = device.graphed(call)
        captured = captured if how == "graph" else how
        steps.append(step)
    turn = itertools.cycle(steps)
    return lambda: next(turn)(), error, captured


def _error(s: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor, y: Tensor) -> float:
    rows = torch.linspace(0, len(x) - 1, min(len(x), 8)).long().to(x.device)
    meant = reference.apply(s, x[rows].double(), [f.double() for f in factors], bias.double())
    error = float((y[rows].double() - meant).norm() / meant.norm())
    if not error <= NEAR:
        raise ValueError(f"wrong: {error:.2g} from the reference")
    return error


def _library(s: Structure) -> Rival:
    return Rival("dense, library", s, lambda x, factors, bias: functional.linear(x, factors[0].t(), bias))


def _by(backend: str, s: Structure, form: str | None = None) -> Rival:
    def call(x: Tensor, factors: Sequence[Tensor], bias: Tensor) -> Tensor:
        chosen = backends.choose(backend, s, x)
        program = triton.run.program(s)
        with triton.run.held_to([program], form):
            y = backends.apply(chosen, s, x, factors, bias)
            if form not in (None, *program.forms()):
                raise ValueError(f"no launch can be {form}")
        return y

    return Rival(backend if form is None else f"{backend}, {form}", s, call, form)


def _into_blocks(x: Tensor, factors: Sequence[Tensor], bias: Tensor) -> Tensor:
    """DYAD-IT, both products written where y's blocks lie: no sum of its own, and no pass that lays y out."""
    (n, i, o), tokens = factors[0].shape, len(x)
    y = x.new_empty(tokens, n * o)
    blocks = y.view(tokens, n, o).permute(1, 0, 2)
    torch.baddbmm(bias.view(n, 1, o), x.view(tokens, n, i).permute(1, 0, 2), factors[0], out=blocks)
    turned = x.view(tokens, i, n).permute(2, 0, 1).contiguous()
    torch.baddbmm(blocks, turned, factors[1], out=blocks)
    return y


def _line(row: dict[str, object]) -> str:
    head = f"{row['comparison']}, {row['tokens']} tokens, {row['way']}: "
    if "reason" in row:
        return head + str(row["reason"])
    ratio = row["of_first"]
    assert isinstance(ratio, dict)
    return head + f"{float(str(row['seconds'])) * 1e6:.1f} us, {ratio['median']:.2f} of the first"


if __name__ == "__main__":
    run(Path(sys.argv[1]))
