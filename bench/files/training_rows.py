"""What a file of `bench train` holds, read and checked: runs with their curves, and ratios of steps' times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from bench.files import declared
from bench.files.declared import Key, Reader
from bench.files.fields import Fields
from bench.files.rows import Spread
from bench.files.vocabulary import FEWER_BITS
from structures.reading import BadFile

PHASES = ("train", "time")
SHARES = ("replaced_params_share", "params_share", "train_flops_share", "replaced_flops_share")


@dataclass(frozen=True)
class TrainingPlace:
    """What losses may be compared within: one network on one data set, at one width."""

    setting: declared.Name
    width: declared.Count


@dataclass(frozen=True, kw_only=True)
class RateTry:
    """A learning rate, run at full length: this seed's loss where rates are chosen, and where it is reported."""

    lr: declared.Number
    tune: declared.Number | None  # None: it diverged
    loss: declared.Number | None


def _tries(fields: Fields, key: str) -> tuple[RateTry, ...]:
    return tuple(declared.read(RateTry, one) for one in fields.each(key))


def _curve(fields: Fields, key: str) -> tuple[tuple[int, float], ...]:
    points = fields.get(key)
    good = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not good or not all(isinstance(s, int) and isinstance(v, int | float) and v > 0 for s, v in points):
        raise fields.bad(key, "a list of [step, positive loss]")
    return tuple((step, float(loss)) for step, loss in points)


def _rounded(fields: Fields, key: str) -> tuple[tuple[str, float], ...]:
    own = fields.inside(key)
    return tuple((form, own.number(form)) for form in FEWER_BITS if form in own)


def _seed(fields: Fields, key: str) -> int:
    return int(fields.within(key, 0, 1e9))


def _key(name: str) -> Any:
    return Annotated[float, Reader(Fields.number), Key(name)]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training run that is reported."""

    place: TrainingPlace
    task: declared.Name
    model: declared.Name
    layers: Annotated[str, declared.choice("ff", "all")]
    data: declared.Name
    structure: declared.Name
    series: declared.Name
    control: bool
    budget: declared.Name | None
    options: declared.Object
    seed: Annotated[int, Reader(_seed)]
    lr: declared.Number
    rate_at_end: declared.Flag  # the best of those tried was the largest or smallest: a further one might do better
    by_rate: Annotated[tuple[RateTry, ...], Reader(_tries)] = ()
    paired: declared.Flag = False  # the seed draws the task too, so that runs of one seed belong together
    steps: declared.Count
    tokens: _key("tokens_per_step")  # type: ignore[valid-type]
    loss: declared.Number | None = None  # None: it diverged
    reason: declared.Words | None = None
    curve: Annotated[tuple[tuple[int, float], ...], Reader(_curve)]
    params: declared.Number
    train_flops: declared.Number  # of one token, counted
    executed: _key("executed_train_flops")  # type: ignore[valid-type]  # of one token, as run
    shares: dict[str, float]
    bits_per_byte: declared.Number | None = None  # of text
    rounded: Annotated[tuple[tuple[str, float], ...], Reader(_rounded)] = ()  # losses of dense in fewer bits


@dataclass(frozen=True)
class Time:
    """Dense's step time over this variant's, paired, and this one's seconds."""

    place: TrainingPlace
    structure: declared.Name
    series: declared.Name
    ratio: Annotated[Spread, Key("speedup")]
    seconds: _key("step_seconds")  # type: ignore[valid-type]
    dense_seconds: declared.Number
    flags: declared.Names

    @property
    def speedup(self) -> float:
        return self.ratio.median


def read(rows: Sequence[Fields]) -> tuple[list[TrainingRun], list[Time]]:
    """Runs to report, and times.

    Raises:
        BadFile: a field is missing or impossible.
    """
    runs, times = [], []
    keys: dict[str, str] = {}
    for fields in rows:
        if fields.choice("phase", PHASES) == "train":
            runs.append(_run(fields))
            name, key = runs[-1].place.setting, fields.name("setting_key")
            if keys.setdefault(name, key) != key:
                raise BadFile(
                    f"{fields.where}: {name} was trained in two ways (steps, batch or the like); their losses cannot "
                    "stand beside each other"
                )
        else:
            times.append(declared.read(Time, fields, place=declared.read(TrainingPlace, fields)))
    return runs, times


def _run(fields: Fields) -> TrainingRun:
    return declared.read(
        TrainingRun,
        fields,
        place=declared.read(TrainingPlace, fields),
        control=fields.name("way") == "control",
        shares={key: fields.within(key, 0, 1e6) for key in SHARES},
    )
