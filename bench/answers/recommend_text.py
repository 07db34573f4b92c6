"""What `recommend` says, for a terminal or as JSON."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from bench.answers.inputs import Inputs
from bench.answers.question import PARAMS
from bench.answers.recommend import DEFAULTS, Answer, Query, at, sizes
from bench.answers.sentence import rank, sentence, times
from bench.answers.verdict import DENSE, Contender, Verdict
from bench.files.rows import Run
from bench.files.terminal import COLUMNS, digits, percent, table, wrapped

HEADER = ["rank", "structure", "speed-up", "nn.Linear", "params", "FLOPs", "memory", "loss", "agrees"]
PARAMS_AT, FLOPS_AT, MEMORY_AT = map(HEADER.index, ("params", "FLOPs", "memory"))
ALIKE = 0.01  # shares of dense that differ by less need one column


def text(inputs: Inputs, answer: Answer, top: int, given: Query) -> str:
    """The answer for a terminal of 100 columns; `given` is the query before its conditions were settled."""
    lines = [*map(wrapped, inputs.said)]
    if answer.verdict is None:
        why = f"nothing was measured near {_asked(answer.query, given)}: {answer.missing}"
        return "\n".join([*lines, wrapped(f"{why}. To measure it:"), f"  {command(answer.query)}"])
    found = answer.verdict
    lines += [wrapped(_measured_on(run)) for run in _runs(found)]
    lines.append(wrapped(_asked(answer.query, given)))
    if not answer.exact:
        where = f"The nearest layer measured is {at(sizes(found.question))}; all figures are of it. To measure yours:"
        lines += ["", wrapped(where), f"  {command(answer.query)}"]
    said = textwrap.fill(sentence(found), COLUMNS, break_on_hyphens=False)
    always = (*found.rivals, found.best, found.kept)
    shown = [one for i, one in enumerate(found.ranking) if i < top or one.kind == DENSE or one in always]
    return "\n".join([*lines, "", said, "", *_table(found, shown), *_beside(found, shown)])


def command(query: Query) -> str:
    """The sweep that measures what is asked for."""
    equal, share = (PARAMS, query.params) if query.params else ("flops", query.flops)
    options = {
        "--shapes": f"{query.in_features}x{query.out_features}",
        "--tokens": query.tokens,
        "--dtypes": query.dtype,
        "--mode": query.mode,
        "--device": query.device,
        "--threads": query.threads,
        "--budget": f"{equal}={share:g}",
    }
    return f"pytest bench {' '.join(f'{k} {v}' for k, v in options.items() if v)} --benchmark-json=more.json"


def as_json(inputs: Inputs, answer: Answer) -> str:
    """The answer for programs: the whole verdict."""
    found = answer.verdict
    document = {
        "query": asdict(answer.query),
        "files": [run.file for run in inputs.results.runs],
        "exact": answer.exact,
        "sentence": found and sentence(found),
        "verdict": found and found.record(),
        "missing": answer.missing or None,
        "measure": None if answer.exact else command(answer.query),
    }
    return json.dumps(document, indent=1)


def _runs(found: Verdict) -> list[Run]:
    rows = [one.row for one in (*found.ranking, *found.below)]
    return list({id(row.run): row.run for row in rows}.values())


def _measured_on(run: Run) -> str:
    machine, unfinished = run.machine, "" if run.complete else "; not complete: points are missing"
    return f"{machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}: {run.file}{unfinished}"


def _asked(query: Query, given: Query) -> str:
    """`1024x1024, 128 tokens, forward (default), float32 (default), cpu, 2 threads, at 25 % of dense's parameters`."""

    def said(key: str) -> str:
        word = getattr(query, key) or "any"
        return f"{word} (default)" if getattr(given, key) is None and DEFAULTS[key] == word else word

    conditions = [said("mode"), said("dtype"), query.device, f"{query.threads} threads" if query.threads else None]
    conditions += ["device clock"] if query.clock == "device" else []
    share, held = (query.params, "parameters") if query.params else (query.flops, "executed FLOPs")
    cost = f"at {percent(share or 0)} of dense's {held}"
    return f"{at(query.sizes)}, {', '.join(filter(None, conditions))}, {cost}"


def _table(found: Verdict, shown: Sequence[Contender]) -> list[str]:
    made = [_line(one) for one in shown]
    shares = {FLOPS_AT: [one.row.executed_share for one in shown], MEMORY_AT: [one.memory_share for one in shown]}
    params = [one.row.params_share for one in shown]
    same = [i for i, of in shares.items() if all(a and abs(a - b) < ALIKE for a, b in zip(of, params, strict=True))]
    keep = [i for i in range(len(HEADER)) if any(line[i] for line in made) and i not in same]
    lines = table([HEADER[i] for i in keep], [[line[i] for i in keep] for line in made], cut=("structure",))
    if len(found.ranking) > len(shown):
        lines.append(f"and {len(found.ranking) - len(shown)} more; --top {len(found.ranking)} shows them")
    if any(one.tied for one in shown):
        lines.append("= cannot be told apart: their quartiles reach the lower quartile of the first of the rank")
    if MEMORY_AT in keep and found.question.mode == "train":
        lines.append("memory: of the parameters, and of what the forward pass keeps for the backward pass")
    return lines


def _line(one: Contender) -> list[str]:
    quality = one.quality
    return [
        rank(one),
        f"{one.name} {one.options}".strip(),
        "1x" if one.kind == DENSE else times(one.speedup),
        f"{digits(one.over_linear.median)}x" if one.over_linear else "",
        percent(one.row.params_share),
        percent(one.row.executed_share),
        percent(one.memory_share) if one.memory_share else "",
        f"{quality.loss.difference * 100:+.1f} %" if quality.loss and one.kind != DENSE else "",
        f"{quality.agreement.cosine:.2f}" if quality.agreement else "",
    ]


def _beside(found: Verdict, shown: Sequence[Contender]) -> list[str]:
    """What is not ranked and why, what the columns mean, and how to measure what is missing."""
    prose = [f"{one.label}: {note}" for one in shown for note in one.notes]
    prose += [f"not ranked: {one.label} {digits(one.speedup.median)}x: {'; '.join(one.doubts)}" for one in found.below]
    prose += [f"refused here: {name}: {reason}" for name, reason in found.refused.items()]
    prose += [f"{what} not measured: {how}" for what, how in found.qualities.missing().items()]
    prose += _explained(found)
    return ["", *map(wrapped, prose)] if prose else []


def _explained(found: Verdict) -> list[str]:
    losses = [one.quality.loss for one in found.ranking if one.quality.loss]
    said = ["speed-up: over the best dense layer, with quartiles; nn.Linear: over that"]
    said += [f"loss: beside dense's after training, {losses[0].task}"] if losses else []
    converted = [one for one in found.ranking if one.quality.agreement]
    said += ["agrees: cosine of a converted encoder's embeddings to its own, nothing trained"] if converted else []
    return said
