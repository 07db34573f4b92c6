"""The section of `bench coordinates`: the sizes of activations after a few steps of training, against width."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bench.files.fields import BadResults, Fields, printable
from bench.files.kinds import File
from bench.report.drawing import layout
from bench.report.drawing.figures import Width, edge_labels, encodings
from bench.report.drawing.sections import LABEL_GAP, RECORDS, Section, looks, measured
from bench.report.drawing.style import Style
from bench.report.sweep.charts import LABEL_WIDTH

BAND = 2.5  # times the size at the smallest width, or a share of it, that a width should stay within
FAR = 1e3  # how much larger or smaller than at the smallest width the charts show
TITLES = {
    True: "Learning rates by the structured muP rule (param_groups)",
    False: "One learning rate for all hidden layers",
}


@dataclass(frozen=True)
class WidthCurve:
    """One structure with one way to set rates: the last layer's size after the last step, by width."""

    id: str
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


def section(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file; `number` tells it from others of its kind, `structures` are all of the report.

    Raises:
        BadResults: a field is missing or impossible.
    """
    lines = _lines(file)
    structures = {*structures, *file.structures}
    own = looks(structures)
    styles = {line.id: own[line.structure] for line in lines}
    ways = [scaled for scaled in (True, False) if any(line.scaled == scaled for line in lines)]
    pairs: dict[str, dict[bool, WidthCurve]] = {}
    for line in lines:
        pairs.setdefault(line.structure, {})[line.scaled] = line
    widths = sorted({width for line in lines for width in line.sizes})
    told = (
        "Root mean square of the last hidden layer's output after the last step of training a small network, over that "
        f"at width {widths[0]}. Band: within {BAND:g} times either way.",
        *measured(file.run),
    )
    return Section(
        id=f"widths-{number + 1}" if number else "widths",
        title="Activations as width grows",
        template="widths.html.j2",
        caption=told,
        draw=lambda width: {TITLES[s]: _chart([n for n in lines if n.scaled == s], styles, width, s) for s in ways},
        records=[record for line in lines for record in _records(line)],
        run=file.run,
        structures=structures,
        content={
            "pairs": sorted(pairs.items(), key=lambda pair: (not pair[0].startswith("dyad"), pair[0])),
            "styles": styles,
            "ends": (widths[0], widths[-1]),
            "band": BAND,
            "setup": {key: printable(str(value)) for key, value in file.setup.values.items()},
            "refused": [(fields.name("structure"), fields.words("reason")) for fields in file.refused],
        },
    )


def _chart(lines: Sequence[WidthCurve], styles: Mapping[str, Style], width: Width, scaled: bool) -> alt.LayerChart:
    widths = sorted({w for line in lines for w in line.sizes})
    reached = [value for line in lines for value in line.relative.values() if 1 / FAR <= value <= FAR]
    limits = layout.limits([*reached, BAND * 1.6, 1 / BAND / 1.6], 1.1)
    height = max(380, LABEL_GAP * (len(lines) + 1))
    x_axis = alt.Axis(values=widths, format="d", title="width", labelOverlap="greedy")
    x_scale = alt.Scale(type="log", base=2, domain=layout.limits(widths, 1.06), nice=False)
    x = alt.X("width:Q", scale=x_scale, axis=x_axis)
    y_axis = alt.Axis(values=layout.ticks(*limits), format="~g", title=None)
    y_scale = alt.Scale(type="log", domain=limits, nice=False, clamp=True)
    y, look = alt.Y("relative:Q", scale=y_scale, axis=y_axis), encodings({n.id: styles[n.id] for n in lines})
    band = alt.Chart(alt.InlineData([{"low": 1 / BAND, "high": BAND}]))
    band = band.mark_rect(color="#009E73", opacity=0.13, aria=False)
    kept = alt.Chart(RECORDS).transform_filter(f"datum.scaled === {str(scaled).lower()}")
    drawn = kept.mark_line(aria=False, strokeWidth=1.5)
    points = kept.mark_point(size=44, strokeWidth=1.3, opacity=1)
    shared = {"x": x, "y": y, "color": look["color"]}
    layers = [
        band.encode(y=alt.Y("low:Q", scale=y_scale, axis=y_axis), y2="high"),
        drawn.encode(**shared, strokeDash=look["strokeDash"], detail="c:N"),
        points.encode(**shared, shape=look["shape"], fill=look["fill"], tooltip=_tooltip()),
        *_labels(lines, limits, height, x, y_scale, look),
    ]
    name = TITLES[scaled]
    return alt.LayerChart(layer=layers, width=width, height=height, title=name, description=f"{name}, log-log.")


def _labels(
    lines: Sequence[WidthCurve], limits: list[float], height: int, x: alt.X, y: alt.Scale, look: Mapping[str, Any]
) -> list[alt.Chart]:
    """Each line's marker and name right of the plot, at the height of its last point or near it."""
    last = {line.id: (max(line.relative), line.relative[max(line.relative)]) for line in lines if line.relative}
    ends = {id: min(max(end, limits[0]), limits[1]) for id, (_, end) in last.items()}
    heights = layout.beside(ends, limits, height, LABEL_GAP)
    names = {line.id: line.structure for line in lines}
    values = [
        {"c": id, "label": names[id], "width": width, "end": ends[id], "at": heights[id]}
        for id, (width, _) in last.items()
    ]
    base = alt.Chart(alt.InlineData(values))
    return edge_labels(base, x, alt.Y("end:Q", scale=y), alt.Y("at:Q", scale=y), look, LABEL_WIDTH)


def _records(line: WidthCurve) -> list[dict[str, Any]]:
    return [
        {
            "c": line.id,
            "label": line.structure,
            "scaled": line.scaled,
            "width": width,
            "relative": value,
            "size": f"{line.sizes[width]:.3g}",
            "times": f"{value:.3g}",
        }
        for width, value in line.relative.items()
    ]


def _tooltip() -> list[alt.Tooltip]:
    titles = {"label": "structure", "width": "width", "size": "size (root mean square)", "times": "of the first width"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _lines(file: File) -> list[WidthCurve]:
    """The last layer after the last step of every structure, each width once."""
    found: dict[tuple[str, bool], dict[int, dict[tuple[int, int], float | None]]] = {}
    for fields in file.rows:
        key = fields.name("structure"), fields.flag("scaled")
        place = int(fields.within("step", 0, 1e6)), int(fields.within("layer", 0, 1e6))
        sizes = found.setdefault(key, {}).setdefault(fields.count("width"), {})
        if place in sizes:
            raise BadResults(f"{fields.where}: width {fields.count('width')}, step {place[0]} stands twice")
        sizes[place] = _size(fields)
    return [
        WidthCurve(f"l{i}", name, scaled, {width: sizes[max(sizes)] for width, sizes in sorted(widths.items())})
        for i, ((name, scaled), widths) in enumerate(found.items())
    ]


def _size(fields: Fields) -> float | None:
    """A size, None where it overflowed or is zero: neither has a place on a logarithmic axis."""
    if fields.get("size") is None:
        return None
    size = fields.within("size", 0, 1e38)
    return size if size > 1e-30 else None
