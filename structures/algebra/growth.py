"""How fast the sizes of an entry grow with the width: each axis as a power of it, read off the size expressions.

in_features and out_features grow together, as the power 1 of one width; options that were given stay as they are, and
an option at its default follows the expression of the default.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from structures.algebra.map import Map
from structures.algebra.steps import Axes
from structures.language.entry import PAD
from structures.language.expressions import WIDTHS, ExpressionError, Value, evaluate, parse

Power = float | tuple[float, ...]


class Unknown(Exception):
    """A size that is no power of the width."""


def axis_powers(structure: Map) -> dict[str, float] | None:
    """The power of the width that each axis's size is, up to a constant; None where a size is no such power.

    No power: the number of axes grows with the width (a butterfly's), or a remainder or a difference of two growing
    sizes is taken.
    """
    if structure.constants:
        return None  # a Hadamard matrix has as many axes as the width has digits
    try:
        names = _sized(structure)
    except (Unknown, ExpressionError):
        return None
    found = {axis: _named(structure, axis, names) for axis in structure.size}
    for term in structure.terms:
        for view in (term.input, term.output):
            _infer(found, view, 1.0)
    joints = [(x.output, y.input) for term in structure.terms for x, y in itertools.pairwise(term.chain)]
    for _ in joints:  # a width that is found may give the next one
        for before, after in joints:
            for known, other in ((before, after), (after, before)):
                if all(found[axis] is not None for axis in known):
                    _infer(found, other, sum(found[axis] or 0.0 for axis in known))
    return {axis: power or 0.0 for axis, power in found.items()}


def _infer(found: dict[str, float | None], view: Axes, width: float) -> None:
    """The one axis of a view whose power is not known gets what the others leave of the view's width."""
    missing = [axis for axis in view if found[axis] is None]
    if len(missing) == 1:
        found[missing[0]] = max(0.0, width - sum(found[axis] or 0.0 for axis in view))


def free_options(structure: Map) -> frozenset[str]:
    """Options that stand at a default which is an expression of the widths: they follow it as the width grows."""
    names: dict[str, Value] = dict(zip(WIDTHS, (structure.in_features, structure.out_features), strict=True))
    values, free = dict(structure.options), set()
    for name, default in structure.spec.options:
        if isinstance(default, str) and evaluate(default, names) == values[name]:
            free.add(name)
        names[name] = values[name]  # type: ignore[assignment]
    return frozenset(free)


def _sized(structure: Map) -> dict[str, Power]:
    """The power of every name that sizes are written in, and of every sized name."""
    values: dict[str, Value] = dict(zip(WIDTHS, (structure.in_features, structure.out_features), strict=True))
    powers: dict[str, Power] = dict.fromkeys(WIDTHS, 1.0)
    free = free_options(structure)
    defaults = dict(structure.spec.options)
    for name, value in structure.options:
        if name == PAD:
            continue
        reader = _PowerReader(values, powers)
        powers[name] = reader.power(str(defaults[name])) if name in free else _constant(value)
        values[name] = value  # type: ignore[assignment]
    for key, text in structure.spec.sizes:
        value, power = evaluate(text, values), _PowerReader(values, powers).power(text)
        targets = key.split()
        if len(targets) == 1:
            values[key], powers[key] = value, power
            continue
        assert isinstance(value, tuple) and isinstance(power, tuple)  # bind() has checked it
        values |= dict(zip(targets, value, strict=True))
        powers |= dict(zip(targets, power, strict=True))
    return powers


def _named(structure: Map, axis: str, names: Mapping[str, Power]) -> float | None:
    """The power of an axis of the written-out einsum; None where its size is found by division."""
    sized = structure.spec.axis_sizes
    if axis in sized and isinstance(names[axis], float):
        return float(names[axis])  # type: ignore[arg-type]
    match = re.fullmatch(r"(\w*?[a-zA-Z_])(\d+)", axis)
    if match is None or match[1] not in sized:
        return None
    power = names[match[1]]
    if isinstance(power, tuple):
        return power[int(match[2])]
    return 0.0 if structure.size[axis] == 1 else power  # the end of a bond has size 1


def _constant(value: object) -> Power:
    return (0.0,) * len(value) if isinstance(value, tuple) else 0.0


@dataclass(frozen=True)
class _PowerReader:
    """Reads the power of an expression; `values` are needed where a power or a list of weights depends on options."""

    values: Mapping[str, Value]
    powers: Mapping[str, Power]

    def power(self, text: str) -> Power:
        return self.visit(parse(text))

    def visit(self, node: ast.expr) -> Power:
        match node:
            case ast.Constant():
                return 0.0
            case ast.Name():
                return self.powers[node.id]
            case ast.UnaryOp():
                return self.visit(node.operand)
            case ast.BinOp():
                return self.binary(node)
            case ast.List(elts=elements):
                return tuple(self.number(element) for element in elements)
            case ast.Subscript():
                return self.subscript(node)
            case ast.Call(func=ast.Name(id=name)):
                return self.call(name, node.args)
        raise Unknown

    def binary(self, node: ast.BinOp) -> Power:
        left = self.visit(node.left)
        if isinstance(left, tuple):
            more = self.visit(node.right)
            return left + more if isinstance(more, tuple) else left * self.position(node.right)
        right = self.number(node.right)
        if left == right == 0:
            return 0.0
        match node.op:
            case ast.Add():
                return max(left, right)
            case ast.Sub() if left > right:
                return left
            case ast.Mult():
                return left + right
            case ast.Div() | ast.FloorDiv() if left >= right:
                return left - right
            case ast.Pow() if right == 0:
                exponent = self.value(node.right)
                assert not isinstance(exponent, tuple)  # evaluate() has refused a list here
                return left * exponent
        raise Unknown

    def subscript(self, node: ast.Subscript) -> Power:
        power = self.visit(node.value)
        assert isinstance(power, tuple)
        if isinstance(node.slice, ast.Slice):
            low, high = (None if end is None else self.position(end) for end in (node.slice.lower, node.slice.upper))
            return power[low:high]
        return power[self.position(node.slice)]

    def call(self, name: str, arguments: Sequence[ast.expr]) -> Power:
        powers = [self.visit(argument) for argument in arguments]
        flat = [p for power in powers for p in (power if isinstance(power, tuple) else (power,))]
        if name in ("min", "max"):
            return min(flat) if name == "min" else max(flat)
        if name == "round":
            return powers[0]
        if any(flat[1:]) or (name == "digits" and flat[0]):
            raise Unknown  # the number of parts grows
        if name == "digits":
            return 0.0
        parts = self.value(arguments[1])
        if isinstance(parts, tuple):
            return tuple(flat[0] * weight / sum(parts) for weight in parts)
        return (flat[0] / parts,) * int(parts)

    def number(self, node: ast.expr) -> float:
        power = self.visit(node)
        assert not isinstance(power, tuple)  # evaluate() has refused a list here
        return power

    def position(self, node: ast.expr) -> int:
        position = self.value(node)
        assert isinstance(position, int)  # evaluate() has refused all else here
        return position

    def value(self, node: ast.expr) -> Value:
        return evaluate(ast.unparse(node), self.values)
