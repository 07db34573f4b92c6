"""Options that give an entry a wanted share of dense's parameters or FLOPs, found by trying."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from structures import registry
from structures.algebra.binding import build
from structures.language.expressions import divisors
from structures.spec import MAX_WIDTH, SizeError, Spec

CLOSE = 0.02  # shares that differ by less count as met equally well
# Significant bits of the whole numbers tried: where two options change, where one does, and around the closest so far.
COARSE_BITS, FINE_BITS, FINEST_BITS = 1, 4, 7
SEEDS = 3  # combinations of two options from which each option is then tried finely
FAR = 16  # times its default that a whole number may take where two options change
CLOSEST = 2  # options around which whole numbers are tried most finely
PROBES = (0, 1, 2, 0.1, 0.5)  # values by which an element of a list is found to be free
MOVE = 0.25  # what moves between two exponents of a list

Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class _Found:
    """Options that can be bound, and what they cost as shares of dense."""

    options: Options
    params: float
    flops: float


def fit_options(
    name_or_spec: str | Spec,
    in_features: int,
    out_features: int,
    *,
    params: float | None = None,
    flops: float | None = None,
) -> dict[str, object]:
    """The options with which an entry comes closest to a share of dense's parameters, or of its FLOPs.

    Whole numbers are tried over divisors of the widths and a grid that ends 1 % apart, one option at a time from the
    defaults, then two together; lists of exponents over hundredths and quarters. Among options whose shares are
    equally close (within 2 %) those win that need no more of the other quantity than dense does, then those that change
    fewer options, then the closer, the rounder, and those nearest to the defaults. Nothing is random.

    Args:
        params: share of in_features * out_features wanted, such as 0.25; or
        flops: share of dense's FLOPs a token wanted. One of the two is given.
    Returns:
        a value for every option of the entry; `bind` takes them. An entry without options gives {}. No entry meets
        every share: compare what is wanted with what `bind(...).params` says.
    Raises:
        ValueError: not exactly one share, one that is not positive, or widths that no options fit.
        KeyError: no such entry.

    >>> fit_options("low_rank", 1024, 4096, params=0.25)
    {'rank': 204}
    >>> fit_options("dyad_it", 768, 3072, flops=0.125)
    {'n_blocks': 16}
    """
    spec = registry.get(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    if (params is None) == (flops is None):
        raise ValueError(f"{spec.name}: give one share, params=0.25 or flops=0.25")
    quantity, share = ("params", params) if params is not None else ("flops", flops)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        raise ValueError(f"{spec.name}: {quantity} is a share of dense above 0, such as 0.25; found {share!r}")
    return dict(_fit(spec, in_features, out_features, quantity, float(share)))


@lru_cache(maxsize=4096)
def _fit(spec: Spec, in_features: int, out_features: int, quantity: str, share: float) -> Options:
    start = _start(spec, in_features, out_features)
    search = _Search(spec, in_features, out_features, quantity, share, start)
    return search.best().options


def _start(spec: Spec, in_features: int, out_features: int) -> Options:
    """The defaults as values; where they do not fit the widths, the first whole numbers that do."""
    try:
        return spec.bind(in_features, out_features).options
    except SizeError as error:
        if not all(1 <= width <= MAX_WIDTH for width in (in_features, out_features)):
            raise
        names = [name for name, value in spec.options if isinstance(value, int)]
        common = divisors(math.gcd(in_features, out_features))
        for values in itertools.islice(itertools.product(common, repeat=len(names)), 4096):
            found = _share(spec, in_features, out_features, tuple(zip(names, values, strict=True)))
            if names and found is not None:
                return found.options
        raise error


class _Search:
    """Everything tried for one entry, widths and share."""

    def __init__(self, spec: Spec, in_features: int, out_features: int, quantity: str, share: float, start: Options):
        self.spec, self.widths = spec, (in_features, out_features)
        self.quantity, self.share, self.start = quantity, share, start
        self.free = {name: self.free_elements(name, value) for name, value in start if isinstance(value, tuple)}

    def best(self) -> _Found:
        pool = self.refined(self.tried([self.start, *self.around(self.start)]))
        if not any(self.is_good(found) for found in pool):
            rough = self.tried(self.together())
            for seed in self.promising(rough)[:SEEDS]:
                rough += self.tried(self.around(seed.options, within=2.0))
            pool += self.refined(rough)
        closest = min(self.distance(found) for found in pool)
        return min(pool, key=lambda f: (self.distance(f) > closest + CLOSE, *self.order(f)))

    def tried(self, several: Iterable[Options]) -> list[_Found]:
        return [found for options in several if (found := _share(self.spec, *self.widths, options)) is not None]

    def free_elements(self, name: str, value: tuple[float, ...]) -> tuple[int, ...]:
        """Elements of a list that can be changed alone; the others are bound together, as exponents that sum to 1."""

        def fits(position: int) -> bool:
            several = [
                (*value[:position], other, *value[position + 1 :]) for other in PROBES if other != value[position]
            ]
            rest = [pair for pair in self.start if pair[0] != name]
            return any(_share(self.spec, *self.widths, ((name, v), *rest)) for v in several)

        return tuple(position for position in range(len(value)) if fits(position))

    def values(self, name: str, value: object, bits: int) -> Sequence[object]:
        """What is tried in place of a value of an option."""
        if isinstance(value, tuple):
            free = self.free[name]
            return (
                _moved(value, free)
                if bits == COARSE_BITS
                else _changed_element(value, free)
                if bits == FINE_BITS
                else ()
            )
        if isinstance(value, float):
            return [round(k / 100, 2) for k in range(0, 101, 10 if bits == COARSE_BITS else 1)]
        numbers = _whole_numbers(self.widths, bits)
        if bits > COARSE_BITS or not isinstance(value, int):
            return numbers
        return [n for n in numbers if n <= FAR * max(1, value)]

    def refined(self, pool: list[_Found]) -> list[_Found]:
        """The pool, and beside those that come closest the whole numbers near the ones they changed."""
        finer: list[_Found] = []
        for found in sorted(pool, key=self.distance)[:CLOSEST]:
            changed = {name for (name, old), (_, new) in zip(self.start, found.options, strict=True) if old != new}
            finer += self.tried(self.around(found.options, within=1.1, bits=FINEST_BITS, only=changed))
        return pool + finer

    def promising(self, pool: list[_Found]) -> list[_Found]:
        return sorted(pool, key=lambda f: (self.excess(f), self.distance(f), self.order(f)))

    def distance(self, found: _Found) -> float:
        realised = getattr(found, self.quantity)
        return abs(math.log(realised / self.share)) if realised > 0 else math.inf

    def excess(self, found: _Found) -> bool:
        return (found.flops if self.quantity == "params" else found.params) > 1 + CLOSE

    def is_good(self, found: _Found) -> bool:
        return self.distance(found) <= CLOSE and not self.excess(found)

    def order(self, found: _Found) -> tuple[object, ...]:
        """What makes options better among those that meet the share equally well."""
        pairs = [(old, new) for (_, old), (_, new) in zip(self.start, found.options, strict=True)]
        changed = sum(old != new for old, new in pairs)
        closeness = self.distance(found) // (CLOSE / 2) if math.isfinite(self.distance(found)) else math.inf
        return self.excess(found), changed, closeness, round(sum(_change(old, new) for old, new in pairs), 6)

    def around(
        self, options: Options, within: float = math.inf, bits: int = FINE_BITS, only: Container[str] | None = None
    ) -> Iterator[Options]:
        """One option changed, finely; whole numbers by no more than a factor."""
        for position, (name, value) in enumerate(options):
            if only is None or name in only:
                for other in self.values(name, value, bits):
                    if not isinstance(value, int) or value / within <= other <= value * within:  # type: ignore[operator]
                        yield (*options[:position], (name, other), *options[position + 1 :])

    def together(self) -> Iterator[Options]:
        """One or two options changed, coarsely."""
        coarse = [(name, self.values(name, value, COARSE_BITS)) for name, value in self.start]
        if len(coarse) == 1:
            yield from (((coarse[0][0], value),) for value in coarse[0][1])
        for (i, (first, some)), (j, (second, others)) in itertools.combinations(enumerate(coarse), 2):
            for one, other in itertools.product(some, others):
                options = list(self.start)
                options[i], options[j] = (first, one), (second, other)
                yield tuple(options)


@lru_cache(maxsize=65536)
def _share(spec: Spec, in_features: int, out_features: int, options: Options) -> _Found | None:
    """The shares of these options; None where they do not fit."""
    try:  # not bind(), which looks for other values to propose whenever a size does not fit
        structure = build(spec, in_features, out_features, dict(options))
    except SizeError:
        return None
    return _Found(
        structure.options, structure.params / structure.dense_params, structure.flops() / structure.dense_flops()
    )


def _change(old: object, new: object) -> float:
    """How far a value lies from the default: octaves, more for numbers that are not round or switch a part off."""
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


def _changed_element(values: tuple[float, ...], free: Sequence[int]) -> list[tuple[float, ...]]:
    """A list with one element changed: exponents in hundredths, whole numbers one by one."""
    whole = all(isinstance(v, int) for v in values)
    steps: Sequence[float] = range(1, 65) if whole else [round(k / 100, 2) for k in range(101)]
    return [(*values[:i], step, *values[i + 1 :]) for i in free for step in steps]


@lru_cache(maxsize=256)
def _moved(values: tuple[float, ...], free: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """A list of exponents with up to two moves of a quarter from one to another, or one move and one tenth set."""
    once = [values, *_moves(values)]
    twice = [moved for start in once for moved in _moves(start)]
    tenths = [(*v[:i], k / 10, *v[i + 1 :]) for v in once for i in free for k in range(11)]
    return tuple(dict.fromkeys([*once, *twice, *tenths]))


def _moves(values: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    for i, j in itertools.permutations(range(len(values)), 2):
        if values[i] >= MOVE:
            moved = list(values)
            moved[i], moved[j] = round(values[i] - MOVE, 6), round(values[j] + MOVE, 6)
            yield tuple(moved)
