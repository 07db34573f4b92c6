"""What `recommend` says, for a terminal or as JSON."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from bench.answers.recommend import BETWEEN, Answer, Estimate, Place, Query, Ranking, at, place_of, steps
from bench.files.fields import printable
from bench.files.rows import Results, Spread
from bench.files.terminal import digits, percent, table, wrapped


def text(results: Results, answer: Answer, top: int) -> str:
    """The answer for a terminal of 100 columns."""
    query, run = answer.query, results.runs[0]
    lines = [wrapped(f"{run.machine['cpu']}, torch {run.machine['torch']}, commit {run.machine['commit']}")]
    lines += [wrapped(f"{one.file} is not complete: points are missing") for one in results.runs if not one.complete]
    if not answer.groups:
        missing = wrapped(f"no data near {_asked(query)}: {answer.missing}.")
        return "\n".join([*lines, missing, "to measure it:", f"  {_command(query)}"])
    lines.append(_asked(query))
    for group in answer.groups:
        lines += ["", *_table(group, query, top)]
    lines.append("")
    if answer.groups[0].place is not None:
        lines += [f"nothing was measured at {at(query.place)}, or on both sides of it:", f"  {_command(query)}"]
    prose = [f"for comparison, {e.series}: {_speed(e.speedup)}, {e.kind}" for e in answer.narrow]
    prose += [f"refused at this layer: {name}: {reason}" for name, reason in answer.refused.items()]
    if not answer.dense:
        prose.append("dense itself has no row here; speed-ups are against whatever the sweep paired them with")
    prose.append("speed only: what each structure does to the quality of a model is not in these figures")
    return "\n".join([*lines, *map(wrapped, prose)])


def _asked(query: Query) -> str:
    conditions = [query.dtype, query.device, query.mode, f"{query.threads} threads" if query.threads else None]
    conditions += ["device clock"] if query.clock == "device" else []
    return f"{at(query.place)}, {', '.join(filter(None, conditions))}, at {query.cost}"


def _table(group: Ranking, query: Query, top: int) -> list[str]:
    shown = group.ranked[:top]
    ranks = [rank for rank, _ in group.ranked]
    kinds = {e.kind for _, e in shown}
    header = ["rank", "structure", "speed-up", "params", "FLOPs", "backend", "rests on", "flags"]
    lines = [
        [f"{rank}{'=' if ranks.count(rank) > 1 else ''}", _named(e), _speed(e.speedup),
         _span([row.params_share for row in e.rows]), _span([row.flops_share for row in e.rows]),
         ">".join(dict.fromkeys(row.backend for row in e.rows)), e.kind if len(kinds) > 1 else "",
         " ".join(dict.fromkeys(flag for row in e.rows for flag in row.flags))]
        for rank, e in shown
    ]  # fmt: skip
    keep = [i for i in range(len(header)) if any(line[i] for line in lines)]
    found = [_title(group, query, kinds)]
    found += table([header[i] for i in keep], [[line[i] for i in keep] for line in lines], cut=("structure", "flags"))
    if len(group.ranked) > len(shown):
        found.append(f"and {len(group.ranked) - len(shown)} more; --top {len(group.ranked)} shows them")
    if any(ranks.count(rank) > 1 for rank, _ in shown):
        found.append("= cannot be told apart: the quartiles reach those of the first of the rank")
    estimates = [e for _, e in shown]
    slower = [e.series for e in estimates if e.speedup.q3 < 1]
    found += [f"slower than dense: {', '.join(slower)}"] if slower else []
    unclear = [e.series for e in estimates if e.speedup.q1 <= 1 <= e.speedup.q3]
    found += [f"cannot be told from dense: {', '.join(unclear)}"] if unclear else []
    return [*map(wrapped, found[:1]), *found[1 : len(lines) + 2], *map(wrapped, found[len(lines) + 2 :]),
            *_basis(estimates, query)]  # fmt: skip


def _title(group: Ranking, query: Query, kinds: Collection[str]) -> str:
    if group.place is not None:
        return f"from {at(group.place)} ({steps(group.place, query.place)}), a neighbour on one side only:"
    if len(kinds) > 1:
        return "measured here, or between two near points of the series:"
    return "between two near points of each series:" if BETWEEN in kinds else "measured here:"


def _basis(estimates: Sequence[Estimate], query: Query) -> list[str]:
    """What was measured at the places that estimates lie between."""
    figures: dict[Place, list[str]] = {}
    for estimate in estimates:
        for row in estimate.rows if estimate.kind == BETWEEN else ():
            figures.setdefault(place_of(row), []).append(f"{row.structure} {_speed(row.speedup)}")
    return [
        wrapped(f"measured at {at(place)} ({steps(place, query.place)}): {', '.join(some)}")
        for place, some in figures.items()
    ]


def _named(estimate: Estimate) -> str:
    """The structure with its options; where they differ between two rows, those of both."""
    options = [printable(",".join(f"{key}={value}" for key, value in row.options.items())) for row in estimate.rows]
    return f"{estimate.rows[0].structure} {' -> '.join(dict.fromkeys(options))}".rstrip()


def _speed(speedup: Spread | None) -> str:
    if speedup is None:
        return "not measured"
    return f"{digits(speedup.median)}x ({digits(speedup.q1)} to {digits(speedup.q3)})"


def _span(values: Sequence[float]) -> str:
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low[:-2]} to {high}"


def _command(query: Query) -> str:
    """The sweep that measures the point asked for."""
    budget = " ".join(f"{key}={share:g}" for key, share in (("params", query.params), ("flops", query.flops)) if share)
    options = {
        "--shapes": f"{query.in_features}x{query.out_features}",
        "--tokens": query.tokens,
        "--dtypes": query.dtype,
        "--mode": query.mode,
        "--device": query.device,
        "--threads": query.threads,
        "--budget": f'"{budget}"' if " " in budget else budget,
    }
    return f"pytest bench {' '.join(f'{k} {v}' for k, v in options.items() if v)} --benchmark-json=more.json"


def as_json(results: Results, answer: Answer) -> str:
    """The answer for programs: every rank of every group, with the measured points it rests on."""
    query = answer.query
    document = {
        "query": asdict(query) | {"place": at(query.place)},
        "files": [run.file for run in results.runs],
        "complete": all(run.complete for run in results.runs),
        "machine": dict(results.runs[0].machine),
        "groups": [
            {
                "place": None if group.place is None else at(group.place),
                "ranked": [{"rank": rank} | _estimate(estimate) for rank, estimate in group.ranked],
            }
            for group in answer.groups
        ],
        "narrow": [_estimate(estimate) for estimate in answer.narrow],
        "refused": dict(answer.refused),
        "dense_measured": answer.dense,
        "missing": answer.missing or None,
        "measure": None if answer.groups and answer.groups[0].place is None else _command(query),
    }
    return json.dumps(document, indent=1)


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "structure": estimate.rows[0].structure,
        "series": estimate.series,
        "kind": estimate.kind,
        "speedup": asdict(estimate.speedup),
        "rests_on": [
            {
                "in_features": row.in_features,
                "out_features": row.out_features,
                "tokens": row.tokens,
                "options": dict(row.options),
                "backend": row.backend,
                "params_share": row.params_share,
                "flops_share": row.flops_share,
                "speedup": asdict(row.speedup) if row.speedup else None,
                "flags": list(row.flags),
            }
            for row in estimate.rows
        ],
    }
