"""The section of `bench train`: losses of every structure beside dense's, with their noise, costs and times."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.answers import losses
from bench.answers.losses import budgets
from bench.answers.qualities import discriminates
from bench.files import training_rows
from bench.files.kinds import TRAINING, File
from bench.files.training_rows import TrainingPlace
from bench.report.drawing import words
from bench.report.drawing.plot import Chart, Figure
from bench.report.drawing.sections import PageTable, Section, Sheet, measured, numbered
from bench.report.training import beside, charts, claims, tables
from bench.report.training.fronts import Front, fronts
from bench.report.training.trained import OWN, Trained, within
from structures.reading import BadFile, printable

LEAD = (
    "Networks trained from the same seeds with structures in place of their linear layers, rates by the structured muP "
    "rule. A tie is a difference within the noise between seeds, at 95 % for all comparisons of a table; it is "
    "not to say that two are equal."
)


def section(file: File, number: int = 0) -> Section:
    """The section of one file; `number` tells it from others of its kind.

    Raises:
        BadFile: a field is missing or impossible, or no run was finished.
    """
    runs, several_times = training_rows.read(file.rows)
    if not runs:
        raise BadFile(f"{file.run.file}: holds no finished training run; draw it when there is one")
    of = Trained(losses.results(runs), {(t.place, t.series): t for t in several_times})
    counted = fronts(runs)
    noise = {place.setting: losses.noise([r for r in runs if r.place.setting == place.setting]) for place in of.results}
    sheets = [
        sheet
        for place in _ordered(list(of.results))
        for sheet in _sheets(of, place, counted, tables.telling(noise[place.setting], of.results[place]))
    ]
    refused = [[f.words("setting"), f.name("series"), f.words("reason")] for f in file.refused]
    below = [
        _claims(claims.claims(of.results, several_times, counted)),
        PageTable("", ("Data", "What it is"), _data(file), "The data, with hashes and licences"),
        PageTable("", ("Task", "Series", "Reason"), refused, f"{len(refused)} series were left out"),
    ]
    return Section(
        id=numbered(TRAINING, number),
        title="Training",
        of=printable(Path(file.run.file).stem),
        lead=LEAD,
        run=file.run,
        sheets=sheets,
        below=Sheet(said=measured(file.run), tables=[table for table in below if table.lines]),
        table=_points(of),
        figure=None if number else _figure(of, measured(file.run)),
    )


def _ordered(places: Sequence[TrainingPlace]) -> list[TrainingPlace]:
    """Tasks as they come, of each the largest width first: what a reader sees first."""
    tasks = list(dict.fromkeys(place.setting for place in places))
    return sorted(places, key=lambda place: (tasks.index(place.setting), -place.width))


def _sheets(of: Trained, place: TrainingPlace, counted: Sequence[Front], said: Sequence[str]) -> list[Sheet]:
    """One for each budget that structures were trained at."""
    several = of.results[place]
    trained = [r for r in several if r.loss is not None]
    largest = place.width == max(p.width for p in of.results if p.setting == place.setting)
    found = []
    for budget in budgets(several):
        own = [r for r in trained if within(r, budget)]
        kept = beside.chosen(several, budget)
        drawn: list[Chart] = [beside.chart(of, kept, "Loss beside dense's")] if len(kept) > 1 else []
        drawn += charts.costs(of, own, budget) + charts.curves(of, own)
        drawn += charts.blocks(of, several) if budget is None else []
        if largest:
            drawn += charts.fronts([f for f in counted if f.setting == place.setting and _within(f, budget)])
        found.append(
            Sheet(
                choices={"Task": place.setting, "Width": str(place.width), "Compared at": _at(budget)},
                said=[tables.how_long(several), *said],
                warnings=tables.warnings(several),
                charts=drawn,
                tables=[tables.table([r for r in several if within(r, budget)], of.times)],
            )
        )
    return found


def _at(budget: str | None) -> str:
    return OWN if budget is None else words.budget(budget)


def _within(front: Front, budget: str | None) -> bool:
    return front.budget == budget if not front.control else front.budget in (None, budget)


def _claims(found: Sequence[claims.Claim]) -> PageTable:
    lines = [
        [one.claim, f"{one.figure}; {one.source}; {one.scale}", " \N{BULLET} ".join(one.measured), one.untested]
        for one in found
    ]
    headings = ("Claim", "Source and scale", "Measured here", "Not tested, and why")
    caption = "No line here confirms or refutes a claim made at another scale."
    return PageTable(caption, headings, lines, "Published claims, and what was measured here")


def _figure(of: Trained, said: Sequence[str]) -> Figure | None:
    """Losses beside dense's, of the tasks that tell dense from a network whose layers were removed."""
    told = [p for p in {place.setting: place for place in of.results}.values() if discriminates(of.results[p])]
    drawn = []
    for place in told:
        for budget in budgets(of.results[place])[:1]:
            kept, title = beside.chosen(of.results[place], budget), f"{place.setting}, width {place.width}"
            drawn += [beside.chart(of, kept, f"{title}, {_at(budget)}")] if len(kept) > 1 else []
    return Figure(TRAINING, "Loss after training beside dense's", said, drawn, 2, 300) if drawn else None


def _data(file: File) -> list[list[str]]:
    """Each data set with its hash and licence, in words."""
    found = file.setup.values.get("data", {})
    lines = []
    for name, facts in found.items() if isinstance(found, dict) else []:
        facts = facts if isinstance(facts, dict) else {}
        parts = [str(facts.get("data_note") or "")]
        parts += [f"SHA-256 {str(facts['data_sha256'])[:16]}"] if facts.get("data_sha256") else []
        parts += [f"licence {facts['licence']}"] if facts.get("licence") else []
        lines.append([printable(str(name)), printable("; ".join(part for part in parts if part))])
    return lines


def _points(of: Trained) -> list[dict[str, Any]]:
    """Tidy: one line for every point of every curve."""
    return [
        {
            "setting": run.place.setting, "width": run.place.width, "series": run.series, "structure": run.structure,
            "control": run.control, "budget": run.budget or "", "seed": run.seed, "lr": run.lr, "step": step,
            "tokens": step * run.tokens, "loss": loss, "end": (step, loss) == run.curve[-1],
            "train_flops": step * run.tokens * run.train_flops,
            "executed_train_flops": step * run.tokens * run.executed,
            "seconds": "" if seconds is None else step * seconds, "params": run.params, **run.shares,
            "diverged": run.reason or "",
        }
        for several in of.results.values()
        for result in several
        for seconds in [of.step_seconds(result)]
        for run in result.runs
        for step, loss in run.curve
    ]  # fmt: skip
