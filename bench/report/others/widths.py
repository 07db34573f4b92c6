"""The section of `bench coordinates`: the sizes of activations after a few steps of training, against width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.files.fields import Fields
from bench.files.kinds import File
from bench.report.drawing import style
from bench.report.drawing.plot import Axis, Chart, Guide, PlotPoint, PlotSeries
from bench.report.drawing.sections import PageCell, PageTable, Section, Sheet, measured, numbered
from structures.reading import BadFile, printable

WAYS = {True: "muP rule", False: "one rate"}
BAND = 2.5  # times the size at the smallest width, or a share of it, that a width should stay within
FAR = 1e3  # how much larger or smaller than at the smallest width the charts show
TITLES = {True: "Rates by the structured muP rule (param_groups)", False: "One rate for all hidden layers"}


@dataclass(frozen=True)
class WidthCurve:
    """One structure with one way to set rates: the last layer's size after the last step, by width."""

    structure: str
    scaled: bool
    sizes: Mapping[int, float | None]  # None: not finite, or zero

    @property
    def relative(self) -> dict[int, float]:
        """Sizes over the one at the smallest width."""
        first = self.sizes[min(self.sizes)]
        return {width: size / first for width, size in self.sizes.items() if size and first}

    @property
    def growth(self) -> float | None:
        """The largest over the smallest size; None where one is not finite."""
        sizes = [size for size in self.sizes.values() if size]
        return max(sizes) / min(sizes) if len(sizes) == len(self.sizes) else None

    @property
    def stays(self) -> bool:
        return all(self.sizes.values()) and all(1 / BAND <= value <= BAND for value in self.relative.values())


def section(file: File, number: int = 0) -> Section:
    """The section of one file; `number` tells it from others of its kind.

    Raises:
        BadFile: a field is missing or impossible.
    """
    lines = sorted(read(file), key=lambda line: (not style.dyad(line.structure), line.structure))
    ways = [scaled for scaled in (True, False) if any(line.scaled == scaled for line in lines)]
    widths = sorted({width for line in lines for width in line.sizes})
    headings = ["Structure", *(f"{WAYS[w]}: {what}" for w in ways for what in ("growth", "in the band"))]
    names = dict.fromkeys(line.structure for line in lines)
    table = [
        [PageCell(name, look=style.look(name)), *(cell for way in ways for cell in _cells(lines, name, way))]
        for name in names
    ]
    refused = [f"{fields.name('structure')} ({fields.words('reason')})" for fields in file.refused]
    return Section(
        id=numbered("widths", number),
        title="Widths",
        of=printable(Path(file.run.file).stem),
        lead="A network that trains alike at every width keeps its activations at one size. Shown is the last hidden "
        f"layer's output after a few steps, over that at width {widths[0]}; lines: within {BAND:g} times either way.",
        run=file.run,
        sheets=[
            Sheet(
                said=measured(file.run),
                charts=[chart([n for n in lines if n.scaled == w], w) for w in ways],
                tables=[PageTable("Growth: the largest over the smallest size of all widths.", headings, table)],
                warnings=[f"Left out: {'; '.join(refused)}."] if refused else [],
            )
        ],
    )


def chart(lines: Sequence[WidthCurve], scaled: bool) -> Chart:
    """Sizes over those at the smallest width; what is further than a factor of 1000 away stands at the edge."""
    widths = sorted({w for line in lines for w in line.sizes})
    lines = sorted(lines, key=lambda line: " " not in line.structure)
    series = [
        PlotSeries(
            line.structure,
            style.look(line.structure),
            [PlotPoint(w, v, _told(line, w)) for w, v in found],
            named=" " not in line.structure,  # a point of a space is one of many
            faint=" " in line.structure,
        )
        for line in lines
        for found in [sorted(line.relative.items())]
    ]
    reached = [v for line in lines for v in line.relative.values() if 1 / FAR <= v <= FAR]
    domain = (min(reached, default=1.0) / 1.2, max(reached, default=1.0) * 1.2)
    domain = (min(domain[0], 1 / BAND / 1.5), max(domain[1], BAND * 1.5))
    band = [Guide([(widths[0], level), (widths[-1], level)], style.COLOURS[1]) for level in (1 / BAND, BAND)]
    height = max(380, 13 * (sum(one.named for one in series) + 1))
    y = Axis("size, of the first width's", "#", domain=domain)
    return Chart(TITLES[scaled], Axis("width", "#", values=widths), y, series, band, height)


def _told(line: WidthCurve, width: int) -> dict[str, str]:
    return {
        "title": line.structure,
        "width": str(width),
        "size": f"{line.sizes[width]:.3g} (root mean square)",
        "times": f"{line.relative[width]:.3g} that at the first width",
    }


def _cells(lines: Sequence[WidthCurve], name: str, scaled: bool) -> list[PageCell]:
    line = next((n for n in lines if (n.structure, n.scaled) == (name, scaled)), None)
    if line is None:
        return [PageCell(""), PageCell("")]
    growth = PageCell(f"{line.growth:.3g}", value=line.growth) if line.growth else PageCell("not finite", value=FAR**4)
    return [growth, PageCell("yes" if line.stays else "no")]


def read(file: File) -> list[WidthCurve]:
    """The last layer after the last step of every structure, each width once."""
    found: dict[tuple[str, bool], dict[int, dict[tuple[int, int], float | None]]] = {}
    for fields in file.rows:
        key = fields.name("structure"), fields.flag("scaled")
        place = int(fields.within("step", 0, 1e6)), int(fields.within("layer", 0, 1e6))
        sizes = found.setdefault(key, {}).setdefault(fields.count("width"), {})
        if place in sizes:
            raise BadFile(f"{fields.where}: width {fields.count('width')}, step {place[0]} stands twice")
        sizes[place] = _size(fields)
    return [
        WidthCurve(name, scaled, {width: sizes[max(sizes)] for width, sizes in sorted(widths.items())})
        for (name, scaled), widths in found.items()
    ]


def _size(fields: Fields) -> float | None:
    """A size, None where it overflowed or is zero: neither has a place on a logarithmic axis."""
    if fields.get("size") is None:
        return None
    size = fields.within("size", 0, 1e38)
    return size if size > 1e-30 else None
