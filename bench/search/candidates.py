"""What a search looks at: members of the space at two widths, family by family, and the registry's own entries."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structures
from bench.files.vocabulary import DENSE
from bench.search.request import SearchRequest
from bench.sweep.request import options_text
from structures import space
from structures.algebra.rank import rank_bounds
from structures.language.expressions import divisors
from structures.options import closest_options
from structures.space.term import MemberTerm, term
from structures.spec import Spec, SpecError
from structures.structure import Structure

FLOPS_A_BYTE = 8  # what a byte moved is priced at when candidates are ordered for timing
MOST_BLOCKS = 256
MOST_SHARED = 32  # blocks of two factors each
SAMPLES = 4000  # random members drawn of each family that is too large to enumerate


@dataclass(frozen=True)
class Candidate:
    """A structure to be measured; counts are of a token."""

    name: str
    family: str
    title: str
    params: int
    multiply_adds: int
    between: int  # numbers between the steps
    rank_bound: int
    named: bool = False
    terms: tuple[MemberTerm, ...] = ()
    bound: Structure | None = None

    def structure(self, request: SearchRequest) -> Structure:
        """Bound to the widths, from its Spec as it will be written."""
        return self.bound if self.bound is not None else self.member(request).structure

    def spec(self, request: SearchRequest) -> Spec:
        """The entry that the search writes: of a named one, a copy with its options as defaults."""
        if self.bound is None:
            return self.member(request).spec
        own = self.bound.spec
        fields = {"einsum": own.einsum, "sizes": own.sizes, "index": own.index, "init": own.init, "source": own.source}
        title = f"{own.title} ({options_text(dict(self.bound.options)) or 'no options'})"
        return Spec(f"search_{own.name}", options=self.bound.options, title=title, **fields)  # type: ignore[arg-type]

    def member(self, request: SearchRequest) -> space.Member:
        members = [space.of_sizes(t, request.in_features, request.out_features) for t in self.terms]
        if len(members) > 1:
            return space.add(*members, name=self.name)
        return space.of_sizes(self.terms[0], request.in_features, request.out_features, name=self.name)

    def price(self, request: SearchRequest) -> float:
        """An order for timing: FLOPs and bytes of a batch, the same on every machine."""
        moved = self.params + request.tokens * (request.in_features + request.out_features + 2 * self.between)
        return 2.0 * request.tokens * self.multiply_adds + FLOPS_A_BYTE * 4 * moved


def exponents(params: int, multiply_adds: int, rank: int, request: SearchRequest) -> tuple[float, float, float]:
    """(omega, psi, nu) at these widths: logarithms of the counts to the width's base; dense has (0, 1, 1)."""
    base = math.log(math.sqrt(request.dense))
    least = math.log(min(request.in_features, request.out_features)) or 1.0
    return math.log(multiply_adds / params) / base, math.log(rank) / least, math.log(multiply_adds) / base - 1


def all_candidates(request: SearchRequest) -> tuple[list[Candidate], Counter[str]]:
    """Those that meet the constraints, entries of the registry first; and how many were rejected for each reason."""
    rejected: Counter[str] = Counter()
    kept: dict[str, Candidate] = {}
    for candidate in itertools.chain(_entries(request, rejected), _members(request, rejected)):
        reason = refusal(candidate, request)
        if reason:
            rejected[reason] += 1
        elif candidate.name in kept:
            rejected["the same as another"] += 1
        else:
            kept[candidate.name] = candidate
    return list(kept.values()), rejected


def refusal(candidate: Candidate, request: SearchRequest) -> str | None:
    """Why a candidate's counts do not meet the constraints."""
    dense = request.dense
    if not request.params.holds(candidate.params / dense):
        return f"parameters outside {request.params}"
    if not request.flops.holds(candidate.multiply_adds / dense):
        return f"FLOPs outside {request.flops}"
    if candidate.rank_bound < request.rank * min(request.in_features, request.out_features):
        return f"rank below {request.rank:g} of full"
    if request.omega is not None:
        omega = exponents(candidate.params, candidate.multiply_adds, candidate.rank_bound, request)[0]
        if omega > request.omega + 1e-9:
            return f"omega above {request.omega:g}"
    if request.memory is not None:
        shared = request.tokens * (request.in_features + request.out_features)
        held = candidate.params + request.tokens * candidate.between + shared
        if held > request.memory * (dense + shared):
            return f"memory above {request.memory:g} of dense"
    return None


def chosen(candidates: Sequence[Candidate], request: SearchRequest) -> list[Candidate]:
    """Those that are timed: every named entry, then of each family alike the cheapest and, for a third, random ones."""
    dice = random.Random(request.seed)
    named = [c for c in candidates if c.named]
    families: dict[str, list[Candidate]] = {}
    for candidate in sorted((c for c in candidates if not c.named), key=lambda c: (c.price(request), c.name)):
        families.setdefault(candidate.family, []).append(candidate)
    found: list[Candidate] = []
    queues = []
    for _, members in sorted(families.items()):
        cheap = members[: request.candidates]
        others = members[len(cheap) // 2 :]
        spread = dice.sample(others, len(others))
        queues.append(iter(dict.fromkeys(_braided(cheap, spread))))
    while queues and len(found) < request.candidates - len(named):
        queues = [queue for queue in queues if (member := next(queue, None)) is not None and not found.append(member)]  # type: ignore[func-returns-value]
    return named + found[: max(0, request.candidates - len(named))]


def _braided(cheap: Sequence[Candidate], spread: Sequence[Candidate]) -> Iterator[Candidate]:
    """Two cheap ones, one random one, and so on."""
    others = iter(spread)
    for number, candidate in enumerate(cheap):
        yield candidate
        if number % 2 and (other := next(others, None)) is not None:
            yield other


# -- the registry's entries


def _entries(request: SearchRequest, rejected: Counter[str]) -> Iterator[Candidate]:
    """Each entry brought to the budget as the sweep does; those that cannot be are counted."""
    widths = request.in_features, request.out_features
    quantity, share = request.target
    for name in structures.names():
        if name == DENSE:
            continue
        try:
            options = dict(closest_options(name, *widths, **{quantity: share}).options)  # type: ignore[arg-type]
            bound = structures.get(name).bind(*widths, **options)  # type: ignore[arg-type]
        except SpecError:
            rejected["named entry that does not fit the widths"] += 1
            continue
        if getattr(bound, "gate", None) is not None:
            rejected["named entry with experts, whose weight depends on the input"] += 1
            continue
        rank = bound.rank if bound.rank is not None else rank_bounds(bound)[1]
        yield Candidate(
            name, "registry", options_text(options) or bound.title, bound.params, bound.flops() // 2,
            bound.activation_size, rank, named=True, bound=bound,
        )  # fmt: skip


# -- members


def _members(request: SearchRequest, rejected: Counter[str]) -> Iterator[Candidate]:
    yield from _two_factors(request, rejected)
    yield from _block_sums(request)
    yield from _blocks_and_rank(request)
    yield from _sampled(request, rejected)


def _made(family: str, request: SearchRequest, *terms: MemberTerm) -> Candidate:
    title = " + ".join(
        " ".join(f"{k}={n}" for k, n in t.sizes) + (f" strided {t.strided}" if t.strided else "") for t in terms
    )
    digest = hashlib.sha256(title.encode()).hexdigest()[:6]
    rank = min(request.in_features, request.out_features, sum(t.rank_bound for t in terms))
    counts = (sum(getattr(t, key) for t in terms) for key in ("params", "multiply_adds", "between"))
    return Candidate(f"{family}_{digest}", family, title, *counts, rank, terms=terms)


def _two_factors(request: SearchRequest, rejected: Counter[str]) -> Iterator[Candidate]:
    """The seven axes, alone and in the blocks of a shared axis, each with the bonds that meet the budgets."""
    common = math.gcd(request.in_features, request.out_features)
    for blocks in divisors(common):
        if blocks > MOST_SHARED:
            break
        inner, outer = request.in_features // blocks, request.out_features // blocks
        for (a, b, g), (d, e, f) in itertools.product(_triples(inner), _triples(outer)):
            if (b, e) > (a, d):
                continue  # the two factors swapped
            params = blocks * g * f * (a * d + b * e)
            steps = blocks * min(inner * d * f + outer * b * g, inner * e * f + outer * a * g)
            bonds = _bonds(request, params, steps, min(inner, outer))
            if not bonds:
                rejected["no bond size meets the budgets"] += 1
            for r in bonds:
                sizes = {"x12y": blocks, "x1": a, "x2": b, "x12": g, "1y": d, "2y": e, "12y": f, "12": r}
                yield _made("two_factors" if blocks == 1 else "blocks_of_two", request, term(sizes))


def _bonds(request: SearchRequest, params: int, steps: int, most: int) -> tuple[int, ...]:
    """Up to two sizes, the roundest numbers that bring both shares into their ranges."""
    dense = request.dense
    low = max(1, math.ceil(request.params.low * dense / params), math.ceil(request.flops.low * dense / steps))
    high = min(most, int(request.params.high * dense / params), int(request.flops.high * dense / steps))
    return tuple(sorted(range(low, min(high, low + 4096) + 1), key=lambda r: (r // (r & -r), -r))[:2])


def _block_sums(request: SearchRequest) -> Iterator[Candidate]:
    """Two block-diagonal terms, one of them read or written with a stride: DYAD, and others with two block sizes."""
    common = [n for n in divisors(math.gcd(request.in_features, request.out_features)) if 1 < n <= MOST_BLOCKS]
    for first, second in itertools.product(common, repeat=2):
        for strided in ("x", "y", "xy"):
            yield _made("block_sums", request, _blocks(request, first), _blocks(request, second, strided))


def _blocks_and_rank(request: SearchRequest) -> Iterator[Candidate]:
    common = [n for n in divisors(math.gcd(request.in_features, request.out_features)) if 1 < n <= MOST_BLOCKS]
    per_rank = request.in_features + request.out_features
    for blocks in common:
        yield _made("blocks", request, _blocks(request, blocks))
        left = request.params.high * request.dense - request.dense / blocks
        ranks = [r for r in (1 << k for k in range(20)) if r * per_rank <= left]
        for rank in {*ranks[-2:], int(left / per_rank) // 8 * 8} - {0}:
            if 0 < rank <= left / per_rank:
                low = term({"x1": request.in_features, "12": rank, "2y": request.out_features})
                yield _made("blocks_and_rank", request, _blocks(request, blocks), low)


def _blocks(request: SearchRequest, blocks: int, strided: str = "") -> MemberTerm:
    inner, outer = request.in_features // blocks, request.out_features // blocks
    return term({"x1y": blocks, "x1": inner, "1y": outer}, strided)


def _sampled(request: SearchRequest, rejected: Counter[str]) -> Iterator[Candidate]:
    """Random three-factor terms, and sums of two random two-factor terms."""
    dice = random.Random(request.seed + 1)
    three = ("x1", "x12", "x123", "x2"), ("3y", "23y", "123y", "2y"), ("12", "23")
    two = ("x1", "x12"), ("2y", "12y"), ("12",)
    for family, kinds, count in (("three_factors", three, 1), ("two_factor_sums", two, 2)):
        for _ in range(SAMPLES):
            try:
                terms = [_drawn(request, dice, *kinds) for _ in range(count)]
            except SpecError:
                rejected["a drawn term without an axis for a factor"] += 1
                continue
            if count == 2:
                terms[1] = term(dict(terms[1].sizes), dice.choice(["", "x", "y"]))
            yield _made(family, request, *terms)


def _drawn(
    request: SearchRequest, dice: random.Random, inputs: Sequence[str], outputs: Sequence[str], bonds: Sequence[str]
) -> MemberTerm:
    sizes: dict[str, int] = {}
    for kinds, width in ((inputs, request.in_features), (outputs, request.out_features)):
        weights = [dice.random() for _ in kinds]
        for prime in _primes(width):
            kind = dice.choices(kinds, weights)[0]
            sizes[kind] = sizes.get(kind, 1) * prime
    sizes |= {kind: 1 << dice.randint(0, 6) for kind in bonds}
    return term(sizes)


def _triples(n: int) -> list[tuple[int, int, int]]:
    return [(a, b, n // a // b) for a in divisors(n) for b in divisors(n // a)]


def _primes(n: int) -> Iterator[int]:
    for p in divisors(n)[1:]:
        while n % p == 0:
            yield p
            n //= p
