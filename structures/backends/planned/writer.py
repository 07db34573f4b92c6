"""Lines of source under construction, and the shape that every tensor has so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from structures.backends.planned.layout import TOKENS, Layout, fuse, heads
from structures.backends.planned.price import held
from structures.backends.planned.problem import ChainProblem, factor_name
from structures.backends.planned.program import Op
from structures.backends.planned.source import Source

Shape = tuple[str, ...]
ITEMSIZE = 4  # bytes that decide on a way to copy; its bounds are too rough to tell dtypes apart


class Writer:
    """Lines of source, one or a few an operation, and the shape that every tensor has so far."""

    def __init__(self, problem: ChainProblem, pure: bool, tokens: int):
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
        return permute(expression, [0, *order] if spread else order), (*more, *(self.extent(runs[a]) for a in dst))

    def slow_transpose(self, view: Layout, layout: Layout) -> bool:
        """Whether torch would copy a transposed matrix by its single-threaded loop, where the general one is faster.

        (32, 4096) transposed, float32: 94 us against 51 on two threads. Beyond the cache it is the other way round.
        """
        runs = fuse(view, layout)
        src, dst = heads(view, runs), heads(layout, runs)
        if len(src) != 2 or src == dst:
            return False
        extents = {a: self.problem.numel(run, self.tokens) for a, run in runs.items()}
        return held(src, dst, extents, ITEMSIZE) <= 2**20

    def assign(self, name: str, expression: str, shape: Sequence[str]) -> None:
        self.lines.append(f"{name} = {expression}")
        self.shape[name] = tuple(shape)

    def spread(self, name: str, view: Layout, order: Layout, runs: Mapping[str, Layout]) -> str:
        """A tensor with one dimension for each axis of `order`, 1 where it has none."""
        own = [a for a in order if a in view]
        expression = permute(self.view(name, [self.extent(runs[a]) for a in view]), [view.index(a) for a in own])
        if len(own) == len(order):
            return expression
        return f"{expression}[{', '.join(':' if a in view else 'None' for a in order)}]"


def permute(expression: str, order: Sequence[int]) -> str:
    if list(order) == sorted(order):
        return expression
    moved = [i for i, o in enumerate(order) if i != o]
    if len(order) == 2:
        return f"{expression}.t()"
    if len(moved) == 2:
        return f"{expression}.transpose({moved[0]}, {moved[1]})"
    return f"{expression}.permute({', '.join(map(str, order))})"
