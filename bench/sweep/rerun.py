"""Measure again only the points that a results file flags as unsafe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files.errors import UsageError
from bench.files.fields import Fields, load
from bench.files.rows import Run, parse, parse_run

CURABLE = ("load", "noisy")  # flags that a repetition may get rid of


@dataclass(frozen=True)
class Flagged:
    """Points of a results file, and the options under which they were measured."""

    run: Run
    ids: frozenset[str]
    requests: tuple[Mapping[str, Any], ...]  # several in a file of merged shards


def flagged(path: Path) -> Flagged:
    """The flagged points of a file.

    Raises:
        BadFile: it is no results file.
        UsageError: nothing is flagged, or it does not say what was asked for.
    """
    document = load(path)
    results = parse(str(path), document)
    ids = frozenset(_id(row.name) for row in results.rows if set(row.flags) & set(CURABLE))
    if not ids:
        raise UsageError(f"--rerun-flagged: no point of {path} is flagged: there is nothing to repeat")
    facts = document["structures"]["run"]
    runs = [part["run"] for part in facts.get("merged_from", [{"run": facts}])]
    requests = [run.get("request") for run in runs if run.get("rerun_of") is None]
    if not requests or not all(isinstance(one, dict) for one in requests):
        raise UsageError(f"--rerun-flagged: {path} does not say which options it was measured with; measure it anew")
    return Flagged(results.runs[0], ids, tuple(requests))


def command(output: Path | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How many rows are flagged, and the command that repeats them; None where none is."""
    count = sum(bool(set(row["extra_info"]["flags"]) & set(CURABLE)) for row in rows)
    if not count or output is None:
        return None
    again = output.with_name(f"{output.stem}-rerun{output.suffix}")
    measure = f"pytest bench --rerun-flagged {output} --benchmark-json={again}{' --overwrite' * again.exists()}"
    return {"flagged": count, "command": f"{measure} && python -m bench merge {output} {again} -o {output}"}


def conditions(facts: Mapping[str, Any]) -> dict[str, str]:
    """What must be equal for two runs to share a curve, as the readers of results files take it."""
    return dict(parse_run("this run", Fields("this run", {"run": facts, "roofline": [], "rules": {}})).machine)


def _id(name: str) -> str:
    """The id of a test's point: `test_linear[ID]` -> `ID`."""
    match = re.fullmatch(r"[^\[]*\[(.*)\]", name)
    return match[1] if match else name
