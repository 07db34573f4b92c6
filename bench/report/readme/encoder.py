"""The table and picture of a converted encoder, from a file of `bench minilm`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.answers.conversions import ConversionRow
from bench.files.kinds import File
from bench.report.drawing import words
from bench.report.drawing.plot import Figure
from bench.report.others import models
from bench.report.readme.tables import code, markdown, text


def section(file: File) -> tuple[str, Figure | None]:
    """Every conversion, by agreement, and agreement against time."""
    made, rows = models.section(file), models.read(file)
    left = "; ".join(
        f"{code(one.structure)} ({words.budget(one.budget)}): {text(one.reason)}" for one in models.left_out(file)
    )
    parts = [
        "Mean cosine of the embeddings of held-out sentences to the dense encoder's, in brackets how often their "
        "nearest neighbour is the same. Nothing is trained after the conversion in this table.",
        text(made.sheets[0].said[0]),
        "" if file.run.complete else "This run is not complete: conversions are missing.",
        "\n".join(_table(rows)),
        *_trained(rows),
        f"Left out: {left}." if left else "",
    ]
    return "\n\n".join(filter(None, parts)), made.figure


def _table(rows: Sequence[ConversionRow]) -> list[str]:
    """A line for each structure and share, the best agreement first; the controls stand where they belong."""
    ways = [way for way in models.NEAREST if way != "control" and any(row.way == way for row in rows)]
    lines: dict[tuple[str, str | None], dict[str, ConversionRow]] = {}
    for row in rows:  # sorted by agreement, so the first of a line is its best
        lines.setdefault((row.structure, row.budget), {})[row.way] = row
    made = []
    for (structure, _), by_way in lines.items():
        some = next(iter(by_way.values()))
        agreed = [models.agreement(by_way["control"])] * len(ways) if "control" in by_way else []
        agreed = agreed or [models.agreement(by_way[way]) if way in by_way else "" for way in ways]
        faster = words.ratio(some.speedup.median) if some.speedup else ""
        name = f"{structure} (control)" if "control" in by_way else code(structure)
        made.append([name, words.share(some.feed_forward_share), *agreed, faster])
    nearest = (f"nearest {models.NEAREST[way]}" for way in ways)
    heads = ["structure", "feed-forward parameters, of dense", *nearest, "speed-up"]
    return markdown(heads, made, left=1)


def _trained(rows: Sequence[ConversionRow]) -> list[str]:
    """What was trained after its conversion, share by share."""
    if not models.tuned(rows):
        return []
    said, heads, lines = models.trained(rows)
    return [said, "\n".join(markdown(heads, [[code(name), *rest] for name, *rest in lines], left=3))]
