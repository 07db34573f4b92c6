"""Backward programs for a forward one: the nodes read backwards, tokens contracted for the factors' gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from structures.backends.planned.contract import Choice, Tensor, Way, choices, copied, made
from structures.backends.planned.forward import Growth, Partial, best_partials, breadth, combinations, finish
from structures.backends.planned.layout import Layout, groups
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Chain, ChainProblem, Node, factor_name
from structures.backends.planned.program import Copy, Op, Scatter, Want, renamed
from structures.backends.planned.readback import ways_back

KEPT = 24  # backward programs for one forward


def backwards(problem: ChainProblem, forward: Partial, price: Price, want: Want) -> list[tuple[tuple[Op, ...], float]]:
    """Backward programs for a forward one, cheapest first: gradients `dx`, `df0`, `df1`, ... from `dy`."""
    kept = [_kept(chain, dict(forward.held), price, want) for chain in problem.chains]
    views = [chain.view for chain in problem.chains]
    found = []
    for combination in combinations(kept):
        ops, seconds = tuple(itertools.chain.from_iterable(p.ops for p in combination)), 0.0
        if want.x:
            pieces = [p.tensors(f"d{c.source}")[-1] for p, c in zip(combination, problem.chains, strict=True)]
            ops, seconds = finish(price, "dx", [p.ops for p in combination], pieces, views, bias=False)
        found.append((ops, sum(p.seconds for p in combination) + seconds))
    found.sort(key=lambda pair: pair[1])
    return found[:KEPT]


def _kept(chain: Chain, held: Mapping[str, tuple[Tensor, ...]], price: Price, want: Want) -> list[Partial]:
    asked = chain.source, want, tuple(held[value] for value in chain.values)
    if asked not in price.known:  # forward programs of several terms differ in one of them at a time
        price.known[asked] = _chain_backward(chain, held, price, want)
    return price.known[asked]  # type: ignore[no-any-return]


def _chain_backward(chain: Chain, held: Mapping[str, tuple[Tensor, ...]], price: Price, want: Want) -> list[Partial]:
    """Gradients of one term, last node first; the gradient of value `v` is value `dv`."""
    needed = _needed(chain, want)
    beam = [Partial(((f"d{chain.result}", (("dy", chain.output),)),))]
    for node in reversed(chain.nodes):
        if needed[node.result]:
            grown = [more for p in beam for more in _node_backward(node, held, p, price, needed)]
            if chain.reads and node.left == chain.source and want.x:
                grown += [more for p in beam for more in _read_back(chain, node, held, p, price, needed)]
            beam = best_partials(grown, (f"d{node.left}", f"d{node.right}"), breadth(chain) // 2)
    if want.x:
        beam = [_unload(chain, partial, price) for partial in beam]
        beam.sort(key=lambda p: p.seconds + price.move(p.tensors(f"d{chain.source}")[-1][1], chain.view))
    return beam


def _needed(chain: Chain, want: Want) -> dict[str, bool]:
    """Whether each value's gradient has to be computed."""
    needed = {chain.source: want.x, **{factor_name(i): w for i, w in enumerate(want.factors)}}
    for node in chain.nodes:
        needed[node.result] = needed[node.left] or needed[node.right]
    return needed


def _node_backward(
    node: Node, held: Mapping[str, tuple[Tensor, ...]], partial: Partial, price: Price, needed: Mapping[str, bool]
) -> Iterator[Growth]:
    """Both gradients of a node from every useful order of the output's gradient."""
    gradient = partial.tensors(f"d{node.result}")[-1]
    asked = node.result, gradient, held[node.left], held[node.right], needed[node.left], needed[node.right]
    if asked not in price.known:  # partial programs that differ elsewhere, and those of other forward programs
        price.known[asked] = list(_both(node, held, gradient, price, needed))
    for ops, more, new in price.known[asked]:
        yield Growth(partial.seconds + more, partial, ops, more, new)


def _both(
    node: Node, held: Mapping[str, tuple[Tensor, ...]], gradient: Tensor, price: Price, needed: Mapping[str, bool]
) -> Iterator[tuple[tuple[tuple[Op, ...], ...], float, tuple[tuple[str, Tensor], ...]]]:
    """What a partial program may be extended by, as in a `Growth`: operations, their seconds, the new tensors."""
    lefts, rights = held[node.left], held[node.right]
    batch, rows, _, cols = groups(lefts[0][1], rights[0][1], node.axes)
    orders = _orders(gradient[1], lefts[-1][1], rights[-1][1], batch, rows, cols)
    for layout in dict.fromkeys((gradient[1], *orders)):
        copies, g = copied(gradient, layout, f"d{node.result}_c")
        seconds = sum(price(op) for op in copies)
        ones = [None] if not needed[node.left] else _gradients(price, node.left, [(g, r) for r in rights], lefts)
        twos = [None] if not needed[node.right] else _gradients(price, node.right, [(h, g) for h in lefts], rights)
        for one, two in itertools.product(ones, twos):
            both = [(value, way) for value, way in ((node.left, one), (node.right, two)) if way is not None]
            more = seconds + sum(way.seconds for _, way in both)
            new = tuple((f"d{value}", (f"d{value}", way.layout)) for value, way in both)
            yield (copies, *(way.ops for _, way in both)), more, new


def _read_back(
    chain: Chain, node: Node, held: Mapping[str, tuple[Tensor, ...]], partial: Partial, price: Price,
    needed: Mapping[str, bool],
) -> Iterator[Growth]:  # fmt: skip
    """The gradient of a gathered input by one product, and the factor's as ever."""
    gradient = partial.tensors(f"d{node.result}")[-1]
    ways_ = list(ways_back(price, chain, node, gradient, held[node.right][0]))
    alone = [Growth(partial.seconds, partial, (), 0.0, ())]
    if ways_ and needed[node.right]:
        alone = list(_node_backward(node, held, partial, price, {**needed, node.left: False}))
    value = f"d{chain.source}"
    for one, way in itertools.product(alone, sorted(ways_, key=lambda way: way.seconds)[:4]):
        new = (value, (value, way.layout)), *one.new
        yield Growth(one.seconds + way.seconds, partial, (*one.ops, way.ops), one.more + way.seconds, new)


def _orders(gradient: Layout, left: Layout, right: Layout, *sets: Layout) -> Iterator[Layout]:
    """Orders of an output gradient that suit both of its products."""
    batch, rows, cols = (frozenset(s) for s in sets)
    b = tuple(a for a in right if a in batch)
    c = tuple(a for a in right if a in cols)
    for order in (gradient, left):
        r = tuple(a for a in order if a in rows)
        yield b + r + c
        yield b + c + r
        if b:
            yield r + b + c


def _gradients(
    price: Price, value: str, pairs: Sequence[tuple[Tensor, Tensor]], own: tuple[Tensor, ...]
) -> Sequence[Way | None]:
    """Ways to the gradient of one operand; a factor's ends in the layout that the factor is written in.

    Args:
        pairs: the two tensors to contract, for each copy of the other operand there is.
        own: the tensors that hold the operand itself.
    """
    asked = value, *pairs, own
    if asked not in price.known:  # as in `ways`
        price.known[asked] = _cheapest(price, value, pairs, own)
    return price.known[asked]  # type: ignore[no-any-return]


def _cheapest(
    price: Price, value: str, pairs: Sequence[tuple[Tensor, Tensor]], own: tuple[Tensor, ...]
) -> Sequence[Way | None]:
    written = own[0][1]
    hints = tuple(layout for _, layout in own)
    out = frozenset(written)
    turned = value.startswith("f")
    found = []
    for pair in pairs:
        for choice in choices(price, pair[0][1], pair[1][1], out, hints):
            seconds, layout = choice.seconds, choice.layout
            if turned and layout != written:
                seconds, layout = seconds + price.copy(layout, written), written
            found.append((seconds, layout, pair, choice))
    found.sort(key=lambda way: way[0])
    best: dict[Layout, tuple[tuple[Tensor, Tensor], Choice]] = {}
    for _, layout, pair, choice in found:
        best.setdefault(layout, (pair, choice))
    ways = (made(price, f"d{value}", *pair, out, choice) for pair, choice in itertools.islice(best.values(), 4))
    return [_as_written(price, way, f"d{value}", written) if turned else way for way in ways]


def _as_written(price: Price, way: Way, name: str, written: Layout) -> Way:
    if way.layout == written:
        return way
    made = renamed(way.ops, name, f"{name}_p")
    copy = Copy(name, f"{name}_p", way.layout, written)
    return replace(way, ops=(*made, copy), layout=written, seconds=way.seconds + price(copy))


def _unload(chain: Chain, partial: Partial, price: Price) -> Partial:
    """The gradient of the gathered input, summed back into the input's own view."""
    value = f"d{chain.source}"
    tensor = partial.tensors(value)[-1]
    if sorted(tensor[1]) == sorted(chain.view):
        return partial  # nothing was gathered, or the product itself has summed
    ops: tuple[Op, ...] = ()
    for count, read in reversed(tuple(enumerate(chain.reads))):
        at = min((tensor[1].index(a) for a in read.by), default=1)
        others = tuple(a for a in tensor[1] if a not in read.by)
        copies, tensor = copied(tensor, others[:at] + read.by + others[at:], f"{value}_{count}c")
        scatter = Scatter(f"{value}_{count}", tensor[0], tensor[1], read.axis, read.by, read.table)
        ops, tensor = (*ops, *copies, scatter), (scatter.result, scatter.layout)
    return partial.extended(ops, sum(price(op) for op in ops), ((value, tensor),)) if ops else partial
