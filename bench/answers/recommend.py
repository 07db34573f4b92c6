"""Which structure for a layer: the verdict at the layer asked for, or at the nearest one that was measured.

Near is within a factor of 2 in each of in_features, out_features and tokens. Nothing is estimated: the figures are
those measured, at the layer that is named.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.answers.qualities import Qualities
from bench.answers.question import FLOPS, PARAMS, USUAL_DTYPE, Question, at_places
from bench.answers.verdict import Verdict, judged
from bench.files.errors import UsageError, one_of
from bench.files.options import dtype
from bench.files.rows import Results, Row
from bench.files.terminal import percent
from bench.files.vocabulary import CLOCKS, DENSE, DEVICES, DTYPES, MODES

DEFAULTS = {"dtype": USUAL_DTYPE, "mode": MODES[0]}
FACTOR = 1.0  # log2 of the factor within which a layer is near


@dataclass(frozen=True)
class Query:
    """What is asked: a layer, where it runs, and what it may cost. None leaves it to the files, where they have one."""

    in_features: int
    out_features: int
    tokens: int
    params: float | None = None
    flops: float | None = None
    dtype: str | None = None
    mode: str | None = None
    device: str | None = None
    threads: int | None = None
    clock: str | None = None
    machine: str | None = None  # a part of its name

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.in_features, self.out_features, self.tokens


@dataclass(frozen=True)
class Answer:
    """What results files say to a query. Without a verdict nothing was measured near it, and `missing` says why."""

    query: Query  # its conditions settled
    verdict: Verdict | None
    missing: str = ""

    @property
    def exact(self) -> bool:
        """Whether the very layer was measured."""
        return self.verdict is not None and sizes(self.verdict.question) == self.query.sizes


def recommend(results: Results, query: Query, qualities: Qualities) -> Answer:
    """The verdict on what the results hold at a query, or at the nearest layer.

    Raises:
        UsageError: a word that is not known, a condition left open that the files hold several of, or no cost.
    """
    equal, share = _cost(query)
    places = {replace(place, equal=equal, share=share): rows for place, rows in at_places(results.rows).items()}
    query, fitting, missing = _under_its_conditions(places, query)
    measured = {place: [r for r in places[place] if _structure(r)] for place in fitting}
    worth = [place for place, rows in measured.items() if any(map(place.fits, rows))]
    near = [place for place in worth if _is_near(place, query)]
    if not near:
        return Answer(query, None, missing or _missing(measured, worth, query))
    place = min(near, key=lambda place: distance(place, query))
    return Answer(query, judged(places[place], place, qualities, results.refusals))


def sizes(question: Question) -> tuple[int, int, int]:
    """in_features, out_features, tokens."""
    return question.in_features, question.out_features, question.tokens


def distance(question: Question, query: Query) -> float:
    """How far a layer is from the one asked for, in powers of 2."""
    return math.hypot(*_steps(question, query))


def at(of: tuple[int, int, int]) -> str:
    """A layer in words."""
    return f"{of[0]}x{of[1]}, {of[2]} token{'s' if of[2] > 1 else ''}"


def _cost(query: Query) -> tuple[str, float]:
    given = [(PARAMS, query.params), (FLOPS, query.flops)]
    asked = [(equal, share) for equal, share in given if share is not None]
    if not asked:
        raise UsageError(
            "name a cost: --params 50% or --flops 25%; without one the smallest structure would always win"
        )
    if len(asked) > 1:
        raise UsageError("--params and --flops are two questions: name one")
    [(equal, share)] = asked
    if not 0 < share <= 1:
        raise UsageError(f"--{equal}: {percent(share)} is not a share of dense; write 50% or 0.5")
    return equal, share


def _structure(row: Row) -> bool:
    return row.structure != DENSE and not row.control and row.speedup is not None


def _steps(question: Question, query: Query) -> list[float]:
    return [math.log2(size / asked) for size, asked in zip(sizes(question), query.sizes, strict=True)]


def _is_near(question: Question, query: Query) -> bool:
    return all(abs(step) <= FACTOR + 1e-9 for step in _steps(question, query))


def _under_its_conditions(places: Iterable[Question], query: Query) -> tuple[Query, list[Question], str]:
    """The query with its conditions settled, the places under them, and a reason where there are none."""
    left = list(places)
    known = {"device": DEVICES, "clock": CLOCKS, "dtype": DTYPES, "mode": MODES}
    for key in ("machine", "device", "clock", "dtype", "mode", "threads"):
        held = list(dict.fromkeys(getattr(place, key) for place in left))
        asked, words = getattr(query, key), ("; " if key == "machine" else ", ").join(map(str, held))
        if asked is None:
            asked = DEFAULTS[key] if DEFAULTS.get(key) in held else held[0] if len(held) == 1 else None
        elif key == "machine":
            named = [name for name in held if asked.lower() in name.lower()]
            if len(named) != 1:
                raise UsageError(f"--machine: {asked!r} names {len(named)} of {'; '.join(held)}; write a part of one")
            asked = named[0]
        elif key in known:
            of_these = f"of which the files hold {words or 'none'}"
            asked = (dtype if key == "dtype" else one_of)(f"--{key}", asked, known[key], of_these)
        if asked is None and held:
            raise UsageError(f"--{key}: the files hold {words}; name one")
        if held and asked not in held:
            return replace(query, **{key: asked}), [], f"the files hold {key} {words} only"
        query = replace(query, **{key: asked})
        left = [place for place in left if getattr(place, key) == asked]
    return query, left, ""


def _missing(measured: Mapping[Question, Sequence[Row]], worth: Sequence[Question], query: Query) -> str:
    """Why nothing is near: the nearest layer at this cost, or the costs that were measured at the nearest one."""
    if worth:
        place = min(worth, key=lambda place: distance(place, query))
        return f"the nearest layer at this cost is {at(sizes(place))}"
    held = [place for place, rows in measured.items() if rows]
    if not measured:
        return "the files hold no rows"
    if not held:
        return "no structure was measured under these conditions"
    place = min(held, key=lambda place: distance(place, query))
    row = min(measured[place], key=lambda row: abs(math.log(place.costs(row) / place.share)))
    return f"nearest in cost is {row.series}, with {percent(place.costs(row))}, at {at(sizes(place))}"
