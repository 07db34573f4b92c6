"""From a plan to straight-line Python that runs it.

Two forms of one plan. *Eager* writes results in place and into `out=`: the least calls and passes. *Pure* has no
in-place operation, no `out=` and reshapes in the place of views: it can be differentiated, vmapped and traced.
"""

from __future__ import annotations

from collections.abc import Sequence

from structures.backends.planned.elementwise import embed, gather, pointwise, scatter
from structures.backends.planned.layout import TOKENS, Layout, Product, fuse, heads, readable
from structures.backends.planned.price import joint
from structures.backends.planned.problem import X, factor_name
from structures.backends.planned.program import Assemble, Copy, Embed, GatherBlocks, Multiply, Op, Plan, Pointwise
from structures.backends.planned.source import Source
from structures.backends.planned.writer import Shape, Writer, permute


def forward_source(plan: Plan, *, pure: bool) -> Source:
    """Source of `forward(x, f0, ..., b) -> (y, *saved)`."""
    return _forward(plan, pure)


def backward_source(plan: Plan, *, pure: bool) -> Source:
    """Source of `backward(dy, f0, ..., *saved) -> (dx, df0, ...)`, those gradients that the plan wants."""
    assert plan.want is not None
    names = [factor_name(i) for i in range(len(plan.problem.factors))]
    writer = Writer(plan.problem, pure, plan.chunk or plan.tokens)
    writer.known("dy", plan.problem.out_features)
    writer.known(X, plan.problem.in_features)
    for op in (*plan.forward, *plan.backward):
        writer.note(op)
    for op in plan.backward:
        write(writer, op)
    wanted = ["dx"] if plan.want.x else []
    wanted += [f"d{n}" for n, w in zip(names, plan.want.factors, strict=True) if w]
    results = [writer.shaped(n, "in" if n == "dx" else n[1:]) for n in wanted]
    head = f"def backward({', '.join(['dy', *names, *plan.saved])}):"
    return writer.source(head, ["t = dy.shape[0]", *writer.lines, f"return ({', '.join([*results, ''])})"])


def _forward(plan: Plan, pure: bool) -> Source:
    writer = Writer(plan.problem, pure, plan.chunk or plan.tokens)
    writer.known(X, plan.problem.in_features)
    for op in plan.forward:
        writer.note(op)
    head = f"def forward({', '.join([X, *(factor_name(i) for i in range(len(plan.problem.factors))), 'b'])}):"
    if plan.chunk and not pure:
        return writer.source(head, _chunked(plan, writer))
    for op in plan.forward:
        write(writer, op)
    saved = [name for name in plan.saved if name != X]
    results = [writer.shaped("y", "out"), *saved, ""]
    return writer.source(head, ["t = x.shape[0]", *writer.lines, f"return ({', '.join(results)})"])


def _chunked(plan: Plan, writer: Writer) -> list[str]:
    """A loop over chunks of tokens; what has no tokens (merged factors) is computed once, before it."""
    steady = [op for op in plan.forward if TOKENS not in op.layout]
    for op in steady:
        write(writer, op)
    before, writer.lines = writer.lines, []
    writer.out = "part"
    for op in plan.forward:
        if op not in steady:
            write(writer, op)
    if writer.out:  # the last operation could not write into its place
        writer.lines.append(f"part.copy_({writer.shaped('y', 'out')})")
    size = plan.chunk
    return [
        "whole = x",
        *before,
        f"total = torch.empty((whole.shape[0], {plan.problem.out_features}), dtype=x.dtype, device=x.device)",
        f"for x, part in zip(whole.split({size}), total.split({size})):",
        "    t = x.shape[0]",
        *(f"    {line}" for line in writer.lines),
        "return (total,)",
    ]


def write(writer: Writer, op: Op) -> None:
    if isinstance(op, Multiply):
        _multiply(writer, op)
    elif isinstance(op, Pointwise):
        pointwise(writer, op)
    elif isinstance(op, Assemble):
        _place(writer, op)
    elif isinstance(op, Copy):
        spread = writer.slow_transpose(op.view, op.layout)
        expression, shape = writer.permuted(op.source, op.view, op.layout, spread=spread)
        writer.assign(op.result, f"{expression}.contiguous()", shape)
    elif isinstance(op, GatherBlocks):
        gather(writer, op)
    elif isinstance(op, Embed):
        embed(writer, op)
    else:
        scatter(writer, op)


def _multiply(writer: Writer, op: Multiply) -> None:
    p = op.product
    left = _matrix(writer, op.left, op.left_view, p.left, p.batch)
    right = _matrix(writer, op.right, op.right_view, p.right, p.batch, last=True)
    shape = [writer.extent(g) for g in ((p.batch, p.rows, p.cols) if p.batch else (p.rows, p.cols))]
    plain, adding = ("bmm", "baddbmm") if p.batch else ("mm", "addmm")
    if op.placed:
        _into_blocks(writer, op, left, right)
        return
    if op.apart and not op.bias and not writer.pure:
        _one_by_one(writer, op, left, right, shape)
        return
    if op.into and writer.pure:
        expression = f"torch.{adding}({writer.view(op.into, shape)}, {left}, {right})"
    elif op.into:
        expression = f"{writer.view(op.into, shape)}.{adding}_({left}, {right})"
    elif op.bias:
        expression = f"torch.{adding}({_bias(writer, p, shape)}, {left}, {right}{_target(writer, op, shape)})"
    else:
        expression = f"torch.{plain}({left}, {right}{_target(writer, op, shape)})"
    if p.reduced:
        expression, shape = f"{expression}.sum(0)", shape[1:]
    writer.assign(op.result, expression, shape)


def _one_by_one(writer: Writer, op: Multiply, left: str, right: str, shape: Sequence[str]) -> None:
    """Each matrix of the batch by a product of its own, into its part of the result."""
    target = _target(writer, op, shape).removeprefix(", out=")
    empty = f"torch.empty(({', '.join(shape)}), dtype={op.left}.dtype, device={op.left}.device)"
    writer.assign(op.result, writer.view(op.into, shape) if op.into else target or empty, shape)
    call = "o.addmm_(l, r)" if op.into else "torch.mm(l, r, out=o)"
    writer.lines.append(f"for l, r, o in zip({left}.unbind(), {right}.unbind(), {op.result}.unbind()): {call}")


def _into_blocks(writer: Writer, op: Multiply, left: str, right: str) -> None:
    """A product whose matrices are written where their blocks lie in the flat result."""
    p = op.product
    width = writer.problem.in_features if op.result.startswith("dx") else writer.problem.out_features
    whole = (writer.rows, str(width))
    batch, cols = writer.extent(p.batch), writer.extent(p.cols)
    if writer.pure:
        flat = f"torch.bmm({left}, {right}).transpose(0, 1).reshape({', '.join(whole)})"
        added = op.into or ("b" if op.bias else "")
        writer.assign(op.result, f"{added} + {flat}" if added else f"{flat}.clone()", whole)
        return
    blocks = f"view({writer.rows}, {batch}, {cols}).transpose(0, 1)"
    if op.into:
        writer.lines.append(f"{op.into}.{blocks}.baddbmm_({left}, {right})")
        writer.assign(op.result, op.into, whole)
        return
    place, writer.out = writer.out, ""
    empty = f"torch.empty(({', '.join(whole)}), dtype={op.left}.dtype, device={op.left}.device)"
    writer.assign(op.result, place or empty, whole)
    first = f"torch.baddbmm(b.view({batch}, 1, {cols}), " if op.bias else "torch.bmm("
    writer.lines.append(f"{first}{left}, {right}, out={op.result}.{blocks})")


def _target(writer: Writer, op: Multiply, shape: Sequence[str]) -> str:
    """`out=` the place of the final result, where the result can be written there at once."""
    if not writer.out or op.result != "y" or op.product.reduced or writer.pure:
        return ""
    place, writer.out = writer.out, ""
    writer.shape[place] = (writer.rows, str(writer.problem.out_features))
    return f", out={writer.view(place, shape)}"


def _bias(writer: Writer, product: Product, shape: Sequence[str]) -> str:
    """The bias as it broadcasts over a product's result."""
    if writer.rows == "1":
        return _view_bias(writer, shape)
    return _view_bias(writer, shape[1:]) if product.batch else "b"


def _view_bias(writer: Writer, shape: Sequence[str]) -> str:
    return f"b.{'reshape' if writer.pure else 'view'}({', '.join(shape) or '()'})"


def _matrix(
    writer: Writer, name: str, view: Layout, parts: tuple[Layout, Layout, Layout], batch: Layout, *, last: bool = False
) -> str:
    """An operand as (batch, two sides), or as one matrix; without a batch of its own it is expanded."""
    order = list(readable(view, parts) or ())
    own = bool(parts[0])
    wanted = [0, 1, 2] if own else [1, 2]
    for position in wanted:
        if position not in order:
            order.insert(wanted.index(position) if position < 2 else len(order), position)
    expression = writer.view(name, [writer.extent(parts[g]) for g in order])
    expression = permute(expression, [order.index(g) for g in wanted])
    if batch and not own:
        sizes = ", ".join(writer.extent(g) for g in (batch, parts[1], parts[2]))
        expression = f"{expression}.expand({sizes})"
    return expression


def _place(writer: Writer, op: Assemble) -> None:
    width = writer.problem.in_features if op.result == "dx" else writer.problem.out_features
    whole = (writer.rows, str(width))
    if writer.pure:
        _place_pure(writer, op, whole)
        return
    if len(op.pieces) == 1 and not op.bias and not op.into and not writer.out:
        name, view, target = op.pieces[0]
        expression, _ = writer.permuted(name, view, target, spread=writer.slow_transpose(view, target))
        fresh = "clone(memory_format=torch.contiguous_format)" if name in (X, "dy") else "contiguous()"
        writer.assign(op.result, f"{expression}.{fresh}.view({', '.join(whole)})", whole)
        return
    pieces = list(op.pieces)
    if op.into:
        writer.assign(op.result, op.into, whole)
    else:
        place, writer.out = writer.out, ""
        first = op.pieces[0][0]
        empty = f"torch.empty(({', '.join(whole)}), dtype={first}.dtype, device={first}.device)"
        writer.assign(op.result, place or empty, whole)
        _first(writer, op, pieces, whole)
    for name, view, target in pieces:
        expression, shape = writer.permuted(name, view, target)
        writer.lines.append(f"{writer.view(op.result, shape)}.add_({expression})")


def _first(writer: Writer, op: Assemble, pieces: list[tuple[str, Layout, Layout]], whole: Shape) -> None:
    """The first pass over the result: a piece and the bias, two pieces, or one; those are taken off the list."""
    name, view, target = pieces.pop(0)
    if op.bias and not op.once and view[-1] != target[-1]:
        # torch copies turned tensors faster than it adds them: (4, 128, 1024) to (128, 1024, 4) and the bias, 138 us
        # against 228 in one pass; 32 innermost axes long 198 against 227
        expression, shape = writer.permuted(name, view, target, spread=writer.slow_transpose(view, target))
        writer.lines.append(f"{writer.view(op.result, shape)}.copy_({expression})")
        writer.lines.append(f"{writer.view(op.result, whole)}.add_(b)")
    elif op.bias:
        expression, shape = writer.permuted(name, view, target, alone=(TOKENS,))
        place = writer.view(op.result, shape)
        writer.lines.append(
            f"torch.add({expression}, {_view_bias(writer, shape[0 if writer.rows == '1' else 1 :])}, out={place})"
        )
    elif joint(op):
        other, second, _ = pieces.pop(0)
        runs = fuse(view, second, target)
        dst = heads(target, runs)
        shape = tuple(writer.extent(runs[a]) for a in dst)
        sides = []
        for tensor, order in ((name, heads(view, runs)), (other, heads(second, runs))):
            sides.append(
                permute(writer.view(tensor, [writer.extent(runs[a]) for a in order]), [order.index(a) for a in dst])
            )
        writer.lines.append(f"torch.add({sides[0]}, {sides[1]}, out={writer.view(op.result, shape)})")
    else:
        expression, shape = writer.permuted(name, view, target, spread=writer.slow_transpose(view, target))
        writer.lines.append(f"{writer.view(op.result, shape)}.copy_({expression})")


def _place_pure(writer: Writer, op: Assemble, whole: Shape) -> None:
    parts = [op.into] if op.into else []
    for name, view, target in op.pieces:
        expression, _ = writer.permuted(name, view, target, spread=writer.slow_transpose(view, target))
        parts.append(f"{expression}.reshape({', '.join(whole)})")
    if op.bias:
        parts.append("b")
    elif len(parts) == 1:
        parts[0] += ".clone()"
    writer.assign(op.result, f"({' + '.join(parts)}).contiguous()", whole)
