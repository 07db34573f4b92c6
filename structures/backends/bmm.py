"""One batched product a step, on views: an activation is copied only where its axes cannot be read in place.

An activation is a tensor with one dimension an axis, `TOKENS` among them, in whatever order the last product left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.backends.views import load
from structures.structure import Structure, Term

TOKENS = "<tokens>"  # no name that an axis can have


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Nothing is refused."""
    return None


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """What is counted is what runs."""
    return structure.flops(tokens, train=train)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features) = W x + bias, x (tokens, in_features)."""
    prepare(structure)
    programs: tuple[_Program, ...] = structure.memo["bmm"]
    if bias is not None and len(programs) == 1 and programs[0].ends_in_place:
        return _run(programs[0], structure, x, factors, bias)
    total = None
    for program in programs:
        piece = _run(program, structure, x, factors, None)
        total = piece if total is None else total + piece
    assert total is not None  # a Structure has a term
    if len(structure.terms) == 1 and not structure.steps and bias is None:
        return total.clone()  # of a term without factors it is x itself
    return total if bias is None else total + bias


@dataclass(frozen=True)
class _Product:
    """One step on dimensions: how the operands are permuted and folded, and what the result unfolds to."""

    factor: int
    left_order: tuple[int, ...]  # to (batch, tokens, rows, contracted)
    right_order: tuple[int, ...]  # to (batch, contracted, cols)
    batch: int
    rows: int
    contracted: int
    cols: int
    result: tuple[int, ...]  # sizes of the result's axes; -1 for the tokens


@dataclass(frozen=True)
class _Program:
    term: Term
    products: tuple[_Product, ...]
    last_order: tuple[int, ...]  # to (tokens, *output)
    ends_in_place: bool  # the last product is a plain matrix product that leaves the output as it is wanted


def _run(program: _Program, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    tokens = x.shape[0]
    z = load(structure, program.term, x)
    for product in program.products[:-1]:
        z = _multiply(product, z, factors[product.factor], tokens, None)
    if program.products:
        z = _multiply(program.products[-1], z, factors[program.products[-1].factor], tokens, bias)
    return z.permute(program.last_order).reshape(tokens, structure.out_features)


def _multiply(product: _Product, z: Tensor, factor: Tensor, tokens: int, bias: Tensor | None) -> Tensor:
    rows = tokens * product.rows
    left = z.permute(product.left_order)
    right = factor.permute(product.right_order)
    result = [tokens if size < 0 else size for size in product.result]
    if product.batch == 1:
        left = left.reshape(rows, product.contracted)
        right = right.reshape(product.contracted, product.cols)
        return (torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)).view(result)
    left = left.reshape(product.batch, rows, product.contracted)
    right = right.reshape(product.batch, product.contracted, product.cols)
    return torch.bmm(left, right).view(result)


def prepare(structure: Structure) -> None:
    """Work out the permutations of every step."""
    if "bmm" not in structure.memo:
        structure.memo["bmm"] = tuple(_program(structure, term) for term in structure.terms)


def _program(structure: Structure, term: Term) -> _Program:
    axes: Axes = (TOKENS, *term.loaded)
    products = []
    for step in term.steps:
        left = (*step.batch, TOKENS, *step.rows, *step.contracted)
        right = (*step.batch, *step.contracted, *step.cols)
        result = (*step.batch, TOKENS, *step.rows, *step.cols)
        ends = [a for a in step.right if a not in right]  # ends of bonds, of size one
        products.append(
            _Product(
                factor=step.factor,
                left_order=tuple(axes.index(a) for a in left),
                right_order=tuple(step.right.index(a) for a in (*right, *ends)),
                batch=structure.numel(step.batch),
                rows=structure.numel(step.rows),
                contracted=structure.numel(step.contracted),
                cols=structure.numel(step.cols),
                result=tuple(-1 if a == TOKENS else structure.size[a] for a in result),
            )
        )
        axes = result
    wanted = (TOKENS, *term.output)
    in_order = _wide(structure, axes) == _wide(structure, wanted)
    ends_in_place = in_order and bool(products) and products[-1].batch == products[-1].rows == 1
    return _Program(term, tuple(products), tuple(axes.index(a) for a in wanted), ends_in_place)


def _wide(structure: Structure, axes: Axes) -> list[str]:
    return [a for a in axes if a == TOKENS or structure.size[a] > 1]
