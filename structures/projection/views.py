"""A term of a structure as a tensor over named axes, and where each of its entries lies in the dense matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import opt_einsum
import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.structure import Structure, Term


def contract(operands: Sequence[tuple[Tensor, Axes]], out: Axes) -> Tensor:
    """Einsum over named axes: the product of `operands`, summed over every axis that is not in `out`.

    Every axis of `out` stands in some operand. The order of contraction is opt_einsum's; any number of axes is taken.
    """
    held = [tensor for tensor, _ in operands]
    for places, text in _steps(tuple(axes for _, axes in operands), out, tuple(t.shape for t in held)):
        held.append(torch.einsum(text, *[held.pop(place) for place in places]))
    return held[0]


@lru_cache(maxsize=4096)
def _steps(operands: tuple[Axes, ...], out: Axes, shapes: tuple[torch.Size, ...]) -> tuple[tuple[Any, str], ...]:
    """Which operands are contracted, last place first, and by which einsum; the result stands last.

    Worked out once: of a long chain opt_einsum's own expressions took two thirds of the time for the letters.
    """
    letter = {a: opt_einsum.get_symbol(i) for i, a in enumerate(dict.fromkeys(a for axes in operands for a in axes))}
    texts = ["".join(letter[a] for a in axes) for axes in (*operands, out)]
    expression = f"{','.join(texts[:-1])}->{texts[-1]}"
    _, found = opt_einsum.contract_path(expression, *shapes, shapes=True)
    return tuple((step[0], opt_einsum.parser.convert_to_valid_einsum_chars(step[2])) for step in found.contraction_list)


class TermView:
    """The entries of W that one term reaches, as a tensor over the term's axes of size above one.

    `axes` are the output's, then those that are only read (`reads`). An axis of both views stands once: along it W is
    a diagonal of blocks. Factors are held without axes of size one and without those that no other operand has.
    """

    def __init__(self, structure: Structure, term: Term):
        self.structure, self.term = structure, term
        self.positions = term.factors
        self.outs = self._wide(term.output)
        self.reads = tuple(a for a in self._wide(term.loaded) if a not in self.outs)
        self.axes = self.outs + self.reads
        self.shape = structure.shape(self.axes)
        written = [structure.factors[p] for p in term.factors]
        shared = {a for a in structure.size if sum(a in axes for axes in written) > 1} | set(self.axes)
        self.factors: tuple[Axes, ...] = tuple(tuple(a for a in self._wide(w) if a in shared) for w in written)
        self._at: Tensor | None = None  # where each entry lies in the flattened matrix, if that takes a table
        self.private = tuple(tuple(a for a in self._wide(w) if a not in shared) for w in written)

    def _wide(self, axes: Axes) -> Axes:
        return tuple(a for a in axes if self.structure.size[a] > 1)

    def sizes(self, axes: Axes) -> tuple[int, ...]:
        return self.structure.shape(axes)

    @cached_property
    def held(self) -> Axes:
        """The axes that some factor holds; along the others all entries are equal."""
        return tuple(a for a in self.axes if any(a in f for f in self.factors))

    @property
    def is_mask(self) -> bool:
        """One factor that holds all axes: each of its numbers is one entry of W."""
        return len(self.factors) == 1 and set(self.factors[0]) == set(self.axes)

    @cached_property
    def injective(self) -> bool:
        """No entry of W is reached twice: always so, unless an input axis is gathered at one place twice."""
        if not self.term.gathers:
            return True
        positions = self.reading_positions(torch.device("cpu"))  # (places, reads): fixed outputs, different reads
        flat = positions.reshape(-1, math.prod(self.sizes(self.reads))).sort(dim=1).values
        return not bool((flat[:, 1:] == flat[:, :-1]).any())

    @cached_property
    def places(self) -> Axes:
        """The output axes that decide what is read: those of both views, and those that a gather reads."""
        return tuple(a for a in self.outs if a in self.term.loaded)

    def read(self, matrix: Tensor) -> Tensor:
        """The entries of a contiguous (out_features, in_features) matrix at this term's axes: a view if it can be."""
        if self.term.gathers:
            return matrix.reshape(-1)[self._index(matrix.device)]
        rows, columns = self._strides(self.term.output), self._strides(self.term.input)
        strides = tuple(rows.get(a, 0) * matrix.shape[1] + columns.get(a, 0) for a in self.axes)
        return matrix.as_strided(self.shape, strides)

    def add_to(self, matrix: Tensor, entries: Tensor) -> None:
        """Add `entries`, a tensor over `axes`, to the matrix in place; entries reached twice take both."""
        if self.term.gathers:
            flat = self._index(matrix.device).reshape(-1)
            matrix.view(-1).index_add_(0, flat, entries.reshape(-1))
        else:
            self.read(matrix).add_(entries)

    def covariance(self, matrix: Tensor) -> tuple[Tensor, Axes]:
        """An (in_features, in_features) matrix at (places, reads primed, reads), with the names of these axes."""
        axes = (*self.places, *primed(self.reads, self.reads), *self.reads)
        if self.term.gathers:
            at = self.reading_positions(matrix.device)
            head, tail = at.shape[: len(self.places)], at.shape[len(self.places) :]
            index = at.reshape(*head, *tail, *(1 for _ in tail)) * matrix.shape[1]
            return matrix.reshape(-1)[index + at.reshape(*head, *(1 for _ in tail), *tail)], axes
        stride, width = self._strides(self.term.input), matrix.shape[1]
        strides = [stride[a] * (width + 1) for a in self.places]
        strides += [stride[a] * width for a in self.reads] + [stride[a] for a in self.reads]
        return matrix.as_strided(self.sizes(self.places + self.reads + self.reads), strides), axes

    def _strides(self, view: Axes) -> dict[str, int]:
        strides, step = {}, 1
        for axis in reversed(view):
            strides[axis] = step
            step *= self.structure.size[axis]
        return strides

    def reading_positions(self, device: torch.device) -> Tensor:
        """Which input feature is read, at (places, reads)."""
        order = self.places + self.reads
        strides = self._strides(self.term.input)
        gathered = {g.axis for g in self.term.gathers}
        total = torch.zeros(self.sizes(order), dtype=torch.int64, device=device)
        for axis in self.term.input:
            if axis not in gathered and axis in order:
                steps = torch.arange(self.structure.size[axis], device=device) * strides[axis]
                total += _along(steps, (axis,), order)
        for gather in self.term.gathers:
            by = tuple(a for a in gather.by if a in order)
            table = torch.tensor(gather.table, device=device).reshape(self.sizes(by))
            total += _along(table * strides[gather.axis], by, order)
        return total

    def _index(self, device: torch.device) -> Tensor:
        if self._at is not None and self._at.device == device:
            return self._at
        index = _along(self.reading_positions(device), self.places + self.reads, self.axes)
        strides = self._strides(self.term.output)
        for axis in self.outs:
            steps = torch.arange(self.structure.size[axis], device=device) * strides[axis]
            index = index + _along(steps * self.structure.in_features, (axis,), self.axes)
        self._at = index
        return index

    def entries(self, factors: Sequence[Tensor]) -> Tensor:
        """The term as a tensor over `axes`; axes that no factor holds are broadcast, so it may not own its memory."""
        product = contract(list(zip(factors, self.factors, strict=True)), self.held)
        return spread(product, self.held, self.axes, self.shape)

    def average(self, entries: Tensor) -> tuple[Tensor, Axes]:
        """The mean of a tensor over `axes` along the axes that no factor holds, and the axes that are left."""
        missing = [i for i, a in enumerate(self.axes) if a not in self.held]
        return (entries.mean(missing) if missing else entries), self.held

    def shrink(self, factor: int, tensor: Tensor) -> Tensor:
        """A factor as written -> as held here: its private axes summed away."""
        written = self.structure.factors[self.positions[factor]]
        dims = [i for i, a in enumerate(written) if a in self.private[factor]]
        return (tensor.sum(dims) if dims else tensor).reshape(self.sizes(self.factors[factor]))

    def grow(self, factor: int, tensor: Tensor) -> Tensor:
        """A factor as held here -> as written; what a private axis sums to is spread evenly over it."""
        written = self.structure.factors[self.positions[factor]]
        full = spread(tensor, self.factors[factor], self._wide(written), self.sizes(self._wide(written)))
        return (full / math.prod(self.sizes(self.private[factor]))).reshape(self.sizes(written))


def primed(axes: Iterable[str], which: Iterable[str]) -> Axes:
    """Names for a second copy of `axes`: those in `which` become other axes, the rest stay shared."""
    which = set(which)
    return tuple(f"{a}'" if a in which else a for a in axes)


def spread(tensor: Tensor, axes: Axes, wanted: Axes, shape: tuple[int, ...]) -> Tensor:
    """A tensor over `axes` as one over `wanted`, broadcast along the axes it does not have."""
    return _along(tensor, axes, wanted).expand(shape)


def _along(tensor: Tensor, axes: Axes, order: Axes) -> Tensor:
    """Permute to `order`, with size one where an axis is missing."""
    ranked = sorted(range(len(axes)), key=lambda i: order.index(axes[i]))
    shape = iter(tensor.permute(ranked).shape)
    return tensor.permute(ranked).reshape([next(shape) if a in axes else 1 for a in order])
