"""Rows sorted into panels and curves: what may share a table, and under which name.

A panel is one machine, device, clock, dtype, thread count, mode, number of tokens and budget class. Curves of different
machines, clocks or budgets therefore never meet in one table. Dense, and the controls without a budget, are in every
panel of their kind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.answers.question import machine_names
from bench.files.rows import Results, Row, Run
from bench.files.vocabulary import DENSE, MODES, VERSIONS
from bench.report.drawing import words
from bench.report.drawing.style import dyad

STRUCTURE, CONTROL = "structure", "control"


@dataclass(frozen=True)
class Curve:
    """One structure with one rule for its options: what a single line may join."""

    kind: str  # DENSE, STRUCTURE or CONTROL
    label: str
    structure: str
    series: str
    backends: str  # every one that ran
    rule: str  # how the options scale with width
    rows: tuple[Row, ...]  # by width

    @property
    def squares(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.square)


@dataclass(frozen=True)
class Panel:
    """Curves that may be compared, and what they have in common."""

    machine: str
    device: str
    clock: str
    dtype: str
    threads: int
    mode: str
    tokens: int
    budget: str | None
    curves: tuple[Curve, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple({id(row.run): row.run for curve in self.curves for row in curve.rows}.values())

    @property
    def rows(self) -> list[Row]:
        return [row for curve in self.curves for row in curve.rows]

    @property
    def title(self) -> str:
        place = f"{self.mode}, {words.tokens(self.tokens)}, {self.dtype}, {self.device}"
        return f"{words.budget(self.budget)[0].upper()}{words.budget(self.budget)[1:]}: {place}"


def caption(panel: Panel) -> list[str]:
    """Two lines: where, when and with what it was measured."""
    machine = panel.runs[0].machine
    dates = " and ".join(sorted({run.datetime[:10] for run in panel.runs}))
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS)
    dense = "" if any(curve.kind == DENSE for curve in panel.curves) else " Dense was not measured here."
    return [
        f"{panel.machine}; {panel.device}, {panel.dtype}, {words.threads(panel.threads)}, {panel.clock} clock, weights "
        f"{machine['weights']}, allocator {machine['allocator']}, TF32 {machine['tf32']}.",
        f"{versions}; {dates}, commit {machine['commit']}.{dense}",
    ]


def panels(results: Results) -> list[Panel]:
    """Every panel that has a structure, or dense alone where no structure was measured; the one to show first in front.

    In front is the panel with most structures; among those forward before train, then the middle budget and tokens.
    """
    names = machine_names(results.runs)
    groups: dict[tuple[Any, ...], dict[str | None, list[Row]]] = {}
    for row in results.rows:
        place = (names[id(row.run)], row.device, row.clock, row.dtype, row.threads, row.mode, row.tokens)
        groups.setdefault(place, {}).setdefault(row.budget, []).append(row)
    found = []
    for place, classes in groups.items():
        everywhere = [row for row in classes.get(None, []) if kind(row) in (DENSE, CONTROL)]
        worth = [budget for budget, rows in classes.items() if any(kind(row) == STRUCTURE for row in rows)]
        only_dense = sorted(classes, key=lambda budget: (budget is not None, budget or ""))[:1]
        for budget in worth or only_dense:
            rows = classes[budget]
            found.append(Panel(*place, budget, curves(rows if budget is None else everywhere + rows)))
    return _ordered(found)


def curves(rows: Iterable[Row]) -> tuple[Curve, ...]:
    """The rows of one panel as curves: dense, then DYAD, then the other structures by name, then the controls.

    A series is one curve whatever its backend, which may be chosen anew at each width; only where one shape was
    measured with several backends is it a curve for each. A backend measured at fewer shapes than another one is no
    curve.
    """
    groups: dict[_Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(_Key(kind(row), row.structure, row.series, row.budget, None), []).append(row)
    for key, members in list(groups.items()):
        if len({(row.in_features, row.out_features) for row in members}) < len(members):
            del groups[key]
            ways: dict[str, list[Row]] = {}
            for row in members:
                ways.setdefault(row.backend, []).append(row)
            most = max(map(len, ways.values()))
            whole = {backend: own for backend, own in ways.items() if len(own) == most}
            for backend, own in whole.items():
                groups[key._replace(backend=backend if len(whole) > 1 else None)] = own
    keys = sorted(groups, key=_Key.order)
    made = []
    for key in keys:
        ordered = tuple(sorted(groups[key], key=lambda row: (row.width, row.in_features)))
        backends = ", ".join(dict.fromkeys(row.backend for row in ordered))
        rule = ordered[0].run.rules.get(key.series, "")
        made.append(Curve(key.kind, key.label(keys), key.structure, key.series, backends, rule, ordered))
    return tuple(made)


def kind(row: Row) -> str:
    """Which of the three kinds of curve a row belongs to."""
    if row.control:
        return CONTROL
    return DENSE if row.structure == "dense" else STRUCTURE


class _Key(NamedTuple):
    """What sets a curve apart from the others of its panel."""

    kind: str
    structure: str
    series: str
    budget: str | None
    backend: str | None  # None: whichever ran

    def order(self) -> tuple[Any, ...]:
        rank = (DENSE, STRUCTURE, CONTROL).index(self.kind)
        return (rank, not dyad(self.structure), self.structure, self.series, self.backend or "", self.budget or "")

    def label(self, keys: Iterable["_Key"]) -> str:
        """The shortest name that tells the curve from the others: a structure's, unless it has several series."""
        series = {key.series for key in keys if key[:2] == self[:2]}
        own = self.kind == DENSE or (self.budget and self.structure != "dense")
        name = self.structure if own and len(series) == 1 else self.series
        return name + (f" · {self.backend}" if self.backend else "")


def _ordered(found: list[Panel]) -> list[Panel]:
    tokens = sorted({panel.tokens for panel in found})
    budgets = sorted({panel.budget for panel in found if panel.budget})

    def order(panel: Panel) -> tuple[Any, ...]:
        structures = len({c.structure for c in panel.curves if c.kind == STRUCTURE})
        middle = abs(tokens.index(panel.tokens) - (len(tokens) - 1) / 2)
        middle_budget = abs(budgets.index(panel.budget) - (len(budgets) - 1) / 2) if panel.budget else 0
        return (panel.budget is None, -structures, MODES.index(panel.mode), panel.clock, middle_budget, middle)

    front = min(found, key=order, default=None)
    return sorted(
        found,
        key=lambda p: (
            p is not front,
            p.machine,
            p.device,
            p.clock,
            p.dtype,
            p.threads,
            MODES.index(p.mode),
            p.budget is None,
            p.budget or "",
            p.tokens,
        ),
    )
