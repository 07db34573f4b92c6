"""Two results files side by side: what became slower or faster beyond noise, and what cannot be compared.

The paired ratio to dense depends little on the machine's mood and is what two files are compared by. Absolute times
are compared only where everything but the commit is the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.files.rows import Refusal, Results, Row, Run, Spread
from structures.reading import BadFile

RATIO, TIME = "ratio", "time"
LEAST_ROUNDS = 3  # fewer say nothing about noise
FREE = ("structures", "commit")  # may differ between runs whose absolute times are compared
BY: Mapping[str, Callable[[Row], str]] = {
    "structure": lambda row: row.structure,
    "series": lambda row: row.series,
    "shape": lambda row: f"{row.in_features}x{row.out_features}",
    "tokens": lambda row: str(row.tokens),
    "dtype": lambda row: row.dtype,
    "device": lambda row: row.device,
    "mode": lambda row: row.mode,
    "backend": lambda row: row.backend,
    "threads": lambda row: str(row.threads),
    "budget": lambda row: row.budget or "own options",
}


@dataclass(frozen=True)
class Change:
    """One point in both files. Changes are of time, +0.1 being a tenth more of it; relative to dense's for RATIO."""

    before: Row
    after: Row
    measure: str
    change: float  # of the medians
    low: float  # from the quartiles that are nearest, and farthest
    high: float

    @property
    def clear(self) -> bool:
        """Whether the quartile ranges of the two do not meet."""
        rounds = min(spread_of(self.before, self.measure).rounds, spread_of(self.after, self.measure).rounds)
        return rounds >= LEAST_ROUNDS and not self.low <= 0 <= self.high

    def worse(self, limit: float) -> bool:
        """Whether it got slower by more than `limit`, and beyond noise."""
        return self.clear and self.change > limit


@dataclass(frozen=True)
class Comparison:
    """What two files have in common and what not."""

    before: Run
    after: Run
    differs: Mapping[str, tuple[str, str]]
    ratios: tuple[Change, ...]
    times: tuple[Change, ...]  # empty where absolute times are not compared
    absolute: str  # why absolute times are compared, or why not
    in_both: int
    redefined: tuple[tuple[Row, Row], ...]  # other options or parameters under the same name: another layer
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    now_refused: tuple[tuple[Row, Refusal], ...]

    def failed(self, limit: float | None, *, times: bool) -> list[Change]:
        """Changes that are worse than the limit: of ratios, and of absolute times where they were asked for."""
        if limit is None:
            return []
        return [change for change in self.ratios + (self.times if times else ()) if change.worse(limit)]


def compare(before: Results, after: Results, *, absolute: bool = False) -> Comparison:
    """Pair the points of two files.

    Args:
        absolute: compare absolute times whatever differs.
    Raises:
        BadFile: no point is in both.
    """
    a, b = before.runs[0], after.runs[0]
    differs = {key: (value, b.machine[key]) for key, value in a.machine.items() if b.machine[key] != value}
    both, only_before, only_after = _pairs(before.rows, after.rows)
    if not both:
        raise BadFile(f"nothing to compare: no point is in both {a.file} and {b.file}{_apart(before, after)}")
    same: list[tuple[Row, Row]] = []
    redefined: list[tuple[Row, Row]] = []
    for one, other in both:
        (same if (one.options, one.params) == (other.options, other.params) else redefined).append((one, other))
    blocking = [key for key in differs if key not in FREE]
    why = "compared as everything but the commit is the same"
    if blocking:
        why = f"{', '.join(blocking)} differ{'s' if len(blocking) == 1 else ''}"
        why = f"compared as asked for, though {why}" if absolute else f"not compared: {why} (--absolute compares them)"
    return Comparison(
        before=a,
        after=b,
        differs=differs,
        ratios=_sorted(_change(one, other, RATIO) for one, other in same if one.speedup and other.speedup),
        times=_sorted(_change(one, other, TIME) for one, other in same) if absolute or not blocking else (),
        absolute=why,
        in_both=len(same),
        redefined=tuple(redefined),
        only_before=tuple(only_before),
        only_after=tuple(only_after),
        now_refused=tuple((row, found) for row in only_before if (found := _refusal(row, after.refusals))),
    )


def _pairs(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    """Rows of the same point, and the rows that only one has.

    The backend that ran may differ, unless a point was measured with several; so may the threads, where each file has
    one number of them.
    """
    threads = [{row.threads for row in rows} for rows in (before, after)]
    loose = len(threads[0]) == len(threads[1]) == 1

    def grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            where = (row.device, row.clock, row.dtype, 0 if loose else row.threads, row.mode, row.tokens)
            what = (row.structure, row.series, row.budget, row.control, row.in_features, row.out_features)
            groups.setdefault((*where, *what), []).append(row)
        return groups

    left, right = grouped(before), grouped(after)
    both, only_before, only_after = [], [], []
    for key in [*left, *(key for key in right if key not in left)]:
        ours, theirs = left.get(key, []), right.get(key, [])
        if len(ours) == len(theirs) == 1:
            both.append((ours[0], theirs[0]))
            continue
        by_backend = {row.backend: row for row in theirs}
        both += [(row, by_backend[row.backend]) for row in ours if row.backend in by_backend]
        only_before += [row for row in ours if row.backend not in by_backend]
        only_after += [row for row in theirs if row.backend not in {one.backend for one in ours}]
    return both, only_before, only_after


def _apart(before: Results, after: Results) -> str:
    """The first thing that no row of one file shares with a row of the other, in words."""
    for key in ("device", "clock", "dtype", "mode", "tokens", "structure", "series", "shape", "threads"):
        names = BY.get(key, lambda row, key=key: str(getattr(row, key)))
        ours, theirs = ({names(row): None for row in rows} for rows in (before.rows, after.rows))
        if not set(ours) & set(theirs):
            return f"; {key}: {_few(list(ours))} | {_few(list(theirs))}"
    return ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "no points"


def _refusal(row: Row, refusals: Sequence[Refusal]) -> Refusal | None:
    what = (row.structure, row.budget, row.in_features, row.out_features)
    of_layer = (r for r in refusals if (r.structure, r.budget, r.in_features, r.out_features) == what)
    return next((r for r in of_layer if r.covers(row, ("series", "tokens", "dtype", "device", "mode"))), None)


def _change(before: Row, after: Row, measure: str) -> Change:
    a, b = spread_of(before, measure), spread_of(after, measure)
    if measure == RATIO:  # a speed-up is dense's time over this one's
        a, b = b, a
    return Change(before, after, measure, b.median / a.median - 1, b.q1 / a.q3 - 1, b.q3 / a.q1 - 1)


def spread_of(row: Row, measure: str) -> Spread:
    """The spread of a row that a measure looks at."""
    return row.speedup if measure == RATIO and row.speedup else row.time


def _sorted(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Slower beyond noise, the worst first; then faster, the best first; then what cannot be told apart."""

    def order(change: Change) -> tuple[int, float]:
        if not change.clear:
            return 2, -abs(change.change)
        return (0, -change.change) if change.change > 0 else (1, change.change)

    return tuple(sorted(changes, key=order))
