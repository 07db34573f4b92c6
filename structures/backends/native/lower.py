"""A structure's steps as offset tables: all that a kernel needs to know of it.

A step multiplies, for each of its entries (a combination of batch and rows), a block of a factor with a piece of the
activation:

    C[c.base[b] + c.offsets[m]] (+)= sum over k of
        W[w_base[b] + w_contracted[k] + w_cols[m]] * A[a.base[b] + a.offsets[k]]

Views, permutations, strides, gathers and interleaved batches are all in the tables; a kernel knows no structure. The
transposed step, which takes gradients back, is the same record with its two sides exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from structures.algebra.map import Term
    from structures.algebra.steps import Axes, Step
    from structures.structure import Structure

LIMIT = 2**31  # tables hold offsets in 32 bits
Offsets = npt.NDArray[np.int64]


class Table:
    """A row of int32 numbers that never changes; equal where its numbers are."""

    __slots__ = ("_hash", "numbers")

    def __init__(self, numbers: npt.ArrayLike) -> None:
        wide = np.asarray(numbers, dtype=np.int64).ravel()
        if wide.size and not 0 <= int(wide.min()) <= int(wide.max()) < LIMIT:
            raise ValueError(f"an offset table holds {int(wide.max())}; offsets have to be less than 2**31")
        self.numbers: npt.NDArray[np.int32] = np.ascontiguousarray(wide, dtype=np.int32)
        self.numbers.flags.writeable = False
        self._hash = hash(self.numbers.tobytes())

    @property
    def address(self) -> int:
        """Where the numbers lie, for as long as this table lives."""
        return self.numbers.ctypes.data

    @property
    def consecutive(self) -> bool:
        """Whether each number is one more than the last."""
        return self.in_runs(max(len(self), 1))

    def in_runs(self, length: int) -> bool:
        """Whether each number is one more than the last, in every run of so many."""
        steps = np.diff(self.numbers) == 1
        steps[length - 1 :: length] = True  # from one run to the next
        return bool(steps.all())

    def __len__(self) -> int:
        return self.numbers.size

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and np.array_equal(self.numbers, other.numbers)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Table({self})"

    def __str__(self) -> str:
        """`0 4 .. 60` for numbers evenly apart; the first ones and the last one for others."""
        listed, steps = self.numbers.tolist(), np.diff(self.numbers)
        if len(listed) <= 4:
            return " ".join(map(str, listed))
        shown = 2 if (steps == steps[0]).all() else 6
        return f"{' '.join(map(str, listed[:shown]))} .. {listed[-1]}"


@dataclass(frozen=True)
class Side:
    """Where one operand's features lie: at `base[b] + offsets[j]` for entry b and position j."""

    base: Table
    offsets: Table  # of one entry after another, if they differ
    stride: int = 0  # from one entry's offsets to the next; 0: all entries share them

    @property
    def length(self) -> int:
        return self.stride or len(self.offsets)


@dataclass(frozen=True)
class Product:
    """A step as tables: which factor and buffers it takes, and where in them everything lies."""

    factor: int  # position in Structure.factors; -1: the number one, for a term without a factor
    source: int  # buffer that is read
    target: int  # buffer that is written
    add: bool  # added to what the target holds
    a: Side  # read: (entries), (contracted)
    c: Side  # written: (entries), (cols)
    w_base: Table  # (entries)
    w_contracted: Table
    w_cols: Table
    block: Table  # (entries): number of the distinct block of the factor that an entry takes; rows share one
    blocks: int  # distinct blocks

    @property
    def entries(self) -> int:
        return len(self.w_base)

    @property
    def contracted(self) -> int:
        return len(self.w_contracted)

    @property
    def cols(self) -> int:
        return len(self.w_cols)

    @property
    def transposed(self) -> Product:
        """The step that takes the gradient of its result to the gradient of its operand.

        Where a gather reads one feature for several entries this one writes it several times: its target has to be
        zero first, and it adds (`repeats`).
        """
        return replace(
            self, source=self.target, target=self.source, add=False, a=self.c, c=self.a,
            w_contracted=self.w_cols, w_cols=self.w_contracted,
        )  # fmt: skip

    @property
    def repeats(self) -> bool:
        """Whether a feature of the target may be written by several entries."""
        return self.c.stride > 0

    def __str__(self) -> str:
        one = "1" if self.factor < 0 else f"factor_{self.factor}"
        sign = "+=" if self.add else "="
        shape = f"{self.entries} x ({self.contracted} -> {self.cols})"
        tables = (
            f"a {self.a.base} + {self.a.offsets}; w {self.w_base} + {self.w_contracted} + {self.w_cols}; "
            f"c {self.c.base} + {self.c.offsets}"
        )
        return f"buffer {self.target} {sign} buffer {self.source} x {one}, {shape}: {tables}"


@dataclass(frozen=True)
class Program:
    """The steps of all terms over numbered buffers: 0 is x, the last one y, the others hold what lies between."""

    sizes: tuple[int, ...]  # features of each buffer
    steps: tuple[Product, ...]

    def __str__(self) -> str:
        sizes = " ".join(map(str, self.sizes))
        return "\n".join([f"buffers of {sizes} features", *map(str, self.steps)])


@dataclass(frozen=True)
class Lowered:
    """A structure without a gate as two programs, which differ in how the intermediates are laid out.

    Independent of tokens, threads, dtype and the factors' values.
    """

    tiles: Program  # intermediates in the order in which the next step reads them
    rows: Program  # in the order batch, rows, cols: what a step writes for one entry is contiguous
    factor_numbers: tuple[int, ...]

    @property
    def in_features(self) -> int:
        return self.tiles.sizes[0]

    @property
    def out_features(self) -> int:
        return self.tiles.sizes[-1]

    @cached_property
    def multiply_adds(self) -> int:
        """Multiply-adds of one token."""
        return sum(s.entries * s.cols * s.contracted for s in self.tiles.steps)

    def __str__(self) -> str:
        return f"tiles: {self.tiles}\nrows: {self.rows}"


def lower(structure: Structure) -> Lowered:
    """The programs of a structure.

    Raises:
        ValueError: the structure has a gate or several links, or a factor or buffer has 2**31 numbers or more.
    """
    if not structure.plain:
        raise ValueError(f"{structure.name} has links, constants or padding: its stages are lowered one by one")
    if structure.gate is not None:
        raise ValueError(f"{structure.name} has a gate: the native kernel runs structures without one")
    return _lower(structure.terms, structure.size, structure.factors, structure.in_features, structure.out_features)


def _lower(
    terms: Sequence[Term], size: Mapping[str, int], factors: Sequence[Axes], in_features: int, out_features: int
) -> Lowered:
    numbers = tuple(math.prod(size[a] for a in axes) for axes in factors)
    for position, count in enumerate(numbers):
        if count >= LIMIT:
            raise ValueError(f"factor_{position} has {count} numbers; offset tables reach to 2**31")
    read, written = (_program(terms, size, in_features, out_features, in_order=order) for order in (True, False))
    return Lowered(read, written, numbers)


def _program(
    terms: Sequence[Term], size: Mapping[str, int], in_features: int, out_features: int, *, in_order: bool
) -> Program:
    sizes, steps = [in_features], []
    last = 1 + sum(max(len(term.steps) - 1, 0) for term in terms)  # the number of y's buffer
    for number, term in enumerate(terms):
        if not term.steps:
            steps.append(_copy(term, size, last, add=number > 0))
        source, left = 0, term.loaded
        for i, step in enumerate(term.steps):
            following = term.steps[i + 1] if i + 1 < len(term.steps) else None
            if following is None:
                result, target = term.output, last
            else:
                read = following.batch + following.rows + following.contracted
                result, target = read if in_order else step.result, len(sizes)
                sizes.append(math.prod(size[a] for a in result))
            a = _loaded(term, step, size) if i == 0 else _side(step.batch + step.rows, step.contracted, left, size)
            add = following is None and number > 0
            steps.append(_product(step, size, a, result, source=source, target=target, add=add))
            source, left = target, result
    sizes.append(out_features)
    if max(sizes) >= LIMIT:
        raise ValueError(f"a buffer has {max(sizes)} features; offset tables reach to 2**31")
    return Program(tuple(sizes), tuple(steps))


def _product(
    step: Step, size: Mapping[str, int], a: Side, result: Axes, *, source: int, target: int, add: bool
) -> Product:
    entries, strides = step.batch + step.rows, _strides(step.right, size)
    rows = math.prod(size[axis] for axis in step.rows)
    blocks = math.prod(size[axis] for axis in step.batch)
    return Product(
        factor=step.factor,
        source=source,
        target=target,
        add=add,
        a=a,
        c=_side(entries, step.cols, result, size),
        w_base=Table(_offsets(entries, strides, size)),
        w_contracted=Table(_offsets(step.contracted, strides, size)),
        w_cols=Table(_offsets(step.cols, strides, size)),
        block=Table(np.repeat(np.arange(blocks), rows)),
        blocks=blocks,
    )


def _copy(term: Term, size: Mapping[str, int], last: int, *, add: bool) -> Product:
    """A term without factors: every feature of y is a feature of x, an entry of its own."""
    none = Table([0])
    positions = _positions(term, size, term.output)
    count = len(positions)
    once = np.array_equal(np.sort(positions), np.arange(math.prod(size[a] for a in term.input)))
    a = Side(Table(positions), none) if once else Side(Table(np.zeros(count)), Table(positions), 1)
    c, nothing = Side(Table(np.arange(count)), none), Table(np.zeros(count))
    return Product(-1, 0, last, add, a, c, nothing, none, none, nothing, 1)


def _loaded(term: Term, step: Step, size: Mapping[str, int]) -> Side:
    """The side of the first step of a term, which reads x, through the term's gathers."""
    entries = step.batch + step.rows
    if not term.gathers:
        return _side(entries, step.contracted, term.loaded, size)
    positions = _positions(term, size, entries + step.contracted)
    contracted = math.prod(size[a] for a in step.contracted)
    table = positions.reshape(-1, contracted)
    base = table[:, 0]
    once = np.array_equal(np.sort(positions), np.arange(math.prod(size[a] for a in term.input)))
    # only where every feature is read, once: the transposed step then writes them all, and none of them twice
    if once and (table - base[:, None] == table[0] - base[0]).all() and (table[0] >= base[0]).all():
        return Side(Table(base), Table(table[0] - base[0]))
    return Side(Table(np.zeros(len(table))), Table(table), contracted)


def _positions(term: Term, size: Mapping[str, int], order: Axes) -> Offsets:
    """The feature of x at each combination of the loaded axes, in the given order of axes, flat."""
    strides = _strides(term.input, size)
    grid = np.zeros([size[a] for a in term.loaded], np.int64)

    def along(axes: Axes, values: Offsets) -> Offsets:
        ordered = [a for a in term.loaded if a in axes]
        values = values.transpose([axes.index(a) for a in ordered])
        return values.reshape([size[a] if a in axes else 1 for a in term.loaded])

    for axis in term.input:
        if axis in term.loaded:
            grid = grid + along((axis,), np.arange(size[axis]) * strides[axis])
    for gather in term.gathers:
        table = np.array(gather.table, np.int64).reshape([size[a] for a in gather.by])
        grid = grid + along(gather.by, table * strides[gather.axis])
    return grid.transpose([term.loaded.index(a) for a in order]).reshape(-1)


def _side(entries: Axes, inner: Axes, axes: Axes, size: Mapping[str, int]) -> Side:
    strides = _strides(axes, size)
    return Side(Table(_offsets(entries, strides, size)), Table(_offsets(inner, strides, size)))


def _strides(axes: Axes, size: Mapping[str, int]) -> dict[str, int]:
    strides, step = {}, 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= size[axis]
    return strides


def _offsets(axes: Axes, strides: Mapping[str, int], size: Mapping[str, int]) -> Offsets:
    """The offset of each combination of `axes`, in row-major order; an axis without a stride does not move."""
    offsets = np.zeros(1, np.int64)
    for axis in axes:
        offsets = (offsets[:, None] + np.arange(size[axis])[None] * strides.get(axis, 0)).reshape(-1)
    return offsets
