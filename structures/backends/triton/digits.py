"""Offset tables as mixed-radix digits, which a GPU kernel takes as constants.

A table is affine in its digits where

    table[i] - table[0] = sum over digits (divisor, size, stride) of (i // divisor) % size * stride

The tables of views, permutations, strides and interleaved batches are all of this kind; only a gather's is not, and
what is left of it is one number for each run of neighbours (`RunTable`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structures.backends.native.lower import Table

Digit = tuple[int, int, int]  # divisor, size, stride; the slowest digit has size 0: no remainder is taken
Digits = tuple[Digit, ...]  # fastest first
STILL: Digits = ((1, 0, 0),)  # of a table of one number
PAD = -1  # in a table of runs: there is none
_Numbers = npt.NDArray[np.int64]


def digits(table: npt.ArrayLike) -> Digits | None:
    """The digits of a table, fastest first; None where it is not affine.

    Of each digit the longest run is taken, so that neighbouring axes that lie as one are one digit.
    """
    left = np.asarray(table, np.int64)
    left, found, divisor = left - left[0], [], 1
    while len(left) > 1:
        stride = int(left[1])
        run = next(r for r in _divisors(len(left)) if _affine(left.reshape(-1, r), stride))
        if run == 1:
            return None
        found.append((divisor, run, stride))
        divisor *= run
        left = left[::run]
    if not found:
        return STILL
    divisor, _, stride = found[-1]
    return (*found[:-1], (divisor, 0, stride))


def line(length: int, stride: int) -> Digits:
    """Those of numbers evenly apart."""
    return ((1, 0, stride if length > 1 else 0),)


def run(of: Digits, length: int) -> int:
    """How many neighbours of a table lie side by side: 1 where its fastest digit moves by more than one number."""
    _, size, stride = of[0]
    return (size or length) if stride == 1 else 1


def dims(of: Digits, length: int) -> tuple[list[int], list[int]]:
    """A table as sizes and strides of a tensor's dimensions, slowest first."""
    sizes = [size or length // divisor for divisor, size, _ in of]
    return sizes[::-1], [stride for *_, stride in of[::-1]]


@dataclass(frozen=True)
class RunTable:
    """A table that is not affine, row by row: where each run of `length` neighbours starts, and how it goes on."""

    length: int
    stride: int
    unit: int  # a constant factor, which tells the compiler the alignment of what the table points to
    starts: Table  # runs of one row after another, + 1: 0 stands for PAD
    padded: bool


def runs(*tables: _Numbers) -> list[RunTable]:
    """Tables of one shape (rows, positions) as runs of one length, the longest in which all of them are affine."""
    rows, positions = tables[0].shape
    for length in _divisors(positions):
        cut = [table.reshape(rows, -1, length) for table in tables]
        strides = [_stride(each) for each in cut]
        if None not in strides:
            return [_runs(each[:, :, 0], length, stride or 0) for each, stride in zip(cut, strides, strict=True)]
    raise AssertionError("runs of one position are always affine")


def flat(items: Sequence[int | Digits]) -> tuple[int, ...]:
    """Numbers and digits as one tuple of numbers: in the place of digits the position of their count, behind all items.

    A nested tuple is no constant that a compiled kernel can hand on; this one is.
    """
    head: list[int] = []
    tail: list[int] = []
    for item in items:
        if isinstance(item, tuple):
            head.append(len(items) + len(tail))
            tail += [len(item), *(number for digit in item for number in digit)]
        else:
            head.append(item)
    return (*head, *tail)


def _divisors(n: int) -> list[int]:
    """Largest first."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)}, reverse=True)


def _affine(rows: _Numbers, stride: int) -> bool:
    return bool((rows == rows[:, :1] + np.arange(rows.shape[1]) * stride).all())


def _stride(cut: _Numbers) -> int | None:
    """The stride within all runs; None where they have none in common. A run of pads has any."""
    kept = cut.reshape(-1, cut.shape[2])
    pads = (kept == PAD).any(1)
    if not (kept[pads] == PAD).all():
        return None
    kept = kept[~pads]
    stride = int(kept[0, 1] - kept[0, 0]) if len(kept) and kept.shape[1] > 1 else 0
    return stride if _affine(kept, stride) else None


def _runs(starts: _Numbers, length: int, stride: int) -> RunTable:
    pads = starts == PAD
    unit = int(np.gcd.reduce(starts[~pads])) or 1
    return RunTable(length, stride, unit, Table(np.where(pads, 0, starts // unit + 1)), bool(pads.any()))
