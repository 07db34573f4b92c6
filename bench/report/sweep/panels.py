"""Rows sorted into panels and curves: what may share a chart, and under which name.

A panel is one machine, device, clock, dtype, thread count, mode, number of tokens and budget class. Curves of different
machines, clocks or budgets therefore never meet in one chart. Dense, and the controls without a budget, are in every
panel of their kind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.answers.question import machine_names
from bench.files.rows import Results, Row, Run
from bench.files.vocabulary import DENSE, MODES
from bench.report.drawing import words
from bench.report.drawing.curve import CONTROL, STRUCTURE, Curve, Place, dyad, kind


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
    def place(self) -> Place:
        return Place(self.machine, self.device, self.clock, self.dtype, self.threads)

    @property
    def choices(self) -> dict[str, str]:
        """The panel's place, one word or phrase per question a reader chooses by."""
        own = {"Compared at": words.budget(self.budget), "Mode": self.mode, "Tokens": str(self.tokens)}
        return own | self.place.choices

    @property
    def slug(self) -> str:
        """A file name's stem without free text from a results file."""
        budget = (self.budget or "own-options").replace("=", "-")
        return f"{budget}-{self.mode}-{self.tokens}-tokens-{self.place.slug}"

    @property
    def title(self) -> str:
        place = f"{self.mode}, {words.tokens(self.tokens)}, {self.dtype}, {self.device}"
        return f"{words.budget(self.budget)[0].upper()}{words.budget(self.budget)[1:]}: {place}"


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
    curve: `backends` draws it.
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
    seen: dict[str, int] = {}
    made = []
    for i, key in enumerate(keys):
        ordered = tuple(sorted(groups[key], key=lambda row: (row.width, row.in_features)))
        backends = ", ".join(dict.fromkeys(row.backend for row in ordered))
        rule = ordered[0].run.rules.get(key.series, "")
        label, variant = key.label(keys), seen.get(key.structure, 0)
        made.append(Curve(f"c{i}", key.kind, label, key.structure, key.series, backends, variant, rule, ordered))
        seen[key.structure] = variant + 1
    return tuple(made)


def places(results: Results) -> dict[Place, list[Row]]:
    """The rows by place, in the order of the file."""
    names = machine_names(results.runs)
    found: dict[Place, list[Row]] = {}
    for row in results.rows:
        found.setdefault(Place(names[id(row.run)], row.device, row.clock, row.dtype, row.threads), []).append(row)
    return found


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
