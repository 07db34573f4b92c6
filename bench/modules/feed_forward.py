"""The DYAD authors' own measurement: a feed-forward module (fc1, activation, fc2) with DYAD layers against dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import structures
from bench.files import kinds
from bench.files.vocabulary import MODES
from bench.machine import timing
from bench.modules.timed import SEED, Addmm, Kinks, Rows, TimedAt, drawn, state_bytes, where
from bench.sweep.check import check, sample, saved_bytes
from bench.sweep.subject import PLAIN, Subject
from structures import StructuredLinear, backends, reference
from structures.exactness import Sums, in_turn, sums
from structures.structure import Structure

KIND = kinds.FEED_FORWARD
BLOCKS = (4, 8)
CAT = "dyad_it_cat"  # IT's parameters and values, both components in one product
VARIANTS = ("dyad_it", "dyad_ot", "dyad_dt", CAT)
WAYS = ("linear", "addmm")  # of dense; the faster one is what is compared to
CPU_BATCH = 4  # sequences, in place of the authors' 32: their widest module trains for 3 s a call on two cores
ACTIVATION = Sums(0, 2)  # GELU is a product of two numbers that were rounded; ReLU rounds nothing


@dataclass(frozen=True)
class Module:
    """A feed-forward module: its names in the source, its width (four times that inside) and its activation."""

    names: str
    width: int
    activation: str


MODULES = (
    Module("OPT-125m, OPT-Custom 768", 768, "relu"),
    Module("Pythia-160m", 768, "gelu"),
    Module("OPT-350m, OPT-Custom 1024", 1024, "relu"),
    Module("OPT-Custom 1536", 1536, "relu"),
    Module("OPT-Custom 2048", 2048, "relu"),
)


@dataclass(frozen=True)
class ModulePoint(TimedAt):
    """One row: a module with one kind of layer, in one mode."""

    module: Module
    structure: str  # "dense", an entry, or CAT
    n_blocks: int | None

    def __str__(self) -> str:
        blocks = f"-n{self.n_blocks}" if self.n_blocks else ""
        return f"{self.module.activation}{self.module.width}-{self.structure}{blocks}-{self.mode}-t{self.tokens}"

    @property
    def cell(self) -> tuple[str, ...]:
        """What points share that are compared to one dense module."""
        return self.module.activation, str(self.module.width), self.mode

    @property
    def cost(self) -> float:
        """FLOPs of a dense call, without what every point has."""
        return self.module.width**2 * (3.0 if self.train else 1.0)


def points(option: Any) -> list[ModulePoint]:
    """All points, small modules first, dense first in each module and mode.

    Raises:
        UsageError: an option that is not allowed.
    """
    place = where(option, CPU_BATCH)
    layers = [("dense", None), *((name, n) for name in VARIANTS for n in BLOCKS)]
    return [ModulePoint(m, name, n, mode=mode, **place) for m in MODULES for mode in MODES for name, n in layers]


def setup(points: Sequence[ModulePoint]) -> dict[str, object]:
    """What all rows of a file share."""
    first = points[0]
    return {"batch": first.batch, "sequence": first.sequence, "tokens": first.tokens, "ways of dense": WAYS}


class FeedForward(nn.Module):
    """fc2(activation(fc1(x))) on (tokens, width)."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fc1, self.fc2, self.activation = fc1, fc2, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Concatenated(nn.Module):
    """DYAD-IT with both components in one batched product: inputs and factors side by side on the contracted axis."""

    def __init__(self, layer: StructuredLinear):
        super().__init__()
        self.factor_0, self.factor_1 = (nn.Parameter(factor.detach()) for factor in layer.factors)  # (n, i, o)
        assert layer.bias is not None
        self.bias = nn.Parameter(layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        n, i, _ = self.factor_0.shape
        near = x.view(-1, n, i).transpose(0, 1)
        far = x.view(-1, i, n).permute(2, 0, 1)
        weight = torch.cat([self.factor_0, self.factor_1], 1)  # (n, 2 i, o)
        y = torch.bmm(torch.cat([near, far], 2), weight)  # (n, tokens, o)
        return y.transpose(0, 1).reshape(x.shape[0], -1) + self.bias


@dataclass(frozen=True)
class Built:
    """A module as it is timed, and as it is checked: there a ReLU records on which side of zero its input is."""

    module: FeedForward
    checked: Subject
    layers: tuple[Structure, Structure]

    def step(self, x: Tensor, dy: Tensor) -> Callable[[bool], timing.Step]:
        """One call: forward, or with True forward and the gradients of x and all parameters."""
        wanted = (x, *self.module.parameters())
        return lambda train: (
            (lambda: torch.autograd.grad(self.module(x), wanted, dy)) if train else lambda: self.module(x)
        )


def build(point: ModulePoint, way: str) -> Built:
    """The module of a point; `way` is how dense layers run."""
    torch.manual_seed(SEED)
    width, inner = point.module.width, 4 * point.module.width
    (fc1, up), (fc2, down) = (_layer(point, shape, way) for shape in ((width, inner), (inner, width)))
    kinks = Kinks()
    smooth = point.module.activation == "gelu"
    timed = FeedForward(fc1, fc2, nn.functional.gelu if smooth else torch.relu)
    checked = FeedForward(fc1, fc2, nn.functional.gelu if smooth else kinks)
    split = len(list(fc1.parameters()))
    turned = point.structure == "dense" and way == "linear"  # nn.Linear's weight is (out_features, in_features)

    def forward(x: Tensor) -> Tensor:
        kinks.sides.clear()
        return checked(x)  # type: ignore[no-any-return]

    def by(run: Callable[..., Tensor]) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
        def layer(structure: Structure, x: Tensor, p: Sequence[Tensor]) -> Tensor:
            return run(structure, x, (p[0].t(),) if turned else tuple(p[:-1]), p[-1])

        def whole(x: Tensor, p: Sequence[Tensor]) -> Tensor:
            with kinks.replayed(sample(point.tokens, x.device)):
                return layer(down, checked.activation(layer(up, x, p[:split])), p[split:])

        return whole

    ran = {"dense": way, CAT: "bmm by hand"}.get(point.structure) or backends.choose(
        backends.AUTO, up, torch.empty(1, width, dtype=getattr(torch, point.dtype), device=point.device)
    )
    subject = Subject(
        structure=up,
        backend=ran,
        forward=forward,
        parameters=tuple(checked.parameters()),
        meaning=by(reference.apply),
        plain=by(lambda s, x, p, b: backends.apply(PLAIN, s, x, p, b)),
        executed_flops=lambda tokens, train: sum(_executed(ran, s, tokens, train) for s in (up, down)),
        state=timed.state_dict,
        sums=lambda tokens: in_turn([sums(up, tokens), sums(down, tokens)], ACTIVATION),
    )
    return Built(timed, subject, (up, down))


def _executed(ran: str, structure: Structure, tokens: int, train: bool) -> int:
    if ran in backends.names():
        return backends.get(ran).executed_flops(structure, tokens, train=train)
    return structure.flops(tokens, train=train)


def _layer(point: ModulePoint, shape: tuple[int, int], way: str) -> tuple[nn.Module, Structure]:
    """A layer and the structure that defines what it computes."""
    more: dict[str, Any] = {"device": point.device, "dtype": getattr(torch, point.dtype)}
    if point.structure == "dense":
        linear = nn.Linear(*shape, **more)
        return (Addmm(linear) if way == "addmm" else linear), structures.get("dense").bind(*shape)
    entry = "dyad_it" if point.structure == CAT else point.structure
    layer = StructuredLinear(entry, *shape, n_blocks=point.n_blocks, **more)
    return (Concatenated(layer) if point.structure == CAT else layer), layer.structure


def inputs(point: ModulePoint) -> tuple[Tensor, Tensor]:
    """x and dy, both (tokens, width)."""
    return drawn(point, point.tokens, point.module.width)


def measure_point(point: ModulePoint, rows: Rows, benchmark: Any) -> None:
    """Check a point, then time it and keep its row.

    Raises:
        CheckFailed: it computes something else; nothing is timed.
    """
    dense = rows.dense(point, lambda: _ways(point))
    x, dy, own = dense.x, dense.dy, point.structure == "dense"
    if not own and not rows.kept.get("checked"):  # dense's row is of another run or shard, and was checked there
        check(dense.what.checked, x, dy if point.train else None)
    rows.kept["checked"] = True
    built = dense.what if own else build(point, "linear")
    error = check(built.checked, x, dy if point.train else None)
    up, down = built.layers
    params, whole = up.params + down.params, up.dense_params + down.dense_params
    flops = sum(s.flops(point.tokens, train=point.train) for s in built.layers)
    dense_flops = sum(s.dense_flops(point.tokens, train=point.train) for s in built.layers)
    facts = asdict(point) | asdict(point.module)
    facts.pop("module")
    facts |= {
        "way": "control" if point.structure in ("dense", CAT) else "structure",  # the others are entries
        "backend": built.checked.backend,
        "threads": torch.get_num_threads(),
        "params": params,
        "params_share": params / whole,
        "flops": flops,
        "flops_share": flops / dense_flops,
        "executed_flops": built.checked.executed_flops(point.tokens, point.train),
        "activation_bytes": saved_bytes(built.checked, x) if point.train else None,
        "checkpoint_bytes": state_bytes(built.module),
        "error": error,
    }
    if own:
        rows.time(point, facts, dense.step, None, benchmark)
    else:
        rows.time(point, facts, built.step(x, dy)(point.train), dense.step, benchmark)


def _ways(point: ModulePoint) -> tuple[Tensor, Tensor, dict[str, tuple[Built, timing.Step]]]:
    """The input of a cell, and its dense module with one call of it, for each way to run it."""
    x, dy = inputs(point)
    built = {way: build(replace(point, structure="dense", n_blocks=None), way) for way in WAYS}
    return x, dy, {way: (one, one.step(x, dy)(point.train)) for way, one in built.items()}
