"""The page: everything a reader sees, in one HTML file that sends no request.

Names from results files reach the page as text only: escaped by the template, as values in JSON blocks, and never in
a script; the page's policy runs no script but the two written here.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from bench.answers.question import machine_names
from bench.files.rows import Results
from bench.report.drawing import figures, points, words
from bench.report.drawing.figures import CONFIG, VEGALITE
from bench.report.drawing.sections import Section
from bench.report.drawing.views import View
from bench.report.sweep import backends, breaks, curves, memory, pareto, rooflines, winners
from bench.report.sweep.panels import Panel

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Heading:
    """One heading of the page: its template says what it shows and adds to each view."""

    id: str
    title: str
    views: Sequence[View]
    missing: str = ""  # said where there are no views

    @property
    def template(self) -> str:
        return f"{self.id}.html.j2"

    @property
    def pickers(self) -> dict[str, list[str]]:
        """The questions a reader chooses a view by, with their answers; those with one answer are left out."""
        answers: dict[str, list[str]] = {}
        for view in self.views:
            for question, answer in view.choices.items():
                seen = answers.setdefault(question, [])
                if answer not in seen:
                    seen.append(answer)
        return {question: _sorted(question, given) for question, given in answers.items() if len(given) > 1}


def _sorted(question: str, answers: list[str]) -> list[str]:
    """Numbers by size, shares from the largest; other answers as they come."""
    if question in ("Tokens", "Threads", "Width"):
        return sorted(answers, key=int)
    if question == "Compared at":
        return sorted(answers, key=lambda a: -float(a.split()[0]) if a[0].isdigit() else 0.0)
    return answers


def groups(made: Sequence[View]) -> list[Heading]:
    """The headings of the sweep's part of the page, in order; of those that need what no file has, only the reason."""
    several = "nothing was measured with several backends at one point: pytest bench --backend planned,einsum does"
    saved = "no row says what its forward pass saved: only training rows do"
    found = [
        Heading(winners.GROUP, "Who wins where", _of(made, winners.GROUP)),
        Heading(curves.GROUP, "Scaling curves", _of(made, curves.GROUP)),
        Heading("break-even", "Break-even", []),
        Heading(pareto.GROUP, "Time against cost", _of(made, pareto.GROUP)),
        Heading(rooflines.GROUP, "Roofline", _of(made, rooflines.GROUP), "the runs hold no limits of the machine"),
        Heading(memory.GROUP, "Memory", _of(made, memory.GROUP), saved),
        Heading(backends.GROUP, "Backends", _of(made, backends.GROUP), several),
    ]
    return found


def groups_of(section: Section) -> list[Heading]:
    """The headings within a section that readers choose views under."""
    names = dict.fromkeys(view.group for view in section.views)
    return [Heading(f"{section.id}-{name}", name, _of(section.views, name)) for name in names]


def _of(made: Sequence[View], group: str) -> list[View]:
    return [view for view in made if view.group == group]


def render(results: Results, panels: Sequence[Panel], made: Sequence[View], sections: Sequence[Section] = ()) -> str:
    """The whole page, of the views in their order and the sections of other files."""
    loader = jinja2.FileSystemLoader(_HERE)
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.globals |= {"words": words, "json": json.dumps, "winner": winners.said}
    vega = _vega()
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    machines = machine_names(results.runs)
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
        data=_json(_data(results, made, sections)),
        groups=groups(made) if results.runs else [],
        breaks=breaks.tables(panels),
        front_budget=panels[0].budget if panels else None,
        sentence=winners.sentence(panels, panels[0]) if panels else "",
        results=results,
        energy=any(row.energy_joules for row in results.rows),
        sections=sections,
        groups_of=groups_of,
        runs=[*results.runs, *(section.run for section in sections)],
        machine_of=lambda row: machines[id(row.run)],
    )


def _data(results: Results, made: Sequence[View], sections: Sequence[Section]) -> dict[str, Any]:
    """What the script draws: every row once, and each view's records, which say which row they stand for."""
    place = {id(row): i for i, row in enumerate(results.rows)}

    def view(of: View) -> dict[str, Any]:
        specs = {name: figures.for_page(spec) for name, spec in of.specifications.items()}
        own = [r | {"i": place[id(of.rows[r["i"]])]} for r in of.records] if of.rows else list(of.records)
        return {"specs": specs, "records": own}

    return {
        "config": CONFIG,
        "rows": [points.record(row) for row in results.rows],
        "views": {of.slug: view(of) for of in (*made, *(v for section in sections for v in section.views))},
        "sections": [section.drawings for section in sections],
    }


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
