"""From a plan to straight-line Python that runs it.

Two forms of one plan. *Eager* writes results in place and into `out=`: the least calls and passes. *Pure* has no
in-place operation, no `out=` and reshapes in the place of views: it can be differentiated, vmapped and traced.
"""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from structures.backends.planned.layout import TOKENS, Layout, Product, fuse, heads, readable
from structures.backends.planned.price import held, joint
from structures.backends.planned.problem import Problem, X, factor_name
from structures.backends.planned.program import NARROW, Copy, Gather, Multiply, Op, Place, Plan, Pointwise, Scatter

Run = Callable[..., tuple[Tensor, ...]]
Shape = tuple[str, ...]
ITEMSIZE = 4  # bytes that decide on a way to copy; its bounds are too rough to tell dtypes apart


def forward_source(plan: Plan, *, pure: bool) -> Source:
    """Source of `forward(x, f0, ..., b) -> (y, *saved)`."""
    return _forward(plan, pure)


def backward_source(plan: Plan, *, pure: bool) -> Source:
    """Source of `backward(dy, f0, ..., *saved) -> (dx, df0, ...)`, those gradients that the plan wants."""
    assert plan.want is not None
    names = [factor_name(i) for i in range(len(plan.problem.factors))]
    writer = _Writer(plan.problem, pure, plan.chunk or plan.tokens)
    writer.known("dy", plan.problem.out_features)
    writer.known(X, plan.problem.in_features)
    for op in (*plan.forward, *plan.backward):
        writer.note(op)
    for op in plan.backward:
        writer.op(op)
    wanted = ["dx"] if plan.want.x else []
    wanted += [f"d{n}" for n, w in zip(names, plan.want.factors, strict=True) if w]
    results = [writer.shaped(n, "in" if n == "dx" else n[1:]) for n in wanted]
    head = f"def backward({', '.join(['dy', *names, *plan.saved])}):"
    return writer.source(head, ["t = dy.shape[0]", *writer.lines, f"return ({', '.join([*results, ''])})"])


@dataclass(frozen=True)
class Source:
    """Text of a function, and the tables of positions that it reads as `table0`, `table1`, ..."""

    text: str
    tables: tuple[tuple[int, ...], ...] = ()


def compiled(source: Source, name: str) -> Run:
    """The function called `name` that the source defines."""
    return _compiled(source, name)


@lru_cache(maxsize=4096)
def _compiled(source: Source, name: str) -> Run:
    scope: dict[str, object] = {"torch": torch, "index": index}
    scope.update((f"table{i}", Table(positions)) for i, positions in enumerate(source.tables))
    file = f"<plan {abs(hash(source)):x}>"
    lines = source.text.splitlines(keepends=True)
    linecache.cache[file] = (len(source.text), None, lines, file)  # shown in tracebacks
    exec(compile(source.text, file, "exec"), scope)
    return scope[name]  # type: ignore[return-value]


class Table:
    """Positions to gather from, with a tensor of them on each device where they were used."""

    def __init__(self, positions: tuple[int, ...]):
        self.positions = positions
        self.tensors: dict[torch.device, Tensor] = {}

    def on(self, like: Tensor) -> Tensor:
        """The positions on the device of `like`."""
        found = self.tensors.get(like.device)
        if found is None or type(like) is not Tensor:
            found = index(self.positions, like)
            if type(found) is Tensor:  # a fake tensor must not be met outside its mode
                self.tensors[like.device] = found
        return found


def index(positions: tuple[int, ...], like: Tensor) -> Tensor:
    """A table as a tensor; an inference tensor could not be saved for a later backward."""
    if torch.compiler.is_compiling():
        return torch.tensor(positions, device=like.device)
    with torch.inference_mode(False):
        return torch.tensor(positions, device=like.device)


def _forward(plan: Plan, pure: bool) -> Source:
    writer = _Writer(plan.problem, pure, plan.chunk or plan.tokens)
    writer.known(X, plan.problem.in_features)
    for op in plan.forward:
        writer.note(op)
    head = f"def forward({', '.join([X, *(factor_name(i) for i in range(len(plan.problem.factors))), 'b'])}):"
    if plan.chunk and not pure:
        return writer.source(head, _chunked(plan, writer))
    for op in plan.forward:
        writer.op(op)
    saved = [name for name in plan.saved if name != X]
    results = [writer.shaped("y", "out"), *saved, ""]
    return writer.source(head, ["t = x.shape[0]", *writer.lines, f"return ({', '.join(results)})"])


def _chunked(plan: Plan, writer: _Writer) -> list[str]:
    """A loop over chunks of tokens; what has no tokens (merged factors) is computed once, before it."""
    steady = [op for op in plan.forward if TOKENS not in op.layout]
    for op in steady:
        writer.op(op)
    before, writer.lines = writer.lines, []
    writer.out = "part"
    for op in plan.forward:
        if op not in steady:
            writer.op(op)
    if writer.out:  # the last operation could not write into its place
        writer.lines.append(f"part.copy_({writer.shaped('y', 'out')})")
    size = plan.chunk
    return [
        "whole = x",
        *before,
        f"total = torch.empty((whole.shape[0], {plan.problem.out_features}), dtype=x.dtype, device=x.device)",
        f"for x, part in zip(whole.split({size}), total.split({size})):",
        "    t = x.shape[0]",
        *(f"    {line}" for line in writer.lines),
        "return (total,)",
    ]


class _Writer:
    """Lines of source, one or a few an operation, and the shape that every tensor has so far."""

    def __init__(self, problem: Problem, pure: bool, tokens: int):
        self.problem, self.pure, self.tokens = problem, pure, tokens
        self.size = dict(problem.sizes)
        self.lines: list[str] = []
        self.shape: dict[str, Shape] = {}
        self.layout: dict[str, Layout] = {}
        self.tables: list[tuple[int, ...]] = []
        self.out = ""  # where the final result is to be written
        self.rows = "1" if problem.single else "t"
        for number, (axes, shape) in enumerate(zip(problem.factors, problem.factor_shapes, strict=True)):
            self.layout[factor_name(number)] = axes
            self.shape[factor_name(number)] = tuple(map(str, shape))

    def source(self, head: str, lines: Iterable[str]) -> Source:
        """The whole function."""
        return Source("\n".join([head, *(f"    {line}" for line in lines), ""]), tuple(self.tables))

    def table(self, positions: tuple[int, ...], like: str) -> str:
        """A table as a tensor: literal in a traced graph, else kept by an object (tuples hash slowly)."""
        if self.pure:
            return f"index({positions}, {like})"
        self.tables.append(positions)
        return f"table{len(self.tables) - 1}.on({like})"

    # -- shapes

    def known(self, name: str, width: int) -> None:
        self.shape[name] = (self.rows, str(width))

    def note(self, op: Op) -> None:
        """Every result is handed over flat by layout: only its own operation knows a finer shape."""
        self.layout[op.result] = op.layout

    def extent(self, axes: Iterable[str]) -> str:
        """The product of sizes as source: `32`, `t` or `t * 32`."""
        number, tokens = 1, False
        for axis in axes:
            if axis == TOKENS:
                tokens = True
            else:
                number *= self.size[axis]
        if not tokens:
            return str(number)
        return "t" if number == 1 else f"t * {number}"

    def view(self, name: str, shape: Sequence[str]) -> str:
        """`name` with another shape, as an expression."""
        if self.shape.get(name) == tuple(shape):
            return name
        return f"{name}.{'reshape' if self.pure else 'view'}({', '.join(shape) or '()'})"

    def shaped(self, name: str, what: str) -> str:
        """A result as it leaves: (tokens, features), or the shape of a factor as the user has it."""
        if what in ("in", "out"):
            width = self.problem.in_features if what == "in" else self.problem.out_features
            return self.view(name, (self.rows, str(width)))
        return self.view(name, self.shape[what])

    def permuted(
        self, name: str, source: Layout, target: Layout, *, alone: Sequence[str] = (), spread: bool = False
    ) -> tuple[str, Shape]:  # fmt: skip
        """`name` seen in the order `target`, as few dimensions as can be (with `spread` one more), and that shape."""
        runs = fuse(source, target, keep=alone)
        src, dst = heads(source, runs), heads(target, runs)
        more = ["1"] if spread else []
        expression = self.view(name, more + [self.extent(runs[a]) for a in src])
        order = [src.index(a) + len(more) for a in dst]
        return _permute(expression, [0, *order] if spread else order), (*more, *(self.extent(runs[a]) for a in dst))

    def slow_transpose(self, view: Layout, layout: Layout) -> bool:
        """Whether torch would copy a transposed matrix by its single-threaded loop, where the general one is faster.

        (32, 4096) transposed, float32: 94 us against 51 on two threads. Beyond the cache it is the other way round.
        """
        runs = fuse(view, layout)
        src, dst = heads(view, runs), heads(layout, runs)
        if self.pure or len(src) != 2 or src == dst:
            return False
        extents = {a: self.problem.numel(run, self.tokens) for a, run in runs.items()}
        return held(src, dst, extents, ITEMSIZE) <= 2**20

    # -- operations

    def op(self, op: Op) -> None:
        if isinstance(op, Multiply):
            self.multiply(op)
        elif isinstance(op, Pointwise):
            self.pointwise(op)
        elif isinstance(op, Place):
            self.place(op)
        elif isinstance(op, Copy):
            spread = self.slow_transpose(op.view, op.layout)
            expression, shape = self.permuted(op.source, op.view, op.layout, spread=spread)
            self.assign(op.result, f"{expression}.contiguous()", shape)
        elif isinstance(op, Gather):
            self.gather(op)
        else:
            self.scatter(op)

    def assign(self, name: str, expression: str, shape: Sequence[str]) -> None:
        self.lines.append(f"{name} = {expression}")
        self.shape[name] = tuple(shape)

    def multiply(self, op: Multiply) -> None:
        p = op.product
        left = self.matrix(op.left, op.left_view, p.left, p.batch)
        right = self.matrix(op.right, op.right_view, p.right, p.batch, last=True)
        shape = [self.extent(g) for g in ((p.batch, p.rows, p.cols) if p.batch else (p.rows, p.cols))]
        plain, adding = ("bmm", "baddbmm") if p.batch else ("mm", "addmm")
        if op.into and self.pure:
            expression = f"torch.{adding}({self.view(op.into, shape)}, {left}, {right})"
        elif op.into:
            expression = f"{self.view(op.into, shape)}.{adding}_({left}, {right})"
        elif op.bias:
            expression = f"torch.{adding}({self.bias(p, shape)}, {left}, {right}{self.target(op, shape)})"
        else:
            expression = f"torch.{plain}({left}, {right}{self.target(op, shape)})"
        if p.reduced:
            expression, shape = f"{expression}.sum(0)", shape[1:]
        self.assign(op.result, expression, shape)

    def target(self, op: Multiply, shape: Sequence[str]) -> str:
        """`out=` the place of the final result, where the result can be written there at once."""
        if not self.out or op.result != "y" or op.product.reduced or self.pure:
            return ""
        place, self.out = self.out, ""
        self.shape[place] = (self.rows, str(self.problem.out_features))
        return f", out={self.view(place, shape)}"

    def bias(self, product: Product, shape: Sequence[str]) -> str:
        """The bias as it broadcasts over a product's result."""
        if self.rows == "1":
            return self.view_bias(shape)
        return self.view_bias(shape[1:]) if product.batch else "b"

    def view_bias(self, shape: Sequence[str]) -> str:
        return f"b.{'reshape' if self.pure else 'view'}({', '.join(shape) or '()'})"

    def matrix(
        self, name: str, view: Layout, parts: tuple[Layout, Layout, Layout], batch: Layout, *, last: bool = False
    ) -> str:
        """An operand as (batch, two sides), or as one matrix; without a batch of its own it is expanded."""
        order = list(readable(view, parts) or ())
        own = bool(parts[0])
        wanted = [0, 1, 2] if own else [1, 2]
        for position in wanted:
            if position not in order:
                order.insert(wanted.index(position) if position < 2 else len(order), position)
        expression = self.view(name, [self.extent(parts[g]) for g in order])
        expression = _permute(expression, [order.index(g) for g in wanted])
        if batch and not own:
            sizes = ", ".join(self.extent(g) for g in (batch, parts[1], parts[2]))
            expression = f"{expression}.expand({sizes})"
        return expression

    def place(self, op: Place) -> None:
        width = self.problem.in_features if op.result == "dx" else self.problem.out_features
        whole = (self.rows, str(width))
        if self.pure:
            self.place_pure(op, whole)
            return
        if len(op.pieces) == 1 and not op.bias and not self.out:
            name, view, target = op.pieces[0]
            expression, _ = self.permuted(name, view, target, spread=self.slow_transpose(view, target))
            fresh = "clone(memory_format=torch.contiguous_format)" if name in (X, "dy") else "contiguous()"
            self.assign(op.result, f"{expression}.{fresh}.view({', '.join(whole)})", whole)
            return
        place, self.out = self.out, ""
        first = op.pieces[0][0]
        empty = f"torch.empty(({', '.join(whole)}), dtype={first}.dtype, device={first}.device)"
        self.assign(op.result, place or empty, whole)
        pieces = list(op.pieces)
        self.first(op, pieces)
        for name, view, target in pieces:
            expression, shape = self.permuted(name, view, target)
            self.lines.append(f"{self.view(op.result, shape)}.add_({expression})")

    def first(self, op: Place, pieces: list[tuple[str, Layout, Layout]]) -> None:
        """The first pass over the result: a piece and the bias, two pieces, or one; those are taken off the list."""
        name, view, target = pieces.pop(0)
        if op.bias:
            expression, shape = self.permuted(name, view, target, alone=(TOKENS,))
            place = self.view(op.result, shape)
            self.lines.append(
                f"torch.add({expression}, {self.view_bias(shape[0 if self.rows == '1' else 1 :])}, out={place})"
            )
        elif joint(op):
            other, second, _ = pieces.pop(0)
            runs = fuse(view, second, target)
            dst = heads(target, runs)
            shape = tuple(self.extent(runs[a]) for a in dst)
            sides = []
            for tensor, order in ((name, heads(view, runs)), (other, heads(second, runs))):
                sides.append(
                    _permute(self.view(tensor, [self.extent(runs[a]) for a in order]), [order.index(a) for a in dst])
                )
            self.lines.append(f"torch.add({sides[0]}, {sides[1]}, out={self.view(op.result, shape)})")
        else:
            expression, shape = self.permuted(name, view, target, spread=self.slow_transpose(view, target))
            self.lines.append(f"{self.view(op.result, shape)}.copy_({expression})")

    def place_pure(self, op: Place, whole: Shape) -> None:
        parts = []
        for name, view, target in op.pieces:
            expression, _ = self.permuted(name, view, target)
            parts.append(f"{expression}.reshape({', '.join(whole)})")
        if op.bias:
            parts.append("b")
        elif len(parts) == 1:
            parts[0] += ".clone()"
        self.assign(op.result, f"({' + '.join(parts)}).contiguous()", whole)

    def pointwise(self, op: Pointwise) -> None:
        runs = fuse(op.left_view, op.right_view, op.layout, op.contracted)
        order, summed = heads(op.layout, runs), heads(op.contracted, runs)
        shape = tuple(self.extent(runs[a]) for a in order)
        one = self.spread(op.left, heads(op.left_view, runs), order + summed, runs)
        two = self.spread(op.right, heads(op.right_view, runs), order + summed, runs)
        count = self.problem.numel(op.contracted, NARROW + 1)
        if not op.contracted:
            self.product(op.result, one, two, shape)
        elif count <= NARROW:
            self.lines += [f"l, r = {one}, {two}"]
            extents = [range(self.problem.numel(runs[a], 1)) for a in summed]
            for number, at in enumerate(itertools.product(*extents)):
                place = ", ".join(map(str, at))
                if not number:
                    self.product(op.result, f"l[..., {place}]", f"r[..., {place}]", shape)
                    continue
                pair = f"l[..., {place}], r[..., {place}]"
                if self.pure:
                    self.lines.append(f"{op.result} = torch.addcmul({op.result}, {pair})")
                else:
                    self.lines.append(f"{op.result}.addcmul_({pair})")
        else:
            dims = tuple(range(-len(summed), 0))
            self.assign(op.result, f"torch.mul({one}, {two}).sum({dims}).contiguous()", shape)

    def product(self, name: str, one: str, two: str, shape: Shape) -> None:
        """An elementwise product with a contiguous result, whatever order the operands have in memory."""
        if self.pure:
            self.assign(name, f"torch.mul({one}, {two}).contiguous()", shape)
            return
        like = re.match(r"\w+", one)[0]  # type: ignore[index]
        size = f"({', '.join(shape)},)" if shape else "()"
        self.assign(name, f"torch.empty({size}, dtype={like}.dtype, device={like}.device)", shape)
        self.lines.append(f"torch.mul({one}, {two}, out={name})")

    def spread(self, name: str, view: Layout, order: Layout, runs: dict[str, Layout]) -> str:
        """A tensor with one dimension for each axis of `order`, 1 where it has none."""
        own = [a for a in order if a in view]
        expression = _permute(self.view(name, [self.extent(runs[a]) for a in view]), [view.index(a) for a in own])
        if len(own) == len(order):
            return expression
        return f"{expression}[{', '.join(':' if a in view else 'None' for a in order)}]"

    def gather(self, op: Gather) -> None:
        at = op.view.index(op.axis)
        before, after = self.extent(op.view[:at]), self.extent(op.view[at + 1 :])
        source = self.view(op.source, (before, self.extent((op.axis,)), after))
        self.assign(
            op.result,
            f"{source}.index_select(1, {self.table(op.table, op.source)})",
            (before, self.extent(op.by), after),
        )

    def scatter(self, op: Scatter) -> None:
        """Blocks that are read equally often are collected by a second gather and summed: deterministic everywhere."""
        at = op.view.index(op.by[0]) if op.by else 1
        before, after = self.extent(op.view[:at]), self.extent(op.view[at + len(op.by) :])
        size = self.size[op.axis]
        source = self.view(op.source, (before, self.extent(op.by), after))
        readers = [[j for j, position in enumerate(op.table) if position == p] for p in range(size)]
        often = len(readers[0])
        shape = (before, str(size), after)
        if often and all(len(r) == often for r in readers):
            table = tuple(j for r in readers for j in r)
            expression = f"{source}.index_select(1, {self.table(table, op.source)})"
            if often > 1:
                expression += f".{'reshape' if self.pure else 'view'}({before}, {size}, {often}, {after}).sum(2)"
        else:
            zeros = f"torch.zeros(({', '.join(shape)}), dtype={op.source}.dtype, device={op.source}.device)"
            expression = f"{zeros}.index_add(1, {self.table(op.table, op.source)}, {source})"
        self.assign(op.result, expression, shape)


def _permute(expression: str, order: Sequence[int]) -> str:
    if list(order) == sorted(order):
        return expression
    moved = [i for i, o in enumerate(order) if i != o]
    if len(order) == 2:
        return f"{expression}.t()"
    if len(moved) == 2:
        return f"{expression}.transpose({moved[0]}, {moved[1]})"
    return f"{expression}.permute({', '.join(map(str, order))})"
