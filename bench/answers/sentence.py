"""A verdict in sentences: which structure to take, what is gained, what is lost, and dense's rivals."""

from bench.answers.question import PARAMS, near
from bench.answers.verdict import AS_NONE, STRUCTURE, Contender, Verdict
from bench.files.rows import Spread
from bench.files.terminal import digits, percent
from bench.files.vocabulary import NARROW

WIDTH = "if you can change the width of the whole network"  # only then is a narrower layer to be had
MOST = 1  # structures named as tied with the first; the others are counted
SHOWN = 3  # named on one line


def sentence(verdict: Verdict) -> str:
    """What to take and why; a rival of dense that wins or ties is said first."""
    best = verdict.best
    first = [_rival(one, verdict) for one in verdict.rivals]
    if best is None:
        return " ".join([*first, _dense_stays(verdict)])
    narrow = [one for one in (*verdict.ranking, *verdict.below) if one.name == NARROW and one not in verdict.rivals]
    rest = [*_keeps(best, verdict), *map(_narrow, narrow), *_passed_over(verdict)]
    return " ".join([*first, _take(best, verdict), *rest])


def brief(verdict: Verdict) -> str:
    """The first of the ranking on one line: `1= low_rank 3.82x, 1= dense_narrow 3.98x, 3 dyad_ot 3.79x`."""
    ahead = [one for one in verdict.ranking if one.beats_dense][:SHOWN]
    named = [f"{rank(one)} {one.name} {digits(one.speedup.median)}x" for one in ahead]
    doubted = f"; {len(verdict.below)} not ranked: {verdict.below[0].doubts[0]}, ..." if verdict.below else ""
    return f"{', '.join(named) or _dense_stays(verdict)}{doubted}"


def rank(one: Contender) -> str:
    """`3=` for one of several of the third rank."""
    return f"{one.rank}{'=' if one.tied else ''}"


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
    condition = WIDTH if one.name == NARROW else f"if {_error(one)} will do"
    alike = any(other.rank == one.rank for other in verdict.useful)
    ahead = any(other.idle and (other.rank or 0) < (one.rank or 0) for other in verdict.ranking)
    beside = f"{'as fast as' if alike else 'faster than'} any structure{' that keeps more' if ahead else ''}"
    said = f"{digits(one.speedup.median)}x, {beside}{f', {loss(one)}' if one.name == NARROW else ''}"
    return f"{condition[0].upper()}{condition[1:]}, take {one.label}: {said}."


def _passed_over(verdict: Verdict) -> list[str]:
    """What is faster than the one that is taken, and why it is not."""
    several = verdict.passed_over
    if not several:
        return []
    first = f"{several[0].label} ({digits(several[0].speedup.median)}x)"
    if len(several) == 1:
        return [f"{first} loses {AS_NONE}."]
    return [f"{first} and {len(several) - 1} more lose {AS_NONE}."]


def _error(one: Contender) -> str:
    """Relative, the largest where there are several."""
    error = one.row.error
    parts = [part for part in (error.values() if isinstance(error, dict) else [error]) if part is not None]
    return f"an error of {percent(max(parts))}" if parts else "its error"


def _narrow(one: Contender) -> str:
    doubt = f", but {one.doubts[0]}" if one.doubts else ""
    kept = f", {loss(one)}" if one.quality.loss else ""
    return f"{one.label[0].upper()}{one.label[1:]}: {digits(one.speedup.median)}x{kept}{doubt}."


def _dense_stays(verdict: Verdict) -> str:
    structures = [one for one in verdict.ranking if one.kind == STRUCTURE]
    held = "parameters" if verdict.question.equal == PARAMS else "executed FLOPs"
    at = f"with {percent(verdict.question.share)} of its {held}"
    if structures:
        nearest = structures[0]
        beats, but = ("is worth its place", f", but loses {AS_NONE}") if nearest.idle else ("beats it", "")
        return f"Keep dense: no structure {at} {beats} here; {nearest.label} reaches {times(nearest.speedup)}{but}."
    doubted = [one for one in verdict.below if one.kind == STRUCTURE]
    if doubted:
        first = f"{doubted[0].label}: {doubted[0].doubts[0]}"
        return f"Nothing can be said: of {len(doubted)} structures {at} none is fit to rank ({first})."
    return f"Nothing can be said: no structure {at} was measured here."
