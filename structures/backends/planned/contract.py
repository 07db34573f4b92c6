"""One contraction of two tensors: every copy, product and orientation worth trying, priced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from structures.backends.planned.layout import TOKENS, Layout, Product, groups, products
from structures.backends.planned.price import Price
from structures.backends.planned.program import NARROW, Copy, Multiply, Op, Pointwise

WIDE = 1024  # sides of a matrix from which on a few are multiplied one by one

Tensor = tuple[str, Layout]  # a name in the program and how it lies


@dataclass(frozen=True)
class Way:
    """One way to contract two operands: the operations, the result, and the operands as the product read them."""

    ops: tuple[Op, ...]
    layout: Layout
    seconds: float
    left: Tensor
    right: Tensor


def ways(
    price: Price, result: str, left: Tensor, right: Tensor, out: frozenset[str], hints: Sequence[Layout] = ()
) -> list[Way]:  # fmt: skip
    """The cheapest way for each layout of the result (and each copy of the left operand), cheapest first."""
    asked = result, left, right, out, tuple(hints)
    known = price.known
    if asked not in known:  # the partial programs of a beam differ elsewhere: nine in ten ask what another has asked
        known[asked] = _cheapest(price, result, left, right, out, hints)
    return known[asked]  # type: ignore[no-any-return]


def _cheapest(
    price: Price, result: str, left: Tensor, right: Tensor, out: frozenset[str], hints: Sequence[Layout]
) -> list[Way]:
    best: dict[tuple[Layout, Layout], tuple[float, Reading]] = {}
    for one, two, readable in _readings(left[1], right[1], out):
        copies = _copied(price, left[1], one) + _copied(price, right[1], two)
        for product in readable:
            views = (two, one) if product.swapped else (one, two)
            seconds = copies + price.multiply(product, *views)
            key = product.result, one
            if key not in best or seconds < best[key][0]:
                best[key] = seconds, (one, two, product)
    found = {key: _product(price, result, left, right, *cheapest) for key, cheapest in best.items()}
    for way in _pointwise(price, result, left, right, out, hints):
        key = way.layout, way.left[1]
        if key not in found or way.seconds < found[key].seconds:
            found[key] = way
    return sorted(found.values(), key=lambda way: way.seconds)


Reading = tuple[Layout, Layout, Product]  # the orders that both operands are copied to, and a product that reads them


@lru_cache(maxsize=65536)  # neither names nor tokens matter
def _readings(
    left: Layout, right: Layout, out: frozenset[str]
) -> tuple[tuple[Layout, Layout, tuple[Product, ...]], ...]:
    found = []
    for layout in (left, *_targets(left, right, out)):
        readable = products(layout, right, out)
        found.append((layout, right, readable))
        if not readable or layout == left:
            # the other operand moves where nothing can be read, or where that spares a copy of this one
            found += [(layout, other, products(layout, other, out)) for other in _targets(right, layout, out)]
    return tuple(found)


def _copied(price: Price, source: Layout, target: Layout) -> float:
    return 0.0 if source == target else price.copy(source, target)


def copied(tensor: Tensor, layout: Layout, name: str) -> tuple[tuple[Op, ...], Tensor]:
    if layout == tensor[1]:
        return (), tensor
    return (Copy(name, tensor[0], tensor[1], layout),), (name, layout)


def _product(price: Price, result: str, left: Tensor, right: Tensor, seconds: float, reading: Reading) -> Way:
    before, left = copied(left, reading[0], f"{result}_l")
    more, right = copied(right, reading[1], f"{result}_r")
    product = reading[2]
    one, two = (right, left) if product.swapped else (left, right)
    op = Multiply(result, one[0], two[0], one[1], two[1], product, apart=_apart(price, two[1], product))
    return Way((*before, *more, op), op.layout, seconds, left, right)


def _apart(price: Price, right: Layout, product: Product) -> bool:
    """Whether a batched product runs faster matrix by matrix: few wide ones whose rows lie in order.

    A batch gives each thread whole matrices, and each packs its columns from rows that lie pages apart. DYAD-IT of four
    blocks, 128 tokens, two threads, times dense: 4096 wide 1.6 and apart 1.8, 8192 wide 1.6 and 2.0; block-diagonal of
    four, 8192 wide: 16 tokens 4.3 and 5.2, one token 4.3 and 3.7. 16 bits untried.
    """
    if not product.batch or product.expand or product.reduced or price.itemsize < 4:
        return False
    rows, contracted, cols = (price.extent(g) for g in (product.rows, product.contracted, product.cols))
    lies = right[len(right) - len(product.cols) :] == product.cols
    return lies and min(contracted, cols) >= WIDE and rows >= 16


def _targets(layout: Layout, other: Layout, out: frozenset[str]) -> tuple[Layout, ...]:
    """Orders worth copying an operand to: its three groups in the orders that BLAS reads, inner orders of `other`."""
    batch, _, contracted, _ = groups(other, layout, out)
    rows = tuple(a for a in layout if a not in other)
    found: dict[Layout, None] = {}
    for inner in dict.fromkeys((rows, _tokens_last(rows), _tokens_first(rows))):
        found[batch + inner + contracted] = None
        found[batch + contracted + inner] = None
        if batch:
            found[inner + batch + contracted] = None
            if contracted:
                found[contracted + batch + inner] = None
    found.pop(layout, None)
    return tuple(found)


def _tokens_last(axes: Layout) -> Layout:
    return (*(a for a in axes if a != TOKENS), TOKENS) if TOKENS in axes else axes


def _tokens_first(axes: Layout) -> Layout:
    return (TOKENS, *(a for a in axes if a != TOKENS)) if TOKENS in axes else axes


def _pointwise(
    price: Price, result: str, left: Tensor, right: Tensor, out: frozenset[str], hints: Sequence[Layout]
) -> Iterator[Way]:
    _, rows, contracted, cols = groups(left[1], right[1], out)
    narrow = price.extent(contracted) <= NARROW and min(price.extent(rows), price.extent(cols)) <= NARROW
    if contracted and not narrow and price.extent(rows) * price.extent(cols) > 1:
        return
    wanted = [hint for hint in hints if frozenset(hint) == out]
    for layout in dict.fromkeys((_natural(left[1], cols, contracted), _natural(right[1], rows, contracted), *wanted)):
        op = Pointwise(result, left[0], right[0], left[1], right[1], contracted, layout)
        yield Way((op,), layout, price(op), left, right)


def _natural(layout: Layout, new: Layout, contracted: Layout) -> Layout:
    """`layout` with the new axes in the place of the contracted ones, else at the end; tokens in front stay there."""
    at = next((i for i, a in enumerate(layout) if a in contracted), len(layout))
    kept = tuple(a for a in layout[:at] if a not in contracted), tuple(a for a in layout[at:] if a not in contracted)
    joined = kept[0] + new + kept[1]
    return _tokens_first(joined) if TOKENS in new else joined
