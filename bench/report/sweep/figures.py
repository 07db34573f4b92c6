"""Pictures for papers, by name: what the page's charts show at the question that it opens with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.answers.qualities import Qualities
from bench.answers.question import Question, questions
from bench.answers.verdict import DENSE, STRUCTURE, Contender, Verdict, verdict
from bench.files.rows import Results, Row, Run, Spread
from bench.files.vocabulary import MODES, NARROW, VERSIONS
from bench.report.drawing import style, words
from bench.report.drawing.plot import Axis, Chart, Figure, Guide, PlotPoint, PlotSeries

NAMES = ("speed-up", "dyad", "quality")
MARKED = 6  # names in the picture of quality against time


def of_sweep(results: Results, qualities: Qualities) -> list[Figure]:
    """Speed-up against width; DYAD's FLOPs, parameters and time on one sheet; quality against time."""
    asked = questions(results.rows)
    if not asked:
        return []
    front = asked[0]
    opening = verdict(results.rows, front, qualities)
    run = (*opening.ranking, *opening.below)[0].row.run
    widths = {mode: _over_width(results, asked, replace(front, mode=mode), qualities) for mode in MODES}
    found = []
    charts = [_speedups(mode, several) for mode, several in widths.items() if len(several) > 1]
    if charts:
        found.append(Figure(NAMES[0], f"Speed-up over dense at {_held(front)}", caption(front, run), charts))
    several = widths[front.mode]
    if len(several) > 1 and any(style.dyad(one.name) for v in several for one in v.ranking):
        found.append(Figure(NAMES[1], f"DYAD and dense, {_held(front)}", caption(front, run), _dyad(several), 3, 270))
    return [*found, *quality(opening)]


def caption(question: Question, run: Run) -> list[str]:
    """Two lines under a picture: where, when and with what it was measured."""
    machine = run.machine
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS)
    return [
        f"{question.machine}; {question.device}, {question.dtype}, {words.threads(question.threads)}, {question.clock} "
        f"clock, {words.tokens(question.tokens)}, weights {machine['weights']}.",
        f"{versions}; {run.datetime[:10]}, commit {machine['commit']}.",
    ]


def _held(question: Question) -> str:
    return words.budget(f"{question.equal}={question.share:g}")


def _over_width(results: Results, asked: Sequence[Question], like: Question, qualities: Qualities) -> list[Verdict]:
    """The verdicts on the square layers that are asked for under the same conditions, by width."""

    def layerless(one: Question) -> Question:
        return replace(one, in_features=1, out_features=1)

    squares = [one for one in asked if one.in_features == one.out_features and layerless(one) == layerless(like)]
    return [verdict(results.rows, one, qualities) for one in sorted(squares, key=lambda one: one.in_features)]


def _lines(several: Sequence[Verdict], of: Callable[[Row], Spread | None]) -> list[PlotSeries]:
    """A line for each contender's quantity against width; what is not believed is left out."""
    found: dict[str, tuple[Contender, list[PlotPoint]]] = {}
    for one in (one for v in several for one in v.ranking):
        spread = of(one.row)
        if spread:
            point = PlotPoint(one.row.in_features, spread.median, {}, spread.q1, spread.q3)
            found.setdefault(one.label, (one, []))[1].append(point)
    return [PlotSeries(label, style.look(one.name, one.row.control), points) for label, (one, points) in found.items()]


def _width(several: Sequence[Verdict]) -> Axis:
    return Axis("in_features = out_features", "#", values=[v.question.in_features for v in several])


def _speedups(mode: str, several: Sequence[Verdict]) -> Chart:
    series = _lines(several, lambda row: row.speedup or Spread(1.0, 1.0, 1.0, 1))
    y = Axis("speed-up over dense", words.TIMES)
    return Chart(mode, _width(several), y, series, height=max(360, 13 * len(series)))


def _dyad(several: Sequence[Verdict]) -> list[Chart]:
    quantities: dict[str, tuple[str, Callable[[Row], Spread]]] = {
        "FLOPs of a call": ("", lambda row: Spread(row.flops, row.flops, row.flops, 1)),
        "parameters": ("", lambda row: Spread(row.params, row.params, row.params, 1)),
        "time of a call": ("s", lambda row: row.time),
    }
    charts = []
    for title, (unit, of) in quantities.items():
        kept = [s for s in _lines(several, of) if s.look in (style.PLAIN, style.look(NARROW, True)) or
                s.look.colour == style.DYAD]  # fmt: skip
        charts.append(Chart(title, _width(several), Axis("", unit), kept, height=260))
    return charts


def quality(found: Verdict) -> list[Figure]:
    """Loss beside dense's against speed-up, at most six names; nothing where no loss was measured."""
    known = [one for one in found.ranking if one.quality.loss and one.kind != DENSE]
    known = [one for one in known if one.kind == STRUCTURE or one.beats_dense]  # slower rivals are in the ranking
    if len(known) < 2:
        return []
    dyad = [one for one in known if style.dyad(one.name)][:1]
    wanted = [one for one in (found.best, found.kept, *dyad, *(k for k in known if k.row.control)) if one in known]
    first = [*wanted, *known]
    named = [one for i, one in enumerate(first) if one not in first[:i]][:MARKED]
    series = []
    for one in sorted(known, key=lambda one: one in named):
        loss, speed = one.quality.loss, one.speedup
        assert loss
        point = PlotPoint(1 + loss.difference, speed.median, {}, speed.q1, speed.q3, 1 + loss.low, 1 + loss.high)
        look = style.look(one.name, one.row.control) if one in named else style.CONTROL
        series.append(PlotSeries(one.label, look, [point], line=False, named=one in named, faint=one not in named))
    ends = [value for one in known for value in (one.speedup.q1, one.speedup.q3)]
    dense = Guide([(1.0, min(ends)), (1.0, max(ends))], "currentColor", strokeWidth=1.6)
    x = Axis("held-out loss over dense's: left is better", "+%")
    asked, task = found.question, known[0].quality.loss
    assert task
    title = f"Quality against time at {_held(asked)}: {words.shape(asked)}, {asked.mode}"
    said = [
        f"Loss: {task.task}; bars: 95 % of its noise, quartiles of the speed-up.",
        *caption(asked, found.ranking[0].row.run),
    ]
    chart = Chart("", x, Axis("speed-up over dense", words.TIMES), series, [dense], 360, beside=True)
    return [Figure(NAMES[2], title, said, [chart], 1, 560)]
