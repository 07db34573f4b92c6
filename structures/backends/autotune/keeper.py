"""The choices of one layer, by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import planned
from structures.backends.autotune import graph, kept, programs
from structures.backends.autotune.programs import Run, run_of
from structures.backends.autotune.record import NAME, Key, Record, key_of
from structures.backends.autotune.tuning import tune
from structures.backends.planned.program import Plan
from structures.structure import Structure

_functorch_active = torch._C._are_functorch_transforms_active
_known: dict[Structure, dict[tuple[Key, int], Record]] = {}  # of this process by threads too, for layers alike


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Why there is nothing to choose from, as a sentence."""
    if structure.gate is not None:
        return f"{structure.name} has a gate; backends that run experts choose by the number of tokens"
    if x.device.type == "meta":
        return "x is on the meta device: there is nothing to time"
    return planned.refuses(structure, x)


class Keeper:
    """The choices of one layer. Records are data; programs are found again from them.

    Args:
        tunes: a shape without a choice is tuned when it is first seen; else it is left to `auto`.
    """

    ran = NAME
    bytes = 0  # nothing is held beside the factors

    def __init__(self, tunes: bool = False, records: Mapping[Key, Record] | None = None):
        self.tunes = tunes
        self.records = dict(records or {})
        self.number = graph.number_of(self)
        self._runs: dict[Key, Run] = {}

    def __call__(
        self,
        structure: Structure,
        x: Tensor,
        factors: Sequence[Tensor],
        bias: Tensor | None,
        *,
        own: Sequence[Tensor] = (),
        training: bool = False,
        gathered: bool = False,
    ) -> Tensor | None:
        """y (tokens, out_features); None where this shape has no choice and none is to be made.

        Raises:
            ValueError: it refuses, or a graph is compiled of a layer for which nothing was tuned.
        """
        if torch.compiler.is_compiling():
            return graph.apply(self.number, structure, x, factors, bias)
        if _functorch_active() or forward_ad._current_level >= 0:
            return None  # a transform sees the planner's pure form
        key = key_of(x, factors, bias)
        run = self._runs.get(key)
        if run is None:
            if key not in self.records and not self.tunes:
                return None
            run = self._found(structure, key, x, factors, bias)
        return run(x, factors, bias)

    def release(self) -> None:
        """Training keeps choices."""

    def set(self, structure: Structure, key: Key, record: Record) -> Run:
        """Use what a record chose for its shape from now on; what runs it.

        Raises:
            LookupError: the planner does not offer that program any more.
        """
        run = self._runs[key] = run_of(structure, key, record.chosen.digest)
        self.records[key] = record
        _known.setdefault(structure, {})[key, record.threads] = record
        return run

    def plan(
        self, structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, bias: bool, grad: bool
    ) -> Plan | None:
        """The planner's program chosen for a shape; None where nothing was, or another backend was."""
        want = (True, bias, *(True,) * len(structure.factors)) if grad else None
        key = Key((tokens - 1).bit_length(), dtype, device, not bias, want)
        record = self.records.get(key)
        if record is None or record.chosen.digest in programs.PLAIN:
            return None
        return programs.program_of(structure, key, record.chosen.digest).plan

    def _found(self, structure: Structure, key: Key, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Run:
        """The run of a shape seen first: from the layer's record, another layer's, the file, or tuned now."""
        if (reason := refuses(structure, x)) is not None:
            raise ValueError(f"backend {NAME!r}: {reason}")
        alike = _known.get(structure, {}).get((key, torch.get_num_threads()))
        for record in (self.records.get(key), alike, kept.read(structure, key)):
            if record is not None:
                try:
                    return self.set(structure, key, record)
                except LookupError:
                    continue  # the planner has changed since
        return self.set(structure, key, tune(structure, x, factors, bias, key))

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        return Keeper(self.tunes, self.records)

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, (self.tunes, self.records)


def forget() -> None:
    """Drop what other layers of this process chose; their files and the layers' own records stay."""
    _known.clear()
    programs.forget()
