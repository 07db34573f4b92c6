"""One `torch.einsum` a step: the plain execution that the others are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.backends.views import load
from structures.structure import Structure, Term

TOKENS = "t"
LETTERS = "abcdefghijklmnopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # all but the tokens'


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Nothing is refused but a step with more axes than an einsum has letters."""
    prepare(structure)
    return structure.memo["einsum"].refusal  # type: ignore[no-any-return]


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features)."""
    prepare(structure)
    total = None
    for term, equations in zip(structure.terms, structure.memo["einsum"].equations, strict=True):
        piece = _term(structure, term, equations, x, factors)
        total = piece if total is None else total + piece
    assert total is not None  # a Structure has a term
    if len(structure.terms) == 1 and not structure.steps and bias is None:
        return total.clone()  # of a term without factors it is x itself
    return total if bias is None else total + bias


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """What is counted is what runs."""
    return structure.flops(tokens, train=train)


@dataclass(frozen=True)
class _Prepared:
    equations: tuple[tuple[str, ...], ...]  # one a step, for each term
    refusal: str | None


def prepare(structure: Structure) -> None:
    """Write the equations of every step."""
    if "einsum" in structure.memo:
        return
    widest = max([len({*step.left, *step.right}) for step in structure.steps], default=0)
    if widest > len(LETTERS):
        structure.memo["einsum"] = _Prepared((), f"a step has {widest} axes; einsum names {len(LETTERS)}")
    else:
        structure.memo["einsum"] = _Prepared(tuple(_equations(term) for term in structure.terms), None)


def _term(structure: Structure, term: Term, equations: tuple[str, ...], x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    z = load(structure, term, x)
    if not term.steps:
        z = z.permute(0, *(1 + term.loaded.index(a) for a in term.output))
    for equation, step in zip(equations, term.steps, strict=True):
        z = torch.einsum(equation, z, factors[step.factor])
    return z.reshape(x.shape[0], structure.out_features)


def _equations(term: Term) -> tuple[str, ...]:
    """One equation a step; the last one writes the output view's order."""
    texts = []
    for number, step in enumerate(term.steps):
        result = term.output if number == len(term.steps) - 1 else step.result
        letter = dict(zip(dict.fromkeys((*step.left, *step.right)), LETTERS, strict=False))

        def write(axes: Axes, letter: dict[str, str] = letter) -> str:
            return "".join(letter[a] for a in axes)

        texts.append(f"{TOKENS}{write(step.left)},{write(step.right)}->{TOKENS}{write(result)}")
    return tuple(texts)
