"""What commands print: tables of at most 100 columns, and numbers for readers."""

import math
import textwrap
import unicodedata
from collections.abc import Collection, Sequence

COLUMNS = 100
LEAST = 8  # a column is shortened to this at most
_STEPS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, right: Collection[str] = (), cut: Collection[str] = ()
) -> list[str]:
    """Aligned columns, two blanks apart.

    Args:
        right: columns aligned to the right, by their headers.
        cut: columns whose texts are cut in the middle where the table is too wide for a terminal, the widest first.
    """
    every = [header, *lines]
    widths = [max(columns(line[i]) for line in every) for i in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > COLUMNS:
        widest = max((i for i, name in enumerate(header) if name in cut), key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= LEAST:
            break
        widths[widest] -= 1
    return [
        "  ".join(_cell(text, widths[i], header[i] in right) for i, text in enumerate(line)).rstrip() for line in every
    ]


def wrapped(text: str) -> str:
    """Prose of one line, broken at blanks to fit a terminal."""
    return textwrap.fill(text, COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def columns(text: str) -> int:
    """How many columns a terminal gives to a text."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, width: int) -> str:
    """The text, or its two ends with `..` between them."""
    if columns(text) <= width:
        return text
    left = right = ""
    for i in range(len(text)):
        next_left, next_right = text[: i // 2 + 1], text[len(text) - (i + 1) // 2 :]
        if columns(next_left) + columns(next_right) + 2 > width:
            break
        left, right = next_left, next_right
    return f"{left}..{right}"


def digits(value: float) -> str:
    """Three significant digits without an exponent: 0.0312, 3.12, 312, 31200."""
    value = float(f"{value:.2e}")  # so that 0.9996 counts as 1.00
    places = 2 - math.floor(math.log10(value))
    return f"{value:.{max(0, min(places, 9))}f}"


def many(count: int, thing: str) -> str:
    """`1 point`, `2 points`."""
    return f"{count} {thing}{'s' * (count != 1)}"


def seconds(value: float) -> str:
    """1.23e-05 -> '12.3 us'."""
    step, unit = next(((step, unit) for step, unit in _STEPS if value >= step * 0.9995), _STEPS[-1])
    return f"{digits(value / step)} {unit}"


def percent(value: float) -> str:
    """0.125 -> '12.5 %'; three digits, at most one after the point."""
    return f"{float(f'{value * 100:.3g}'):.1f}".removesuffix(".0") + " %"


def _cell(text: str, width: int, right: bool) -> str:
    text = shortened(text, width)
    pad = " " * (width - columns(text))
    return pad + text if right else text + pad
