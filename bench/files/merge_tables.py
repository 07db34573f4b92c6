"""Shards of a run whose file is a table of rows, joined into one file: whole modules and models, and training runs.

A kind of file says what tells its rows apart, what its files must have in common, and which of two rows is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files import training_rows, wholes
from bench.files.fields import Fields, load
from bench.files.kinds import DECODER, FEED_FORWARD, TRAINING, File, kind_of, parse
from bench.files.merge import write
from bench.files.merged_run import Shard, check_conditions, merged_run, missing_shards, runs_of
from bench.files.rows import Results
from bench.files.terminal import many
from bench.files.vocabulary import DECIDE
from structures.reading import BadFile, shown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TableFile:
    """One file: as it stands, and as far as all kinds of tables share it."""

    document: Mapping[str, Any]
    file: File

    @property
    def name(self) -> str:
        return self.file.run.file

    @property
    def shard(self) -> Shard:
        return Shard(self.document, Results((self.file.run,), (), ()))


@dataclass(frozen=True)
class TableRules:
    """How files of a kind are joined."""

    points: Callable[[TableFile], list[tuple[str, Row, Any]]]  # key, row, and pytest-benchmark's row or None
    check: Callable[[Sequence[TableFile]], None]  # raises BadFile where files must not be mixed
    agree: Callable[[tuple[TableFile, Row], tuple[TableFile, Row]], None]  # the same, of two rows of one key
    called: Callable[[str, Row], str]  # a row, in messages
    joined: Callable[[Sequence[TableFile], Callable[[str], None]], dict[str, Any]]  # the section, without its rows
    read: Callable[[File], object]  # as all others do; raises BadFile where a row cannot be read
    text: Callable[[Any], str] | None  # makes the JSON


def merge(paths: Sequence[Path], output: Path) -> list[str]:
    """Join files into `output`, which appears whole or not at all; a line for all that was settled on the way.

    A row of several files is kept once: the one with fewer flags, then the one given first.

    Raises:
        BadFile: a file is bad or of a kind that has no shards, two of them must not be mixed, or the output cannot
            be written.
    """
    documents = [load(path) for path in paths]
    kind = str(kind_of(documents[0]))
    if kind not in RULES:
        raise BadFile(f"{paths[0]}: a file of kind {shown(kind)} is made by one run, so there is nothing to merge")
    rules = RULES[kind]
    parts = [
        TableFile(document, parse(str(path), document, RULES)) for path, document in zip(paths, documents, strict=True)
    ]
    for part in parts[1:]:
        if part.file.kind != kind:
            raise BadFile(f"{parts[0].name} and {part.name} must not be mixed: another kind")
    rules.check(parts)
    said: list[str] = []
    kept: dict[str, tuple[TableFile, Row, Any]] = {}
    for part in parts:
        for key, row, benchmark in rules.points(part):
            here = part, row, benchmark
            there = kept.setdefault(key, here)
            if there is not here:
                rules.agree(there[:2], here[:2])
                kept[key] = min(there, here, key=lambda one: len(one[1].get("flags", ())))
                where = f"{there[0].name} and {part.name}; kept {kept[key][0].name}'s"
                said.append(f"{rules.called(key, row)}: in {where}")
    section = rules.joined(parts, said.append)
    order = {name: i for i, name in enumerate(section["setup"].get("settings", {}))}
    rows = sorted(kept.values(), key=lambda one: order.get(one[1].get("setting", ""), len(order)))
    refused = [r.values for part in parts for r in part.file.refused]
    section["rows"] = [row for _, row, _ in rows]
    section["refused"] = [one for i, one in enumerate(refused) if one not in refused[:i]]
    benchmarks = {"benchmarks": [own for *_, own in rows]} if any(own for *_, own in rows) else {}
    made = {**documents[0], **benchmarks, "structures": section}
    write(made, output, lambda written: rules.read(parse(str(output), written, RULES)), rules.text)
    state = "complete" if section["run"]["complete"] else "not complete: rows are missing"
    return [*said, f"{output}: {many(len(rows), 'row')}, of {many(len(paths), 'file')}; {state}"]


# -- whole modules and models


def _benchmarked(part: TableFile) -> list[tuple[str, Row, Any]]:
    """Rows by the names of pytest-benchmark's rows, which stand in the same order."""
    benchmarks = Fields(part.name, part.document).each("benchmarks")
    if len(benchmarks) != len(part.file.rows):
        raise BadFile(f"{part.name}: {len(benchmarks)} benchmarks beside {len(part.file.rows)} rows")
    for row in part.file.rows:
        row.names("flags")
    return [(b.words("name"), row.values, b.values) for b, row in zip(benchmarks, part.file.rows, strict=True)]


def _same_setup(parts: Sequence[TableFile]) -> None:
    for part in parts[1:]:
        if part.file.setup.values != parts[0].file.setup.values:
            raise BadFile(f"{parts[0].name} and {part.name} must not be mixed: another setup")
    check_conditions([part.file.run for part in parts])


def _joined_shards(parts: Sequence[TableFile], say: Callable[[str], None]) -> dict[str, Any]:
    shards = [part.shard for part in parts]
    return {**shards[0].section, "run": merged_run(shards, say)}


# -- training


def _keyed(part: TableFile) -> list[tuple[str, Row, Any]]:
    return [(row.name("key"), row.values, None) for row in part.file.rows]


def _same_versions(parts: Sequence[TableFile]) -> None:
    """Losses depend on versions alone, so that files of several machines can be joined."""
    rows = [(part, row.inside("versions").values) for part in parts for row in part.file.rows]
    for part, found in rows:
        for name in DECIDE:
            if found.get(name) != rows[0][1].get(name):
                raise BadFile(
                    f"{part.name}: was made with {name} {found.get(name)}, the files before with "
                    f"{rows[0][1].get(name)}; their losses cannot be mixed"
                )


def _same_loss(one: tuple[TableFile, Row], other: tuple[TableFile, Row]) -> None:
    (part, row), (second, again) = one, other
    if row.get("loss") != again.get("loss"):
        series, loss = shown(str(row.get("series"))), again.get("loss")
        raise BadFile(f"{second.name}: {series} has the loss {loss}, in {part.name} {row.get('loss')}")


def _joined_runs(parts: Sequence[TableFile], say: Callable[[str], None]) -> dict[str, Any]:
    """The first file's section, with the settings and data of all of them."""
    first = parts[0].shard.section
    setup = dict(first["setup"])
    for part in parts:
        for name in ("settings", "data"):
            own = part.file.setup.values.get(name, {})
            setup[name] = {**own, **setup.get(name, {})} if own else setup.get(name, {})
    merged = [one for part in parts for one in runs_of(part.shard)]
    missing = missing_shards(merged)
    for shard in missing:
        say(f"{shard} is not among the files; marked as not complete")
    complete = all(part.file.run.complete for part in parts) and not missing
    own = {"complete": complete, "argv": merged[0]["run"].get("argv"), "merged_from": merged}
    return {**first, "setup": setup, "run": {**first["run"], **own}}


def _row_by_row(document: dict[str, Any]) -> str:
    """JSON with a line for each row: two thirds of the size, and a row that changed is one line of a difference."""
    section = dict(document["structures"])
    rows, refused = section.pop("rows"), section.pop("refused")
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    empty = "[]\n }\n}"
    ordered = {**section, "refused": refused, "rows": []}
    head = json.dumps({"structures": ordered}, indent=1).removesuffix(empty)
    return f"{head}[\n{lines}\n  ]\n }}\n}}"


_MODULES = TableRules(
    points=_benchmarked,
    check=_same_setup,
    agree=lambda *_: None,
    called=lambda key, _: shown(key),
    joined=_joined_shards,
    read=wholes.check,
    text=None,
)
_TRAINING = TableRules(
    points=_keyed,
    check=_same_versions,
    agree=_same_loss,
    called=lambda _, row: f"{row.get('series')} ({row.get('phase')})",
    joined=_joined_runs,
    read=lambda file: training_rows.read(file.rows),
    text=_row_by_row,
)
RULES = {FEED_FORWARD: _MODULES, DECODER: _MODULES, TRAINING: _TRAINING}
