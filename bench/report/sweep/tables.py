"""Tidy CSV: one line per point, and one per refused point with its reason."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.files.cells import harmless
from bench.files.rows import Refusal, Results, Row, Spread

_SPREADS = ("time", "speedup")


def write_points(results: Results, path: Path) -> None:
    """Every row with all its figures, its run, and the fields this reader does not know as `extra.NAME`."""
    extras = sorted({key for row in results.rows for key in row.extra})
    plain = [f.name for f in fields(Row) if f.name not in ("run", "extra", *_SPREADS)]
    spread = [f"{name}_{part.name}" for name in _SPREADS for part in fields(Spread)]
    run = ["file", "datetime", "complete", *(f"machine.{key}" for key in results.runs[0].machine)]
    header = [*plain, *spread, "saving_arrived", "rule", *run, *(f"extra.{key}" for key in extras)]
    _write(path, header, (_point(row, plain, extras) for row in results.rows))


def write_refused(results: Results, path: Path) -> None:
    """Every refused point with its reason."""
    plain = [f.name for f in fields(Refusal) if f.name != "run"]
    _write(path, [*plain, "file"], ([*(getattr(r, key) for key in plain), r.run.file] for r in results.refusals))


def _point(row: Row, plain: Sequence[str], extras: Sequence[str]) -> list[Any]:
    spreads = [getattr(getattr(row, name), part.name, None) for name in _SPREADS for part in fields(Spread)]
    run = [row.run.file, row.run.datetime, row.run.complete, *row.run.machine.values()]
    own = [getattr(row, key) for key in plain]
    return [*own, *spreads, row.arrival, row.run.rules.get(row.series), *run, *(row.extra.get(key) for key in extras)]


def _write(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(harmless, header))
        writer.writerows([harmless(_cell(value)) for value in line] for line in lines)


def _cell(value: Any) -> Any:
    if isinstance(value, (Mapping, list)):
        return json.dumps(value)
    return " ".join(value) if isinstance(value, tuple) else value
