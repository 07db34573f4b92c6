"""Which plan a structure gets: the groupings worth a search, each searched, and chunks of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from structures.backends.planned.backward import backwards
from structures.backends.planned.by_autograd import native
from structures.backends.planned.dense import product, through_matrix, with_matrix
from structures.backends.planned.figures import Rates
from structures.backends.planned.forward import forwards
from structures.backends.planned.grouping import groupings, merged_whole
from structures.backends.planned.layout import TOKENS
from structures.backends.planned.price import Price
from structures.backends.planned.problem import ChainProblem, X, as_written, pose
from structures.backends.planned.program import Op, Plan, Want, reads
from structures.structure import Structure

FORWARDS = 6  # forward programs that a backward is searched for
CHUNKS = (256, 512)  # tokens at a time
CHUNK_16_BITS = 1.3  # times: 16-bit products pack an operand each call; low rank, 4096 x 1024, took 2.3 times as long
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Conditions:
    """What a plan depends on besides the structure and the tokens."""

    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    bias: bool = True
    want: Want | None = None
    chunks: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEMSIZE.get(self.dtype, 4)


def candidates(structure: Structure, tokens: int, setting: Conditions, rates: Rates) -> list[Plan]:
    """All plans that the search keeps, cheapest first."""
    return [_with_parts(plan, setting, rates) for plan in _found(structure, tokens, setting, rates)]


@lru_cache(maxsize=1024)
def cheapest(structure: Structure, tokens: int, setting: Conditions, rates: Rates) -> Plan:
    """The first of the candidates."""
    return _with_parts(_found(structure, tokens, setting, rates)[0], setting, rates)


def _found(structure: Structure, tokens: int, setting: Conditions, rates: Rates) -> list[Plan]:
    found = _whole(structure, tokens, setting, rates)
    if setting.chunks and setting.want is None:
        for chunk in CHUNKS:
            if tokens >= 4 * chunk:
                parts = _whole(structure, chunk, setting, rates)[:4]
                found += [_repeated(plan, tokens, chunk, rates, setting.itemsize) for plan in parts]
    return sorted(found, key=lambda plan: plan.seconds)


def _whole(structure: Structure, tokens: int, setting: Conditions, rates: Rates) -> list[Plan]:
    itemsize = setting.itemsize
    found = []
    # A product of factors may leave the range of float16 where the chain, which meets the input first, does not.
    merges = setting.dtype != "float16"
    several = groupings(structure, tokens, rates, itemsize, train=setting.want is not None) if merges else None
    for grouping in [as_written(structure)] if several is None else several:
        problem = pose(structure, grouping, single=tokens == 1)
        price = Price(problem, tokens, rates, itemsize, train=setting.want is not None)
        found += plans(problem, price, bias=setting.bias, want=setting.want)
    found.sort(key=lambda plan: plan.seconds)
    if not merges and len(structure.factors) > 1:
        return found
    merged = with_matrix(pose(structure, merged_whole(structure, tokens, rates, itemsize)))
    price = Price(merged, tokens, rates, itemsize, train=setting.want is not None)
    passes = 1 if setting.want is None else 3
    if tokens > 1 and passes * price(product(setting.bias)) < found[0].seconds:
        found += through_matrix(merged, price, bias=setting.bias, want=setting.want)
        found.sort(key=lambda plan: plan.seconds)
    return found


def _repeated(plan: Plan, tokens: int, chunk: int, rates: Rates, itemsize: int) -> Plan:
    """The plan of one chunk run over all tokens; slicing costs two views and a write of the result."""
    again = -(-tokens // chunk)
    price = Price(plan.problem, chunk, rates, itemsize)
    once = sum(price(op) for op in plan.forward if TOKENS not in op.layout)
    seconds = once + again * (plan.seconds - once + 2 * rates.call) * (CHUNK_16_BITS if itemsize < 4 else 1.0)
    return replace(plan, tokens=tokens, chunk=chunk, seconds=seconds)


def _with_parts(plan: Plan, setting: Conditions, rates: Rates) -> Plan:
    train = setting.want is not None
    price = Price(plan.problem, plan.chunk or plan.tokens, rates, setting.itemsize, train)
    return replace(plan, parts=tuple(price(op) for op in (*plan.forward, *plan.backward)))


def plans(problem: ChainProblem, price: Price, *, bias: bool, want: Want | None = None) -> list[Plan]:
    """Plans kept by the search, cheapest first: forward ones, or with `want` pairs of forward and backward."""
    found = forwards(problem, price, bias=bias)
    if want is None or not want.any:
        return [plan for _, plan in found]
    pairs = []
    longest = max(len(chain.nodes) for chain in problem.chains)
    for partial, plan in found[: FORWARDS if longest <= 3 else 2]:
        for ops, seconds in backwards(problem, partial, price, want):
            seconds += price.rates.function + price.rates.node * (len(plan.forward) + len(ops))
            pairs.append(_paired(plan, ops, plan.seconds + seconds, want))
        pairs.append(native(plan, price, want))
    return sorted(pairs, key=lambda plan: plan.seconds)


def _paired(plan: Plan, ops: tuple[Op, ...], seconds: float, want: Want) -> Plan:
    made = {X, *(op.result for op in plan.forward)}
    saved = tuple(dict.fromkeys(name for op in ops for name in reads(op) if name in made))
    return replace(plan, backward=ops, want=want, saved=saved, seconds=seconds)
