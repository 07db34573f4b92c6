"""What `print(structure)` shows."""

from __future__ import annotations

import math
from collections.abc import Iterator

from structures.algebra import rank
from structures.algebra.map import Gate, Map, Term
from structures.algebra.steps import Axes
from structures.algebra.taxonomy import Taxonomy, taxonomy


def page(s: Map) -> Iterator[str]:
    """Lines: the einsum, axes, steps with their shapes, and every count."""
    options = "".join(f", {name}={_plain(value)}" for name, value in s.options)
    yield f"{s.name}({s.widths[0]} -> {s.widths[1]}{options})    {s.title}"
    if s.asked:
        yield f"  padded: it runs as {s.in_features} -> {s.out_features}, the input zero-filled, the output cut"
    yield ""
    for term in s.terms:
        if term.written:
            sign = "=" if term is s.terms[0] else "+"
            yield f"  y {sign} {' '.join(term.written.split())}"
            yield "      its constants are not trained; it runs as"
        for number, link in enumerate(term.chain):
            start = ";" if number else "=" if term is s.terms[0] else "+"
            yield f"  {' ' if number else 'y'} {start} {_written(s, link)}"
            for gather in link.gathers:
                yield f"      {gather.axis} is read at {gather.text}"
    wide = _wide(s, tuple(s.size))
    yield "  " + "  ".join(f"{axis}={s.size[axis]}" for axis in wide)
    yield f"  as powers of the width: {'  '.join(f'{a} {s.exponents[a]:.2f}' for a in wide)}"
    if len(wide) < len(s.size):
        yield f"  of size 1, not shown: {' '.join(a for a in s.size if a not in wide)}"
    if s.gate:
        yield f"  gate: {s.gate.active} of {s.gate.experts} experts on axis {s.gate.axis} a token{_extras(s.gate)}"
        yield "  rank, degrees of freedom and growth are those of one token's W"
    yield ""
    yield "  steps: batch x (tokens rows, contracted) @ (contracted, cols)"
    for number, step in enumerate(s.steps):
        groups = (_group(s, axes) for axes in (step.batch, step.rows, step.contracted, step.cols))
        batch, rows, contracted, cols = groups
        left = "tokens" if rows == "1" else f"tokens {rows}"
        yield (
            f"  {number:3d}  {s.name_of(step.factor):10} {batch} x ({left}, {contracted}) @ ({contracted}, {cols})"
            f"    {2 * s.active(step.axes):,} FLOPs a token"
        )
    if s.gate:
        shape = f"(tokens, {s.in_features}) @ ({s.in_features}, {s.gate.experts})"
        yield f"       router     1 x {shape}    {2 * math.prod(s.router_shape):,} FLOPs a token"
    yield ""
    share = s.params / s.dense_params
    yield f"  parameters          {s.params:>15,}   {share:8.4f} of dense"
    freedom = rank.degrees_of_freedom(s.summed())
    yield f"  degrees of freedom  {'too large' if freedom is None else f'{freedom:,}':>15}"
    generic = rank.generic_rank(s.summed())
    full = min(s.widths)
    between = f"{' to '.join(f'{bound:,}' for bound in rank.rank_bounds(s))}" if generic is None else f"{generic:,}"
    yield f"  generic rank        {between:>15}   of {full:,}"
    yield f"  FLOPs a token       {s.flops():>15,}   {s.flops() / s.dense_flops():8.4f} of dense"
    yield f"  FLOPs to train      {s.flops(train=True):>15,}   forward and both gradients"
    yield f"  bytes for one token {s.bytes():>15,}   {s.bytes() / s.dense_bytes():8.4f} of dense, fp32"
    yield f"  intermediates       {s.activation_size:>15,}   numbers a token"
    yield from _placed(taxonomy(s))


def _written(s: Map, link: Term) -> str:
    operands = [_view(_wide(s, link.input)), *(" ".join(_wide(s, s.factors[f])) for f in link.factors)]
    if s.gate and any(s.gate.axis in s.factors[f] for f in link.factors):
        operands.append(f"gate({s.gate.axis})")
    return f"{', '.join(operands)} -> {_view(_wide(s, link.output))}"


def _placed(found: Taxonomy | None) -> Iterator[str]:
    if found is None:
        yield "  as the width grows  unknown: too few widths can be bound at these options"
        return
    yield f"  as the width grows: {found.how}"
    yield f"    sharing omega     {found.omega:15.2f}   FLOPs / parameters ~ width**omega"
    most = ", at most" if found.psi_bound else ""
    yield f"    rank psi          {found.psi:15.2f}   rank ~ width**psi{most}"
    yield f"    compute nu        {found.nu:15.2f}   FLOPs of a token ~ width**(1 + nu)"


def _view(axes: Axes) -> str:
    return f"({' '.join(axes)})" if len(axes) != 1 else axes[0]


def _wide(s: Map, axes: Axes) -> Axes:
    return tuple(a for a in axes if s.size[a] > 1)


def _group(s: Map, axes: Axes) -> str:
    axes = _wide(s, axes)
    if not axes:
        return "1"
    return " ".join(axes) + f" [{'x'.join(str(s.size[a]) for a in axes)}]"


def _extras(gate: Gate) -> str:
    jitter = f", jitter {gate.jitter:g}" if gate.jitter else ""
    return jitter + (f", capacity {gate.capacity:g}" if gate.capacity else "")


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
