"""What the page's script shows of a sweep: every row once, and for every question the verdict on it.

Who is fastest, what ties and what is not believed is decided in `bench.answers.verdict` alone; the script chooses among
what stands here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.answers.qualities import Qualities
from bench.answers.question import Question, machine_names, rival
from bench.answers.sentence import sentence
from bench.answers.verdict import Contender, Verdict, verdicts
from bench.files.rows import Refusal, Results, Row
from bench.files.terminal import digits
from bench.files.vocabulary import DENSE
from bench.report.drawing import style, words


def data(results: Results, qualities: Qualities) -> dict[str, Any]:
    """Rows, verdicts and looks, as JSON."""
    place = {id(row): i for i, row in enumerate(results.rows)}
    machines = machine_names(results.runs)
    rows = [_row(row, machines[id(row.run)]) for row in results.rows]
    named = {shown["look"]: row for shown, row in zip(rows, results.rows, strict=True)}
    roofs = [
        {**asdict(limit), "machine": where(machines[id(run)], limit)} for run in results.runs for limit in run.roofline
    ]
    return {
        "rows": rows,
        "questions": [_question(one, place) for one in verdicts(results.rows, qualities, results.refusals)],
        "looks": {name: asdict(style.look(_looks_like(row), row.control)) for name, row in named.items()},
        "roofs": roofs,
        "missing": list(qualities.missing().values()),
        "refused": [_refusal(one) for one in results.refusals],
    }


def picked(question: Question) -> dict[str, str]:
    """The answers of the page's picker for a question."""
    return {
        "layer": layer(question),
        "tokens": str(question.tokens),
        "mode": question.mode,
        "dtype": question.dtype,
        "held": words.budget(f"{question.equal}={question.share:g}"),
        "machine": where(question.machine, question),
    }


def layer(of: words.Shaped) -> str:
    """A layer as the address has it."""
    return f"{of.in_features}x{of.out_features}"


def where(machine: str, one: Any) -> str:
    """A machine with the device and the threads that a row, a question or a limit is of."""
    clock = ", device clock" if getattr(one, "clock", "host") == "device" else ""
    return f"{machine}, {one.device}, {words.threads(one.threads)}{clock}"


def _question(found: Verdict, place: dict[int, int]) -> dict[str, Any]:
    return {
        "pick": picked(found.question),
        "sentence": sentence(found),
        "ranking": [_contender(one, place) for one in found.ranking],
        "below": [_contender(one, place) for one in found.below],
        "winner": found.winner and place[id(found.winner.row)],
        "best": found.best and place[id(found.best.row)],
        "refused": dict(found.refused),
    }


def _contender(one: Contender, place: dict[int, int]) -> dict[str, Any]:
    loss, agreement = one.quality.loss, one.quality.agreement
    found = {
        "i": place[id(one.row)],
        "label": one.label,
        "kind": one.kind,
        "rank": one.rank,
        "tied": one.tied,
        "speed": digits(one.speedup.median),
        "linear": one.over_linear and digits(one.over_linear.median),
        "memory": one.memory_share,
        "loss": loss and asdict(loss),
        "agrees": agreement and asdict(agreement),
        "doubts": one.doubts,
        "notes": one.notes,
    }
    return _known(found)


def _row(row: Row, machine: str) -> dict[str, Any]:
    found = {
        "name": row.structure,
        "look": f"{_looks_like(row)} (control)" if row.control else row.structure,
        "series": row.series,
        "budget": row.budget and words.budget(row.budget),
        "control": row.control,
        "rival": rival(row),
        "own": row.extra.get("own"),
        "in": row.in_features,
        "out": row.out_features,
        "layer": layer(row),
        "tokens": str(row.tokens),
        "mode": row.mode,
        "dtype": row.dtype,
        "machine": where(machine, row),
        "backend": row.backend,
        "speedup": row.speedup and [row.speedup.median, row.speedup.q1, row.speedup.q3],
        "time": [row.time.median, row.time.q1, row.time.q3],
        "params": row.params,
        "flops": row.flops,
        "executed": row.executed_flops,
        "bytes": row.bytes,
        "shares": [row.params_share, row.flops_share, row.executed_share],
        "saved": row.activation_bytes,
        "held": row.parameter_bytes,
        "checkpoint": row.checkpoint_bytes,
        "peak": row.peak_bytes,
        "energy": row.energy_joules,
        "bound": row.bound,
        "near": row.bound_fraction,
        "mixes": row.mixing_depth,
        "error": words.error(row.error),
        "options": ", ".join(f"{key}={value}" for key, value in row.options.items()),
        "flags": " ".join(row.flags),
    }
    return _known(found)


def _known(found: dict[str, Any]) -> dict[str, Any]:
    """Without what there is nothing to say of; 0 is something."""
    return {key: value for key, value in found.items() if not (value is None or value is False or value in ((), ""))}


def _looks_like(row: Row) -> str:
    """What a row's look goes by: its structure, but dense's rivals and ways each have their own."""
    return row.series if row.control and row.structure == DENSE else row.structure


def _refusal(one: Refusal) -> list[str]:
    shape = words.shape(one) if one.in_features and one.out_features else ""
    at = words.budget(one.budget) if one.budget else ""
    known = (one.series or one.structure, shape, one.reason, one.tokens, one.mode, one.dtype, one.backend, at)
    return ["" if value is None else str(value) for value in known]
