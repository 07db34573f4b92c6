"""Rows of whole feed-forward modules and decoders, as `bench/modules` writes them and as all others read them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from bench.files import declared
from bench.files.declared import read
from bench.files.fields import Fields
from bench.files.kinds import DECODER, FEED_FORWARD, File
from bench.files.rows import Spread
from structures.reading import BadFile

FF_ONLY, BOTH, REST = "feed-forward", "feed-forward and attention", "rest"
PLACES = (REST, FF_ONLY, BOTH)


@dataclass(frozen=True, kw_only=True)
class WholeRow:
    """What rows of both kinds have: what was timed in one mode, and how."""

    structure: declared.Name
    way: declared.Name
    mode: declared.Mode
    batch: declared.Count
    sequence: declared.Count
    tokens: declared.Count
    dtype: declared.Dtype
    device: declared.Device
    threads: declared.Count
    clock: declared.Clock
    params: declared.Count
    time: Spread
    speedup: Spread | None
    activation_bytes: declared.Number | None
    checkpoint_bytes: declared.Number
    error: declared.Error
    flags: declared.Names


@dataclass(frozen=True, kw_only=True)
class ModuleRow(WholeRow):
    """A feed-forward module with one kind of layer."""

    names: declared.Words
    width: declared.Count
    activation: declared.Words
    n_blocks: declared.Count | None
    backend: declared.Name
    params_share: declared.Number
    flops: declared.Number
    flops_share: declared.Number
    executed_flops: declared.Number

    @property
    def key(self) -> tuple[str, int, str, str, int | None]:
        """What tells modules apart."""
        return self.names, self.width, self.activation, self.structure, self.n_blocks


@dataclass(frozen=True, kw_only=True)
class DecoderRow(WholeRow):
    """A decoder with some of its layers of one kind; of the rest, the model without layers."""

    model: declared.Words
    place: Annotated[str, declared.choice(*PLACES)]
    budget: declared.Budget
    layers: declared.FromZero
    model_layers: declared.Count
    options: declared.Object
    dense_way: declared.Name | None
    swapped_params: declared.Count | None
    swapped_share: declared.Number | None

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """What tells models apart."""
        return self.model, self.place, self.structure, self.budget


R = TypeVar("R", ModuleRow, DecoderRow)
ROWS: dict[str, type[ModuleRow] | type[DecoderRow]] = {FEED_FORWARD: ModuleRow, DECODER: DecoderRow}


def by_key(rows: Sequence[Fields], kind: type[R]) -> dict[Hashable, dict[str, R]]:
    """The rows of each module or model, by mode.

    Raises:
        BadFile: a field is missing or impossible, or a row stands twice.
    """
    found: dict[Hashable, dict[str, R]] = {}
    for fields in rows:
        row = read(kind, fields)
        modes = found.setdefault(row.key, {})
        if row.mode in modes:
            raise BadFile(f"{fields.where}: {row.mode} stands twice")
        modes[row.mode] = row
    return found


def check(file: File) -> None:
    """Raise BadFile where a file of a kind of these has a row that cannot be read."""
    by_key(file.rows, ROWS[file.kind])
