"""`python -m bench report`: results as one self-contained page and tidy CSV, and on request as pictures for papers.

Reads results files only; what drew them, and what they measure, need not be installed.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.answers import inputs
from bench.answers.qualities import Qualities, given_or_committed
from bench.files import kinds
from bench.report import page
from bench.report.drawing import plot
from bench.report.drawing.sections import Section, titled
from bench.report.others import models, modules, search, widths
from bench.report.sweep import figures, tables
from bench.report.training import section as training

# of files beside the sweep's
KINDS = {
    kinds.TRAINING: training.section,
    kinds.MINILM: models.section,
    kinds.SEARCH: search.section,
    kinds.COORDINATES: widths.section,
    kinds.FEED_FORWARD: modules.feed_forward,
    kinds.DECODER: modules.decoders,
}
FIGURES = "figures"  # the folder that --figures writes into
PICTURES = (*figures.NAMES, "training", "encoder")


def report(paths: Sequence[Path], folder: Path, pictures: bool = False) -> str:
    """Write index.html and CSV into a folder, with `pictures` also figures/; a line for what was read and written.

    Raises:
        BadFile: a file is missing, broken or foreign, or a field of it is missing or impossible.
        OSError: the folder cannot be made or written to.
    """
    given = inputs.read(paths, KINDS)
    sections = made(given)
    qualities = given_or_committed(given.others)
    text = page.render(given.results, sections, qualities)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(text, encoding="utf-8")
    for name, write in (("points.csv", tables.write_points), ("refused.csv", tables.write_refused)):
        (folder / name).unlink(missing_ok=True)
        if given.results.runs:
            write(given.results, folder / name)
    for kind in KINDS:
        (folder / f"{kind}.csv").unlink(missing_ok=True)
    for section in sections:
        section.write(folder)
    drawn = _pictures(given.results, sections, qualities, folder / FIGURES, pictures)
    rows, refused = len(given.results.rows), len(given.results.refusals)
    said = [f"{rows} points, {refused} refused"] if given.results.runs else []
    said += [titled(section, sections) for section in sections]
    return "\n".join([*given.said, f"{folder / 'index.html'}: {'; '.join(said)}", *drawn])


def made(given: inputs.Inputs) -> list[Section]:
    """A section for each file beside the sweep's, in the order of the kinds, of each the largest file first."""
    found = []
    for kind, section in KINDS.items():
        files = sorted((file for file in given.others if file.kind == kind), key=lambda file: -len(file.rows))
        found += [section(file, i) for i, file in enumerate(files)]
    return found


def _pictures(
    results: inputs.Results, sections: Sequence[Section], qualities: Qualities, folder: Path, wanted: bool
) -> list[str]:
    """Draw the pictures anew, so that none of an earlier report stays."""
    for name in PICTURES:
        for suffix in (".svg", ".png"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    if not wanted:
        return []
    several = [*figures.of_sweep(results, qualities), *(section.figure for section in sections if section.figure)]
    folder.mkdir(exist_ok=True)
    for figure in several:
        for suffix, content in plot.files(figure).items():
            (folder / f"{figure.name}{suffix}").write_bytes(content)
    return [f"{folder}: {', '.join(figure.name for figure in several)} as SVG and PNG"]
