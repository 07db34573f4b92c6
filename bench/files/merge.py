"""Shards of one sweep, joined into one results file: nothing mixed that must not be, nothing dropped without a line."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.files.merged_run import Say, Shard, check_conditions, merged_roofline, merged_rules, merged_run, read
from bench.files.rows import Refusal, Row, Spread, join, parse
from bench.files.terminal import many
from structures import atomic
from structures.reading import BadFile, json_text, printable, shown

T = TypeVar("T")
ASKED = (None, "auto", "best")  # backends of a refusal that stand for whichever would have run
_SAME = ("series", "in_features", "out_features", "tokens", "dtype", "device", "mode", "threads", "clock")
_SECTION = ("schema", "run", "roofline", "rules", "refused")


def merge(paths: Sequence[Path], output: Path) -> list[str]:
    """Join files into `output`, which appears whole or not at all; a line for all that was settled on the way.

    Raises:
        BadFile: a file is bad, two of them must not be mixed, or the output cannot be written.
    """
    for i, path in enumerate(paths):
        if os.path.realpath(path) in map(os.path.realpath, paths[:i]):
            raise BadFile(f"{path}: is given twice")
    shards = [read(path) for path in paths]
    said: list[str] = []
    document = joined(shards, said.append)
    merged = write(document, output, lambda made: join([parse(str(output), made)]))
    state = "complete" if merged.runs[0].complete else "not complete: points are missing"
    points = f"{many(len(merged.rows), 'point')}, {len(merged.refusals)} refused"
    return [*said, f"{output}: {points}, of {many(len(paths), 'file')}; {state}"]


def joined(shards: Sequence[Shard], say: Say) -> dict[str, Any]:
    """The document of all shards together.

    A point of several files is kept once. Of a run and a rerun of its flagged points: the one with fewer flags, then
    the rerun. Else the one with more rounds, then with the smaller spread (both of the paired speed-up, or of the time
    where there is none), then the one given first. A point that one file refuses and another measured is kept measured.
    Raises:
        BadFile: two shards were measured under different conditions.
    """
    check_conditions([shard.run for shard in shards])
    first = shards[0]
    for key in sorted({key for shard in shards for key in shard.document} - {"benchmarks", "datetime", "structures"}):
        if any(shard.document.get(key) != first.document.get(key) for shard in shards):
            say(f"{shown(key)} differs between the files; {first.run.file}'s is kept, all of them in merged_from")
    section: dict[str, Any] = {}
    for key in dict.fromkeys(key for shard in shards for key in shard.section if key not in _SECTION):
        section[key] = next(shard.section[key] for shard in shards if key in shard.section)
        if any(shard.section.get(key) != section[key] for shard in shards):
            say(f"structures.{printable(key)} differs between the files; the first one's is kept")
    section |= {
        "schema": first.section["schema"],
        "run": merged_run(shards, say),
        "roofline": merged_roofline(shards, say),
        "rules": merged_rules(shards),
        "refused": _refused(shards, say),
    }
    benchmarks = _benchmarks(shards, say)
    top = {**first.document, "benchmarks": benchmarks, "structures": section}
    if "datetime" in top:
        top["datetime"] = min(str(shard.document.get("datetime")) for shard in shards if "datetime" in shard.document)
    return top


def write(document: Any, output: Path, read: Callable[[Any], T], text_of: Callable[[Any], str] | None = None) -> T:
    """Write JSON beside `output` and rename it, once `read` has read it; returns what that found.

    Args:
        text_of: makes the JSON; where none is given, everything is on a line of its own.
    Raises:
        BadFile: it cannot be read, or not be written; `output` is then what it was before.
    """
    text = text_of(document) if text_of else json.dumps(document, indent=1)
    found = read(json_text(text, str(output)))
    if output.exists() and not output.is_file():
        raise BadFile(f"{output}: cannot be written: it is there and is not a plain file")
    try:
        atomic.write(text + "\n", output)
    except OSError as error:
        raise BadFile(f"{output}: cannot be written: {error.strerror}; nothing was changed") from None
    return found


# -- points


def _benchmarks(shards: Sequence[Shard], say: Say) -> list[Any]:
    kept: list[tuple[Row, Any]] = []
    places: dict[tuple[Any, ...], int] = {}
    again = frozenset(shard.run.file for shard in shards if shard.section["run"].get("rerun_of") is not None)
    for shard in shards:
        for row, raw in zip(shard.results.rows, shard.document["benchmarks"], strict=True):
            of_point = ("point", *row.point)
            # The same test of two files is one point even where another backend was fastest in each.
            of_test = ("test", row.name, *replace(row, backend="").point)
            at = places.get(of_point, places.get(of_test))
            if at is not None and of_point not in places and kept[at][0].run.file == row.run.file:
                at = None
            if at is None:
                at = len(kept)
                kept.append((row, raw))
            elif kept[at][0].run.file == row.run.file:
                say(f"{row.name}: stands twice in {row.run.file} with the same figures; kept once")
            else:
                say(_settled(kept[at][0], row, again))
                if _better(row, kept[at][0], again):
                    kept[at] = (row, raw)
            places.setdefault(of_point, at)
            places.setdefault(of_test, at)
    return [raw for _, raw in kept]


def _better(row: Row, other: Row, again: frozenset[str]) -> bool:
    if _one_repeats(row, other, again):
        return (-len(row.flags), row.run.file in again) > (-len(other.flags), other.run.file in again)
    a, b = _spread(row), _spread(other)
    return (a.rounds, -a.width) > (b.rounds, -b.width)


def _one_repeats(row: Row, other: Row, again: frozenset[str]) -> bool:
    """One of them is of a rerun of flagged points, and the other is not."""
    return (row.run.file in again) != (other.run.file in again)


def _spread(row: Row) -> Spread:
    return row.speedup or row.time


def _settled(first: Row, second: Row, again: frozenset[str]) -> str:
    kept, other = (second, first) if _better(second, first, again) else (first, second)
    a, b = _spread(kept), _spread(other)
    if replace(second, run=first.run) == first:
        why = "same figures"
    elif _one_repeats(kept, other, again) and len(kept.flags) != len(other.flags):
        why = f"flagged {_flags(kept)}, the other {_flags(other)}"
    elif _one_repeats(kept, other, again):
        why = f"the rerun's, flagged {_flags(kept)} as the other"
    elif a.rounds != b.rounds:
        why = f"{a.rounds} rounds, the other {b.rounds}"
    elif a.width != b.width:
        why = f"quartiles {a.width:.1%} apart, the other's {b.width:.1%}"
    else:
        why = "as many rounds and as wide, so the first given"
    backends = "" if kept.backend == other.backend else f"; ran by {kept.backend}, the other by {other.backend}"
    return f"{kept.name}: in {first.run.file} and {second.run.file}; kept {kept.run.file}'s: {why}{backends}"


def _flags(row: Row) -> str:
    return "not at all" if not row.flags else " and ".join(row.flags)


# -- refusals


def _refused(shards: Sequence[Shard], say: Say) -> list[Any]:
    rows: dict[str, list[Row]] = {}
    for row in (row for shard in shards for row in shard.results.rows):
        rows.setdefault(row.structure, []).append(row)
    kept: dict[str, tuple[Refusal, Any]] = {}
    repeated = 0
    for shard in shards:
        for refusal, raw in zip(shard.results.refusals, shard.section["refused"], strict=True):
            measured = next((row for row in rows.get(refusal.structure, []) if _measures(row, refusal)), None)
            if measured:
                where = f"refused in {refusal.run.file} ({refusal.reason}), measured in {measured.run.file}"
                say(f"{_named(refusal)}: {where}; kept measured")
                continue
            key = json.dumps({**asdict(replace(refusal, run=None)), "reason": None}, sort_keys=True)  # type: ignore[arg-type]
            other, _ = kept.setdefault(key, (refusal, raw))
            if other is refusal:
                continue
            if other.reason == refusal.reason:
                repeated += 1
            else:
                others = f"refused in {other.run.file} ({other.reason}) and in {refusal.run.file} ({refusal.reason})"
                say(f"{_named(refusal)}: {others}; kept {other.run.file}'s")
    if repeated:
        say(f"refusals that stand in several files, with the same reason: {repeated} left out, each kept once")
    return [raw for _, raw in kept.values()]


def _measures(row: Row, refusal: Refusal) -> bool:
    """Whether a row of another file is the point of a refusal."""
    if row.run.file == refusal.run.file or row.budget != refusal.budget or refusal.in_features is None:
        return False
    if not refusal.covers(row, _SAME):
        return False
    options = (refusal.options or {}).items()
    return refusal.backend in (*ASKED, row.backend) and all(row.options.get(key) == value for key, value in options)


def _named(refusal: Refusal) -> str:
    """The series, or where there is none the structure with its budget, and the shape."""
    what = refusal.series or " @ ".join(filter(None, (refusal.structure, refusal.budget)))
    tokens = f", {refusal.tokens} tokens" if refusal.tokens else ""
    where = [str(part) for part in (refusal.dtype, refusal.device, refusal.mode) if part]
    return f"{what} {refusal.in_features}x{refusal.out_features}{tokens}{''.join(f', {w}' for w in where)}"
