"""What a search is asked for: the layer, the constraints, the effort; checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.files.errors import UsageError, one_of
from bench.files.options import dtype
from bench.files.vocabulary import MODES, NEAR
from structures.language.words import share

QUALITIES = ("none", "projection", "training")
STAGES = ("time", "quality", "final")
WHOLE = "0-1"
MOST_WIDTH = 2**16


@dataclass(frozen=True)
class Range:
    """Shares of dense from low to high; `middle` is what named entries are brought to."""

    low: float
    high: float
    middle: float

    def holds(self, share: float) -> bool:
        return self.low <= share <= self.high

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} of dense"


@dataclass(frozen=True)
class SearchRequest:
    """A search. Shares are of a dense layer of these widths."""

    in_features: int
    out_features: int
    tokens: int
    params: Range
    flops: Range
    target: tuple[str, float]  # the quantity and share that named entries are brought to
    rank: float = 0.0  # least share of full rank
    omega: float | None = None
    memory: float | None = None  # of weights and activations of a forward
    time: float | None = None  # of dense's
    mode: str = "forward"
    dtype: str = "float32"
    quality: str = "none"
    weight: str | None = None
    key: str | None = None
    inputs: str | None = None
    candidates: int = 200
    finalists: int = 16
    seed: int = 0

    @property
    def dense(self) -> int:
        return self.in_features * self.out_features


def read(given: dict[str, Any]) -> SearchRequest:
    """The request of the command line's values by name.

    Raises:
        UsageError: a value that is not allowed; the message says what is.
    """
    if given["params"] is None and given["flops"] is None:
        raise UsageError("give --params 0.25 or --flops 0.25: without a budget the smallest member is the fastest")
    for name in ("in_features", "out_features"):
        if given[name] > MOST_WIDTH:
            flag = {"in_features": "--in", "out_features": "--out"}[name]
            raise UsageError(f"{flag}: at most {MOST_WIDTH} features are searched, found {given[name]}")
    quantity = "params" if given["params"] is not None else "flops"
    ranges = {name: span(f"--{name}", given[name] or WHOLE) for name in ("params", "flops")}
    if given["rank"] > 1:
        raise UsageError(f"--rank: a share of full rank from 0 to 1, found {given['rank']:g}")
    given = given | {
        "quality": one_of("--quality", given["quality"], QUALITIES),
        "mode": one_of("--mode", given["mode"], MODES),
        "dtype": dtype("--dtype", given["dtype"], ("float32", "bfloat16", "float64")),
    }
    if given["weight"] is not None and given["quality"] == "none":
        raise UsageError("--weight is for --quality projection or training; name one of them")
    if given["key"] is not None and given["weight"] is None:
        raise UsageError("--key names a tensor in the file of --weight; give that too")
    if given["inputs"] is not None and given["quality"] != "training":
        raise UsageError("--inputs is what a layer is trained on: it is for --quality training")
    if given["finalists"] > given["candidates"]:
        raise UsageError(
            f"--finalists {given['finalists']} are chosen among --candidates {given['candidates']}; ask for fewer"
        )
    fields = {k: v for k, v in given.items() if k in SearchRequest.__dataclass_fields__} | ranges
    return SearchRequest(**fields, target=(quantity, ranges[quantity].middle))


def span(option: str, text: str) -> Range:
    """`0.25`: within 15 % of it; `0.1-0.25`: from one to the other."""
    first, dash, second = text.partition("-")
    low, high = share(first), share(second if dash else first)
    if low is None or high is None:
        raise UsageError(f"{option}: {text!r} is no share of dense; write 0.25, 25% or a range such as 0.1-0.25")
    found = Range(low, high, high) if dash else Range(low * (1 - NEAR), low * (1 + NEAR), low)
    if not 0 <= found.low < found.high or found.middle > 4:
        raise UsageError(f"{option}: {text!r} holds no share of dense above 0 and up to 4; write 0.25 or 0.1-0.25")
    return found
