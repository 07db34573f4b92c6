"""Published claims beside what files' rows say: each line is computed, and says no more than its comparison does."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from scipy import stats

from bench.answers.losses import TIE, Result, apart
from bench.files.training_rows import Time, TrainingPlace
from bench.files.vocabulary import DENSE
from bench.report.training.fronts import Front

FILE = Path(__file__).with_name("claims.json")
NOTHING = "not measured in these files"
# the loss of the best constant: of outputs at unit variance, and of 32 values that are equally likely
CONSTANT = {"encoder": 1.0, "teacher": 1.0, "facts": math.log(32)}


@dataclass(frozen=True)
class Claim:
    """What was published, where and at what scale; what was measured here; and what could not be tested."""

    claim: str
    figure: str
    source: str
    scale: str
    measured: tuple[str, ...]
    untested: str


@dataclass(frozen=True)
class Found:
    """What files say of some structures."""

    results: Mapping[TrainingPlace, Sequence[Result]]
    times: Sequence[Time]
    fronts: Sequence[Front]
    structures: Sequence[str]
    members: Mapping[str, Mapping[str, float]]  # of the two-factor space: omega, psi, nu by theta

    def own(self) -> list[tuple[TrainingPlace, Result, Result]]:
        """Place, dense's result and one of the structures', in order."""
        found = []
        for place, several in self.results.items():
            dense = next((r for r in several if r.first.structure == DENSE and r.loss), None)
            if dense:
                found += [(place, dense, r) for r in several if r.first.structure in self.structures and r.loss]
        return found


def claims(
    results: Mapping[TrainingPlace, Sequence[Result]], times: Sequence[Time], fronts: Sequence[Front]
) -> list[Claim]:
    """Every claim of the list, with lines for what was measured."""
    made = []
    for one in json.loads(FILE.read_text(encoding="utf-8")):
        asked = one["measure"]
        found = Found(results, times, fronts, asked["structures"], asked.get("members", {}))
        measured = tuple(MEASURES[asked["what"]](found)) or (NOTHING,)
        made.append(Claim(one["claim"], one["figure"], one["source"], one["scale"], measured, one["not"]))
    return made


def _by_place(lines: Iterable[tuple[TrainingPlace, str]]) -> list[str]:
    """One line for each place: what was found there."""
    found: dict[TrainingPlace, list[str]] = {}
    for place, line in lines:
        found.setdefault(place, []).append(line)
    return [f"{place.setting}, width {place.width}: {'; '.join(some)}" for place, some in found.items()]


def _of_each(what: str, lines: Iterable[tuple[TrainingPlace, str, str]]) -> list[str]:
    """One line for each place and budget, of place, series and what was found: `..., params=0.25: WHAT: dyad_it 1`."""
    found: dict[tuple[TrainingPlace, str], list[str]] = {}
    for place, series, said in lines:
        name, _, budget = series.partition(" @ ")
        found.setdefault((place, budget), []).append(f"{name} {said}")
    return [
        f"{place.setting}, width {place.width}{f', {budget}' if budget else ''}: {what}: {'; '.join(some)}"
        for (place, budget), some in found.items()
    ]


def _losses(found: Found) -> list[str]:
    """`dyad_it +1.1 %, a tie (-0.9 to +3.1 %)`, of what is brought to a budget."""
    told = (
        (p, r.first.series, f"{percent(r.difference)}{', a tie' * (r.verdict == TIE)} ({percents(r.interval)})")
        for p, _, r in found.own()
        if r.first.budget and r.interval
    )
    return _of_each("loss beside dense's", told)


def _quality(found: Found) -> list[str]:
    lines = []
    for place, dense, result in found.own():
        constant = CONSTANT.get(result.first.task)
        if constant and result.first.budget and result.loss and dense.loss:
            share = (constant - result.loss) / (constant - dense.loss)
            lines.append((place, result.first.series, f"{share * 100:.0f} %"))
    return _of_each("share of what dense learns", lines)


def _times(found: Found) -> list[str]:
    ours = [t for t in found.times if t.structure in found.structures]
    told = ((t.place, t.series, f"{t.speedup:.2f}x ({t.ratio.q1:.2f} to {t.ratio.q3:.2f})") for t in ours)
    return _of_each("speed of a step beside dense's", told)


def _equal_time(found: Found) -> list[str]:
    """Steps' times of the structures beside each other, and what equal time therefore says of their losses."""
    lines = []
    for place, several in found.results.items():
        timed = {t.series: t for t in found.times if t.place == place and t.ratio.q1 > 0}
        own = [r for r in several if r.first.structure in found.structures and r.first.series in timed and r.loss]
        for one, other in combinations(own, 2):
            if one.first.budget == other.first.budget:
                lines.append((place, _beside(one, other, timed[one.first.series], timed[other.first.series])))
    return _by_place(lines)


def _beside(one: Result, other: Result, own: Time, others: Time) -> str:
    """`dyad_it in equal time: a tie with dyad_ot (its step takes 1.02 times as long, 0.97 to 1.08)`.

    Equal steps are equal time where the times' quartiles meet. Each was timed beside dense alone, so that the ends are
    those of both quartiles together.
    """
    found = apart(one, other)
    loss = "a tie with" if found == 0 else "of unknown noise beside"
    if found:
        loss = f"{percent(math.expm1(found))} beside"
    ratio = others.speedup / own.speedup
    low, high = others.ratio.q1 / own.ratio.q3, others.ratio.q3 / own.ratio.q1
    took = f"its step takes {ratio:.2f} times as long, {low:.2f} to {high:.2f}"
    equal = "time"
    if not low <= 1 <= high:
        equal, took = "steps", f"{took}: equal time allows {(1 / ratio - 1) * 100:+.0f} % steps"
    return f"{one.first.structure} in equal {equal} {loss} {other.first.structure} ({took})"


def _widths(found: Found) -> list[str]:
    """Losses and speeds of steps of what was trained at several widths."""
    speeds = {(t.place, t.series): t.speedup for t in found.times}
    series: dict[tuple[str, str], dict[int, str]] = {}
    for place, _, r in found.own():
        if r.first.budget and r.interval:
            speed = speeds.get((place, r.first.series))
            faster = f" and {speed:.2f} times as fast" if speed else ""
            said = f"{percent(r.difference)}{faster} at width {place.width}"
            series.setdefault((place.setting, r.first.series), {})[place.width] = said
    return [
        f"{setting}: {name}: {', '.join(at[w] for w in sorted(at))}"
        for (setting, name), at in series.items()
        if len(at) > 1
    ]


def _blocks(found: Found) -> list[str]:
    """Of what was trained with several numbers of blocks, at whichever budget or options."""
    lines: dict[tuple[TrainingPlace, str], dict[int, str]] = {}
    for place, _, r in found.own():
        numbers = {o.get("n_blocks") for o in r.first.options.values() if isinstance(o, dict)}
        if len(numbers) == 1 and r.interval and isinstance(number := numbers.pop(), int):
            at = f"{number} blocks ({r.first.shares['replaced_params_share'] * 100:.3g} %): {percent(r.difference)}"
            lines.setdefault((place, r.first.structure), {})[number] = at
    several = ((p, f"{name}: {', '.join(at[n] for n in sorted(at))}") for (p, name), at in lines.items() if len(at) > 2)
    return _by_place(several)


def _order(found: Found) -> list[str]:
    """Exponents of members of the two-factor space by omega and psi, and how far both order them."""
    lines = []
    for setting in dict.fromkeys(f.setting for f in found.fronts):
        fitted = [f for f in found.fronts if f.setting == setting and f.exponent is not None]
        members = [(axes, f) for f in fitted if (axes := found.members.get(_theta(f.series)))]
        if len(members) < 3:
            continue
        groups: dict[tuple[float, float], list[Front]] = {}
        for axes, f in sorted(members, key=lambda m: (m[0]["omega"], -m[0]["psi"])):
            groups.setdefault((axes["omega"], axes["psi"]), []).append(f)
        dense = [f"dense {_exponent(f)}" for f in fitted if f.structure == DENSE]
        each = [f"omega {o:g}, psi {p:g}: {', '.join(map(_exponent, some))}" for (o, p), some in groups.items()]
        said = [*dense, *each]
        for name in ("omega", "psi", "nu"):
            tau = stats.kendalltau([axes[name] for axes, _ in members], [f.exponent for _, f in members]).statistic
            said.append(f"Kendall's tau of exponent and {name} {tau:+.2f}")
        lines.append(f"{setting}, {len(members)} members: {'; '.join(said)}")
    return lines


def _theta(series: str) -> str:
    match = re.search(r"theta=\[([\d.,]+)\]", series)
    return match[1] if match else ""


def _exponent(front: Front) -> str:
    return f"{front.exponent:.3f} ({front.low:.3f} to {front.high:.3f})"


MEASURES: Mapping[str, Callable[[Found], list[str]]] = {
    "loss": _losses,
    "quality": _quality,
    "time": _times,
    "both": lambda found: [*_losses(found), *_times(found)],
    "equal time": lambda found: [*_losses(found), *_equal_time(found)],
    "widths": _widths,
    "blocks": _blocks,
    "order": _order,
}


def difference(result: Result) -> str:
    """A result's loss beside dense's, no finer than its noise."""
    if result.difference is None or result.interval is None:
        return "no dense loss, or no seeds, to compare with"
    side = "above" if result.difference > 0 else "below"
    words = f"loss {abs(result.difference) * 100:.1f} % {side} dense's"
    return f"{words}{': a tie' if result.verdict == TIE else ''} ({percents(result.interval)})"


def percent(share: float | None) -> str:
    return f"{(share or 0) * 100:+.1f} %"


def percents(ends: tuple[float, float]) -> str:
    """`-3.1 to +4.0 %`."""
    return f"{ends[0] * 100:+.1f} to {ends[1] * 100:+.1f} %"


def markdown(found: Sequence[Claim]) -> str:
    """A table of all claims: the papers' figures beside ours."""
    lines = ["| claim | published | here | what cannot be told here |", "| --- | --- | --- | --- |"]
    for one in found:
        here = "<br>".join(one.measured)
        cells = f"{one.claim}<br>{one.source}", f"{one.figure}<br>{one.scale}", here, one.untested
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)
