"""Forward programs: a beam search over the contractions of each term, and the sum of the terms' pieces."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from structures.backends.planned.contract import Tensor, copied, ways
from structures.backends.planned.layout import TOKENS, Layout, Product
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Chain, ChainProblem, Node, X, factor_name
from structures.backends.planned.program import Assemble, Copy, GatherBlocks, Multiply, Op, Plan, reads, renamed

MERGES = 8  # programs kept of factors contracted with one another
BEAM = 24  # partial programs kept after each step of a term of up to 3 nodes; fewer for longer ones (breadth)


@dataclass(frozen=True)
class Partial:
    """A program under construction: which tensors hold each value, in the order they came to be."""

    held: tuple[tuple[str, tuple[Tensor, ...]], ...]
    ops: tuple[Op, ...] = ()
    seconds: float = 0.0

    def tensors(self, value: str) -> tuple[Tensor, ...]:
        """All tensors that hold a value."""
        return self._by_value[value]

    @cached_property
    def _by_value(self) -> dict[str, tuple[Tensor, ...]]:
        return dict(self.held)

    def extended(self, ops: Iterable[Op], seconds: float, new: Iterable[tuple[str, Tensor]]) -> Partial:
        """With more operations and the tensors they made."""
        held = dict(self.held)
        for value, tensor in new:
            if tensor not in held.get(value, ()):
                held[value] = (*held.get(value, ()), tensor)
        return Partial(tuple(held.items()), (*self.ops, *ops), self.seconds + seconds)

    def joined(self, other: Partial) -> Partial:
        """With another program that shares nothing but the factors as written."""
        held = {**dict(self.held), **{v: tensors for v, tensors in other.held if len(tensors) > 1 or v[0] != "f"}}
        return Partial(tuple(held.items()), (*self.ops, *other.ops), self.seconds + other.seconds)


class Growth(NamedTuple):
    """A partial program and what it may be extended by: made only of those that are kept."""

    seconds: float  # of both
    partial: Partial
    ops: tuple[tuple[Op, ...], ...]
    more: float
    new: tuple[tuple[str, Tensor], ...]

    def made(self) -> Partial:
        """The partial program with the rest."""
        return self.partial.extended(itertools.chain(*self.ops), self.more, self.new)


def forwards(problem: ChainProblem, price: Price, *, bias: bool) -> list[tuple[Partial, Plan]]:
    """Forward programs, cheapest first, each with what every value is held by."""
    kept = [chain_forward(problem, chain, price) for chain in problem.chains]
    outputs = [chain.output for chain in problem.chains]
    found = []
    for combination in combinations(kept):
        pieces = [p.tensors(c.result)[-1] for p, c in zip(combination, problem.chains, strict=True)]
        ops, seconds = finish(price, "y", [p.ops for p in combination], pieces, outputs, bias=bias)
        held = tuple(itertools.chain.from_iterable(p.held for p in combination))
        total = sum(p.seconds for p in combination) + seconds
        found.append((Partial(held, ops, total), Plan(problem, price.tokens, ops, seconds=total)))
    found.sort(key=lambda pair: pair[0].seconds)
    return found[:BEAM]


def combinations(kept: Sequence[Sequence[Partial]]) -> Iterator[tuple[Partial, ...]]:
    most = {1: BEAM, 2: 10, 3: 5}.get(len(kept), 3 if len(kept) < 6 else 1)
    return itertools.product(*(partials[:most] for partials in kept))


def chain_forward(problem: ChainProblem, chain: Chain, price: Price) -> list[Partial]:
    """Programs of one term up to its piece, cheapest first with the cost of placing it.

    Factors contracted with one another are a program of their own, searched without the activation.
    """
    named = ((factor_name(i), axes) for i, axes in enumerate(problem.factors))
    factors = tuple((name, ((name, axes),)) for name, axes in named if name in chain.values)
    beam = [Partial((*factors, *start.held), start.ops, start.seconds) for start in _loads(chain, price)]
    merged = alone = [Partial(factors)]
    activation = chain.source
    for node in chain.nodes:
        if node.left != activation:
            grown = [p for m in merged for p in _node_forward(node, m, price, ())]
            merged = best_partials(grown, (node.result,), MERGES)
            continue
        if merged is not alone:
            beam = [p.joined(m) for m in _for_reader(merged, node, chain, price) for p in beam]
        hints = (chain.output,) if node is chain.nodes[-1] else ()
        grown = [p for b in beam for p in _node_forward(node, b, price, hints)]
        beam = best_partials(grown, (node.result,), breadth(chain))
        activation, merged = node.result, alone
    beam = beam if merged is alone else merged
    return sorted(beam, key=lambda p: p.seconds + price.move(p.tensors(chain.result)[-1][1], chain.output))


def _node_forward(node: Node, partial: Partial, price: Price, hints: Sequence[Layout]) -> Iterator[Growth]:
    one, two = partial.tensors(node.left)[-1], partial.tensors(node.right)[-1]
    for way in ways(price, node.result, one, two, node.axes, hints):
        new = ((node.left, way.left), (node.right, way.right), (node.result, (node.result, way.layout)))
        yield Growth(partial.seconds + way.seconds, partial, (way.ops,), way.seconds, new)


def _for_reader(merged: list[Partial], node: Node, chain: Chain, price: Price) -> list[Partial]:
    """The cheapest program of a merged factor, and the cheapest that end with its axes in the activation's order.

    The activation, far larger, then moves in long runs or not at all (butterfly, 1024 x 4096 tokens: 2 ms, not 7).
    """
    before = next((n.axes for n in chain.nodes if n.result == node.left), frozenset(chain.loaded))
    axes = frozenset(merged[0].tensors(node.right)[-1][1])
    order = tuple(dict.fromkeys((*chain.loaded, *chain.output, *sorted(axes))))
    batch = tuple(a for a in order if a in axes and a in before and a in node.axes)
    contracted = tuple(a for a in order if a in axes and a in before and a not in node.axes)
    cols = tuple(a for a in order if a in axes and a not in before)
    found = [merged[0]]
    for layout in (batch + contracted + cols, batch + cols + contracted):
        turned = []
        for partial in merged:
            copies, tensor = copied(partial.tensors(node.right)[-1], layout, f"{node.right}_t")
            turned.append(partial.extended(copies, sum(price(op) for op in copies), ((node.right, tensor),)))
        found.append(min(turned, key=lambda p: p.seconds))
    return found


def breadth(chain: Chain) -> int:
    steps = sum(n.left == chain.source or n.left.startswith("h") for n in chain.nodes)
    return BEAM if len(chain.nodes) <= 3 else 8 if steps <= 8 else 4


def best_partials(grown: list[Growth], newest: tuple[str, ...], most: int) -> list[Partial]:
    """The cheapest partial programs, at most four with the same layouts of the newest values."""
    grown.sort(key=lambda growth: growth.seconds)
    count: Counter[tuple[Layout, ...]] = Counter()
    kept: list[Partial] = []
    for growth in grown:
        if len(kept) == most:
            break
        key = tuple(layout for value, (_, layout) in growth.new if value in newest)
        count[key] += 1
        if count[key] <= 4:
            kept.append(growth.made())
    return kept


def _loads(chain: Chain, price: Price) -> list[Partial]:
    """x as the term reads it: as it is, or gathered in its own order or with the tokens last."""
    value = chain.source
    start = Partial(((value, ((X, chain.view),)),))
    if not chain.reads:
        return [start]
    starts = []
    for layout in (chain.view, chain.view[1:] + chain.view[:1]):
        copies, tensor = copied((X, chain.view), layout, f"{value}_t")
        ops: tuple[Op, ...] = copies
        for count, read in enumerate(chain.reads):
            ops = (*ops, GatherBlocks(f"{value}_{count}", tensor[0], tensor[1], (read.axis,), read.by, read.table))
            tensor = (ops[-1].result, ops[-1].layout)
        starts.append(Partial(((value, (tensor,)),), ops, sum(price(op) for op in ops)))
    return starts


# -- the sum of the pieces


def finish(
    price: Price, result: str, chains: Sequence[tuple[Op, ...]], pieces: Sequence[Tensor], outputs: Sequence[Layout],
    *, bias: bool,
) -> tuple[tuple[Op, ...], float]:  # fmt: skip
    """All operations up to the flat `result`, and the seconds that the end adds to those of the chains.

    A product is added onto an earlier piece that lies alike; the bias is folded into a first piece that is the result
    already; what is left is placed by permuting additions.
    """
    if price.rates.placed:
        placed = _into_blocks(price, result, chains, pieces, outputs, bias=bias)
        if placed is not None:
            return placed
    ops: list[Op] = []
    left: list[tuple[str, Layout, Layout]] = []
    extra = 0.0
    for chain, (name, layout), output in zip(chains, pieces, outputs, strict=True):
        ops += chain
        last = chain[-1] if chain else None
        target = _onto(left, layout, output, ops)
        if isinstance(last, Multiply) and last.result == name and not last.product.reduced and target is not None:
            added = replace(last, into=left[target][0])
            extra += price(added) - price(last)
            ops[-1], left[target] = added, (name, *left[target][1:])
        else:
            left.append((name, layout, output))
    name, layout, output = left[0]
    fold = next((i for i, op in enumerate(ops) if op.result == _root(ops, name)), None)
    if len(left) == 1 and layout == output and fold is not None:
        op = ops[fold]
        if not bias and not isinstance(op, GatherBlocks | Copy):
            return renamed(ops, name, result), extra
        if bias and isinstance(op, Multiply) and _takes_bias(op.product):
            ops[fold] = replace(op, bias=True)
            return renamed(ops, name, result), extra + price(ops[fold]) - price(op)
    if price.itemsize < 4 and not price.rates.placed:
        turned, left = _turned_first(left)
        ops, extra = [*ops, *turned], extra + sum(price(op) for op in turned)
    place = Assemble(result, tuple(left), bias, once=price.rates.placed)
    return (*ops, place), extra + price(place)


def _into_blocks(
    price: Price, result: str, chains: Sequence[tuple[Op, ...]], pieces: Sequence[Tensor], outputs: Sequence[Layout],
    *, bias: bool,
) -> tuple[tuple[Op, ...], float] | None:  # fmt: skip
    """The last products of terms written where their blocks lie in the flat result, each added onto the one before.

    Terms that end otherwise, or whose blocks lie with the cols outside, are added in passes of their own. None where
    all of them do.
    """
    ends = [
        (chain, name, layout, output, _placeable(chain, name, output))
        for chain, (name, layout), output in zip(chains, pieces, outputs, strict=True)
    ]
    ends.sort(key=lambda end: end[-1] is None)  # stable
    ops: list[Op] = []
    left: list[tuple[str, Layout, Layout]] = []
    extra, into = 0.0, ""
    for number, (chain, name, layout, output, last) in enumerate(ends):
        if last is None:
            ops, left = [*ops, *chain], [*left, (name, layout, output)]
            continue
        target = result if number == len(ends) - 1 else f"{result}_{number}"
        op = replace(
            last, result=target, into=into, bias=bias and not number, apart=False, placed=bool(last.product.batch)
        )
        ops += [op if other is last else other for other in chain]
        extra, into = extra + price(op) - price(last), target
    if not into:
        return None
    if left:
        ops.append(Assemble(result, tuple(left), into=into))
        extra += price(ops[-1])
    return tuple(ops), extra


def _placeable(chain: Sequence[Op], name: str, output: Layout) -> Multiply | None:
    """The product that ends a term, if its matrix or its blocks lie in the flat result with the cols inside."""
    last = next((op for op in chain if op.result == name), None)
    if not isinstance(last, Multiply) or last.into or any(name in reads(op) for op in chain):
        return None
    p = last.product
    lies = p.rows == (TOKENS,) and output == (*p.rows, *p.batch, *p.cols)
    return last if lies and p.cols and not p.reduced else None


def _turned_first(left: Sequence[tuple[str, Layout, Layout]]) -> tuple[list[Op], list[tuple[str, Layout, Layout]]]:
    """Pieces whose innermost axis changes are copied before they are added.

    torch adds 16-bit numbers in another order one by one, and copies them as it copies 32-bit ones: two blocks of DYAD
    at width 1024, 128 tokens, bfloat16, took twice dense's time.
    """
    ops: list[Op] = []
    pieces = []
    for name, view, target in left:
        if view != target and view[-1] != target[-1]:
            ops.append(Copy(f"{name}_t", name, view, target))
            name, view = f"{name}_t", target
        pieces.append((name, view, target))
    return ops, pieces


def _onto(left: list[tuple[str, Layout, Layout]], layout: Layout, output: Layout, ops: Sequence[Op]) -> int | None:
    """The earlier piece that a product may be added to: a fresh tensor of the same order, or both in final order."""
    fresh = {op.result for op in ops if not isinstance(op, GatherBlocks | Copy)}
    for number, (name, view, target) in enumerate(left):
        alike = view == layout and target == output
        if name in fresh and (alike or (view == target and layout == output)):
            return number
    return None


def _root(ops: Sequence[Op], name: str) -> str:
    """The first tensor of a chain of products that are each added to the one before."""
    into = {op.result: op.into for op in ops if isinstance(op, Multiply) and op.into}
    while name in into:
        name = into[name]
    return name


def _takes_bias(product: Product) -> bool:
    """Whether a bias (features,) broadcasts over the product's result: the tokens are a group of their own, or one."""
    first = product.batch or product.rows
    return not product.reduced and (first == (TOKENS,) or TOKENS not in product.result)
