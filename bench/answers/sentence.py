"""A verdict in sentences: which structure to take, what is gained, what is lost, and dense's rivals."""

from bench.answers.question import PARAMS, near
from bench.answers.verdict import DENSE, Contender, Verdict
from bench.files.rows import Spread
from bench.files.terminal import digits, percent
from bench.files.vocabulary import NARROW

CONDITION = {NARROW: "if you can change the width of the whole network"}  # rivals by structure -> when to take them
OTHERWISE = "if its error will do"  # of rivals of the same width, whose numbers differ
MOST = 2  # structures named as tied with the first; the others are counted


def sentence(verdict: Verdict) -> str:
    """What to take and why; a rival of dense that wins or ties is said first."""
    if not verdict.ranking:
        return f"Nothing can be said: {_nothing(verdict)}."
    first = [_rival(one, verdict) for one in verdict.rivals]
    best = verdict.best
    if best is None:
        return " ".join([*first, _dense_stays(verdict)])
    others = [one for one in verdict.ranking if one.kind not in (best.kind, DENSE) and one not in verdict.rivals]
    return " ".join([*first, _take(best, verdict), *_keeps(best, verdict), *(_slower(one) for one in others)])


def loss(one: Contender) -> str:
    """The loss beside dense's: 'loss +2.1 % (+1.0 to +3.2)', or that it was not measured."""
    found = one.quality.loss
    if found is None:
        return "loss not measured"
    low, high = f"{found.low * 100:+.1f}", f"{found.high * 100:+.1f}"
    return f"loss {found.difference * 100:+.1f} % ({low} to {high}{', a tie' if found.verdict == 'tie' else ''})"


def times(speedup: Spread) -> str:
    """A speed-up with its quartiles: '3.84x (3.79 to 3.87)'."""
    return f"{digits(speedup.median)}x ({digits(speedup.q1)} to {digits(speedup.q3)})"


def _take(best: Contender, verdict: Verdict) -> str:
    said = [f"{digits(best.speedup.median)} times faster than the best dense layer"]
    if best.over_linear:
        said[0] += f" ({digits(best.over_linear.median)} than nn.Linear)"
    said.append(f"{percent(best.row.params_share)} of the parameters")
    if not near(best.row.executed_share, best.row.params_share):
        said.append(f"{percent(best.row.executed_share)} of the FLOPs")
    named = ", ".join(one.label for one in verdict.ties[:MOST])
    more = len(verdict.ties) - MOST
    tie = f"; {named}{f' and {more} more' if more > 0 else ''} cannot be told from it" if named else ""
    return f"Take {best.label}: {', '.join([*said, loss(best)])}{tie}."


def _keeps(best: Contender, verdict: Verdict) -> list[str]:
    kept, own = verdict.kept, best.quality.loss
    if kept is None or kept is best or (own and kept.quality.loss and kept.quality.loss.high >= own.difference):
        return []
    return [f"{kept.label} keeps more: {loss(kept)}, {digits(kept.speedup.median)} times faster."]


def _rival(one: Contender, verdict: Verdict) -> str:
    condition = CONDITION.get(one.name, OTHERWISE)
    best = verdict.best
    beside = (
        "" if best is None else ", as fast as any structure" if one.rank == best.rank else ", faster than any structure"
    )
    return f"{condition[0].upper()}{condition[1:]}, take {one.label}: {digits(one.speedup.median)}x{beside}."


def _slower(one: Contender) -> str:
    return f"{one.label[0].upper()}{one.label[1:]}: {digits(one.speedup.median)}x."


def _dense_stays(verdict: Verdict) -> str:
    nearest = next((one for one in verdict.ranking if one.kind not in (DENSE,) and not one.beats_dense), None)
    held = "parameters" if verdict.question.equal == PARAMS else "FLOPs"
    said = f"Keep dense: no structure with {percent(verdict.question.share)} of its {held} beats it here"
    return f"{said}; {nearest.label} reaches {times(nearest.speedup)}." if nearest else f"{said}."


def _nothing(verdict: Verdict) -> str:
    if verdict.below:
        return (
            f"of {len(verdict.below)} rows none is fit to rank ({verdict.below[0].label}: {verdict.below[0].doubts[0]})"
        )
    return "nothing was measured at this layer and cost"
