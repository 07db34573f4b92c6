"""Options that give an entry a wanted share of dense's parameters or FLOPs.

The rule, the same at every width, so that the points of one curve are one kind of structure:

1. An entry starts from its declared defaults, and its last option alone is changed, if that comes within NEAR of the
   share; of a list one element is changed, the last one first, before several are.
2. Else an earlier option is changed with it, as little as it takes.
3. What needs more of the other quantity than dense does, drops a term or switches a part off (a rank of 0, say) is
   taken only where nothing else is near.
4. Of the values that are left, the closest wins; among those equally close (within CLOSE) the one nearest the default,
   counted in octaves, and the rounder.
5. What is padded is tried at fewer values: changes of one option, and the best of all where nothing is padded.
6. Where nothing comes near, the closest of all that was tried is taken, and `fit_options` warns.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from structures import registry
from structures.algebra.binding import build
from structures.algebra.padding import richest
from structures.language import words
from structures.language.entry import PAD
from structures.language.expressions import divisors
from structures.spec import MAX_WIDTH, SizeError, Spec

NEAR = 0.15  # how far from a share options may stay and still be said to meet it
CLOSE = 0.02  # shares that differ by less count as met equally well
COARSE_BITS, FINE_BITS, FINEST_BITS = 1, 4, 7  # significant bits of the whole numbers tried, first and around the best
FAR = 16  # times its default that an earlier option may take
MOVE = 0.25  # what moves between two exponents of a list

Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Fit:
    """Options that can be bound, and what they cost as shares of dense."""

    options: Options
    params: float
    flops: float
    terms: int  # that are left of the entry's einsum

    def share(self, quantity: str) -> float:
        """The share of `params` or `flops`."""
        return self.params if quantity == "params" else self.flops


def fit_options(
    name_or_spec: str | Spec,
    in_features: int,
    out_features: int,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    pad: bool | None = None,
) -> dict[str, object]:
    """The options with which an entry meets a share of dense's parameters, or of its FLOPs, by the rule of this module.

    Args:
        params: share of in_features * out_features wanted, 0.25 or "25%" (more than dense has: "200%"); or
        flops: share of dense's FLOPs a token wanted. One of the two is given.
        pad: as `bind` takes it: where it is given it is among the options returned.
    Returns:
        a value for every option of the entry; `bind` takes them. An entry without options gives {}.
    Raises:
        ValueError: not exactly one share, one that is not above 0, a number above 1, or widths that no options fit.
        KeyError: no such entry.
    Warns:
        UserWarning: nothing within 15 % of the share was found, or only by dropping a term; what was found is named.

    >>> fit_options("low_rank", 1024, 4096, params=0.25)
    {'rank': 204}
    >>> fit_options("dyad_it", 768, 3072, flops=0.125)
    {'n_blocks': 16}
    """
    spec = registry.get(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    found = closest_options(spec, in_features, out_features, params=params, flops=flops, pad=pad)
    quantity, wanted = _wanted(spec, params, flops)
    at = f"{spec.name}: {in_features} -> {out_features}: options {dict(found.options)}"
    if dict(found.options).keys() - {PAD} and _distance(found, quantity, wanted) > math.log1p(NEAR):
        reached = f"reach {found.share(quantity):.3g} of dense's {quantity}, the nearest there is to {wanted:g}"
        warnings.warn(f"{at} {reached}", stacklevel=2)
    if found.terms < (start := _start(spec, in_features, out_features, pad)).terms:
        warnings.warn(f"{at} leave {found.terms} of {start.terms} terms", stacklevel=2)
    return dict(found.options)


def closest_options(
    name_or_spec: str | Spec,
    in_features: int,
    out_features: int,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    pad: bool | None = None,
) -> Fit:
    """`fit_options` with the shares that are reached, and without a warning."""
    spec = registry.get(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    quantity, share = _wanted(spec, params, flops)
    found = _fit(spec, in_features, out_features, quantity, share, pad)
    return found if pad is None else replace(found, options=(*found.options, (PAD, pad)))


def _wanted(spec: Spec, params: float | str | None, flops: float | str | None) -> tuple[str, float]:
    """What is to be met, and its share of dense."""
    if (params is None) == (flops is None):
        raise ValueError(f"{spec.name}: give one share, params=0.25 or flops=0.25")
    quantity, given = ("params", params) if params is not None else ("flops", flops)
    share = words.share(given) if isinstance(given, str) else given
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        raise ValueError(f'{spec.name}: {quantity} is a share of dense above 0, such as 0.25 or "25%"; found {given!r}')
    if share > 1 and "%" not in str(given):
        way_out = f'write {quantity}="{share:g}%", or "{share * 100:g}%" if that is meant'
        raise ValueError(f"{spec.name}: {quantity}={share:g} is {share:g} times dense; {way_out}")
    return quantity, float(share)


@lru_cache(maxsize=4096)
def _fit(spec: Spec, in_features: int, out_features: int, quantity: str, share: float, pad: bool | None) -> Fit:
    return _Search(spec, in_features, out_features, quantity, share, pad).best()


def _start(spec: Spec, in_features: int, out_features: int, pad: bool | None) -> Fit:
    """The defaults as values; where they do not fit the widths, the first whole numbers that do."""
    try:
        given: dict[str, object] = {} if pad is None else {PAD: pad}
        options = spec.bind(in_features, out_features, **given).options
    except SizeError as error:
        if not all(1 <= width <= MAX_WIDTH for width in (in_features, out_features)):
            raise
        names = [name for name, value in spec.options if isinstance(value, int)]
        common = divisors(math.gcd(in_features, out_features))
        for values in itertools.islice(itertools.product(common, repeat=len(names)), 4096):
            found = _share(spec, in_features, out_features, tuple(zip(names, values, strict=True)), pad)
            if names and found is not None:
                return found
        raise error
    found = _share(spec, in_features, out_features, _own(options), pad)
    assert found is not None  # they were bound
    return found


class _Search:
    """What is tried for one entry, widths and share."""

    def __init__(self, spec: Spec, in_features: int, out_features: int, quantity: str, share: float, pad: bool | None):
        self.spec, self.widths, self.pad = spec, (in_features, out_features), pad
        self.pads = spec.pad if pad is None else pad
        self.quantity, self.wanted = quantity, share
        self.start = _start(spec, in_features, out_features, pad)

    def best(self) -> Fit:
        """The best by the rule."""
        if not self.start.options:
            return self.start
        last = len(self.start.options) - 1
        bits = COARSE_BITS if self.pads and isinstance(self.start.options[last][1], tuple) else FINE_BITS
        found = [self.start, *self.finer(self.tried(self.changed(self.start.options, last, bits)), last)]
        if not any(self.is_near(fit) for fit in found):
            if self.pads:
                found += self.tried(self.unpadded())
                for earlier in range(last):
                    bits = COARSE_BITS if isinstance(self.start.options[earlier][1], tuple) else COARSE_BITS + 2
                    found += self.tried(self.changed(self.start.options, earlier, bits))
                return self.chosen(found)
            for earlier in range(last):
                found += self.tried(self.changed(self.start.options, earlier, FINE_BITS))
                for options in self.changed(self.start.options, earlier, COARSE_BITS):
                    found += self.tried([options, *self.changed(options, last, FINE_BITS)])
        return self.chosen(found)

    def chosen(self, found: Sequence[Fit]) -> Fit:
        near = [fit for fit in found if self.is_near(fit)]
        if not near:
            distance = min(self.distance(fit) for fit in found)
            near = [fit for fit in found if self.distance(fit) <= distance + CLOSE]
        return min(near, key=self.order)

    def unpadded(self) -> Iterator[Options]:
        """The best options where nothing is padded, here and at widths that more options fit.

        A trial that pads looks at many pairs of widths and takes 20 to 30 ms. Several options together, or lists, have
        ten thousands of values: only these two and coarse changes of single options are tried.
        """
        for widths in (self.widths, tuple(map(richest, self.widths))):
            with contextlib.suppress(SizeError):
                yield _fit(self.spec, *widths, self.quantity, self.wanted, False).options

    def tried(self, several: Iterable[Options]) -> list[Fit]:
        return [fit for options in several if (fit := _share(self.spec, *self.widths, options, self.pad))]

    def changed(self, options: Options, position: int, bits: int) -> Iterator[Options]:
        """One option changed: whole numbers of so many significant bits, hundredths, or moves within a list."""
        name, value = options[position]
        for other in self.values(value, bits):
            yield (*options[:position], (name, other), *options[position + 1 :])

    def values(self, value: object, bits: int) -> Sequence[object]:
        if isinstance(value, tuple):
            return _lists(value) if bits > COARSE_BITS or not self.pads else _coarse_lists(value)
        if isinstance(value, float):
            return [round(k / 100, 2) for k in range(0, 101, 10 if bits == COARSE_BITS else 1)]
        numbers = _whole_numbers(self.widths, bits)
        if bits > COARSE_BITS or not isinstance(value, int):
            return numbers
        return [n for n in numbers if n <= FAR * max(1, value)]

    def finer(self, found: list[Fit], position: int) -> list[Fit]:
        """With the whole numbers within a tenth of the closest ones found, or where it pads with lists near theirs."""
        for fit in sorted(found, key=self.distance)[:2]:
            name, value = fit.options[position]
            near: Iterable[object] = ()
            if isinstance(value, int):
                near = (n for n in _whole_numbers(self.widths, FINEST_BITS) if value / 1.1 <= n <= value * 1.1)
            elif self.pads and isinstance(value, tuple):
                near = _hundredths(value, self.start.options[position][1])  # type: ignore[arg-type]
            rest = fit.options
            found = found + self.tried((*rest[:position], (name, n), *rest[position + 1 :]) for n in near)
        return found

    def distance(self, fit: Fit) -> float:
        return _distance(fit, self.quantity, self.wanted)

    def is_spoiled(self, fit: Fit) -> bool:
        """Whether it costs more of the other quantity than dense does, or lacks a part that the start has."""
        other = "flops" if self.quantity == "params" else "params"
        pairs = zip(self.start.options, fit.options, strict=True)
        off = any(isinstance(new, int) and new == 0 != old for (_, old), (_, new) in pairs)
        return fit.share(other) > 1 + CLOSE or fit.terms < self.start.terms or off

    def is_near(self, fit: Fit) -> bool:
        return self.distance(fit) <= math.log1p(NEAR) and not self.is_spoiled(fit)

    def changes(self, fit: Fit) -> list[float]:
        """How far each option lies from its default, in the order declared."""
        pairs = zip(self.start.options, fit.options, strict=True)
        return [round(_change(old, new), 6) for (_, old), (_, new) in pairs]

    def order(self, fit: Fit) -> tuple[float, ...]:
        """What makes options better among those that are near, or equally far."""
        distance = self.distance(fit)
        closeness = distance // (CLOSE / 2) if math.isfinite(distance) else math.inf
        *earlier, last = self.changes(fit)
        elements = _elements(self.start.options, fit.options)
        return self.is_spoiled(fit), sum(earlier), *elements, closeness, last


def _distance(fit: Fit, quantity: str, wanted: float) -> float:
    """Logarithm of how far the share lies from what is wanted."""
    share = fit.share(quantity)
    return abs(math.log(share / wanted)) if share > 0 else math.inf


@lru_cache(maxsize=65536)
def _share(spec: Spec, in_features: int, out_features: int, options: Options, pad: bool | None) -> Fit | None:
    """The shares of these options; None where they do not fit."""
    try:  # not bind(), which looks for other values to propose whenever a size does not fit
        bound = build(spec, in_features, out_features, dict(options) if pad is None else {**dict(options), PAD: pad})
    except SizeError:
        return None
    return Fit(
        _own(bound.options), bound.params / bound.dense_params, bound.flops() / bound.dense_flops(), len(bound.terms)
    )


def _own(options: Options) -> Options:
    """The entry's own: how it is padded is no matter of a share."""
    return tuple(pair for pair in options if pair[0] != PAD)


def _elements(start: Options, options: Options) -> tuple[int, int]:
    """How many elements of lists differ, and how far from a list's end the first of them stands."""
    differ = [
        len(old) - i
        for (_, old), (_, new) in zip(start, options, strict=True)
        if isinstance(old, tuple) and isinstance(new, tuple)
        for i, (a, b) in enumerate(zip(old, new, strict=True))
        if a != b
    ]
    return len(differ), max(differ, default=0)


def _change(old: object, new: object) -> float:
    """How far a value lies from the default: octaves, and more where it is not round or all but off."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        moved: float = sum(abs(float(a) - float(b)) for a, b in zip(old, new, strict=True))
        return moved + float(sum(abs(v * 20 - round(v * 20)) > 1e-6 for v in new))
    if not isinstance(old, int) or not isinstance(new, int) or old == new:
        return abs(float(new) - float(old))  # type: ignore[arg-type]
    odd = new // (new & -new) if new else 1
    return abs(math.log2(new + 1) - math.log2(old + 1)) + 0.3 * math.log2(odd) + 2 * (new <= 1 < old)


@lru_cache(maxsize=256)
def _whole_numbers(widths: tuple[int, int], bits: int) -> tuple[int, ...]:
    """0 and the numbers of up to `bits` significant bits up to the larger width; the widths' divisors but coarsely."""
    numbers = {0}
    for exponent in range(max(widths).bit_length()):
        numbers.update(m << exponent for m in range(1, 1 << bits))
    if bits > COARSE_BITS:
        numbers.update(*(divisors(width) for width in widths))
    return tuple(sorted(n for n in numbers if n <= max(widths)))


@lru_cache(maxsize=256)
def _lists(values: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """A list with one element changed; of exponents also up to two moves of a quarter, or one move and a tenth set."""
    whole = all(isinstance(v, int) for v in values)
    steps: Sequence[float] = range(1, 65) if whole else [round(k / 100, 2) for k in range(101)]
    once = [*_moves(values)]
    twice = [moved for start in once for moved in _moves(start)]
    one = [(*values[:i], step, *values[i + 1 :]) for i in range(len(values)) for step in steps]
    tenths = [(*v[:i], k / 10, *v[i + 1 :]) for v in once for i in range(len(v)) for k in range(11)]
    return tuple(dict.fromkeys([*one, *once, *twice, *tenths]))


def _coarse_lists(values: tuple[float, ...]) -> list[tuple[float, ...]]:
    """A list with one element changed to a power of two, or where it holds fractions to a tenth."""
    steps = [1 << k for k in range(7)] if all(isinstance(v, int) for v in values) else [k / 10 for k in range(11)]
    return [(*values[:i], step, *values[i + 1 :]) for i in range(len(values)) for step in steps]


def _hundredths(values: tuple[float, ...], start: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """A list with an element that was changed to a tenth moved by up to five hundredths."""
    for i, (value, first) in enumerate(zip(values, start, strict=True)):
        if value != first and not all(isinstance(v, int) for v in start):
            yield from ((*values[:i], round(value + k / 100, 2), *values[i + 1 :]) for k in range(-5, 6))


def _moves(values: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    for i, j in itertools.permutations(range(len(values)), 2):
        if values[i] >= MOVE:
            moved = list(values)
            moved[i], moved[j] = round(values[i] - MOVE, 6), round(values[j] + MOVE, 6)
            yield tuple(moved)
