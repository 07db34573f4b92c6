"""Where things stand in a chart: limits and ticks of axes, and names that do not touch. `plot.js` does the same."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

STEPS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,))  # of every power of ten
LETTER, LINE = 6.0, 12.0  # pixels of a name
SIDES = ((9, 0, "left"), (-9, 0, "right"), (0, -12, "center"), (0, 13, "center"), (7, -11, "left"), (7, 11, "left"),
         (-7, -11, "right"), (-7, 11, "right"))  # fmt: skip

Box = tuple[float, float, float, float]  # left, top, right, bottom
Side = tuple[float, float, str]  # a name's place from its point, and its alignment


class Frame(NamedTuple):
    """A plot: the limits of its axes, its size in pixels, and whether the axes are logarithmic."""

    x: Sequence[float]
    y: Sequence[float]
    width: float
    height: float
    log_x: bool
    log_y: bool

    def across(self, x: float) -> float:
        """Pixels from the left."""
        return _part(x, self.x, self.log_x) * self.width

    def down(self, y: float) -> float:
        """Pixels from the top."""
        return (1 - _part(y, self.y, self.log_y)) * self.height

    def at_height(self, pixels: float) -> float:
        """The value that stands at a height."""
        part, (low, high) = 1 - pixels / self.height, self.y
        return low * (high / low) ** part if self.log_y else low + (high - low) * part


def _part(value: float, limits: Sequence[float], log: bool) -> float:
    low, high = limits
    value = min(max(value, low), high)
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The values and some room on either side."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if log:
        pad = max(1.03, (high / low) ** 0.05)
        return low / pad, high * pad
    pad = (high - low or abs(high) or 1.0) * 0.05
    return low - pad, high + pad


def ticks(low: float, high: float, log: bool) -> list[float]:
    """About three to nine round numbers inside the limits."""
    if not log or high < low * 4:
        power = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= 7)
        return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    several = (
        [s * 10.0**power for power in powers for s in steps if low <= s * 10.0**power <= high] for steps in STEPS
    )
    return next((found for found in several if len(found) <= 11), [10.0**p for p in powers if low <= 10.0**p <= high])


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats at a smaller or equal cost, by cost: (cost, quality) pairs."""
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not found or points[i][1] > points[found[-1]][1]:
            found.append(i)
    return found


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A line through points that keeps each height up to the next point."""
    corners = [(after[0], before[1]) for before, after in pairwise(points)]
    return [*points[:1], *(p for pair in zip(corners, points[1:], strict=True) for p in pair)]


def apart(wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least `gap` apart and inside [0, height] if they fit.

    Names that would touch form a group, which stands as near as it can to what its members want on average.
    """
    groups: list[tuple[float, list[int]]] = []  # the first member's position, and the members, one gap after the other
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        start, members = wanted[i], [i]
        while groups and groups[-1][0] + gap * len(groups[-1][1]) > start:
            members = groups.pop()[1] + members
            mean = sum(wanted[member] - gap * k for k, member in enumerate(members)) / len(members)
            start = max(0.0, min(mean, height - gap * (len(members) - 1)))
        groups.append((start, members))
    placed = {member: start + gap * k for start, members in groups for k, member in enumerate(members)}
    return [placed[i] for i in range(len(wanted))]


def free(
    wanted: Sequence[tuple[str, float, float]], marks: Sequence[Box], width: float, height: float
) -> list[Side | None]:
    """For each name at a point the first of the places around it that covers no mark and no other name."""
    taken = list(marks)
    found: list[Side | None] = []
    for name, x, y in wanted:
        long = LETTER * len(name)
        for dx, dy, align in SIDES:
            left = x + dx - {"left": 0.0, "right": long, "center": long / 2}[align]
            box = (left, y + dy - LINE / 2, left + long, y + dy + LINE / 2)
            inside = box[0] >= 0 and box[1] >= 0 and box[3] <= height and box[2] <= width + 60
            if inside and not any(_touch(box, other) for other in taken):
                taken.append(box)
                found.append((dx, dy, align))
                break
        else:
            found.append(None)
    return found


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
