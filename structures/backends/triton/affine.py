"""A structure's steps as the GPU's kernels take them: sizes and digits, all constants, and at most one table of runs.

Row p of a step is token p // rows at the p % rows-th combination of its rows' axes, so that an axis that a factor does
not touch makes more rows, not more products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from structures.backends.native.lower import Lowered, Product, Side, Table
from structures.backends.triton.digits import PAD, STILL, Digits, RunTable, digits, flat, line, run, runs

_Numbers = npt.NDArray[np.int64]


class NotAffine(ValueError):
    """A step whose tables are not of the kind that the kernels take."""


@dataclass(frozen=True)
class AffineStep:
    """C[p, c(b) + c(m)] (+)= sum over k of A[p, a(b) + a(k)] W[w(b) + w(k) + w(m)], each offset a sum of digits."""

    factor: int  # -1: the number one
    source: int
    target: int
    batch: int
    rows: int
    contracted: int
    cols: int
    a_batch: Digits
    a_rows: Digits
    a_contracted: Digits
    w_batch: Digits
    w_contracted: Digits
    w_cols: Digits
    c_batch: Digits
    c_rows: Digits
    c_cols: Digits
    a_runs: RunTable | None = None  # of (batch, contracted), where a gather reads
    w_runs: RunTable | None = None  # the same of the factor, where a gather is taken back
    covers: bool = True  # every feature of the target is written
    segments: int = 0  # into which rows are sorted, each with a block of the factor of its own; 0: rows are not sorted
    w_segment: int = 0  # how far that block is from the next one's; 0: all segments share the factor

    @cached_property
    def constants(self) -> tuple[int, ...]:
        """What a kernel gets, in the order of `kernels`: sizes, where each of nine lists of digits begins, the runs."""
        a, w = self.a_runs, self.w_runs
        return flat((
            self.batch, self.rows, self.contracted, self.cols,
            self.a_batch, self.a_rows, self.a_contracted,
            self.w_batch, self.w_contracted, self.w_cols,
            self.c_batch, self.c_rows, self.c_cols,
            *((a.length, self.contracted // a.length, a.stride, a.unit, int(a.padded)) if a else (0, 0, 0, 0, 0)),
            *((w.stride, w.unit) if w else (0, 0)), self.segments, self.w_segment,
        ))  # fmt: skip

    @cached_property
    def table(self) -> npt.NDArray[np.int32] | None:
        """The starts of A's runs, then those of the factor's; None where all is affine."""
        found = [each.starts.numbers for each in (self.a_runs, self.w_runs) if each is not None]
        return np.concatenate(found) if found else None

    @property
    def canonical(self) -> AffineStep:
        """The same step over a copy of its factor in the order segments, batch, contracted, cols."""
        block = self.contracted * self.cols
        return replace(
            self,
            w_segment=self.batch * block if self.w_segment else 0,
            w_batch=line(self.batch, block),
            w_contracted=line(self.contracted, self.cols),
            w_cols=line(self.cols, 1),
        )

    @property
    def written(self) -> tuple[tuple[Digits, int], ...]:
        """Where the numbers of the factor lie, in the order of the canonical copy: digits and lengths."""
        segments = ((line(self.segments, self.w_segment), self.segments),) if self.w_segment else ()
        blocks = (self.w_batch, self.batch), (self.w_contracted, self.contracted), (self.w_cols, self.cols)
        return (*segments, *blocks)

    @property
    def copied(self) -> AffineStep:
        """The same step over a copy of its operand in the order batch, contracted."""
        return replace(self, a_batch=line(self.batch, self.contracted), a_contracted=line(self.contracted, 1))

    @property
    def factor_run(self) -> int:
        """How many numbers of the factor lie side by side along an edge of a block."""
        along = run(self.w_contracted, self.contracted)
        if self.w_runs is not None:
            along = self.w_runs.length if self.w_runs.stride == 1 else 1
        return max(along, run(self.w_cols, self.cols))

    @property
    def read_run(self) -> int:
        """How many features lie side by side along what is contracted, or along the rows."""
        along = (
            self.a_runs.length if self.a_runs and self.a_runs.stride == 1 else run(self.a_contracted, self.contracted)
        )
        return max(along, run(self.a_rows, self.rows))

    @property
    def written_run(self) -> int:
        """How many features lie side by side along the cols, or along the rows."""
        return max(run(self.c_cols, self.cols), run(self.c_rows, self.rows))


@dataclass(frozen=True)
class AffineProgram:
    """All steps forward, and the transposed ones, which take gradients back, in the order in which they run."""

    sizes: tuple[int, ...]
    forward: tuple[AffineStep, ...]
    backward: tuple[AffineStep, ...]


def affine(lowered: Lowered, segments: int = 0, apart: Sequence[int] = ()) -> AffineProgram:
    """The steps of a lowered structure.

    Args:
        segments: into how many rows are sorted. What is lowered is what one of them does, and a factor of `apart` > 0
            has an axis more that numbers the segments: its place is that of numbers so far apart. 0: all share it.
    Raises:
        NotAffine: a gather whose rows read differently, or a factor whose numbers lie in no order of digits.
    """
    steps, sizes = [_by_entry(step) for step in _ordered(lowered)], lowered.tiles.sizes
    if segments:
        steps = [_spread(step, segments, apart[step.factor]) for step in steps]
    forward = [_step(step) for step in steps]
    backward = [_back(step, sizes[step.source]) for step in reversed(steps)]
    if segments:
        forward, backward = (
            [replace(step, segments=segments, w_segment=apart[step.factor]) for step in each]
            for each in (forward, backward)
        )
    return AffineProgram(sizes, tuple(forward), tuple(backward))


def _by_entry(step: Product) -> Product:
    """A term without a factor has rows alone; one that reads through a gather has batch entries in their place."""
    read = _positions(step.a, step.entries)[:, 0]
    return replace(step, blocks=step.entries) if step.factor < 0 and (read[0] or digits(read) is None) else step


def _spread(step: Product, segments: int, apart: int) -> Product:
    """The step over a factor with an axis more, of `segments` places that are so far apart: in it each axis before that
    one is so many times as far apart, and a table of offsets is a sum over axes.
    """

    def moved(table: Table) -> Table:
        outer, inner = np.divmod(table.numbers.astype(np.int64), apart)
        return Table(outer * apart * segments + inner)

    if not apart:
        return step
    return replace(step, w_base=moved(step.w_base), w_contracted=moved(step.w_contracted), w_cols=moved(step.w_cols))


def _ordered(lowered: Lowered) -> list[Product]:
    """Each intermediate in the order, its writer's or its reader's, in which both read and write whole vectors.

    Where neither has one the reader's counts, as it reads a feature for every tile of cols and it is written once.
    """
    steps = list(lowered.tiles.steps)
    for i, (tile, row) in enumerate(zip(lowered.tiles.steps, lowered.rows.steps, strict=True)):
        reader = next((j for j, s in enumerate(steps) if s.source == tile.target), None)
        if reader is None:
            continue
        pairs = [(tile.c, lowered.tiles.steps[reader].a), (row.c, lowered.rows.steps[reader].a)]
        best = max(pairs, key=lambda pair: _vectors(*pair))
        steps[i], steps[reader] = replace(steps[i], c=best[0]), replace(steps[reader], a=best[1])
    return steps


def _vectors(written: Side, read: Side) -> tuple[int, int]:
    found = []
    for side in (read, written):
        of = digits(side.offsets.numbers[: side.length])
        found.append(min(run(of, side.length), 8) if of else 1)
    return min(found), found[0]


def _step(step: Product, *, covers: bool = True) -> AffineStep:
    rows = step.entries // step.blocks
    w_batch, w_contracted, w_cols = (
        _all(step, "factor", table)
        for table in (
            step.w_base.numbers.reshape(step.blocks, rows)[:, 0],
            step.w_contracted.numbers,
            step.w_cols.numbers,
        )
    )
    c_batch, c_rows = _separate(step, step.c.base.numbers.reshape(step.blocks, rows))
    made = AffineStep(
        step.factor, step.source, step.target, step.blocks, rows, step.contracted, step.cols,
        STILL, STILL, STILL, w_batch, w_contracted, w_cols, c_batch, c_rows,
        _all(step, "result", step.c.offsets.numbers), covers=covers,
    )  # fmt: skip
    base = digits(step.a.base.numbers.reshape(step.blocks, rows)[:, 0])
    offsets = digits(step.a.offsets.numbers) if not step.a.stride else None
    if base is not None and offsets is not None:
        a_batch, a_rows = _separate(step, step.a.base.numbers.reshape(step.blocks, rows))
        return replace(made, a_batch=a_batch, a_rows=a_rows, a_contracted=offsets)
    read = _positions(step.a, step.entries).reshape(step.blocks, rows, -1)
    moved = read[0, :, 0] - read[0, 0, 0]
    if (read != read[:, :1] + moved[:, None]).any():
        raise NotAffine(f"{_named(step)} gathers differently for each of its {rows} rows")
    return replace(made, a_rows=_all(step, "rows", moved), a_runs=runs(read[:, 0])[0])


def _back(step: Product, features: int) -> AffineStep:
    """The step that takes the gradient of the result to the gradient of the operand.

    A gather is taken back as a gather: each run of features is the sum of what the entries that read it hand back.
    """
    forward = _step(step)
    read = _positions(step.a, step.entries)
    covers = len(np.unique(read)) == features
    if forward.a_runs is None:
        return _step(replace(step.transposed, add=False), covers=covers)
    if forward.rows > 1:
        raise NotAffine(f"{_named(step)} gathers for {forward.rows} rows")
    read = read.reshape(step.blocks, -1)
    w_read = step.w_contracted.numbers.astype(np.int64)
    length = forward.a_runs.length
    if not _whole(read, w_read, length) or features % length:
        length = 1  # feature by feature
    starts, w_read = read[:, ::length], w_read.reshape(-1, length)
    distinct = np.arange(0, features, length)  # a run that nothing reads gets no part, and is written as zero
    readers = [np.argwhere(starts == start) for start in distinct]  # of each run: (entry, its position in the entry)
    most = max(map(len, readers))
    a = np.full((len(distinct), most, step.cols), PAD, np.int64)
    w = np.full_like(a, PAD)
    for i, found in enumerate(readers):
        for j, (entry, position) in enumerate(found):
            a[i, j] = step.c.base.numbers[entry] + step.c.offsets.numbers
            w[i, j] = step.w_base.numbers[entry] + w_read[position, 0] + step.w_cols.numbers
    a_runs, w_runs = runs(a.reshape(len(distinct), -1), w.reshape(len(distinct), -1))
    return AffineStep(
        step.factor, step.target, step.source, len(distinct), 1, most * step.cols, length,
        STILL, STILL, STILL, STILL, STILL, _all(step, "factor", w_read[0] - w_read[0, 0]),
        line(len(distinct), length), STILL, line(length, 1), a_runs=a_runs, w_runs=w_runs,
    )  # fmt: skip


def _positions(side: Side, entries: int) -> _Numbers:
    """Every offset of a side: (entries, length)."""
    offsets = side.offsets.numbers.reshape(-1, side.length).astype(np.int64)
    return np.ascontiguousarray(
        side.base.numbers.astype(np.int64)[:, None] + np.broadcast_to(offsets, (entries, side.length))
    )


def _separate(step: Product, base: npt.NDArray[np.int32]) -> tuple[Digits, Digits]:
    if (base != base[:, :1] + (base[0] - base[0, 0])).any():
        raise NotAffine(f"{_named(step)} moves its rows differently for each block")
    return _all(step, "batch", base[:, 0]), _all(step, "rows", base[0])


def _all(step: Product, what: str, table: npt.ArrayLike) -> Digits:
    numbers = np.asarray(table, np.int64)
    found = digits(numbers)
    if found is None:
        raise NotAffine(f"{_named(step)}: the table of its {what} is not affine")
    if numbers[0]:
        raise NotAffine(f"{_named(step)}: the table of its {what} begins at {numbers[0]}, not at 0")
    return found


def _whole(read: _Numbers, w_read: _Numbers, length: int) -> bool:
    """Whether runs of `length` features are read whole, from their first one on, and lie alike in the factor."""
    starts, within = read[:, ::length], w_read.reshape(-1, length)
    alike = (read.reshape(*starts.shape, length) == starts[:, :, None] + np.arange(length)).all()
    return bool(alike and not (starts % length).any() and (within - within[:, :1] == within[0] - within[0, 0]).all())


def _named(step: Product) -> str:
    return f"the step of factor_{step.factor} from buffer {step.source}"
