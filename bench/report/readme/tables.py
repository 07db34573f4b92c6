"""The README's section of results, in Markdown: speed-ups, break-even and the share of the saving that arrives."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.files.fields import printable
from bench.files.rows import Row
from bench.files.terminal import shortened
from bench.files.vocabulary import DENSE, MODES
from bench.report.drawing import words
from bench.report.drawing.style import dyad
from bench.report.readme.breaks import CONTROLLED, NOT_WITHIN, BreakEven, table
from bench.report.readme.panels import STRUCTURE, Panel, caption

GENERATED = "<!-- written by python -m bench readme: run it again rather than edit -->"
LONGEST_NAME, LONGEST_RULE = 60, 48  # characters
QUANTITIES = {"params": "parameters", "flops": "FLOPs"}

Column = tuple[str, str]  # mode, budget
_MARKUP = r"[\\`*\[\]<>&|~#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # an underscore inside a word is none


def section(found: Sequence[Panel], panel: Panel) -> str:
    """What stands between the markers: both tables, and what they rest on."""
    width = max(row.in_features for row in panel.rows if row.square and row.speedup)
    speedups = _Table(_alike(found, panel), panel, width)
    unfinished = [run for alike in speedups.alike.values() for run in alike.runs if not run.complete]
    parts = [
        GENERATED,
        f"**Speed-up over dense at {width} {words.TIMES} {width}**, {words.tokens(panel.tokens)}, by mode and by share "
        f"of dense's {_quantity(panel)}: the median of paired ratios, below it the quartiles; above 1 is faster.",
        f"Measured on {' '.join(text(line) for line in caption(panel))}",
        "This run is not complete: points are missing." if unfinished else "",
        "\n".join(speedups.lines()),
        speedups.flagged(),
        speedups.of_their_own(),
        f"**Break-even**, at {words.budget(panel.budget)}: the width from which on a structure beats dense, at that "
        f"square layer and at every wider one measured, by the lower quartile of its speed-up. *none*: {NOT_WITHIN}.",
        "\n".join(break_evens(found, panel, speedups.order)),
        f"**Share of the FLOP saving that arrives as time**, by width: speed-up / (dense FLOPs / FLOPs), at "
        f"{words.budget(panel.budget)}, {panel.mode}, {words.tokens(panel.tokens)}.",
        "\n".join(arrivals(panel, speedups.order)),
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


def break_evens(found: Sequence[Panel], panel: Panel, order: Sequence[str]) -> list[str]:
    """From which width on each structure beats dense, by type, kind of call and tokens, as a table in Markdown."""

    def place(of: Panel) -> tuple[Any, ...]:
        return (of.machine, of.device, of.clock, of.threads, of.budget)

    made = table([other for other in found if place(other) == place(panel)])
    dtypes = {dtype for dtype, _, _ in made.columns}
    heads = [
        f"{mode}, {words.tokens(tokens)}" + (f", {dtype}" if len(dtypes) > 1 else "")
        for dtype, mode, tokens in made.columns
    ]

    def rank(label: str) -> tuple[int, str]:
        name = label.removesuffix(CONTROLLED)
        return (order.index(name) if name in order else len(order), label)

    lines = []
    for label in sorted(made.lines, key=rank):
        cells = made.lines[label]
        name = label.removesuffix(CONTROLLED)
        named = code(name) + (CONTROLLED if name != label else "")
        lines.append([named, *(_start(cells.get(column)) for column in made.columns)])
    return _markdown(["structure", *heads], lines, left=1)


def _start(cell: BreakEven | None) -> str:
    return "" if cell is None else cell.said if cell.start else "*none*"


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


def _kind(panel: Panel) -> str:
    return str(panel.budget).split("=")[0]


def _quantity(panel: Panel) -> str:
    return QUANTITIES[_kind(panel)]


def _share(budget: str | None) -> float:
    return float(str(budget).split("=")[1])


def _named(label: str, rows: Iterable[Row]) -> str:
    """A curve's name, controls called so."""
    return code(label) + (CONTROLLED if any(row.control for row in rows) else "")


def _dagger(row: Row) -> str:
    return " †" if row.flags else ""


def _speedup(row: Row | None) -> str:
    if not row or not row.speedup:
        return ""
    return f"{words.ratio(row.speedup.median)}{_dagger(row)}<br>{words.quartiles(row.speedup)}"


def _arrival(row: Row | None) -> str:
    part = row.arrival if row else None
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
