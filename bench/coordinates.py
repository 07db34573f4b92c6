"""`python -m bench coordinates`: how large activations are after a few steps of training, as width grows.

Rows of `structures.coordinate_check`, with the learning rates of `param_groups` and with one rate for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import structures
from bench.cpu_run import Run
from bench.request import in_order
from structures.coordinates import coordinate_check

WIDTHS = (128, 256, 512, 1024, 2048)


def measure(run: Run, names: Sequence[str] = (), widths: Sequence[int] = WIDTHS) -> None:
    """Fill the run's rows, entry by entry, and write them after each; Ctrl-C keeps what is finished."""
    torch.set_num_threads(run.threads.count)
    todo = [(name, scaled) for name in names or in_order(structures.names()) for scaled in (True, False)]
    run.setup = {"widths": list(widths), "optimizer": "Adam, 4 steps, rate 0.01 at the first width", "layers": 2}
    try:
        for number, (name, scaled) in enumerate(todo, start=1):
            word = "scaled rates" if scaled else "one rate"
            try:
                found = coordinate_check(name, widths, scaled=scaled)
            except ValueError as error:
                run.refused.append({"structure": name, "scaled": scaled, "reason": str(error).partition("\n")[0]})
                run.say(number, len(todo), f"{name:18} {word:13} refused: {run.refused[-1]['reason']}")
            else:
                run.rows += [{**row._asdict(), "scaled": scaled} for row in found]
                last = [row.size for row in found if row.step == max(r.step for r in found)]
                run.say(number, len(todo), f"{name:18} {word:13} {min(last):.2g} to {max(last):.2g} at the last step")
            run.complete = number == len(todo)
            run.save({})
    except KeyboardInterrupt:
        run.save({})
