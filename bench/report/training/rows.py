"""What a file of `bench train` holds, read and checked: runs with their curves, and ratios of steps' times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.files.fields import BadResults, Fields, printable

PHASES = ("tune", "train", "time", "match", "teacher")
SHARES = ("replaced_params_share", "params_share", "train_flops_share", "replaced_flops_share")


@dataclass(frozen=True)
class TrainingPlace:
    """What losses may be compared within: one network on one data set, at one width."""

    setting: str
    width: int


@dataclass(frozen=True)
class Grammar:
    """The share of minimal pairs of which the right sentence has the greater probability."""

    accuracy: float
    pairs: int
    chance: float


@dataclass(frozen=True)
class TrainingRun:
    """One training run that is reported."""

    place: TrainingPlace
    task: str
    model: str
    layers: str
    data: str
    structure: str
    series: str
    control: bool
    start: str
    budget: str | None
    options: dict[str, Any]
    seed: int
    lr: float
    rate_at_end: bool  # the best of those tried was the largest or smallest: a further one might do better
    steps: int
    tokens: float  # of one step
    constant: bool  # the rate did not fall, so every point of the curve could have been an end
    loss: float | None  # None: it diverged
    reason: str | None
    curve: tuple[tuple[int, float], ...]
    params: float
    train_flops: float  # of one token, counted
    executed: float  # of one token, as run
    shares: dict[str, float]
    metrics: dict[str, float]
    grammar: Grammar | None
    phenomena: dict[str, Grammar]  # of the grammar test, by name
    teacher_loss: float | None


@dataclass(frozen=True)
class Time:
    """Dense's step time over this variant's, paired, and this one's seconds."""

    place: TrainingPlace
    structure: str
    series: str
    speedup: float
    q1: float
    q3: float
    seconds: float
    dense_seconds: float
    flags: tuple[str, ...]


def read(rows: Sequence[Fields]) -> tuple[list[TrainingRun], list[Time]]:
    """Runs to report and times; tries of rates are left out.

    Raises:
        BadResults: a field is missing or impossible.
    """
    runs, times = [], []
    keys: dict[str, str] = {}
    for fields in rows:
        phase = fields.choice("phase", PHASES)
        if phase == "train":
            runs.append(_run(fields))
            name, key = runs[-1].place.setting, fields.name("setting_key")
            if keys.setdefault(name, key) != key:
                raise BadResults(f"{fields.where}: {name} was trained in two ways (steps, batch or the like); their "
                                 "losses cannot stand beside each other")  # fmt: skip
        elif phase == "time":
            times.append(_time(fields))
    return runs, times


def _run(fields: Fields) -> TrainingRun:
    return TrainingRun(
        place=_place(fields),
        task=fields.name("task"),
        model=fields.name("model"),
        layers=fields.choice("layers", ("ff", "all")),
        data=fields.name("data"),
        structure=fields.name("structure"),
        series=fields.name("series"),
        control=fields.name("way") == "control",
        start=fields.words("start"),
        budget=None if fields.get("budget") is None else fields.name("budget"),
        options=fields.object("options"),
        seed=int(fields.within("seed", 0, 1e9)),
        lr=fields.number("lr"),
        rate_at_end=fields.flag("rate_at_end"),
        steps=fields.count("steps"),
        tokens=fields.number("tokens_per_step"),
        constant=fields.name("schedule") == "constant",
        loss=fields.number("loss") if "loss" in fields else None,
        reason=fields.words("reason") if "reason" in fields else None,
        curve=_curve(fields),
        params=fields.number("params"),
        train_flops=fields.number("train_flops"),
        executed=fields.number("executed_train_flops"),
        shares={key: fields.within(key, 0, 1e6) for key in SHARES},
        metrics={key: fields.within(key, 0, 1e6) for key in ("accuracy", "bits_per_byte") if key in fields},
        grammar=_grammar(fields.inside("grammar")) if "grammar" in fields else None,
        phenomena=_phenomena(fields) if "grammar_by_phenomenon" in fields else {},
        teacher_loss=fields.number("teacher_loss") if "teacher_loss" in fields else None,
    )


def _time(fields: Fields) -> Time:
    ratio = fields.inside("speedup")
    return Time(
        place=_place(fields),
        structure=fields.name("structure"),
        series=fields.name("series"),
        speedup=ratio.number("median"),
        q1=ratio.number("q1"),
        q3=ratio.number("q3"),
        seconds=fields.number("step_seconds"),
        dense_seconds=fields.number("dense_seconds"),
        flags=fields.names("flags"),
    )


def _place(fields: Fields) -> TrainingPlace:
    return TrainingPlace(fields.name("setting"), fields.count("width"))


def _curve(fields: Fields) -> tuple[tuple[int, float], ...]:
    points = fields.get("curve")
    good = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not good or not all(isinstance(s, int) and isinstance(v, int | float) and v > 0 for s, v in points):
        raise fields.bad("curve", "a list of [step, positive loss]")
    return tuple((step, float(loss)) for step, loss in points)


def _grammar(found: Fields) -> Grammar:
    return Grammar(found.within("accuracy", 0, 1), found.count("pairs"), found.within("chance", 0, 1))


def _phenomena(fields: Fields) -> dict[str, Grammar]:
    found = fields.inside("grammar_by_phenomenon")
    return {printable(name): _grammar(found.inside(name)) for name in found.values}
