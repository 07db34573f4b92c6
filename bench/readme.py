"""`python -m bench readme`: the README's figure and its section of results, from results files alone."""

import os
import re
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.fields import printable
from bench.report import figures, page, words
from bench.report.panels import CONTROL, DENSE, STRUCTURE, Panel, arrival, dyad, panels
from bench.report.style import styles
from bench.rows import MODES, Results, Row
from bench.terminal import shortened
from bench.wrong import Wrong

START, END = "<!-- results -->", "<!-- end of results -->"
GENERATED = "<!-- written by python -m bench readme: run it again rather than edit -->"
CHART_WIDTH = 255  # pixels; two charts with axes and labels are then 900 wide, what a README shows unscaled
CAPTION_COLUMNS = 155
LONGEST_NAME, LONGEST_RULE = 60, 48  # characters
QUANTITIES = {"params": "parameters", "flops": "FLOPs"}

Column = tuple[str, str]  # mode, budget
_MARKUP = r"[\\`*\[\]<>&|~#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # an underscore inside a word is none


@dataclass(frozen=True)
class Place:
    """Which panel to show; None leaves a question open."""

    budget: str
    mode: str
    dtype: str
    device: str
    tokens: int | None = None  # None: where most structures were measured
    threads: int | None = None
    clock: str | None = None


def write(results: Results, readme: Path, figure: Path, place: Place) -> str:
    """Draw the figure as PNG, with an SVG beside it, and replace what stands between the README's markers.

    The same results give the same bytes, and files that would not change are left alone.
    Returns:
        What was written, in words.
    Raises:
        Wrong: there is no such panel, a marker is missing, or a file cannot be read or written; none is then changed.
    """
    if figure.suffix != ".png":
        raise Wrong(f"--figure: {str(figure)!r} must end in .png; the SVG is written beside it")
    found = panels(results)
    panel = chosen(found, place)
    text = replaced(readme, section(found, panel))
    files = {figure.with_suffix(kind): content for kind, content in drawn(results, panel).items()}
    changed = _write(files | {readme: text.encode()})
    names = ", ".join(str(path) for path in changed) if changed else "nothing changed"
    return f"{panel.title}: {names}"


def chosen(found: Sequence[Panel], place: Place) -> Panel:
    """The panel asked for.

    Raises:
        Wrong: there is none, with those there are; or several, which differ in what was not asked.
    """
    asked = {key: value for key, value in asdict(place).items() if value is not None}
    asked["budget"] = _budget(place.budget)
    at_budgets = [panel for panel in found if panel.budget]
    fitting = [panel for panel in at_budgets if all(getattr(panel, key) == value for key, value in asked.items())]
    if not fitting:
        said = ", ".join(f"{key} {value}" for key, value in asked.items())
        raise Wrong(f"no panel with {said}; the results hold {_held(at_budgets) or 'none at equal cost'}")
    best = max(fitting, key=lambda panel: (len(_structures(panel)), len(panel.rows), -panel.tokens))
    rivals = [panel for panel in fitting if panel.tokens == best.tokens]
    if len(rivals) > 1:
        each = "; ".join(f"{panel.machine}, {panel.threads} threads, {panel.clock} clock" for panel in rivals)
        raise Wrong(f"{len(rivals)} panels fit: {each}; choose by --threads or --clock, or give one machine's files")
    if not any(row.speedup for row in best.rows if row.square):
        raise Wrong(f"{best.title}: holds no square layer with a speed-up over dense")
    return best


def drawn(results: Results, panel: Panel) -> dict[str, bytes]:
    """The panel's speed-up and time against width, abreast, as files by suffix; of dense, only the fastest."""
    structures = sorted({row.structure for row in results.rows if not row.control})
    looks = styles(panel.curves, structures)  # of the whole panel: the same looks as in the report
    squares = [replace(curve, rows=curve.squares) for curve in panel.curves if curve.squares]
    kept = tuple(c for c in squares if c.kind != CONTROL or c.rows[0].budget)
    shown = replace(panel, curves=kept)
    made = figures.specifications(shown, looks, width=CHART_WIDTH)
    caption = [line for said in page.caption(panel) for line in textwrap.wrap(said, CAPTION_COLUMNS)]
    with tempfile.TemporaryDirectory() as folder:
        figures._write(shown, [made["speedup"], made["time"]], caption, Path(folder), "figure")
        return {kind: (Path(folder) / f"figure{kind}").read_bytes() for kind in (".png", ".svg")}


def section(found: Sequence[Panel], panel: Panel) -> str:
    """What stands between the markers: both tables, and what they rest on."""
    width = max(row.in_features for row in panel.rows if row.square and row.speedup)
    table = _Table(_alike(found, panel), panel, width)
    unfinished = [run for alike in table.alike.values() for run in alike.runs if not run.complete]
    parts = [
        GENERATED,
        f"**Speed-up over dense at {width} {words.TIMES} {width}**, {words.tokens(panel.tokens)}, by mode and by share "
        f"of dense's {_quantity(panel)}: the median of paired ratios, below it the quartiles; above 1 is faster.",
        f"Measured on {' '.join(text(line) for line in page.caption(panel))}",
        "This run is not complete: points are missing." if unfinished else "",
        "\n".join(table.lines()),
        table.flagged(),
        table.of_their_own(),
        f"**Share of the FLOP saving that arrives as time**, by width: speed-up / (dense FLOPs / FLOPs), at "
        f"{words.budget(panel.budget)}, {panel.mode}, {words.tokens(panel.tokens)}.",
        "\n".join(arrivals(panel, table.order)),
    ]
    return "\n\n".join(part for part in parts if part)


class _Table:
    """The speed-ups at one width: a line per structure, a column per mode and budget."""

    def __init__(self, alike: Mapping[tuple[str, str | None], Panel], panel: Panel, width: int):
        self.alike, self.panel, self.width = alike, panel, width
        self.kinds: dict[str, tuple[bool, bool]] = {}  # label -> whether no structure's own curve, whether not DYAD
        self.cells: dict[str, dict[Column, Row]] = {}
        same = [(mode, b) for mode, b in alike if b and b.split("=")[0] == _kind(panel)]
        same.sort(key=lambda column: (MODES.index(column[0]), -_share(column[1])))
        for column in same:
            self._add(column, alike[column])
        self.columns = [c for c in same if any(c in cells for cells in self.cells.values())]
        self.order = sorted(self.cells, key=self._rank)
        self.others = self._others()

    def _add(self, column: Column, panel: Panel) -> None:
        for curve in panel.curves:
            own = curve.kind == STRUCTURE
            for row in curve.squares:
                if row.in_features == self.width and row.budget and row.speedup:
                    self.kinds[curve.label] = (not own, not dyad(curve.structure))
                    self.cells.setdefault(curve.label, {})[column] = row

    def _rank(self, label: str) -> tuple[Any, ...]:
        """Structures before controls, DYAD first, then the fastest in the panel's column, then in the others."""
        cells, first = self.cells[label], (self.panel.mode, self.panel.budget)
        columns = sorted(self.columns, key=lambda column: column != first)
        speeds = [row.speedup.median if (row := cells.get(c)) and row.speedup else 0.0 for c in columns]
        return (*self.kinds[label], [-speed for speed in speeds], label)

    def lines(self) -> list[str]:
        """The table in Markdown."""
        quantity, own = _quantity(self.panel), _share(self.panel.budget)
        heads = ["structure", f"options at {own:g}", f"{quantity}, % of dense"]
        heads += [f"{mode} {_share(budget):g}" for mode, budget in self.columns]
        made = [
            [_named(label, self.cells[label].values()), self._options(label), self._realised(label)]
            for label in self.order
        ]
        for line, label in zip(made, self.order, strict=True):
            line += [_speedup(self.cells[label].get(column)) for column in self.columns]
        return _markdown(heads, made, left=2)

    def _options(self, label: str) -> str:
        """The rule of the panel's budget where it is short, or the options at the table's width."""
        row = self._row(label, self.panel.budget)
        if row is None:
            return ""
        rule = row.run.rules.get(row.series, "")
        told = rule.rpartition(": ")[2]
        if told and len(told) <= LONGEST_RULE and " at " not in told:
            return code(told) if "=" in told else text(told)
        options = ", ".join(f"{key}={value}" for key, value in row.options.items())
        return f"{code(options)} at {self.width}" if options else "none"

    def _realised(self, label: str) -> str:
        budgets = dict.fromkeys(budget for _, budget in self.columns)
        rows = [self._row(label, budget) for budget in budgets]
        field = "flops_share" if _kind(self.panel) == "flops" else "params_share"
        return " / ".join(f"{getattr(row, field) * 100:.3g}" if row else "–" for row in rows)  # noqa: RUF001

    def _row(self, label: str, budget: str | None) -> Row | None:
        found = (row for (_, b), row in self.cells[label].items() if b == budget)
        return next(found, None)

    def flagged(self) -> str:
        """What the daggers stand for; empty without any."""
        shown = [row for rows in (*self.cells.values(), *self.others.values()) for row in rows.values()]
        shown += [row for curve in self.panel.curves for row in curve.squares if row.budget]
        flags = sorted({flag for row in shown for flag in row.flags})
        return f"† flagged when measured: {', '.join(text(flag) for flag in flags)}." if flags else ""

    def of_their_own(self) -> str:
        """Structures measured at their own options alone, since they meet no share; empty without any."""
        told = [f"{code(label)} {_described(rows)}" for label, rows in self.others.items()]
        return f"These meet none of the shares and stand at their own options: {'; '.join(told)}." if told else ""

    def _others(self) -> dict[str, dict[Column, Row]]:
        met = {row.structure for panel in self.alike.values() for row in panel.rows if row.budget}
        rows: dict[str, dict[Column, Row]] = {}
        for mode in MODES:
            panel = self.alike.get((mode, None))
            for curve in panel.curves if panel else ():
                row = _nearest(curve.squares, self.width)
                if row and curve.kind == STRUCTURE and curve.structure not in met:
                    rows.setdefault(curve.label, {})[mode, ""] = row
        return rows


def arrivals(panel: Panel, order: Sequence[str]) -> list[str]:
    """The share of the FLOP saving that arrives as time, by width, as a table in Markdown."""
    curves = [c for c in panel.curves if c.kind != DENSE and any(row.budget and row.speedup for row in c.squares)]
    curves.sort(key=lambda curve: (order.index(curve.label) if curve.label in order else len(order), curve.label))
    widths = sorted({row.in_features for curve in curves for row in curve.squares})
    made = []
    for curve in curves:
        rows = {row.in_features: row for row in curve.squares}
        made.append([_named(curve.label, curve.rows), *(_arrival(rows.get(width)) for width in widths)])
    return _markdown(["structure", *map(str, widths)], made, left=1)


def replaced(readme: Path, inside: str) -> str:
    """The README with `inside` between its markers.

    Raises:
        Wrong: it cannot be read, or does not hold each marker once, on lines of their own and in this order.
    """
    try:
        lines = readme.read_bytes().decode("utf-8").splitlines(keepends=True)
    except OSError as error:
        raise Wrong(f"{readme}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Wrong(f"{readme}: is not UTF-8") from None
    starts, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in (START, END))
    if len(starts) != 1 or len(ends) != 1:
        raise Wrong(f"{readme}: has {len(starts)} lines {START} and {len(ends)} lines {END}, must have one of each")
    if starts > ends:
        raise Wrong(f"{readme}: {END} stands before {START}")
    [start], [end] = starts, ends
    newline = "\r\n" if lines[start].endswith("\r\n") else "\n"
    body = f"\n{inside}\n\n".replace("\n", newline)
    return "".join(lines[: start + 1]) + body + "".join(lines[end:])


def text(value: str) -> str:
    """Words from a results file as Markdown that shows them and nothing else."""
    return re.sub(_MARKUP, lambda found: f"&#{ord(found[0])};", printable(value))


def code(value: str) -> str:
    """A name or options from a results file, shortened, as code where nothing in them could end that."""
    value = shortened(printable(value), LONGEST_NAME)
    return f"`{value}`" if re.fullmatch(r"[A-Za-z0-9_.,:;=@/()\[\]+' -]*[A-Za-z0-9_)\]]", value) else text(value)


def _alike(found: Sequence[Panel], panel: Panel) -> dict[tuple[str, str | None], Panel]:
    """The panels of the same place, by mode and budget."""

    def place(of: Panel) -> tuple[Any, ...]:
        return (of.machine, of.device, of.clock, of.dtype, of.threads, of.tokens)

    return {(other.mode, other.budget): other for other in found if place(other) == place(panel)}


def _held(found: Sequence[Panel]) -> str:
    tokens: dict[str, set[int]] = {}
    for p in found:
        place = f"{p.budget} {p.mode} {p.dtype} {p.device} ({p.threads} threads, {p.clock} clock)"
        tokens.setdefault(place, set()).add(p.tokens)
    return "; ".join(f"{place} at tokens {', '.join(map(str, sorted(at)))}" for place, at in sorted(tokens.items()))


def _structures(panel: Panel) -> set[str]:
    return {curve.structure for curve in panel.curves if curve.kind == STRUCTURE}


def _budget(value: str) -> str:
    match = re.fullmatch(r"(params|flops)=([0-9]*\.?[0-9]+)", value)
    if not match:
        raise Wrong(f"--budget: {value!r} is no budget; write params=0.25 or flops=0.25")
    return f"{match[1]}={float(match[2]):g}"


def _kind(panel: Panel) -> str:
    return str(panel.budget).split("=")[0]


def _quantity(panel: Panel) -> str:
    return QUANTITIES[_kind(panel)]


def _share(budget: str | None) -> float:
    return float(str(budget).split("=")[1])


def _named(label: str, rows: Iterable[Row]) -> str:
    """A curve's name, controls called so."""
    return code(label) + (" (control)" if any(row.control for row in rows) else "")


def _dagger(row: Row) -> str:
    return " †" if row.flags else ""


def _speedup(row: Row | None) -> str:
    if not row or not row.speedup:
        return ""
    return f"{words.ratio(row.speedup.median)}{_dagger(row)}<br>{words.quartiles(row.speedup)}"


def _arrival(row: Row | None) -> str:
    part = arrival(row) if row else None
    if not row or part is None:
        return ""
    return (f"{part * 100:.0f} %" if row.flops < row.dense_flops else "no saving") + _dagger(row)


def _nearest(rows: Sequence[Row], width: int) -> Row | None:
    """The row of a width, or the widest there is."""
    paired = [row for row in rows if row.speedup]
    return max(paired, key=lambda row: (row.in_features == width, row.in_features), default=None)


def _described(rows: Mapping[Column, Row]) -> str:
    row = next(iter(rows.values()))
    options = ", ".join(f"{key}={value}" for key, value in row.options.items())
    speeds = [
        f"{mode} {words.ratio(r.speedup.median)}{_dagger(r)} ({words.quartiles(r.speedup)})"
        for (mode, _), r in rows.items()
        if r.speedup and r.in_features == row.in_features
    ]
    shares = f"{words.share(row.params_share)} of dense's parameters, {words.share(row.flops_share)} of its FLOPs"
    return f"({code(options) + ', ' if options else ''}{shares}, at {row.in_features}): {', '.join(speeds)}"


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> list[str]:
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return [f"| {' | '.join(line)} |" for line in (heads, rule, *lines)]


def _write(files: Mapping[Path, bytes]) -> list[Path]:
    """Write what differs, all of it beside its place first and then renamed; returns what changed."""
    changed = [path for path, content in files.items() if not (path.is_file() and path.read_bytes() == content)]
    targets = {path: Path(os.path.realpath(path)) for path in changed}
    parts = {path: target.with_name(f".{target.name}.{os.getpid()}.part") for path, target in targets.items()}
    try:
        for path in changed:
            if targets[path].exists() and not targets[path].is_file():
                raise Wrong(f"{path}: cannot be written: it is there and is not a plain file; nothing was changed")
        for path, part in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(files[path])
        for path, part in parts.items():
            os.replace(part, targets[path])
    except OSError as error:
        raise Wrong(f"{error.filename}: cannot be written: {error.strerror}") from None
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
    return changed
