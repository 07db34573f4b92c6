"""The README's table and plot of a converted encoder, from a file of `bench minilm` alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.answers.conversions import ConversionRow
from bench.files import kinds
from bench.files.errors import UsageError
from bench.files.rows import load
from bench.report.drawing import plot, words
from bench.report.others import models

START, END = "<!-- encoder -->", "<!-- end of encoder -->"
WAYS = {"plain": "weights", "aware": "outputs", "sequential": "outputs, in order"}


@dataclass(frozen=True)
class EncoderText:
    """What stands between the README's markers, and the plot, by the suffix of its files."""

    text: str
    plot: dict[str, bytes]


def encoder(file: Path) -> EncoderText:
    """The table of every conversion and the plots of agreement against parameters and time.

    Raises:
        BadResults: the file is missing, broken or foreign.
        UsageError: it is of another kind.
    """
    document = load(file)
    if kinds.kind_of(document) != kinds.MINILM:
        raise UsageError(f"--encoder: {file} is no file of `python -m bench minilm`")
    found = kinds.parse(str(file), document, (kinds.MINILM,))
    figure = models.section(found).figure
    assert figure
    rows = models.read(found)
    unfinished = "" if found.run.complete else "This run is not complete: conversions are missing."
    out = models.left_out(found)
    left = "; ".join(f"`{r.structure}` {_left(r)}: {r.reason}" for r in out)
    parts = [
        "<!-- written by python -m bench readme --encoder: run it again rather than edit -->",
        "Mean cosine of the embeddings of held-out sentences to the dense encoder's, in brackets how often their "
        "nearest neighbour is the same. Nothing is trained after the conversion.",
        figure.caption[0],
        unfinished,
        "\n".join(_table(rows)),
        f"Left out: {left}." if left else "",
    ]
    return EncoderText("\n\n".join(part for part in parts if part), plot.files(figure))


def _table(rows: Sequence[ConversionRow]) -> list[str]:
    """A line for each structure and share, the best agreement first; the controls stand where they belong."""
    ways = [way for way in WAYS if any(row.way == way for row in rows)]
    lines: dict[tuple[str, str | None], dict[str, ConversionRow]] = {}
    for row in rows:  # sorted by agreement, so the first of a line is its best
        lines.setdefault((row.structure, row.budget), {})[row.way] = row
    head = ["structure", "feed-forward parameters, of dense", *(f"nearest {WAYS[way]}" for way in ways), "speed-up"]
    made = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for (structure, _), by_way in lines.items():
        some = next(iter(by_way.values()))
        agreed = [_agreement(by_way["control"])] * len(ways) if "control" in by_way else []
        agreed = agreed or [_agreement(by_way[way]) if way in by_way else "" for way in ways]
        faster = words.ratio(some.speedup.median) if some.speedup else ""
        name = f"{structure} (control)" if "control" in by_way else f"`{structure}`"
        made.append(f"| {' | '.join([name, words.share(some.feed_forward_share), *agreed, faster])} |")
    return made


def _agreement(row: ConversionRow) -> str:
    return f"{row.cosine:.2f} ({row.neighbour:.0%})".replace("%", " %")


def _left(refusal: object) -> str:
    budget, way = getattr(refusal, "budget", None), getattr(refusal, "way", None)
    said = [words.budget(budget)] if budget else []
    return ", ".join([*said, *([f"nearest {WAYS[way]}"] if way in WAYS else [])])


def files(made: EncoderText, figure: Path) -> dict[Path, bytes]:
    """The plot's files beside the figure: encoder.png and encoder.svg."""
    return {Path(os.path.join(figure.parent, f"encoder{kind}")): content for kind, content in made.plot.items()}
