"""Dense weight or nn.Linear -> structured layer, with a record of what was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from structures import backends, registry
from structures.algebra.links import joined
from structures.linear import StructuredLinear
from structures.projection import experts
from structures.projection.covariance import damped, second_moment
from structures.projection.measure import ratio, residual_of, scaled_problem, written
from structures.projection.precision import exact
from structures.projection.progress import Line
from structures.projection.refinement import polish
from structures.projection.solve import balance, solve
from structures.spec import Spec, spec_of
from structures.structure import Structure

TOLERANCE = 1e-4
LIMIT = 100
DAMPING = 1e-3
MAX_DOUBLE = 2**22  # weights with more entries are fitted in float32 unless they are float64


@dataclass(frozen=True)
class Projection:
    """What a projection reached. Errors are of the factors as returned, rounded to their dtype.

    Attributes:
        method: "support", "truncated SVD", "alternating support and truncated SVD", ...
        weight_error: ||W - What|| / ||W||, Frobenius; 0 where both are zero.
        output_error: ||(W - What) X^T|| / ||W X^T|| on the held-out inputs, or on `inputs`; None without either.
        held_out: whether output_error was measured on held-out inputs.
        iterations: sweeps over all factors; 1 for a closed form.
        optimal: nothing is nearer, up to rounding: a closed form, or an error of zero.
        converged: the tolerance was met within the limit.
        history: the relative error that was minimised, at the start and after each sweep.
        sum_error: of an entry with a gate, the weight error of all its experts' sum, which is what was minimised. All
            other errors are those of the layer as it is returned: with a router of zeros the first active experts
            are chosen for every token, with equal weights. The two agree where every expert is active, and where
            every expert got a copy of the whole.
    """

    method: str
    weight_error: float
    output_error: float | None
    held_out: bool
    iterations: int
    optimal: bool
    converged: bool
    history: tuple[float, ...]
    sum_error: float | None = None


def project(
    weight: Tensor,
    structure: str | Spec | Structure,
    *,
    inputs: Tensor | None = None,
    held_out: Tensor | None = None,
    damping: float = DAMPING,
    refine: int = 0,
    tolerance: float = TOLERANCE,
    limit: int = LIMIT,
    progress: bool = False,
    backend: str = backends.AUTO,
    **options: object,
) -> StructuredLinear:
    """The structured layer, without a bias, whose dense form is nearest to `weight`.

    `layer.projection` is the `Projection`: errors, method, iterations, whether optimal. The arguments in between are
    those of `project_factors`; an entry with an option of the same name as one of them is passed bound, as a Structure.

    Args:
        weight: (out_features, in_features), as in `nn.Linear`; any floating-point dtype, which the layer takes over.
        structure: name of a registry entry, a Spec, or a Structure of these widths.
        backend: as in `StructuredLinear`.
        options: the entry's options, such as `n_blocks=4`.
    Raises:
        KeyError: no such entry.
        ValueError: as `project_factors`, or options that do not fit.

    >>> weight = torch.eye(64, 32)
    >>> layer = project(weight, "low_rank", rank=8)
    >>> round(layer.projection.weight_error, 3), layer.projection.method, layer.projection.optimal
    (0.866, 'truncated SVD', True)
    >>> project(weight, "low_rank", rank=8, inputs=torch.randn(100, 32)).projection.output_error < 0.866
    True
    """
    shape = bound(weight, structure, options)
    factors, record = project_factors(weight, shape, inputs=inputs, held_out=held_out, damping=damping, refine=refine,
                                      tolerance=tolerance, limit=limit, progress=progress)  # fmt: skip
    options = dict(shape.options)
    layer = StructuredLinear(spec_of(shape), *shape.widths, False, device="meta",
                             dtype=weight.dtype, backend=backend, **options)  # type: ignore[arg-type]  # fmt: skip
    for name, factor in zip(shape.factor_names, factors, strict=True):
        setattr(layer, name, nn.Parameter(factor))
    if shape.gate is not None:
        layer.router = nn.Parameter(weight.new_zeros(shape.router_shape))
    layer.projection = record  # type: ignore[assignment]  # a plain record beside the parameters
    return layer


def from_linear(
    linear: nn.Linear,
    structure: str | Spec | Structure,
    *,
    inputs: Tensor | None = None,
    held_out: Tensor | None = None,
    damping: float = DAMPING,
    refine: int = 0,
    tolerance: float = TOLERANCE,
    limit: int = LIMIT,
    progress: bool = False,
    backend: str = backends.AUTO,
    **options: object,
) -> StructuredLinear:
    """`project` of a layer's weight, its bias, device, dtype, training flag and requires_grad carried over.

    Raises:
        TypeError: not an nn.Linear.

    >>> linear = nn.Linear(32, 64)
    >>> layer = from_linear(linear, "dyad_it", n_blocks=4)
    >>> layer.in_features, layer.out_features, bool((layer.bias == linear.bias).all())
    (32, 64, True)
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(
            f"from_linear takes an nn.Linear, found {type(linear).__name__}; project() takes a weight, swap() a model, "
            "and to_linear() makes an nn.Linear of a Conv1D or a StructuredLinear"
        )
    layer = project(linear.weight, structure, inputs=inputs, held_out=held_out, damping=damping, refine=refine,
                    tolerance=tolerance, limit=limit, progress=progress, backend=backend, **options)  # fmt: skip
    for parameter in layer.parameters():
        parameter.requires_grad_(linear.weight.requires_grad)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
    return layer.train(linear.training)


def project_factors(
    weight: Tensor,
    structure: Structure,
    *,
    inputs: Tensor | None = None,
    held_out: Tensor | None = None,
    damping: float = DAMPING,
    refine: int = 0,
    tolerance: float = TOLERANCE,
    limit: int = LIMIT,
    progress: bool = False,
) -> tuple[tuple[Tensor, ...], Projection]:
    """Factors whose dense form is nearest to `weight`, and the record of it.

    Without `inputs` the Frobenius norm of the difference is minimised. Exact: terms of one factor (supports, overlaps
    included) and any single term of two factors (one batched truncated SVD). Sums are refitted term by term, chains of
    more factors are split by SVDs and then improved, all else is fitted factor by factor; no sweep raises the error.
    Links (`;`) are joined where they can be; two that cannot, of one factor each whose product falls into rectangles
    that do not overlap, are fitted exactly too (one truncated SVD a rectangle), longer ones like other chains.
    With `inputs`, ||(W - What) X^T|| is minimised instead: exact for supports and low rank; otherwise from the plain
    solution on, for coupled blocks (Monarch, BTT) one group of blocks after another by a whitened SVD, else factor by
    factor.

    With a gate the sum of all experts is projected, and the factors are those of a router of zeros: where the expert
    axis stands in one factor every expert is a copy of the whole, exact for any routing (but equal experts learn
    alike until jitter or other routers part them); elsewhere expert e is the e-th summand times the number of active
    experts, so that the first of them, which are chosen at first, add up to the leading summands.

    Args:
        weight: (out_features, in_features), finite.
        inputs: (..., in_features), what the layer reads, or its covariance (in_features, in_features). Of a batch the
            mean of x x^T is used, the mean of x not taken off: a bias that is kept as it is (as `from_linear` does)
            corrects nothing, so an error in the mean output counts like any other. A symmetric matrix of that
            square shape with no negative diagonal is read as a covariance.
        held_out: the same of other inputs, to measure the output error on.
        damping: with inputs, the share of their mean variance added to each feature's: larger for fewer tokens.
        refine: steps of L-BFGS on all factors together at the end, for what is not optimal by then.
        tolerance: stop when a sweep lowers the error by less than this share of it.
        limit: sweeps at most.
        progress: write a line on stderr while it runs.
    Returns:
        the factors, of `structure.factor_shapes` and in weight's dtype and device, and the `Projection`.
    Raises:
        ValueError: a weight of another shape, not floating-point, on the meta device, or with NaN or infinity; inputs
            likewise; numbers out of range.
    """
    _check(weight, structure, damping, refine, tolerance, limit)
    with exact(weight.device):
        return _fitted(weight, structure, inputs, held_out, damping, refine, tolerance, limit, progress)


def _fitted(
    weight: Tensor,
    structure: Structure,
    inputs: Tensor | None,
    held_out: Tensor | None,
    damping: float,
    refine: int,
    tolerance: float,
    limit: int,
    progress: bool,
) -> tuple[tuple[Tensor, ...], Projection]:
    """`project_factors` of what has been checked."""
    if structure.gate is not None:
        return _experts(weight, structure, inputs if held_out is None else held_out, project_factors(
            weight, structure.summed(structure.gate.experts), inputs=inputs, held_out=held_out, damping=damping,
            refine=refine, tolerance=tolerance, limit=limit, progress=progress))  # fmt: skip
    dense = _dense(weight)
    fitted = None if inputs is None else _moment(structure, inputs, dense, "inputs")
    measured = fitted if held_out is None else _moment(structure, held_out, dense, "held_out")
    line = Line(structure.name, progress)
    shorter = Structure.of(joined(structure))  # the same numbers under other axes
    problem, scale = scaled_problem(shorter, _zero_filled(dense, structure), None if fitted is None else damped(
        _zero_filled(fitted, structure, square=True), damping))  # fmt: skip
    outcome = solve(problem, tolerance=tolerance, limit=limit, report=line.sweep)
    if refine and not outcome.optimal:
        outcome = polish(problem, outcome, refine, line.step)
    line.end()
    balance(problem)
    factors = written(problem, scale, weight.dtype)
    residual = residual_of(problem, _zero_filled(dense, structure), factors)
    residual = residual[: dense.shape[0], : dense.shape[1]].contiguous()
    record = Projection(
        method=outcome.method,
        weight_error=ratio(residual, dense, None),
        output_error=None if measured is None else ratio(residual, dense, measured),
        held_out=held_out is not None,
        iterations=outcome.iterations,
        optimal=outcome.optimal,
        converged=outcome.converged,
        history=outcome.history,
    )
    return tuple(f.reshape(shape) for f, shape in zip(factors, structure.factor_shapes, strict=True)), record


def _zero_filled(matrix: Tensor, structure: Structure, *, square: bool = False) -> Tensor:
    """A weight, or a covariance of the inputs, at the widths that run."""
    if structure.asked is None:
        return matrix
    rows = structure.in_features if square else structure.out_features
    more = 0, structure.in_features - matrix.shape[1], 0, rows - matrix.shape[0]
    return torch.nn.functional.pad(matrix, more)


def _dense(weight: Tensor) -> Tensor:
    """The weight in the dtype that it is fitted in."""
    precise = weight.dtype == torch.float64 or weight.numel() <= MAX_DOUBLE
    return weight.detach().to(torch.float64 if precise else torch.float32, copy=True).contiguous()


def _experts(
    weight: Tensor, structure: Structure, measured: Tensor | None, summed: tuple[tuple[Tensor, ...], Projection]
) -> tuple[tuple[Tensor, ...], Projection]:
    """Factors and record of a structure with a gate from those of its experts' sum."""
    gate, (factors, record), dense = structure.gate, summed, _dense(weight)
    assert gate is not None
    factors = experts.spread(structure, factors)
    residual = experts.residual_of(structure, dense, factors)
    moment = None if measured is None else _moment(structure, measured, dense, "inputs")
    whole = gate.active == gate.experts or experts.are_copies(structure)
    return factors, replace(
        record,
        weight_error=ratio(residual, dense, None),
        output_error=None if moment is None else ratio(residual, dense, moment),
        optimal=record.optimal and whole,
        sum_error=record.weight_error,
    )


def bound(weight: Tensor, structure: str | Spec | Structure, options: Mapping[str, object]) -> Structure:
    """The structure at the widths of a weight.

    Raises:
        ValueError: not a matrix, or a Structure with options.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.numel():
        found = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight is a matrix (out_features, in_features), found {found}")
    if isinstance(structure, Structure):
        if options:
            raise ValueError(f"{structure.name}: it is bound already and takes no options, found {', '.join(options)}")
        return structure
    if not isinstance(structure, str | Spec):
        raise ValueError(f"structure is an entry's name, a Spec or a Structure, found {structure!r}")
    spec = registry.get(structure) if isinstance(structure, str) else structure
    return spec.bind(weight.shape[1], weight.shape[0], **options)


def _check(weight: Tensor, structure: Structure, damping: float, refine: int, tolerance: float, limit: int) -> None:
    name = structure.name
    wanted = structure.widths[::-1]
    if not isinstance(weight, Tensor) or tuple(weight.shape) != wanted:
        found = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        hint = "; it fits transposed, as transformers' Conv1D stores it" if found == f"shape {wanted[::-1]}" else ""
        raise ValueError(f"{name}: weight is (out_features, in_features) = {wanted}, found {found}{hint}")
    if not weight.is_floating_point():
        raise ValueError(f"{name}: weight is of a real floating-point dtype, found {weight.dtype}")
    if weight.is_meta:
        raise ValueError(f"{name}: weight is on the meta device and has no numbers to project")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name}: weight holds NaN or infinity")
    for what, value, least in (("damping", damping, 0), ("refine", refine, 0), ("tolerance", tolerance, 0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise ValueError(f"{name}: {what} is a number from {least}, found {value!r}")
    for what, count in (("refine", refine), ("limit", limit)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name}: {what} is a whole number from 0, found {count!r}")


def _moment(structure: Structure, inputs: Tensor, dense: Tensor, what: str) -> Tensor:
    moment = second_moment(inputs, structure.widths[0], f"{structure.name}: {what}", dense.dtype)
    return moment.to(dense.device)
