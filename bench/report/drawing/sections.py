"""Sections of the page beside the sweep's: files of other kinds, and charts of named points.

A point's label is a value of its record and its look goes by its id, so no name from a file is part of a specification.
"""

import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import altair as alt

from bench.files.cells import harmless
from bench.files.rows import Run
from bench.files.vocabulary import VERSIONS
from bench.report.drawing import figures, style
from bench.report.drawing.figures import Width
from bench.report.drawing.style import Style
from bench.report.drawing.views import View

RECORDS = alt.NamedData("rows")
LABEL_GAP = 12  # pixels from one label to the next

Charts = Mapping[str, alt.LayerChart]  # by title


@dataclass(frozen=True)
class Section:
    """One heading of the page: its template, its charts with their records, and what the template shows."""

    id: str
    title: str
    template: str
    caption: tuple[str, ...]
    draw: Callable[[Width], Charts]
    records: Sequence[Mapping[str, Any]]
    run: Run
    structures: Collection[str]  # all of the report's, so that each has one look
    content: Mapping[str, Any]
    views: Sequence[View] = ()  # charts that a reader chooses from, under headings of the section
    table: Sequence[Mapping[str, Any]] = ()  # what ID.csv holds: all have the same keys
    rows: int = 0  # of the file, where a section without charts shows them in tables alone

    @property
    def points(self) -> int:
        """How many points of its file it shows."""
        return self.rows or len(self.records)

    @property
    def drawings(self) -> dict[str, Any]:
        """Specifications for the page, as wide as their boxes, with their records."""
        specs = {title: figures.for_page(spec) for title, spec in self.specifications.items()}
        return {"specs": specs, "rows": list(self.records)}

    @cached_property
    def specifications(self) -> dict[str, dict[str, Any]]:
        """The charts as JSON, without data, each as wide as its box."""
        return figures.specifications(lambda: self.draw("container"))

    def write(self, folder: Path) -> None:
        """Draw ID.svg and ID.png, two charts abreast; nothing where the section is a table alone. Views beside them."""
        figures.at_once(self.writing(folder))

    def writing(self, folder: Path) -> list[Callable[[], None]]:
        """What writes all that, one by one, for `figures.at_once`."""
        found = [write for view in self.views for write in view.writing(folder)]
        return [*found, *([partial(self._table, folder)] if self.table else []), *self._figure(folder)]

    def _table(self, folder: Path) -> None:
        with (folder / f"{self.id}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(self.table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: harmless(value) for key, value in line.items()} for line in self.table)

    def _figure(self, folder: Path) -> list[Callable[[], None]]:
        specs = list(self.specifications.values())
        how: dict[str, Any] = {"title": self.title, "caption": self.caption, "columns": 2, "width": 470}

        def write() -> None:
            for kind, content in figures.files(specs, self.records, **how).items():
                (folder / f"{self.id}{kind}").write_bytes(content)

        return [write] if specs else []


def measured(run: Run) -> tuple[str, str]:
    """Two lines for a caption: where, when and with what a run measured."""
    machine = run.machine
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if name != "pytest_benchmark")
    threads = "1 thread" if machine["threads"] == "1" else f"{machine['threads']} threads"
    complete = "" if run.complete else " The run is not complete: rows are missing."
    return (
        f"{machine['cpu']}; cpu, float32, {threads}, host clock, allocator {machine['allocator']}; "
        f"foreign load {run.facts['foreign load']}.",
        f"{versions}; {run.datetime[:10]}, commit {machine['commit']}.{complete}",
    )


def looks(names: Iterable[str]) -> dict[str, Style]:
    """A look for each structure: the one it has in the panels of a sweep of the same structures."""
    return {name: look for name, (_, look) in style.by_name(names).items()}


def filled(look: Style, fill: bool) -> Style:
    return replace(look, hollow=not fill)


CONTROL = Style(style.GREY, style.DOT, style.DASHES[2], 1.1, True)
DENSE = Style("currentColor", style.DOT, style.DASHES[0], 3.2, False)
