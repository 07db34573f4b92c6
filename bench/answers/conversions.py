"""What a file of `bench minilm` holds, read and checked: an encoder converted to one structure after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from bench.files import declared
from bench.files.fields import Fields
from bench.files.rows import Spread

Way = Annotated[str, declared.choice("plain", "aware", "sequential", "control")]
Cosine = Annotated[float, declared.within(-1.001, 1.001)]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The encoder converted to one structure at one share; errors are means over its feed-forward layers."""

    structure: declared.Name
    way: Way
    budget: declared.Budget
    options: declared.Object
    weight_error: declared.FromZero
    output_error: declared.FromZero
    cosine: Cosine
    neighbour: declared.Share
    feed_forward_params: declared.FromZero
    feed_forward_share: declared.FromZero
    params: declared.Number
    projection_seconds: declared.FromZero
    sweeps: declared.FromZero
    limited: declared.Flag = False


@dataclass(frozen=True, kw_only=True)
class EncoderTime:
    """What a sentence takes."""

    speedup: Spread | None  # dense's time over this one's; None on dense itself
    seconds: Annotated[float, declared.Reader(Fields.number), declared.Key("seconds_per_sentence")]
    flags: declared.Names


@dataclass(frozen=True, kw_only=True)
class TunedPoint:
    """What agreement came to after minutes of one core."""

    minutes: declared.FromZero
    cosine: Cosine
    neighbour: declared.Share


def _points(fields: Fields, key: str) -> tuple[TunedPoint, ...]:
    found = tuple(declared.read(TunedPoint, one) for one in fields.each(key))
    if not found or [p.minutes for p in found] != sorted(p.minutes for p in found):
        raise fields.bad(key, "a list of points in the order of their minutes")
    return found


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Converted layers trained from where the fit left them, for a fixed time: agreement along the way.

    rate: the first step of an entry, as a share of its tensor's root mean square.
    """

    rate: declared.Number
    steps: declared.Count
    curve: Annotated[tuple[TunedPoint, ...], declared.Reader(_points)]


@dataclass(frozen=True, kw_only=True)
class ConversionRow(EncoderTime, Fit):
    """A conversion and its time; `tuned` where it was trained afterwards."""

    tuned: Tuned | None = None

    @property
    def time(self) -> tuple[float, float, float]:
        """Time as a share of dense's: its median and quartiles."""
        if self.speedup is None:
            return 1.0, 1.0, 1.0
        return 1 / self.speedup.median, 1 / self.speedup.q3, 1 / self.speedup.q1


def read(fields: Fields) -> ConversionRow:
    """A row of a file.

    Raises:
        BadFile: a field is missing or impossible.
    """
    row = declared.read(ConversionRow, fields)
    if row.speedup is None and row.way != "control":
        raise fields.bad("speedup", "an object")
    return row
