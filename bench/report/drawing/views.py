"""A view: charts of rows that may be compared, drawn on the page and as static figures alike, with all it says.

Every chart's data are records of one shape: `i`, the row it stands for, and `c`, the id that its look goes by. What is
known of the row is joined to them here for figures and in the page's script for the page, which holds each row once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bench.files.rows import Row, Run
from bench.files.vocabulary import VERSIONS
from bench.report.drawing import figures, points, words
from bench.report.drawing.curve import Place
from bench.report.drawing.figures import Width
from bench.report.drawing.style import Style

FIGURE_WIDTH = 400  # pixels of each chart in a static figure
COLUMNS = 2


@dataclass(frozen=True)
class View:
    """What a reader sees at once under a heading of the page, and the figure of it."""

    group: str
    slug: str  # unique on the page: its anchor, and its figure's file name
    title: str
    choices: Mapping[str, str]  # the questions a reader finds it by, with its answers
    caption: Sequence[str]
    draw: Callable[[Width], Mapping[str, Any]]  # charts by heading
    rows: Sequence[Row]
    records: Sequence[Mapping[str, Any]]  # `i` counts in `rows`; without rows, each holds all that is known of it
    figures: Mapping[str, Sequence[str]]  # file name's stem -> headings of the charts in it
    legend: Sequence[tuple[str, str, Style]] = ()  # id, label and look, to take out of the charts
    columns: int = COLUMNS
    content: Mapping[str, Any] = field(default_factory=dict)  # for the template

    @property
    def headings(self) -> list[tuple[str, str]]:
        """An anchor for each chart, and its heading."""
        names = [name for some in self.figures.values() for name in some]
        return [(f"{self.slug}.{i + 1}", name) for i, name in enumerate(names)]

    @cached_property
    def specifications(self) -> dict[str, dict[str, Any]]:
        """The charts as JSON, without data, each as wide as its box."""
        return figures.specifications(lambda: self.draw("container"))

    def write(self, folder: Path) -> None:
        """Draw the figures as STEM.svg and STEM.png."""
        figures.at_once(self.writing(folder))

    def writing(self, folder: Path) -> list[Callable[[], None]]:
        """What draws the figures, one by one, for `figures.at_once`."""
        specs = self.specifications

        def write(stem: str, names: Sequence[str]) -> None:
            for kind, content in self.figure([specs[name] for name in names]).items():
                (folder / f"{stem}{kind}").write_bytes(content)

        return [partial(write, stem, names) for stem, names in self.figures.items()]

    def figure(
        self, specs: Sequence[Mapping[str, Any]], caption: Sequence[str] = (), width: float = FIGURE_WIDTH
    ) -> dict[str, bytes]:
        """A figure of charts of these specifications, with title and caption, by suffix."""
        how: dict[str, Any] = {"title": self.title, "caption": caption or self.caption, "columns": self.columns}
        return figures.files(specs, self.joined(), **how, width=width, apart=("yOffset", "y", "x"))

    def joined(self) -> list[dict[str, Any]]:
        """The records with what is known of their rows."""
        if not self.rows:
            return [dict(record) for record in self.records]
        known = [points.record(row) for row in self.rows]
        return [{**known[record["i"]], **record} for record in self.records]


def caption(place: Place, runs: Sequence[Run]) -> list[str]:
    """Two lines under a chart: where, when and with what it was measured."""
    machine = runs[0].machine
    dates = " and ".join(sorted({run.datetime[:10] for run in runs}))
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS)
    threads = "1 thread" if place.threads == 1 else f"{place.threads} threads"
    return [
        f"{place.machine}; {place.device}, {place.dtype}, {threads}, {place.clock} clock, "
        f"weights {machine['weights']}, allocator {machine['allocator']}, TF32 {machine['tf32']}.",
        f"{versions}; {dates}, commit {machine['commit']}.",
    ]


def runs_of(rows: Sequence[Row]) -> list[Run]:
    """The runs that rows come from, each once."""
    return list({id(row.run): row.run for row in rows}.values())


def where(*parts: Any) -> str:
    """A file name's stem of several parts of closed vocabularies."""
    return "-".join(str(part).replace("=", "-").replace(f" {words.TIMES} ", "x").replace(" → ", "x") for part in parts)
