"""The other way to a gradient: the pure forward left to autograd, priced as a plan of its own.

A planned backward is one Python function that autograd calls; being called costs about 0.03 ms. Autograd's own products
cost no call, but copy whatever the forward's layouts do not let BLAS read. Few and well-laid-out products are faster
left to autograd (1024 wide, 128 tokens: low rank 2.9 times dense against 2.5, Kronecker 5.2 against 4.2), permuted
outputs and middles are not (DYAD-DT 1.3 against 1.45, Monarch of 32 blocks 1.8 against 3.2).
"""

from __future__ import annotations

from dataclasses import replace

from structures.backends.planned.layout import Layout, Product, readable
from structures.backends.planned.price import Price
from structures.backends.planned.problem import X
from structures.backends.planned.program import Copy, Embed, Gather, Multiply, Op, Place, Plan, Pointwise, Scatter, Want

LOOSE = 2.5  # passes that autograd makes over a permuted gradient for each that is needed
ADDED = 5.0  # the same where terms are added: their gradients of x meet in different orders, in fresh memory


def native(plan: Plan, price: Price, want: Want) -> Plan:
    """The forward plan with its gradients left to autograd."""
    forward = sum(_pure(op, price) for op in plan.forward)
    whole = any(isinstance(op, Embed) for op in plan.forward)
    backward = _Backward(price, want, 1 if whole else len(plan.problem.chains))
    for op in reversed(plan.forward):
        backward.op(op)
    loose = ADDED if backward.chains > 1 else LOOSE
    seconds = forward + backward.seconds + loose * backward.moved + price.rates.node * len(plan.forward)
    return replace(plan, want=want, native=True, seconds=seconds)


def _pure(op: Op, price: Price) -> float:
    """Seconds of an operation without `out=` and in-place forms: each piece is copied, then added."""
    if not isinstance(op, Place):
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
        if isinstance(op, Place):
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
            self.arrives(op.source, self.memory.get(op.result, op.layout))
        elif isinstance(op, Gather | Scatter):
            slow = 5 if self.price.itemsize >= 4 else 30  # a scattered addition; one by one in 16 bits
            self.seconds += slow * self.price(op)
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

    def needed(self, name: str) -> bool:
        if name == X:
            return self.want.x
        return not name.startswith("f") or self.want.factors[int(name[1:])]

    def arrives(self, name: str, layout: Layout) -> None:
        """A gradient reaches a tensor; the input's is brought into its own order, once for every term."""
        if name == X and self.want.x:
            views = [chain.view for chain in self.price.problem.chains]
            natural = next((view for view in views if sorted(view) == sorted(layout)), views[0])
            if sorted(natural) == sorted(layout) and layout != natural:
                self.moved += self.price.move(layout, natural)
            if self.chains > 1:
                self.moved += self.price.move(natural, natural)
        self.memory[name] = layout
