"""`python -m bench coordinates`: how large activations are after a few steps of training, as width grows.

Rows of `structures.coordinate_check`, with the learning rates of `param_groups` and with one rate for all, for every
registry entry and for the points that the two-factor space's source names: `einsum btt1` is the entry at that theta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bench.files import options
from bench.files.errors import UsageError
from bench.files.run import RunRecord
from bench.files.vocabulary import DENSE
from bench.sweep.named import NAMED, SPACE
from bench.sweep.request import default_names, in_order
from structures.models.width_check import coordinate_check


def subjects(words: str | None = None) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Label -> entry and options, of a list of words: entries, or named points such as `btt1`; all without.

    Raises:
        UsageError: a word that is neither; the message lists what there is.
    """
    entries = {name: (name, {}) for name in in_order(default_names())}
    points = {point: (SPACE, {"theta": theta}) for point, theta in NAMED.items() if point != DENSE}
    if words is None:
        return {**entries, **{f"{SPACE} {point}": subject for point, subject in points.items()}}
    found: dict[str, tuple[str, Mapping[str, object]]] = {}
    for word in options.some_of("--structures", words, [*entries, *points]):
        found[word if word in entries else f"{SPACE} {word}"] = entries.get(word) or points[word]
    if not found:
        raise UsageError(f"--structures: {words!r} names nothing. Allowed: {', '.join([*entries, *points])}")
    return found


def measure(run: RunRecord, words: str | None, widths: Sequence[int]) -> None:
    """Fill the run's rows, structure by structure, and write them after each; Ctrl-C keeps what is finished.

    Kept are the sizes that are drawn: of the last hidden layer, before the first step and after the last.
    """
    torch.set_num_threads(run.threads.count)
    todo = [(label, *subject, scaled) for label, subject in subjects(words).items() for scaled in (True, False)]
    run.setup = {"widths": list(widths), "optimizer": "Adam, 4 steps, rate 0.01 at the first width", "layers": 2}
    try:
        progress = run.progress(todo)
        for number, (label, name, options, scaled) in enumerate(todo, start=1):
            word = "scaled rates" if scaled else "one rate"
            try:
                found = coordinate_check(name, widths, scaled=scaled, **options)  # type: ignore[arg-type]
            except ValueError as error:
                run.refused.append({"structure": label, "scaled": scaled, "reason": str(error).partition("\n")[0]})
                progress.finish(1.0, f"{label:18} {word:13} refused: {run.refused[-1]['reason']}")
            else:
                ends = [row for row in found if row.layer == found[-1].layer and row.step in (0, found[-1].step)]
                run.rows += [{**row._asdict(), "structure": label, "scaled": scaled} for row in ends]
                last = [row.size for row in ends if row.step]
                progress.finish(1.0, f"{label:18} {word:13} {min(last):.2g} to {max(last):.2g} at the last step")
            run.complete = number == len(todo)
            run.save()
    except KeyboardInterrupt:
        run.save()
