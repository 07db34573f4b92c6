"""What a point runs: a layer, its parameters, its float64 reference, and a plain execution to compare errors with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.sweep.points import CANDIDATES, ONEDNN, Point, bound
from bench.sweep.request import read_options
from structures import StructuredLinear, backends, reference
from structures.backends.experts import grouped
from structures.exactness import Sums
from structures.spec import SpecError
from structures.structure import Structure

PLAIN = "einsum"  # the backend whose error others are measured against


class Refused(Exception):
    """This point cannot run; the message is a sentence that says why."""


class NotNow(Refused):
    """This point was left out for lack of time; a run that goes on measures it."""


@dataclass(frozen=True)
class Subject:
    """A layer to be timed.

    `meaning` and `plain` take (x, parameters) in any dtype; `parameters` are in the order in which both read them.
    """

    structure: Structure
    backend: str
    forward: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    meaning: Callable[[Tensor, Sequence[Tensor]], Tensor]
    plain: Callable[[Tensor, Sequence[Tensor]], Tensor]
    executed_flops: Callable[[int, bool], int]
    state: Callable[[], dict[str, Tensor]]  # what a checkpoint holds
    originals: tuple[Tensor, ...] | None = None  # parameters before they were rounded: errors are reported, not gated
    sums: Callable[[int], Sequence[Sums]] | None = None  # of so many tokens, where it is more than one linear map

    def step(self, x: Tensor, dy: Tensor | None) -> Callable[[], object]:
        """One call as it is timed: forward, or with `dy` forward and the gradients of x and all parameters."""
        if dy is None:
            return lambda: self.forward(x)
        wanted, zeros = (x, *self.parameters), self.router_may_idle
        return lambda: torch.autograd.grad(self.forward(x), wanted, dy, materialize_grads=zeros)

    @property
    def router_may_idle(self) -> bool:
        """The router may have no gradient, where the experts it chose are not weighted: zeros then stand for it."""
        return self.structure.gate is not None


def subject(point: Point, x: Tensor) -> Subject:
    """The subject of a point; of dense ones, by the way the point names.

    Raises:
        Refused: options that do not fit, a backend that does not run it, or no compiler that works.
    """
    try:
        structure = bound(point)
    except SpecError as error:
        raise Refused(str(error)) from None
    if not point.is_dense:
        return structured(structure, read_options(point.options), point.backend, x)
    if point.backend == "entry":
        return structured(structure, {}, backends.AUTO, x)
    return dense(structure, point.backend, x)


def structured(structure: Structure, options: Mapping[str, object], backend: str, x: Tensor) -> Subject:
    """The subject of a structure with these options.

    Raises:
        Refused: the backend does not run it.
    """
    try:
        with torch.set_grad_enabled(x.requires_grad):  # as it is timed: experts are priced with or without gradients
            ran = backends.choose(backend, structure, x)
    except ValueError as error:
        raise Refused(str(error)) from None
    widths = structure.widths
    layer = StructuredLinear(
        structure.spec, *widths, device=x.device, dtype=x.dtype, backend=backend, **options  # type: ignore[arg-type]
    )  # fmt: skip
    layer.train(x.requires_grad)  # a kept dense weight runs in evaluation alone
    assert layer.bias is not None
    groups: dict[str, Any] = {}
    if structure.gate is not None:
        layer.backend = ran
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # a fresh router sends every token to the same experts, a random one spreads them
            layer.router.copy_(torch.randn(structure.router_shape, generator=generator) * structure.widths[0] ** -0.5)
            if ran == "grouped":  # what it executes depends on the lengths of its groups
                groups["lengths"] = grouped.lengths(layer.forward_with_routing(x)[1])
    return Subject(
        structure=structure,
        backend=ran,
        forward=layer,
        parameters=(*layer.operands, layer.bias),
        meaning=lambda x, p: reference.apply(structure, x, p[:-1], p[-1]),
        plain=_plain(structure),
        executed_flops=lambda tokens, train: backends.get(ran).executed_flops(structure, tokens, train=train, **groups),
        state=layer.state_dict,
    )


def _plain(structure: Structure) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """The plainest execution in the dtype of x: einsum's steps, or where there are experts the reference."""
    if structure.gate is not None:
        return lambda x, p: reference.apply(structure, x, p[:-1], p[-1])
    return lambda x, p: backends.apply(PLAIN, structure, x, p[:-1], p[-1])


def dense(structure: Structure, way: str, x: Tensor) -> Subject:
    """The subject of a dense layer, run in one of the ways of `CANDIDATES`.

    Raises:
        Refused: it does not run here in this way.
    """
    assert way in CANDIDATES
    linear = nn.Linear(structure.in_features, structure.out_features, device=x.device, dtype=x.dtype)
    weight, bias = linear.weight, linear.bias
    transposed = way == "addmm"  # kept as (in_features, out_features), so that no operand is transposed
    if transposed:
        weight = nn.Parameter(linear.weight.detach().t().contiguous())
    forward: Callable[[Tensor], Tensor] = linear
    if transposed:
        forward = lambda x: torch.addmm(bias, x, weight)  # noqa: E731
    elif way == ONEDNN:
        if x.device.type != "cpu" or x.requires_grad or not torch.backends.mkldnn.is_available():
            raise Refused("oneDNN's own product runs on the CPU, without gradients, where torch has oneDNN")
        forward = lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: E731
    elif way == "compiled":
        compiled = _compiled(x, x.dtype)
        forward = lambda x: compiled(x, weight, bias)  # noqa: E731

    def turned(x: Tensor, p: Sequence[Tensor]) -> Tensor:
        return torch.einsum("ti,io->to", x, p[0]) + p[1]

    return Subject(
        structure=structure,
        backend=way,
        forward=forward,
        parameters=(weight, bias),
        meaning=turned if transposed else product,
        plain=turned if transposed else product,
        executed_flops=lambda tokens, train: structure.flops(tokens, train=train),
        state=linear.state_dict,
    )


def product(x: Tensor, p: Sequence[Tensor]) -> Tensor:
    """What nn.Linear means by its weight and bias."""
    return torch.einsum("ti,oi->to", x, p[0]) + p[1]


def _compiled(x: Tensor, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`F.linear` through the compiler, once for all sizes; one graph with gradients, one without."""
    compiled: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    compiled, failure = _compile(x.device.type, dtype, x.shape[0] == 1, x.requires_grad, torch.get_num_threads())
    if compiled is None:
        raise Refused(f"no compiler works here: {failure}")
    return compiled


@cache
def _compile(device: str, dtype: torch.dtype, one_token: bool, train: bool, threads: int):  # type: ignore[no-untyped-def]
    tokens = 1 if one_token else 7
    x, w, b = (torch.ones(*shape, device=device, dtype=dtype, requires_grad=train)
               for shape in ((tokens, 8), (16, 8), (16,)))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own imports warn
        try:
            compiled = torch.compile(lambda x, w, b: functional.linear(x, w, b), dynamic=True)
            y = compiled(x, w, b)
            if train:
                torch.autograd.grad(y, (x, w, b), torch.ones_like(y))
        except (RuntimeError, OSError, ImportError) as error:
            return None, str(error).strip().partition("\n")[0]
    return compiled, None
