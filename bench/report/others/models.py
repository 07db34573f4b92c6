"""The section of `bench minilm`: a pretrained encoder's feed-forward layers converted, and what is left of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.answers import conversions
from bench.answers.conversions import ConversionRow, Tuned, TunedPoint, Way
from bench.files import declared
from bench.files.kinds import File
from bench.files.vocabulary import NARROW
from bench.report.drawing import layout, style, words
from bench.report.drawing.plot import Axis, Chart, Figure, Guide, PlotPoint, PlotSeries
from bench.report.drawing.sections import PageCell, PageTable, Section, Sheet, measured, numbered
from bench.report.drawing.style import Style
from structures.reading import printable

NEAREST = {"plain": "weights", "aware": "outputs", "sequential": "outputs, in order", "control": "control"}
HEADINGS = ("Structure", "Nearest in", "Cosine", "Same neighbour", "Speed-up", "Feed-forward of dense", "Weight error",
            "Output error", "Time a sentence", "Projected in", "Options", "Flags")  # fmt: skip
TITLE = "Agreement of embeddings against time"
RECOVERED = "Agreement recovered by training"


@dataclass(frozen=True)
class LeftOut:
    structure: declared.Name
    budget: declared.Budget
    reason: declared.Words
    way: Way | None = None


def section(file: File, number: int = 0) -> Section:
    """The section of one file; `number` tells it from others of its kind.

    Raises:
        BadFile: a field is missing or impossible.
    """
    rows = read(file)
    setup = {key: printable(str(value)) for key, value in file.setup.values.items()}
    told = (
        f"{setup.get('model', 'model not stated')}: {setup.get('held_out_sentences', '?')} held-out sentences, "
        f"{setup.get('fit_sentences', '?')} others to fit on.",
        "Filled: nearest in outputs; hollow: nearest in weights. Line: the most for at most the time. Bars: quartiles.",
        *measured(file.run),
    )
    drawn = [chart(rows), *recovered(rows)]
    best: dict[tuple[str, str | None], ConversionRow] = {}
    for row in rows:
        best.setdefault((row.structure, row.budget), row)
    said = "The best way to each structure at each share, by agreement. Errors are relative, means over the matrices."
    tables = [PageTable(said, HEADINGS, list(map(_line, best.values())))]
    tables.append(PageTable("", HEADINGS, list(map(_line, rows)), f"All {len(rows)} conversions"))
    if tuned(rows):
        said, heads, lines = trained(rows)
        tables.insert(1, PageTable(said, heads, lines))
    refused = left_out(file)
    if refused:
        lines = [
            [r.structure, NEAREST.get(r.way or "", "every way"), words.budget(r.budget), r.reason] for r in refused
        ]
        tables.append(PageTable("", ("Structure", "Nearest in", "At", "Reason"), lines, f"{len(lines)} left out"))
    return Section(
        id=numbered("encoder", number),
        title="Encoder",
        of=f"{file.run.machine['cpu']}, {printable(Path(file.run.file).stem)}",
        lead="The feed-forward matrices of a pretrained encoder are replaced by the nearest structured ones; nothing "
        f"is trained afterwards. Cosine 1 keeps every embedding of held-out sentences. {_best(rows)}",
        run=file.run,
        sheets=[Sheet(said=told, charts=drawn, tables=tables)],
        figure=Figure("encoder", "A pretrained encoder, converted", told, drawn, 1, 560) if not number else None,
    )


def read(file: File) -> list[ConversionRow]:
    """The rows of a file, by agreement."""
    return sorted(map(conversions.read, file.rows), key=lambda row: (-row.cosine, row.structure))


def left_out(file: File) -> list[LeftOut]:
    """The conversions that were not made, with their reasons."""
    return [declared.read(LeftOut, fields) for fields in file.refused]


def chart(rows: Sequence[ConversionRow]) -> Chart:
    """Agreement against time, the front named."""
    front = [rows[i] for i in layout.front([(row.time[0], row.cosine) for row in rows])]
    series = []
    for row in sorted(rows, key=lambda row: row in front or row.way == "control"):
        middle, low, high = row.time
        named = row in front or row.way == "control"
        label = f"{row.structure} {_share(row)}".strip()
        point = PlotPoint(middle, row.cosine, _told(row), left=low, right=high)
        series.append(PlotSeries(label, _look(row), [point], line=False, named=named, faint=not named))
    line = layout.stairs([(row.time[0], row.cosine) for row in front])
    x = Axis("time a sentence of the whole encoder, of dense (paired)", "%", log=False)
    return Chart(TITLE, x, Axis("mean cosine", "#", log=False), series, [Guide(line)], 400, beside=True)


def tuned(rows: Sequence[ConversionRow]) -> list[tuple[ConversionRow, Tuned]]:
    """What was trained after its conversion: share by share, by the agreement that it ended with."""
    found = [(row, row.tuned) for row in rows if row.tuned]
    return sorted(found, key=lambda one: (-float((one[0].budget or "=0").partition("=")[2]), -one[1].curve[-1].cosine))


def recovered(rows: Sequence[ConversionRow]) -> list[Chart]:
    """For each share, agreement against the minutes of training."""
    charts = []
    for budget in dict.fromkeys(row.budget for row, _ in tuned(rows)):
        series = [
            PlotSeries(
                row.structure,
                replace(_look(row), hollow=False),
                [PlotPoint(p.minutes, p.cosine, _told(row) | _point(p)) for p in found.curve],
            )
            for row, found in tuned(rows)
            if row.budget == budget
        ]
        x = Axis("minutes of one core", "#", log=False)
        title = f"{RECOVERED}, {words.budget(budget)}"
        charts.append(Chart(title, x, Axis("mean cosine", "#", log=False), series, height=400))
    return charts


def trained(rows: Sequence[ConversionRow]) -> tuple[str, list[str], list[list[str]]]:
    """The caption, headings and lines of a table of what was trained: agreement after each part of the time."""
    found = tuned(rows)
    marks = max((own.curve for _, own in found), key=len)
    said = (
        f"The converted layers alone, trained for {marks[-1].minutes:.2g} min of one core from where the fit left "
        "them, so that every layer of the encoder hands on what the dense one does on the sentences of the fit; the "
        "rate is the best of short trials. Cosine on held-out sentences, in brackets how often their nearest neighbour "
        "is the same."
    )
    after = [f"{point.minutes:.2g} min" for point in marks]
    lines = []
    for row, own in found:
        at = [agreement(point) for point in own.curve]
        at[-1:-1] = [""] * (len(marks) - len(at))
        where = [row.structure, words.share(row.feed_forward_share), NEAREST[row.way]]
        lines.append([*where, *at, str(own.steps), f"{own.rate:g}"])
    return said, ["structure", "feed-forward parameters, of dense", "nearest in", *after, "steps", "rate"], lines


def agreement(found: ConversionRow | TunedPoint) -> str:
    """The cosine, and in brackets how often the nearest neighbour is the same."""
    return f"{found.cosine:.2f} ({found.neighbour * 100:.0f} %)"


def _point(point: TunedPoint) -> dict[str, str]:
    said = f"cosine {point.cosine:.3f}, same nearest neighbour {point.neighbour:.1%}"
    return {"agreement": f"{said} after {point.minutes:.2g} minutes"}


def _best(rows: Sequence[ConversionRow]) -> str:
    """For each share asked for, the structure with the best agreement."""
    best: dict[str, ConversionRow] = {}
    for row in rows:
        if row.budget and row.way != "control":
            best.setdefault(row.budget, row)
    order = sorted(best.values(), key=lambda row: -row.feed_forward_share)
    return " ".join(f"At {_share(row)} the best is {row.structure}, {row.cosine:.3f}." for row in order)


def _share(row: ConversionRow) -> str:
    return words.share(float(row.budget.partition("=")[2])) if row.budget else ""


def _look(row: ConversionRow) -> Style:
    if row.structure == NARROW:
        return replace(style.look(NARROW, control=True), hollow=row.way == "plain")
    if row.way == "control":
        return style.PLAIN if row.feed_forward_params else style.CONTROL
    return replace(style.look(row.structure), hollow=row.way == "plain")


def _told(row: ConversionRow) -> dict[str, str]:
    share = f"{words.share(row.feed_forward_share)} of the" if row.feed_forward_share else "no"
    return {
        "title": row.structure,
        "nearest in": NEAREST[row.way],
        "agreement": f"cosine {row.cosine:.3f}, same nearest neighbour {row.neighbour:.1%}",
        "cost": f"{words.prefixed(row.seconds, 's')} a sentence, {share} feed-forward parameters",
    }


def _line(row: ConversionRow) -> list[PageCell | str]:
    speed, cell = row.speedup, PageCell("1", value=1.0)
    if speed:
        cell = PageCell(words.ratio(speed.median), words.quartiles(speed), speed.median)
    return [
        PageCell(row.structure, look=_look(row)),
        NEAREST[row.way],
        PageCell(f"{row.cosine:.3f}", value=row.cosine),
        PageCell(f"{row.neighbour * 100:.1f} %", value=row.neighbour),
        cell,
        PageCell(words.share(row.feed_forward_share), value=row.feed_forward_share),
        PageCell(f"{row.weight_error:.3f}", value=row.weight_error),
        PageCell(f"{row.output_error:.3f}", value=row.output_error),
        PageCell(words.prefixed(row.seconds, "s"), value=row.seconds),
        PageCell(f"{row.projection_seconds:.1f} s", "stopped" if row.limited else "", row.projection_seconds),
        _options(row),
        " ".join(row.flags),
    ]


def _options(row: ConversionRow) -> str:
    """`n_blocks=4`, or by shape where these differ."""
    texts = {
        shape: ", ".join(f"{key}={value}" for key, value in chosen.items()) if isinstance(chosen, dict) else str(chosen)
        for shape, chosen in row.options.items()
    }
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "")
    return "; ".join(f"{text} at {shape}" for shape, text in texts.items())
