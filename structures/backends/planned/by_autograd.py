"""The other way to a gradient: the pure forward left to autograd, priced as a plan of its own.

A planned backward is one Python function that autograd calls, and every operation in it costs Python of its own.
Autograd's own products cost less, but copy whatever the forward's layouts do not let BLAS read, and what does not lie
as the forward viewed it. Few and well-laid-out products are faster left to autograd (1024 wide, 128 tokens: low rank
2.9 times dense against 2.5, Kronecker 5.2 against 4.2), permuted outputs and middles are not (DYAD-DT 1.3 against 1.45,
Monarch of 32 blocks 1.8 against 3.2).
"""

from __future__ import annotations

from dataclasses import replace

from structures.backends.planned.layout import Layout, Product, fuse, readable
from structures.backends.planned.price import Price
from structures.backends.planned.problem import X, factor_number
from structures.backends.planned.program import (
    Assemble,
    Copy,
    Embed,
    GatherBlocks,
    Multiply,
    Op,
    Plan,
    Pointwise,
    Scatter,
    Want,
)

ADDED = 2.0  # passes over a permuted gradient where terms are added: those of x meet in different orders
ORDERED = 0.5  # share of calls that bring a factor's gradient into the factor's order: `backward()`, not `grad()`
BLOCK = 4e-6  # seconds that a scattered addition takes for a block besides the block; one by one in 16 bits


def native(plan: Plan, price: Price, want: Want) -> Plan:
    """The forward plan with its gradients left to autograd."""
    forward = sum(_pure(op, price) for op in plan.forward)
    whole = any(isinstance(op, Embed) for op in plan.forward)
    backward = _Backward(price, want, 1 if whole else len(plan.problem.chains))
    for op in reversed(plan.forward):
        backward.op(op)
    loose = ADDED if backward.chains > 1 else 1.0
    seconds = forward + backward.seconds + loose * backward.moved
    seconds += price.rates.function + price.rates.node * len(plan.forward)
    return replace(plan, want=want, native=True, seconds=seconds)


def _pure(op: Op, price: Price) -> float:
    """Seconds of an operation without `out=` and in-place forms: each piece is copied, then added."""
    if not isinstance(op, Assemble):
        return price(op)
    passes = len(op.pieces) - 1 + op.bias
    moved = sum(price.move(view, target) for _, view, target in op.pieces if view != target)
    return moved + passes * price.move(op.layout, op.layout) + price.rates.call * (passes + len(op.pieces))


class _Backward:
    """Walks a forward program backwards and adds up what autograd does; `memory` is each gradient's order in memory."""

    def __init__(self, price: Price, want: Want, chains: int):
        self.price, self.want, self.chains = price, want, chains
        self.seconds = 0.0
        self.moved = 0.0  # seconds of moving gradients from one order of memory to another
        self.memory: dict[str, Layout] = {}

    def op(self, op: Op) -> None:
        if isinstance(op, Assemble):
            for name, _, target in op.pieces:
                self.arrives(name, target)
        elif isinstance(op, Multiply):
            self.multiply(op)
        elif isinstance(op, Pointwise):
            self.seconds += 3 * self.price(op)
            self.arrives(op.left, op.left_view)
        elif isinstance(op, Embed):
            self.seconds += self.price(op)
            for part in op.parts:
                self.arrives(part.name, part.view)
        elif isinstance(op, Copy):
            self.arrives(op.source, self.viewed(op))
        elif isinstance(op, GatherBlocks | Scatter):
            fine = self.price.itemsize >= 4
            self.seconds += (1.5 if fine else 10) * self.price(op) + (BLOCK * len(op.table) if fine else 0.0)
            self.arrives(op.source, op.view)

    def multiply(self, op: Multiply) -> None:
        p = op.product
        gradient = self.memory.get(op.result, op.layout)
        if sorted(gradient) != sorted(op.layout):
            gradient = op.layout  # another term's axes for the same features: the two were added where they lay
        if op.into:
            self.arrives(op.into, gradient)
        copy = 0.0  # of the result's gradient, which each of the two products makes for itself
        if not p.reduced and readable(gradient, (p.batch, p.rows, p.cols)) is None:
            copy, gradient = self.price.move(gradient, op.layout), op.layout
        one = Product(p.batch, p.rows, p.cols, p.contracted, expand="right" * (p.expand == "right"))
        two = Product(p.batch, p.contracted, p.rows, p.cols, expand="left" * (p.expand == "left"))
        of_left = replace(op, left_view=gradient, product=one, into="", bias=False)
        of_right = replace(op, right_view=gradient, product=two, into="", bias=False)
        for name, groups, expanded, made in (
            (op.left, p.left, p.expand == "left", of_left),
            (op.right, p.right, p.expand == "right", of_right),
        ):
            if not self.needed(name):
                continue
            self.seconds += self.price(op if p.reduced else made)
            self.moved += copy
            layout = groups[0] + groups[1] + groups[2]
            if expanded:  # a gradient a batch item, then their sum
                self.seconds += self.price.move((*p.batch, *layout), (*p.batch, *layout))
            self.arrives(name, layout)

    def viewed(self, op: Copy) -> Layout:
        """The order of a copy's gradient: as it came, or the copy's where axes that it took as one came apart.

        (2, 1024, 1024) with its last two swapped, put in order again before it is viewed as (2, 1048576): 9 ms of 16.
        """
        gradient = self.memory.get(op.result, op.layout)
        if sorted(gradient) != sorted(op.layout):
            return op.layout
        runs = fuse(op.view, op.layout).values()
        if all(gradient[gradient.index(run[0]) :][: len(run)] == run for run in runs):
            return gradient
        self.seconds += self.price.move(gradient, op.layout)
        return op.layout

    def needed(self, name: str) -> bool:
        if name == X:
            return self.want.x
        return not name.startswith("f") or self.want.factors[int(name[1:])]

    def arrives(self, name: str, layout: Layout) -> None:
        """A gradient reaches a tensor; the input's is brought into its own order, once for every term.

        So is a factor's where it is kept, as an optimizer wants it.
        """
        if name == X and self.want.x:
            views = [chain.view for chain in self.price.problem.chains]
            natural = next((view for view in views if sorted(view) == sorted(layout)), views[0])
            if sorted(natural) == sorted(layout) and layout != natural:
                self.moved += self.price.move(layout, natural)
            if self.chains > 1:
                self.moved += self.price.move(natural, natural)
        if name.startswith("f") and self.needed(name):
            written = self.price.problem.factors[factor_number(name)]
            if layout != written and sorted(layout) == sorted(written):
                self.seconds += ORDERED * self.price.move(layout, written)
        self.memory[name] = layout
