"""Tables of training runs: every series of a place, warnings about its length, and which series differ from dense."""

from collections.abc import Sequence
from statistics import mean

from bench.answers.losses import BETTER, TIE, WORSE, Noise, Result, length
from bench.files.vocabulary import DENSE, REMOVED
from bench.report.drawing import words
from bench.report.drawing.sections import PageCell, PageTable
from bench.report.training import claims
from bench.report.training.trained import Times, look

FALLING = 0.01  # of the loss over the last half of the steps: from there on a run is called too short

SHOWS = {  # by task: what it shows, and what it does not
    "encoder": (
        "capacity, rank and mixing together, as the two replaced layers meet fixed inputs and outputs",
        "how a whole model fares: it is one block of one architecture",
    ),
    "teacher": (
        "capacity and rank",
        "mixing, as dense first and last layers absorb any permutation: DYAD and block-diagonal are alike",
    ),
    "facts": (
        "how much is stored in so many parameters",
        "generalisation; after so few epochs the loss also reflects how fast a network memorises",
    ),
    "language": (
        "capacity, rank and mixing in a whole network, all of whose linear layers are replaced",
        "how longer training, words or large models turn out",
    ),
}

Cell = tuple[str, str]  # what is said, and in small beside it


def table(several: Sequence[Result], times: Times) -> PageTable:
    """Every series, best first; columns that would be empty are left out."""
    cells = [_cells(r, times) for r in several]
    kept = [key for key in cells[0] if any(line[key][0] for line in cells)]
    lines = [
        [PageCell(r.first.series, look=look(r)), *(PageCell(*line[key]) for key in kept)]
        for r, line in zip(several, cells, strict=True)
    ]
    return PageTable("", ("Series", *kept), lines, f"The {len(lines)} series as a table")


def _cells(result: Result, times: Times) -> dict[str, Cell]:
    first = result.first
    time = times.get((first.place, first.series))
    seeds = result.seeds
    reason = next((run.reason for run in result.runs if run.reason), "")
    spread = f"{result.low:.4g} to {result.high:.4g}" if seeds > 1 else "one seed" if seeds else reason
    ranks = "" if result.best is None else f"{result.best}"
    ranks += f" to {result.last}" if result.best != result.last else ""
    share, executed = first.shares["replaced_params_share"], first.executed
    said = {TIE: "a tie", BETTER: "better", WORSE: "worse"}.get(result.verdict, "")
    beside = f"{(result.difference or 0) * 100:+.1f} %" if result.difference is not None else ""
    noise = f"{said}, {claims.percents(result.interval)}" if result.interval else ""
    step = ("", "")
    if time is not None:
        quartiles = f"{time.ratio.q1:.2f} to {time.ratio.q3:.2f} {' '.join(time.flags)}"
        step = words.ratio(time.speedup), quartiles.strip()
    bits = [run.bits_per_byte for run in result.runs if run.bits_per_byte is not None]
    return {
        "Loss": ("diverged" if result.loss is None else f"{result.loss:.4g}", spread),
        "Seeds": (str(seeds), f"{result.diverged} diverged" if result.diverged else ""),
        "Beside dense": ("baseline", "") if first.structure == DENSE else (beside, noise),
        "Ranks it may have": (ranks, ""),
        "Bits per byte": (f"{mean(bits):.3f}" if bits else "", ""),
        "Replaced parameters": (words.share(share) if share else "0 %", "of dense"),
        "All parameters": (words.share(first.shares["params_share"]), words.prefixed(first.params)),
        "FLOPs a token": (words.prefixed(first.train_flops), f"{words.prefixed(executed)} executed"),
        "Step, of dense's speed": step,
        "Rate": (f"{first.lr:.2g}", neighbour(result) + (", the end of those tried" if first.rate_at_end else "")),
    }


def neighbour(result: Result) -> str:
    """The better rate beside the chosen one, and what it costs: `0.01: +4.2 %`; empty where one alone was tried."""
    if result.neighbour is None:
        return ""
    lr, costs = result.neighbour
    return f"{lr:.2g}: {'diverged' if costs == float('inf') else f'{costs * 100:+.1f} %'}"


def how_long(several: Sequence[Result]) -> str:
    """`400 steps of 1024 tokens; over the last half of them dense's loss still fell by 7.3 %.`"""
    known = length(several)
    first = several[0].first
    unit = "tokens" if first.task == "language" else "samples"
    steps = " and ".join(map(str, known.steps))
    change = "" if known.fell is None else f"{-known.fell * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")
    fell = f"; over the last half of them dense's loss changed by {change}" if change else ""
    return f"{steps} steps of {known.tokens:.0f} {unit}{fell}, while the rate fell to zero."


def warnings(several: Sequence[Result]) -> list[str]:
    """Why a place's comparisons say less than they seem to."""
    found = []
    known = length(several)
    if known.fell is not None and known.fell > FALLING:
        found.append(
            f"Dense's loss was still falling ({known.fell * 100:.1f} % over the last half of the steps): these "
            "comparisons hold for runs of this length, not for longer ones."
        )
    removed = next((r for r in several if r.first.structure == REMOVED and r.verdict in (TIE, BETTER)), None)
    if removed is not None:
        how = "is a tie with dense" if removed.verdict == TIE else "ends below dense's loss"
        found.append(
            f"The network without the replaced layers {how}: these runs are too short, or the task too easy, to say "
            "anything of what stands in their place."
        )
    if all(r.margin is None for r in several):
        found.append("No series has two seeds: it is unknown how much of a difference is noise.")
    return found


def telling(known: Noise | None, several: Sequence[Result]) -> list[str]:
    """What the comparisons of a place rest on, the smallest difference they detect, and what its task shows."""
    found = [known.words if known else "One seed each: it is unknown how much of a difference is noise."]
    power = [r.told for r in several if r.told is not None and r.first.structure != DENSE]
    if power:
        at = f"{max(power) * 100:.2g} %"
        found.append(f"A difference from dense of {at} or more would be detected four times in five.")
    shows, hides = SHOWS.get(several[0].first.task, ("", ""))
    return [*found, f"The task shows {shows}; it does not show {hides}."] if shows else found
