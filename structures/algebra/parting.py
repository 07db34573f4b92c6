"""Constant factors at binding: checked, numbered, and run as what they are.

A Hadamard matrix is a link of its own, log2(n) steps with matrices of 2 x 2; a permutation is a gather, which costs no
FLOPs. So a link is parted where one of them stands: what is written before it is contracted before it. A constant that
is a mere operand (a sign, a normal or a cosine matrix, or one whose axes other factors hold too) is contracted as any
factor is.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from structures.algebra.constants import MAX_DENSE, Constant, order
from structures.algebra.map import Gather, Term
from structures.algebra.steps import Axes, order_steps
from structures.language.entry import Entry
from structures.language.errors import SizeError
from structures.language.expressions import Value
from structures.language.notation import CONSTANTS, Operand

SQUARE = ("hadamard", "dct", "permutation")  # both sides are equally large
PASSED = ("hadamard", "permutation")  # run as what they are where the activation passes through them
MAX_PASSED = 2**18  # of the side of such a one


class Operands(NamedTuple):
    """A factor of a link, and the constant that it is, if it is one."""

    axes: Axes
    constant: Constant | None = None
    position: int = -1  # in Map.factors; of a constant only once it is run as an operand
    family: int = -1


@dataclass
class Constants:
    """The constants of an entry that are operands, in the order in which links come to hold them."""

    spec: Entry
    names: Mapping[str, Value]
    size: Mapping[str, int]
    gate: str | None
    made: list[Constant] = field(default_factory=list)
    axes: list[Axes] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)  # sizes of axes that parting has made

    def of(self, written: Operand, axes: Axes, copy: int, number: str) -> Operands:
        """A factor, with its constant checked.

        Raises:
            SizeError: sides that differ, a Hadamard matrix of no power of two, one that is too large.
        """
        if not written.constant:
            return Operands(axes)
        kind, shape = written.constant, tuple(self.size[a] for a in axes)
        text = f"{kind}({' '.join(axes)})"

        def error(message: str) -> Exception:
            return self.spec.error(message, "einsum", number, offset=written.offset, kind=SizeError)

        if self.gate in axes:
            raise error(f"{text} holds the expert axis {self.gate!r}; a constant is the same for all experts")
        if kind in SQUARE and shape[0] != shape[1]:
            sides = " and ".join(f"{a}={n}" for a, n in zip(axes, shape, strict=True))
            widths = ", ".join(f"{k}={v}" for k, v in self.names.items() if k.endswith("_features"))
            raise error(f"{text} has two sides of one size, found {sides} at {widths}")
        if kind == "hadamard" and shape[0] & (shape[0] - 1):
            raise error(
                f"{text} is of a power of two, found {shape[0]}; pad=True takes the next width for which that holds"
            )
        seed = self._seed(written, error) if CONSTANTS[kind][1] else 0
        return Operands(axes, Constant(kind, shape, seed, copy if written.repeated else 0))

    def _seed(self, written: Operand, error: object) -> int:
        if not written.seed or written.seed.isdigit():
            return int(written.seed or 0)
        value = self.names[written.seed]
        if not isinstance(value, int) or not 0 <= value < 10**9:
            raise error(f"the seed {written.seed} is a whole number below 10**9, found {value}")  # type: ignore[operator]
        return value

    def add(self, operand: Operands) -> int:
        """Take in a constant that is contracted as a factor; its number among the constants."""
        assert operand.constant is not None
        if operand.constant.numel > MAX_DENSE:
            raise self.spec.error(
                f"{operand.constant.kind}({' '.join(operand.axes)}) is {' x '.join(map(str, operand.constant.shape))} "
                f"numbers, too large for a matrix that is multiplied by; at most {MAX_DENSE}", "einsum",
                kind=SizeError)  # fmt: skip
        self.made.append(operand.constant)
        self.axes.append(operand.axes)
        return len(self.made) - 1


@dataclass
class Order:
    """What the steps of a link are ordered by."""

    counted: MutableMapping[str, int]  # sizes, an expert axis as large as the experts that are chosen
    pool: Constants
    trained: int
    gate: str | None


def parted(link: Term, operands: Sequence[Operands], order: Order) -> list[Term]:
    """The link of these operands, or the links that it takes: `link` has no factors and no steps yet."""
    for place, operand in enumerate(operands):
        if operand.constant is not None and operand.constant.kind in PASSED:
            before, after = operands[:place], operands[place + 1 :]
            if _passes(link, before, operand, after, order):
                return _around(link, before, operand, after, order)
    return [_contracted(link, operands, order)]


def _contracted(link: Term, operands: Sequence[Operands], order: Order) -> Term:
    held, families = {}, {}
    for operand in operands:
        position = operand.position
        if operand.constant is not None:
            position = order.trained + order.pool.add(operand)
        held[position], families[position] = operand.axes, operand.family
    steps = order_steps(order.counted, link.loaded, held, families, link.output, order.gate)
    return Term(link.input, link.loaded, link.gathers, tuple(held), link.output, steps)


def _passes(link: Term, before: Sequence[Operands], operand: Operands, after: Sequence[Operands], order: Order) -> bool:
    """Whether the activation passes through: one side ends in the constant, the other begins in it."""
    assert operand.constant is not None
    x, z = operand.axes
    here = {*link.loaded, *(a for o in before for a in o.axes)}
    later = {*link.output, *(a for o in after for a in o.axes)}
    experts = order.gate in {a for o in (*before, *after) for a in o.axes}  # their weights are taken within one link
    return (
        x in here
        and x not in later
        and z in later
        and z not in here
        and not experts
        and (operand.constant.shape[0] <= MAX_PASSED)
    )


def _around(
    link: Term, before: Sequence[Operands], operand: Operands, after: Sequence[Operands], order: Order
) -> list[Term]:
    x, z = operand.axes
    assert operand.constant is not None
    later = {*link.output, *(a for o in after for a in o.axes), x}
    view = tuple(a for a in dict.fromkeys((*link.loaded, *(a for o in before for a in o.axes))) if a in later)
    links = []
    if before or link.gathers:
        first = Term(link.input, link.loaded, link.gathers, (), view, ())
        links += parted(first, before, order)
    changed = tuple(z if a == x else a for a in view)
    if operand.constant.kind == "permutation":
        rest = Term(view, changed, (_gather(operand),), (), link.output, ())
        return links + parted(rest, after, order)
    links += _in_digits(view, operand, order)
    if after or link.output != changed or not links:
        links += parted(Term(changed, changed, (), (), link.output, ()), after, order)
    return links


def _gather(operand: Operands) -> Gather:
    """z = p[x]: what is written at z is read at the place that p sends there."""
    x, z = operand.axes
    assert operand.constant is not None
    back = [0] * operand.constant.shape[0]
    for place, target in enumerate(order(operand.constant).tolist()):
        back[target] = place
    return Gather(x, (z,), tuple(back), f"permutation{'.' + str(operand.constant.seed)} of {z}")


def _in_digits(view: Axes, operand: Operands, order: Order) -> list[Term]:
    """A Hadamard matrix as the Kronecker product of log2(n) of 2 x 2, one step each; nothing for n = 1."""
    x, z = operand.axes
    assert operand.constant is not None
    bits = operand.constant.shape[0].bit_length() - 1
    if not bits:
        return []
    near, far = ([f"{a}.{k}" for k in range(bits)] for a in (x, z))
    for axis in (*near, *far):
        order.counted[axis] = order.pool.named[axis] = 2
    small = [Operands(pair, Constant("hadamard", (2, 2)), family=0) for pair in zip(near, far, strict=True)]
    loaded, output = (tuple(b for a in view for b in (own if a == x else (a,))) for own in (near, far))
    return [_contracted(Term(loaded, loaded, (), (), output, ()), small, order)]
