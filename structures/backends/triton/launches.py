"""Which steps share a launch, and in what form and tile one runs: chosen by a price worked out on paper.

The rates below are data sheets and assumptions. No launch has been timed on a card, so a price is a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from structures.backends.triton.affine import AffineStep
from structures.backends.triton.digits import Digits, line

VECTOR = 8  # numbers of 2 bytes in one access of 16
STRIDED, COPIED, TURNED = "strided", "copied", "turned"


@dataclass(frozen=True)
class Card:
    """A GPU as its price sees it. Rates are predictions until they are measured."""

    name: str
    capability: int  # 90 for Hopper
    processors: int
    bandwidth: float  # bytes/s of memory
    flops: float  # of bfloat16 and float16, dense
    cache: int  # bytes of L2
    cache_bandwidth: float

    @property
    def shared(self) -> int:
        """Bytes of shared memory that one program may take."""
        return {90: 227, 80: 163}.get(self.capability, 99) * 1024


CARDS = (
    Card("H200", 90, 132, 4.3e12, 790e12, 60_000_000, 5.5e12),
    Card("H100", 90, 132, 3.0e12, 790e12, 50_000_000, 5.5e12),
    Card("A100", 80, 108, 1.6e12, 280e12, 40_000_000, 4.0e12),
    Card("A40", 86, 84, 0.6e12, 120e12, 6_000_000, 1.8e12),
)


def card(name: str, capability: int) -> Card:
    """The card of that name; another one is taken for the nearest of its generation."""
    named = [c for c in CARDS if c.name in name]
    nearest = min(CARDS, key=lambda c: abs(c.capability - capability))
    return replace(named[0] if named else nearest, name=name, capability=capability)


@dataclass(frozen=True)
class Launch:
    """One or two steps that land in the same tiles of one buffer."""

    steps: tuple[AffineStep, ...]
    add: bool  # to what the buffer holds

    @property
    def target(self) -> int:
        return self.steps[0].target


@dataclass(frozen=True)
class TiledLaunch:
    """How a launch runs. `steps` are those of the launch, over copies where the form or the factor wants one."""

    form: str
    steps: tuple[AffineStep, ...]
    copied: tuple[bool, ...]  # the operand of each step
    canonical: tuple[bool, ...]  # the factor of each step
    block: tuple[int, int, int]  # rows, cols, contracted
    split: int
    warps: int
    stages: int
    predicted: float  # seconds
    kept: bool = False  # canonical copies are, between calls

    @cached_property
    def even(self) -> bool:
        """Whether no tile passes an edge of a factor's block."""
        _, cols, contracted = self.block
        return all(
            s.cols % cols == 0 and s.contracted % (contracted * self.split) == 0 and not (s.a_runs and s.a_runs.padded)
            for s in self.steps
        )

    def __str__(self) -> str:
        copies = "".join(f", copy of buffer {s.source}" for s, c in zip(self.steps, self.copied, strict=True) if c)
        copy = "kept copy" if self.kept else "copy"
        copies += "".join(
            f", {copy} of factor_{s.factor}" for s, c in zip(self.steps, self.canonical, strict=True) if c
        )
        tile = "x".join(map(str, self.block)) + (f", in {self.split} parts" if self.split > 1 else "")
        shapes = " + ".join(f"{s.batch} x ({s.contracted} -> {s.cols})" for s in self.steps)
        shapes += f" in {self.steps[0].segments} segments" if self.steps[0].segments else ""
        return f"{self.form} {shapes}: tile {tile}{copies}; predicted {self.predicted * 1e6:.1f} us"


def launches(steps: Sequence[AffineStep]) -> list[Launch]:
    """The steps in an order in which they may run: what lies between first, then those of the last buffer, paired."""
    last = steps[-1].target
    found = [Launch((s,), add=False) for s in steps if s.target != last]
    left = [s for s in steps if s.target == last]
    add = False
    while left:
        one = left.pop(0)
        pair = next((t for t in left if _together(one, t) or _together(t, one)), None)
        group: tuple[AffineStep, ...] = (one,)
        if pair is not None:
            left.remove(pair)
            group = (one, pair) if _together(one, pair) else (pair, one)
        found.append(Launch(group, add))
        add = True
    return found


def ways(launch: Launch, tokens: int, itemsize: int, on: Card, *, kept: bool = False) -> list[TiledLaunch]:
    """The forms in which a launch can run, each with its best tile.

    Args:
        tokens: of all segments together, where rows are sorted.
        kept: copies of factors are kept between calls, and cost nothing.
    """
    found: list[TiledLaunch] = []
    canonical = tuple(s.factor >= 0 and s.w_runs is None and s.factor_run < VECTOR for s in launch.steps)
    steps = tuple(s.canonical if c else s for s, c in zip(launch.steps, canonical, strict=True))
    narrow = tuple(s.read_run < VECTOR and s.a_runs is None and s.rows == 1 and s.contracted > 1 for s in steps)
    as_they_lie = (False,) * len(steps)
    found += _tiled(STRIDED, launch.steps, as_they_lie, as_they_lie, tokens, itemsize, on)
    if any(canonical):
        found += _tiled(STRIDED, steps, as_they_lie, canonical, tokens, itemsize, on, kept)
    if any(narrow):
        copies = tuple(s.copied if n else s for s, n in zip(steps, narrow, strict=True))
        found += _tiled(COPIED, copies, narrow, canonical, tokens, itemsize, on, kept)
    if _turns(steps):
        found += _tiled(TURNED, steps, as_they_lie, canonical, tokens, itemsize, on, kept)
    return sorted(found, key=lambda way: way.predicted)


def _together(a: AffineStep, b: AffineStep) -> bool:
    """Whether b's results lie in a's output tiles: no rows, cols side by side, b's blocks a multiple of a's."""
    return _flat(a) and _flat(b) and b.cols % a.cols == 0 and (a.cols == b.cols or a.cols % 16 == 0)


def _flat(s: AffineStep) -> bool:
    return s.rows == 1 and s.c_cols == line(s.cols, 1) and (s.batch == 1 or s.c_batch == line(s.batch, s.cols))


def _turns(steps: Sequence[AffineStep]) -> bool:
    """Whether batch entries lie interleaved in A or C, two or four, and the kernel that turns them takes all steps."""
    first = steps[0]
    if first.batch not in (2, 4) or any(s.rows > 1 or s.a_runs or s.segments for s in steps):
        return False
    if any(
        (s.batch, s.cols, s.c_batch, s.c_cols) != (first.batch, first.cols, first.c_batch, first.c_cols) for s in steps
    ):
        return False
    read = [_interleaved(s.a_batch, s.a_contracted, s.batch, s.contracted) for s in steps]
    written = _interleaved(first.c_batch, first.c_cols, first.batch, first.cols)
    return any(read) or written


def _interleaved(batch: Digits, inner: Digits, entries: int, length: int) -> bool:
    return batch == line(entries, 1) and inner == line(length, entries)


def _blocks(form: str, steps: Sequence[AffineStep], tokens: int, itemsize: int, on: Card) -> list[tuple[int, int, int]]:
    """Tiles whose edges divide every run of 16 or more, where there are any, and that fit the card."""
    every = list(_fitting(form, steps, tokens, itemsize, on))
    return [block for block in every if _whole(steps, *block[1:])] or every


def _fitting(
    form: str, steps: Sequence[AffineStep], tokens: int, itemsize: int, on: Card
) -> Iterator[tuple[int, int, int]]:
    rows, cols = tokens * steps[0].rows, steps[0].cols
    contracted = min(s.contracted for s in steps)
    wide = 256 if on.capability >= 90 and itemsize == 2 else 128
    entries = steps[0].batch if form == TURNED else 1
    for bp, bm, bk in product((16, 32, 64, 128), (256, 128, 64, 32, 16), (128, 64, 32, 16)):
        if bp > max(16, _above(rows)) or bm > max(16, _above(cols)) or bk > max(16, _above(contracted)):
            continue
        largest = 128 * 256 if len(steps) == 1 or form == TURNED else 128 * 128  # two loops beside 128 x 256 sums spill
        if form == TURNED and on.capability < 90:
            largest = 32 * 256  # 64 x 256 spilled 12 kB for sm_80
        if bm > wide or bm * bp * entries > largest or bk * itemsize > (256 if bp == 16 else 128):
            continue
        if form == TURNED and (bk > 32 or cols % bm or any(s.contracted % bk for s in steps)):
            continue
        if len(steps) > 1 and steps[0].cols != steps[1].cols and steps[0].cols % bm:
            continue  # the second term's tile would begin inside a block
        if entries * (bp + bm) * bk * itemsize * _stages(bp, entries) <= on.shared:
            yield bp, bm, bk


def _whole(steps: Sequence[AffineStep], bm: int, bk: int) -> bool:
    return all(
        _keeps(s.w_cols, bm) and _keeps(s.c_cols, bm) and _keeps(s.a_contracted, bk) and _keeps(s.w_contracted, bk)
        and not (s.a_runs and s.a_runs.length >= 16 and s.a_runs.length % bk)
        for s in steps
    )  # fmt: skip


def _keeps(of: Digits, n: int) -> bool:
    """Whether a tile's edge of n divides the fastest digit, so that offsets are one number and one stride."""
    size = of[0][1]
    return (size < 16 and size > 0) or size % n == 0


def _above(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _stages(bp: int, entries: int) -> int:
    return 2 if entries > 1 else 4 if bp == 16 else 3


def _tiled(
    form: str, steps: tuple[AffineStep, ...], copied: tuple[bool, ...], canonical: tuple[bool, ...], tokens: int,
    itemsize: int, on: Card, kept: bool = False,
) -> Iterable[TiledLaunch]:  # fmt: skip
    best = None
    entries = steps[0].batch if form == TURNED else 1
    segments = max(1, min(steps[0].segments, tokens))  # with rows; each is taken to have as many as the others
    each = -(-tokens // segments)
    for block in _blocks(form, steps, each, itemsize, on):
        bp, bm, _ = block
        tiles = -(-each * steps[0].rows // bp) * -(-steps[0].cols // bm) * steps[0].batch // entries * segments
        contracted = min(s.contracted for s in steps)
        split = max(1, min(on.processors // tiles, contracted // 256, 16)) if form != TURNED else 1
        while split > 1 and any(s.contracted % (block[2] * split) for s in steps):
            split -= 1
        copies = _copies(steps, copied, [c and not kept for c in canonical], tokens, itemsize, on)
        seconds = copies + _seconds(steps, block, split, entries, tiles, each, segments, itemsize, on)
        warps = 8 if bp * bm * entries >= 128 * 128 else 4
        if best is None or seconds < best.predicted:
            best = TiledLaunch(form, steps, copied, canonical, block, split, warps, _stages(bp, entries), seconds, kept)
    return [] if best is None else [best]


LAUNCH = 2e-6  # seconds of a launch inside a graph
AREA = {32768: 1.0, 16384: 0.85, 8192: 0.65, 4096: 0.5, 2048: 0.35, 1024: 0.2, 512: 0.12, 256: 0.07}
APART = 0.1  # of the shorter of computing and of moving is not hidden behind the longer
TENSOR_SHARE = 0.8  # of the arithmetic rate, for a tile of full area


def _copies(
    steps: Sequence[AffineStep], copied: Sequence[bool], canonical: Sequence[bool], tokens: int, itemsize: int, on: Card
) -> float:
    """Seconds of the copies that come before a launch."""
    total = 0.0
    for s, of_x, of_w in zip(steps, copied, canonical, strict=True):
        numbers = of_x * tokens * s.batch * s.contracted
        numbers += of_w * s.batch * s.contracted * s.cols * (s.segments if s.w_segment else 1)
        if numbers:
            total += LAUNCH + 2 * itemsize * numbers / _rate(itemsize * numbers, on)
    return total


def _rate(size: float, on: Card) -> float:
    """Bytes/s of what is read again soon: from L2 where it fits."""
    return on.cache_bandwidth if size < on.cache / 2 else on.bandwidth


def _seconds(
    steps: Sequence[AffineStep], block: tuple[int, int, int], split: int, entries: int, tiles: int, tokens: int,
    segments: int, itemsize: int, on: Card,
) -> float:  # fmt: skip
    """One launch: the slowest of arithmetic, of reading tiles from L2, and of memory, in whole waves."""
    bp, bm, _ = block
    waves = -(-tiles * split // on.processors)
    area = AREA.get(bp * bm * entries, 0.07 if bp * bm < 256 else 1.0)
    rate = on.flops / on.processors * area * TENSOR_SHARE * 2 / itemsize
    work = read = memory = 0.0
    rows = min(bp, tokens * steps[0].rows)
    for s in steps:
        over = 1 if s.read_run >= VECTOR or entries > 1 else min(VECTOR, s.batch)
        wide = 1 if s.factor_run >= VECTOR else min(VECTOR, s.batch)
        work += 2 * bp * bm * entries * s.contracted / split / rate / (0.7 if over * wide > 1 else 1.0)
        read += (rows * over + bm * wide) * entries * s.contracted / split * itemsize
        memory += itemsize * s.batch * s.contracted * (s.cols + tokens * s.rows) * segments
    first = steps[0]
    y = itemsize * tokens * first.rows * first.batch * first.cols * segments
    narrow = first.written_run < VECTOR and entries == 1
    moved = (memory + y) / on.bandwidth + (3 * y / _rate(y, on) if narrow else 0.0)
    inside = waves * max(work, read * on.processors / on.cache_bandwidth)
    return LAUNCH + max(inside, moved) + APART * min(inside, moved)


def gradient_block(step: AffineStep, itemsize: int) -> tuple[int, int, int]:
    """The tile (rows, cols, contracted) of a factor's gradient, where rows are what is summed over."""

    def edge(length: int, most: int, *tables: Digits) -> int:
        n = most
        while n > 16 and (n > _above(length) or not all(_keeps(d, n) for d in tables)):
            n //= 2
        return n

    most = 128 if itemsize == 2 else 64
    cols = edge(step.cols, most, step.w_cols, step.c_cols)
    contracted = edge(step.contracted, most, step.w_contracted, step.a_contracted)
    return (64 if itemsize == 2 else 32, cols, contracted)
