"""Source of what moves and multiplies element by element: narrow contractions, gathers and scatters of blocks."""

from __future__ import annotations

import itertools
import re

from structures.backends.planned.layout import fuse, heads
from structures.backends.planned.program import NARROW, Gather, Pointwise, Scatter
from structures.backends.planned.writer import Shape, Writer


def pointwise(writer: Writer, op: Pointwise) -> None:
    runs = fuse(op.left_view, op.right_view, op.layout, op.contracted)
    order, summed = heads(op.layout, runs), heads(op.contracted, runs)
    shape = tuple(writer.extent(runs[a]) for a in order)
    one = writer.spread(op.left, heads(op.left_view, runs), order + summed, runs)
    two = writer.spread(op.right, heads(op.right_view, runs), order + summed, runs)
    count = writer.problem.numel(op.contracted, NARROW + 1)
    if not op.contracted:
        _product(writer, op.result, one, two, shape)
    elif count <= NARROW:
        writer.lines += [f"l, r = {one}, {two}"]
        extents = [range(writer.problem.numel(runs[a], 1)) for a in summed]
        for number, at in enumerate(itertools.product(*extents)):
            place = ", ".join(map(str, at))
            if not number:
                _product(writer, op.result, f"l[..., {place}]", f"r[..., {place}]", shape)
                continue
            pair = f"l[..., {place}], r[..., {place}]"
            if writer.pure:
                writer.lines.append(f"{op.result} = torch.addcmul({op.result}, {pair})")
            else:
                writer.lines.append(f"{op.result}.addcmul_({pair})")
    else:
        dims = tuple(range(-len(summed), 0))
        writer.assign(op.result, f"torch.mul({one}, {two}).sum({dims}).contiguous()", shape)


def _product(writer: Writer, name: str, one: str, two: str, shape: Shape) -> None:
    """An elementwise product with a contiguous result, whatever order the operands have in memory."""
    if writer.pure:
        writer.assign(name, f"torch.mul({one}, {two}).contiguous()", shape)
        return
    like = re.match(r"\w+", one)[0]  # type: ignore[index]
    size = f"({', '.join(shape)},)" if shape else "()"
    writer.assign(name, f"torch.empty({size}, dtype={like}.dtype, device={like}.device)", shape)
    writer.lines.append(f"torch.mul({one}, {two}, out={name})")


def gather(writer: Writer, op: Gather) -> None:
    at = op.view.index(op.axis)
    before, after = writer.extent(op.view[:at]), writer.extent(op.view[at + 1 :])
    source = writer.view(op.source, (before, writer.extent((op.axis,)), after))
    writer.assign(
        op.result,
        f"{source}.index_select(1, {writer.table(op.table, op.source)})",
        (before, writer.extent(op.by), after),
    )


def scatter(writer: Writer, op: Scatter) -> None:
    """Blocks that are read equally often are collected by a second gather and summed: deterministic everywhere."""
    at = op.view.index(op.by[0]) if op.by else 1
    before, after = writer.extent(op.view[:at]), writer.extent(op.view[at + len(op.by) :])
    size = writer.size[op.axis]
    source = writer.view(op.source, (before, writer.extent(op.by), after))
    readers = [[j for j, position in enumerate(op.table) if position == p] for p in range(size)]
    often = len(readers[0])
    shape = (before, str(size), after)
    if often and all(len(r) == often for r in readers):
        table = tuple(j for r in readers for j in r)
        expression = f"{source}.index_select(1, {writer.table(table, op.source)})"
        if often > 1:
            expression += f".{'reshape' if writer.pure else 'view'}({before}, {size}, {often}, {after}).sum(2)"
    else:
        zeros = f"torch.zeros(({', '.join(shape)}), dtype={op.source}.dtype, device={op.source}.device)"
        expression = f"{zeros}.index_add(1, {writer.table(op.table, op.source)}, {source})"
    writer.assign(op.result, expression, shape)
