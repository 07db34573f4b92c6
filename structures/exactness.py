"""The error rule: how far a right result may be from the truth, whatever the processor, the backend and the order.

A result is right where `|found - exact| <= TWICE * |plain - exact| + |deviation|`, in the Frobenius norm or in the
largest number. `exact` is the reference in float64, `plain` the plainest PyTorch in the dtype at hand; two backends
that round equally often differ from each other by luck, so that twice plain's error is asked for. But plain may be
lucky, or be the truth itself (in float64), while another processor, number of threads or order of contraction sums the
same numbers in another order. The deviation covers that; it follows from the structure and the numbers alone:

1. *One sum.* Adding n numbers one after another rounds each partial sum s_k once, by a relative error of at most the
   unit roundoff u. These errors are taken as independent, of mean zero and evenly spread over [-u, u], hence of
   variance u^2 / 3; the error of the sum has the variance u^2 / 3 * sum of s_k^2. Numbers t_i in no particular order
   have partial sums that grow as those of a random walk with drift, and sum of s_k^2 is at most
   n / 2 * (T^2 + S^2), with T^2 the sum of t_i^2 and S the sum. So the variance is at most n / 6 * u^2 * (T^2 + S^2).
   Blocked and pairwise sums have fewer and smaller partial sums, and stay below it.
   (Higham & Mary 2019, SIAM J. Sci. Comput. 41(5), A2815, replace n by sqrt(n) in the classical bounds of Higham 2002,
   "Accuracy and Stability of Numerical Algorithms", chapters 3 and 4, by this model; Higham & Mary 2020, 42(5), A3427,
   add that of random numbers, where T and S take the place of the sum of |t_i|.)
2. *A number stored* is rounded once to its dtype: variance u^2 / 3 of its square. Numbers of 16 bits are summed in
   float32, so that theirs is u = 2^-24 in sums and their own u where they are stored.
3. *A chain of steps.* A step of K contracted numbers adds K / 6 to the variance of its results, in units of u^2; as
   every result is linear in each step's, these variances add: n is the sum of the lengths of all sums that follow one
   another on the way to a result (`sums`). A value sums the K of each step; the gradient of the input sums each step's
   columns; a factor's sums tokens times rows, after both. A backend may multiply factors first, or take them in another
   order: it then sums axes of a view at once that are summed in turn here, hence the widths are added to n, and rows
   are those of the worst order.
4. *Conditioning.* T^2 of a result is the sum of the squares of all products that it adds. As a structure is linear in
   each operand, it is the same einsum at squared operands, and for gradients that one's derivative: what cancels in
   a result shows as T > |S| (`deviations`).
5. *A gate* is not linear. Its logits are sums of in_features numbers, and an absolute error of a logit is a relative
   error of an expert's weight; the gradient of a logit subtracts the experts' mean gain from one expert's, each of
   which was rounded before. Both variances are carried on by the derivative (`_Gated`).
6. *The reference* in float64 is rounded too: where it judges float64, variances double.

The bound is DEVIATIONS standard deviations: a normal error exceeds that with a probability of 2e-9, and a run of all
tests compares some 1e6 results, most of them by a norm, in which the errors of many numbers even out. The variances are
upper bounds by themselves: rounding errors of u are reached just above powers of two alone. No figure here was read off
a machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from structures import constants, reference
from structures.structure import Structure, Term

TWICE = 2.0  # errors of plain PyTorch in the same dtype
DEVIATIONS = 6.0  # 2e-9 of normal errors are larger

Meaning = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Sums:
    """On the way to a result: how many numbers are summed in succession, and how many are rounded to the dtype."""

    numbers: int
    stored: int = 1

    def __add__(self, other: Sums) -> Sums:
        """Both, one after the other."""
        return Sums(self.numbers + other.numbers, self.stored + other.stored)

    def variance(self, dtype: torch.dtype) -> float:
        """Of a result's error, relative to T^2 + S^2."""
        summed, kept = unit(torch.promote_types(dtype, torch.float32)), unit(dtype)
        both = 2 if dtype == torch.float64 else 1
        return both * (summed**2 * self.numbers / 6 + kept**2 * self.stored / 3)

    def share(self, dtype: torch.dtype) -> float:
        """The deviation of a result in which nothing cancels (T = |S|), relative to its norm."""
        return DEVIATIONS * math.sqrt(2 * self.variance(dtype))


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff: the largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def allowed(usual: float, deviation: float) -> float:
    """The largest error of a right result.

    Args:
        usual: plain PyTorch's error in the same dtype.
        deviation: that of `Sums.share`, or the norm of one of `deviations`; in the same norm and relative to the same.
    """
    return TWICE * usual + deviation


def sums(structure: Structure, tokens: int) -> list[Sums]:
    """How y, dx, each factor's gradient and the bias's are summed, in any order of contraction."""
    terms = len(structure.terms)
    y = _longest(_value(structure, term) for term in structure.terms)
    dx = _longest(_input(structure, term) for term in structure.terms)
    added = Sums(terms + 1, terms + 1)  # the terms, and the bias
    active = 0 if structure.gate is None else structure.gate.active
    experts = Sums(active, active)  # the others are zeros, which round nothing
    factors = []
    for factor, axes in enumerate(structure.factors[: structure.trainable]):
        term = structure.term_of(factor)
        link = next(link for link in term.chain if factor in link.factors)
        step = next(step for step in link.steps if step.factor == factor)
        rows = max(
            structure.numel(tuple(a for a in view if a not in axes)) for view in (step.rows, link.loaded, link.output)
        )
        own = Sums(tokens * rows)
        factors.append(_value(structure, term) + _input(structure, term) + own + experts)
    return [y + added + experts, dx + added + experts, *factors, Sums(tokens)]


def in_turn(layers: Sequence[Sequence[Sums]], between: Sums) -> list[Sums]:
    """How y, dx and the gradients of all parameters of a network are summed whose layers follow one another.

    Args:
        layers: the `sums` of each.
        between: what is done to a number between two layers, and to its gradient.
    """
    nothing = Sums(0, 0)
    forward = list(accumulate((layer[0] + between for layer in layers), initial=nothing))
    backward = list(accumulate((layer[1] + between for layer in reversed(layers)), initial=nothing))[::-1]
    gradients = [
        gradient + before + after
        for layer, before, after in zip(layers, forward[:-1], backward[1:], strict=True)
        for gradient in layer[2:]
    ]
    return [forward[-1], backward[0], *gradients]


def _longest(several: Iterable[Sums]) -> Sums:
    return max(several, key=lambda s: (s.numbers, s.stored))


def _value(structure: Structure, term: Term) -> Sums:
    """In the order of its steps, or over the input of each link at once."""
    widths = sum(structure.numel(link.input) for link in term.chain)
    return Sums(sum(structure.numel(step.contracted) for step in term.steps) + widths, 1 + len(term.steps))


def _input(structure: Structure, term: Term) -> Sums:
    """The gradient of a term's input; what is read several times through an index is added one by one."""
    gathers = [gather for link in term.chain for gather in link.gathers]
    reads = math.prod(max(Counter(gather.table).values(), default=1) for gather in gathers)
    columns = sum(structure.numel(step.cols) for step in term.steps)
    widths = sum(structure.numel(link.output) for link in term.chain)
    return Sums(columns + widths + reads, len(term.steps) + reads)


def deviations(
    structure: Structure,
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor | None,
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    meaning: Meaning | None = None,
) -> list[Tensor]:
    """How far each number of a right result may be off besides TWICE plain's error: of y, dx and every gradient.

    Args:
        x: (tokens, in_features), in float64 as all operands.
        parameters: the factors, with a gate the router, and the bias.
        dy: None for y alone.
        exact: the results in float64: y, and with `dy` the gradients of x and all parameters.
        dtype: of the results that are judged.
        meaning: (x, parameters) -> y, where parameters are laid out in another way than the reference takes them.
    """
    with torch.no_grad():
        x, parameters = x.detach(), [p.detach() for p in parameters]
    if structure.gate is None:
        found = _linear(structure, x, parameters, dy, exact, dtype, meaning or _squares(structure))
    else:
        found = _Gated(structure, x, parameters, dtype).variances(dy, exact)
    return [variance.sqrt_().mul_(DEVIATIONS) for variance in found]


def _squares(structure: Structure) -> Meaning:
    """The reference at squared operands: the constants among them are squared too."""
    return lambda x, p: reference.apply(structure, x, p[:-1], p[-1], _squared(structure, x))


def _squared(structure: Structure, like: Tensor) -> list[Tensor]:
    return [constant.square() for constant in constants.tensors(structure, like)]


def _linear(
    structure: Structure,
    x: Tensor,
    parameters: Sequence[Tensor],
    dy: Tensor | None,
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    meaning: Meaning,
) -> list[Tensor]:
    squares = _derivatives(meaning, x, parameters, dy)
    each = [s.variance(dtype) for s in sums(structure, x.shape[0])]
    return [torch.addcmul(t, s, s).mul_(v) for v, t, s in zip(each, squares, exact, strict=False)]


def _derivatives(function: Meaning, x: Tensor, parameters: Sequence[Tensor], dy: Tensor | None) -> list[Tensor]:
    """T^2 of y, and with `dy` of the gradients of x and of all parameters."""
    leaves = [t.square().requires_grad_(dy is not None) for t in (x, *parameters)]
    y = function(leaves[0], leaves[1:])
    if dy is None:
        return [y]
    gradients = torch.autograd.grad(y, leaves, dy.square(), materialize_grads=True)
    return [y.detach(), *gradients]


class _Gated:
    """Variances of a mixture of experts: y = sum of w_e E_e(x), w the softmax of the chosen logits x r_e."""

    def __init__(self, structure: Structure, x: Tensor, parameters: Sequence[Tensor], dtype: torch.dtype):
        self.structure, self.x, self.dtype = structure, x, dtype
        *self.factors, self.router, self.bias = parameters
        self.weights = reference.gates(structure, x, self.router)  # (tokens, experts)
        self.moved = self.weights.square() * self._relative()

    def _relative(self) -> Tensor:
        """The relative variance of each weight: (1 - w) times its own logit's error, w times those of the others."""
        wide = torch.promote_types(self.dtype, torch.float32)
        logits = self.x @ self.router.t()
        spread = self.x.square() @ self.router.square().t() + logits.square()
        own = Sums(self.structure.widths[0]).variance(wide) * spread * (self.weights > 0)
        others = self.weights.square() * own
        rounded = Sums(self.weights.shape[1], 2).variance(self.dtype)  # the exponential, and its share of their sum
        return (1 - self.weights).square() * own + others.sum(1, keepdim=True) - others + rounded

    def variances(self, dy: Tensor | None, exact: Sequence[Tensor]) -> list[Tensor]:
        """Of y, and with `dy` of the gradients of x, the factors, the router and the bias."""
        tokens, experts = self.weights.shape
        each = [s.variance(self.dtype) for s in sums(self.structure, tokens)]
        parameters = [*self.factors, self.bias]
        squares = _derivatives(self._mixture, self.x, parameters, dy)
        through = _derivatives(self._moved, self.x, parameters, dy)
        results = [*exact[:-2], exact[-1]] if dy is not None else exact
        found = [v * (t + s.square()) + m for v, t, s, m in zip(each, squares, results, through, strict=False)]
        if dy is None:
            return found
        error, logits = self._logits(dy)
        summed = Sums(tokens).variance(self.dtype)
        square = self.x.square()
        router = error.t() @ square + summed * (logits.square().t() @ square + exact[-2].square())
        found[1] = found[1] + (error + Sums(experts).variance(self.dtype) * logits.square()) @ self.router.square()
        return [*found[:-1], router, found[-1]]

    def _logits(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of the gradient of each logit, w_e (a_e - sum of w_j a_j) with a_e = dy E_e(x), and itself."""
        weights = self.weights.detach().requires_grad_()
        y = reference.mixture(self.structure, self.x, self.factors, weights)
        (gain,) = torch.autograd.grad(y, weights, dy)
        own = self.weights.square().requires_grad_()
        squared = [f.square() for f in self.factors], own, _squared(self.structure, self.x)
        y = reference.mixture(self.structure, self.x.square(), *squared)
        (spread,) = torch.autograd.grad(y, own, dy.square())
        square, spread = self.weights.square(), spread + gain.square()
        output = _longest(_value(self.structure, term) for term in self.structure.terms)
        gained = (output + Sums(self.structure.out_features)).variance(self.dtype)  # of one a_e
        mean = (square * spread).sum(1, keepdim=True)
        error = gained * square * (spread + mean)
        error = error + self.moved * (spread + mean) + square * (self.moved * spread).sum(1, keepdim=True)
        return error, self.weights * (gain - (self.weights * gain).sum(1, keepdim=True))

    def _mixture(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        squared = self.weights.square(), _squared(self.structure, x)
        return reference.mixture(self.structure, x, parameters[:-1], *squared) + parameters[-1]

    def _moved(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """What an error of the weights moves: neither the bias nor the terms that hold no expert."""
        without = torch.zeros_like(self.moved)
        fixed = _squared(self.structure, x)
        both = (reference.mixture(self.structure, x, parameters[:-1], w, fixed) for w in (self.moved, without))
        return next(both) - next(both)
