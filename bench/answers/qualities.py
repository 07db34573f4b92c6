"""What structures cost in quality: losses after training, agreement after a conversion, and how far they mix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.answers import conversions, losses
from bench.answers.conversions import ConversionRow
from bench.answers.losses import BETTER, TIE, WORSE, Result
from bench.answers.question import near
from bench.files import kinds, training_rows
from bench.files.fields import load
from bench.files.kinds import File
from bench.files.training_rows import TrainingPlace
from bench.files.vocabulary import DENSE, FEWER_BITS, NARROW, REMOVED

REAL = ("language", "encoder")  # tasks on real data; the others are made up
TRAIN, CONVERT = "python -m bench train all -o training.json", "python -m bench minilm -o minilm.json"


@dataclass(frozen=True)
class LossBeside:
    """Held-out loss after training, beside dense's: the difference as a share, and its interval at 95 %.

    idle: it is worse than dense's, and not told from that of a control without these layers, of no more parameters.
    """

    task: str
    difference: float
    low: float
    high: float
    verdict: str  # better, worse, tie
    idle: bool = False


@dataclass(frozen=True)
class Agreement:
    """Embeddings of a converted encoder beside the dense one's: mean cosine, and how often the nearest is the same."""

    cosine: float
    neighbour: float


@dataclass(frozen=True)
class Quality:
    """What is known of one structure at one share of parameters; None is not measured."""

    loss: LossBeside | None = None
    agreement: Agreement | None = None

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {"loss": self.loss and asdict(self.loss), "agreement": self.agreement and asdict(self.agreement)}


@dataclass(frozen=True)
class Qualities:
    """What files of trained and converted networks hold."""

    trained: tuple[tuple[TrainingPlace, tuple[Result, ...]], ...] = ()
    converted: tuple[ConversionRow, ...] = ()

    def of(self, structure: str, share: float, asked: float) -> Quality:
        """Of a structure with a share of dense's parameters, on the task that tells most at the share asked for."""
        return Quality(self._loss(structure, share, asked), self._agreement(structure, share, asked))

    def missing(self) -> dict[str, str]:
        """What is not there -> the command that measures it."""
        return ({} if self.trained else {"loss": TRAIN}) | ({} if self.converted else {"agreement": CONVERT})

    def place(self, share: float) -> tuple[TrainingPlace, tuple[Result, ...]] | None:
        """The task that tells most at a share: on real data, then with most structures told from dense, then with most.

        A task counts only if it tells dense from a network whose layers were removed.
        """
        told = [(place, several) for place, several in self.trained if discriminates(several)]

        def worth(one: tuple[TrainingPlace, tuple[Result, ...]]) -> tuple[bool, int, int, int]:
            here = [r for r in one[1] if not r.first.control and _fits(r, share)]
            real = bool(here) and here[0].first.task in REAL
            return real, sum(r.verdict != TIE for r in here), len(here), one[0].width

        return max(told, key=worth, default=None)

    def narrowed(self, share: float) -> list[tuple[str, LossBeside, str, LossBeside]]:
        """On every task on real data: its name, what a narrower dense network loses, the best structure, its loss."""
        found = []
        for place, several in self.trained:
            here = [r for r in several if r.interval and (r.first.structure == NARROW or not r.first.control)]
            here = sorted([r for r in here if _fits(r, share)], key=lambda r: r.difference or 0.0)
            narrow = next((r for r in here if r.first.structure == NARROW), None)
            best = next((r for r in here if not r.first.control), None)
            if narrow and best and best.first.task in REAL and discriminates(several):
                name = best.first.structure
                found.append((place.setting, _beside(place, narrow, several), name, _beside(place, best, several)))
        return found

    def _loss(self, structure: str, share: float, asked: float) -> LossBeside | None:
        found = self.place(asked)
        if found is None:
            return None
        place, several = found
        if structure in FEWER_BITS:
            return _rounded(place, several, structure)
        own = [r for r in several if r.first.structure == structure]
        fitting = own if structure == DENSE else [r for r in own if _fits(r, share) or _alike(_share(r), share, asked)]
        fitting = [r for r in fitting if r.difference is not None and r.interval is not None]
        if not fitting:
            return None
        result = min(fitting, key=lambda r: abs(_share(r) / share - 1))
        return _beside(place, result, several)

    def _agreement(self, structure: str, share: float, asked: float) -> Agreement | None:
        own = [row for row in self.converted if row.structure == structure and (found := row.feed_forward_share)
               and (near(found, share) or _alike(found, share, asked))]  # fmt: skip
        best = max(own, key=lambda row: row.cosine, default=None)
        return Agreement(best.cosine, best.neighbour) if best else None


def _beside(place: TrainingPlace, result: Result, several: Sequence[Result]) -> LossBeside:
    assert result.difference is not None and result.interval is not None
    low, high = result.interval
    smaller = [r for r in several if r.first.structure == REMOVED and _share(r) <= _share(result)]
    idle = result.verdict == WORSE and any((losses.apart(result, r) or 0.0) >= 0 for r in smaller)
    return LossBeside(f"{place.setting}, width {place.width}", result.difference, low, high, result.verdict, idle)


def _rounded(place: TrainingPlace, several: Sequence[Result], form: str) -> LossBeside | None:
    """What the trained dense network loses when its layers are rounded: of each seed beside itself, by Student's."""
    logs = [
        math.log(dict(run.rounded)[form] / run.loss)
        for result in several if result.first.structure == DENSE
        for run in result.runs if run.loss and form in dict(run.rounded)
    ]  # fmt: skip
    if len(logs) < 2:
        return None
    middle, margin = mean(logs), losses.quantile(1, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    verdict = TIE if abs(middle) <= margin else WORSE if middle > 0 else BETTER
    low, high = math.expm1(middle - margin), math.expm1(middle + margin)
    return LossBeside(f"{place.setting}, width {place.width}", math.expm1(middle), low, high, verdict)


NONE = Qualities()
KINDS = {kinds.TRAINING, kinds.MINILM}
COMMITTED = Path(__file__).parents[1] / "results"  # by machine: */training.json, */minilm.json


def read(files: Sequence[File]) -> Qualities:
    """What the files of training and of converted encoders among `files` hold.

    Raises:
        BadFile: a field is missing or impossible.
    """
    found: list[tuple[TrainingPlace, tuple[Result, ...]]] = []
    for runs in [training_rows.read(file.rows)[0] for file in files if file.kind == kinds.TRAINING]:
        found += [(place, tuple(several)) for place, several in losses.results(runs).items()]
    rows = [conversions.read(fields) for file in files if file.kind == kinds.MINILM for fields in file.rows]
    return Qualities(tuple(found), tuple(rows))


def given_or_committed(files: Sequence[File]) -> Qualities:
    """Of the files given; what none of them is about, of those committed with the bench, where these are there."""
    return read(with_committed(files))


def with_committed(files: Sequence[File]) -> list[File]:
    """The files given, and of the kinds that none of them is of those committed with the bench."""
    missing = KINDS - {file.kind for file in files}
    found = [(kind, path) for kind in sorted(missing) for path in sorted(COMMITTED.glob(f"*/{kind}*.json"))]
    return [*files, *filter(_settled, [kinds.parse(path.name, load(path), (kind,)) for kind, path in found])]


def _settled(file: File) -> bool:
    """Whether each rate was tried at full length: a short try at one seed decides the place of a structure."""
    return file.kind != kinds.TRAINING or any(row.values.get("by_rate") for row in file.rows)


def discriminates(several: Sequence[Result]) -> bool:
    """Whether a task tells dense from a network whose layers were removed; one without that control does not say."""
    return any(r.first.structure == REMOVED and r.verdict == WORSE for r in several)


def _fits(result: Result, share: float) -> bool:
    """Whether it was trained at about this share of the replaced layers' parameters."""
    return _share(result) > 0 and near(_share(result), share)


def _share(result: Result) -> float:
    """Of the replaced layers' parameters."""
    return result.first.shares["replaced_params_share"]


def _alike(one: float, other: float, asked: float) -> bool:
    """Whether two shares are both what a structure has where a share is asked for, a little more and a little less."""
    return near(one, asked) and near(other, asked)
