"""How a curve looks, the same in every chart: colour, marker and dashes, so that no two rest on colour alone.

Colours are Okabe and Ito's, legible on white and on black; `currentColor` is the text's own. DYAD's variants are the
vermilion triangles; dense is thick and plain; controls are thin, grey and dashed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.files.vocabulary import DENSE
from bench.report.drawing.curve import CONTROL, STRUCTURE, Curve, dyad

GREY = "#8a8a8a"
DYAD = "#D55E00"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#B5386E", "#7570B3")
TRIANGLES = ("M0-1.15 1.1.85H-1.1Z", "M0 1.15-1.1-.85H1.1Z", "M1.15 0-.85 1.1V-1.1Z", "M-1.15 0 .85 1.1V-1.1Z")
MARKERS = (
    "M-.9-.9H.9V.9H-.9Z",  # square
    "M0-1.25 1.1 0 0 1.25-1.1 0Z",  # diamond
    "M-.35-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35Z",  # plus
    "M0-1.2.29-.4 1.14-.37.47.15.71.97 0 .5-.71.97-.47.15-1.14-.37-.29-.4Z",  # star
    "M-1-1H1L-1 1H1Z",  # hourglass
    "M0-1.1 1.05-.34.65.89H-.65L-1.05-.34Z",  # pentagon
    "M-1-.62-.62-1 0-.38.62-1 1-.62.38 0 1 .62.62 1 0 .38-.62 1-1 .62-.38 0Z",  # cross
    "M-1-1L1 1V-1L-1 1Z",  # bow tie
)
DOT = "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z"
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2))


@dataclass(frozen=True)
class Style:
    """Colour, marker (an SVG path in a box of 2 x 2 around 0), dashes and width in pixels, filled or hollow."""

    colour: str
    marker: str
    dash: tuple[int, ...]
    width: float
    hollow: bool


def styles(curves: Sequence[Curve], structures: Sequence[str]) -> dict[str, Style]:
    """A style for each curve by id; `structures` are all names of the report, so each keeps its look in every panel."""
    plain = [name for name in sorted(structures) if name != "dense"]
    families = {True: [n for n in plain if dyad(n)], False: [n for n in plain if not dyad(n)]}
    controls = [curve.id for curve in curves if curve.kind == CONTROL]
    return {
        curve.id: _control(controls.index(curve.id))
        if curve.kind == CONTROL
        else _style(curve, families[dyad(curve.structure)])
        for curve in curves
    }


def by_name(structures: Iterable[str]) -> dict[str, tuple[str, Style]]:
    """An id and a look for each structure and dense: the look it has in panels of the same structures."""
    ordered = sorted({*structures} - {"dense"})
    curves = [Curve(f"s{i}", STRUCTURE, name, name, name, "", 0, "", ()) for i, name in enumerate(ordered)]
    found = styles(curves, ordered)
    looks = {curve.structure: (curve.id, found[curve.id]) for curve in curves}
    return looks | {"dense": (DENSE, Style("currentColor", DOT, DASHES[0], 3.2, False))}


def _control(i: int) -> Style:
    return Style(GREY, DOT, DASHES[2 + i % 3], 1.1, i // 3 % 2 == 0)


def _style(curve: Curve, family: Sequence[str]) -> Style:
    if curve.kind == DENSE:
        return Style("currentColor", DOT, DASHES[0], 3.2, False)
    i = family.index(curve.structure)
    markers = TRIANGLES if dyad(curve.structure) else MARKERS
    colour = DYAD if dyad(curve.structure) else COLOURS[i % len(COLOURS)]
    width = 2.2 if dyad(curve.structure) else 1.5
    hollow = (i // len(markers) + curve.variant) % 2 == 1
    return Style(colour, markers[i % len(markers)], DASHES[(i + curve.variant) % len(DASHES)], width, hollow)
