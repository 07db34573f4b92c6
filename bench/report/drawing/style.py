"""How a structure looks, the same in every chart and in every report: its look follows from its name alone.

Colours are legible on white and on black; `currentColor` is the text's own. DYAD's variants are the vermilion
triangles; dense is thick and plain; its rivals are thin, grey and dashed. No two rest on colour alone.
"""

import hashlib
from dataclasses import dataclass, replace

from bench.files.vocabulary import DENSE, MIX

GREY = "#8a8a8a"
DYAD = "#D55E00"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#2AA5C8", "#B8860B", "#B5386E", "#7570B3", "#7A8B00")
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
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))
SALT = 134458  # with it the entries that come with the registry share no marker within a colour


@dataclass(frozen=True)
class Style:
    """Colour, marker (an SVG path in a box of 2 x 2 around 0), dashes and width in pixels, filled or hollow."""

    colour: str
    marker: str
    dash: tuple[int, ...] = DASHES[0]
    width: float = 1.6
    hollow: bool = False


PLAIN = Style("currentColor", DOT, width=3.0)
CONTROL = Style(GREY, DOT, DASHES[2], 1.2, True)


def look(name: str, control: bool = False) -> Style:
    """The look of a structure, of dense, or of a layer that stands beside them for comparison."""
    if name == DENSE and not control:
        return PLAIN
    bits = int.from_bytes(hashlib.sha256(f"{name}{SALT}".encode()).digest()[:4], "big")
    dash, hollow = DASHES[(bits >> 16) % 4], bool((bits >> 20) % 2)
    if control:
        return replace(CONTROL, marker=MARKERS[(bits >> 8) % 8] if name != DENSE else DOT)
    if dyad(name):
        marker = MARKERS[(bits >> 8) % 8] if MIX in name else TRIANGLES[bits % 4]
        return Style(DYAD, marker, dash, 2.2, MIX in name)
    return Style(COLOURS[bits % 8], MARKERS[(bits >> 8) % 8], dash, hollow=hollow)


def dyad(structure: str) -> bool:
    """Whether a structure is a variant of DYAD, which are drawn alike."""
    return structure.startswith("dyad")
