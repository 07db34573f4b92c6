"""The long tables: of every machine, speed-ups at its largest layer, and the widths from which on dense is beaten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.answers.question import PARAMS, USUAL, USUAL_DTYPE, Question
from bench.answers.verdict import DENSE, Contender, Verdict, verdicts
from bench.files.errors import UsageError
from bench.files.rows import Results
from bench.files.terminal import shortened
from bench.files.vocabulary import MODES
from bench.report.drawing import words
from structures.reading import printable

LONGEST_NAME = 60  # characters
_MARKUP = r"[\\`*\[\]<>&|~#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # an underscore inside a word is none
Column = tuple[str, float]  # mode, share


def section(results: Results) -> str:
    """Both tables of each machine, at equal parameters."""
    machines: dict[str, list[Verdict]] = {}
    for one in verdicts(results.rows):
        if one.question.equal == PARAMS and one.question.dtype == USUAL_DTYPE:
            machines.setdefault(one.question.machine, []).append(one)
    if not machines:
        raise UsageError(f"the results hold no structure in {USUAL_DTYPE} at equal parameters")
    return "\n\n".join(part for name, several in machines.items() for part in _of_machine(name, several))


def _of_machine(name: str, several: Sequence[Verdict]) -> list[str]:
    front = max((v.question for v in several), key=lambda q: (q.in_features * q.out_features, -q.tokens))
    at = [v for v in several if _layer(v.question) == _layer(front)]
    columns = {(v.question.mode, v.question.share): v for v in at}
    run = (*at[0].ranking, *at[0].below)[0].row.run
    layer = f"{front.in_features} {words.TIMES} {front.out_features}, {words.tokens(front.tokens)}"
    return [
        f"### {text(name)}",
        f"Speed-up over the best dense layer at {layer}, {front.dtype}, {words.threads(front.threads)}, by mode and "
        "share of dense's parameters; below it the quartiles. †: flagged or not believed, and not ranked. "
        f"Torch {text(run.machine['torch'])}, {run.datetime[:10]}, commit {text(run.machine['commit'])}.",
        "\n".join(_speedups(columns)),
        f"Break-even at {words.share(USUAL)} of the parameters: the width from which on a structure beats dense at "
        "every square layer measured, by the lower quartile of its speed-up; *none* where it does not at the widest.",
        "\n".join(_break_evens([v for v in several if v.question.share == USUAL])),
    ]


def _layer(question: Question) -> Question:
    """A question without what the columns of the first table say."""
    return replace(question, mode=MODES[0], share=1.0)


def _speedups(columns: Mapping[Column, Verdict]) -> list[str]:
    ordered = sorted(columns, key=lambda c: (MODES.index(c[0]), -c[1]))
    cells: dict[str, dict[Column, Contender]] = {}
    for column in sorted(ordered, key=lambda c: (c[1] != USUAL, MODES.index(c[0]))):  # the first decides the order
        for one in (*columns[column].ranking, *columns[column].below):
            if one.kind != DENSE:
                cells.setdefault(one.name, {})[column] = one
    heads = ["layer", f"options at {USUAL:g}", *(f"{mode} {share:g}" for mode, share in ordered)]
    lines = []
    for name, own in cells.items():
        usual = next((one.options for (_, share), one in own.items() if share == USUAL), "")
        lines.append([code(name), code(usual) if usual else "", *(_cell(own.get(column)) for column in ordered)])
    return markdown(heads, lines, left=2)


def _cell(one: Contender | None) -> str:
    if one is None:
        return ""
    return f"{words.ratio(one.speedup.median)}{' †' if one.doubts else ''}<br>{words.quartiles(one.speedup)}"


def _break_evens(several: Sequence[Verdict]) -> list[str]:
    columns: dict[tuple[str, int], dict[str, list[Contender]]] = {}
    for v in sorted(several, key=lambda v: (MODES.index(v.question.mode), v.question.tokens, v.question.in_features)):
        if v.question.in_features == v.question.out_features:
            own = columns.setdefault((v.question.mode, v.question.tokens), {})
            for one in v.ranking:
                own.setdefault(one.name, []).append(one)
    names = dict.fromkeys(name for own in columns.values() for name in own if name != DENSE)
    lines = [[code(name), *(break_even(own.get(name, [])) for own in columns.values())] for name in sorted(names)]
    return markdown(["layer", *(f"{mode}, {words.tokens(t)}" for mode, t in columns)], lines, left=1)


def break_even(squares: Sequence[Contender]) -> str:
    """The smallest width, of those given in order, from which on all wider ones beat dense."""
    beaten = [one.beats_dense for one in squares]
    if not beaten:
        return ""
    first = len(beaten) - next((i for i, yes in enumerate(reversed(beaten)) if not yes), len(beaten))
    if first == len(beaten):
        return "*none*"
    return f"{squares[first].row.in_features}{' or less' if first == 0 else ''}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """A table, its first columns aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return [f"| {' | '.join(line)} |" for line in (heads, rule, *lines)]


def text(value: str) -> str:
    """Words from a results file as Markdown that shows them and nothing else."""
    return re.sub(_MARKUP, lambda found: f"&#{ord(found[0])};", printable(value))


def code(value: str) -> str:
    """A name or options from a results file, shortened, as code where nothing in them could end that."""
    value = shortened(printable(value), LONGEST_NAME)
    return f"`{value}`" if re.fullmatch(r"[A-Za-z0-9_.,:;=@/()\[\]+' -]*[A-Za-z0-9_)\]]", value) else text(value)
