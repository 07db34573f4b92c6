"""Which structure for a layer: measured points near the one asked for, ranked at equal cost, with what they rest on.

Near is within a factor of 2 in each of in_features, out_features and tokens. Nothing is extrapolated: a figure is
measured at the very point, or lies between two near points of one series that have it between them, or is a neighbour's
and said to be one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.files.errors import UsageError, one_of
from bench.files.fields import BadResults
from bench.files.options import dtype
from bench.files.rows import Results, Row, Spread
from bench.files.terminal import percent
from bench.files.vocabulary import CLOCKS, DEVICES, DTYPES, MODES, NEAR

FACTOR = 1.0  # log2 of the factor within which a point is near
EXACT, BETWEEN, NEIGHBOUR = "measured here", "between", "neighbour"
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Query:
    """What is asked: a layer, where it runs, and what it may cost. None leaves it to the file, where it has one."""

    in_features: int
    out_features: int
    tokens: int
    dtype: str | None = None
    params: float | None = None
    flops: float | None = None
    mode: str | None = None
    device: str | None = None
    threads: int | None = None
    clock: str | None = None

    @property
    def place(self) -> Place:
        return self.in_features, self.out_features, self.tokens

    @property
    def cost(self) -> str:
        shares = ((self.params, "parameters"), (self.flops, "FLOPs"))
        return " and ".join(f"{percent(share)} of dense's {what}" for share, what in shares if share)


@dataclass(frozen=True)
class Estimate:
    """What is expected of one series at the point asked for, and the rows it rests on: one, or two around it."""

    kind: str
    rows: tuple[Row, ...]
    speedup: Spread  # between two rows: from the lower of the first quartiles to the higher of the third

    @property
    def series(self) -> str:
        return self.rows[0].series

    @property
    def place(self) -> Place | None:
        """Where a neighbour stands; None at the point asked for."""
        return place_of(self.rows[0]) if self.kind == NEIGHBOUR else None


@dataclass(frozen=True)
class Ranking:
    """Estimates for the same place, the fastest first, and their ranks; ties have the same."""

    place: Place | None  # None: the point asked for
    ranked: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True)
class Answer:
    """What a results file says to a query. Without groups there are no data near it, and `missing` says why."""

    query: Query
    groups: tuple[Ranking, ...]
    narrow: tuple[Estimate, ...]  # dense layers narrowed to the same cost, for comparison
    refused: Mapping[str, str]  # structure -> why it was refused at this layer
    dense: bool  # the sweep's rows of dense are there, so speed-ups are against its fastest way to run it
    missing: str


def recommend(results: Results, query: Query) -> Answer:
    """Rank what the results hold near a query.

    Raises:
        UsageError: a word that is not known, a condition left open that the files hold several of, or no cost.
        BadResults: files of different machines or versions.
    """
    if query.params is None and query.flops is None:
        raise UsageError(
            "name a cost: --params 50% or --flops 25%; without one the smallest structure would always win"
        )
    for option, share in (("--params", query.params), ("--flops", query.flops)):
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"{option}: {percent(share)} is not a share of dense; write 50% or 0.5")
    _check_machine(results)
    query, rows, missing = _under_its_conditions(results, query)
    own = [row for row in rows if row.structure != "dense" and not row.control and row.speedup]
    affordable = [row for row in own if _within(row, query)]
    estimates = _estimates(affordable, query.place)
    controls = [row for row in rows if row.control and row.structure != "dense" and row.speedup and _within(row, query)]
    return Answer(
        query=query,
        groups=_groups(estimates, query.place),
        narrow=tuple(e for e in _estimates(controls, query.place) if e.kind != NEIGHBOUR),
        refused=_refused(results, query, {e.rows[0].structure for e in estimates}),
        dense=any(row.structure == "dense" and not row.control for row in rows),
        missing="" if estimates else missing or _missing(own, affordable, query),
    )


def _check_machine(results: Results) -> None:
    first = results.runs[0]
    for run in results.runs[1:]:
        differ = [
            f"{key} {value} | {run.machine[key]}" for key, value in first.machine.items() if run.machine[key] != value
        ]
        if differ:
            raise BadResults(
                f"{first.file} and {run.file} were measured differently: {'; '.join(differ)}; give one of them"
            )


def _under_its_conditions(results: Results, query: Query) -> tuple[Query, list[Row], str]:
    """The query with its conditions settled, the rows under them, and a reason where there are none."""
    rows = list(results.rows)
    files = ", ".join(run.file for run in results.runs)
    hold = "holds" if len(results.runs) == 1 else "hold"
    if not rows:
        return query, [], f"{files}: every point was refused"
    known = {"device": DEVICES, "clock": CLOCKS, "dtype": DTYPES, "mode": MODES}
    settled: dict[str, Any] = {}
    for key in ("device", "clock", "dtype", "mode", "threads"):
        held = list(dict.fromkeys(getattr(row, key) for row in rows))
        asked = getattr(query, key)
        if asked is not None and key in known:
            of_these = f"of which {files} {hold} {_words(held)}"
            word = dtype if key == "dtype" else one_of
            asked = word(f"--{key}", asked, known[key], of_these)
        elif asked is None and key == "mode" and "forward" in held:
            asked = "forward"
        elif asked is None and len(held) > 1:
            raise UsageError(f"--{key}: {files} {hold} {_words(held)}; name one")
        if asked is not None and asked not in held:
            where = ", ".join(value for name, value in settled.items() if name != "clock")
            of_device = f" on {where}" if where else ""
            return replace(query, **settled, **{key: asked}), [], f"{files} {hold} {key} {_words(held)} only{of_device}"
        settled[key] = held[0] if asked is None and held else asked
        rows = [row for row in rows if getattr(row, key) == settled[key]]
    return replace(query, **settled), rows, ""


def _words(held: Iterable[Any]) -> str:
    return ", ".join(map(str, held))


def _within(row: Row, query: Query) -> bool:
    shares = ((query.params, row.params_share), (query.flops, row.flops_share))
    return all(asked is None or abs(found / asked - 1) <= NEAR + 1e-9 for asked, found in shares)


# -- what is near


def place_of(row: Row) -> Place:
    """Where a row was measured."""
    return row.in_features, row.out_features, row.tokens


def away(place: Place, query: Place) -> tuple[float, float, float]:
    """log2 of each size over the one asked for."""
    x, y, z = (math.log2(size / asked) for size, asked in zip(place, query, strict=True))
    return x, y, z


def _estimates(rows: Sequence[Row], query: Place) -> list[Estimate]:
    """One estimate a series that has near rows; two where several backends ran at one place."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.structure, row.series, row.budget), []).append(row)
    for key, members in list(lines.items()):
        if len({place_of(row) for row in members}) < len(members):
            del lines[key]
            for row in members:
                lines.setdefault((*key, row.backend), []).append(row)
    found = [estimate for members in lines.values() if (estimate := _estimate(members, query))]
    return _without_repeats(found)


def _estimate(rows: Sequence[Row], query: Place) -> Estimate | None:
    near = [row for row in rows if all(abs(step) <= FACTOR + 1e-9 for step in away(place_of(row), query))]
    if not near:
        return None
    near.sort(key=lambda row: math.hypot(*away(place_of(row), query)))
    first = near[0]
    if place_of(first) == query and first.speedup:
        return Estimate(EXACT, (first,), first.speedup)
    pairs = [(one, other) for i, one in enumerate(near) for other in near[i + 1 :] if _around(one, other, query)]
    if pairs:
        return _between(
            *min(pairs, key=lambda pair: sum(math.hypot(*away(place_of(row), query)) for row in pair)), query
        )
    return Estimate(NEIGHBOUR, (first,), first.speedup) if first.speedup else None


def _around(one: Row, other: Row, query: Place) -> bool:
    """Whether the point asked for lies on the straight line between two places, over the logarithms of their sizes."""
    a, b = away(place_of(one), query), away(place_of(other), query)
    return sum(x * y for x, y in zip(a, b, strict=True)) < (1e-9 - 1) * math.hypot(*a) * math.hypot(*b)


def _between(one: Row, other: Row, query: Place) -> Estimate | None:
    a, b = one.speedup, other.speedup
    if not a or not b:
        return None
    near, far = math.hypot(*away(place_of(one), query)), math.hypot(*away(place_of(other), query))
    weight = near / (near + far)
    median = math.exp((1 - weight) * math.log(a.median) + weight * math.log(b.median))
    rows = (one, other) if place_of(one) < place_of(other) else (other, one)
    return Estimate(BETWEEN, rows, Spread(median, min(a.q1, b.q1), max(a.q3, b.q3), min(a.rounds, b.rounds)))


def _without_repeats(estimates: Sequence[Estimate]) -> list[Estimate]:
    """A layer measured under two names, as at a budget and by its options, counts once: with the smaller spread."""
    best: dict[tuple[Any, ...], Estimate] = {}
    for estimate in estimates:
        layers = (
            (row.structure, repr(sorted(row.options.items())), row.backend, place_of(row)) for row in estimate.rows
        )
        key = (estimate.kind, *layers)
        other = best.setdefault(key, estimate)
        if estimate.speedup.width < other.speedup.width:
            best[key] = estimate
    return list(best.values())


def _groups(estimates: Sequence[Estimate], query: Place) -> tuple[Ranking, ...]:
    """Estimates by place, the point asked for first, then the nearest: speed-ups of different places do not compare."""
    by_place: dict[Place | None, list[Estimate]] = {}
    for estimate in estimates:
        by_place.setdefault(estimate.place, []).append(estimate)
    places = sorted(by_place, key=lambda place: math.hypot(*away(place, query)) if place else -1.0)
    return tuple(Ranking(place, tuple(ranked(by_place[place]))) for place in places)


def ranked(estimates: Sequence[Estimate]) -> list[tuple[int, Estimate]]:
    """The fastest first; those whose quartiles reach the first of a rank are a tie with it and share the rank."""
    found: list[tuple[int, Estimate]] = []
    leader, rank = None, 0
    for i, estimate in enumerate(sorted(estimates, key=lambda e: -e.speedup.median)):
        if leader is None or estimate.speedup.q3 < leader.speedup.q1:
            leader, rank = estimate, i + 1
        found.append((rank, estimate))
    return found


def _refused(results: Results, query: Query, found: set[str]) -> dict[str, str]:
    """Structures that were refused at the very layer, at a budget asked for or with options of their own."""
    asked = [f"{key}={share:g}" for key, share in (("params", query.params), ("flops", query.flops)) if share]
    reasons: dict[str, str] = {}
    for refusal in results.refusals:
        same = all(
            getattr(refusal, key) in (None, getattr(query, key)) for key in ("tokens", "dtype", "device", "mode")
        )
        here = (refusal.in_features, refusal.out_features) == (query.in_features, query.out_features)
        if same and here and refusal.budget in (None, *asked) and refusal.structure not in found:
            reasons.setdefault(refusal.structure, refusal.reason)
    return reasons


def _missing(own: Sequence[Row], affordable: Sequence[Row], query: Query) -> str:
    """Why nothing is near: the nearest at this cost, or the costs that are held."""
    near = [row for row in own if all(abs(step) <= FACTOR + 1e-9 for step in away(place_of(row), query.place))]
    if near:
        row = min(near, key=lambda row: sum(abs(math.log(found / asked)) for asked, found in _costs(row, query)))
        shares = f"{percent(row.params_share)} of the parameters, {percent(row.flops_share)} of the FLOPs"
        held = sorted({row.budget for row in near if row.budget})
        classes = f"; budgets measured there: {', '.join(held)}" if held else ""
        return f"nearest in cost is {row.series} with {shares}{classes}"
    if not own:
        return "only dense layers were measured under these conditions"
    row = min(affordable or own, key=lambda row: math.hypot(*away(place_of(row), query.place)))
    cost = "" if affordable else f", with {percent(row.params_share)} of the parameters,"
    return f"nearest is {row.series}{cost} at {at(place_of(row))} ({steps(place_of(row), query.place)})"


def at(place: Place) -> str:
    """A place in words."""
    return f"{place[0]}x{place[1]}, {place[2]} token{'s' if place[2] > 1 else ''}"


def steps(place: Place, query: Place) -> str:
    """How far a place is from the one asked for, in powers of 2."""
    words = zip(("in", "out", "tokens"), away(place, query), strict=True)
    return "log2 away: " + ", ".join(f"{word} {step:+.2f}" if abs(step) > 5e-3 else f"{word} 0" for word, step in words)


def _costs(row: Row, query: Query) -> list[tuple[float, float]]:
    both = ((query.params, row.params_share), (query.flops, row.flops_share))
    return [(asked, found) for asked, found in both if asked is not None]
