"""The dense matrix made anew in each call, and one product: for many tokens where the steps cannot keep dense's speed.

Every term's factors are contracted with one another, each such matrix of a term is put where the term's axes lie in the
whole one, and x meets that. Nothing declares it: the places follow from the axes. Gradients are left to autograd: one
product for the matrix, of which each term reads its own entries back.
"""

from __future__ import annotations

from dataclasses import replace

from structures.backends.planned.by_autograd import native
from structures.backends.planned.forward import chain_forward
from structures.backends.planned.layout import TOKENS, Product
from structures.backends.planned.price import Price
from structures.backends.planned.problem import Chain, ChainProblem, X, factor_number
from structures.backends.planned.program import DenseBlock, Embed, Multiply, Op, Plan, Want

ROWS, COLS = "<in>", "<out>"  # the axes of the matrix; no axis of a registry can have these names
MATRIX = "w"


def with_matrix(problem: ChainProblem) -> ChainProblem:
    """The problem with the sizes of the matrix's two axes."""
    return replace(problem, sizes=(*problem.sizes, (ROWS, problem.in_features), (COLS, problem.out_features)))


def product(bias: bool) -> Multiply:
    """y = x matrix + bias."""
    groups = Product((), (TOKENS,), (ROWS,), (COLS,))
    return Multiply("y", X, MATRIX, (TOKENS, ROWS), (ROWS, COLS), groups, bias=bias)


def through_matrix(problem: ChainProblem, price: Price, *, bias: bool, want: Want | None) -> list[Plan]:
    """The plan that makes the matrix; none where a term has no factor or reads a position of the matrix twice.

    Args:
        problem: all factors of each term in one group, with the sizes of the matrix.
        price: of that problem.
    """
    ops: list[Op] = []
    parts = []
    for chain in problem.chains:
        made = _matrix_of(problem, chain, price)
        if made is None:
            return []
        ops += made[0]
        parts.append(made[1])
    ops += [Embed(MATRIX, tuple(parts), (ROWS, COLS)), product(bias)]
    plan = Plan(problem, price.tokens, tuple(ops), seconds=sum(price(op) for op in ops))
    return [plan if want is None or not want.any else native(plan, price, want)]


def _matrix_of(problem: ChainProblem, chain: Chain, price: Price) -> tuple[tuple[Op, ...], DenseBlock] | None:
    """The operations that contract a term's factors with one another, and where the result belongs."""
    if not chain.nodes or len(chain.reads) > 1:
        return None
    rows, cols, name = chain.view[1:], chain.output[1:], chain.nodes[-1].right
    part = DenseBlock(name, (), rows, cols, chain.reads[0] if chain.reads else None)
    if part.read and len(set(part.places(problem))) < len(part.read.table):
        return None
    merges = chain.nodes[:-1]
    if not merges:
        return (), replace(part, view=problem.factors[factor_number(name)])
    wanted = tuple(dict.fromkeys(a for a in (*chain.loaded[1:], *cols) if a in merges[-1].axes))
    best = chain_forward(problem, replace(chain, nodes=merges, reads=(), output=wanted), price)[0]
    return best.ops, replace(part, view=best.tensors(name)[-1][1])
