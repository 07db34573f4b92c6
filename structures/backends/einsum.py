"""One `torch.einsum` a step: the plain execution that the others are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from structures.backends.views import load
from structures.structure import Axes, Structure, Term

TOKENS = "t"
LETTERS = "abcdefghijklmnopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # all but the tokens'


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Nothing is refused but a step with more axes than an einsum has letters."""
    widest = max((len(step.axes) for step in structure.steps), default=0)
    return f"a step has {widest} axes; einsum names {len(LETTERS)}" if widest > len(LETTERS) else None


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features)."""
    total = None
    for term in structure.terms:
        piece = _term(structure, term, x, factors)
        total = piece if total is None else total + piece
    assert total is not None  # a Structure has a term
    return total if bias is None else total + bias


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """What is counted is what runs."""
    return structure.flops(tokens, train=train)


def _term(structure: Structure, term: Term, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    z = load(structure, term, x)
    if not term.steps:
        z = z.permute(0, *(1 + term.loaded.index(a) for a in term.output))
    for equation, step in zip(equations(term), term.steps, strict=True):
        z = torch.einsum(equation, z, factors[step.factor])
    return z.reshape(x.shape[0], structure.out_features)


@lru_cache(maxsize=4096)
def equations(term: Term) -> tuple[str, ...]:
    """One equation a step; the last one writes the output view's order."""
    texts = []
    for number, step in enumerate(term.steps):
        result = term.output if number == len(term.steps) - 1 else step.result
        letter = dict(zip(dict.fromkeys((*step.left, *step.right)), LETTERS, strict=False))

        def write(axes: Axes, letter: dict[str, str] = letter) -> str:
            return "".join(letter[a] for a in axes)

        texts.append(f"{TOKENS}{write(step.left)},{write(step.right)}->{TOKENS}{write(result)}")
    return tuple(texts)
