"""A curve: one structure with one rule for its options; and the place that all rows of a chart share."""

from dataclasses import dataclass
from typing import NamedTuple

from bench.files.rows import Row
from bench.files.vocabulary import DENSE

STRUCTURE, CONTROL = "structure", "control"


@dataclass(frozen=True)
class Curve:
    """One structure with one rule for its options: what a single line may join."""

    id: str  # unique in its panel; what charts refer to, so that no name from a file does
    kind: str  # DENSE, STRUCTURE or CONTROL
    label: str
    structure: str
    series: str
    backends: str  # every one that ran
    variant: int  # among the curves of this structure in this panel
    rule: str  # how the options scale with width
    rows: tuple[Row, ...]  # by width

    @property
    def squares(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.square)

    @property
    def rectangles(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.square)


class Place(NamedTuple):
    """What rows must share before any two of them meet in a chart."""

    machine: str  # see machine_names
    device: str
    clock: str
    dtype: str
    threads: int

    @property
    def choices(self) -> dict[str, str]:
        """One word or phrase per question a reader chooses by."""
        clock = " (device clock)" if self.clock == "device" else ""
        return {
            "Type": self.dtype,
            "Device": self.device + clock,
            "Threads": str(self.threads),
            "Machine": self.machine,
        }

    @property
    def slug(self) -> str:
        """The end of a file name, out of the closed vocabularies of results files: no free text of a file is in it."""
        clock = "-device-clock" if self.clock == "device" else ""
        return f"{self.dtype}-{self.device}{clock}-{self.threads}-threads"


def kind(row: Row) -> str:
    """Which of the three kinds of curve a row belongs to."""
    if row.control:
        return CONTROL
    return DENSE if row.structure == "dense" else STRUCTURE


def dyad(structure: str) -> bool:
    """Whether a structure is a variant of DYAD, which are drawn alike."""
    return structure.startswith("dyad")
