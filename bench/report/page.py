"""The page: everything a reader sees, in one HTML file that sends no request.

Names from results files reach the page as text only: escaped by the template, as values in JSON, and never in a script;
the page's policy runs no script but the two written here.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from bench.answers.qualities import NONE, Qualities
from bench.files.rows import Results
from bench.report.drawing import plot, words
from bench.report.drawing.sections import Section, tabs
from bench.report.sweep.data import data

_HERE = Path(__file__).parent


def render(results: Results, sections: Sequence[Section] = (), qualities: Qualities = NONE) -> str:
    """The whole page, of a sweep's rows and the sections of other files."""
    loader = jinja2.FileSystemLoader(_HERE)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("plot.js", "page.js"))
    allowed = " ".join(f"'sha256-{_hash(one)}'" for one in (_vega(), script))
    shown = data(results, qualities) if results.rows else {"questions": [], "rows": []}
    charts = [chart for section in sections for chart in section.charts]
    shown |= {"parts": plot.PARTS, "charts": [asdict(chart) for chart in charts]}
    numbers = {id(chart): i for i, chart in enumerate(charts)}
    return templates.get_template("page.html.j2").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
        vega=Markup(_vega()),
        script=Markup(script),
        data=_json(shown),
        asked=bool(shown["questions"]),
        results=results,
        tabs=tabs(sections),
        runs=list({id(run): run for run in (*results.runs, *(section.run for section in sections))}.values()),
        energy=any(row.energy_joules for row in results.rows),
        words=words,
        json=json.dumps,
        number_of=lambda chart: numbers[id(chart)],
    )


@lru_cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", plot.VEGALITE)
    return str(bundle).replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
