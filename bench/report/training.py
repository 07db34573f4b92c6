"""The section of `bench train`: losses of every structure beside dense's, with their noise, costs and times."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import altair as alt

from bench.fields import BadResults, printable
from bench.report import training_claims, training_rows, training_stats, words
from bench.report.charts import Width
from bench.report.sections import CONTROL, DENSE, RECORDS, Charts, File, Section, encodings, looks, measured
from bench.report.style import GREY, Style
from bench.report.training_rows import Place, Time
from bench.report.training_stats import Result

KIND = "training"
HEIGHT = 320
AXES = {"share": "parameters of the replaced layers, of dense"}


def section(file: File, number: int = 0, structures: Collection[str] = ()) -> Section:
    """The section of one file; `number` tells it from others of its kind, `structures` are all of the report.

    Raises:
        BadResults: a field is missing or impossible, or no run was finished.
    """
    runs, times = training_rows.read(file.rows)
    if not runs:
        raise BadResults(f"{file.run.file}: holds no finished training run; draw it when there is one")
    results = training_stats.results(runs)
    fronts = training_stats.fronts(runs)
    structures = {*structures, *file.structures}
    own = looks(structures)
    records = [record for place, several in results.items() for record in _records(place, several)]
    styles = {r["c"]: _style(r, own) for r in records}
    by_place = {(t.place, t.series): t for t in times}
    told = (
        "Loss on held-out data. Two means are told apart where they differ by more than the noise between seeds, at "
        "95 % for all comparisons of a table together; all else is a tie.",
        *measured(file.run),
    )
    return Section(
        id=f"training-{number + 1}" if number else "training",
        title="Quality after training",
        template="training.html.j2",
        caption=told,
        draw=lambda width: _charts(records, styles, width),
        records=records,
        run=file.run,
        structures=structures,
        content={
            "tables": [(place, [_line(r, by_place) for r in several]) for place, several in results.items()],
            "noise": {p.setting: training_stats.noise([r for r in runs if r.place.setting == p.setting])
                      for p in results},
            "fronts": [line for line in map(training_claims.exponent, fronts) if line],
            "claims": training_claims.claims(results, times, fronts),
            "refused": [(f.words("setting"), f.name("series"), f.words("reason")) for f in file.refused],
            "data": {key: printable(str(value)) for key, value in file.setup.values.get("data", {}).items()},
        },
    )  # fmt: skip


def _line(result: Result, times: Mapping[tuple[Place, str], Time]) -> dict[str, Any]:
    """What a table shows of a series."""
    first = result.first
    time = times.get((first.place, first.series.partition(", ")[0]))
    grammar = [run.grammar for run in result.runs if run.grammar]
    metrics = {
        key: sum(run.metrics[key] for run in result.runs if key in run.metrics) / count
        for key in ("accuracy", "bits_per_byte")
        if (count := sum(key in run.metrics for run in result.runs))
    }
    ranks = "" if result.best is None else f"{result.best}"
    ranks += f" to {result.last}" if result.best != result.last else ""
    share = first.shares["replaced_params_share"]
    return {
        "series": first.series,
        "loss": "diverged" if result.loss is None else f"{result.loss:.4g}",
        "spread": f"{result.low:.4g} to {result.high:.4g}" if result.low != result.high else "",
        "seeds": f"{len(result.runs) - result.diverged}" + (f", {result.diverged} diverged" if result.diverged else ""),
        "beside": "is the measure" if first.structure == "dense" else training_claims.difference(result),
        "ranks": ranks,
        "bits": f"{metrics['bits_per_byte']:.3f}" if "bits_per_byte" in metrics else "",
        "accuracy": f"{metrics['accuracy']:.1%}" if "accuracy" in metrics else "",
        "grammar": f"{grammar[0][0]:.1%} ({grammar[0][1]:.0%} to {grammar[0][2]:.0%})" if grammar else "",
        "replaced": words.share(share) if share else "0",
        "whole": words.share(first.shares["params_share"]),
        "flops": words.prefixed(first.train_flops),
        "executed": words.prefixed(first.executed),
        "lr": f"{first.lr:.2g}{', the end of those tried' if first.rate_at_end else ''}",
        "time": "" if time is None else f"{words.ratio(time.speedup)} ({time.q1:.2f} to {time.q3:.2f})",
        "flags": "" if time is None else " ".join(time.flags),
    }


# -- charts


def _records(place: Place, several: Sequence[Result]) -> list[dict[str, Any]]:
    """A record for each series: its loss, with the range over seeds, and what it costs."""
    found = []
    for result in several:
        if result.loss is None:
            continue
        first = result.first
        found.append(
            {
                "c": f"{first.structure}|{first.control}",
                "place": _title(place),
                "label": first.series,
                "structure": first.structure,
                "control": first.control,
                "loss": result.loss,
                "low": result.low,
                "high": result.high,
                "share": first.shares["replaced_params_share"],
                "train_flops": first.train_flops * first.tokens * first.steps,
                "told": training_claims.difference(result),
            }
        )
    return found


def _title(place: Place) -> str:
    return f"{place.setting}, width {place.width}"


def _charts(records: Sequence[Mapping[str, Any]], styles: Mapping[str, Style], width: Width) -> Charts:
    places = list(dict.fromkeys(r["place"] for r in records))
    return {place: _chart([r for r in records if r["place"] == place], styles, width, place) for place in places}


def _chart(
    records: Sequence[Mapping[str, Any]], styles: Mapping[str, Style], width: Width, place: str
) -> alt.LayerChart:
    """Loss against the share of parameters, with dense's loss as a line and its range over seeds as a band."""
    losses = [value for r in records for value in (r["low"], r["high"])]
    low, high = min(losses), max(losses)
    room = (high - low) * 0.06 or low * 0.01
    scale = alt.Scale(domain=[low - room, high + room], nice=False)
    y = alt.Y("loss:Q", scale=scale, axis=alt.Axis(title=None, format="~g"))
    shares = alt.Scale(domain=[0, 1.05], nice=False)
    x = alt.X("share:Q", scale=shares, axis=alt.Axis(format=".0%", title=AXES["share"]))
    look = encodings({c: s for c, s in styles.items() if any(r["c"] == c for r in records)})
    base = alt.Chart(RECORDS).transform_filter(alt.FieldEqualPredicate(field="place", equal=place))
    dense = [{key: r[key] for key in ("low", "high", "loss")} for r in records if r["structure"] == "dense"]
    flat = alt.Chart(alt.InlineData(dense))
    from_low = alt.Y("low:Q", scale=scale)
    band = flat.mark_rect(color=GREY, opacity=0.18, aria=False).encode(y=from_low, y2="high")
    line = flat.mark_rule(color=GREY, strokeWidth=1.2, aria=False).encode(y=y)
    bars = base.mark_rule(strokeWidth=1, aria=False).encode(x=x, y=from_low, y2="high", color=look["color"])
    tips = [alt.Tooltip(f"{key}:N", title=title) for key, title in (("label", "series"), ("told", "beside dense"))]
    points = base.mark_point(size=58, strokeWidth=1.4, opacity=1).encode(
        x=x,
        y=y,
        color=look["color"],
        shape=look["shape"],
        fill=look["fill"],
        tooltip=[*tips, alt.Tooltip("loss:Q", format=".4g")],
    )
    text = base.mark_text(align="left", dx=7, dy=-5, fontSize=9.5, limit=150, aria=False)
    layers = [band, line, bars, points, text.encode(x=x, y=y, text="structure:N")]
    said = f"Held-out loss against {AXES['share']}: {place}; the grey line is dense, the band its seeds."
    return alt.LayerChart(layer=layers, width=width, height=HEIGHT, title=place, description=said)


def _style(record: Mapping[str, Any], own: Mapping[str, Style]) -> Style:
    if record["structure"] == "dense":
        return DENSE
    return CONTROL if record["control"] else own[record["structure"]]
