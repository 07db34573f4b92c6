"""The closed arithmetic of a registry entry: sizes, gather indices and initial scales.

Expressions are parsed with `ast` against a closed list and walked; nothing is ever compiled or run by Python.
Length, depth and every intermediate value are bounded, so that no expression can hang or exhaust memory.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, cast

from structures.language.words import close

Number = int | float
Value = Number | tuple[Number, ...]

WIDTHS = ("in_features", "out_features")  # the two names that every expression knows
MAX_LENGTH = 200  # characters of one expression
MAX_DEPTH = 20  # nesting of one expression
MAX_VALUE = 2**53  # integers stay exact as floats up to here
MAX_PARTS = 64  # of a list
MAX_SPLIT = 2**24  # largest number that is factored


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_name(text: str) -> bool:
    """Whether `text` is a name of an entry, axis or option: ASCII letters, digits and _, as all names in a registry.

    Python's parser brings identifiers to one Unicode form; an einsum's axes are compared as they are written. In ASCII
    the two cannot differ.
    """
    return _NAME.fullmatch(text) is not None


class ExpressionError(ValueError):
    """An expression that is not in the closed arithmetic, or whose value is not defined; `offset` counts characters."""

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


def parse(source: str) -> ast.expr:
    """The checked syntax tree of `source`.

    Raises:
        ExpressionError: empty, too long or too deep, or anything but numbers, names, `+ - * / // ** ^ %`,
            lists, subscripts with slices, and calls of `min max round split digits`.
    """
    return _parse(str(source))


def names_in(source: str) -> frozenset[str]:
    """The names that `source` reads, functions left out."""
    return _names_in(str(source))


@lru_cache(maxsize=4096)
def _names_in(source: str) -> frozenset[str]:
    tree = parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called)


def evaluate(source: str, names: Mapping[str, Value], *, real: bool = False) -> Value:
    """The value of `source` under `names`.

    Args:
        names: what each name stands for: an integer, a float, or a tuple of them.
        real: `/` divides real numbers; without it, `/` of integers must divide exactly.
    Raises:
        ExpressionError: an unknown name, an inexact division, a value beyond 2**53, a wrong argument.
    """
    try:
        return _Evaluator(names, real).visit(parse(source))
    except ExpressionError as error:
        raise ExpressionError(f"{str(source).strip()[:MAX_LENGTH]!r}: {error}", error.offset) from None


@lru_cache(maxsize=2**16)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of `n`, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return tuple(small + [n // d for d in reversed(small) if d * d != n])


@lru_cache(maxsize=2**16)
def split_evenly(n: int, parts: int) -> tuple[int, ...]:
    """`parts` factors of `n`, as even as can be (least sum), largest first: `split_evenly(768, 2) == (32, 24)`."""
    if parts == 1:
        return (n,)
    best: tuple[int, ...] = ()
    for d in divisors(n):
        if d**parts > n:
            break  # the smallest factor is at most the parts-th root
        rest = split_evenly(n // d, parts - 1)
        candidate = tuple(sorted((*rest, d), reverse=True))
        if not best or sum(candidate) < sum(best):
            best = candidate
    return best


@lru_cache(maxsize=4096)
def split_by_weights(n: int, weights: tuple[float, ...]) -> tuple[int, ...]:
    """Exact factors of `n` nearest to `n**weight`, in the order of `weights` (least squares of the logarithms).

    A weight of zero gives the factor 1. The weights sum to 1 within 0.015, the slack of two-digit exponents.
    """
    log_n = math.log(n) if n > 1 else 1.0
    last = max(i for i, w in enumerate(weights) if w > 0)

    @cache
    def best(rest: int, position: int) -> tuple[float, tuple[int, ...]]:
        if position == len(weights):
            return (0.0, ()) if rest == 1 else (math.inf, ())
        if weights[position] == 0:
            choices: Sequence[int] = (1,)
        else:
            choices = (rest,) if position == last else divisors(rest)
        found = (math.inf, (1,) * (len(weights) - position))
        for d in choices:
            cost, factors = best(rest // d, position + 1)
            cost += (math.log(d) / log_n - weights[position]) ** 2
            if cost < found[0] - 1e-12:
                found = (cost, (d, *factors))
        return found

    return best(n, 0)[1]


@lru_cache(maxsize=2**16)
def most_factors(n: int, least: int) -> int:
    """The largest number of factors, each at least `least`, whose product is `n`; 0 for n < least."""
    if n < least:
        return 0
    return max([1] + [1 + most_factors(n // d, least) for d in divisors(n) if least <= d and d * d <= n])


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitXor: operator.xor,
}
_FUNCTIONS = ("min", "max", "round", "split", "digits")
_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.USub, ast.Constant, ast.Name, ast.Load, ast.List,
    ast.Subscript, ast.Slice, ast.Call, *_OPERATORS,
)  # fmt: skip


@lru_cache(maxsize=4096)
def _parse(source: str) -> ast.expr:
    text = source.strip()
    if not text:
        raise ExpressionError("the expression is empty")
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    if not text.isascii():
        at = next(i for i, character in enumerate(text) if not character.isascii())
        raise ExpressionError(f"{text[at]!r} is no ASCII character; names are ASCII letters, digits and _", at)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "1if 2else 3": an error follows anyway
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is not an expression", (getattr(error, "offset", 1) or 1) - 1) from None
    _check(tree.body, 1)
    return tree.body


def _check(node: ast.AST, depth: int) -> None:
    offset = getattr(node, "col_offset", 0)
    if depth > MAX_DEPTH:
        raise ExpressionError(f"the expression is nested deeper than {MAX_DEPTH}", offset)
    if not isinstance(node, _ALLOWED):
        raise ExpressionError(
            f"{type(node).__name__} is not in the arithmetic; allowed are numbers, names, + - * / // ** ^ %, "
            f"lists, slices, and {', '.join(_FUNCTIONS)}",
            offset,
        )
    if isinstance(node, ast.Constant) and (isinstance(node.value, bool) or not isinstance(node.value, int | float)):
        raise ExpressionError(f"{node.value!r} is not a number", offset)
    if isinstance(node, ast.Constant) and not abs(cast(float, node.value)) <= MAX_VALUE:
        raise ExpressionError("a number is beyond 2**53", offset)
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            name = repr(node.func.id) if isinstance(node.func, ast.Name) else "an expression"
            raise ExpressionError(f"{name} is not a function here; there are {', '.join(_FUNCTIONS)}", offset)
        if node.keywords:
            raise ExpressionError(f"{node.func.id} takes no keywords", offset)
        for argument in node.args:
            _check(argument, depth + 1)
        return
    for child in ast.iter_child_nodes(node):
        _check(child, depth + 1)


class _Evaluator:
    """Walks a checked tree; every method returns a value or raises ExpressionError."""

    def __init__(self, names: Mapping[str, Value], real: bool):
        self.names = names
        self.real = real

    def visit(self, node: ast.AST) -> Value:
        return _VISITORS[type(node)](self, node)

    def constant(self, node: ast.Constant) -> Value:
        return node.value  # type: ignore[return-value]  # parse() has checked that it is a number

    def name(self, node: ast.Name) -> Value:
        if node.id not in self.names:
            raise ExpressionError(f"unknown name {node.id!r}{nearest(node.id, self.names)}", node.col_offset)
        return self.names[node.id]

    def negative(self, node: ast.UnaryOp) -> Value:
        return -self.number(node.operand)

    def binary(self, node: ast.BinOp) -> Value:
        left = self.visit(node.left)
        if isinstance(left, tuple):
            return self.joined(left, node)
        right = self.number(node.right)
        kind = type(node.op)
        integers = isinstance(left, int) and isinstance(right, int)
        if kind is ast.Pow and integers and right > 0 and abs(left) > 1 and right * math.log2(abs(left)) > 64:
            raise ExpressionError(f"{left} ** {right} is beyond 2**53", node.col_offset)
        if kind is ast.BitXor and not integers:
            raise ExpressionError("^ (exclusive or) takes integers", node.col_offset)
        try:
            if kind is ast.Div and integers and not self.real:
                if left % right:
                    raise ExpressionError(f"{left} / {right} is not a whole number", node.col_offset)
                value: Number = left // right
            else:
                value = _OPERATORS[kind](left, right)
        except ZeroDivisionError:
            raise ExpressionError(f"{left} is divided by zero", node.col_offset) from None
        except OverflowError:
            raise ExpressionError(f"{left} ** {right} is beyond 2**53", node.col_offset) from None
        if isinstance(value, complex) or not abs(value) <= MAX_VALUE:
            raise ExpressionError("a value is beyond 2**53 or not real", node.col_offset)
        return value

    def joined(self, first: tuple[Number, ...], node: ast.BinOp) -> Value:
        """A list and another one, or a list so many times, as Python writes both."""
        if isinstance(node.op, ast.Add) and isinstance(more := self.visit(node.right), tuple):
            found = first + more
        elif isinstance(node.op, ast.Mult) and 0 <= (times := self.integer(node.right)) <= MAX_PARTS:
            found = first * times
        else:
            raise ExpressionError(
                "a list stands where a number is needed; lists are joined and repeated, [a] + [b] * 2", node.col_offset
            )
        if len(found) > MAX_PARTS:
            raise ExpressionError(f"a list has at most {MAX_PARTS} numbers, found {len(found)}", node.col_offset)
        return found

    def listed(self, node: ast.List) -> Value:
        return tuple(self.number(element) for element in node.elts)

    def subscript(self, node: ast.Subscript) -> Value:
        value = self.visit(node.value)
        if not isinstance(value, tuple):
            raise ExpressionError("only a list can be indexed", node.col_offset)
        if isinstance(node.slice, ast.Slice):
            if node.slice.step is not None:
                raise ExpressionError("a slice has no step here", node.col_offset)
            ends = [None if end is None else self.integer(end) for end in (node.slice.lower, node.slice.upper)]
            return value[ends[0] : ends[1]]
        position = self.integer(node.slice)
        if not -len(value) <= position < len(value):
            raise ExpressionError(f"index {position} is outside a list of {len(value)}", node.col_offset)
        return value[position]

    def call(self, node: ast.Call) -> Value:
        assert isinstance(node.func, ast.Name)
        name, count = node.func.id, len(node.args)
        if name in ("min", "max"):
            values = [self.visit(a) for a in node.args]
            if count == 1 and isinstance(values[0], tuple):
                values = list(values[0])
            if not values or any(isinstance(v, tuple) for v in values):
                raise ExpressionError(f"{name} takes numbers or one list", node.col_offset)
            return min(values) if name == "min" else max(values)
        if name == "round":
            if count != 1:
                raise ExpressionError("round takes one number", node.col_offset)
            return round(self.number(node.args[0]))
        if count != 2:
            raise ExpressionError(f"{name} takes two arguments", node.col_offset)
        n = self.integer(node.args[0])
        if not 1 <= n <= MAX_SPLIT:
            raise ExpressionError(f"{name} takes a whole number from 1 to 2**24, found {n}", node.col_offset)
        if name == "digits":
            least = self.integer(node.args[1])
            if least < 2:
                raise ExpressionError(f"digits takes a radix of at least 2, found {least}", node.col_offset)
            return most_factors(n, least)
        return self.split(n, self.visit(node.args[1]), node.col_offset)

    def split(self, n: int, parts: Value, offset: int) -> Value:
        if isinstance(parts, tuple):
            if not parts or len(parts) > 16 or any(w < 0 for w in parts) or abs(sum(parts) - 1) > 0.015:
                raise ExpressionError(
                    f"the weights of split are not negative and sum to 1, found {list(parts)}", offset
                )
            return split_by_weights(n, tuple(float(w) for w in parts))
        if not isinstance(parts, int) or not 1 <= parts <= MAX_PARTS:
            raise ExpressionError(f"split takes 1 to {MAX_PARTS} parts, found {parts}", offset)
        return split_evenly(n, parts)

    def number(self, node: ast.expr) -> Number:
        value = self.visit(node)
        if isinstance(value, tuple):
            raise ExpressionError("a list stands where a number is needed", node.col_offset)
        return value

    def integer(self, node: ast.expr) -> int:
        value = self.number(node)
        if not isinstance(value, int):
            raise ExpressionError(f"{value} is not a whole number", node.col_offset)
        return value


_VISITORS: dict[type[ast.AST], Callable[[_Evaluator, Any], Value]] = {
    ast.Constant: _Evaluator.constant,
    ast.Name: _Evaluator.name,
    ast.UnaryOp: _Evaluator.negative,
    ast.BinOp: _Evaluator.binary,
    ast.List: _Evaluator.listed,
    ast.Subscript: _Evaluator.subscript,
    ast.Call: _Evaluator.call,
}


def is_number(value: object) -> bool:
    """An int or float of at most 2**53; a truth value is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_VALUE


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """`; did you mean 'monarch'?` for the closest of `known`, or the list of them when none is close."""
    meant = close(name, known)
    if meant:
        return f"; did you mean {' or '.join(map(repr, meant))}?"
    return f"; there are: {', '.join(sorted(known))}" if known else "; there are none"
