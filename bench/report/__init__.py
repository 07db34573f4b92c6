"""`python -m bench report`: results drawn as one self-contained page, static figures and tidy CSV.

Reads results files only; what drew them, and what they measure, need not be installed.
"""

from pathlib import Path

from bench.report import page, panels, style, tables
from bench.report.figures import write as write_figures
from bench.rows import Results


def write(results: Results, folder: Path) -> str:
    """Write index.html, a figure per panel as SVG and PNG, points.csv and refused.csv; say in words what was written.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = panels.panels(results)
    structures = sorted({row.structure for row in results.rows if not row.control})
    looks = [style.styles(panel.curves, structures) for panel in found]
    machines = list(dict.fromkeys(panels.machine_names(results.runs).values()))
    figures = []
    for panel, look in zip(found, looks, strict=True):
        stem = panel.slug + (f"-machine-{machines.index(panel.machine) + 1}" if len(machines) > 1 else "")
        figures.append(write_figures(panel, look, page.caption(panel), folder, stem))
    tables.write_points(results, folder / "points.csv")
    tables.write_refused(results, folder / "refused.csv")
    (folder / "index.html").write_text(page.render(results, found, looks, figures), encoding="utf-8")
    return (
        f"{folder / 'index.html'}: {len(results.rows)} points in {len(found)} panels, "
        f"{len(results.refusals)} refused; figures and CSV beside it"
    )
