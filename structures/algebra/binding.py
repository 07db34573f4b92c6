"""An entry and two widths -> a Map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from structures.algebra.map import MAX_SIZE, Gate, Gather, Map, Term
from structures.algebra.padding import padded
from structures.algebra.parting import Constants, Operands, Order, parted
from structures.algebra.steps import Axes
from structures.language.checks import count_uses, label
from structures.language.entry import PAD, Entry
from structures.language.errors import SizeError
from structures.language.expressions import ExpressionError, Value, divisors, evaluate, is_number, names_in, nearest
from structures.language.notation import Expanded, NotationError, Pattern, expand

MAX_TRIES = 240  # bindings tried for the hint of an error, over all options
MAX_HINTED = 64  # factors, or sizes of a list, up to which an error names padded widths: hundreds of bindings
MAX_TABLE = 2**16  # entries of a gather

Axis = tuple[str, int | None]
Chain = tuple[Expanded, ...]  # a term's links


def check_option(spec: Entry, name: str, value: object) -> object:
    if name == PAD:
        if value not in (True, False):
            raise spec.error(f"{PAD} is True or False, found {value!r}")
        return bool(value)
    defaults = dict(spec.options)
    if name not in defaults:
        raise spec.error(f"there is no option {name!r}{nearest(name, sorted(defaults))}")
    default = defaults[name]
    plain = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    listed = isinstance(default, str) and isinstance(plain, list | tuple)  # an expression may be of a list
    if isinstance(default, tuple) or listed:
        values = tuple(map(_number, plain)) if isinstance(plain, Sequence) and not isinstance(plain, str) else ()
        if not values or not all(is_number(v) for v in values):
            raise spec.error(f"option {name} is a list of numbers, found {value!r}")
        return values
    value = _number(value)
    wanted = "a number" if isinstance(default, float) else "a whole number"
    if not is_number(value) or (isinstance(value, float) and not isinstance(default, float)):
        raise spec.error(f"option {name} is {wanted}, found {value!r}")
    if value < 0:  # type: ignore[operator]
        raise spec.error(f"option {name} cannot be negative, found {value}", kind=SizeError)
    return value


def _number(value: object) -> object:
    """A plain number for numpy's and torch's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


@lru_cache(maxsize=4096)
def bind(spec: Entry, in_features: int, out_features: int, given: tuple[tuple[str, object], ...]) -> Map:
    try:
        return build(spec, in_features, out_features, dict(given))
    except SizeError as error:
        hint = _values_that_work(spec, in_features, out_features, dict(given)) + _padding(
            spec, in_features, out_features, dict(given)
        )
        raise SizeError(f"{error}{hint}") from None


def _padding(spec: Entry, in_features: int, out_features: int, given: dict[str, object]) -> str:
    """`; pad=True runs it as 768 -> 50260`, where it does."""
    if given.get(PAD, spec.pad) or _length(spec, in_features, out_features, given) > MAX_HINTED:
        return ""
    try:
        found = build(spec, in_features, out_features, {**given, PAD: True})
    except SizeError:
        return ""
    return f"; pad=True runs it as {found.in_features} -> {found.out_features}"


def _length(spec: Entry, in_features: int, out_features: int, given: Mapping[str, object]) -> int:
    """The most of what is written out: the factors as they stand, and the sizes of a list; 0 where these fail."""
    widths = {"in_features": in_features, "out_features": out_features}
    own = {name: value for name, value in given.items() if name != PAD}
    try:
        values = _evaluate_sizes(spec, {**widths, **_evaluate_options(spec, widths, own)})
    except SizeError:
        values = {}
    lists = (len(value) for value in values.values() if isinstance(value, tuple))
    return max(sum(len(link.factors) for _, link in spec.links), *lists, 0)


def _values_that_work(spec: Entry, in_features: int, out_features: int, given: dict[str, object]) -> str:
    """`; n_blocks that work here: 2, 4, 6`: found by trying, nearest to what was asked for."""
    texts = []
    left = MAX_TRIES
    for name, default in spec.options:
        asked = given.get(name, default)
        if not isinstance(default, int) or not isinstance(asked, int):
            continue
        candidates = sorted({*divisors(in_features), *divisors(out_features)})
        candidates.sort(key=lambda c: abs(math.log(c / max(asked, 1))))
        working: list[int] = []
        for candidate in candidates[: min(left, 48)]:
            left -= 1
            try:
                build(spec, in_features, out_features, {**given, name: candidate})
            except SizeError:
                continue
            working.append(candidate)
            if len(working) == 8:
                break
        if working:
            texts.append(f"{name} that work here: {', '.join(map(str, sorted(working)))}")
    return "".join(f"; {text}" for text in texts)


def build(spec: Entry, in_features: int, out_features: int, given: Mapping[str, object]) -> Map:
    """The map of these widths, or where `pad` is given or the default, of those that are taken in their place."""
    pad = bool(given.get(PAD, spec.pad))
    own = {name: value for name, value in given.items() if name != PAD}
    if not pad:
        found = _build(spec, in_features, out_features, own)
        return replace(found, options=(*found.options, (PAD, False))) if spec.pad else found
    found = _padded(spec, in_features, out_features, tuple(own.items()))
    widths = in_features, out_features
    asked = None if (found.in_features, found.out_features) == widths else widths
    return replace(found, options=(*found.options, (PAD, True)), asked=asked)


@lru_cache(maxsize=4096)
def _padded(spec: Entry, in_features: int, out_features: int, given: tuple[tuple[str, object], ...]) -> Map:
    own = dict(given)
    return padded(spec, own, (in_features, out_features), lambda i, o: _build(spec, i, o, own))


def _build(spec: Entry, in_features: int, out_features: int, given: Mapping[str, object]) -> Map:
    widths = {"in_features": in_features, "out_features": out_features}
    options = _evaluate_options(spec, widths, given)
    values = _evaluate_sizes(spec, {**widths, **options})
    lengths = {name: len(v) for name, v in values.items() if isinstance(v, tuple)}
    for axis, _ in spec.index:
        if axis in lengths:
            raise spec.error(
                f"index: axis {axis!r} is a list of sizes; only an axis of one size is read so", "index", axis
            )
    written = _written(spec, tuple(lengths.items()))
    size = _axis_sizes(spec, values, written, widths)
    return _assemble(spec, widths, options, values, size, written)


@lru_cache(maxsize=1024)  # of thousands of options that are tried most write the same
def _written(spec: Entry, held: tuple[tuple[str, int], ...]) -> tuple[Chain, ...]:
    """The terms with every axis written out, for lists of these lengths."""
    lengths = dict(held)
    return tuple(
        tuple(_expanded(spec, link, lengths, number) for link in chain) for number, chain in enumerate(spec.chains)
    )


def _expanded(spec: Entry, link: Pattern, lengths: Mapping[str, int], number: int) -> Expanded:
    try:
        written = expand(link, lengths)
    except NotationError as error:
        raise spec.error(f"{error} in {link.text.strip()!r}", "einsum", str(number), offset=error.offset) from None
    count_uses(spec, written, str(number), {axis for axis, _ in spec.index})
    return written


def _evaluate_options(spec: Entry, widths: Mapping[str, int], given: Mapping[str, object]) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for name, default in spec.options:
        value = given.get(name, default)
        if isinstance(value, str):
            try:
                value = evaluate(value, {**widths, **options})
            except ExpressionError as error:
                raise spec.error(f"option {name}: {error}{_at(widths)}", "options", name, kind=SizeError) from None
        options[name] = value  # type: ignore[assignment]
    return options


def _evaluate_sizes(spec: Entry, names: dict[str, Value]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    known = dict(names)
    for key, text in spec.sizes:
        targets = key.split()
        try:
            value = evaluate(text, known)
        except ExpressionError as error:
            raise spec.error(f"size {key}: {error}{_at(names)}", "sizes", key, kind=SizeError) from None
        parts = value if isinstance(value, tuple) and len(targets) > 1 else (value,)
        if len(parts) != len(targets):
            raise spec.error(f"sizes {key!r} names {len(targets)} axes, its list has {len(parts)}", "sizes", key)
        for target, part in zip(targets, parts, strict=True):
            whole = part if isinstance(part, tuple) else (part,)
            if not all(isinstance(n, int) and n >= 0 for n in whole):
                raise spec.error(f"size {target} = {text} is {part}, not a whole number{_at(names)}", "sizes", key,
                                 kind=SizeError)  # fmt: skip
            values[target] = known[target] = part
    return values


def _at(names: Mapping[str, Value]) -> str:
    shown = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in names.items())
    return f" at {shown}"


def _names(axes: Sequence[tuple[str, int | None]]) -> Axes:
    return tuple(label(*a) for a in axes)


def _axis_sizes(
    spec: Entry, values: Mapping[str, Value], terms: Sequence[Chain], widths: Mapping[str, int]
) -> dict[Axis, int]:
    """The size of every axis that occurs: evaluated, 1 for the end of a bond, or found by division of a width."""
    size: dict[Axis, int] = {}
    shared = {axis for chain in terms for link in chain for axis in link.shared}
    for number, chain in enumerate(terms):
        for axis in _axes_of(chain):
            name, position = axis
            if name not in values:
                continue
            value = values[name]
            if isinstance(value, tuple):
                size[axis] = int(value[position])  # type: ignore[index]  # expand() has indexed every list axis
                if axis not in shared and size[axis] != 1:
                    raise spec.error(
                        f"axis {label(*axis)}={size[axis]} stands in one operand alone; the end of a bond has size 1",
                        "einsum", str(number), kind=SizeError)  # fmt: skip
            else:
                size[axis] = int(value) if position is None or axis in shared else 1
    for number, chain in enumerate(terms):
        for view, width in ((chain[0].input, "in_features"), (chain[-1].output, "out_features")):
            _divide(spec, size, view, width, widths[width], str(number))
    _between(spec, size, terms)
    _check_collisions(spec, size)
    for axis, n in size.items():
        if n > MAX_SIZE:
            raise spec.error(f"axis {label(*axis)} = {n} is larger than {MAX_SIZE}, the largest width", kind=SizeError)
    return size


def _between(spec: Entry, size: dict[Axis, int], terms: Sequence[Chain]) -> None:
    """Widths between links: of whichever view has all its sizes; the other one is divided, or must be as wide."""
    joints = [
        (str(number), place, before.output, after.input)
        for number, chain in enumerate(terms)
        for place, (before, after) in enumerate(itertools.pairwise(chain))
    ]
    while joints:  # the checks of the entry have seen that each can be found, some only after others
        known = [j for j in joints if any(all(a in size for a in view) for view in j[2:])]
        assert known
        for number, place, *views in known:
            views.sort(key=lambda view: not all(a in size for a in view))
            width = math.prod(size[a] for a in views[0])
            if width:  # a bond of size zero drops the term
                name = f"the width between links {place} and {place + 1}"
                _divide(spec, size, views[1], name, width, number)
            else:
                size.update({a: 0 for a in views[1] if a not in size})
        joints = [j for j in joints if j not in known]


def _divide(spec: Entry, size: dict[Axis, int], view: Sequence[Axis], width_name: str, width: int, number: str) -> None:
    missing = [axis for axis in view if axis not in size]
    known = [axis for axis in view if axis in size]
    text = " ".join(_names(view))
    for axis in known:
        if size[axis] < 1 or width % size[axis]:
            near = _nearest_divisors(width, size[axis])
            raise spec.error(
                f"axis {label(*axis)}={size[axis]} does not divide {width_name}={width}; nearest sizes that do: {near}",
                "einsum", number, kind=SizeError)  # fmt: skip
    product = math.prod(size[axis] for axis in known)
    if not missing:
        if product != width:
            sizes = " x ".join(str(size[a]) for a in known)
            raise spec.error(f"the view ({text}) holds {sizes} = {product}, but {width_name}={width}", "einsum", number,
                             kind=SizeError)  # fmt: skip
        return
    if width % product:
        raise spec.error(
            f"the sizes of ({text}) without {label(*missing[0])} multiply to {product}, which does not divide "
            f"{width_name}={width}; nearest products that do: {_nearest_divisors(width, product)}",
            "einsum", number, kind=SizeError)  # fmt: skip
    found = width // product
    size[missing[0]] = found


def _nearest_divisors(width: int, wanted: int) -> str:
    below = [d for d in divisors(width) if d < wanted][-1:]
    above = [d for d in divisors(width) if d > wanted][:1]
    return ", ".join(map(str, below + above))


def _check_collisions(spec: Entry, size: Mapping[tuple[str, int | None], int]) -> None:
    seen: dict[str, tuple[str, int | None]] = {}
    for axis in size:
        other = seen.setdefault(label(*axis), axis)
        if other != axis:
            raise spec.error(
                f"axis {label(*axis)!r} is also position {axis[1] or other[1]} of an indexed axis; rename one"
            )


def _assemble(
    spec: Entry,
    widths: Mapping[str, int],
    options: Mapping[str, Value],
    values: Mapping[str, Value],
    size: Mapping[tuple[str, int | None], int],
    written: Sequence[Chain],
) -> Map:
    named = {label(*axis): n for axis, n in size.items()}
    gate = _gate(spec, named, {**widths, **options, **values})
    counted = {**named} if gate is None else {**named, gate.axis: gate.active}  # what a token costs decides the order
    patterns = spec.chains
    kept = [number for number, chain in enumerate(written) if all(size[axis] for axis in _axes_of(chain))]
    factors: list[Axes] = []  # those that are trained; a term with a bond of size zero is zero for every input
    pool = Constants(spec, {**widths, **options, **values}, named, None if gate is None else gate.axis)
    operands: dict[int, list[list[Operands]]] = {}
    for number in kept:
        operands[number] = []
        for pattern, link in zip(patterns[number], written[number], strict=True):
            made = [pool.of(pattern.factors[f], _names(a), copy, str(number)) for a, f, copy in
                    zip(link.factors, link.families, link.copies, strict=True)]  # fmt: skip
            operands[number].append(made)
    trained = sum(o.constant is None for links in operands.values() for link in links for o in link)
    terms: list[Term] = []
    for number in kept:
        links = []
        for link, own in zip(written[number], operands[number], strict=True):
            gathers = tuple(_gathers(spec, link, named, {**widths, **options, **values}, str(number)))
            loaded = _loaded(spec, link, gathers, str(number))
            families = iter(link.families)
            todo = []
            for operand in own:
                family = next(families)
                if operand.constant is None:
                    todo.append(operand._replace(position=len(factors), family=family))
                    factors.append(operand.axes)
                else:
                    todo.append(operand._replace(family=family))
            order = Order(counted, pool, trained, gate.axis if gate else None)
            links += parted(Term(_names(link.input), loaded, gathers, (), _names(link.output), ()), todo, order)
        text = spec.einsum[number] if any(o.constant for link in operands[number] for o in link) else ""
        terms.append(replace(Term.of_links(links), written=text))
    factors += pool.axes
    if gate and not any(gate.axis in f for f in factors):
        raise spec.error("every term with experts is dropped, since each has an axis of size zero", kind=SizeError)
    if not terms:
        raise spec.error("every term is dropped, since each has an axis of size zero", kind=SizeError)
    named |= pool.named
    used = dict.fromkeys(a for t in terms for link in t.chain for a in (*link.input, *link.loaded, *link.output))
    used.update(dict.fromkeys(a for f in factors for a in f))
    return Map(
        name=spec.name,
        title=spec.title,
        in_features=widths["in_features"],
        out_features=widths["out_features"],
        options=tuple(options.items()),
        sizes=tuple((axis, named[axis]) for axis in used),
        factors=tuple(factors),
        terms=tuple(terms),
        spec=spec,
        gate=gate,
        constants=tuple(pool.made),
    )


def _axes_of(chain: Chain) -> Iterator[Axis]:
    return (axis for link in chain for axis in link.axes)


def _gate(spec: Entry, named: Mapping[str, int], names: Mapping[str, Value]) -> Gate | None:
    """The gate with its numbers, each in range."""
    fields = dict(spec.gate)
    if not fields:
        return None
    axis, numbers = fields["axis"], {}
    experts = named[axis]
    for name, least in (("experts_active", 1), ("jitter", 0), ("capacity", 0)):
        text = fields.get(name, "0")
        try:
            value = evaluate(text, names, real=name != "experts_active")
        except ExpressionError as error:
            raise spec.error(f"gate: {name}: {error}{_at(names)}", "gate", name, kind=SizeError) from None
        whole = isinstance(value, int) or name != "experts_active"
        if not is_number(value) or not whole or not least <= value < math.inf:  # type: ignore[operator]
            kind = "whole number from 1" if least else "number from 0"
            raise spec.error(f"gate: {name} = {text} is {value}, not a {kind}", "gate", name, kind=SizeError)
        numbers[name] = value
    active = int(numbers["experts_active"])  # type: ignore[arg-type]
    if active > experts:
        raise spec.error(f"gate: experts_active = {fields['experts_active']} is {active}, but axis {axis!r} has "
                         f"{experts} experts", "gate", "experts_active", kind=SizeError)  # fmt: skip
    jitter, capacity = (float(numbers[n]) or None for n in ("jitter", "capacity"))  # type: ignore[arg-type]
    return Gate(axis, experts, active, jitter, capacity)


def _gathers(
    spec: Entry, term: Expanded, named: Mapping[str, int], names: Mapping[str, Value], number: str
) -> Iterator[Gather]:
    inputs = set(_names(term.input))
    here = {label(*a) for a in term.axes}
    for axis, text in spec.index:
        if axis not in inputs:
            continue
        by = tuple(a for a in named if a in names_in(text) and a in here)
        if not by:
            raise spec.error(f"index: {axis} = {text} reads no axis of the term", "index", axis)
        clash = [a for a in by if a in inputs]
        if clash:
            raise spec.error(f"index: {axis} is read through {clash[0]!r}, which stands in the same input view",
                             "index", axis)  # fmt: skip
        grid = [range(named[a]) for a in by]
        if math.prod(len(g) for g in grid) * len(spec.einsum) > MAX_TABLE:
            message = f"index: {axis} takes more than {MAX_TABLE} values in all terms"
            raise spec.error(message, "index", axis, kind=SizeError)
        held = tuple((name, value, repr(value)) for name, value in names.items() if name in names_in(text))
        try:
            table = _table(text, held, by, tuple(named[a] for a in by))
        except ExpressionError as error:
            raise spec.error(f"index: {error}", "index", axis, kind=SizeError) from None
        for values, value in zip(itertools.product(*grid), table, strict=True):
            if not isinstance(value, int) or not 0 <= value < named[axis]:
                where = ", ".join(f"{k}={v}" for k, v in zip(by, values, strict=True))
                raise spec.error(f"index: {axis} = {text} is {value} at {where}, outside 0 to {named[axis] - 1}",
                                 "index", axis, kind=SizeError)  # fmt: skip
        yield Gather(axis, by, table, text)  # type: ignore[arg-type]  # whole numbers all


@lru_cache(maxsize=128)
def _table(text: str, held: tuple[tuple[str, Value, str], ...], by: Axes, sizes: tuple[int, ...]) -> tuple[Value, ...]:
    """What `text` reads at every place along the axes `by`; `held` are names, values and, as 1 == 1.0, their texts."""
    names = {name: value for name, value, _ in held}
    return tuple(
        evaluate(text, {**names, **dict(zip(by, at, strict=True))}) for at in itertools.product(*map(range, sizes))
    )


def _loaded(spec: Entry, term: Expanded, gathers: Sequence[Gather], number: str) -> Axes:
    replaced = {g.axis: g.by for g in gathers}
    loaded = tuple(itertools.chain.from_iterable(replaced.get(a, (a,)) for a in _names(term.input)))
    if len(set(loaded)) < len(loaded):
        raise spec.error("two indexed axes of one input view are read through the same axis", "einsum", number)
    return loaded
