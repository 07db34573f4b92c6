"""The gradient of a gathered input as one product, in the place of a sum of blocks.

Where a gather reads every position of its axis equally often, the places that read a position can be listed: blocks of
the output's gradient and of the factor are gathered by that list, and one batched product contracts them, the list's
own axis included, into the input's gradient. The blocks of the input's gradient never exist one by one.
"""

from __future__ import annotations

from collections.abc import Iterator

from structures.backends.planned.contract import Tensor, Way, copied, ways
from structures.backends.planned.layout import TOKENS, Layout
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Chain, Node, Read
from structures.backends.planned.program import GatherBlocks, Op


def ways_back(price: Price, chain: Chain, node: Node, gradient: Tensor, factor: Tensor) -> Iterator[Way]:
    """Ways to the gradient of a term's gathered input; none where its positions are not read equally often.

    Args:
        node: the first that the input meets.
        gradient: of the node's result.
        factor: the other operand of the node.
    """
    read = chain.reads[0]
    if len(chain.reads) > 1 or read.readers is None or not _both_read(read, node, factor[1]):
        return
    wanted = frozenset(chain.view)
    by = tuple(a for a in read.by if a in node.axes)
    rest = tuple(a for a in gradient[1] if a not in by)
    first = (TOKENS,) if TOKENS in rest else ()
    orders = (by + rest, first + by + tuple(a for a in rest if a not in first))
    blocks = _gathered(factor, tuple(a for a in factor[1] if a in read.by), read, "f", chain.source)
    for order in dict.fromkeys((*(o for o in (gradient[1],) if _together(o, by)), *orders)):
        if order[-len(by) :] == by:
            continue  # numbers one by one
        moved, taken = _gathered((gradient[0], gradient[1]), by, read, "y", chain.source, order)
        ops = (*moved, *blocks[0])
        seconds = sum(price(op) for op in ops)
        for way in ways(price, f"d{chain.source}", taken, blocks[1], wanted):
            yield Way((*ops, *way.ops), way.layout, seconds + way.seconds, way.left, way.right)


def _both_read(read: Read, node: Node, factor: Layout) -> bool:
    """Whether result and factor both hold some of the axes that the gather reads by, and together all of them."""
    kept, own = node.axes.intersection(read.by), frozenset(factor).intersection(read.by)
    return bool(kept and own) and kept | own == frozenset(read.by)


def _together(layout: Layout, axes: Layout) -> bool:
    at = layout.index(axes[0])
    return layout[at : at + len(axes)] == axes


def _gathered(
    tensor: Tensor, by: Layout, read: Read, kind: str, source: str, order: Layout | None = None
) -> tuple[tuple[Op, ...], Tensor]:
    """A tensor whose axes `by` are replaced by (the axis read, the list of its readers)."""
    name, layout = f"d{source}_{kind}", tensor[1]
    if order is None:
        at = layout.index(by[0])
        others = tuple(a for a in layout if a not in by)
        order = others[:at] + by + others[at:]
    copies, here = copied(tensor, order, f"{name}c")
    op = GatherBlocks(name, here[0], order, by, (read.axis, read.again), read.places(by))
    return (*copies, op), (name, op.layout)
