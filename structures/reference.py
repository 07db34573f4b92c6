"""The meaning of a structure: one whole-term einsum, in the given dtype. Never timed, and simple enough to trust."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from structures.structure import Axes, Structure, Term

MAX_LETTERS = 52  # what torch.einsum can name


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y = W x + bias, straight from the einsum.

    Args:
        x: (..., in_features).
        factors: one tensor a factor, of `structure.factor_shapes`.
        bias: (out_features,) or None.
    Returns:
        (..., out_features).
    Raises:
        ValueError: a term has more than 51 axes larger than 1.
    """
    tokens = x.reshape(-1, structure.in_features)
    y = torch.stack([_term(structure, term, tokens, factors) for term in structure.terms]).sum(0)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], structure.out_features)


def to_dense(structure: Structure, factors: Sequence[Tensor]) -> Tensor:
    """W of shape (out_features, in_features), in the dtype of the factors."""
    like = factors[0] if factors else torch.empty(())
    identity = torch.eye(structure.in_features, dtype=like.dtype, device=like.device)
    return apply(structure, identity, factors).t().contiguous()


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
