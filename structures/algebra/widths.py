"""What an entry costs at many pairs of widths at once: a lower bound of its multiply-adds, by arrays.

Expressions are worked out once for each value that they are made of, so that a size that follows from one width alone
costs no more than its widths. What is left out can only make a binding cheaper than it is: the constants that the
activation passes through, the index of a gather, the number of steps of a chain too long to be ordered.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import marshal
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structures.algebra.map import MAX_SIZE
from structures.algebra.parting import PASSED, SQUARE
from structures.algebra.steps import least_cost
from structures.language.checks import label
from structures.language.entry import Entry
from structures.language.expressions import WIDTHS, ExpressionError, Value, evaluate, names_in, parse
from structures.language.notation import Expanded, NotationError, Pattern, expand

CHUNK = 2**17  # pairs whose steps are counted at a time
EXACT = 2**53  # integers up to here are exact as floats

Array = NDArray[np.float64]  # of sizes or costs; not a number where they are not defined
Axis = tuple[str, int | None]

_ARITHMETIC: dict[object, Callable[..., NDArray[np.int64]]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply,
    ast.Div: np.floor_divide, ast.FloorDiv: np.floor_divide, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


class _Memo:
    """Results by the values of a table and by what else decides them, the last used of them up to a number of values.

    1 and 1.0 are equal and hash alike, and only one of them is a size: the key is of the bytes of both.
    """

    MOST = 2**20  # values of all tables that are kept: about 100 MB

    def __init__(self) -> None:
        self.kept: OrderedDict[object, tuple[int, Any]] = OrderedDict()
        self.size = 0
        self.lock = threading.Lock()

    def __call__(self, table: tuple[Any, ...], function: Callable[..., Any], *rest: object) -> Any:
        """function(table, *rest)."""
        key = hashlib.blake2b(marshal.dumps(table, 2), digest_size=16).digest(), function, rest
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key][1]
        found = function(table, *rest)
        with self.lock:
            self.size += len(table) - self.kept.pop(key, (0, None))[0]
            self.kept[key] = len(table), found
            while self.size > self.MOST:
                self.size -= self.kept.popitem(last=False)[1][0]
        return found


_remembered = _Memo()


@dataclass(frozen=True)
class Values:
    """A value at each of some pairs of widths: `table[codes]`; the code -1 where it is not defined."""

    codes: NDArray[np.int64]  # (in widths or 1, out widths or 1)
    table: tuple[Value, ...]


class Extents:
    """The sizes that a name has at each of some pairs of widths."""

    def __init__(self, codes: NDArray[np.int64], numbers: Array):
        self.codes, self.numbers = codes, numbers

    @staticmethod
    def of(values: Values) -> Extents:
        """Of values that are sizes, or lists of them: in columns the length of the list, -1 for none; its elements."""
        return Extents(values.codes, _remembered(values.table, _numbers))

    @property
    def lengths(self) -> Array:
        return self.numbers[:, 0][self.codes]

    def at(self, position: int) -> Array:
        """The element of a list, or at 0 the size itself."""
        return self.numbers[:, 1 + position][self.codes]

    def rows(self, chosen: slice) -> Extents:
        """At some of the in widths."""
        return self if len(self.codes) == 1 else Extents(self.codes[chosen], self.numbers)


def _numbers(table: tuple[Value, ...]) -> Array:
    longest = max([1, *(len(value) for value in table if isinstance(value, tuple))])
    numbers = np.full((len(table) + 1, 1 + longest), np.nan)
    for row, value in zip(numbers, table, strict=False):
        several = value if isinstance(value, tuple) else (value,)
        row[0], row[1 : 1 + len(several)] = len(several) if several is value else -1, several
    return numbers


def least_flops(spec: Entry, given: Mapping[str, object], ins: Sequence[int], outs: Sequence[int]) -> Array:
    """(in widths, out widths): multiply-adds of a token at least, without a router's; inf where it cannot be bound."""
    pairs, free = _of_widths(spec, tuple(ins), tuple(outs))
    pairs = pairs.copy()
    for name, default in spec.options:
        value = given.get(name, default)
        pairs.add(name, pairs.read(value) if isinstance(value, str) else _constant(value))  # type: ignore[arg-type]
    for key, text in spec.sizes:
        if key not in free:
            pairs.add_sizes(key, text)
    gate = dict(spec.gate)
    if gate:  # what a token costs: the experts that it chooses
        pairs.add(gate["axis"], _at_most(pairs.read(gate["experts_active"]), pairs.names[gate["axis"]]))
    found = np.full((len(ins), len(outs)), np.inf)
    for part in pairs.chunks():
        part.count(found)
    return found


@functools.lru_cache(maxsize=4)
def _of_widths(spec: Entry, ins: tuple[int, ...], outs: tuple[int, ...]) -> tuple[_Pairs, frozenset[str]]:
    """The pairs with the sizes that no option changes, which many calls in turn have in common; and their keys."""
    pairs, free = _Pairs(spec, ins, outs), set()
    for key, text in spec.sizes:
        if all(name in pairs.names for name in names_in(text)):
            pairs.add_sizes(key, text)
            free.add(key)
    return pairs, frozenset(free)


def _constant(value: Value) -> Values:
    return Values(np.zeros((1, 1), dtype=np.int64), (value,))


def _parts(table: tuple[Value, ...], position: int, count: int) -> tuple[Value | None, ...]:
    """The sizes that one of several names of a list gets, or the only one: whole numbers from 0, or lists of them."""

    def part(value: Value) -> Value | None:
        if count > 1:
            if not isinstance(value, tuple) or len(value) != count:
                return None
            value = value[position]
        whole = value if isinstance(value, tuple) else (value,)
        return value if all(isinstance(n, int) and n >= 0 for n in whole) else None

    return tuple(map(part, table))


def _mapped(codes: NDArray[np.int64], made: tuple[Value | None, ...]) -> Values:
    """Of codes of a table, and what each of its values has become; None where it is not defined."""
    kept, code = _remembered(made, _kept)
    return Values(code[codes], kept)


def _kept(made: tuple[Value | None, ...]) -> tuple[tuple[Value, ...], NDArray[np.int64]]:
    kept = tuple(value for value in made if value is not None)
    numbers = np.cumsum([value is not None for value in made]) - 1
    return kept, np.array([*(n if v is not None else -1 for n, v in zip(numbers, made, strict=True)), -1])


def _read(node: ast.expr, names: Mapping[str, Values]) -> Values:
    if isinstance(node, ast.Constant):
        return _constant(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return names[node.id]
    text, children = _apart(node)
    parts = [_read(child, names) for child in children]
    key = type(node.op) if isinstance(node, ast.BinOp) else getattr(getattr(node, "func", None), "id", None)
    if key in _ARITHMETIC and len(parts) > 1 and all(isinstance(v, int) for part in parts for v in part.table):
        return _computed(key, parts)
    shape = np.broadcast_shapes(*(part.codes.shape for part in parts))
    row = np.zeros(shape, dtype=np.int64)
    for part in parts:
        row = np.where((row < 0) | (part.codes < 0), -1, row * len(part.table) + part.codes)
    kept, codes = np.unique(row, return_inverse=True)
    rows = []
    for number in kept[kept >= 0].tolist():
        values = []
        for part in reversed(parts):
            number, at = divmod(number, len(part.table))
            values.append(part.table[at])
        rows.append(tuple(reversed(values)))
    undefined = len(kept) - len(rows)  # one code of -1, if any
    return _mapped(codes.reshape(shape) - undefined, _remembered(tuple(rows), _evaluated, text))


def _evaluated(rows: tuple[tuple[Value, ...], ...], text: str) -> tuple[Value | None, ...]:
    """The value of an expression of `_0`, `_1`, ... for each row of values; None where it has none."""
    made: list[Value | None] = []
    for row in rows:
        try:
            made.append(evaluate(text, {f"_{k}": value for k, value in enumerate(row)}))
        except ExpressionError:
            made.append(None)
    return tuple(made)


def _apart(node: ast.expr) -> tuple[str, list[ast.expr]]:
    """An expression with names in place of what it is made of: `_0 / _1`; and these parts."""
    parts: list[ast.expr] = []

    def name(part: ast.expr) -> ast.expr:
        parts.append(part)
        return ast.Name(f"_{len(parts) - 1}", ast.Load())

    match node:
        case ast.BinOp(left=left, op=op, right=right):
            made: ast.expr = ast.BinOp(name(left), op, name(right))
        case ast.UnaryOp(op=sign, operand=operand):
            made = ast.UnaryOp(sign, name(operand))
        case ast.Call(func=func, args=args):
            made = ast.Call(func, [name(arg) for arg in args], [])
        case ast.List(elts=elements):
            made = ast.List([name(element) for element in elements], ast.Load())
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper)):
            ends = (None if end is None else name(end) for end in (lower, upper))
            made = ast.Subscript(name(value), ast.Slice(*ends), ast.Load())
        case ast.Subscript(value=value, slice=position):
            made = ast.Subscript(name(value), name(position), ast.Load())
    return ast.unparse(made), parts


def _computed(key: object, parts: Sequence[Values]) -> Values:
    """Integers by one operation, wherever they are defined and exact."""
    arrays = [np.array([*part.table, 0], dtype=np.int64)[part.codes] for part in parts]
    defined = functools.reduce(np.logical_and, (part.codes >= 0 for part in parts))
    if key in (ast.Div, ast.FloorDiv):
        defined = defined & (arrays[1] != 0)
        arrays[1] = np.where(arrays[1] == 0, 1, arrays[1])
        if key is ast.Div:
            defined = defined & (arrays[0] % arrays[1] == 0)
    elif key is ast.Mult:
        defined = defined & (np.abs(arrays[0].astype(float) * arrays[1]) <= EXACT)
    found = functools.reduce(_ARITHMETIC[key], arrays)
    table, codes = np.unique(found, return_inverse=True)
    return Values(np.where(defined, codes.reshape(found.shape), -1), tuple(table.tolist()))


def _at_most(values: Values, most: Values) -> Values:
    """Whole numbers from 1, where they are no larger than others."""
    numbers, bounds = (np.array([*map(_number, part.table), 0], dtype=float)[part.codes] for part in (values, most))
    fits = (numbers >= 1) & (numbers <= bounds) & (values.codes >= 0) & (most.codes >= 0)
    return Values(np.where(fits, values.codes, -1), values.table)


def _number(value: Value) -> float:
    return math.nan if isinstance(value, tuple) else float(value)


class _Pairs:
    """Pairs of widths, with what the names of an entry stand for there; where a name is undefined no pair is kept."""

    def __init__(self, spec: Entry, ins: Sequence[int], outs: Sequence[int]):
        self.spec = spec
        self.sizes: list[str] = []  # names that are sizes
        self.names = {
            WIDTHS[0]: Values(np.arange(len(ins))[:, None], tuple(ins)),
            WIDTHS[1]: Values(np.arange(len(outs))[None], tuple(outs)),
        }
        self.places = np.arange(len(ins)), np.arange(len(outs))

    def read(self, text: str) -> Values:
        return _read(parse(text), self.names)

    def copy(self) -> _Pairs:
        found = _Pairs(self.spec, (), ())
        found.sizes, found.names, found.places = self.sizes[:], dict(self.names), self.places
        return found

    def add_sizes(self, key: str, text: str) -> None:
        """Sizes by their expression; of several names each takes its element of a list."""
        whole, targets = self.read(text), key.split()
        for position, target in enumerate(targets):
            self.add(target, _mapped(whole.codes, _remembered(whole.table, _parts, position, len(targets))))
            self.sizes.append(target)

    def add(self, name: str, values: Values) -> None:
        self.names[name] = values
        for side in (0, 1):
            if not all(map(len, self.places)):
                return  # no pair is left
            defined = (values.codes >= 0).any(axis=1 - side)
            if not defined.all():
                self.keep(side, np.broadcast_to(defined, len(self.places[side])).nonzero()[0])

    def keep(self, side: int, kept: NDArray[np.int64]) -> None:
        self.places = (self.places[0][kept], self.places[1]) if side == 0 else (self.places[0], self.places[1][kept])
        for name, values in self.names.items():
            if values.codes.shape[side] > 1:
                self.names[name] = Values(values.codes.take(kept, axis=side), values.table)

    def chunks(self) -> Iterator[_Chunk]:
        """Some of the in widths at a time, with the sizes of all names."""
        extents = {name: Extents.of(self.names[name]) for name in self.sizes}
        ins, outs = self.places
        if not len(outs):
            return
        rows = max(1, CHUNK // len(outs))
        for first in range(0, len(ins), rows):
            chosen = slice(first, first + rows)
            sizes = {name: values.rows(chosen) for name, values in extents.items()}
            widths = (np.array(self.names[name].table, dtype=float) for name in WIDTHS)
            yield _Chunk(self.spec, sizes, (ins[chosen], outs), tuple(widths))


class _Chunk:
    """Pairs whose costs are counted together; `places` of their widths, in and out, of all."""

    def __init__(
        self, spec: Entry, sizes: Mapping[str, Extents], places: Sequence[NDArray[np.int64]], widths: Sequence[Array]
    ):
        self.spec, self.sizes, self.places = spec, sizes, places
        self.shape = len(places[0]), len(places[1])
        self.widths = widths[0][places[0]][:, None], widths[1][places[1]][None]
        self.indexed = {axis for axis, _ in spec.index}

    def count(self, found: Array) -> None:
        """Write into `found` what the pairs cost, those with lists of the same lengths together."""
        costs = np.full(self.shape, np.inf)
        lengths = {
            name: np.broadcast_to(sizes.lengths, self.shape)
            for name, sizes in self.sizes.items()
            if (sizes.numbers[:, 0] >= 0).any()
        }
        kind: NDArray[np.int64] = np.zeros(self.shape, dtype=np.int64)
        for several in lengths.values():  # numbers from 0 for the combinations so far
            whole = (
                kind * (int(np.nanmax(several, initial=0)) + 2) + np.nan_to_num(several, nan=-1).astype(np.int64) + 1
            )
            kind = np.unique(whole, return_inverse=True)[1].reshape(self.shape)
        for number in range(int(kind.max(initial=-1)) + 1):
            here = kind == number
            listed = {name: int(np.nan_to_num(several[here][0], nan=-1)) for name, several in lengths.items()}
            sizes = _Sizes(self, {name: n for name, n in listed.items() if n >= 0}, here)
            if sizes.chains:
                costs[sizes.fits] = self.costs(sizes)
        found[np.ix_(*self.places)] = costs

    def costs(self, sizes: _Sizes) -> Array:
        """Of the pairs that fit: those of all terms, of which a bond of size zero drops one; not all, or none binds."""
        total: Array = np.zeros(())
        some = np.zeros((), dtype=bool)
        for written, chain in zip(self.spec.chains, sizes.chains, strict=True):
            cost = functools.reduce(np.add, [self.of_link(*link, sizes) for link in zip(written, chain, strict=True)])
            alive = [sizes.of[axis] > 0 for link in chain for axis in link.axes]
            whole = functools.reduce(np.logical_and, alive, np.ones((), dtype=bool))
            total, some = total + np.where(whole, cost, 0.0), some | whole
        return np.where(some, total, np.inf)

    def of_link(self, written: Pattern, link: Expanded, sizes: _Sizes) -> Array:
        """Of the cheapest order; a constant that the activation passes through is another name of its axis."""
        renamed: dict[Axis, Axis] = {}
        held: dict[int, tuple[Axis, ...]] = {}
        for number, (axes, family) in enumerate(zip(link.factors, link.families, strict=True)):
            if written.factors[family].constant in PASSED:
                renamed[axes[1]] = renamed.get(axes[0], axes[0])
            else:
                held[number] = axes
        loaded, output, *own = (
            tuple(dict.fromkeys(label(*renamed.get(a, a)) for a in axes))
            for axes in ([a for a in link.input if a[0] not in self.indexed], link.output, *held.values())
        )
        size = {label(*axis): array for axis, array in sizes.of.items()}
        families = {number: link.families[number] for number in held}
        return least_cost(size, loaded, dict(zip(held, own, strict=True)), families, output)


class _Sizes:
    """The sizes of all axes at the pairs of widths where lists have these lengths, and where they fit."""

    def __init__(self, chunk: _Chunk, lengths: Mapping[str, int], here: NDArray[np.bool_]):
        self.of: dict[Axis, Array] = {}
        self.fits = here
        try:
            self.chains = [[expand(link, lengths) for link in chain] for chain in chunk.spec.chains]
        except NotationError:
            self.chains = []
        shared = {axis for chain in self.chains for link in chain for axis in link.shared}
        for axis in (a for chain in self.chains for link in chain for a in link.axes):
            name, position = axis
            if name not in chunk.sizes or axis in self.of:
                continue
            if name in lengths or position is None or axis in shared:
                place = position if name in lengths else None
                self.of[axis] = chunk.sizes[name].at(place or 0)
                self.require((self.of[axis] == 1) | (place is None) | (axis in shared))
            else:
                self.of[axis] = np.ones((1, 1))  # the end of a bond
            self.require(self.of[axis] <= MAX_SIZE)
        for chain in self.chains:
            for view, width in zip((chain[0].input, chain[-1].output), chunk.widths, strict=True):
                self.divide(view, width)
        joints = [(one.output, two.input) for chain in self.chains for one, two in itertools.pairwise(chain)]
        while joints:
            known = [views for views in joints if any(all(a in self.of for a in view) for view in views)]
            for views in known:
                one, other = sorted(views, key=lambda view: not all(a in self.of for a in view))
                self.divide(other, functools.reduce(np.multiply, [self.of[a] for a in one]))
            joints = [views for views in joints if views not in known]
        for written, chain in zip(chunk.spec.chains, self.chains, strict=bool(self.chains)):
            for pattern, link in zip(written, chain, strict=True):
                for axes, family in zip(link.factors, link.families, strict=True):
                    self.constant(pattern.factors[family].constant, [self.of[a] for a in axes])
        self.of = {axis: np.broadcast_to(array, here.shape)[self.fits] for axis, array in self.of.items()}

    def require(self, condition: NDArray[np.bool_] | bool) -> None:
        self.fits = self.fits & condition

    def divide(self, view: Sequence[Axis], width: Array) -> None:
        """A view is as wide as that, or one of its axes is found by division; a width of 0 drops the term."""
        missing = [axis for axis in view if axis not in self.of]
        product = functools.reduce(np.multiply, [self.of[axis] for axis in view if axis in self.of], np.ones((1, 1)))
        whole = np.maximum(product, 1)
        fits = (width % whole == 0) & (product > 0) if missing else width == product
        self.require((width == 0) | fits)
        self.of.update((axis, width // whole) for axis in missing)

    def constant(self, kind: str, sizes: Sequence[Array]) -> None:
        if kind in SQUARE:
            self.require(sizes[0] == sizes[1])
        if kind == "hadamard":
            self.require(np.frexp(sizes[0])[0] == 0.5)  # a power of two
