"""Tidy CSV: one line per point, and one per refused point with its reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.files import cells
from bench.files.rows import Refusal, Results, Row, Spread

_SPREADS = ("time", "speedup")


def write_points(results: Results, path: Path) -> None:
    """Every row with all its figures, its run, and the fields this reader does not know as `extra.NAME`."""
    extras = sorted({key for row in results.rows for key in row.extra})
    plain = [f.name for f in fields(Row) if f.name not in ("run", "extra", *_SPREADS)]
    spread = [f"{name}_{part.name}" for name in _SPREADS for part in fields(Spread)]
    run = ["file", "datetime", "complete", *(f"machine.{key}" for key in results.runs[0].machine)]
    header = [*plain, *spread, "saving_arrived", "rule", *run, *(f"extra.{key}" for key in extras)]
    cells.write(path, header, (_point(row, plain, extras) for row in results.rows))


def write_refused(results: Results, path: Path) -> None:
    """Every refused point with its reason."""
    plain = [f.name for f in fields(Refusal) if f.name != "run"]
    lines = (map(_cell, (*(getattr(r, key) for key in plain), r.run.file)) for r in results.refusals)
    cells.write(path, [*plain, "file"], lines)


def _point(row: Row, plain: Sequence[str], extras: Sequence[str]) -> list[Any]:
    spreads = [getattr(getattr(row, name), part.name, None) for name in _SPREADS for part in fields(Spread)]
    run = [row.run.file, row.run.datetime, row.run.complete, *row.run.machine.values()]
    own = [getattr(row, key) for key in plain]
    more = (row.arrival, row.run.rules.get(row.series), *run, *(row.extra.get(key) for key in extras))
    return list(map(_cell, (*own, *spreads, *more)))


def _cell(value: Any) -> Any:
    if isinstance(value, (Mapping, list)):
        return json.dumps(value)
    return " ".join(value) if isinstance(value, tuple) else value
