"""The meaning of a structure: one whole-term einsum, in the given dtype. Never timed, and simple enough to trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from structures.algebra.steps import Axes
from structures.structure import Structure, Term

MAX_LETTERS = 52  # what torch.einsum can name


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y = W x + bias, straight from the einsum.

    With a gate, W is a token's own: the sum over its chosen experts, each term at that place of the expert axis times
    the expert's weight. The largest logits are chosen, the first of equal ones.

    Args:
        x: (..., in_features).
        factors: one tensor a factor, of `structure.factor_shapes`; with a gate the router (experts, in_features) last.
        bias: (out_features,) or None.
    Returns:
        (..., out_features).
    Raises:
        ValueError: a term has more than 51 axes larger than 1.
    """
    tokens = x.reshape(-1, structure.in_features)
    if structure.gate is not None:
        y = mixture(structure, tokens, factors[:-1], gates(structure, tokens, factors[-1]))
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], structure.out_features)
    y = torch.stack([_term(structure, term, tokens, factors) for term in structure.terms]).sum(0)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], structure.out_features)


def to_dense(
    structure: Structure, factors: Sequence[Tensor], weights: Tensor | None = None, like: Tensor | None = None
) -> Tensor:
    """W of shape (out_features, in_features), in the dtype of the factors.

    Args:
        weights: of a structure with a gate, each expert's weight (experts,); `factors` are then without the router.
        like: a tensor of the dtype and device wanted where there is no factor that has them.
    """
    like = factors[0] if factors else torch.empty(()) if like is None else like
    identity = torch.eye(structure.in_features, dtype=like.dtype, device=like.device)
    if weights is not None:
        return mixture(structure, identity, factors, weights.to(like).expand(len(identity), -1)).t().contiguous()
    return apply(structure, identity, factors).t().contiguous()


def gates(structure: Structure, x: Tensor, router: Tensor) -> Tensor:
    """(tokens, experts): the weight of every expert for every token, zero for those not chosen.

    Logits are in float32 or wider whatever the dtype of x: the choice of an expert is no matter of rounding.
    """
    gate = structure.gate
    assert gate is not None
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = torch.einsum("ti,ei->te", x.to(wide), router.to(wide))
    # an expert's place: how many logits are larger, or as large and earlier
    earlier = torch.ones(gate.experts, gate.experts, device=x.device).tril(-1).bool()
    mine, other = logits[:, :, None], logits[:, None, :]
    place = ((other > mine) | ((other == mine) & earlier)).sum(2)
    return torch.where(place < gate.active, logits, -torch.inf).softmax(1)


def mixture(structure: Structure, x: Tensor, factors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The terms of every expert times its weight (tokens, experts), and the terms that hold no expert once."""
    gate = structure.gate
    assert gate is not None
    alone = replace(structure, sizes=tuple((a, 1 if a == gate.axis else n) for a, n in structure.sizes), gate=None)
    pieces = []
    for term in structure.terms:
        if not any(gate.axis in structure.factors[f] for f in term.factors):
            pieces.append(_term(structure, term, x, factors))
            continue
        for expert in range(gate.experts):
            own = [
                f.narrow(axes.index(gate.axis), expert, 1) if gate.axis in axes else f
                for f, axes in zip(factors, structure.factors, strict=True)
            ]
            pieces.append(weights[:, expert, None].to(x.dtype) * _term(alone, term, x, own))
    return torch.stack(pieces).sum(0)


def _term(structure: Structure, term: Term, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    loaded = _load(structure, term, x)
    named = dict.fromkeys(a for axes in (term.loaded, term.output) for a in axes)
    named.update(dict.fromkeys(a for f in term.factors for a in structure.factors[f]))
    wide = [a for a in named if structure.size[a] > 1]
    if len(wide) >= MAX_LETTERS:
        raise ValueError(f"{structure.name}: a term has {len(wide)} axes; einsum names at most {MAX_LETTERS - 1}")
    number = {a: i + 1 for i, a in enumerate(wide)}  # 0 is the token

    def operand(tensor: Tensor, axes: Axes, *first: int) -> tuple[Tensor, list[int]]:
        kept = [a for a in axes if a in number]
        leading = tensor.shape[: len(first)]
        return tensor.reshape((*leading, *structure.shape(tuple(kept)))), [*first, *(number[a] for a in kept)]

    operands = [*operand(loaded, term.loaded, 0)]
    for f in term.factors:
        operands += operand(factors[f], structure.factors[f])
    y = torch.einsum(*operands, [0, *(number[a] for a in term.output if a in number)])
    return y.reshape(-1, structure.out_features)


def _load(structure: Structure, term: Term, x: Tensor) -> Tensor:
    """x as the term's input view, gathered axes read through their tables: (tokens, *term.loaded)."""
    plain = {f"a{i}": structure.size[a] for i, a in enumerate(term.input)}  # einops takes fewer names than we do
    z, axes = rearrange(x, f"t ({' '.join(plain)}) -> t {' '.join(plain)}", **plain), term.input
    for gather in term.gathers:
        at = axes.index(gather.axis)
        index = torch.tensor(gather.table, device=x.device)
        z = z.index_select(1 + at, index)
        z = z.reshape(*z.shape[: 1 + at], *structure.shape(gather.by), *z.shape[2 + at :])
        axes = (*axes[:at], *gather.by, *axes[at + 1 :])
    return z
