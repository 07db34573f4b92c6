"""The results file: pytest-benchmark's JSON, made small, with the section `structures` beside it."""

from __future__ import annotations

import math
from typing import Any

from bench.points import rules
from bench.sweep import Sweep

SCHEMA = 1
DIGITS = 5  # significant ones; times repeat to three at best


def extend(document: dict[str, Any], sweep: Sweep) -> None:
    """Trim pytest-benchmark's document in place and add the section `structures`."""
    document["benchmarks"] = [_trimmed(row) for row in document["benchmarks"] if "roofline" in row["extra_info"]]
    cpu = document.get("machine_info", {}).get("cpu")
    if isinstance(cpu, dict):
        cpu.pop("flags", None)
    document["structures"] = {
        "schema": SCHEMA,
        "run": rounded(sweep.run_facts()),
        "roofline": rounded([limits.as_dict() for limits in sweep.rooflines.values()]),
        "rules": rules(done.point for done in sweep.done),
        "refused": rounded(sweep.refused),
    }


def save_refusals(config: Any, sweep: Sweep) -> None:
    """Write the file where every point was refused: pytest-benchmark writes none without times."""
    session = config._benchmarksession
    if session.json and not session.benchmarks and sweep.refused:
        facts = {"machine_info": session.get_machine_info(), "commit_info": {}}
        of_run = {"config": config, "benchmarks": []}
        document = config.hook.pytest_benchmark_generate_json(**of_run, include_data=False, **facts)
        config.hook.pytest_benchmark_update_json(**of_run, output_json=document)
        session.save_json(document)


def rounded(value: Any) -> Any:
    """The same value with every float at 5 significant digits; what JSON does not know becomes null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def _trimmed(row: dict[str, Any]) -> dict[str, Any]:
    """Without single times, the settings of a calibration that is not used, and what `extra_info` repeats."""
    row["stats"] = rounded(row["stats"] | {"data": []})
    row["extra_info"] = rounded(row["extra_info"])
    row["params"] = row["param"] = None
    row["options"] = {"disable_gc": row["options"].get("disable_gc"), "timer": row["options"].get("timer")}
    return row
