"""Operations as data, and the plan they make up: frozen, hashable, printable. Nothing here runs anything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from structures.backends.planned.layout import TOKENS, Layout, Product
from structures.backends.planned.problem import ChainProblem, Read

NARROW = 8  # steps with contracted and cols axes up to this may run elementwise


@dataclass(frozen=True)
class Copy:
    """`result` = `source` with its axes in another order of memory."""

    result: str
    source: str
    view: Layout  # of the source
    layout: Layout  # of the result


@dataclass(frozen=True)
class GatherBlocks:
    """`result` = whole blocks of `source`: its neighbouring `axes`, as one, read at `table`, laid out as `by`."""

    result: str
    source: str
    view: Layout
    axes: Layout
    by: Layout
    table: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        at = self.view.index(self.axes[0])
        return self.view[:at] + self.by + self.view[at + len(self.axes) :]


@dataclass(frozen=True)
class Scatter:
    """The transpose of a Gather: blocks along `by`, side by side in `view`, are summed into `axis` at `table`."""

    result: str
    source: str
    view: Layout
    axis: str
    by: Layout
    table: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        at = self.view.index(self.by[0]) if self.by else 1
        return (*self.view[:at], self.axis, *self.view[at + len(self.by) :])


@dataclass(frozen=True)
class Multiply:
    """A matrix product: `left` and `right` in the product's own orientation, read in place.

    Args:
        into: an earlier tensor of the result's layout that the product is added to (and which it replaces).
        bias: the layer's bias is added to every row; the result is then y itself.
        apart: the matrices of the batch are multiplied one after another, each by all threads.
        placed: the matrices are written where their blocks lie in the flat result, (tokens, batch, cols).
    """

    result: str
    left: str
    right: str
    left_view: Layout
    right_view: Layout
    product: Product
    into: str = ""
    bias: bool = False
    apart: bool = False
    placed: bool = False

    @property
    def layout(self) -> Layout:
        return self.product.result


@dataclass(frozen=True)
class Pointwise:
    """A contraction by elementwise multiply-add: for steps too narrow for a matrix product, or without any sum."""

    result: str
    left: str
    right: str
    left_view: Layout
    right_view: Layout
    contracted: Layout
    layout: Layout


@dataclass(frozen=True)
class Assemble:
    """`result` (tokens, features) = the sum of the pieces, each permuted from its view to its target, and the bias.

    Args:
        into: an earlier tensor in the result's order that the pieces are added to (and which it replaces).
        once: a piece that is turned and the bias take one pass, not two.
    """

    result: str
    pieces: tuple[tuple[str, Layout, Layout], ...]  # name, view, target
    bias: bool = False
    into: str = ""
    once: bool = False

    @property
    def layout(self) -> Layout:
        return self.pieces[0][2]


@dataclass(frozen=True)
class DenseBlock:
    """One term of a dense matrix: `name`, lying as `view`, holds entries of the rows `rows` and the columns `cols`.

    An axis in both is a block diagonal; one that the view lacks is repeated. With `read`, the axis that it reads is
    among the rows, and the axes that it is read by in the view, some of them among the columns.
    """

    name: str
    view: Layout
    rows: Layout
    cols: Layout
    read: Read | None = None

    @property
    def columns_by(self) -> Layout:
        """The columns' axes that the gather depends on, in the order of the gather."""
        return tuple(a for a in self.read.by if a in self.cols) if self.read else ()

    def places(self, problem: ChainProblem) -> tuple[int, ...]:
        """For each combination of the axes read by: position on the axis read and `columns_by`, flattened."""
        assert self.read is not None
        size = dict(problem.sizes)
        places = []
        for at, position in zip(
            itertools.product(*(range(size[a]) for a in self.read.by)), self.read.table, strict=True
        ):
            place = position
            for axis, index in zip(self.read.by, at, strict=True):
                if axis in self.cols:
                    place = place * size[axis] + index
            places.append(place)
        return tuple(places)


@dataclass(frozen=True)
class Embed:
    """`result` (in_features, out_features) = the sum of the parts, each put where its axes lie; zero elsewhere."""

    result: str
    parts: tuple[DenseBlock, ...]
    layout: Layout


Op = Copy | GatherBlocks | Scatter | Multiply | Pointwise | Assemble | Embed


def reads(op: Op) -> tuple[str, ...]:
    """Names of the tensors that an operation reads."""
    if isinstance(op, Multiply):
        return (op.left, op.right, op.into) if op.into else (op.left, op.right)
    if isinstance(op, Pointwise):
        return op.left, op.right
    if isinstance(op, Assemble):
        return (*(name for name, _, _ in op.pieces), *([op.into] if op.into else []))
    if isinstance(op, Embed):
        return tuple(part.name for part in op.parts)
    return (op.source,)


def renamed(ops: Sequence[Op], name: str, result: str) -> tuple[Op, ...]:
    """The operations with the last result called `result`."""
    return tuple(replace(op, result=result) if op.result == name else op for op in ops)


@dataclass(frozen=True)
class Want:
    """Which gradients a backward computes."""

    x: bool
    factors: tuple[bool, ...]
    bias: bool

    @property
    def any(self) -> bool:
        return self.x or self.bias or any(self.factors)


@dataclass(frozen=True)
class Plan:
    """How a structure runs for about `tokens` tokens: the operations forward and, with gradients, backward.

    Args:
        saved: names of the tensors that the backward reads besides the factors.
        seconds: predicted time of forward and backward.
        chunk: tokens a pass; 0 runs all at once.
        native: the gradients are left to autograd; `backward` is empty then.
    """

    problem: ChainProblem
    tokens: int
    forward: tuple[Op, ...]
    backward: tuple[Op, ...] = ()
    want: Want | None = None
    saved: tuple[str, ...] = ()
    chunk: int = 0
    native: bool = False
    seconds: float = field(default=0.0, compare=False)
    parts: tuple[float, ...] = field(default=(), compare=False)  # seconds of each operation, forward then backward

    def flops(self, tokens: int) -> int:
        """Floating-point operations that the products and elementwise steps execute, 2 per multiply-add."""
        count = sum(op_flops(self.problem, op, tokens) for op in (*self.forward, *self.backward))
        return 3 * count if self.native else count  # autograd multiplies the gradient with either operand

    def __str__(self) -> str:
        return "\n".join(_page(self))


def op_flops(problem: ChainProblem, op: Op, tokens: int) -> int:
    """2 per multiply-add; 0 for what only moves numbers. Sums of terms and bias are not counted, as in `flops`."""
    if isinstance(op, Multiply):
        p = op.product
        return 2 * problem.numel((*p.batch, *p.rows, *p.contracted, *p.cols), tokens)
    if isinstance(op, Pointwise):
        return (2 if op.contracted else 1) * problem.numel((*op.layout, *op.contracted), tokens)
    return 0


def _page(plan: Plan) -> Iterator[str]:
    problem = plan.problem
    sizes: Mapping[str, int] = {**dict(problem.sizes), TOKENS: plan.chunk or plan.tokens}
    chunk = f", {plan.chunk} tokens at a time" if plan.chunk else ""
    widths = f"{problem.in_features} -> {problem.out_features}"
    yield f"{widths}, about {plan.tokens} tokens{chunk}: {_time(plan.seconds)} predicted"
    used = dict.fromkeys(a for chain in problem.chains for a in (*chain.view, *chain.loaded, *chain.output))
    used.update(dict.fromkeys(a for axes in problem.factors for a in axes))
    yield "  " + "  ".join([*(f"{a}={sizes[a]}" for a in used if a != TOKENS), f"{TOKENS}=tokens"])
    parts = iter(plan.parts)
    saved = f", saving {', '.join(plan.saved) or 'nothing'}" if plan.want and not plan.native else ""
    saved = ", gradients by autograd" if plan.native else saved
    for title, ops in ((f"forward{saved}", plan.forward), ("backward", plan.backward)):
        if ops:
            yield f"{title}:"
        for op in ops:
            yield f"  {_time(next(parts, 0.0)):>9}  {describe(op, sizes)}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _axes(layout: Layout) -> str:
    return f"({' '.join(layout)})"


def describe(op: Op, sizes: Mapping[str, int]) -> str:
    """One line: the result with its layout, and what makes it."""
    head = f"{op.result} {_axes(op.layout)} = "
    if isinstance(op, Multiply):
        return head + _describe_product(op, sizes)
    if isinstance(op, Pointwise):
        total = f", sum over {' '.join(op.contracted)}" if op.contracted else ""
        return head + f"elementwise {op.left} {_axes(op.left_view)} * {op.right} {_axes(op.right_view)}{total}"
    if isinstance(op, Assemble):
        into = [op.into] if op.into else []
        return head + " + ".join([*into, *(f"{n} {_axes(v)}" for n, v, _ in op.pieces), *["bias"] * op.bias])
    if isinstance(op, Copy):
        return head + f"copy of {op.source} {_axes(op.view)}"
    if isinstance(op, Embed):
        return head + "the dense matrix of " + " + ".join(f"{part.name} {_axes(part.view)}" for part in op.parts)
    kind = "blocks of" if isinstance(op, GatherBlocks) else "sum of blocks of"
    return head + f"{kind} {op.source} {_axes(op.view)}"


def _describe_product(op: Multiply, sizes: Mapping[str, int]) -> str:
    p = op.product

    def extent(group: Layout) -> int:
        return math.prod(sizes[axis] for axis in group)

    plain, adding = ("bmm", "baddbmm") if p.batch else ("mm", "addmm")
    name = adding if op.into or op.bias else plain
    if op.apart and not op.bias:
        name = f"{extent(p.batch)} times {'addmm' if op.into else 'mm'}"
    added = "bias, " if op.bias else f"{op.into}, " if op.into else ""
    placed = ", into its blocks" if op.placed else ""
    spread = f", {p.expand} read with stride 0" if p.expand else ", summed over the batch" if p.reduced else ""
    left, right = f"{op.left} {_axes(op.left_view)}", f"{op.right} {_axes(op.right_view)}"
    shape = (
        f"{extent(p.batch)} x ({extent(p.rows)}, {extent(p.contracted)}) @ ({extent(p.contracted)}, {extent(p.cols)})"
    )
    return f"{name}({added}{left}, {right}){spread}{placed}    {shape}"
