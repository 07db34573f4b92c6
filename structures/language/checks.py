"""What can be said of an entry before any width is known."""

from __future__ import annotations

import itertools
from collections import Counter

from structures.language.entry import PAD, Entry
from structures.language.expressions import (
    WIDTHS,
    ExpressionError,
    evaluate,
    is_name,
    is_number,
    names_in,
    nearest,
    parse,
)
from structures.language.notation import POSITION, Expanded, NotationError, Operand, Pattern, parse_chain

RESERVED_OPTIONS = frozenset({*WIDTHS, PAD, "bias", "device", "dtype", "backend", "init"})
MAX_TERMS = 64
GATE = ("axis", "experts_active", "jitter", "capacity")
INITS = ("uniform", "normal", "spectral")  # what a source's own initialisation gives
OF_A_FACTOR = ("fan_in", "fan_out", "factors", "terms")  # names it may use: of the factor's product, term and sum


def check(spec: Entry) -> None:
    if not is_name(spec.name):
        raise spec.error(f"{spec.name!r} is not a name; write ASCII letters, digits and _")
    if not spec.einsum:
        raise spec.error("the entry has no einsum", "einsum")
    if len(spec.einsum) > MAX_TERMS:
        raise spec.error(f"an einsum has at most {MAX_TERMS} terms, found {len(spec.einsum)}", "einsum")
    axes = _check_notation(spec)
    _check_parsed(spec)
    known = _check_options(spec)
    _check_gate(spec, axes, known)
    _check_sizes(spec, known, axes)
    _check_index(spec, axes)
    _check_init(spec)
    _check_uses(spec)


def _check_notation(spec: Entry) -> set[str]:
    axes: set[str] = set()
    for number, text in enumerate(spec.einsum):
        try:
            chain = parse_chain(text)
        except NotationError as error:
            raise spec.error(f"{error} in {text!r}", "einsum", str(number), offset=error.offset) from None
        axes |= {a.name for link in chain for operand in link.operands for a in operand.axes}
    return axes


def _check_parsed(spec: Entry) -> None:
    """Every expression is in the arithmetic, before anything asks which names one reads."""
    fields = {"options": spec.options, "sizes": spec.sizes, "index": spec.index, "gate": spec.gate, "init": spec.init}
    for field, pairs in fields.items():
        for name, text in pairs:
            if isinstance(text, str) and (field, name) not in (("gate", "axis"), ("init", "source")):
                _parse(spec, text, field, name)


def _check_options(spec: Entry) -> set[str]:
    known = set(WIDTHS)
    for name, value in spec.options:
        path = ("options", name)
        if not is_name(name) or name in RESERVED_OPTIONS or name == POSITION:
            raise spec.error(f"an option cannot be called {name!r}", *path)
        if isinstance(value, str):
            _parse_known(spec, value, known, *path)
        elif isinstance(value, tuple):
            if not value or not all(is_number(v) for v in value):
                raise spec.error(f"option {name} is a list of numbers, found {list(value)}", *path)
        elif not is_number(value):
            raise spec.error(f"option {name} is a number, a list of numbers or an expression, found {value!r}", *path)
        known.add(name)
    return known


def _check_sizes(spec: Entry, known: set[str], axes: set[str]) -> None:
    sized: dict[str, str] = {}  # axis -> the key that gives its size
    for names, text in spec.sizes:
        path = ("sizes", names)
        _parse_known(spec, text, known | sized.keys(), *path)
        if not names_in(text):
            _check_constant(spec, text, *path)
        for name in names.split():
            if not is_name(name) or name == POSITION or name in WIDTHS:
                raise spec.error(f"an axis cannot be called {name!r}", *path)
            if name in sized:
                raise spec.error(f"axis {name!r} has two sizes", *path)
            sized[name] = names
    for axis, text in spec.index:
        _parse_known(spec, text, axes | known | sized.keys(), "index", axis)
    defaults = [(name, value) for name, value in spec.options if isinstance(value, str)]
    gate = [pair for pair in spec.gate if pair[0] in GATE[1:]]
    read = {n for _, text in (*spec.sizes, *spec.index, *gate, *defaults) for n in names_in(text)}
    for name, names in sized.items():
        if name not in axes and name not in read:
            message = f"{name!r} has a size but stands neither in the einsum nor in another size"
            raise spec.error(message, "sizes", names)
    read |= {factor.seed for _, link in spec.links for factor in link.factors}
    for name, _ in spec.options:
        if name not in read:
            raise spec.error(f"option {name!r} is used by no size", "options", name)
    _check_seeds(spec)
    for number, link in spec.links:
        _check_inferred(spec, link, set(sized), number)
    _check_between(spec, set(sized))


def _check_inferred(spec: Entry, pattern: Pattern, sized: set[str], number: str) -> None:
    in_views = set()
    for view, what in ((pattern.input, "input"), (pattern.output, "output")):
        missing = [a for a in view.axes if a.name not in sized]
        if len(missing) > 1:
            raise spec.error(
                f"axes {', '.join(repr(a.name) for a in missing)} of the {what} view have no size; one may be left "
                "out, to be found by division", "einsum", number, offset=missing[1].offset)  # fmt: skip
        if missing and missing[0].subscript is not None:
            raise spec.error(f"axis {missing[0].name!r} is indexed and needs a size", "einsum", number,
                             offset=missing[0].offset)  # fmt: skip
        in_views |= {a.name for a in view.axes}
    for factor in pattern.factors:
        for axis in factor.axes:
            if axis.name not in sized and axis.name not in in_views:
                hint = nearest(axis.name, sorted(sized | in_views)).replace("there are", "axes with a size")
                message = f"axis {axis.name!r} of a factor has no size; give it one under sizes{hint}"
                raise spec.error(message, "einsum", number, offset=axis.offset)
            if axis.name not in sized and axis.subscript is not None:
                message = f"axis {axis.name!r} is indexed and needs a size"
                raise spec.error(message, "einsum", number, offset=axis.offset)


def _check_seeds(spec: Entry) -> None:
    options = dict(spec.options)
    for number, link in spec.links:
        for factor in link.factors:
            if factor.seed and not factor.seed.isdigit() and factor.seed not in options:
                message = f"the seed {factor.seed!r} of {factor.constant} is no option"
                raise spec.error(message + nearest(factor.seed, sorted(options)), "einsum", number,
                                 offset=factor.offset)  # fmt: skip


def _check_between(spec: Entry, sized: set[str]) -> None:
    """The width between two links is that of a view whose sizes are all known; the other may leave one open."""
    known = set(sized)
    for chain in spec.chains:
        known |= {a.name for view in (chain[0].input, chain[-1].output) for a in view.axes}
    joints = [
        (number, [{a.name for a in view.axes} for view in (before.output, after.input)], after.input.offset)
        for number, chain in enumerate(spec.chains)
        for before, after in itertools.pairwise(chain)
    ]
    for _ in joints:  # a width that is found may give the next one
        for _, views, _ in joints:
            if any(view <= known for view in views):
                known |= views[0] | views[1]
    for number, views, offset in joints:
        if not any(view <= known for view in views):
            left, right = (", ".join(sorted(view - known)) for view in views)
            message = f"the width between two links is found from neither side: no size is known of {left} before ';'"
            raise spec.error(f"{message} and of {right} after it; give one a size", "einsum", str(number),
                             offset=offset)  # fmt: skip


def _check_index(spec: Entry, axes: set[str]) -> None:
    for axis, text in spec.index:
        path = ("index", axis)
        if axis not in axes:
            raise spec.error(f"index: {axis!r} is not an axis of the einsum{nearest(axis, sorted(axes))}", *path)
        if axis not in spec.axis_sizes:
            raise spec.error(f"index: axis {axis!r} needs a size", *path)
        if axis in names_in(text):
            raise spec.error(f"index: axis {axis!r} is read through itself", *path)


def _check_gate(spec: Entry, axes: set[str], known: set[str]) -> None:
    fields = dict(spec.gate)
    if not fields:
        return
    for name, text in fields.items():
        if name not in GATE:
            raise spec.error(f"gate has no {name!r}{nearest(name, GATE)}", "gate", name)
        if name != "axis":
            _parse_known(spec, text, known | spec.axis_sizes.keys(), "gate", name)
    for name in GATE[:2]:
        if name not in fields:
            raise spec.error(f"gate has no {name!r}; write it as {{axis: r, experts_active: 2}}", "gate")
    axis = fields["axis"]
    if axis not in axes:
        raise spec.error(f"gate: {axis!r} is not an axis of the einsum{nearest(axis, sorted(axes))}", "gate", "axis")
    in_factors: set[str] = set()
    for _, pattern in spec.links:
        for view, what in ((pattern.input, "input"), (pattern.output, "output")):
            if axis in (a.name for a in view.axes):
                free = sorted(axes - {a.name for _, p in spec.links for v in (p.input, p.output) for a in v.axes})
                hint = f"; axes that no view holds: {', '.join(free)}" if free else "; every axis stands in a view"
                message = f"gate: the {what} view of {pattern.text!r} holds axis {axis!r}, so it cannot number experts"
                raise spec.error(message + hint, "gate", "axis")
        in_factors |= {a.name for f in pattern.factors for a in f.axes if a.subscript is not None}
    if axis in in_factors:
        raise spec.error(f"gate: axis {axis!r} is indexed; experts stand on an axis of one size", "gate", "axis")
    for other, text in spec.index:
        if axis in names_in(text):
            message = f"gate: the input axis {other!r} is read through axis {axis!r}, so it cannot number experts"
            raise spec.error(message, "gate", "axis")


def _check_init(spec: Entry) -> None:
    if not spec.init:
        return
    rules = dict(spec.init)
    kinds = [key for key in rules if key not in ("source", "bias")]
    if len(kinds) != 1 or kinds[0] not in INITS:
        raise spec.error(
            "init has one of 'uniform' (its bound), 'normal' (its standard deviation) or 'spectral' (a multiple of "
            "that rule's), and may have 'bias' (its bound; 0 for none) and 'source'", "init")  # fmt: skip
    known = {n for n, _ in spec.options} | set(spec.axis_sizes) | set(WIDTHS)
    _parse_known(spec, rules[kinds[0]], known | set(OF_A_FACTOR), "init", kinds[0])
    for name in OF_A_FACTOR:
        if name in known and name in names_in(rules[kinds[0]]):
            message = f"{name!r} is the factor's own in an init, and an option or axis too; rename that"
            raise spec.error(message, "init", kinds[0])
    if "bias" in rules:
        _parse_known(spec, rules["bias"], known, "init", "bias")


def count_uses(
    spec: Entry, term: Expanded, number: str, indexed: set[str], skip: set[str] | frozenset[str] = frozenset()
) -> None:
    """Every axis stands in two operands at least; an output axis stands in the input or in a factor."""
    inputs, gated = {name for name, _ in term.input}, dict(spec.gate).get("axis")
    reads = {name for axis, text in spec.index if axis in inputs for name in names_in(text)}
    views = {*term.input, *term.output}
    for axis, count in Counter(term.axes).items():  # no axis stands twice in one operand
        uses = count + (axis[0] in reads) + (axis[0] == gated)  # a gate holds its axis as a factor does
        if axis[0] in indexed:
            if axis in term.input and uses > 1:
                raise spec.error(f"axis {axis[0]!r} is read through an index and can stand in the input view alone",
                                 "einsum", number)  # fmt: skip
            continue
        bond_end = axis[1] is not None and axis not in views
        if uses > 1 or bond_end or axis[0] in skip:
            continue
        what = label(*axis)
        if axis in term.output:
            raise spec.error(f"output axis {what!r} occurs neither in the input nor in a factor", "einsum", number)
        raise spec.error(
            f"axis {what!r} stands in one operand alone; sum it away by leaving it out, or use it twice",
            "einsum", number)  # fmt: skip


def label(name: str, position: int | None) -> str:
    return name if position is None else f"{name}{position}"


def _check_uses(spec: Entry) -> None:
    """Axes without an index can be counted before any size is known; the others when they are written out."""
    indexed = {axis for axis, _ in spec.index}
    for number, pattern in spec.links:
        plain = Expanded(_plain(pattern.input), tuple(map(_plain, pattern.factors)), _plain(pattern.output), ())
        later = {a.name for f in pattern.factors if f.repeated for a in f.axes}
        later |= {a.name for operand in pattern.operands for a in operand.axes if a.subscript is not None}
        count_uses(spec, plain, number, indexed, skip=later)


def _plain(operand: Operand) -> tuple[tuple[str, int | None], ...]:
    return tuple((a.name, None) for a in operand.axes if a.subscript is None)


def _check_constant(spec: Entry, text: str, *path: str) -> None:
    """A size that depends on nothing is wrong at once or never."""
    try:
        evaluate(text, {})
    except ExpressionError as error:
        raise spec.error(f"{error}", *path, offset=error.offset) from None


def _parse(spec: Entry, text: str, *path: str) -> None:
    try:
        parse(text)
    except ExpressionError as error:
        raise spec.error(f"{error}", *path, offset=error.offset) from None


def _parse_known(spec: Entry, text: str, known: set[str], *path: str) -> None:
    _parse(spec, text, *path)
    unknown = sorted(names_in(text) - known)
    if unknown:
        raise spec.error(f"unknown name {unknown[0]!r} in {text!r}{nearest(unknown[0], sorted(known))}", *path)
