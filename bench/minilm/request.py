"""What is asked of a run, and the structures, options and reasons that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import structures
from bench.files.options import some_of
from bench.files.vocabulary import DENSE, NARROW, NEAR
from bench.machine import setup
from bench.sweep.request import default_names, in_order
from structures.options import closest_options
from structures.projection.project import DAMPING
from structures.spec import SpecError

PLAIN, AWARE, SEQUENTIAL, CONTROL = "plain", "aware", "sequential", "control"
WAYS = (PLAIN, AWARE, SEQUENTIAL)

Shape = tuple[int, int]
Options = dict[Shape, dict[str, object]]


@dataclass(frozen=True)
class ConversionRequest:
    """What to convert to, and how long projections may take."""

    names: tuple[str, ...]
    shares: tuple[float, ...] = (0.5, 0.25)
    limit: int = 3  # sweeps of projections without a closed form
    aware_limit: int = 1  # the same of the aware ones, which start from the plain solution
    patience: float = 30.0  # seconds that one conversion may take; estimated from the first layer of each shape
    damping: float = DAMPING
    affordable: bool = True  # leave out what needs more FLOPs than dense
    ways: tuple[str, ...] = (PLAIN, AWARE)
    tune: float = 0.0  # minutes of one core for each conversion that is tuned; 0: none is
    tune_best: int = 6  # conversions of each share, by agreement
    tune_also: tuple[str, ...] = (NARROW, "dyad_it", "dyad_ot", "dyad_dt")  # tuned whatever their agreement


def header(request: ConversionRequest, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a journal's records depend on: the request, the model and its sentences, and the code."""
    return {"conversion": asdict(request), "data": dict(facts), **setup.commit()}


@dataclass(frozen=True)
class ConversionPoint:
    """A structure at a share of the layers' parameters. What comes near to none is measured once and has no budget."""

    name: str
    share: float
    near: bool
    options: Options

    @property
    def budget(self) -> str | None:
        return f"params={self.share:g}" if self.near else None

    @property
    def neurons(self) -> int:
        """Of a block of the narrowed control."""
        return int(next(iter(self.options.values()))["neurons"])  # type: ignore[call-overload]

    @property
    def words(self) -> dict[str, dict[str, object]]:
        """The options for JSON, by the layer's widths."""
        return {
            f"{i}x{o}": {key: list(v) if isinstance(v, tuple) else v for key, v in chosen.items()}
            for (i, o), chosen in self.options.items()
        }


def points(request: ConversionRequest, shapes: Iterable[Shape]) -> tuple[list[ConversionPoint], list[dict[str, Any]]]:
    """All there is to convert to, and what was left out with the reason."""
    found: list[ConversionPoint] = []
    refused: list[dict[str, Any]] = []
    for name in request.names:
        for share in request.shares:
            try:
                point = _point(name, share, dict.fromkeys(shapes), request.affordable)
            except SpecError as error:
                refused.append(refusal(name, share, None, str(error)))
                continue
            if point.near or not any((p.name, p.near, p.options) == (name, False, point.options) for p in found):
                found.append(point)
    return found, refused


def _point(name: str, share: float, shapes: Iterable[Shape], affordable: bool) -> ConversionPoint:
    """Options for every shape of layer nearest to a share of its parameters.

    Raises:
        SpecError: the entry does not fit, or needs more FLOPs than dense.
    """
    if name == NARROW:
        return ConversionPoint(name, share, True, {s: {"neurons": max(1, round(share * max(s)))} for s in shapes})
    found = {shape: closest_options(name, *shape, params=share) for shape in shapes}
    for (i, o), fit in found.items():
        if affordable and fit.flops > 1 + NEAR:
            raise SpecError(f"it takes {fit.flops:.3g} times dense's FLOPs at {i} x {o}; name it to have it measured")
    near = all(abs(fit.params / share - 1) <= NEAR for fit in found.values())
    return ConversionPoint(name, share, near, {shape: dict(fit.options) for shape, fit in found.items()})


def refusal(name: str, share: float, way: str | None, reason: str) -> dict[str, Any]:
    """A line of what was left out."""
    return {"structure": name, "way": way, "budget": f"params={share:g}", "reason": reason.partition("\n")[0]}


def entries(text: str | None, option: str = "--structures") -> tuple[str, ...]:
    """Names of the registry and the narrowed layer from a list of words, or all but dense.

    Raises:
        UsageError: no such entry.
    """
    if text is None:
        return (NARROW, *(name for name in in_order(default_names()) if name != DENSE))
    return some_of(option, text, (NARROW, *structures.names()))
