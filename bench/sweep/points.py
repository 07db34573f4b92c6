"""A request -> the points of the sweep, cheap ones first, and the budgets that entries cannot be brought to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import structures
from bench.files.vocabulary import BFLOAT16, DENSE, FLOAT8, NARROW, NEAR, RIVALS
from bench.sweep.request import Block, Budget, Request, Wanted, options_text, read_options
from bench.sweep.shapes import Shape
from structures.options import closest_options
from structures.spec import SpecError
from structures.structure import Structure

CANDIDATES = {  # ways to run a dense layer
    "linear": "nn.Linear",
    "addmm": "torch.addmm, the weight kept as (in_features, out_features)",
    "entry": "the registry's own dense entry",
    "onednn": "oneDNN's float32 product, torch.ops.mkldnn._linear_pointwise",
    "compiled": "F.linear through torch.compile",
}
COMPILED = "compiled"
ONEDNN = "onednn"
ALIGNED = 8  # a narrowed dense layer has widths that are multiples of this


@dataclass(frozen=True)
class Point:
    """One thing to measure, as plain scalars. `options` is written as `n_blocks=4,rank=8`."""

    structure: str
    series: str
    options: str
    budget: str | None
    in_features: int
    out_features: int
    tokens: int
    dtype: str
    device: str
    mode: str
    backend: str
    threads: int
    control: bool
    clock: str = "host"  # or, on CUDA, that of the device

    def __str__(self) -> str:
        parts = (self.series.replace(" @ ", "@").replace(" ", "_"), f"{self.in_features}x{self.out_features}",
                 f"t{self.tokens}", self.dtype, self.device, self.mode, self.backend, str(self.threads))  # fmt: skip
        return "-".join(parts if self.clock == "host" else (*parts, f"{self.clock}_time"))

    @property
    def train(self) -> bool:
        return self.mode == "train"

    @property
    def shape(self) -> Shape:
        return self.in_features, self.out_features

    @property
    def cell(self) -> tuple[object, ...]:
        """What a point shares with the dense layer it is compared to."""
        return (*self.shape, self.tokens, self.dtype, self.device, self.mode, self.threads, self.clock)

    @property
    def dense_flops(self) -> int:
        """FLOPs of the dense layer, for the whole batch in this mode."""
        return 2 * self.tokens * self.in_features * self.out_features * (3 if self.train else 1)

    @property
    def is_dense(self) -> bool:
        return self.structure == DENSE or self.structure in RIVALS


@dataclass(frozen=True)
class UnreachableBudget:
    """A budget that an entry cannot be brought to at a shape, with the reason."""

    structure: str
    budget: str
    in_features: int
    out_features: int
    reason: str

    def __str__(self) -> str:
        return f"{self.structure}@{self.budget}-{self.in_features}x{self.out_features}"


SCALARS = tuple(Point.__dataclass_fields__)
UNREACHABLE_SCALARS = tuple(UnreachableBudget.__dataclass_fields__)


def points(request: Request) -> tuple[list[Point], list[UnreachableBudget]]:
    """All points, the cheapest dense layer first, structures side by side within each; and what is left out."""
    found: dict[Point, None] = {}
    unreachable: dict[UnreachableBudget, None] = {}
    for block in request.blocks:
        for shape in block.shapes:
            variants, missed = _variants(request, block, shape)
            unreachable.update(dict.fromkeys(missed))
            for where in _cells(request, block):
                for variant in variants:
                    if not _differs(variant, where):
                        continue
                    for backend in block.backends if "backend" not in variant else [variant["backend"]]:
                        point = Point(**{**where, **variant, "backend": backend})  # type: ignore[arg-type]
                        found[point] = None
    order = {point: number for number, point in enumerate(found)}
    ordered = sorted(found, key=lambda p: (p.device, p.dense_flops, p.cell, order[p]))
    return ordered, list(unreachable)


def _differs(variant: Mapping[str, object], where: Mapping[str, object]) -> bool:
    """Whether a control is something else than dense's own row there."""
    if variant.get("backend") == ONEDNN:
        return runs_onednn(where)
    if variant.get("backend") == COMPILED:
        return where["device"] == "cpu"  # on CUDA a compiler calls the library that torch calls
    if variant["structure"] == FLOAT8:
        return where["device"] == "cuda"
    return variant["structure"] != BFLOAT16 or where["dtype"] in ("float32", "float64")


def runs_onednn(where: Mapping[str, object]) -> bool:
    """Whether oneDNN's own product is a way of its own: it has no gradients, and is nn.Linear's in other dtypes."""
    return where["device"] == "cpu" and where["dtype"] == "float32" and where["mode"] == "forward"


def narrowed(in_features: int, out_features: int, share: float) -> Shape:
    """Widths of the dense layer with this share of the parameters: both narrowed alike, to multiples of 8."""
    step = ALIGNED if min(in_features, out_features) >= 16 * ALIGNED else 1

    def near(width: float) -> list[int]:
        low = max(step, int(width // step) * step)
        return [low, low + step]

    scale = share**0.5
    pairs = [(i, o) for i in near(in_features * scale) for o in near(out_features * scale)]
    return min(pairs, key=lambda p: (abs(p[0] * p[1] - share * in_features * out_features), p))


def bound(point: Point) -> Structure:
    """The Structure of a point; of a narrowed layer, the narrow one."""
    if point.structure == NARROW:
        narrow = read_options(point.options)
        return structures.get(DENSE).bind(int(narrow["in"]), int(narrow["out"]))  # type: ignore[call-overload]
    entry = structures.get(DENSE if point.is_dense else point.structure)
    return entry.bind(*point.shape, **read_options(point.options))  # type: ignore[arg-type]


def rules(ran: Iterable[Point]) -> dict[str, str]:
    """How the options of each series scale with width, as the points show it."""
    of_series: dict[str, list[Point]] = defaultdict(list)
    for point in ran:
        of_series[point.series].append(point)
    return {series: _rule(some) for series, some in of_series.items()}


def _cells(request: Request, block: Block) -> Iterator[dict[str, object]]:
    for device in block.devices:
        for dtype in block.dtypes:
            for tokens in block.tokens:
                for mode in block.modes:
                    for threads in request.threads:
                        for clock in request.clocks if device == "cuda" else ("host",):
                            yield {"tokens": tokens, "dtype": dtype, "device": device, "mode": mode,
                                   "threads": threads, "clock": clock}  # fmt: skip


def _variants(request: Request, block: Block, shape: Shape) -> tuple[list[dict[str, object]], list[UnreachableBudget]]:
    """What is measured at a shape, dense first."""
    at = {"in_features": shape[0], "out_features": shape[1], "budget": None, "control": False, "options": ""}
    variants: list[dict[str, object]] = [{**at, "structure": DENSE, "series": DENSE, "backend": "best"}]
    if request.controls and block.controls:
        at_control = {**at, "structure": DENSE, "control": True}
        variants += [{**at_control, "series": f"{DENSE} by {way}", "backend": way} for way in _ways(request, shape)]
        for budget in block.budgets:
            if budget.quantity == "params":
                variants.append(_narrow(at, shape, budget))
        variants += [{**at_control, "structure": form, "series": form, "backend": form.partition("_")[2]}
                     for form in RIVALS if form != NARROW]  # fmt: skip
    missed: list[UnreachableBudget] = []
    for entry in request.entries:
        if entry.name != DENSE:
            of_entry, left_out = _of_entry(request, block, entry, shape)
            variants += [{**at, **variant} for variant in of_entry]
            missed += left_out
    return variants, missed


def _ways(request: Request, shape: Shape) -> Sequence[str]:
    """Dense's candidates as rows of their own; the compiled one costs seconds, so once in a short sweep."""
    largest = max(s for block in request.blocks for s in block.shapes[:3])
    return [way for way in CANDIDATES if way != COMPILED or request.full or shape == largest]


def _narrow(at: Mapping[str, object], shape: Shape, budget: Budget) -> dict[str, object]:
    narrow = narrowed(*shape, budget.share)
    text = options_text({"in": narrow[0], "out": narrow[1]})
    series = f"{NARROW} @ {budget.quantity} {budget.share:g}"
    return {**at, "structure": NARROW, "series": series, "options": text, "budget": str(budget), "control": True,
            "backend": "best"}  # fmt: skip


def _of_entry(
    request: Request, block: Block, entry: Wanted, shape: Shape
) -> tuple[list[dict[str, object]], list[UnreachableBudget]]:
    if entry.options is not None:
        text = options_text(entry.options)
        return [{"structure": entry.name, "series": f"{entry.name} {text}", "options": text}], []
    met: list[dict[str, object]] = []
    missed: list[UnreachableBudget] = []
    for budget in block.budgets:
        options, reason = _fitted(entry.name, shape, budget, request.affordable)
        if reason:
            missed.append(UnreachableBudget(entry.name, str(budget), *shape, reason))
        else:
            series = f"{entry.name} @ {budget.quantity} {budget.share:g}"
            met.append({"structure": entry.name, "series": series, "options": options, "budget": str(budget)})
    if not met:
        met.append({"structure": entry.name, "series": entry.name, "options": ""})
    return met, missed


@lru_cache(maxsize=4096)
def _fitted(name: str, shape: Shape, budget: Budget, affordable: bool) -> tuple[str, str | None]:
    """Options for a budget and None, or a reason why not."""
    try:
        found = closest_options(name, *shape, **{budget.quantity: budget.share})  # type: ignore[arg-type]
    except SpecError as error:
        return "", str(error)
    other, word = ("flops", "FLOPs") if budget.quantity == "params" else ("params", "parameters")
    realised, beside, options = found.share(budget.quantity), found.share(other), options_text(found.options)
    by = options or "it has no options"
    if abs(realised / budget.share - 1) > NEAR:
        return "", f"the nearest share of dense's {budget.quantity} it can reach is {realised:.3g} ({by})"
    if affordable and beside > 1 + NEAR:
        return "", f"{budget} takes {beside:.3g} times dense's {word} ({by}); name it to have it measured"
    return options, None


def _rule(some: Sequence[Point]) -> str:
    first = some[0]
    if first.structure == DENSE:
        return CANDIDATES[first.backend] if first.control else f"the fastest at each point of {', '.join(CANDIDATES)}"
    if first.structure in RIVALS:
        return RIVALS[first.structure]
    by_shape = {point.shape: dict(bound(point).options) for point in some}
    told = ", ".join(_scaling(name, {s: o[name] for s, o in by_shape.items()}) for name in by_shape[first.shape])
    if first.budget is None:
        return f"{'default options' if not first.options else 'options given'}: {told}" if told else "it has no options"
    quantity, share = first.budget.split("=")
    what = "parameters" if quantity == "params" else "FLOPs"
    return f"as near as can be to {float(share):g} of dense's {what}: {told or 'it has no options'}"


def _scaling(name: str, by_shape: Mapping[Shape, object]) -> str:
    values = list(by_shape.values())
    if len(set(values)) == 1:
        return f"{name}={options_text({name: values[0]}).partition('=')[2]}"
    if all(isinstance(v, int) and v > 0 for v in values):
        ratios = {min(shape) / value for shape, value in by_shape.items()}  # type: ignore[operator]
        if len(ratios) == 1:
            return f"{name} = smaller width / {ratios.pop():g}"
    each = (f"{options_text({name: v}).partition('=')[2]} at {i}x{o}" for (i, o), v in sorted(by_shape.items()))
    return f"{name} = {'; '.join(each)}"


def scalars(point: Point | UnreachableBudget) -> tuple[object, ...]:
    """The values of a point in the order of its fields."""
    return tuple(asdict(point).values())
