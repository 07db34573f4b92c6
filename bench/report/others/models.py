"""The section of `bench minilm`: a pretrained encoder's feed-forward layers converted, and what is left of it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bench.answers import conversions
from bench.answers.conversions import ConversionRow, Way
from bench.files import declared
from bench.files.fields import printable
from bench.files.kinds import File
from bench.files.rows import Spread
from bench.report.drawing import layout, words
from bench.report.drawing.figures import Width, encodings
from bench.report.drawing.sections import (
    CONTROL,
    DENSE,
    LABEL_GAP,
    RECORDS,
    Charts,
    Section,
    filled,
    looks,
    measured,
)
from bench.report.drawing.style import GREY, Style

NEAREST = {"plain": "weights", "aware": "outputs", "sequential": "outputs, in order", "control": "control"}
HEIGHT = 420
COLUMN = 0.14  # of dense's parameters: shares this far apart are named in one column
IN_ORDER = " *"  # in a chart's names
AXES = {
    "share": "parameters of the feed-forward layers, of dense",
    "time": "time per sentence of the whole encoder, of dense (paired)",
}
AGREEMENT = "Agreement of embeddings (mean cosine)"


@dataclass(frozen=True)
class _Refusal:
    structure: declared.Name
    budget: declared.Budget
    reason: declared.Words
    way: Way | None = None


def section(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file; `number` tells it from others of its kind, `structures` are all of the report.

    Raises:
        BadResults: a field is missing or impossible.
    """
    rows = sorted(map(conversions.read, file.rows), key=lambda row: (-row.cosine, row.structure))
    refused = [declared.read(_Refusal, fields) for fields in file.refused]
    setup = {key: printable(str(value)) for key, value in file.setup.values.items()}
    structures = {*structures, *file.structures}
    own = looks(structures)
    styles = {_id(i): _style(row, own) for i, row in enumerate(rows)}
    told = (
        f"{setup.get('model', 'model not stated')}: {setup.get('held_out_sentences', '?')} held-out sentences "
        f"({setup.get('held_out_tokens', '?')} tokens), {setup.get('fit_sentences', '?')} others to fit on.",
        "Filled: nearest in outputs (activation-aware; *: in order, each layer on what those before it hand on); "
        "hollow: nearest in weights; grey line: best so far. "
        "Bars: quartiles.",
        *measured(file.run),
    )
    return Section(
        id=f"encoder-{number + 1}" if number else "encoder",
        title="A pretrained encoder, converted",
        template="models.html.j2",
        caption=told,
        draw=lambda width: _charts(rows, styles, width),
        records=[_record(_id(i), row) for i, row in enumerate(rows)],
        run=file.run,
        structures=structures,
        content={
            "rows": [(row, styles[_id(i)]) for i, row in enumerate(rows)],
            "refused": refused,
            "setup": setup,
            "best": _best(rows),
            "options": _options,
            "nearest": NEAREST,
        },
    )


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats at a smaller or equal cost, by cost: (cost, quality) pairs."""
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[i][1] > points[found[-1]][1]:
            found.append(i)
    return found


def _best(rows: Sequence[ConversionRow]) -> dict[str, list[ConversionRow]]:
    """For each share asked for, the rows with the best agreement, of different structures."""
    best: dict[str, list[ConversionRow]] = {}
    for row in rows:
        kept = best.setdefault(row.budget or "", [])
        if row.way != "control" and len(kept) < 3 and row.structure not in [other.structure for other in kept]:
            kept.append(row)
    order = sorted((budget for budget in best if budget), key=lambda budget: -float(budget.partition("=")[2]))
    return {budget: best[budget] for budget in order}


# -- charts


def _charts(rows: Sequence[ConversionRow], styles: Mapping[str, Style], width: Width) -> Charts:
    low = min(0.0, *(row.cosine for row in rows))
    y = alt.Scale(domain=[max(-1.0, math.floor(low * 10) / 10), 1.04], nice=False)
    return {
        f"{AGREEMENT} against parameters": _chart(rows, styles, width, y, "share", _beside(rows)),
        f"{AGREEMENT} against time": _chart(rows, styles, width, y, "time", _on_front(rows)),
    }


def _chart(
    rows: Sequence[ConversionRow],
    styles: Mapping[str, Style],
    width: Width,
    y_scale: alt.Scale,
    field: str,
    labels: list[dict[str, Any]],
) -> alt.LayerChart:
    most = max((row.feed_forward_share if field == "share" else row.time[2]) for row in rows)
    scale = alt.Scale(domain=[0, max(1.0, most) * 1.08], nice=False)
    axis = alt.Axis(format=".0%", title=AXES[field], tickCount=6)
    x, y = alt.X(f"{field}:Q", scale=scale, axis=axis), alt.Y("cosine:Q", scale=y_scale, axis=alt.Axis(title=None))
    look = encodings(styles)
    base = alt.Chart(RECORDS)
    ranked = [rows[i] for i in front([(_x(row, field), row.cosine) for row in rows])]
    steps = alt.Chart(alt.InlineData([{field: _x(row, field), "cosine": row.cosine} for row in ranked]))
    line = steps.mark_line(interpolate="step-after", color=GREY, strokeWidth=1.4, opacity=0.7, aria=False)
    bars = base.mark_rule(strokeWidth=1, aria=False)
    bars = bars.encode(x=alt.X("time_low:Q", scale=scale), x2="time_high", y=y, color=look["color"])
    points = base.mark_point(size=58, strokeWidth=1.4, opacity=1).encode(
        x=x, y=y, color=look["color"], shape=look["shape"], fill=look["fill"], tooltip=_tooltip()
    )
    named = alt.Chart(alt.InlineData(labels))
    # right of a column; left of the front against time, above which nothing lies
    side = 1 if field == "share" else -1
    align: Any = "left" if side > 0 else "right"
    text = named.mark_text(align=align, dx=9 * side, dy=-6, limit=130, fontSize=10.5, aria=False)
    text = text.encode(x=alt.X("at:Q", scale=scale), y=alt.Y("height:Q", scale=y_scale), text="label:N")
    leaders = named.mark_rule(strokeWidth=0.6, color=GREY, x2Offset=7 * side, opacity=0.7, aria=False)
    leaders = leaders.encode(x=x, y=y, x2="at", y2="height")
    layers = [line.encode(x=x, y=y), *([bars] if field == "time" else []), leaders, points, text]
    name = f"{AGREEMENT} against {AXES[field].split()[0]}"
    return alt.LayerChart(layer=layers, width=width, height=HEIGHT, title=name, description=f"{name}: {AXES[field]}.")


def _x(row: ConversionRow, field: str) -> float:
    return row.feed_forward_share if field == "share" else row.time[0]


def _beside(rows: Sequence[ConversionRow]) -> list[dict[str, Any]]:
    """Labels right of each column of about equal shares: each structure's best, at the height of its point or near."""
    labels: list[dict[str, Any]] = []
    columns: dict[str, list[ConversionRow]] = {}
    shares = {row.budget: _asked(row) for row in rows if row.budget}
    for row in rows:
        near = min(shares, key=lambda budget: abs(shares[budget] - row.feed_forward_share), default="")
        inside = near and abs(shares[near] - row.feed_forward_share) <= COLUMN
        columns.setdefault(row.budget or (near if inside else f"{row.feed_forward_share:.2f}"), []).append(row)
    for column in columns.values():
        best = {row.structure: row for row in reversed(column) if row.way == "plain"}
        best |= {row.structure: row for row in reversed(column) if row.way != "plain"}
        named = {_name(row): row for row in best.values()}
        labels += _labels(named, "share", max(row.feed_forward_share for row in best.values()))
    return labels


def _name(row: ConversionRow) -> str:
    return f"{row.structure}{IN_ORDER}" if row.way == "sequential" else row.structure


def _on_front(rows: Sequence[ConversionRow]) -> list[dict[str, Any]]:
    ranked = [rows[i] for i in front([(row.time[0], row.cosine) for row in rows])]
    controls = [row for row in rows if row.way == "control" and row not in ranked]
    named = {f"{_name(row)}{f' {words.share(_asked(row))}' if row.budget else ''}": row for row in ranked + controls}
    return _labels(named, "time")


def _asked(row: ConversionRow) -> float:
    return float((row.budget or "=1").partition("=")[2])


def _labels(named: Mapping[str, ConversionRow], field: str, at: float | None = None) -> list[dict[str, Any]]:
    gap = LABEL_GAP / HEIGHT * 1.1  # in units of the axis
    placed = layout.apart({name: 1.02 - row.cosine for name, row in named.items()}, gap, 2.0)
    return [
        {
            "label": name,
            field: _x(row, field),
            "cosine": row.cosine,
            "at": _x(row, field) if at is None else at,
            "height": 1.02 - placed[name],
        }
        for name, row in named.items()
    ]


def _tooltip() -> list[alt.Tooltip]:
    titles = {"label": "structure", "way": "nearest in", "agreement": "agreement", "errors": "errors"}
    titles |= {"shares": "parameters", "times": "time", "fitted": "projected"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _record(id: str, row: ConversionRow) -> dict[str, Any]:
    middle, low, high = row.time
    return {
        "c": id,
        "label": row.structure,
        "share": row.feed_forward_share,
        "time": middle,
        "time_low": low,
        "time_high": high,
        "cosine": row.cosine,
        "way": NEAREST[row.way],
        "agreement": f"cosine {row.cosine:.3f}, same nearest neighbour {row.neighbour:.1%}",
        "errors": f"weights {row.weight_error:.3f}, held-out outputs {row.output_error:.3f}",
        "shares": f"{words.share(row.feed_forward_share)} of the feed-forward layers"
        if row.feed_forward_share
        else "no feed-forward layers",
        "times": f"{words.prefixed(row.seconds, 's')} a sentence, {_faster(row.speedup)}",
        "fitted": f"in {row.projection_seconds:.1f} s{', stopped early' if row.limited else ''}",
    }


def _faster(speedup: Spread | None) -> str:
    if speedup is None:
        return "the baseline"
    return f"speed-up over dense {words.ratio(speedup.median)} ({words.quartiles(speedup)})"


def _id(i: int) -> str:
    return f"p{i}"


def _style(row: ConversionRow, own: Mapping[str, Style]) -> Style:
    if row.way == "control":
        return DENSE if row.feed_forward_params else CONTROL
    return filled(own[row.structure], row.way != "plain")


def _options(row: ConversionRow) -> str:
    """`n_blocks=4`, or by shape where these differ."""
    texts = {
        shape: ", ".join(f"{key}={value}" for key, value in chosen.items()) if isinstance(chosen, dict) else str(chosen)
        for shape, chosen in row.options.items()
    }
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "")
    return "; ".join(f"{text} at {shape}" for shape, text in texts.items())
