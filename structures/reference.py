"""The meaning of a structure: one whole einsum a link, in the given dtype. Never timed, and simple enough to trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from structures import constants
from structures.algebra.steps import Axes
from structures.structure import Structure, Term

MAX_LETTERS = 52  # what torch.einsum can name


def apply(
    structure: Structure,
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None = None,
    fixed: Sequence[Tensor] | None = None,
) -> Tensor:
    """y = W x + bias, straight from the einsum.

    With a gate, W is a token's own: the sum over its chosen experts, each term at that place of the expert axis times
    the expert's weight. The largest logits are chosen, the first of equal ones.

    Args:
        x: (..., in_features).
        factors: one tensor a factor, of `structure.factor_shapes`; with a gate the router (experts, in_features) last.
        bias: (out_features,) or None.
        fixed: numbers in place of those of the constants.
    Returns:
        (..., out_features).
    Raises:
        ValueError: a term has more than 51 axes larger than 1.
    """
    wide, tall = structure.widths
    tokens = x.reshape(-1, wide)
    if structure.gate is not None:
        y = mixture(structure, tokens, factors[:-1], gates(structure, tokens, factors[-1]), fixed)
    else:
        held = [*factors, *(constants.tensors(structure, x) if fixed is None else fixed)]
        z = _padded(structure, tokens)
        y = torch.stack([_term(structure, term, z, held) for term in structure.terms]).sum(0)[:, :tall]
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], tall)


def _padded(structure: Structure, x: Tensor) -> Tensor:
    """x with zeros up to the width that runs."""
    return torch.nn.functional.pad(x, (0, structure.in_features - x.shape[1]))


def to_dense(
    structure: Structure, factors: Sequence[Tensor], weights: Tensor | None = None, like: Tensor | None = None
) -> Tensor:
    """W of shape (out_features, in_features), in the dtype of the factors.

    Args:
        weights: of a structure with a gate, each expert's weight (experts,); `factors` are then without the router.
        like: a tensor of the dtype and device wanted where there is no factor that has them.
    """
    like = factors[0] if factors else torch.empty(()) if like is None else like
    identity = torch.eye(structure.widths[0], dtype=like.dtype, device=like.device)
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


def mixture(
    structure: Structure,
    x: Tensor,
    factors: Sequence[Tensor],
    weights: Tensor,
    fixed: Sequence[Tensor] | None = None,
) -> Tensor:
    """The terms of every expert times its weight (tokens, experts), and the terms that hold no expert once.

    Args:
        fixed: as in `apply`.
    """
    gate = structure.gate
    assert gate is not None
    factors = [*factors, *(constants.tensors(structure, x) if fixed is None else fixed)]
    x = _padded(structure, x)
    alone = replace(structure, sizes=tuple((a, 1 if a == gate.axis else n) for a, n in structure.sizes), gate=None)

    def mixed(link: Term, z: Tensor) -> Tensor:
        if not any(gate.axis in structure.factors[f] for f in link.factors):
            return _link(structure, link, z, factors)
        pieces = []
        for expert in range(gate.experts):
            own = [
                f.narrow(axes.index(gate.axis), expert, 1) if gate.axis in axes else f
                for f, axes in zip(factors, structure.factors, strict=True)
            ]
            pieces.append(weights[:, expert, None].to(z.dtype) * _link(alone, link, z, own))
        return torch.stack(pieces).sum(0)

    total = []
    for term in structure.terms:
        z = x
        for link in term.chain:
            z = mixed(link, z)
        total.append(z)
    return torch.stack(total).sum(0)[:, : structure.widths[1]]


def _term(structure: Structure, term: Term, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    for link in term.chain:
        x = _link(structure, link, x, factors)
    return x


def _link(structure: Structure, term: Term, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
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
        return tensor.reshape((*leading, *structure.shape(tuple(kept)))), [*first, *[number[a] for a in kept]]

    operands = [*operand(loaded, term.loaded, 0)]
    for f in term.factors:
        operands += operand(factors[f], structure.factors[f])
    y = torch.einsum(*operands, [0, *[number[a] for a in term.output if a in number]])
    return y.reshape(-1, structure.numel(term.output))


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
