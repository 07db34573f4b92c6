"""One contraction of two tensors: every copy, product and orientation worth trying, priced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


Reading = tuple[Layout, Layout, Product]  # the orders that both operands are copied to, and a product that reads them


class Choice(NamedTuple):
    """A way as far as it can be told without names: priced, not yet written out."""

    seconds: float
    layout: Layout  # of the result
    reading: Reading | None  # by a product; None: elementwise


def ways(
    price: Price, result: str, left: Tensor, right: Tensor, out: frozenset[str], hints: Sequence[Layout] = ()
) -> list[Way]:  # fmt: skip
    """The cheapest way for each layout of the result (and each copy of the left operand), cheapest first."""
    asked = result, left, right, out, tuple(hints)
    known = price.known
    if asked not in known:  # the partial programs of a beam differ elsewhere: nine in ten ask what another has asked
        found = choices(price, left[1], right[1], out, tuple(hints))
        known[asked] = [made(price, result, left, right, out, choice) for choice in found]
    return known[asked]  # type: ignore[no-any-return]


def choices(
    price: Price, left: Layout, right: Layout, out: frozenset[str], hints: tuple[Layout, ...]
) -> Sequence[Choice]:
    """What `made` can write out as `ways`."""
    asked = left, right, out, hints
    if asked not in price.known:
        price.known[asked] = _cheapest(price, left, right, out, hints)
    return price.known[asked]  # type: ignore[no-any-return]


def made(price: Price, result: str, left: Tensor, right: Tensor, out: frozenset[str], choice: Choice) -> Way:
    """A choice between two layouts, for tensors that lie so."""
    if choice.reading is not None:
        return _product(price, result, left, right, choice.seconds, choice.reading)
    op = _elementwise(result, left, right, out, choice.layout)
    return Way((op,), choice.layout, choice.seconds, left, right)


def _cheapest(
    price: Price, left: Layout, right: Layout, out: frozenset[str], hints: tuple[Layout, ...]
) -> list[Choice]:
    best: dict[tuple[Layout, Layout], Choice] = {}
    for one, two, readable in _readings(left, right, out):
        copies = _copied(price, left, one) + _copied(price, right, two)
        for product in readable:
            key = product.result, one
            known = best.get(key)
            if known is not None and known.seconds <= copies:
                continue
            views = (two, one) if product.swapped else (one, two)
            seconds = copies + price.multiply(product, *views)
            if known is None or seconds < known.seconds:
                best[key] = Choice(seconds, product.result, (one, two, product))
    for choice in _pointwise(price, left, right, out, hints):
        key = choice.layout, left
        if key not in best or choice.seconds < best[key].seconds:
            best[key] = choice
    return sorted(best.values(), key=lambda choice: choice.seconds)


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
    price: Price, left: Layout, right: Layout, out: frozenset[str], hints: Sequence[Layout]
) -> Iterator[Choice]:
    _, rows, contracted, cols = groups(left, right, out)
    narrow = price.extent(contracted) <= NARROW and min(price.extent(rows), price.extent(cols)) <= NARROW
    if contracted and not narrow and price.extent(rows) * price.extent(cols) > 1:
        return
    wanted = [hint for hint in hints if frozenset(hint) == out]
    for layout in dict.fromkeys((_natural(left, cols, contracted), _natural(right, rows, contracted), *wanted)):
        yield Choice(price(_elementwise("", ("", left), ("", right), out, layout)), layout, None)


def _elementwise(result: str, left: Tensor, right: Tensor, out: frozenset[str], layout: Layout) -> Pointwise:
    contracted = groups(left[1], right[1], out)[2]
    return Pointwise(result, left[0], right[0], left[1], right[1], contracted, layout)


def _natural(layout: Layout, new: Layout, contracted: Layout) -> Layout:
    """`layout` with the new axes in the place of the contracted ones, else at the end; tokens in front stay there."""
    at = next((i for i, a in enumerate(layout) if a in contracted), len(layout))
    kept = tuple(a for a in layout[:at] if a not in contracted), tuple(a for a in layout[at:] if a not in contracted)
    joined = kept[0] + new + kept[1]
    return _tokens_first(joined) if TOKENS in new else joined
