"""The section of `bench search`: what was timed, the fronts, why each survivor survived, and what was rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from bench.files import declared
from bench.files.fields import Fields
from bench.files.kinds import File
from bench.files.rows import Spread
from bench.report.drawing import layout, style, words
from bench.report.drawing.plot import Axis, Chart, Guide, PlotPoint, PlotSeries
from bench.report.drawing.sections import PageCell, PageTable, Section, Sheet, measured, numbered
from bench.report.drawing.style import GREY, Style
from structures.reading import printable

QUALITY = {
    "projection": "distance from the weight (relative, less is better)",
    "training": "loss of the training run (of the targets' variance, less is better)",
}
MEMBER = Style(style.COLOURS[0], style.DOT)
OTHER = Style(GREY, style.DOT, hollow=True)
HEADINGS = ("Structure", "Speed-up", "Quality", "Why it survived", "Parameters", "FLOPs", "omega", "psi", "nu",
            "Sizes or options", "Einsum")  # fmt: skip
TAXONOMY = (
    "Exponents as the width grows: FLOPs / parameters as width^omega, rank as width^psi, FLOPs as width^(1 + nu)."
)


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
    def time(self) -> float:
        return 1 / self.speedup.median

    @property
    def look(self) -> Style:
        return style.look(self.name) if self.named else MEMBER if self.reason else OTHER


def section(file: File, number: int = 0) -> Section:
    """The section of one file; `number` tells it from others of its kind.

    Raises:
        BadFile: a field is missing or impossible.
    """
    rows = sorted((declared.read(CandidateRow, fields) for fields in file.rows), key=lambda row: row.time)
    request = file.setup.inside("request")
    kind = request.choice("quality", ("none", *QUALITY))
    survivors = [row for row in rows if row.reason]
    tables = [
        PageTable("Survivors, the fastest first: no candidate is both faster and better.", HEADINGS, _lines(survivors)),
        PageTable("", HEADINGS, _lines(rows), f"The {len(rows)} candidates that were timed"),
        PageTable("", ("Met the budgets", "Candidates"), _counts(file.setup, "met"), "What met the budgets"),
        PageTable(
            "", ("Rejected because", "Candidates"), _counts(file.setup, "rejected"), "What was rejected, and why"
        ),
    ]
    places = _places(file.setup)
    if places:
        tables.append(
            PageTable(TAXONOMY, ("Stands there", "omega", "psi", "nu"), places, f"{len(places)} places of the taxonomy")
        )
    refused = [f"{fields.name('structure')} ({fields.words('reason')})" for fields in file.refused]
    shape = f"{request.count('in_features')}x{request.count('out_features')}"
    return Section(
        id=numbered("search", number),
        title="Search",
        of=shape,
        lead=f"{_asked(request)}. {file.setup.words('verdict')}",
        run=file.run,
        sheets=[
            Sheet(
                said=[
                    "Blue: members of the space that survived; own markers: registry entries; grey: the others.",
                    *measured(file.run),
                ],
                charts=_charts(rows, kind),
                tables=[table for table in tables if table.lines],
                warnings=[f"Not timed: {'; '.join(refused)}."] if refused else [],
            )
        ],
    )


def _charts(rows: Sequence[CandidateRow], kind: str) -> list[Chart]:
    charts = []
    judged = [row for row in rows if row.quality is not None and row.finished]
    if judged:
        front = [(row.time, row.quality or 0.0) for row in judged if row.reason]
        line = layout.stairs(front)
        x = Axis("time of a call, of dense (paired)", "%", log=False)
        series = [_series(row, PlotPoint(row.time, row.quality or 0.0, _told(row))) for row in judged]
        guides = [Guide(line)] if line else []
        charts.append(
            Chart("Quality against time", x, Axis(QUALITY[kind], "#", log=False), series, guides, 400, beside=True)
        )
    series = [_series(row, PlotPoint(row.flops, row.time, _told(row))) for row in rows]
    ends = [min(min(r.flops, r.time) for r in rows), max(max(r.flops, r.time) for r in rows)]
    equal = Guide([(end, end) for end in ends], strokeDash=(3, 3))
    y = Axis("time of a call, of dense", "%")
    charts.append(Chart("Time against FLOPs", Axis("FLOPs, of dense", "%"), y, series, [equal], 400, beside=True))
    return charts


def _series(row: CandidateRow, point: PlotPoint) -> PlotSeries:
    named = row.named or bool(row.reason)
    return PlotSeries(row.name, row.look, [point], line=False, named=named, faint=not named)


def _told(row: CandidateRow) -> dict[str, str]:
    judged = "quality not measured" if row.quality is None else f"quality {row.quality:.4f}"
    return {
        "title": row.name,
        "sizes": row.title,
        "speed-up": f"{words.ratio(row.speedup.median)} ({words.quartiles(row.speedup)}); {judged}",
        "of dense": f"{words.share(row.params)} of parameters, {words.share(row.flops)} of FLOPs",
    }


def _lines(rows: Sequence[CandidateRow]) -> list[list[PageCell | str]]:
    return [
        [
            PageCell(row.name, "registry" if row.named else row.family, look=row.look),
            PageCell(words.ratio(row.speedup.median), words.quartiles(row.speedup), row.speedup.median),
            PageCell("" if row.quality is None else f"{row.quality:.4f}"),
            row.reason or ("" if row.finished else "left early"),
            PageCell(words.share(row.params), value=row.params),
            PageCell(words.share(row.flops), value=row.flops),
            *(PageCell(f"{value:.2f}") for value in (row.omega, row.psi, row.nu)),
            row.title,
            row.einsum,
        ]
        for row in rows
    ]


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
    where = f"{words.tokens(request.count('tokens'))}, {printable(str(request.get('mode')))}"
    return f"{where}, {printable(str(request.get('dtype')))}: {'; '.join(limits)}"


def _counts(setup: Fields, key: str) -> list[list[PageCell | str]]:
    found = setup.inside(key)
    counts = {printable(name).replace("_", " "): found.within(name, 0, 1e12) for name in found.values}
    return [[name, f"{count:.0f}"] for name, count in sorted(counts.items(), key=lambda pair: -pair[1])]


def _places(setup: Fields) -> list[list[PageCell | str]]:
    """What stands at one point of the taxonomy, to two digits, together; registry entries first."""
    groups: dict[tuple[float, ...], list[tuple[bool, bool, str]]] = {}
    for fields in setup.each("taxonomy"):
        key = tuple(round(fields.within(axis, -1, 9), 2) + 0.0 for axis in ("omega", "psi", "nu"))
        name, kind = fields.name("name"), fields.choice("kind", ("entry", "point"))
        groups.setdefault(key, []).append((kind != "entry", not style.dyad(name), name))
    return [
        [", ".join(name for *_, name in sorted(found)), *(PageCell(f"{value:.2f}", value=value) for value in key)]
        for key, found in sorted(groups.items())
    ]
