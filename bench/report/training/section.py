"""The section of `bench train`: losses of every structure beside dense's, with their noise, costs and times."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.answers import losses, training_rows
from bench.answers.losses import Result
from bench.answers.training_rows import TrainingPlace, TrainingRun
from bench.files.fields import BadResults, printable
from bench.files.kinds import TRAINING, File
from bench.report.drawing.sections import Section, measured
from bench.report.drawing.views import View
from bench.report.training import beside, blocks, claims, costs, curves, fronts, grammar, scaling, tables
from bench.report.training.marks import Times, Trained, looks, step_seconds


def section(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file; `number` tells it from others of its kind, `structures` are all of the report.

    Raises:
        BadResults: a field is missing or impossible, or no run was finished.
    """
    runs, several_times = training_rows.read(file.rows)
    if not runs:
        raise BadResults(f"{file.run.file}: holds no finished training run; draw it when there is one")
    results = losses.results(runs)
    counted, executed = fronts.fronts(runs), fronts.fronts(runs, executed=True)
    structures = {*structures, *file.structures}
    times: Times = {(t.place, t.series): t for t in several_times}
    stem = f"{TRAINING}-{number + 1}" if number else TRAINING
    of = Trained(results, times, looks(structures, runs), told := measured(file.run), stem)
    views = [
        *beside.made(of),
        *_with_tables(costs.made(of), results, times),
        *curves.made(of),
        *scaling.made(of, counted, _in_order(executed, counted)),
        *blocks.made(of),
        *grammar.made(of),
    ]
    largest = {place.setting: place for place in results}
    return Section(
        id=stem,
        title="Quality after training",
        template="training.html.j2",
        caption=told,
        draw=lambda width: {},
        records=[],
        run=file.run,
        structures=structures,
        content={
            "summary": tables.summary(results),
            "noise": {s: tables.noise_line(losses.noise(_of(runs, s))) for s in largest},
            "lengths": {s: tables.how_long(results[place]) for s, place in largest.items()},
            "warnings": {s: tables.warnings(results[place]) for s, place in largest.items()},
            "fronts": [line for line in map(claims.exponent, counted) if line],
            "claims": claims.claims(results, several_times, counted),
            "refused": [(f.words("setting"), f.name("series"), f.words("reason")) for f in file.refused],
            "data": _data(file),
            "runs": len(runs),
        },
        views=views,
        table=_points(results, times),
        rows=len(runs),
    )


def _of(runs: Sequence[TrainingRun], setting: str) -> list[TrainingRun]:
    return [run for run in runs if run.place.setting == setting]


def _in_order(some: Sequence[fronts.Front], like: Sequence[fronts.Front]) -> list[fronts.Front]:
    by_name = {(f.setting, f.series): f for f in some}
    return [by_name[f.setting, f.series] for f in like]


def _with_tables(views: Sequence[View], results: Mapping[TrainingPlace, Sequence[Result]], times: Times) -> list[View]:
    """With the table of its place in each view's content."""
    by_name = {(place.setting, str(place.width)): several for place, several in results.items()}
    found = []
    for view in views:
        several = by_name[view.choices["Task"], view.choices["Width"]]
        content = {"table": tables.table(several, times), "length": tables.how_long(several)}
        found.append(replace(view, content={**content, "warnings": tables.warnings(several)}))
    return found


def _data(file: File) -> list[tuple[str, str]]:
    """Each data set with its hash and licence, in words."""
    found = file.setup.values.get("data", {})
    lines = []
    for name, facts in found.items() if isinstance(found, dict) else []:
        facts = facts if isinstance(facts, dict) else {}
        parts = [str(facts.get("data_note") or "")]
        parts += [f"SHA-256 {str(facts['data_sha256'])[:16]}"] if facts.get("data_sha256") else []
        parts += [f"licence {facts['licence']}"] if facts.get("licence") else []
        lines.append((printable(str(name)), printable("; ".join(part for part in parts if part))))
    return lines


def _points(results: Mapping[TrainingPlace, Sequence[Result]], times: Times) -> list[dict[str, Any]]:
    """Tidy: one line for every point of every curve."""
    return [
        {
            "setting": run.place.setting, "width": run.place.width, "series": run.series, "structure": run.structure,
            "control": run.control, "budget": run.budget or "", "start": run.start, "seed": run.seed, "lr": run.lr,
            "step": step, "tokens": step * run.tokens, "loss": loss, "end": (step, loss) == run.curve[-1],
            "train_flops": step * run.tokens * run.train_flops,
            "executed_train_flops": step * run.tokens * run.executed,
            "seconds": "" if seconds is None else step * seconds, "params": run.params, **run.shares,
            "diverged": run.reason or "",
        }
        for place, several in results.items()
        for result in several
        for run in result.runs
        for seconds in [step_seconds(place, run.series, run.structure, times)]
        for step, loss in run.curve
    ]  # fmt: skip
