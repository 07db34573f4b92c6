"""Sections of the page beside the sweep's: what a file of another kind says, in sentences, charts and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files import cells
from bench.files.rows import Run
from bench.files.vocabulary import VERSIONS
from bench.report.drawing import words
from bench.report.drawing.plot import Chart, Figure
from bench.report.drawing.style import Style


@dataclass(frozen=True)
class PageCell:
    """What stands in a cell: words, in small what is to be said of them, and what a sorted column goes by."""

    text: str
    small: str = ""
    value: float | None = None
    look: Style | None = None
    strong: bool = False


@dataclass(frozen=True)
class PageTable:
    """Lines of cells; the first cell of a line names it. `fold`: what stands on the fold that hides it."""

    caption: str
    headings: Sequence[str]
    lines: Sequence[Sequence[PageCell | str]]
    fold: str = ""

    @property
    def cells(self) -> list[list[PageCell]]:
        return [[PageCell(cell) if isinstance(cell, str) else cell for cell in line] for line in self.lines]


@dataclass(frozen=True)
class Sheet:
    """What a reader sees at once: one of several, found by its answers to the section's questions."""

    said: Sequence[str] = ()
    warnings: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[PageTable] = ()
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One file's part of the page: `sheets` to choose from, then what stands below all of them.

    `title` is that of its tab, which files of a kind share; `of` tells it from the others there.
    """

    id: str
    title: str
    of: str
    lead: str
    run: Run
    sheets: Sequence[Sheet]
    below: Sheet = Sheet()
    table: Sequence[Mapping[str, Any]] = ()  # what ID.csv holds: all have the same keys
    figure: Figure | None = None  # what --figures draws of it

    @property
    def pickers(self) -> dict[str, list[str]]:
        """The questions that sheets differ in, with their answers."""
        asked = dict.fromkeys(question for sheet in self.sheets for question in sheet.choices)
        answers = {q: list(dict.fromkeys(s.choices[q] for s in self.sheets if q in s.choices)) for q in asked}
        return {question: given for question, given in answers.items() if len(given) > 1}

    @property
    def charts(self) -> list[Chart]:
        return [chart for sheet in (*self.sheets, self.below) for chart in sheet.charts]

    def write(self, folder: Path) -> None:
        """Write ID.csv, where there is one."""
        if self.table:
            cells.write(folder / f"{self.id}.csv", list(self.table[0]), (line.values() for line in self.table))


def tabs(sections: Sequence[Section]) -> dict[str, list[Section]]:
    """The sections of each tab, under its title."""
    found: dict[str, list[Section]] = {}
    for section in sections:
        found.setdefault(section.title, []).append(section)
    return found


def titled(section: Section, among: Sequence[Section]) -> str:
    """What tells a section from the others: its title, with more where several have it."""
    return section.title if len(tabs(among)[section.title]) == 1 else f"{section.title}: {section.of}"


def numbered(id: str, number: int) -> str:
    """An id that tells a file from others of its kind."""
    return f"{id}-{number + 1}" if number else id


def measured(run: Run, devices: Iterable[str] = ("cpu",), dtypes: Iterable[str] = ("float32",)) -> tuple[str, str]:
    """Two lines: where, when and with what a run measured."""
    machine = run.machine
    processor = machine["gpu"] if list(devices) == ["cuda"] else machine["cpu"]
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if name != "pytest_benchmark")
    complete = "" if run.complete else " The run is not complete: rows are missing."
    return (
        f"{processor}; {', '.join([*devices, *dtypes])}, {words.threads(int(machine['threads']))}, host clock; "
        f"allocator {machine['allocator']}; foreign load {run.facts['foreign load']}.",
        f"{versions}; {run.datetime[:10]}, commit {machine['commit']}.{complete}",
    )
