"""Shards of a training run, or its times and its losses, joined into one file; nothing mixed that must not be."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.files import merge as sweep
from bench.files.fields import BadResults, load
from bench.files.kinds import DECIDE, TRAINING, kind_of


def is_training(paths: Sequence[Path]) -> bool:
    """Whether the first file is one of `bench train`; the others must be, then."""
    return bool(paths) and kind_of(load(paths[0])) == TRAINING


def merge(paths: Sequence[Path], output: Path) -> list[str]:
    """Join files into `output`; a line for all that was settled on the way.

    A run that stands in several files is kept once, the first given. What one file leaves out and another has stays.
    Raises:
        BadResults: a file is of another kind, of other versions, or has another loss for the same run.
    """
    documents = [(path, _section(path)) for path in paths]
    first = copy.deepcopy(documents[0][1])
    rows: dict[str, tuple[Path, dict[str, Any]]] = {}
    said: list[str] = []
    made = next((row["versions"] for _, section in documents for row in section["rows"]), {})
    for path, section in documents:
        for row in section["rows"]:
            _same_versions(path, row["versions"], made)
            before = rows.setdefault(row["key"], (path, row))
            _check(before, (path, row))
            if before[0] != path:
                said.append(f"{row['series']} ({row['phase']}): in {before[0]} and {path}; kept {before[0]}'s")
        for name in ("settings", "data"):
            for key, value in section["setup"].get(name, {}).items():
                first["setup"].setdefault(name, {}).setdefault(key, value)
    order = {name: i for i, name in enumerate(first["setup"].get("settings", {}))}
    first["rows"] = sorted((row for _, row in rows.values()), key=lambda row: order.get(row["setting"], len(order)))
    refused = [row for _, section in documents for row in section["refused"]]
    first["refused"] = [row for i, row in enumerate(refused) if row not in refused[:i]]
    first["run"]["complete"] = all(section["run"]["complete"] for _, section in documents)
    runs = [(path, _without_folders(section["run"])) for path, section in documents]
    first["run"] |= {"argv": runs[0][1]["argv"], "merged_from": [{"file": path.name, "run": run} for path, run in runs]}
    sweep.write({"structures": first}, output, _text)
    state = "complete" if first["run"]["complete"] else "not complete"
    return [*said, f"{output}: {len(rows)} rows of {len(paths)} files; {state}"]


def _without_folders(run: dict[str, Any]) -> dict[str, Any]:
    """Folders of a machine tell nothing of a run that others could repeat."""
    return run | {"argv": [Path(word).name if Path(word).is_absolute() else word for word in run.get("argv", [])]}


def _text(document: dict[str, Any]) -> str:
    """JSON with a line for each row: two thirds of the size, and a row that changed is one line of a difference."""
    section = dict(document["structures"])
    rows = section.pop("rows")
    lines = ",\n".join(json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows)
    empty = "[]\n }\n}"
    head = json.dumps({"structures": {**section, "rows": []}}, indent=1, allow_nan=False).removesuffix(empty)
    return f"{head}[\n{lines}\n  ]\n }}\n}}"


def _section(path: Path) -> dict[str, Any]:
    document = load(path)
    if kind_of(document) != TRAINING:
        raise BadResults(f"{path}: is no file of bench train, and cannot be joined with one")
    section: dict[str, Any] = document["structures"]
    for key in ("rows", "refused"):
        if not isinstance(section.get(key), list):
            raise BadResults(f"{path}: {key} is missing")
    return section


def _same_versions(path: Path, found: dict[str, str], made: dict[str, str]) -> None:
    for name in DECIDE:
        if found.get(name) != made.get(name):
            raise BadResults(
                f"{path}: was made with {name} {found.get(name)}, the files before with {made.get(name)}; their "
                "losses cannot be mixed"
            )


def _check(one: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> None:
    (path, row), (second, again) = one, other
    if row.get("loss") != again.get("loss"):
        raise BadResults(f"{second}: {row['series']} has the loss {again.get('loss')}, in {path} {row.get('loss')}")
