"""A view: charts of rows that may be compared, drawn on the page and as static figures alike, with all it says.

Every chart's data are records of one shape: `i`, the row it stands for, and `c`, the id that its look goes by. What is
known of the row is joined to them here for figures and in the page's script for the page, which holds each row once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from bench.report import points, words
from bench.report.charts import Width
from bench.report.figures import CONFIG, VEGALITE
from bench.report.panels import Place
from bench.report.style import Style
from bench.rows import VERSIONS, Row, Run

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

    def specifications(self, width: Width) -> dict[str, dict[str, Any]]:
        """The charts as JSON, without data; unchecked: the schema check takes three times as long."""
        with alt.data_transformers.enable("default", max_rows=None):
            return {name: chart.to_dict(validate=False) for name, chart in self.draw(width).items()}

    def write(self, folder: Path) -> None:
        """Draw the figures as STEM.svg and STEM.png."""
        made = self.draw(FIGURE_WIDTH)
        for stem, names in self.figures.items():
            for kind, content in self.figure([made[name] for name in names]).items():
                (folder / f"{stem}{kind}").write_bytes(content)

    def figure(self, charts: Sequence[Any], caption: Sequence[str] = ()) -> dict[str, bytes]:
        """A figure of some of the charts, with title and caption, by suffix."""
        told = list(caption or self.caption)
        title = alt.TitleParams(self.title, subtitle=told, fontSize=16, subtitleFontSize=11, offset=18)
        with alt.data_transformers.enable("default", max_rows=None):
            together = alt.concat(*charts, columns=self.columns, spacing=24, title=title)
            spec = together.resolve_scale(yOffset="independent", y="independent", x="independent").to_dict()
        spec["datasets"] = spec.get("datasets", {}) | {"rows": self.joined()}
        spec |= {"config": CONFIG, "background": "white", "padding": 16}
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGALITE, allowed_base_urls=[])
        return {".svg": svg.encode("utf-8"), ".png": vl_convert.svg_to_png(svg, scale=1.5)}

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
