"""What was timed for one shape and what was chosen, as data that prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

import torch
from torch import Tensor

from structures.backends.autotune.race import Outcome

NAME = "autotune"

Want = tuple[bool, ...]  # for x, bias and each factor: is its gradient wanted


class Key(NamedTuple):
    """What a choice is made for."""

    bits: int  # up to 2**bits tokens
    dtype: torch.dtype
    device: str  # its type
    no_bias: bool
    want: Want | None  # None: no gradient is


def key_of(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Key:
    """What a choice for this call is made for; x is (tokens, in_features)."""
    want = want_of(x, factors, bias)
    return Key((x.shape[0] - 1).bit_length(), x.dtype, x.device.type, bias is None, want)


def want_of(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Want | None:
    """Which gradients this call is to record; None where none."""
    if not torch.is_grad_enabled():
        return None
    want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
    return want if True in want else None


def grad_text(want: Want | None) -> str:
    """Which gradients are wanted, in words."""
    if want is None:
        return "none"
    names = ["x", "bias", *(f"factor_{i}" for i in range(len(want) - 2))]
    return " ".join(name for name, wanted in zip(names, want, strict=True) if wanted)


@dataclass(frozen=True)
class Timing:
    """One program: what it does, the planner's prediction and what was measured, in seconds a call."""

    name: str
    digest: str  # of the emitted source: the program is found again by it
    predicted: float | None = None
    median: float | None = None  # None where it was not timed
    q1: float | None = None
    q3: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.median is None or self.q1 is None or self.q3 is None:
            measured = self.note or "not timed"
        else:
            measured = f"{self.median * 1e6:.1f} us ({self.q1 * 1e6:.1f} to {self.q3 * 1e6:.1f})"
        predicted = f"{self.predicted * 1e6:.1f} us predicted" if self.predicted else ""
        return f"{measured:30} {predicted:>20}  {self.name}"


@dataclass(frozen=True)
class Record:
    """What was timed for one shape, and what runs from now on; print it.

    Args:
        grad: "none", or which gradients: x, bias and factors.
        timings: the default first.
        again: medians of default and challenger in the second loop, where there was one.
        when: the date; kept: it comes from the file of an earlier run.
    """

    what: str
    tokens: int
    dtype: str
    device: str
    threads: int
    grad: str
    timings: tuple[Timing, ...]
    winner: int
    reason: str
    again: tuple[float, float] | None
    when: str
    kept: bool = False

    @property
    def chosen(self) -> Timing:
        """The program that runs."""
        return self.timings[self.winner]

    def __str__(self) -> str:
        origin = f"kept from {self.when}" if self.kept else f"timed {self.when}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        lines = [
            f"{self.what}, {self.tokens} tokens, {self.dtype} on {self.device}, {threads}, gradients: {self.grad}",
            f"{origin}: {self.reason}",
        ]
        lines += [f"{'>' if i == self.winner else ' '} {timing}" for i, timing in enumerate(self.timings)]
        return "\n".join(lines)


def recorded(what: str, x: Tensor, want: Want | None, timings: Sequence[Timing], outcome: Outcome) -> Record:
    """The record of a race that was run now, for x (tokens, in_features)."""
    return Record(
        what=what,
        tokens=x.shape[0],
        dtype=str(x.dtype).removeprefix("torch."),
        device=x.device.type,
        threads=torch.get_num_threads(),
        grad=grad_text(want),
        timings=tuple(timings),
        winner=outcome.winner,
        reason=outcome.reason,
        again=outcome.again and (outcome.again[0].median, outcome.again[1].median),
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
