"""Where things stand in a chart: limits and ticks of logarithmic axes, and labels that do not touch."""

import math
from collections.abc import Mapping, Sequence

_FINE = (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)


def limits(values: Sequence[float], pad: float) -> list[float]:
    """Limits of a logarithmic axis: the values, and `pad` times as far on either side; more where they hardly vary."""
    low, high = min(values), max(values)
    pad = pad * 1.25 if high < low * 1.5 else pad
    return [low / pad, high * pad]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers inside the limits, about three to nine of them: of every power of ten a few, or only the powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (_FINE, (1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 9:
            break
    return found


def beside(ends: Mapping[str, float], limits: Sequence[float], height: float, gap: float) -> dict[str, float]:
    """For labels wanted at the values `ends` of a logarithmic axis, values near them that are `gap` pixels apart."""
    top = math.log(limits[1])
    scale = height / (top - math.log(limits[0]))
    placed = apart({id: (top - math.log(end)) * scale for id, end in ends.items()}, gap, height)
    return {id: math.exp(top - pixel / scale) for id, pixel in placed.items()}


def apart(wanted: Mapping[str, float], gap: float, height: float) -> dict[str, float]:
    """Positions near the wanted ones, in their order, at least `gap` apart and inside [0, height] if they fit.

    Labels that would touch form a group, which stands as near as it can to what its members want on average.
    """
    groups: list[tuple[float, list[str]]] = []  # the first member's position, and the members, one gap after the other
    for id in sorted(wanted, key=lambda id: wanted[id]):
        start, members = wanted[id], [id]
        while groups and groups[-1][0] + gap * len(groups[-1][1]) > start:
            members = groups.pop()[1] + members
            mean = sum(wanted[member] - gap * i for i, member in enumerate(members)) / len(members)
            start = max(0.0, min(mean, height - gap * (len(members) - 1)))
        groups.append((start, members))
    return {id: start + gap * i for start, members in groups for i, id in enumerate(members)}
