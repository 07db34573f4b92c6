"""A question that results files can answer: which structure for this layer, run like this, at this cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.files.rows import Row, Run
from bench.files.vocabulary import DENSE, MODES, NEAR, RIVALS

OF_ROW = ("in_features", "out_features", "tokens", "mode", "dtype", "device", "clock", "threads")  # what a place is
PARAMS, FLOPS = "params", "flops"  # what is held equal: parameters, or the FLOPs that are executed
USUAL, USUAL_DTYPE = 0.25, "float32"  # the share of dense and the numbers that are asked for first


@dataclass(frozen=True, kw_only=True)
class Question:
    """A layer, how it runs, where, and the share of dense's parameters or executed FLOPs that it may cost."""

    in_features: int
    out_features: int
    tokens: int
    mode: str
    dtype: str
    device: str
    clock: str
    threads: int
    machine: str  # see machine_names
    equal: str
    share: float

    @property
    def place(self) -> Question:
        """The layer, machine and way to run alone, as `at_places` has them."""
        return replace(self, equal=PARAMS, share=1.0)

    def costs(self, row: Row) -> float:
        """The share of dense that a row has of what is held equal."""
        return row.params_share if self.equal == PARAMS else row.executed_share

    def fits(self, row: Row) -> bool:
        """Whether a row costs what is asked for, to 15 %."""
        return near(self.costs(row), self.share)


def near(found: float, asked: float) -> bool:
    """Whether two shares are equal enough to be compared."""
    return abs(found / asked - 1) <= NEAR + 1e-9


def rival(row: Row) -> bool:
    """Whether a row is something dense that a user would try first: narrower, or in fewer bits."""
    return row.structure in RIVALS


def questions(rows: Sequence[Row]) -> tuple[Question, ...]:
    """Every question that rows can answer; the one to show first in front.

    Shares are the budgets that were asked for; where there are none, those that structures happen to have. In front is
    the question of float32 with most structures, among those forward before train, then the share nearest to a
    quarter, then the largest layer.
    """
    structures: dict[Question, set[str]] = {}
    for place, here in at_places(rows).items():
        measured = [row for row in here if row.structure != DENSE and not row.control and row.speedup]
        for equal in (PARAMS, FLOPS):
            for share in _shares(measured, equal):
                asked = replace(place, equal=equal, share=share)
                fitting = {row.structure for row in measured if asked.fits(row)}
                if fitting:
                    structures[asked] = fitting
    every = sorted(structures, key=lambda q: (q.machine, q.device, q.clock, q.dtype, q.threads, q.equal != PARAMS,
                   MODES.index(q.mode), -q.share, q.in_features * q.out_features, q.in_features, q.tokens))  # fmt: skip
    front = min(every, default=None, key=lambda q: (q.equal != PARAMS, q.dtype != USUAL_DTYPE, -len(structures[q]),
                MODES.index(q.mode), abs(q.share - USUAL), -q.in_features * q.out_features))  # fmt: skip
    return tuple(sorted(every, key=lambda q: q is not front))


def at_places(rows: Sequence[Row]) -> dict[Question, list[Row]]:
    """The rows of each layer, machine and way to run, under questions that hold nothing equal yet."""
    names = machine_names(list({id(row.run): row.run for row in rows}.values()))
    found: dict[Question, list[Row]] = {}
    for row in rows:
        own = {key: getattr(row, key) for key in OF_ROW}
        found.setdefault(Question(**own, machine=names[id(row.run)], equal=PARAMS, share=1.0), []).append(row)
    return found


def _shares(measured: Sequence[Row], equal: str) -> list[float]:
    budgets = {row.budget for row in measured if row.budget}
    found = sorted({float(budget.partition("=")[2]) for budget in budgets}, reverse=True)
    if not found:
        for own in sorted((r.params_share if equal == PARAMS else r.executed_share for r in measured), reverse=True):
            if own < 1 and not any(near(own, other) for other in found):
                found.append(float(f"{own:.3g}"))
    return found


def machine_names(runs: Sequence[Run]) -> dict[int, str]:
    """A name for each run's machine, by id: its processors, and what sets it apart from other runs on the same ones."""
    names = {}
    for run in runs:
        same = [other.machine for other in runs if _hardware(other) == _hardware(run)]
        differ = [key for key, value in run.machine.items() if any(other[key] != value for other in same)]
        names[id(run)] = ", ".join([*_hardware(run), *(f"{key} {run.machine[key]}" for key in differ)])
    return names


def _hardware(run: Run) -> tuple[str, ...]:
    cpu, gpu = run.machine["cpu"], run.machine["gpu"]
    return (cpu,) if gpu == "none" else (cpu, gpu)
