"""Source of what moves and multiplies element by element: narrow contractions, gathers and scatters of blocks."""

from __future__ import annotations

import itertools
import re

from structures.backends.planned.layout import Layout, fuse, heads
from structures.backends.planned.program import NARROW, DenseBlock, Embed, GatherBlocks, Pointwise, Scatter
from structures.backends.planned.writer import Shape, Writer, permute


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


def gather(writer: Writer, op: GatherBlocks) -> None:
    at = op.view.index(op.axes[0])
    before, after = writer.extent(op.view[:at]), writer.extent(op.view[at + len(op.axes) :])
    source = writer.view(op.source, (before, writer.extent(op.axes), after))
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


def embed(writer: Writer, op: Embed) -> None:
    """Functional throughout: autograd and every transform follow it."""
    shape = (str(writer.problem.in_features), str(writer.problem.out_features))
    parts = [_gathered(writer, part, shape) if part.read else _diagonals(writer, part, shape) for part in op.parts]
    writer.assign(op.result, " + ".join(parts), shape)


def _diagonals(writer: Writer, part: DenseBlock, shape: Shape) -> str:
    expression, _ = _on_diagonals(writer, part, part.rows, part.cols, ())
    return f"{expression}.reshape({', '.join(shape)})"


def _gathered(writer: Writer, part: DenseBlock, shape: Shape) -> str:
    """Blocks side by side, each copied into its place among zeros, and turned."""
    read, columns = part.read, part.columns_by
    assert read is not None
    rows = tuple(a for a in part.rows if a != read.axis)
    cols = tuple(a for a in part.cols if a not in columns)
    blocks, dims = _on_diagonals(writer, part, rows, cols, read.by)
    inner = [writer.extent((a,)) for a in dims[len(read.by) :]]
    count, lead = writer.extent((read.axis, *columns)), [writer.extent((a,)) for a in (read.axis, *columns)]
    zeros = f"torch.zeros(({', '.join([count, *inner])},), dtype={part.name}.dtype, device={part.name}.device)"
    blocks = f"{blocks}.reshape({', '.join([writer.extent(read.by), *inner])})"
    placed = f"{zeros}.index_copy(0, {writer.table(part.places(writer.problem), part.name)}, {blocks})"
    have = [(read.axis, 0), *((a, 1) for a in columns), *((a, 0) for a in rows), *((a, 1) for a in cols)]
    want = [*((a, 0) for a in part.rows), *((a, 1) for a in part.cols)]
    turned = permute(f"{placed}.view({', '.join([*lead, *inner])})", [have.index(a) for a in want])
    return f"{turned}.reshape({', '.join(shape)})"


def _on_diagonals(writer: Writer, part: DenseBlock, rows: Layout, cols: Layout, lead: Layout) -> tuple[str, Layout]:
    """The entries as (lead, rows, cols), an axis that is both a row's and a column's as a diagonal among zeros."""
    shared = tuple(a for a in rows if a in cols)
    final = lead + rows + cols
    once = tuple(a for a in final if a not in shared) + shared
    own = tuple(a for a in once if a in part.view)
    expression = writer.view(part.name, [writer.extent((a,)) for a in part.view])
    expression = permute(expression, [part.view.index(a) for a in own])
    if own != once:
        expression += f"[{', '.join(':' if a in own else 'None' for a in once)}]"
        expression += f".expand({', '.join(writer.extent((a,)) for a in once)})"
    placed: set[str] = set(once) - set(shared)
    for axis in reversed(shared):
        placed.add(axis)
        dims = tuple(a for a in final if a in placed)
        one, two = (i for i, a in enumerate(dims) if a == axis)
        expression = f"torch.diag_embed({expression}, 0, {one}, {two})"
    return expression, final
