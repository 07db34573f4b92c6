"""The table and picture of trained networks, and published claims beside them, from files of `bench train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.answers import losses
from bench.answers.losses import TIE, Result
from bench.answers.qualities import discriminates
from bench.files import training_rows
from bench.files.errors import UsageError
from bench.files.kinds import File
from bench.files.training_rows import TrainingPlace, TrainingRun
from bench.files.vocabulary import DENSE
from bench.report.drawing import words
from bench.report.drawing.plot import Figure
from bench.report.readme.tables import code, markdown, text
from bench.report.training import beside, claims, fronts
from bench.report.training import section as on_page
from bench.report.training.tables import how_long, telling, warnings

MOST = 5  # tasks in the table: those where most structures were trained


def section(files: Sequence[File]) -> tuple[str, Figure | None]:
    """Every structure beside dense on the tasks that tell something; all files make what is said of claims.

    Raises:
        UsageError: nothing stands beside dense at equal parameters with several seeds.
    """
    keyed = {fields.values.get("key"): fields for file in files for fields in file.rows}  # in two files: once
    rows = files[0].rows if len(files) == 1 else keyed.values()
    runs, times = training_rows.read(list(rows))
    results = losses.results(runs)
    budget = _budget(runs)
    columns = _columns(results, budget)
    if budget is None or not columns:
        raise UsageError(
            f"{files[0].run.file}: holds no structure beside dense at equal parameters with several seeds of dense"
        )
    at = words.share(float(budget.partition("=")[2]))
    parts = [
        f"Held-out loss beside dense's with {at} of the parameters of the replaced layers, on tasks that tell dense "
        "from a network without these layers. *tie*: no difference beyond noise, which does not mean that they are "
        "equal. Below a difference: its interval, at 95 % for all comparisons of a column together.",
        "\n".join(_table(columns, results, budget)),
        "\n".join(f"- {text(_about(place, results[place], runs))}" for place in columns),
        "What papers claim, beside these runs:",
        claims.markdown(claims.claims(results, times, fronts.fronts(runs))),
    ]
    return "\n\n".join(parts), on_page.section(max(files, key=lambda file: len(file.rows))).figure


def _budget(runs: Sequence[TrainingRun]) -> str | None:
    """The share of parameters at which most structures were trained."""
    seen = {(r.budget, r.structure, r.place.setting) for r in runs if not r.control}
    counts = Counter(budget for budget, _, _ in seen if budget and budget.startswith("params="))
    return max(counts, key=lambda budget: (counts[budget], budget)) if counts else None


def _columns(results: Mapping[TrainingPlace, Sequence[Result]], budget: str | None) -> list[TrainingPlace]:
    """Of the tasks that tell something the width with most structures, the tasks with most of them, in their order."""
    shown = [place for place, several in results.items() if discriminates(several)]
    sizes = {p: sum(not r.first.control for r in beside.chosen(results[p], budget)) for p in shown}
    fullest = {p.setting: p for p in sorted(shown, key=lambda p: (sizes[p], p.width))}.values()
    ranked = sorted((p for p in fullest if sizes[p]), key=lambda p: -sizes[p])[:MOST]
    return [p for p in shown if p in ranked]


def _table(
    columns: Sequence[TrainingPlace], results: Mapping[TrainingPlace, Sequence[Result]], budget: str
) -> list[str]:
    """A line for each series; the order is that of the first column with most of them."""
    kept = {p: {r.first.series: r for r in beside.chosen(results[p], budget)} for p in columns}
    order = dict.fromkeys(series for p in sorted(columns, key=lambda p: -len(kept[p])) for series in kept[p])
    lines = [[code(DENSE), *("baseline" for _ in columns)]]
    for series in order:
        own = [kept[p].get(series) for p in columns]
        first = next(r for r in own if r).first
        lines.append([f"{code(first.structure)}{' (control)' if first.control else ''}", *map(_beside, own)])
    heads = ["layer", *(text(f"{place.setting}, width {place.width}") for place in columns)]
    return markdown(heads, lines, left=1)


def _beside(result: Result | None) -> str:
    if result is None or result.difference is None or result.interval is None:
        return ""
    low, high = (f"{end * 100:+.1f}" for end in result.interval)
    tie = "tie, " if result.verdict == TIE else ""
    return f"{tie}{result.difference * 100:+.1f} %<br>{low} to {high}"


def _about(place: TrainingPlace, several: Sequence[Result], runs: Sequence[TrainingRun]) -> str:
    """How long the runs were, how noisy, and what else limits what they say."""
    noise = losses.noise([run for run in runs if run.place.setting == place.setting])
    said = [how_long(several), *telling(noise, several), *warnings(several)]
    return f"{place.setting}, width {place.width}: {' '.join(said)}"
