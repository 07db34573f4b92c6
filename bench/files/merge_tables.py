"""Shards of a run of whole modules or models, joined into one file by the rules of the sweep's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.files.fields import BadResults, Fields, load, shown
from bench.files.kinds import kind_of, parse
from bench.files.merge import write
from bench.files.merged_run import Shard, check_conditions, merged_run
from bench.files.rows import Results

KINDS = ("ff", "decoder")


def is_whole(paths: Sequence[Path]) -> bool:
    """Whether the first file is of whole modules or models; the others must be, then."""
    return bool(paths) and kind_of(load(paths[0])) in KINDS


def merge(paths: Sequence[Path], output: Path) -> list[str]:
    """Join files into `output`, which appears whole or not at all; a line for all that was settled on the way.

    A point of several files is kept once: the one with fewer flags, then the one given first.
    Raises:
        BadResults: a file is bad, two of them must not be mixed, or the output cannot be written.
    """
    documents = [load(path) for path in paths]
    files = [parse(str(path), document, KINDS) for path, document in zip(paths, documents, strict=True)]
    first, said = files[0], list[str]()
    for file in files[1:]:
        for name, here, there in (("kind", file.kind, first.kind), ("setup", file.setup.values, first.setup.values)):
            if here != there:
                raise BadResults(f"{first.run.file} and {file.run.file} must not be mixed: another {name}")
    check_conditions([file.run for file in files])
    shards = [Shard(doc, Results((file.run,), (), ())) for doc, file in zip(documents, files, strict=True)]
    kept: dict[str, tuple[str, Mapping[str, Any], Any]] = {}
    for shard in shards:
        for name, row, benchmark in _points(shard):
            here = shard.run.file, row, benchmark
            there = kept.setdefault(name, here)
            if there is not here:
                kept[name] = min(there, here, key=lambda one: len(one[1]["flags"]))
                said.append(f"{shown(name)}: in {there[0]} and {here[0]}; kept {kept[name][0]}'s")
    run = merged_run(shards, said.append)
    section = {**shards[0].section, "run": run, "rows": [row for _, row, _ in kept.values()]}
    write({**documents[0], "benchmarks": [benchmark for *_, benchmark in kept.values()], "structures": section}, output)
    state = "complete" if run["complete"] else "not complete: points are missing"
    return [*said, f"{output}: {len(kept)} points, of {len(paths)} file{'s' if len(paths) > 1 else ''}; {state}"]


def _points(shard: Shard) -> list[tuple[str, Mapping[str, Any], Any]]:
    """Names of points with their rows, and with pytest-benchmark's rows, which stand in the same order."""
    top = Fields(shard.run.file, shard.document)
    benchmarks, rows = top.each("benchmarks"), top.inside("structures").each("rows")
    if len(benchmarks) != len(rows):
        raise BadResults(f"{shard.run.file}: {len(benchmarks)} benchmarks beside {len(rows)} rows")
    for row in rows:
        row.names("flags")
    return [(b.words("name"), row.values, b.values) for b, row in zip(benchmarks, rows, strict=True)]
