"""The einsum notation of a term: `input view, factor, factor, ... -> output view`, or several joined by `;`.

Joined by `;` they are links of a chain: each reads the result of the one before it, flat, as its own input view.

Parsing knows nothing of sizes; `expand` writes indexed axes (`i[:]`, `r[t+1]`) out once the lengths are known.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from structures.language.expressions import ExpressionError, evaluate, names_in, nearest

MAX_LENGTH = 2000  # characters of one term
MAX_AXES = 8000  # of all operands of one term, indexed axes written out
LINK = ";"  # joins the links of a chain
# constant factors: name -> how many axes it has, and whether it takes a seed
CONSTANTS = {
    "hadamard": (2, False),
    "dct": (2, False),
    "permutation": (2, True),
    "sign": (1, True),
    "normal": (2, True),
}
POSITION = "t"  # the letter that counts the copies of a repeated factor


class NotationError(ValueError):
    """A term that is not in the notation; `offset` counts characters from its start."""

    def __init__(self, message: str, offset: int = 0):
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class AxisRef:
    """An axis as written: `name`, `name[index]` or `name[slice]`; `subscript` is the text between the brackets."""

    name: str
    subscript: str | None
    offset: int

    @property
    def mentions_position(self) -> bool:
        return self.subscript is not None and any(POSITION in names_in(e) for e in self.ends if e)

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in (self.subscript or "").split(":"))

    @property
    def is_slice(self) -> bool:
        return self.subscript is not None and ":" in self.subscript


@dataclass(frozen=True)
class Operand:
    """A view or a factor: its axes in written order; of a constant factor its name and its seed as written too."""

    axes: tuple[AxisRef, ...]
    offset: int
    constant: str = ""
    seed: str = ""

    @property
    def repeated(self) -> bool:
        return any(a.mentions_position for a in self.axes)


@dataclass(frozen=True)
class Pattern:
    """A parsed link: the whole term where there is no `;`. Offsets count from the start of the term."""

    text: str
    input: Operand
    factors: tuple[Operand, ...]
    output: Operand

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (self.input, *self.factors, self.output)


_TOKEN = re.compile(r"\s*(?:(?P<axis>[A-Za-z_][A-Za-z0-9_]*)(?:\[(?P<subscript>[^\[\]]*)\])?|(?P<paren>[()]))")


@lru_cache(maxsize=4096)
def parse_chain(text: str) -> tuple[Pattern, ...]:
    """The patterns of a term's links, parted by `;`: one for an ordinary term.

    Raises:
        NotationError: as `parse_term`.
    """
    if len(text) > MAX_LENGTH:
        raise NotationError(f"a term has at most {MAX_LENGTH} characters, found {len(text)}")
    links, offset = [], 0
    for part in text.split(LINK):
        links.append(parse_term(part, offset))
        offset += len(part) + len(LINK)
    return tuple(links)


def parse_term(text: str, start: int = 0) -> Pattern:
    """The pattern of one link; `start` is where it begins in its term.

    Raises:
        NotationError: no or several `->`, an empty operand, stray characters or parentheses, an axis twice in one
            operand, parentheses around a factor, a view of several axes without parentheses.
    """
    if len(text) > MAX_LENGTH:
        raise NotationError(f"a term has at most {MAX_LENGTH} characters, found {len(text)}")
    if text.count("->") != 1:
        what = "link" if start else "term"
        raise NotationError(f"a {what} has one '->', found {text.count('->')}", start + max(text.rfind("->"), 0))
    left, right = text.split("->")
    operands: list[Operand] = []
    offset = 0
    for part in left.split(","):
        operands.append((_factor if operands else _operand)(part, start + offset))
        offset += len(part) + 1
    output = _operand(right, start + len(left) + 2)
    for view, what in ((operands[0], "input view"), (output, "output view")):
        grouped = text[view.offset - start] == "("
        if len(view.axes) > 1 and not grouped:
            raise NotationError(f"the {what} has {len(view.axes)} axes and needs parentheses", view.offset)
    for factor in operands[1:]:
        if text[factor.offset - start] == "(":
            raise NotationError("a factor is written without parentheses", factor.offset)
    return Pattern(text, operands[0], tuple(operands[1:]), output)


_CONSTANT = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)(?:\.(?P<seed>\w*))?\(")


def _factor(text: str, offset: int) -> Operand:
    """A factor: its axes, or a constant such as `permutation.3(x z)`."""
    match = _CONSTANT.match(text)
    if match is None:
        return _operand(text, offset)
    name, seed = match["name"], match["seed"]
    at = offset + match.start("name")
    if name not in CONSTANTS:
        raise NotationError(f"there is no constant {name!r}{nearest(name, list(CONSTANTS))}", at)
    if not text.rstrip().endswith(")"):
        raise NotationError(f"the parenthesis of {name} is not closed", at)
    inner = text.rstrip()[match.end() : -1]
    axes = _operand(inner, offset + match.end()).axes
    count, seeded = CONSTANTS[name]
    if len(axes) != count:
        raise NotationError(f"{name} has {count} {'axis' if count == 1 else 'axes'}, found {len(axes)}", at)
    if any(axis.is_slice for axis in axes):
        raise NotationError(f"{name} takes single axes, no slice", at)
    if seed is not None and (not seeded or not seed):
        raise NotationError(f"{name} takes {'a' if seeded else 'no'} seed after a dot, found {seed!r}", at)
    if seed and not ((seed.isdigit() and len(seed) < 10) or seed.isidentifier()):
        raise NotationError(f"a seed is a whole number below 10**9 or the name of an option, found {seed!r}", at)
    return Operand(axes, at, name, seed or "")


def _operand(text: str, offset: int) -> Operand:
    axes: list[AxisRef] = []
    depth, position = 0, 0
    stripped = text.rstrip()
    first = offset + len(text) - len(text.lstrip())
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            start = position + len(stripped[position:]) - len(stripped[position:].lstrip())
            raise NotationError(f"unexpected {stripped[start]!r}", offset + start)
        position = match.end()
        if match["paren"]:
            at = offset + match.start("paren")
            depth += 1 if match["paren"] == "(" else -1
            if depth not in (0, 1) or (depth == 1 and axes) or (depth == 0 and position < len(stripped)):
                raise NotationError("a view has one pair of parentheses around all of its axes", at)
        else:
            axes.append(_axis(match["axis"], match["subscript"], offset + match.start("axis")))
    if depth:
        raise NotationError("a parenthesis is not closed", first)
    if not axes:
        raise NotationError("an operand is empty", offset)
    written = [(a.name, a.subscript) for a in axes]
    for axis in axes:
        if written.count((axis.name, axis.subscript)) > 1:
            raise NotationError(f"axis {axis.name!r} stands twice in one operand", axis.offset)
    return Operand(tuple(axes), first)


def _axis(name: str, subscript: str | None, offset: int) -> AxisRef:
    axis = AxisRef(name, subscript, offset)
    if name == POSITION:
        raise NotationError(f"{POSITION!r} counts repeated factors and cannot name an axis", offset)
    if subscript is not None:
        if subscript.count(":") > 1:
            raise NotationError(f"axis {name!r}: a slice has no step here", offset)
        try:
            used = {n for end in axis.ends if end or not axis.is_slice for n in names_in(end)}
        except ExpressionError as error:
            raise NotationError(f"axis {name!r}: index [{subscript}]: {error}", offset) from None
        if used - {POSITION}:
            raise NotationError(
                f"axis {name!r} is indexed by numbers and {POSITION!r} alone, found [{subscript}]", offset
            )
    return axis


@dataclass(frozen=True)
class Expanded:
    """A term with every axis written out as (name, position), position None for a plain axis."""

    input: tuple[tuple[str, int | None], ...]
    factors: tuple[tuple[tuple[str, int | None], ...], ...]
    output: tuple[tuple[str, int | None], ...]
    families: tuple[int, ...]  # which written factor each factor comes from
    copies: tuple[int, ...] = ()  # which copy of it each is

    @cached_property
    def axes(self) -> tuple[tuple[str, int | None], ...]:
        """Those of all operands, as often as they stand there."""
        return (*self.input, *itertools.chain(*self.factors), *self.output)

    @cached_property
    def shared(self) -> frozenset[tuple[str, int | None]]:
        """Axes that stand in two operands."""
        return frozenset(axis for axis, count in Counter(self.axes).items() if count > 1)


def expand(pattern: Pattern, lengths: Mapping[str, int]) -> Expanded:
    """The term with repeated factors and indexed axes written out.

    Args:
        lengths: number of positions of each axis whose size is a list.
    Raises:
        NotationError: a list axis without index, positions outside a list, a repeated factor without a list.
    """
    return _expand(pattern, tuple(lengths.items()))


@lru_cache(maxsize=4096)
def _expand(pattern: Pattern, held: tuple[tuple[str, int], ...]) -> Expanded:
    lengths = dict(held)
    copies = [_copies(factor, lengths) for factor in pattern.factors]
    highest = _highest_positions(pattern, copies, lengths)
    factors, families, numbers, written = [], [], [], 0
    for family, (factor, count) in enumerate(zip(pattern.factors, copies, strict=True)):
        for t in range(count):
            factors.append(_expand_operand(factor, lengths, highest, t))
            families.append(family)
            numbers.append(t)
            written += len(factors[-1])
            if written > MAX_AXES:
                raise NotationError(f"the term has more than {MAX_AXES} axes when written out")
    views = [_expand_operand(v, lengths, highest, None) for v in (pattern.input, pattern.output)]
    if written + len(views[0]) + len(views[1]) > MAX_AXES:
        raise NotationError(f"the term has more than {MAX_AXES} axes when written out")
    return Expanded(views[0], tuple(factors), views[1], tuple(families), tuple(numbers))


def _copies(factor: Operand, lengths: Mapping[str, int]) -> int:
    """How often a factor occurs: as long as the indices that mention the position stay inside their lists."""
    if not factor.repeated:
        return 1
    reach: dict[str, int] = {}
    for axis in factor.axes:
        if axis.mentions_position and not axis.is_slice and axis.name in lengths:
            reach[axis.name] = min(reach.get(axis.name, MAX_AXES + 1), _reach(axis, lengths[axis.name]))
    if not reach:
        raise NotationError(
            f"a factor that mentions {POSITION!r} needs an axis whose size is a list (from split), "
            "to tell how often it occurs", factor.offset)  # fmt: skip
    counts = sorted(set(reach.values()))
    if len(counts) > 1 or counts[0] < 1:
        raise NotationError(f"lists of different lengths {counts} in one repeated factor", factor.offset)
    if counts[0] > MAX_AXES:
        raise NotationError(f"the term has more than {MAX_AXES} axes when written out")
    return counts[0]


def _reach(axis: AxisRef, length: int) -> int:
    """How many positions, from 0 on, keep the index of `axis` inside its list."""
    count = 0
    while count <= MAX_AXES and 0 <= _index(axis, axis.ends[0], count) < length:
        count += 1
    return count


def _highest_positions(pattern: Pattern, copies: list[int], lengths: Mapping[str, int]) -> dict[str, int]:
    """Last position of each indexed axis: from its list, or the highest index written."""
    highest = {name: length - 1 for name, length in lengths.items()}
    for operand, count in zip(pattern.operands, (1, *copies, 1), strict=True):
        for axis in operand.axes:
            if axis.subscript is None or axis.name in lengths or axis.is_slice:
                continue
            for t in range(count):
                highest[axis.name] = max(highest.get(axis.name, 0), _index(axis, axis.ends[0], t))
    return highest


def _index(axis: AxisRef, text: str, t: int | None) -> int:
    try:
        value = evaluate(text, {} if t is None else {POSITION: t})
    except ExpressionError as error:
        raise NotationError(f"axis {axis.name!r}: {error}", axis.offset) from None
    if not isinstance(value, int):
        raise NotationError(f"axis {axis.name!r}: index {value} is not a whole number", axis.offset)
    return value


def _expand_operand(
    operand: Operand, lengths: Mapping[str, int], highest: Mapping[str, int], t: int | None
) -> tuple[tuple[str, int | None], ...]:
    out: list[tuple[str, int | None]] = []
    for axis in operand.axes:
        if axis.subscript is None:
            if axis.name in lengths:
                raise NotationError(
                    f"axis {axis.name!r} is a list of {lengths[axis.name]} sizes: index it, as in {axis.name}[:]",
                    axis.offset,
                )
            out.append((axis.name, None))
            continue
        count = highest.get(axis.name, -1) + 1
        if axis.is_slice:
            if axis.name not in lengths:
                raise NotationError(f"axis {axis.name!r} is sliced, but its size is not a list", axis.offset)
            low, high = (None if not end else _index(axis, end, t) for end in axis.ends)
            out += [(axis.name, i) for i in range(count)[low:high]]
        else:
            position = _index(axis, axis.ends[0], t)
            if not -count <= position < count:
                raise NotationError(
                    f"axis {axis.name!r}: index {position} is outside its {count} positions", axis.offset
                )
            out.append((axis.name, position % count))
    if len(set(out)) < len(out):
        raise NotationError("an axis stands twice in one operand once its indices are written out", operand.offset)
    return tuple(out)
