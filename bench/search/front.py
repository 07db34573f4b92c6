"""Which candidates survive, and why: those that no other beats in time and in quality at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrontPoint:
    """A finished candidate: time as a share of dense's, and quality (less is better; None where none was asked for)."""

    name: str
    time: float
    quality: float | None
    named: bool
    quartiles: tuple[float, float] | None = None  # of the time

    def clearly_faster(self, other: FrontPoint) -> bool:
        """Whether the quartiles do not touch."""
        return (self.quartiles or (0, self.time))[1] < (other.quartiles or (other.time, 0))[0]


def front(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Those that no other beats, the fastest first; without quality, the fastest alone."""
    found: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.time, _quality(p), p.name)):
        if not found or _quality(point) < _quality(found[-1]):
            found.append(point)
    return found


def layers(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """All points: those of the front, then the front of the rest, and so on; of each front the best quality first."""
    left, ordered = list(points), []
    while left:
        best = front(left)
        ordered += best[::-1]
        left = [p for p in left if p not in best]
    return ordered


def reasons(points: Sequence[FrontPoint]) -> Mapping[str, str]:
    """A sentence for each survivor: what it is best at, and which candidate comes next."""
    best = front(points)
    told = {}
    for number, point in enumerate(best):
        rest = [p for p in points if p is not point]
        parts = []
        if number == 0:
            parts.append("the fastest of all")
        if number == len(best) - 1 and point.quality is not None:
            parts.append("the best quality of all")
        if point.quality is not None and 0 < number:
            parts.append(f"better than all that are faster, of which the best, {best[number - 1].name}, "
                         f"has {_quality(best[number - 1]):.3f}")  # fmt: skip
        slower = [p for p in rest if p.time > point.time and _quality(p) >= _quality(point)]
        named = [p for p in slower if p.named]
        if slower:
            nearest = min(named or slower, key=lambda p: p.time)
            word = "named entry" if named else "candidate"
            parts.append(f"faster than every {word} that is no better: the next, {nearest.name}, takes "
                         f"{nearest.time / point.time:.2f} times as long")  # fmt: skip
        told[point.name] = "; ".join(parts) or "the only candidate"
    return told


def verdict(points: Sequence[FrontPoint]) -> str:
    """Whether a member of the space is faster than every named entry at a quality as good as the best of these."""
    named, found = [p for p in points if p.named], [p for p in points if not p.named]
    if not named or not found:
        return "No named entry to compare with." if not named else "Only named entries are left."
    fastest = min(named, key=lambda p: p.time)
    best = min(named, key=lambda p: (_quality(p), p.time))
    as_good = [p for p in found if _quality(p) <= _quality(best)]
    winners = [p for p in as_good if p.time < best.time]
    ahead = [p for p in found if p.time < fastest.time and _quality(p) <= _quality(fastest)]
    said = [_against(ahead, fastest, "fastest"), "" if best is fastest else _against(winners, best, "best")]
    return " ".join(filter(None, said))


def _against(winners: Sequence[FrontPoint], named: FrontPoint, word: str) -> str:
    what = f"the {word} named entry, {named.name}"
    if not winners:
        return f"No member of the space is faster than {what}, at its quality or better."
    winner = min(winners, key=lambda p: p.time)
    if not winner.clearly_faster(named):
        return (
            f"{winner.name} cannot be told from {what}, in time: the quartiles touch; its quality is as good or better."
        )
    return f"{winner.name} is {named.time / winner.time:.2f} times as fast as {what}, at its quality or better."


def _quality(point: FrontPoint) -> float:
    return 0.0 if point.quality is None else point.quality
