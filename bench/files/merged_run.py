"""Shards as they are read, and their runs combined: machine, dates, roofline, rules."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files.fields import Fields, load
from bench.files.options import SHARDS
from bench.files.rows import Results, Run, join, parse, parse_run
from structures.reading import BadFile, printable, shown

_SETTLED = ("datetime", "complete", "foreign_load", "argv", "pinned", "merged_from", "resumed", "request")
_OF_ONE_FILE = ("rerun", "rerun_of")  # say nothing of several files
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """One file: as it stands, and as it was read."""

    document: Mapping[str, Any]
    results: Results

    @property
    def run(self) -> Run:
        return self.results.runs[0]

    @property
    def section(self) -> dict[str, Any]:
        section: dict[str, Any] = self.document["structures"]
        return section


def read(path: Path) -> Shard:
    """A results file as a shard."""
    document = load(path)
    results = parse(str(path), document)
    join([results])  # one point with two different figures
    return Shard(document, results)


def check_conditions(runs: Sequence[Run]) -> None:
    """Refuse runs of different machines, versions or settings.

    Raises:
        BadFile: with every field that differs and both its values.
    """
    first = runs[0]
    for run in runs[1:]:
        differ = [
            f"{key} is {shown(value)} and {shown(run.machine[key])}"
            for key, value in first.machine.items()
            if run.machine[key] != value
        ]
        if differ:
            raise BadFile(f"{first.file} and {run.file} must not be mixed: {'; '.join(differ)}")


def merged_run(shards: Sequence[Shard], say: Say) -> dict[str, Any]:
    """One `run` for all: the earliest date, the highest load, complete only if every shard is there and complete."""
    parts = [part for shard in shards for part in _checked_parts(shard)]
    runs: list[dict[str, Any]] = [part["run"] for part in parts]
    run: dict[str, Any] = {key: value for one in reversed(runs) for key, value in one.items()}
    run |= runs[0]
    run = {key: value for key, value in run.items() if key not in _OF_ONE_FILE}
    for key in sorted(set(run) - set(_SETTLED)):
        if any(one.get(key) != run[key] for one in runs):
            say(f"run.{printable(key)} differs between the files; {shards[0].run.file}'s is kept, all in merged_from")
    for shard in shards:
        if not shard.section["run"]["complete"]:
            say(f"{shard.run.file} is not complete: its run ended before all points were measured")
    run |= _settled_requests(runs, say)
    missing = missing_shards(parts)
    for shard in missing:
        say(f"{shard} is not among the files; marked as not complete")
    if run.get("dirty"):
        say("measured with uncommitted changes; whether these are the same in all files is unknown")
    pinned = [one.get("pinned") for one in runs]
    cores = sorted({core for some in pinned if isinstance(some, list) for core in some if type(core) is int})
    loads = [one["foreign_load"] for one in runs if one.get("foreign_load") is not None]
    commands = [one.get("argv") or ["unknown"] for one in runs]
    return run | {
        "datetime": min(str(one["datetime"]) for one in runs),
        "complete": all(one["complete"] for one in runs) and not missing,
        "foreign_load": max(loads, default=None),
        "argv": _and([c for i, c in enumerate(commands) if c not in commands[:i]]),
        "pinned": cores if all(isinstance(some, list) for some in pinned) else None,
        "merged_from": parts,
    }


def _checked_parts(shard: Shard) -> list[dict[str, Any]]:
    parts = runs_of(shard)
    for i, part in enumerate(parts if "merged_from" in shard.section["run"] else ()):
        where = f"{shard.run.file}: structures: run: merged_from[{i}]"
        fields = Fields(where, {"roofline": [], "rules": {}, "run": Fields(where, part).get("run")})
        check_conditions([shard.run, parse_run(where, fields)])
    return parts


def runs_of(shard: Shard) -> list[dict[str, Any]]:
    """The runs that a file was made of: itself, or those it was merged from."""
    run = without_folders(shard.section["run"])
    merged = run.get("merged_from")
    if merged is None:
        info = shard.document.get("machine_info")
        return [{"file": Path(shard.run.file).name, **({"machine_info": info} if info else {}), "run": run}]
    if not isinstance(merged, list) or not merged:
        raise BadFile(f"{shard.run.file}: structures: run: merged_from must be a list of files with their runs")
    for i, part in enumerate(merged):
        Fields(f"{shard.run.file}: structures: run: merged_from[{i}]", part).object("run")
    return merged


def without_folders(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with absolute paths in its commands by their last part: a machine's folders mean nothing to others."""
    again = [entry | without_folders(entry) for entry in run.get("resumed") or [] if isinstance(entry, dict)]
    argv = [_last_part(word) for word in run["argv"]] if isinstance(run.get("argv"), list) else run.get("argv")
    return {**run, **({"argv": argv} if "argv" in run else {}), **({"resumed": again} if again else {})}


def _last_part(word: Any) -> Any:
    """`--resume=/a/b.json` -> `--resume=b.json`."""
    option, equals, path = word.rpartition("=") if isinstance(word, str) else ("", "", word)
    return f"{option}{equals}{Path(path).name}" if isinstance(path, str) and Path(path).is_absolute() else word


def _settled_requests(runs: Sequence[Mapping[str, Any]], say: Say) -> dict[str, Any]:
    """The options and the times of going on, of all runs together; a line for options that differ."""
    found: dict[str, Any] = {}
    requests = [one["request"] for one in runs if isinstance(one.get("request"), dict) and not one.get("rerun_of")]
    if requests:
        found["request"] = requests[0] | {"shard": None}
        names = dict.fromkeys(name for request in requests for name in request)
        differ = [n for n in names if n != "shard" and any(r.get(n) != requests[0].get(n) for r in requests)]
        if differ:
            named = ", ".join(printable(name) for name in differ)
            say(f"the files are no shards of one sweep: these options differ: {named}; all of them in merged_from")
    resumed = [entry for one in runs for entry in one.get("resumed") or []]
    if resumed:
        found["resumed"] = [entry for i, entry in enumerate(resumed) if entry not in resumed[:i]]
    return found


def missing_shards(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The shards that none of the runs is, of each sweep that one of them is a shard of: a sweep is all its options."""
    found: dict[str, tuple[str, int, set[int]]] = {}
    for part in parts:
        run = part["run"]
        words = run.get("argv") if isinstance(run.get("argv"), list) else []
        shard = re.search(r"--shard[ =](\d{1,5})/(\d{1,5})(?!\S)", " ".join(map(str, words)))
        if shard:
            asked = dict(run["request"], shard=None) if isinstance(run.get("request"), dict) else {}
            if isinstance(asked.get("registry"), dict):  # files by their contents: they may stand in other folders
                asked["registry"] = sorted(map(str, asked["registry"].values()))
            sweep = json.dumps([asked, shard[2]], sort_keys=True)
            found.setdefault(sweep, (str(part.get("file")), int(shard[2]), set()))[2].add(int(shard[1]))
    several = len(found) > 1
    return [
        f"shard {k}/{n}" + f" of the sweep of {printable(file)}" * several
        for file, n, ran in found.values()
        for k in range(1, min(n, SHARDS) + 1)
        if k not in ran
    ]


def _and(commands: Sequence[list[Any]]) -> list[Any]:
    return [word for i, command in enumerate(commands) for word in (["&&"] if i else []) + list(command)]


def merged_roofline(shards: Sequence[Shard], say: Say) -> list[Any]:
    """One limit for each device, dtype and threads: the highest seen, as a roof is."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for shard in shards:
        for limit in shard.section["roofline"]:
            key = (limit["device"], limit["dtype"], limit["threads"])
            other = kept.setdefault(key, limit)
            if limit == other:
                continue
            rates = sorted([other["gemm_flops_per_s"], limit["gemm_flops_per_s"]])
            say(
                f"the roofline of {key[0]}, {key[1]}, {key[2]} threads was measured more than once: "
                f"{rates[1]:.3g} FLOP/s kept, {rates[0]:.3g} left out; each row keeps the fraction of its own file's"
            )
            if limit["gemm_flops_per_s"] > other["gemm_flops_per_s"]:
                kept[key] = limit
    return list(kept.values())


def merged_rules(shards: Sequence[Shard]) -> dict[str, str]:
    """How the options of each series scale; where shards describe it differently, all their descriptions."""
    found: dict[str, list[str]] = {}
    for shard in shards:
        for series, rule in shard.section["rules"].items():
            named = found.setdefault(series, [])
            named += [part for part in str(rule).split(" | ") if part not in named]
    return {series: " | ".join(named) for series, named in found.items()}
