"""How numbers, budgets and shapes are written for a reader."""

from typing import Any, Protocol

from bench.files.rows import Spread
from bench.files.terminal import digits, many

TIMES = "\N{MULTIPLICATION SIGN}"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def prefixed(value: float, unit: str = "") -> str:
    """1.23e-05, 's' -> '12.3 µs': three digits, with the metric prefix."""
    for step, prefix in _STEPS:
        if value >= step * 0.9995:
            return f"{digits(value / step)} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def ratio(value: float) -> str:
    """A speed-up: '3.1x', '0.94x', '12x', with a multiplication sign."""
    places = f"{value:.1f}" if 0.995 <= value < 9.95 else f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"
    return places + TIMES


def quartiles(spread: Spread) -> str:
    """'2.9 to 3.3', of a speed-up."""
    return f"{ratio(spread.q1)[:-1]} to {ratio(spread.q3)[:-1]}"


def share(value: float) -> str:
    """'25 %', '0.2 %'."""
    return f"{value * 100:.3g} %" if value < 9.995 else f"{value * 100:.0f} %"


def span(values: list[float]) -> str:
    """The smallest and largest share of a curve: '25 %', or '24 to 27 %'."""
    low, high = share(min(values)), share(max(values))
    return low if low == high else f"{low[:-2]} to {high}"


class Shaped(Protocol):
    """What has widths: a row, a question, a refusal."""

    @property
    def in_features(self) -> int | None: ...

    @property
    def out_features(self) -> int | None: ...


def shape(layer: Shaped) -> str:
    """'768 → 3072', in_features to out_features; '1024 x 1024' for squares."""
    square = layer.in_features == layer.out_features
    return f"{layer.in_features} {TIMES if square else '→'} {layer.out_features}"


def threads(count: int) -> str:
    return many(count, "thread")


def tokens(count: int) -> str:
    return many(count, "token")


def budget(value: str | None) -> str:
    """What a panel holds equal: '25 % of dense parameters', or nothing: options the user gave."""
    if value is None:
        return "own options, unequal cost"
    kind, part = value.split("=")
    return f"{share(float(part))} of dense {'parameters' if kind == 'params' else 'FLOPs'}"


def error(value: Any) -> str:
    """A relative error, the largest where there are several: '1.2e-07'."""
    parts = [part for part in (value.values() if isinstance(value, dict) else [value]) if part is not None]
    return f"{max(parts):.1e}" if parts else ""
