"""The verdict: at a layer and a cost, which structure is fastest, what cannot be told apart, and what is not believed.

Whoever says which structure is the best says what stands here: the page, `recommend`, the sweep's last lines and the
README. The rules:
1. What is ranked costs the same: parameters or executed FLOPs, to 15 %. Of a structure with several rows the nearest
   in cost counts (one asked for at this very budget is), then one that is not disturbed, then the fastest.
2. The order is that of the lower quartiles of the paired speed-up over the best dense layer there is.
3. Whoever reaches the lower quartile of the first of a rank is a tie with it. Of structures that tie for the first rank
   the one that keeps the most is taken, unless one of a later rank is as fast by its median and keeps more. What does
   not beat dense by its lower quartile does not beat dense: ties with dense are dense's.
4. A flagged row, one whose quartiles are more than a factor of 1.5 apart, and one faster than its FLOPs and bytes allow
   stand below, with the reason, and neither win nor tie.
5. Dense's rivals (a narrower dense layer, dense in other numbers) are ranked among the structures.
6. A structure is ranked, but never taken, where training it ends no better than the control whose feed-forward layers
   are removed, or are one linear map, with no more parameters than it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.answers.qualities import NONE, Qualities, Quality
from bench.answers.question import Question, at_places, near, questions, rival
from bench.files.rows import Limits, Refusal, Row, Spread
from bench.files.terminal import digits, percent
from bench.files.vocabulary import BFLOAT16, DENSE, INT8_DYNAMIC, INT8_WEIGHTS, NARROW, NEAR
from structures.reading import printable

STRUCTURE, RIVAL = "structure", "rival"  # kinds of contenders, beside DENSE
LABELS = {
    NARROW: "a narrower dense layer",
    BFLOAT16: "dense in bfloat16",
    INT8_DYNAMIC: "dense in int8 (dynamic)",
    INT8_WEIGHTS: "dense in int8 (weights alone)",
}
WIDE = 1.5  # quartiles a larger factor apart tell nothing
AS_NONE = "no less than without layers"  # what an idle structure loses


@dataclass(frozen=True)
class Contender:
    """One line of a ranking: a measured row, its rank, and what there is to say of it."""

    row: Row
    kind: str
    speedup: Spread  # over the best dense layer
    over_linear: Spread | None  # over nn.Linear; the quartiles are those of `speedup`, scaled
    memory_share: float | None  # of the bytes that dense holds
    quality: Quality
    doubts: tuple[str, ...] = ()  # why it stands below the ranking
    notes: tuple[str, ...] = ()  # what a reader must know beside the figures
    rank: int | None = None  # None: below
    tied: bool = False  # others have the same rank

    @property
    def name(self) -> str:
        return self.row.structure

    @property
    def options(self) -> str:
        return printable(",".join(f"{key}={value}" for key, value in self.row.options.items()))

    @property
    def label(self) -> str:
        """What a reader calls it."""
        if self.kind == DENSE:
            return "the best dense layer"
        return LABELS.get(self.name, self.name)

    @property
    def idle(self) -> bool:
        """Whether it is a structure that does no better than the control without these layers."""
        return self.kind == STRUCTURE and bool(self.quality.loss and self.quality.loss.idle)

    @property
    def beats_dense(self) -> bool:
        return self.rank is not None and self.speedup.q1 > 1

    def record(self) -> dict[str, Any]:
        """For programs."""
        row = self.row
        return {
            "structure": self.name,
            "series": row.series,
            "label": self.label,
            "kind": self.kind,
            "rank": self.rank,
            "tied": self.tied,
            "options": dict(row.options),
            "backend": row.backend,
            "speedup": asdict(self.speedup),
            "over_linear": self.over_linear and asdict(self.over_linear),
            "seconds": row.time.median,
            "params_share": row.params_share,
            "flops_share": row.flops_share,
            "executed_share": row.executed_share,
            "memory_bytes": row.held_bytes,
            "memory_share": self.memory_share,
            "error": row.error,
            "flags": list(row.flags),
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "quality": self.quality.record(),
        }


@dataclass(frozen=True)
class Verdict:
    """The answer to a question. `below` are those that neither win nor tie, by the same order."""

    question: Question
    ranking: tuple[Contender, ...]
    below: tuple[Contender, ...]
    refused: Mapping[str, str]  # structure -> why it was not measured here
    qualities: Qualities

    @property
    def winner(self) -> Contender | None:
        """The first of the ranking that beats dense and is not idle; None where dense stays ahead."""
        return next((one for one in self.ranking if one.beats_dense and not one.idle), None)

    @property
    def best(self) -> Contender | None:
        """Of the fastest structures that beat dense and cannot be told apart, the one that keeps the most.

        Another that is no slower by its median and keeps more still is taken before it: noise wins nothing.
        """
        useful = self.useful
        found = min((one for one in useful if one.rank == useful[0].rank), key=_lost, default=None)
        better = [one for one in useful if found and one.speedup.median >= found.speedup.median]
        return min(better, key=_lost, default=None)

    @property
    def useful(self) -> list[Contender]:
        """The structures that beat dense and are not idle, the fastest first."""
        return [one for one in self.ranking if one.kind == STRUCTURE and one.beats_dense and not one.idle]

    @property
    def rivals(self) -> tuple[Contender, ...]:
        """Dense's rivals that win or tie with the fastest structure, or are all there is."""
        first = next(iter(self.useful), None)
        return tuple(one for one in self.ranking if one.kind == RIVAL and one.beats_dense
                     and (first is None or (one.rank or 0) <= (first.rank or 0)))  # fmt: skip

    @property
    def ties(self) -> tuple[Contender, ...]:
        """Structures that cannot be told from the one that is taken."""
        first = self.best
        return tuple(one for one in self.useful if first and one.rank == first.rank and one is not first)

    @property
    def passed_over(self) -> tuple[Contender, ...]:
        """Idle structures that are faster than the one that is taken, by rank and median."""
        best = self.best
        idle = [one for one in self.ranking if best and one.idle and one.speedup.median > best.speedup.median]
        return tuple(one for one in idle if best and (one.rank or 0) < (best.rank or 0))

    @property
    def kept(self) -> Contender | None:
        """The structure that keeps the most of those that beat dense; None without any loss."""
        return min((one for one in self.useful if one.quality.loss), key=_lost, default=None)

    def record(self) -> dict[str, Any]:
        """For programs: what `recommend --json` prints."""
        return {
            "question": asdict(self.question),
            "winner": self.winner and self.winner.name,
            "best": self.best and self.best.name,
            "ranking": [one.record() for one in self.ranking],
            "below": [one.record() for one in self.below],
            "refused": dict(self.refused),
        }


def verdict(
    rows: Sequence[Row], question: Question, qualities: Qualities = NONE, refusals: Sequence[Refusal] = ()
) -> Verdict:
    """Rank what the rows hold at a question."""
    return judged(at_places(rows).get(question.place, ()), question, qualities, refusals)


def verdicts(rows: Sequence[Row], qualities: Qualities = NONE, refusals: Sequence[Refusal] = ()) -> list[Verdict]:
    """Of every question that the rows can answer, the one to show first in front."""
    places = at_places(rows)
    return [judged(places[one.place], one, qualities, refusals) for one in questions(rows)]


def judged(here: Sequence[Row], question: Question, qualities: Qualities, refusals: Sequence[Refusal]) -> Verdict:
    """Rank the rows of a question's place."""
    dense = next((row for row in here if row.structure == DENSE and not row.control), None)
    ratio = _over_linear(here, dense)
    paired = [row for row in here if row.speedup and _competes(row, question)]
    found = [
        _contender(row, dense, ratio, qualities.of(row.structure, row.params_share, question.share))
        for row in _one_each(paired, question)
    ]
    if dense:
        one = Spread(1.0, 1.0, 1.0, dense.time.rounds)
        found.append(Contender(dense, DENSE, one, _scaled(one, ratio), 1.0, qualities.of(DENSE, 1.0, question.share)))
    found.sort(key=lambda one: (-one.speedup.q1, one.kind != DENSE, one.row.series))
    runs = {id(row.run) for row in here}
    own = [one for one in refusals if id(one.run) in runs]
    reasons = _refused(own, question, {one.name for one in found})
    clean = [one for one in found if not one.doubts]
    return Verdict(question, _ranked(clean), tuple(one for one in found if one.doubts), reasons, qualities)


def _competes(row: Row, question: Question) -> bool:
    if rival(row):  # in fewer bits it is the layer itself, at any cost
        return row.structure != NARROW or question.fits(row)
    return row.structure != DENSE and not row.control and question.fits(row)


def _one_each(rows: Sequence[Row], question: Question) -> list[Row]:
    """Of each structure, and of each rival, the row that speaks for it."""
    asked = f"{question.equal}={question.share:g}"

    def order(row: Row) -> tuple[Any, ...]:
        assert row.speedup
        off = 0.0 if row.budget == asked else abs(question.costs(row) / question.share - 1)
        return (round(off, 2), bool(doubts(row, None)), row.budget != asked, -row.speedup.q1)

    best: dict[str, Row] = {}
    for row in sorted(rows, key=order):
        best.setdefault(row.structure, row)
    return list(best.values())


def _contender(row: Row, dense: Row | None, ratio: float | None, quality: Quality) -> Contender:
    assert row.speedup
    over = ratio
    if over is None and row.speedup_over_linear:
        over = row.speedup_over_linear / row.speedup.median
    return Contender(
        row,
        RIVAL if row.control else STRUCTURE,
        row.speedup,
        _scaled(row.speedup, over),
        row.held_bytes / dense.held_bytes if dense else None,
        quality,
        doubts(row, dense),
        _notes(row, dense, quality),
    )


def _ranked(found: Sequence[Contender]) -> tuple[Contender, ...]:
    """With their ranks: whoever reaches the lower quartile of the first of a rank shares it."""
    firsts: list[tuple[int, float]] = []  # ranks, with the lower quartile of their first
    made: list[Contender] = []
    for i, one in enumerate(found):
        rank = next((rank for rank, low in firsts if one.speedup.q3 >= low), None)
        if rank is None:
            rank = i + 1
            firsts.append((rank, one.speedup.q1))
        made.append(replace(one, rank=rank))
    ranks = [one.rank for one in made]
    tied = [replace(one, tied=ranks.count(one.rank) > 1) for one in made]
    return tuple(sorted(tied, key=lambda one: one.rank or 0))


def _lost(one: Contender) -> float:
    return one.quality.loss.difference if one.quality.loss else math.inf


# -- what is believed


def doubts(row: Row, dense: Row | None) -> tuple[str, ...]:
    """Why a row neither wins nor ties; empty where nothing is wrong with it."""
    assert row.speedup
    found = [f"flagged {' and '.join(row.flags)}"] if row.flags else []
    apart = row.speedup.q3 / row.speedup.q1
    if apart > WIDE:
        found.append(f"quartiles a factor of {digits(apart)} apart")
    allowed, because = _allowed(row, dense)
    if not fewer_bits(row) and row.speedup.q1 > allowed * (1 + NEAR):
        found.append(f"implausible: {digits(row.speedup.median)}x, but {because}")
    return tuple(found)


def fewer_bits(row: Row) -> bool:
    """Whether a row runs the dense layer in other numbers, whose rate has nothing to do with FLOPs and bytes."""
    return rival(row) and row.structure != NARROW


def _notes(row: Row, dense: Row | None, quality: Quality) -> tuple[str, ...]:
    found = [f"loses {AS_NONE}"] if quality.loss and quality.loss.idle and not rival(row) else []
    if not near(row.executed_share, row.params_share):
        found.append(f"runs {percent(row.executed_share)} of dense's FLOPs")
    saved = 1 / row.executed_share
    if not fewer_bits(row) and row.speedup and row.speedup.q1 > saved * (1 + NEAR):
        found.append(f"faster than its FLOPs alone allow ({digits(saved)}x fewer): {_allowed(row, dense)[1]}")
    return tuple(found)


def _allowed(row: Row, dense: Row | None) -> tuple[float, str]:
    """The largest speed-up that fewer FLOPs, fewer bytes, or a cache that dense leaves can explain; and why."""
    flops = 1 / row.executed_share
    moved = dense.bytes / row.bytes if dense else 1.0
    said = f"it runs {digits(flops)}x fewer FLOPs and moves {digits(moved)}x fewer bytes"
    limits = _limits(row)
    if dense and limits and limits.cache_bytes and limits.cache_bytes_per_s:
        if row.bytes < limits.cache_bytes < dense.bytes:
            faster = limits.cache_bytes_per_s / limits.copy_bytes_per_s
            said += f"; dense's {dense.bytes / 1e6:.0f} MB leave the cache, which is {digits(faster)}x faster"
            return max(flops, moved * max(1.0, faster)), said
    return max(flops, moved), said


def _limits(row: Row) -> Limits | None:
    same = (row.device, row.dtype, row.threads)
    return next((one for one in row.run.roofline if (one.device, one.dtype, one.threads) == same), None)


# -- beside the ranking


def _over_linear(here: Sequence[Row], dense: Row | None) -> float | None:
    """The best dense layer's speed over nn.Linear's: paired where that was measured, else from dense's candidates."""
    linear = next((row for row in here if row.control and row.series == f"{DENSE} by linear" and row.speedup), None)
    if linear and linear.speedup:
        return 1 / linear.speedup.median
    times = dense.extra.get("candidates") if dense else None
    if isinstance(times, dict) and "linear" in times and all(isinstance(t, float) and t > 0 for t in times.values()):
        return float(times["linear"] / min(times.values()))
    return None


def _scaled(speedup: Spread, ratio: float | None) -> Spread | None:
    if ratio is None:
        return None
    return Spread(speedup.median * ratio, speedup.q1 * ratio, speedup.q3 * ratio, speedup.rounds)


def _refused(refusals: Sequence[Refusal], question: Question, found: set[str]) -> dict[str, str]:
    """Structures that were refused at the very layer, at the budget asked for or with options of their own."""
    same = ("in_features", "out_features", "tokens", "dtype", "device", "mode")
    reasons: dict[str, str] = {}
    for one in refusals:
        here = one.covers(question, same)
        asked = one.budget in (None, f"{question.equal}={question.share:g}")
        if here and asked and one.structure not in found:
            reasons.setdefault(one.structure, one.reason)
    return reasons
