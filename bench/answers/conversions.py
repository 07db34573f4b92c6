"""What a file of `bench minilm` holds, read and checked: an encoder converted to one structure after another."""

from dataclasses import dataclass
from typing import Annotated

from bench.files import declared
from bench.files.fields import Fields
from bench.files.rows import Spread

Way = Annotated[str, declared.choice("plain", "aware", "sequential", "control")]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The encoder converted to one structure at one share; errors are means over its feed-forward layers."""

    structure: declared.Name
    way: Way
    budget: declared.Budget
    options: declared.Object
    weight_error: declared.FromZero
    output_error: declared.FromZero
    cosine: Annotated[float, declared.within(-1.001, 1.001)]
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
class ConversionRow(EncoderTime, Fit):
    """A conversion and its time."""

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
