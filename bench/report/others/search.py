"""The section of `bench search`: what was timed, the fronts, why each survivor survived, and what was rejected."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import altair as alt

from bench.files import declared
from bench.files.fields import Fields, printable
from bench.files.kinds import File
from bench.files.rows import Spread
from bench.report.drawing import layout, style, words
from bench.report.drawing.figures import Width, encodings
from bench.report.drawing.sections import LABEL_GAP, RECORDS, Charts, Section, looks, measured
from bench.report.drawing.style import GREY, Style

HEIGHT = 400
QUALITY = {
    "projection": "distance from the weight (relative, less is better)",
    "training": "loss of the training run (of the targets' variance, less is better)",
}
MEMBER = Style("#0072B2", style.DOT, style.DASHES[0], 1.4, False)
OTHER = Style(GREY, style.DOT, style.DASHES[0], 1.1, True)
TAXONOMY = {"psi": "The taxonomy: rank against compute", "omega": "The taxonomy: sharing against compute"}
SHOWN = 3  # names in the label of a place of the taxonomy


@dataclass(frozen=True)
class CandidateRow:
    """A candidate that was timed; shares are of dense."""

    name: Annotated[str, declared.Reader(Fields.name), declared.Key("structure")]
    family: declared.Name
    named: declared.Flag
    title: declared.Words
    einsum: Annotated[str, declared.Reader(lambda fields, key: " + ".join(fields.names(key)))]
    params: Annotated[float, declared.Reader(Fields.number), declared.Key("params_share")]
    flops: Annotated[float, declared.Reader(Fields.number), declared.Key("flops_share")]
    omega: Annotated[float, declared.within(-9, 9)]  # at these widths, as psi and nu
    psi: Annotated[float, declared.within(0, 9)]
    nu: Annotated[float, declared.within(-9, 9)]
    speedup: Spread
    backend: declared.Name
    finished: declared.Flag
    quality: Annotated[float, declared.within(0, 1e9)] | None = None
    reason: declared.Words | None = None  # why it survived

    @property
    def exponents(self) -> tuple[float, float, float]:
        return self.omega, self.psi, self.nu

    @property
    def time(self) -> float:
        return 1 / self.speedup.median


@dataclass(frozen=True)
class TaxonomyPoint:
    """A point of the taxonomy with everything that stands there."""

    omega: float
    psi: float
    nu: float
    entries: tuple[str, ...]
    points: tuple[str, ...]


def section(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file; `number` tells it from others of its kind, `structures` are all of the report.

    Raises:
        BadResults: a field is missing or impossible.
    """
    rows = sorted((declared.read(CandidateRow, fields) for fields in file.rows), key=lambda row: row.time)
    request = file.setup.inside("request")
    own = looks({*structures, *(row.name for row in rows if row.named)})
    styles = {_id(i): own[r.name] if r.named else MEMBER if r.reason else OTHER for i, r in enumerate(rows)}
    kind = request.choice("quality", ("none", *QUALITY))
    asked = _asked(request)
    places = _places(file.setup)
    told = (
        f"{asked}. Each point is a structure that was timed; blue: members of the space that survived; markers of "
        "their own: registry entries; grey: the others. Those that left early have their quality after fewer sweeps or "
        "steps.",
        *measured(file.run),
    )
    return Section(
        id=f"search-{number + 1}" if number else "search",
        title=f"A search of the space: {request.count('in_features')} to {request.count('out_features')}, "
        f"{words.tokens(request.count('tokens'))}",
        template="search.html.j2",
        caption=told,
        draw=lambda width: _charts(rows, styles, places, kind, width),
        records=[_record(_id(i), row) for i, row in enumerate(rows)],
        run=file.run,
        structures={*structures, *(row.name for row in rows if row.named)},
        content={
            "asked": asked,
            "verdict": file.setup.words("verdict"),
            "survivors": [(row, styles[_id(i)]) for i, row in enumerate(rows) if row.reason],
            "rows": [(row, styles[_id(i)]) for i, row in enumerate(rows)],
            "quality": QUALITY.get(kind),
            "rejected": _counts(file.setup, "rejected"),
            "met": _counts(file.setup, "met"),
            "places": places,
            "refused": [(fields.name("structure"), fields.words("reason")) for fields in file.refused],
        },
    )


# -- charts


def _charts(
    rows: Sequence[CandidateRow], styles: Mapping[str, Style], places: Sequence[TaxonomyPoint], kind: str, width: Width
) -> Charts:
    charts = {}
    if any(row.quality is not None for row in rows):
        charts["Quality against time"] = _front(rows, styles, width, kind)
    charts["Time against FLOPs"] = _times(rows, styles, width)
    if places:
        charts |= {title: _taxonomy(places, width, axis) for axis, title in TAXONOMY.items()}
    return charts


def _front(rows: Sequence[CandidateRow], styles: Mapping[str, Style], width: Width, kind: str) -> alt.LayerChart:
    kept = [row for row in rows if row.finished and row.quality is not None]
    judged = [row for row in rows if row.quality is not None]
    x_scale = _scale([row.time for row in judged], "linear")
    y_scale = _scale([row.quality or 0.0 for row in judged], "linear")
    x = alt.X("time:Q", scale=x_scale, axis=alt.Axis(format=".0%", title="time of a call, of dense (paired)"))
    y = alt.Y("quality:Q", scale=y_scale, axis=alt.Axis(title=QUALITY[kind]))
    survivors = sorted((row for row in kept if row.reason), key=lambda row: row.time)
    steps = alt.Chart(alt.InlineData([{"time": row.time, "quality": row.quality} for row in survivors]))
    line = steps.mark_line(interpolate="step-after", color=GREY, strokeWidth=1.3, opacity=0.7, aria=False)
    named = {row.name: row for row in [*survivors, *(row for row in kept if row.named)]}
    plot = _Plot("Quality against time", "quality", "datum.quality !== null", x, y, y_scale, named)
    return _layered(plot, [line.encode(x=x, y=y)], styles, width)


def _times(rows: Sequence[CandidateRow], styles: Mapping[str, Style], width: Width) -> alt.LayerChart:
    ends = [min(min(r.flops, r.time) for r in rows) * 0.9, max(max(r.flops, r.time) for r in rows) * 1.1]
    x_scale = alt.Scale(type="log", domain=layout.limits([r.flops for r in rows], 1.12), nice=False)
    y_scale = alt.Scale(type="log", domain=layout.limits([r.time for r in rows] + [1.0], 1.12), nice=False, clamp=True)
    x_ticks = layout.ticks(*x_scale.domain)
    y_ticks = layout.ticks(*y_scale.domain)
    x = alt.X("flops:Q", scale=x_scale, axis=alt.Axis(format=".2~%", title="FLOPs, of dense", values=x_ticks))
    y = alt.Y("time:Q", scale=y_scale, axis=alt.Axis(format=".2~%", title="time of a call, of dense", values=y_ticks))
    equal = alt.Chart(alt.InlineData([{"flops": end, "time": end} for end in ends]))
    line = equal.mark_line(color=GREY, strokeDash=[3, 3], strokeWidth=1, clip=True, aria=False).encode(x=x, y=y)
    dense = alt.Chart(alt.InlineData([{"time": 1.0}])).mark_rule(strokeWidth=1.4, aria=False).encode(y=y)
    named = {row.name: row for row in rows if row.named or row.reason}
    return _layered(_Plot("Time against FLOPs", "time", "true", x, y, y_scale, named), [line, dense], styles, width)


@dataclass(frozen=True)
class _Plot:
    """A chart of candidates: of those that `kept` keeps, `field` against x; `named` have their names beside it."""

    name: str
    field: str
    kept: str
    x: alt.X
    y: alt.Y
    scale: alt.Scale
    named: Mapping[str, CandidateRow]


def _layered(plot: _Plot, below: list[Any], styles: Mapping[str, Style], width: Width) -> alt.LayerChart:
    """Points over `below`, and beside the plot the names of some, at the heights of their points or near them."""
    look, x, y, name = encodings(styles), plot.x, plot.y, plot.name
    base = alt.Chart(RECORDS).transform_filter(plot.kept)
    points = base.mark_point(size=46, strokeWidth=1.3, opacity=0.95, clip=True).encode(
        x=x, y=y, color=look["color"], shape=look["shape"], fill=look["fill"], tooltip=_tooltip()
    )
    labels = _labels(plot.named, plot.field, plot.scale)
    texts = alt.Chart(alt.InlineData(labels))
    edge = alt.value("width")
    leaders = texts.mark_rule(strokeWidth=0.6, x2Offset=8, color=GREY, opacity=0.6, aria=False)
    leaders = leaders.encode(x=x, y=y, x2=edge, y2="at")
    written = texts.mark_text(align="left", xOffset=11, limit=150, fontSize=10.5, aria=False)
    written = written.encode(x=edge, y=alt.Y("at:Q", scale=plot.scale), text="label:N")
    height = max(HEIGHT, LABEL_GAP * (len(labels) + 1))
    return alt.LayerChart(
        layer=[*below, leaders, points, written], width=width, height=height, title=name, description=f"{name}."
    )


def _labels(named: Mapping[str, CandidateRow], field: str, scale: alt.Scale) -> list[dict[str, Any]]:
    low, high = scale.domain
    height = max(HEIGHT, LABEL_GAP * (len(named) + 1))
    values = {name: row.time if field == "time" else row.quality or 0.0 for name, row in named.items()}
    values = {name: min(max(value, low), high) for name, value in values.items()}
    if field == "time":
        placed = layout.beside(values, [low, high], height, LABEL_GAP)
    else:
        span = high - low
        pixels = layout.apart({n: (high - v) / span * height for n, v in values.items()}, LABEL_GAP, height)
        placed = {n: high - pixel / height * span for n, pixel in pixels.items()}
    return [
        {"label": n, "time": row.time, "flops": row.flops, "quality": row.quality, "at": placed[n]}
        for n, row in named.items()
    ]


def _scale(values: Sequence[float], kind: str) -> alt.Scale:
    low, high = min(values), max(values)
    pad = (high - low or high or 1.0) * 0.06
    return alt.Scale(type=kind, domain=[max(0.0, low - pad), high + pad], nice=False)


def _taxonomy(places: Sequence[TaxonomyPoint], width: Width, axis: str) -> alt.LayerChart:
    """One exponent against nu; what stands at one point of this plane has one mark."""
    groups: dict[tuple[float, float], list[TaxonomyPoint]] = {}
    for place in places:
        groups.setdefault((place.nu, getattr(place, axis)), []).append(place)
    values = []
    for (nu, height), some in groups.items():
        flat = [[n for p in some for n in p.entries], [n for p in some for n in p.points]]
        told = {"entries": ", ".join(flat[0]) or "none", "points": ", ".join(flat[1]) or "none"}
        label = _few([*flat[0], *(name.rpartition(" ")[2] for name in flat[1])])
        values.append({"nu": nu, axis: height, "kind": "entry" if flat[0] else "point", "label": label, **told})
    x = alt.X("nu:Q", scale=alt.Scale(domain=[0, 1.25], nice=False), axis=alt.Axis(title="nu: FLOPs as width^(1 + nu)"))
    title = "psi: rank as width^psi" if axis == "psi" else "omega: FLOPs / parameters as width^omega"
    ticks = [0, 0.25, 0.5, 0.75, 1]
    y = alt.Y(f"{axis}:Q", scale=alt.Scale(domain=[-0.04, 1.4 if axis == "psi" else 0.95], nice=False),
              axis=alt.Axis(title=title, values=ticks, format=".2~f"))  # fmt: skip
    base = alt.Chart(alt.InlineData(values))
    tooltip = [alt.Tooltip(f"{f}:N", title=f) for f in ("entries", "points", axis, "nu")]
    marks = [
        base.transform_filter(f"datum.kind === '{kind}'")
        .mark_point(filled=True, size=80, opacity=0.9, shape=shape, color=colour)
        .encode(x=x, y=y, tooltip=tooltip)
        for kind, shape, colour in (("entry", "square", style.DYAD), ("point", "circle", style.COLOURS[0]))
    ]
    text = base.mark_text(align="left", angle=305, dx=8, dy=-3, fontSize=10, limit=190, aria=False)
    return alt.LayerChart(
        layer=[*marks, text.encode(x=x, y=y, text="label:N")], width=width, height=HEIGHT, title=TAXONOMY[axis],
        description=f"{TAXONOMY[axis]}; squares: registry entries stand there; circles: named points alone.",
    )  # fmt: skip


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _tooltip() -> list[alt.Tooltip]:
    titles = {"label": "structure", "sizes": "sizes or options", "times": "speed-up", "costs": "of dense",
              "placed": "omega, psi, nu here", "judged": "quality"}  # fmt: skip
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _record(id: str, row: CandidateRow) -> dict[str, Any]:
    return {
        "c": id,
        "label": row.name,
        "time": row.time,
        "flops": row.flops,
        "quality": row.quality,
        "sizes": row.title,
        "times": f"{words.ratio(row.speedup.median)} ({words.quartiles(row.speedup)})",
        "costs": f"{words.share(row.params)} of parameters, {words.share(row.flops)} of FLOPs",
        "placed": ", ".join(f"{value:.2f}" for value in row.exponents),
        "judged": "not measured" if row.quality is None else f"{row.quality:.4f}",
    }


def _id(i: int) -> str:
    return f"s{i}"


# -- reading


def _asked(request: Fields) -> str:
    limits = []
    for key, word in (("params", "parameters"), ("flops", "FLOPs")):
        found = request.inside(key)
        limits.append(
            f"{words.share(found.within('low', 0, 9))} to {words.share(found.number('high'))} of dense {word}"
        )
    for key, word in (("omega", "omega at most"), ("memory", "memory at most"), ("time", "time at most")):
        if key in request:
            limits.append(f"{word} {request.within(key, 0, 99):g}")
    rank = request.within("rank", 0, 1)
    limits += [f"rank at least {words.share(rank)} of full"] if rank else []
    kind = printable(str(request.get("quality")))
    limits.append("ranked by time alone" if kind == "none" else f"ranked by time and {kind}")
    return f"{printable(str(request.get('mode')))}, {printable(str(request.get('dtype')))}: {'; '.join(limits)}"


def _counts(setup: Fields, key: str) -> list[tuple[str, int]]:
    found = setup.inside(key)
    counts = {printable(name): found.within(name, 0, 1e12) for name in found.values}
    return sorted(((name, int(count)) for name, count in counts.items()), key=lambda pair: -pair[1])


def _places(setup: Fields) -> list[TaxonomyPoint]:
    """What stands at one point of the taxonomy, to two digits, together."""
    groups: dict[tuple[float, float, float], dict[str, list[str]]] = {}
    for fields in setup.each("taxonomy"):
        key = tuple(round(fields.within(axis, -1, 9), 2) + 0.0 for axis in ("omega", "psi", "nu"))
        kinds = groups.setdefault(key, {"entry": [], "point": []})  # type: ignore[arg-type]
        kinds[fields.choice("kind", ("entry", "point"))].append(fields.name("name"))
    for kinds in groups.values():
        kinds["entry"].sort(key=lambda name: (name != "dense", not name.startswith("dyad"), name))
    return [TaxonomyPoint(*key, tuple(kinds["entry"]), tuple(kinds["point"])) for key, kinds in sorted(groups.items())]
