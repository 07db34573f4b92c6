"""`python -m bench report`: results drawn as one self-contained page, static figures and tidy CSV.

Reads results files only; what drew them, and what they measure, need not be installed.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from bench.files import kinds
from bench.files.fields import load
from bench.files.rows import Results, join, parse
from bench.report import page
from bench.report.drawing import figures
from bench.report.drawing.sections import Section
from bench.report.drawing.views import View
from bench.report.others import models, modules, search, widths
from bench.report.sweep import backends, curves, memory, panels, pareto, rooflines, tables, winners
from bench.report.sweep.panels import Panel
from bench.report.training import section as training

# of files beside the sweep's
KINDS = {
    kinds.MINILM: models.section,
    kinds.COORDINATES: widths.section,
    kinds.TRAINING: training.section,
    kinds.SEARCH: search.section,
    kinds.FEED_FORWARD: modules.feed_forward,
    kinds.DECODER: modules.decoders,
}


def read_all(paths: Sequence[Path]) -> tuple[Results, list[Section]]:
    """What the sweep's files hold, and a section for each file of another kind, in the order of the kinds.

    Raises:
        BadResults: a file is missing, broken or foreign, or a field of it is missing or impossible.
    """
    sweeps, others = [], []
    for path in paths:
        document = load(path)
        if kinds.kind_of(document) is None:
            sweeps.append(parse(str(path), document))
        else:
            others.append(kinds.parse(str(path), document, KINDS))
    results, made = join(sweeps), []
    names = _structures(results).union(*(file.structures for file in others))
    for kind, section in KINDS.items():
        files = [file for file in others if file.kind == kind]
        made += [section(file, number, names) for number, file in enumerate(files)]
    return results, made


def _structures(results: Results) -> set[str]:
    return {row.structure for row in results.rows if not row.control}


def all_views(results: Results, found: Sequence[Panel], structures: Collection[str]) -> list[View]:
    """Every view of the sweep's rows; `structures` are all of the report's, so that each has one look."""
    places = panels.places(results)
    machines = list(dict.fromkeys(place.machine for place in places))
    several = len(machines) > 1
    suffixes = {name: f"-machine-{i + 1}" if several else "" for i, name in enumerate(machines)}
    return [
        *winners.made(found, structures, suffixes),
        *(curves.view(panel, structures, suffixes[panel.machine]) for panel in found),
        *pareto.made(places, structures, suffixes),
        *rooflines.made(places, suffixes),
        *memory.made(found, suffixes),
        *backends.made(places, suffixes),
    ]


def write(results: Results, beside: Sequence[Section], folder: Path) -> str:
    """Write index.html and figures as SVG and PNG, of the sweep also points.csv and refused.csv; say what was written.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = panels.panels(results)
    made = all_views(results, found, _structures(results).union(*(section.structures for section in beside)))
    figures.at_once(write for view in (*made, *beside) for write in view.writing(folder))
    said = [f"{section.title[0].lower()}{section.title[1:]}: {section.points} points" for section in beside]
    if results.runs:
        tables.write_points(results, folder / "points.csv")
        tables.write_refused(results, folder / "refused.csv")
        said.insert(
            0, f"{len(results.rows)} points in {len(found)} panels, {len(results.refusals)} refused; figures and CSV"
        )
        said[0] += " beside it"
    (folder / "index.html").write_text(page.render(results, found, made, beside), encoding="utf-8")
    return f"{folder / 'index.html'}: {'; '.join(said)}"
