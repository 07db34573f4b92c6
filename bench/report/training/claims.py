"""Published claims beside what a file's rows say: each line is computed, and says no more than its comparison does."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.answers.losses import TIE, Result
from bench.answers.training_rows import Time, TrainingPlace, TrainingRun
from bench.report.training.fronts import Front

FILE = Path(__file__).with_name("claims.json")
NOTHING = "not measured in this file"


@dataclass(frozen=True)
class Claim:
    """What was published, where and at what scale; what was measured here; and what could not be tested."""

    claim: str
    source: str
    scale: str
    measured: tuple[str, ...]
    untested: str


def claims(
    results: Mapping[TrainingPlace, Sequence[Result]], times: Sequence[Time], fronts: Sequence[Front]
) -> list[Claim]:
    """Every claim of the list, with lines for what was measured: of each task, at its largest width."""
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    return [
        Claim(
            claim=one["claim"],
            source=one["source"],
            scale=one["scale"],
            measured=tuple(_measured(one["measure"], results, times, fronts)) or (NOTHING,),
            untested=one["not"],
        )
        for one in listed
    ]


def _measured(
    asked: Mapping[str, Any],
    results: Mapping[TrainingPlace, Sequence[Result]],
    times: Sequence[Time],
    fronts: Sequence[Front],
) -> list[str]:
    largest = {place.setting: place for place in results}.values()
    chosen = {
        place: [r for r in several if r.first.structure in asked["structures"]]
        for place, several in results.items()
        if place in largest
        and several[0].first.task in asked.get("tasks", [several[0].first.task])
        and several[0].first.data in asked.get("data", [several[0].first.data])
    }
    what = asked["what"]
    if what == "exponent":
        settings = {place.setting for place in chosen}
        wanted = [f for f in fronts if f.setting in settings and f.structure in ("dense", *asked["structures"])]
        ordered = sorted(wanted, key=lambda f: (f.setting, f.structure != "dense"))
        return [line for line in map(exponent, ordered) if line]
    if what == "time":
        settings = {place.setting for place in chosen}
        ours = [t for t in times if t.place.setting in settings and t.structure in asked["structures"]]
        return _by_place(
            (
                t.place,
                f"{t.series}: a step {t.speedup:.2f} times as fast as dense's ({t.ratio.q1:.2f} to {t.ratio.q3:.2f})",
            )
            for t in ours
        )
    lines = {"accuracy": accuracy, "recovered": recovered}.get(what, loss)
    return _by_place((place, line) for place, several in chosen.items() for r in several if (line := lines(r)))


def _by_place(lines: Iterable[tuple[TrainingPlace, str]]) -> list[str]:
    """One line for each place: what was found there."""
    found: dict[TrainingPlace, list[str]] = {}
    for place, line in lines:
        found.setdefault(place, []).append(line)
    return [f"{place.setting}, width {place.width}: {'; '.join(some)}" for place, some in found.items()]


def loss(result: Result) -> str | None:
    """`dyad_it @ params=0.5: loss 1.1 % above dense's: a tie (-0.9 to +3.1 %)`."""
    if result.difference is None or result.margin is None:
        return None
    return f"{result.first.series}: {difference(result)}"


def plain(run: TrainingRun) -> str:
    """A series without its start."""
    return run.series.partition(", ")[0]


def difference(result: Result) -> str:
    """A result's loss beside dense's, no finer than its noise."""
    if result.difference is None or result.interval is None:
        return "no dense loss, or no seeds, to compare with"
    side = "above" if result.difference > 0 else "below"
    words = f"loss {abs(result.difference) * 100:.1f} % {side} dense's"
    return f"{words}{': a tie' if result.verdict == TIE else ''} ({percents(result.interval)})"


def percents(ends: tuple[float, float]) -> str:
    """`-3.1 to +4.0 %`."""
    return f"{ends[0] * 100:+.1f} to {ends[1] * 100:+.1f} %"


def accuracy(result: Result) -> str | None:
    found = [run.metrics["accuracy"] for run in result.runs if "accuracy" in run.metrics]
    if not found:
        return None
    mean = sum(found) / len(found)
    spread = f", {min(found):.1%} to {max(found):.1%} over {len(found)} seeds" if len(found) > 1 else ", one seed"
    return f"{result.first.series}: accuracy {mean:.1%}{spread}; {difference(result)}"


def recovered(result: Result) -> str | None:
    first = result.first
    if first.teacher_loss is None or result.loss is None or not first.start:
        return None
    start = first.curve[0][1]
    return (
        f"{first.series}: from {start:.3f} to {result.loss:.3f} in {first.steps} steps; the dense "
        f"network it came from has {first.teacher_loss:.3f}"
    )


def exponent(front: Front) -> str | None:
    """`...: dense: loss ~ FLOPs^-0.42 (0.40 to 0.44, 20 points, 3 widths)`."""
    if front.exponent is None or front.low is None or front.high is None:
        return None
    return (
        f"{front.setting}: {front.series}: loss ~ FLOPs^-{front.exponent:.3f} ({front.low:.3f} to {front.high:.3f}, "
        f"{len(front.points)} points of {front.widths} widths)"
    )
