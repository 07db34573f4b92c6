"""The page: everything a reader sees, in one HTML file that sends no request.

Names from results files reach the page as text only: escaped by the template, as values in JSON blocks, and never in
a script; the page's policy runs no script but the two written here.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from bench.report import charts, words
from bench.report.figures import CONFIG, VEGALITE, specifications
from bench.report.panels import (
    CONTROL,
    DENSE,
    STRUCTURE,
    Best,
    Curve,
    Panel,
    arrival,
    best,
    break_even,
    dyad,
    machine_names,
)
from bench.report.sections import Section
from bench.report.style import Style
from bench.rows import VERSIONS, Results, Row

_HERE = Path(__file__).parent


def render(
    results: Results,
    panels: Sequence[Panel],
    looks: Sequence[dict[str, Style]],
    figures: Sequence[Any],
    sections: Sequence[Section] = (),
) -> str:
    """The whole page. `figures` are each panel's file names (without their endings), in the order of `panels`."""
    loader = jinja2.FileSystemLoader(_HERE)
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.globals |= {"words": words, "arrival": arrival, "json": json.dumps}
    vega = _vega()
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    machines = machine_names(results.runs)
    views = [_view(i, *each) for i, each in enumerate(zip(panels, looks, figures, strict=True))]
    drawings = [section.drawings for section in sections]
    return templates.get_template("page.html.j2").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {_hash(vega)} {_hash(script)}",
                "style-src 'unsafe-inline'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        vega=Markup(vega),
        script=Markup(script),
        data=_json({"config": CONFIG, "panels": [view["charts"] for view in views], "sections": drawings}),
        views=views,
        pickers=_pickers(panels),
        headline=_headline(panels[0]) if panels else None,
        winners=_winners(panels),
        results=results,
        sections=sections,
        runs=[*results.runs, *(section.run for section in sections)],
        machine_of=lambda row: machines[id(row.run)],
    )


def caption(panel: Panel) -> list[str]:
    """The lines under a panel's charts: where, when and with what it was measured."""
    machine = panel.runs[0].machine
    dates = " and ".join(sorted({run.datetime[:10] for run in panel.runs}))
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS)
    missing = "" if any(c.kind == DENSE for c in panel.curves) else " Dense was not measured here."
    return [
        f"{panel.machine}; {panel.device}, {panel.dtype}, {panel.threads} threads, {panel.clock} clock, "
        f"weights {machine['weights']}, allocator {machine['allocator']}, TF32 {machine['tf32']}.",
        f"{versions}; {dates}, commit {machine['commit']}.{missing}",
    ]


@lru_cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGALITE).replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _view(index: int, panel: Panel, look: dict[str, Style], files: Sequence[str]) -> dict[str, Any]:
    """What the template shows of one panel."""
    made = {}
    with alt.data_transformers.enable("default", max_rows=None):
        for name, chart in specifications(panel, look, width="container").items():
            spec = chart.to_dict()
            made[name] = {key: value for key, value in spec.items() if key not in ("$schema", "title", "config")}
            made[name]["padding"] = {"left": 4, "top": 8, "bottom": 4, "right": 4}
            made[name]["autosize"] = {"type": "fit-x", "contains": "padding"}
    by_width = sorted(panel.rows, key=lambda row: (not row.square, row.width, row.in_features))
    shapes = list(dict.fromkeys(words.shape(row) for row in by_width))
    return {
        "id": f"panel-{index}",
        "panel": panel,
        "charts": {"specs": made, "rows": charts.records(panel)},
        "titles": _titles(made),
        "caption": caption(panel),
        "files": files,
        "curves": [_line(curve, look[curve.id]) for curve in panel.curves],
        "rings": any(break_even(curve)[0] for curve in panel.curves),
        "shapes": shapes,
        "arrivals": [(c, _by_shape(c, shapes)) for c in panel.curves if c.kind not in (DENSE, CONTROL)],
    }


def _titles(made: dict[str, Any]) -> dict[str, str]:
    titles = {quantity.field: quantity.title for quantity in charts.QUANTITIES}
    return {name: titles[name.split()[0]] + (", rectangular layers" if " " in name else "") for name in made}


def _line(curve: Curve, style: Style) -> dict[str, Any]:
    return {
        "curve": curve,
        "style": style,
        "params": words.span([row.params_share for row in curve.rows]),
        "flops": words.span([row.flops_share for row in curve.rows]),
        "break_even": "is the measure" if curve.kind == DENSE else break_even(curve)[1],
        "flags": ", ".join(sorted({flag for row in curve.rows for flag in row.flags})) or "none",
        "options": _options(curve),
    }


def _options(curve: Curve) -> str:
    """The options of the smallest and the largest layer of a curve."""
    ends = [
        ", ".join(f"{key}={value}" for key, value in row.options.items()) for row in (curve.rows[0], curve.rows[-1])
    ]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _by_shape(curve: Curve, shapes: Sequence[str]) -> list[Row | None]:
    found = {words.shape(row): row for row in curve.rows}
    return [found.get(shape) for shape in shapes]


def _pickers(panels: Sequence[Panel]) -> dict[str, list[str]]:
    """The questions a reader chooses a panel by, with their answers; questions with one answer are left out."""
    answers: dict[str, list[str]] = {}
    for panel in sorted(panels, key=lambda p: (p.budget is None, p.budget or "", p.mode, p.tokens)):
        for question, answer in panel.choices.items():
            seen = answers.setdefault(question, [])
            if answer not in seen:
                seen.append(answer)
    return {question: given for question, given in answers.items() if len(given) > 1}


def _headline(panel: Panel) -> dict[str, Any] | None:
    """The first panel's outcome at its largest shape: the fastest, how many beat dense, the best of DYAD."""
    winner = best(panel)
    if not winner:
        return None
    size = (winner.row.in_features, winner.row.out_features)
    there = [
        (curve, row, row.speedup)
        for curve in panel.curves
        if curve.kind == STRUCTURE
        for row in curve.rows
        if row.speedup and (row.in_features, row.out_features) == size
    ]
    dyads = [(s.median, curve.label) for curve, row, s in there if dyad(row.structure)]
    return {
        "best": winner,
        "faster": sum(speedup.q1 > 1 for *_, speedup in there),
        "measured": len(there),
        "dyad": max(dyads) if dyads and max(dyads)[1] != winner.label else None,
    }


def _winners(panels: Sequence[Panel]) -> dict[str, Any]:
    """Per machine and kind of call, and per budget, the fastest structure at the largest shape."""
    told = _pickers(panels)
    questions = [q for q in ("Machine", "Device", "Type", "Threads", "Mode", "Tokens") if q in told or q == "Mode"]
    table: dict[tuple[str, ...], dict[str | None, Best | None]] = {}
    for panel in sorted(panels, key=lambda p: (p.machine, p.device, p.clock, p.dtype, p.threads, p.mode, p.tokens)):
        place = tuple(panel.choices[question] for question in questions)
        table.setdefault(place, {})[panel.budget] = best(panel)
    budgets = sorted({panel.budget for panel in panels}, key=lambda budget: (budget is None, budget or ""))
    return {"questions": questions, "budgets": budgets, "table": table}
