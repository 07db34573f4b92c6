"""The README's table and figure of trained networks, from a file of `bench train` alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.answers import losses, training_rows
from bench.answers.losses import TIE, Result, noise
from bench.answers.training_rows import TrainingPlace, TrainingRun
from bench.files import kinds
from bench.files.errors import UsageError
from bench.files.kinds import File
from bench.files.rows import load
from bench.report.drawing import plot, sections, words
from bench.report.drawing.plot import Figure
from bench.report.drawing.words import ratio, share
from bench.report.training import beside, charts, claims
from bench.report.training import fronts as training_fronts
from bench.report.training import grammar as training_grammar
from bench.report.training.fronts import Front
from bench.report.training.tables import grammar, how_long, neighbour, warnings
from bench.report.training.trained import Times, Trained

START, END = "<!-- training -->", "<!-- end of training -->"
WRITTEN = "<!-- written by python -m bench readme --training: run it again rather than edit -->"
MOST = 4  # tasks in the table and the figure: those where most structures were trained
CHART_WIDTH = 250


@dataclass(frozen=True)
class Training:
    """What stands between the README's markers, and the figure by the suffix of its files."""

    text: str
    figure: dict[str, bytes]


def training(files: Sequence[Path], picture: str) -> Training:
    """The table of every structure beside dense, and its figure with the fronts; `picture` is its place for the README.

    Args:
        files: the first makes the table and the figure, all of them what is said of published claims.
    Raises:
        BadResults: a file is missing, broken or foreign.
        UsageError: it is of another kind, or holds no comparison at equal parameters with dense and several seeds.
    """
    found, *others = map(_read, files)
    runs, several_times = training_rows.read(found.rows)
    results = losses.results(runs)
    budget = _budget(runs)
    columns = _columns(results, budget)
    if budget is None or not columns:
        raise UsageError(
            f"--training: {files[0]} holds no structure beside dense at equal parameters with several seeds of dense"
        )
    times: Times = {(t.place, t.series): t for t in several_times}
    of = Trained(results, times)
    shown = [run for run in runs if run.place.setting in {p.setting for p in columns}]
    fronts = training_fronts.fronts(shown)
    at = share(float(budget.partition("=")[2]))
    parts = [
        WRITTEN,
        f"Nearest to dense at {at} of the parameters: {_nearest(columns, results, budget)}.",
        f"![Loss of every structure beside dense's at {at} of the parameters of the replaced layers, and losses "
        f"against training FLOPs]({picture})",
        f"Held-out loss beside dense's with {at} of the parameters of the replaced layers. *tie*: no difference beyond "
        "noise, which does not mean that they are equal. Below a difference: its interval by the noise between seeds, "
        "at 95 % for all comparisons of a column together; and what the better of the neighbouring rates costs "
        "(!: the best rate lies at an end of the grid, though that was extended). "
        "*exponent*: b in loss ~ training FLOPs^-b, over the widths "
        "of the first task that has several.",
        " ".join(sections.measured(found.run)),
        "\n".join(_table(columns, results, budget, times, fronts)),
        _flags(columns, times),
        _phenomena([place for place in columns if any(grammar(r)[0] for r in results[place])], results),
        "\n".join(f"- {_about(place, results[place], runs)}" for place in columns),
        "What papers claim, beside these runs:",
        _claims([found, *others]),
    ]
    text = "\n\n".join(part for part in parts if part)
    return Training(text, _figure(of, columns, budget, fronts, sections.measured(found.run)))


def _read(file: Path) -> File:
    document = load(file)
    if kinds.kind_of(document) != kinds.TRAINING:
        raise UsageError(f"--training: {file} is no file of `python -m bench train`")
    return kinds.parse(str(file), document, (kinds.TRAINING,))


def _claims(several: Sequence[File]) -> str:
    """Of all rows together; what stands in two files is taken once."""
    rows = {fields.name("key"): fields for file in several for fields in file.rows}
    runs, times = training_rows.read(list(rows.values()))
    return claims.markdown(claims.claims(losses.results(runs), times, training_fronts.fronts(runs)))


def _budget(runs: Sequence[TrainingRun]) -> str | None:
    """The share of parameters at which most structures were trained."""
    seen = {(r.budget, r.structure, r.place.setting) for r in runs if not r.control and not r.start}
    counts = Counter(budget for budget, _, _ in seen if budget and budget.startswith("params="))
    return max(counts, key=lambda budget: (counts[budget], budget)) if counts else None


def _columns(results: dict[TrainingPlace, list[Result]], budget: str | None) -> list[TrainingPlace]:
    """The largest width of the tasks with most structures at the budget, in the order of the file."""
    largest = {place.setting: place for place in results}.values()
    sizes = {p: sum(not r.first.control for r in beside.chosen(results[p], budget, "")) for p in largest}
    ranked = sorted((p for p in largest if sizes[p]), key=lambda p: -sizes[p])[:MOST]
    return sorted(ranked, key=lambda p: p.setting)


def _nearest(columns: Sequence[TrainingPlace], results: dict[TrainingPlace, list[Result]], budget: str) -> str:
    """Of each task, the three series with the least loss."""
    said = []
    for place in columns:
        kept = [r for r in beside.chosen(results[place], budget, "") if r.difference is not None and r.first.budget]
        told = [f"`{r.first.structure}` ({(r.difference or 0) * 100:+.1f} %)" for r in kept[:3]]
        said.append(f"{place.setting}: {', '.join(told)}")
    return "; ".join(said)


def _name(place: TrainingPlace, result: Result) -> str:
    first = result.first
    return f"{first.task}: {first.model}, {first.data}, width {place.width}"


def _table(
    columns: Sequence[TrainingPlace],
    results: dict[TrainingPlace, list[Result]],
    budget: str,
    times: Times,
    fronts: Sequence[Front],
) -> list[str]:
    """A line for each series; the order is that of the columns, the first first."""
    kept = {p: {r.first.series: r for r in beside.chosen(results[p], budget, "")} for p in columns}
    order: dict[str, None] = {}
    for place in columns:
        order |= dict.fromkeys(kept[place])
    timed = [p for p in columns if any((p, series) in times for series in order)]
    tested = [p for p in columns if any(grammar(r)[0] for r in results[p])]
    exponents = {f.series: f for f in fronts if f.exponent is not None}
    head = ["series", *(_name(p, results[p][0]) for p in columns), *(f"speed of a step, {p.setting.split()[0]}" for p in
            timed), *(["grammar (chance 50 %)"] if tested else []), *(["exponent"] if exponents else [])]  # fmt: skip
    made = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for series in [*order, "dense"]:
        some = next((r for p in columns for r in results[p] if r.first.series == series), None)
        if some is None:
            continue
        cells = ["baseline" if series == "dense" else _beside(kept[p].get(series)) for p in columns]
        cells += [_speed(times, p, series) for p in timed]
        cells += [_grammar(results, p, series) for p in tested[:1]]
        cells += [_exponent(exponents.get(series))] if exponents else []
        control = " (control)" if some.first.control else ""
        made.append(f"| `{some.first.structure}`{control} | {' | '.join(cells)} |")
    return made


def _flags(columns: Sequence[TrainingPlace], times: Times) -> str:
    flags = sorted({flag for (place, _), time in times.items() if place in columns for flag in time.flags})
    return f"† flagged when measured: {', '.join(flags)}." if flags else ""


def _phenomena(tested: Sequence[TrainingPlace], results: dict[TrainingPlace, list[Result]]) -> str:
    """What the column of the grammar test rests on: a share over all pairs hides that most may be guessed."""
    if not tested:
        return ""
    cells = [c for c in training_grammar.cells(results[tested[0]]) if c["phenomenon"] != training_grammar.ALL]
    every = dict.fromkeys(c["phenomenon"] for c in cells)
    known = dict.fromkeys(c["phenomenon"] for c in cells if c["side"] != training_grammar.SIDES[2])
    named = f"{len(known)} ({', '.join(known)})" if known else "none"
    said = f"*grammar*: of {len(every)} phenomena, {named} differ from chance in any network, at 95 % for all together"
    if any(name.startswith(training_grammar.ONE_SIDED) for name in known):
        said += f"; pairs of {training_grammar.ONE_SIDED} can be decided by the frequency of words"
    return f"{said}."


def _beside(result: Result | None) -> str:
    if result is None or result.difference is None or result.interval is None:
        return ""
    low, high = (f"{end * 100:+.1f}" for end in result.interval)
    tie = "tie, " if result.verdict == TIE else ""
    rate = f"<br>{neighbour(result)}{' !' if result.first.rate_at_end else ''}" if result.neighbour else ""
    return f"{tie}{result.difference * 100:+.1f} %<br>{low} to {high}{rate}"


def _speed(times: Times, place: TrainingPlace, series: str) -> str:
    time = times.get((place, series))
    return f"{ratio(time.speedup)}{' †' if time.flags else ''}" if time else ""


def _grammar(results: dict[TrainingPlace, list[Result]], place: TrainingPlace, series: str) -> str:
    found = next((r for r in results[place] if r.first.series == series), None)
    said, small = grammar(found) if found else ("", "")
    return f"{said} ({small.partition(' %')[0]})" if said else ""


def _exponent(front: Front | None) -> str:
    if front is None or front.exponent is None or front.low is None or front.high is None:
        return ""
    return f"{front.exponent:.3f} ({front.low:.3f} to {front.high:.3f})"


def _about(place: TrainingPlace, several: Sequence[Result], runs: Sequence[TrainingRun]) -> str:
    """How long the runs were, how noisy, and what else limits what they say."""
    known = noise([run for run in runs if run.place.setting == place.setting])
    varies = f" {known.words}" if known else ""
    least = next((r.told for r in several if r.told is not None), None)
    told = (
        [f"The smallest difference to dense that it tells in four runs of five is {least * 100:.1f} %."]
        if least
        else []
    )
    return " ".join([f"{_name(place, several[0])}: {how_long(several)}{varies}", *told, *warnings(several)])


def _figure(
    of: Trained, columns: Sequence[TrainingPlace], budget: str, fronts: Sequence[Front], said: Sequence[str]
) -> dict[str, bytes]:
    drawn = [beside.chart(of, beside.chosen(of.results[p], budget, ""), _name(p, of.results[p][0])) for p in columns]
    own = [f for f in fronts if f.budget == budget or (f.control and f.budget in (None, budget))]
    setting = next((f.setting for f in own if f.exponent is not None), "")
    some = [f for f in own if f.setting == setting]
    drawn += charts.fronts(some, f"Least loss against FLOPs of training: {setting.split(' ')[0]}, all widths")[:1]
    title = f"Loss after training beside dense's, {words.budget(budget)}"
    return plot.files(Figure("training", title, said, drawn, 2, CHART_WIDTH))


def files(made: Training, figure: Path) -> dict[Path, bytes]:
    """The figure's files beside the README's main one: training.png and training.svg."""
    return {Path(os.path.join(figure.parent, f"training{kind}")): content for kind, content in made.figure.items()}
