"""Tiny results files with figures chosen by hand, never measured."""

import json
from pathlib import Path
from typing import Any


def document(*benchmarks: dict[str, Any], refused: Any = (), run: Any = None, **section: Any) -> dict[str, Any]:
    """A results file of these benchmarks; `run` changes fields of its run."""
    facts = {
        "argv": ["pytest", "bench"],
        "datetime": "2031-02-03T04:05:06+00:00",
        "commit": "0123456789abcdef",
        "dirty": False,
        "versions": {"python": "3.11", "torch": "2.13", "structures": "0.1", "numpy": "2.4", "pytest_benchmark": "5.3"},
        "cpu": "Made-up CPU",
        "device_names": {"cpu": "Made-up CPU"},
        "threads": 2,
        "pinned": [0, 1],
        "allocator": "plain",
        "tf32": None,
        "cold": False,
        "complete": True,
        "foreign_load": 0.02,
    }
    parts = {"schema": 1, "run": facts | (run or {}), "roofline": [], "rules": {}, "refused": list(refused)}
    top = {"machine_info": {"node": "here"}, "commit_info": {}, "datetime": facts["datetime"], "version": "5.3.1"}
    return {**top, "benchmarks": list(benchmarks), "structures": parts | section}


def point(
    series: str = "monarch @ params 0.25",
    *,
    speedup: tuple[float, float, float] | None = (2.0, 1.9, 2.1),
    time: tuple[float, float, float] = (1e-3, 0.9e-3, 1.1e-3),
    rounds: int = 9,
    **info: Any,
) -> dict[str, Any]:
    """One benchmark. Spreads are (median, q1, q3); the structure and its budget are read from the series."""
    structure, _, budget = series.partition(" @ ")
    share = float(budget.replace("=", " ").split()[1]) if budget else 1.0 if structure == "dense" else 0.25
    facts = {
        "structure": structure.split()[0],
        "series": series,
        "options": {"n_blocks": 4},
        "budget": budget.replace(" ", "=") or None,
        "in_features": 1024,
        "out_features": 1024,
        "tokens": 128,
        "dtype": "float32",
        "device": "cpu",
        "mode": "forward",
        "backend": "bmm",
        "threads": 2,
        "params": 262144,
        "params_share": share,
        "flops": 1000.0,
        "flops_share": share,
        "executed_flops": 1000.0,
        "dense_flops": 4000.0,
        "bytes": 1000,
        "parameter_bytes": 1048576,
        "activation_bytes": None,
        "speedup": speedup and spread(*speedup, rounds=rounds),
        "error": 1e-7,
        "roofline": None,
        "flags": [],
        "control": False,
        "clock": "host",
        **info,
    }
    where = "-".join(str(facts[key]) for key in ("in_features", "out_features", "tokens", "dtype", "device", "mode"))
    name = f"test_linear[{series.replace(' ', '_')}-{where}]"
    stats: dict[str, Any] = spread(*time, rounds=rounds) | {
        "min": time[1],
        "max": time[2],
        "mean": time[0],
        "stddev": 0.0,
        "iqr": 0.0,
    }
    stats |= {"iterations": 1, "ops": 1 / time[0], "total": time[0] * rounds, "data": [], "outliers": "0;0"}
    both = {"name": name, "fullname": f"bench/test_linear.py::{name}", "group": None, "params": None, "param": None}
    return both | {"extra_info": facts, "stats": stats, "options": {"disable_gc": True, "timer": "perf_counter"}}


def dense(**info: Any) -> dict[str, Any]:
    """The benchmark of dense itself."""
    return point("dense", **{"speedup": None, "options": {}, "backend": "linear", "params": 1048576} | info)


def refusal(structure: str, reason: str, **changes: Any) -> dict[str, Any]:
    """A refused point at 1024x1024, 128 tokens."""
    facts = {
        "structure": structure,
        "series": f"{structure} @ params 0.25",
        "options": None,
        "budget": "params=0.25",
        "in_features": 1024,
        "out_features": 1024,
        "tokens": 128,
        "dtype": "float32",
        "device": "cpu",
        "mode": "forward",
        "backend": "auto",
        "threads": 2,
        "reason": reason,
    }
    return facts | changes


def spread(median: float, q1: float, q3: float, *, rounds: int) -> dict[str, float]:
    return {"median": median, "q1": q1, "q3": q3, "rounds": rounds}


def saved(folder: Path, **documents: Any) -> list[Path]:
    """The documents under their names, `a` as a.json; bytes and texts as they are."""
    paths = []
    for name, content in documents.items():
        path = folder / f"{name}.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        paths.append(path)
    return paths


BROKEN: dict[str, tuple[Any, str]] = {
    "truncated": (b'{"benchmarks": [{"name": "te', "(cut off?)"),
    "empty": (b"", "is empty"),
    "foreign": ({"a": 1}, "not a results file: it has no 'benchmarks'"),
    "of pytest-benchmark alone": ({"benchmarks": []}, "not by this sweep: it has no section 'structures'"),
    "of another schema": (document(point(), schema=2), "structures.schema 2 is newer than the 1 this version reads"),
    "with NaN": (document(point(time=(float("nan"), 1.0, 1.0))), "stats: total is NaN, must be a finite number"),
    "with a negative time": (document(point(time=(-1.0, -1.0, -1.0))), "stats: median is -1.0, must be a positive"),
    "edited by hand": (document(point(tokens="many")), "tokens is the text 'many', must be a whole number from 1"),
    "with a command that is none": (document(point(), run={"argv": 5}), "argv is 5, must be null or a list of words"),
    "with tf32 that is a list": (document(point(), run={"tf32": []}), "tf32 is a list, must be true or false"),
    "with one point twice": (document(point(), point(rounds=8)), "the same point twice, with different figures"),
    "without points": (document(), "holds no points; the sweep ended before the first one"),
}
