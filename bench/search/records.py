"""What the journal of a search holds, declared: a record for each stage that a candidate went through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from bench.files import declared
from bench.files.journal import Left
from bench.files.rows import Spread
from bench.search import quality

TIME, FINAL = "time", "final"
WORST = 1e9  # what stands for a quality that is no number


@dataclass(frozen=True)
class TimeRecord:
    """A candidate beside dense."""

    speedup: Spread
    seconds: declared.Number
    backend: declared.Name
    error: declared.Error


@dataclass(frozen=True)
class QualityRecord:
    """A candidate's distance or loss after the sweeps or steps of a rung."""

    value: Annotated[float, declared.within(0, WORST)]


def rung(number: int) -> str:
    """The stage of a rung of the successive halving."""
    return f"quality {number}"


KINDS = {
    TIME: (TimeRecord, Left),
    FINAL: (TimeRecord, Left),
    **{rung(i): (QualityRecord,) for kinds in quality.RUNGS.values() for i in range(len(kinds))},
}
