"""`python -m bench readme`: the README's figure and its section of results, from results files alone."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.files import atomic, options
from bench.files.errors import UsageError
from bench.files.rows import Results, Spread
from bench.report.drawing import plot, style
from bench.report.drawing.plot import Axis, Chart, Figure, PlotPoint, PlotSeries
from bench.report.readme import encoder as readme_encoder
from bench.report.readme import training as readme_training
from bench.report.readme.panels import CONTROL, STRUCTURE, Panel, caption, panels
from bench.report.readme.tables import section

START, END = "<!-- results -->", "<!-- end of results -->"
CHART_WIDTH = 255  # pixels; two charts with axes and labels are then 900 wide, what a README shows unscaled
CAPTION_COLUMNS = 155


@dataclass(frozen=True)
class PanelChoice:
    """Which panel to show; None leaves a question open."""

    budget: str
    mode: str
    dtype: str
    device: str
    tokens: int | None = None  # None: where most structures were measured
    threads: int | None = None
    clock: str | None = None


def write(
    results: Results,
    readme: Path,
    figure: Path,
    place: PanelChoice,
    encoder: Path | None = None,
    training: Sequence[Path] = (),
) -> str:
    """Draw the figure as PNG, with an SVG beside it, and replace what stands between the README's markers.

    The same results give the same bytes, and files that would not change are left alone.
    Returns:
        What was written, in words.
    Raises:
        UsageError: there is no such panel, a marker is missing, or a file cannot be read or written. No file is
            changed then.
    """
    if figure.suffix != ".png":
        raise UsageError(f"--figure: {str(figure)!r} must end in .png; the SVG is written beside it")
    found = panels(results)
    panel = chosen(found, place)
    text = replaced(readme, section(found, panel))
    files = {figure.with_suffix(kind): content for kind, content in drawn(panel).items()}
    if encoder is not None:
        made = readme_encoder.encoder(encoder)
        text = replaced(readme, made.text, markers=(readme_encoder.START, readme_encoder.END), text=text)
        files |= readme_encoder.files(made, figure)
    if training:
        trained = readme_training.training(training, os.path.relpath(figure.with_name("training.png"), readme.parent))
        text = replaced(readme, trained.text, markers=(readme_training.START, readme_training.END), text=text)
        files |= readme_training.files(trained, figure)
    changed = _write(files | {readme: text.encode()})
    names = ", ".join(str(path) for path in changed) if changed else "nothing changed"
    return f"{panel.title}: {names}"


def chosen(found: Sequence[Panel], place: PanelChoice) -> Panel:
    """The panel asked for.

    Raises:
        UsageError: there is none, with those there are; or several, which differ in what was not asked.
    """
    asked = {key: value for key, value in asdict(place).items() if value is not None}
    asked |= {"budget": options.budget(place.budget), "dtype": options.dtype("--dtype", place.dtype)}
    at_budgets = [panel for panel in found if panel.budget]
    fitting = [panel for panel in at_budgets if all(getattr(panel, key) == value for key, value in asked.items())]
    if not fitting:
        said = ", ".join(f"{key} {value}" for key, value in asked.items())
        raise UsageError(f"no panel with {said}; the results hold {_held(at_budgets) or 'none at equal cost'}")
    best = max(fitting, key=lambda panel: (len(_structures(panel)), len(panel.rows), -panel.tokens))
    rivals = [panel for panel in fitting if panel.tokens == best.tokens]
    if len(rivals) > 1:
        each = "; ".join(f"{panel.machine}, {panel.threads} threads, {panel.clock} clock" for panel in rivals)
        raise UsageError(
            f"{len(rivals)} panels fit: {each}; choose by --threads or --clock, or give one machine's files"
        )
    if not any(row.speedup for row in best.rows if row.square):
        raise UsageError(f"{best.title}: holds no square layer with a speed-up over dense")
    return best


def drawn(panel: Panel) -> dict[str, bytes]:
    """The panel's speed-up and time against width, abreast, as files by suffix; of dense, only the fastest."""
    kept = [c for c in panel.curves if c.squares and (c.kind != CONTROL or c.rows[0].budget)]
    widths = sorted({row.in_features for curve in kept for row in curve.squares})
    one = Spread(1.0, 1.0, 1.0, 1)
    quantities = {
        ("speed-up over dense", "\N{MULTIPLICATION SIGN}"): lambda row: row.speedup or one,
        ("time of a call", "s"): lambda row: row.time,
    }
    charts = []
    for (title, unit), of in quantities.items():
        series = [
            PlotSeries(
                curve.label,
                style.look(curve.structure, curve.kind == CONTROL),
                [PlotPoint(row.in_features, (s := of(row)).median, {}, s.q1, s.q3) for row in curve.squares],
            )
            for curve in kept
        ]
        x = Axis("in_features = out_features", "#", values=widths)
        charts.append(Chart(title, x, Axis("", unit), series, height=max(340, 13 * (len(series) + 1))))
    said = [line for told in caption(panel) for line in textwrap.wrap(told, CAPTION_COLUMNS)]
    return plot.files(Figure("figure", panel.title, said, charts, 2, CHART_WIDTH))


def replaced(readme: Path, inside: str, *, markers: tuple[str, str] = (START, END), text: str | None = None) -> str:
    """The README, or what has become of its `text`, with `inside` between two markers.

    Raises:
        UsageError: it cannot be read, or does not hold each marker once, on lines of their own and in this order.
    """
    lines = (_text(readme) if text is None else text).splitlines(keepends=True)
    first, last = markers
    starts, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in markers)
    if len(starts) != 1 or len(ends) != 1:
        raise UsageError(
            f"{readme}: has {len(starts)} lines {first} and {len(ends)} lines {last}, must have one of each"
        )
    if starts > ends:
        raise UsageError(f"{readme}: {last} stands before {first}")
    [start], [end] = starts, ends
    newline = "\r\n" if lines[start].endswith("\r\n") else "\n"
    body = f"\n{inside}\n\n".replace("\n", newline)
    return "".join(lines[: start + 1]) + body + "".join(lines[end:])


def _text(readme: Path) -> str:
    """Raises UsageError where it cannot be read."""
    try:
        return readme.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{readme}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{readme}: is not UTF-8") from None


def _held(found: Sequence[Panel]) -> str:
    tokens: dict[str, set[int]] = {}
    for p in found:
        place = f"{p.budget} {p.mode} {p.dtype} {p.device} ({p.threads} threads, {p.clock} clock)"
        tokens.setdefault(place, set()).add(p.tokens)
    return "; ".join(f"{place} at tokens {', '.join(map(str, sorted(at)))}" for place, at in sorted(tokens.items()))


def _structures(panel: Panel) -> set[str]:
    return {curve.structure for curve in panel.curves if curve.kind == STRUCTURE}


def _write(files: Mapping[Path, bytes]) -> list[Path]:
    """Write the files whose contents differ, all of them or none; returns their paths."""
    changed = [path for path, content in files.items() if not (path.is_file() and path.read_bytes() == content)]
    try:
        for path in changed:
            if path.exists() and not path.is_file():
                raise UsageError(f"{path}: cannot be written: it is there and is not a plain file; nothing was changed")
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_all({path: files[path] for path in changed})
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return changed
