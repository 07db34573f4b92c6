"""The results file: pytest-benchmark's JSON, made small, with the section `structures` beside it.

Fields of a row's `extra_info` beside what names the point (`bench.sweep.points.Point`), its counts and its shares of
dense:

    structure           an entry of the registry; `dense`; or one of `files.vocabulary.RIVALS`, dense layers that are
                        smaller or in fewer bits: controls (`control`: true), timed in pairs with the same dense layer
    error               largest error against the reference in float64, relative to the largest number of a tensor; of
                        a rival in fewer bits against the weights before they were rounded: reported, not gated
    clock               `host` or `device`, never both in one row; see `bench.machine.device`
    speedup             dense's time / this one's, paired: median, q1, q3, rounds, margin (of error of the mean)
    precision           target margin and confidence of the rounds; the margins reached by `time` and `speedup`
    mixing_depth        layers until every output sees every input; 0 never; null where that takes too long to find
    activation_bytes    saved by the forward for the backward; null where nothing is, and for a compiled graph
    parameter_bytes     of all factors and the bias, as they are kept
    checkpoint_bytes    of the file that torch.save makes of the state_dict
    peak_bytes          the most that the device's allocator held during a call beyond what it held before; null on CPUs
    energy_joules       of a call, by the counter that `run.energy` names for the device; null where there is none
    cache, copies       `warm`: the same weights in each call; `cold`: so many copies of them take turns, twice the
                        last cache (L2 on CUDA) where they fit memory, else a flag says so
    captured            on the device's clock: `graph`, or why there is none; null on the host's
    flags               load, noisy, copies fit the cache
    roofline            the limit that binds, and the fraction of it that is reached; null of rivals in fewer bits

`run` holds besides: `request`, the options that say what was measured; `resumed`, when the run was gone on with;
`rerun`, how to repeat the flagged points; `rerun_of`, the file whose flagged points these are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_benchmark.utils import safe_dumps

from bench.files.rounding import rounded
from bench.files.rows import Results, parse
from bench.files.vocabulary import SCHEMA
from bench.sweep.points import rules
from bench.sweep.sweep import Sweep
from structures import atomic


def row_of(measured: Any) -> dict[str, Any]:
    """The row of a benchmark of pytest-benchmark, as it stands in the file."""
    return _trimmed(measured.as_dict(include_data=False))


def extend(document: dict[str, Any], sweep: Sweep) -> None:
    """Put the sweep's rows in place of pytest-benchmark's, and the section `structures` beside them."""
    document["benchmarks"] = [sweep.rows[name] for name in map(str, sweep.points) if name in sweep.rows]
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


def results(sweep: Sweep) -> Results:
    """What was measured, as a reader of the file will read it."""
    made: dict[str, Any] = {}
    extend(made, sweep)
    return parse("this run", made)


def document(config: Any) -> dict[str, Any]:
    """The whole results file, as pytest-benchmark and the plugins that extend it make it."""
    session, hook = config._benchmarksession, config.hook
    made = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=session.benchmarks,
        include_data=False,
        machine_info=session.get_machine_info(),
        commit_info=hook.pytest_benchmark_generate_commit_info(config=config),
    )
    hook.pytest_benchmark_update_json(config=config, benchmarks=session.benchmarks, output_json=made)
    return made  # type: ignore[no-any-return]


def write(config: Any, path: Path) -> None:
    """Write the results file; it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    atomic.write(safe_dumps(document(config), ensure_ascii=True, indent=4) + "\n", path)


def _trimmed(row: dict[str, Any]) -> dict[str, Any]:
    """Without single times, the settings of a calibration that is not used, and what `extra_info` repeats."""
    row["stats"] = rounded(row["stats"] | {"data": []})
    row["extra_info"] = rounded(row["extra_info"])
    row["params"] = row["param"] = None
    row["options"] = {"disable_gc": row["options"].get("disable_gc"), "timer": row["options"].get("timer")}
    return row
