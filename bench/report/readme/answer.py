"""The answer on the first page: six layers at a quarter of dense's parameters, what they gain and what they lose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.answers.qualities import LossBeside, Qualities
from bench.answers.question import Question, questions
from bench.answers.verdict import RIVAL, STRUCTURE, Contender, verdict, verdicts
from bench.files.errors import UsageError
from bench.files.rows import Results
from bench.files.terminal import percent
from bench.files.vocabulary import DENSE, MODES, NARROW
from bench.report.drawing import words
from bench.report.drawing.plot import Figure
from bench.report.readme.tables import markdown
from bench.report.sweep import figures

DYAD = "dyad"  # how the names of its variants begin
HEAD = ("", "layer", "parameters", "forward", "train", "loss", "agreement", "layers to mix all inputs")


@dataclass(frozen=True)
class Measured:
    """One layer at a question, on every machine and in both modes, where it was fit to rank."""

    name: str
    cells: Mapping[tuple[str, str], Contender]  # machine, mode

    @property
    def first(self) -> Contender:
        return next(iter(self.cells.values()))

    @property
    def speed(self) -> float:
        """The geometric mean of the lower quartiles."""
        return math.exp(sum(math.log(one.speedup.q1) for one in self.cells.values()) / len(self.cells))

    @property
    def lost(self) -> LossBeside | None:
        """Its loss beside dense's, where that was measured."""
        return self.first.quality.loss

    @property
    def agreement(self) -> float:
        """Of a converted encoder; 0 where that was not measured."""
        found = self.first.quality.agreement
        return found.cosine if found else 0.0

    def over(self, mode: str) -> str:
        """Its speed-up in a mode, as a range over the machines."""
        medians = [one.speedup.median for (_, own), one in self.cells.items() if own == mode]
        if not medians or self.name == DENSE:
            return "1" if medians else ""
        low, high = words.ratio(min(medians)), words.ratio(max(medians))
        return low if low == high else f"{low[:-1]} to {high}"


def front(results: Results) -> Question:
    """The question of the first page.

    Raises:
        UsageError: the results answer none.
    """
    asked = questions(results.rows)
    if not asked:
        raise UsageError("the results hold no structure with a speed-up: nothing can be answered")
    return asked[0]


def section(results: Results, qualities: Qualities) -> tuple[str, Figure | None]:
    """The table, where it was measured, how often a narrower dense layer is ahead, and quality against time."""
    asked = front(results)
    roles = by_role(measured(results, asked, qualities))
    machines = dict.fromkeys(machine for one in roles.values() for machine, _ in one.cells)
    losses = [one.lost for one in roles.values() if one.lost]
    said = [
        f"At {words.share(asked.share)} of dense's parameters, {asked.in_features} {words.TIMES} {asked.out_features}, "
        f"{words.tokens(asked.tokens)}, {asked.dtype}: speed-up over the best dense layer there is, on "
        f"{' and '.join(machines)}.",
        f"Loss: {losses[0].task}, beside dense's, with its interval at 95 %." if losses else "",
        "Best trade: the most speed-up over its loss, both beside dense's." if losses else "",
        "Agreement: cosine of a converted encoder's embeddings to its own, nothing trained.",
    ]
    table = "\n".join(markdown(HEAD, [_line(role, one) for role, one in roles.items()], left=2))
    text = "\n\n".join(filter(None, [table, " ".join(filter(None, said)), narrower(results, asked.share, qualities)]))
    return text, next(iter(figures.quality(verdict(results.rows, asked, qualities))), None)


def narrower(results: Results, share: float, qualities: Qualities) -> str:
    """How often a narrower dense layer is as fast as any structure, and what it loses on real data."""
    found = [v for v in verdicts(results.rows) if v.question.equal == "params"]
    held = [v for v in found if any(one.name == NARROW for one in v.ranking)]
    ahead = [v for v in held if any(one.name == NARROW for one in v.rivals)]
    if not held:
        return ""
    return (
        f"**If you can change the width of the whole network, first try a narrower dense layer: it is as fast as any "
        f"structure, or faster, in {len(ahead)} of {len(held)} comparisons at equal parameters.**"
        + _kept(qualities, share)
    )


def _kept(qualities: Qualities, share: float) -> str:
    """What a narrower dense network loses beside the best structure, on every task on real data."""
    less, more = [], []
    for task, narrow, best, own in qualities.narrowed(share):
        if narrow.high < own.low:
            less.append(f"{task} ({_percent(narrow)}, the best structure, `{best}`, {_percent(own)})")
        elif own.high < narrow.low:
            more.append(f"`{best}` on {task} ({_percent(narrow)} for {_percent(own)})")
    said = []
    if less:
        said.append(f"after training it loses less than every structure on {' and '.join(less)}")
    if more:
        said.append(f"{'but' if less else 'after training it loses'} more than {' and '.join(more)}")
    return f" On real data, {', '.join(said)}." if said else ""


def _percent(loss: LossBeside) -> str:
    return f"{loss.difference * 100:+.1f} %"


def measured(results: Results, asked: Question, qualities: Qualities) -> dict[str, Measured]:
    """Every layer that was fit to rank at a question, by name, over machines and modes."""
    machines = dict.fromkeys(q.machine for q in questions(results.rows))
    found: dict[str, dict[tuple[str, str], Contender]] = {}
    for machine in machines:
        for mode in MODES:
            here = verdict(results.rows, replace(asked, machine=machine, mode=mode), qualities)
            for one in here.ranking:
                found.setdefault(one.name, {})[machine, mode] = one
    return {name: Measured(name, cells) for name, cells in found.items()}


def by_role(every: Mapping[str, Measured]) -> dict[str, Measured]:
    """What stands in the table, and why; structures that rank everywhere, beat dense there and are not idle."""
    most = max((len(one.cells) for one in every.values()), default=0)
    structures = [one for one in every.values() if one.first.kind == STRUCTURE and len(one.cells) == most]
    faster = [one for one in structures if all(cell.beats_dense and not cell.idle for cell in one.cells.values())]
    known = [one for one in faster if one.lost]
    agreed = [one for one in faster if one.agreement]
    found = {"baseline": every.get(DENSE), "narrower": every.get(NARROW), "fastest": _fastest(faster)}
    if known:
        found["keeps most"] = min(known, key=lambda one: one.lost.difference if one.lost else 0.0)
        found["best trade"] = max(known, key=lambda one: one.speed / (1 + one.lost.difference) if one.lost else 0.0)
    elif agreed:
        found["keeps most when converted"] = max(agreed, key=lambda one: one.agreement)
    found[DYAD.upper()] = _fastest([one for one in structures if one.name.startswith(DYAD)])
    return {role: one for role, one in found.items() if one}


def _fastest(several: Iterable[Measured]) -> Measured | None:
    return max(several, key=lambda one: one.speed, default=None)


def _line(role: str, one: Measured) -> list[str]:
    first = one.first
    return [
        role,
        first.label if first.kind in (DENSE, RIVAL) else f"`{one.name}`",
        percent(first.row.params_share),
        *(one.over(mode) for mode in MODES),
        "0" if one.name == DENSE else _lost(one.lost),
        f"{one.agreement:.2f}" if one.agreement else "not measured",
        mixing(first.row.mixing_depth),
    ]


def _lost(loss: LossBeside | None) -> str:
    if loss is None:
        return "not measured"
    return f"{loss.difference * 100:+.1f} %<br>{loss.low * 100:+.1f} to {loss.high * 100:+.1f}"


def mixing(depth: float | None) -> str:
    """Layers until every output sees every input; 0 stands for never."""
    return "" if depth is None else "never" if depth == 0 else f"{depth:.0f}"
