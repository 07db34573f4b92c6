"""What `compare` says: for a terminal, and as JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any

from bench.answers.compare import BY, RATIO, Change, Comparison, spread_of
from bench.files.rows import Row
from bench.files.terminal import COLUMNS, digits, percent, seconds, shortened, table, wrapped
from structures.reading import printable

SHOWN = 40  # changes of a kind that are printed unless all are asked for
_PLACE = ("tokens", "dtype", "device", "mode", "threads")
LOADED = 0.1  # share of the CPU taken by others from which the head says so


def text(
    found: Comparison, *, limit: float | None, times: bool, by: Sequence[str] = (), everything: bool = False
) -> str:
    """The comparison for a terminal of 100 columns.

    Args:
        limit: the share of time above which a slower point fails; None for no limit.
        times: absolute times count for the limit too.
        by: names of BY to sum up by.
        everything: name every point, unchanged ones and those of one file as well.
    """
    lines = _head(found)
    lines += ["", "Time relative to dense's, from the paired speed-ups:"]
    lines += _changes(found.ratios, everything) or ["no point has a paired speed-up in both files"]
    if found.times:
        lines += ["", f"Absolute times ({found.absolute}):", *_changes(found.times, everything)]
    for key in by:
        lines += ["", f"By {key}, geometric mean of the change in time relative to dense's:"]
        lines += _summed(found.ratios, key)
    lines += ["", *_one_sided(found, everything)]
    if limit is not None:
        failed = found.failed(limit, times=times)
        counted = "ratios and absolute times" if times else "ratios to dense"
        lines.append(f"slower by more than {percent(limit)}, beyond noise: {len(failed)} ({counted} are judged)")
    return "\n".join(lines)


def as_json(found: Comparison, *, limit: float | None, times: bool) -> str:
    """The comparison for programs; changes are of time, +0.1 being a tenth more."""
    document = {
        "before": {"file": found.before.file, "datetime": found.before.datetime, "machine": dict(found.before.machine)},
        "after": {"file": found.after.file, "datetime": found.after.datetime, "machine": dict(found.after.machine)},
        "differs": {key: list(both) for key, both in found.differs.items()},
        "absolute_times": found.absolute,
        "points_in_both": found.in_both,
        "ratios": [_record(change) for change in found.ratios],
        "times": [_record(change) for change in found.times],
        "redefined": [[_point(row) | {"layer": _layer(row)} for row in pair] for pair in found.redefined],
        "only_before": [_point(row) for row in found.only_before],
        "only_after": [_point(row) for row in found.only_after],
        "now_refused": [_point(row) | {"reason": refusal.reason} for row, refusal in found.now_refused],
        "fail_above": limit,
        "failed": [_record(change) for change in found.failed(limit, times=times)],
    }
    return json.dumps(document, indent=1)


def _head(found: Comparison) -> list[str]:
    lines = []
    for letter, run in (("a", found.before), ("b", found.after)):
        short = "" if run.complete else "; not complete: points are missing"
        load = run.facts["foreign load"]
        loaded = load.endswith("of the CPU") and float(load.split("%")[0]) > 100 * LOADED
        busy = f"; others took {load}" if loaded else ""
        lines.append(f"{letter}  {run.file}")
        lines.append(wrapped(f"   {run.datetime[:16]}, commit {run.machine['commit']}{busy}{short}"))
    for key, (a, b) in found.differs.items():
        room = (COLUMNS - len(key) - 14) // 2
        lines.append(f"   differs: {key}: {shortened(a, room)} | {shortened(b, room)}")
    lines.append(wrapped(f"   absolute times: {found.absolute}"))
    slower, faster = (sum(c.clear and (c.change > 0) == up for c in found.ratios) for up in (True, False))
    unchanged = len(found.ratios) - slower - faster
    lines.append(
        f"{found.in_both} points in both; against dense {slower} slower and {faster} faster beyond noise, "
        f"{unchanged} unchanged"
    )
    return lines


def _changes(changes: Sequence[Change], everything: bool) -> list[str]:
    """A table of the changes beyond noise, or of all; what all its rows share is said once above it."""
    slower = [change for change in changes if change.clear and change.change > 0]
    faster = [change for change in changes if change.clear and change.change < 0]
    unchanged = [change for change in changes if not change.clear]
    if everything:
        return _table([*slower, *faster, *unchanged])
    shown = [*slower[:SHOWN], *faster[:SHOWN]]
    more = len(slower) + len(faster) - len(shown)
    lines = _table(shown) if shown else []
    lines += [f"and {more} more changes beyond noise; --list names them"] if more else []
    return [*lines, f"{len(unchanged)} unchanged: the quartile ranges meet"] if unchanged else lines


def _table(changes: Sequence[Change]) -> list[str]:
    fixed = [key for key in _PLACE if len({BY[key](change.after) for change in changes}) == 1]
    varying = [key for key in _PLACE if key not in fixed]
    header = ["change", "quartiles", "a", "b", "series", "shape", *varying, "notes"]
    lines = [
        [f"{_plain(c.change)} %", f"{_plain(c.low)} to {_plain(c.high)}", *_medians(c), _series(c.after),
         BY["shape"](c.after), *(BY[key](c.after) for key in varying), _notes(c)]
        for c in changes
    ]  # fmt: skip
    if not any(line[-1] for line in lines):
        header, lines = header[:-1], [line[:-1] for line in lines]
    said = ["+ is slower"]
    if any(_series(change.after) != change.after.series for change in changes):
        said.append("p and f: share of dense's parameters or FLOPs")
    units = {"tokens": " tokens", "threads": " threads"}
    said += [f"{BY[key](changes[0].after)}{units.get(key, '')}" for key in fixed]
    return [
        f"({'; '.join(said[: len(said) - len(fixed)])}; all {', '.join(said[len(said) - len(fixed) :])})",
        *table(header, lines, right=("change", "quartiles", "a", "b"), cut=("series", "notes")),
    ]


def _series(row: Row) -> str:
    """The series, at a budget as `monarch p=0.25`."""
    quantity, _, share = (row.budget or "").partition("=")
    if share and row.series in (f"{row.structure} @ {quantity} {share}", f"{row.structure} @ {row.budget}"):
        return f"{row.structure} {quantity[0]}={share}"
    return row.series


def _plain(value: float) -> str:
    """A change in percent: '+3.2', '-13', '+1.2e+03'."""
    form = "+.1f" if abs(value) < 0.0995 else "+.0f" if abs(value) < 99.5 else "+.2g"
    return f"{value * 100:{form}}"


def _medians(change: Change) -> tuple[str, str]:
    a, b = (spread_of(row, change.measure).median for row in (change.before, change.after))
    return (f"{digits(a)}x", f"{digits(b)}x") if change.measure == RATIO else (seconds(a), seconds(b))


def _notes(change: Change) -> str:
    a, b = change.before, change.after
    notes = [] if change.clear else ["in noise"]
    notes += [f"{a.backend}>{b.backend}"] if a.backend != b.backend else []
    return " ".join([*notes, *dict.fromkeys((*a.flags, *b.flags))])


def _summed(changes: Sequence[Change], key: str) -> list[str]:
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(BY[key](change.after), []).append(change)
    means = {name: math.fsum(math.log1p(c.change) for c in some) / len(some) for name, some in groups.items()}
    lines = [
        [f"{_plain(math.expm1(means[name]))} %", name, str(len(groups[name])),
         str(sum(c.clear and c.change > 0 for c in groups[name])),
         str(sum(c.clear and c.change < 0 for c in groups[name]))]
        for name in sorted(groups, key=lambda name: -means[name])
    ]  # fmt: skip
    header = ["change", key, "points", "slower", "faster"]
    return table(header, lines, right=("change", "points", "slower", "faster"), cut=(key,))


def _one_sided(found: Comparison, everything: bool) -> list[str]:
    most = None if everything else SHOWN
    refused = [f"refused in b, measured in a: {_line(row)}: {refusal.reason}" for row, refusal in found.now_refused]
    other = [f"not the same layer: {_line(a)}: {_layer(a)} | {_layer(b)}" for a, b in found.redefined]
    lines = [*refused[:most], *other[:most]]
    hidden = len(refused) + len(other) - len(lines)
    lines += [f"and {hidden} more that are refused in b or not the same layer"] if hidden else []
    hint = " (--list names them)" if not everything and (found.only_before or found.only_after) else ""
    lines.append(f"only in a: {len(found.only_before)}, only in b: {len(found.only_after)}{hint}")
    if everything:
        lines += [f"only in a: {_line(row)}" for row in found.only_before]
        lines += [f"only in b: {_line(row)}" for row in found.only_after]
    return [wrapped(line) for line in lines]


def _layer(row: Row) -> str:
    options = printable(",".join(f"{key}={value}" for key, value in row.options.items()))
    return f"{options or 'no options'}, {row.params} parameters"


def _line(row: Row) -> str:
    """A point in one line."""
    where = f"{row.tokens} tokens, {row.dtype}, {row.device}, {row.mode}, {row.backend}, {row.threads} threads"
    return f"{row.series} {BY['shape'](row)}, {where}"


def _point(row: Row) -> dict[str, Any]:
    what = ("structure", "series", "budget", "backend", "control")
    where = ("in_features", "out_features", "tokens", "dtype", "device", "mode", "threads", "clock")
    return {key: getattr(row, key) for key in (*what, *where)}


def _record(change: Change) -> dict[str, Any]:
    a, b = (spread_of(row, change.measure) for row in (change.before, change.after))
    spreads = {"before": vars(a), "after": vars(b)}
    found = {"change": change.change, "low": change.low, "high": change.high, "beyond_noise": change.clear}
    flags = sorted({*change.before.flags, *change.after.flags})
    return _point(change.after) | spreads | found | {"measure": change.measure, "flags": flags}
