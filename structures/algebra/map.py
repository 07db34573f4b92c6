"""A registry entry bound to widths: its terms and factors, and every count.

Nothing here is declared by an entry: all of it follows from the axes of its einsum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from structures.algebra.constants import Constant
from structures.algebra.steps import Axes, Step, chained
from structures.language.entry import Entry

if TYPE_CHECKING:
    from typing_extensions import Self


MAX_SIZE = 2**24  # of an axis: the largest width, so that no entry asks for more than a width could


@dataclass(frozen=True)
class Gather:
    """An input axis read through an integer expression of other axes.

    `table[j]` is the position on `axis` for the j-th combination of `by`, in row-major order.
    """

    axis: str
    by: Axes
    table: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Term:
    """One einsum term with all axes written out; `loaded` is the input view once gathers are applied.

    A chain of several has its `links`, each an einsum of its own that reads the result of the one before it, flat: the
    same name of an axis in two links is a coincidence of size. `input`, `loaded` and `gathers` are then the first
    link's, `output` the last one's, `factors` and `steps` those of all.
    """

    input: Axes
    loaded: Axes
    gathers: tuple[Gather, ...]
    factors: tuple[int, ...]  # positions in Structure.factors, in written order
    output: Axes
    steps: tuple[Step, ...]  # in the order of contraction
    links: tuple[Term, ...] = ()  # two or more; none of a term that is one einsum
    written: str = ""  # the term as its entry has it, where it holds constants, which are taken apart above

    @staticmethod
    def of_links(links: Sequence[Term]) -> Term:
        """The chain of these links; of one link itself."""
        if len(links) == 1:
            return links[0]
        first, last = links[0], links[-1]
        factors = tuple(f for link in links for f in link.factors)
        steps = tuple(step for link in links for step in link.steps)
        return Term(first.input, first.loaded, first.gathers, factors, last.output, steps, tuple(links))

    @property
    def chain(self) -> tuple[Term, ...]:
        """The links, or the term itself where it is one einsum."""
        return self.links or (self,)


@dataclass(frozen=True)
class Gate:
    """An expert axis: for every token `active` of the `experts` slices on `axis` are chosen, weighted and summed.

    A router, linear from the input to one logit an expert, chooses the largest logits (the first of equal ones); the
    weights are the softmax over the chosen. Terms that do not hold the axis are added for every token.

    With one active expert its weight is always 1: the task gives the router no gradient, `Routing`'s losses alone do.

    What is not asked for is None: torch.compile would trace a model twice to look at a number that is 0.
    """

    axis: str
    experts: int
    active: int
    jitter: float | None = None  # standard deviation of the noise on the logits, in training alone
    capacity: float | None = None  # tokens an expert takes in training, in even shares of all choices; else any number


@dataclass(frozen=True)
class Map:
    """A structured linear map of fixed widths: `y = W x`, W of shape (out_features, in_features) a sum of terms.

    Frozen and hashable. `factors` holds the axes of each trainable factor, in written order, and after them those of
    the constants; a factor's shape is the sizes of its axes. Sizes and options are mappings stored as tuples of pairs.
    """

    name: str
    title: str
    in_features: int
    out_features: int
    options: tuple[tuple[str, object], ...]
    sizes: tuple[tuple[str, int], ...]
    factors: tuple[Axes, ...]
    terms: tuple[Term, ...]
    spec: Entry = field(compare=False, repr=False)  # the Spec it was bound from
    gate: Gate | None = None  # then W depends on the token: the chosen experts' terms, weighted
    constants: tuple[Constant, ...] = ()  # the last of `factors`, which nobody trains
    asked: tuple[int, int] | None = None  # the widths that these were taken in place of: input zero-filled, output cut

    def __hash__(self) -> int:  # three fields tell nearly all apart; hashing the terms would cost on every lookup
        return hash((self.name, self.in_features, self.out_features, self.sizes))

    def __getstate__(self) -> dict[str, object]:  # what was worked out is worked out again
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What a backend works out once and keeps with the structure, by the backend's name."""
        return {}

    @cached_property
    def size(self) -> Mapping[str, int]:
        """Size of each axis."""
        return dict(self.sizes)

    @cached_property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each trainable factor, in written order."""
        return tuple(self.shape(axes) for axes in self.factors[: self.trainable])

    @property
    def trainable(self) -> int:
        """How many of the factors are trained: all but the constants."""
        return len(self.factors) - len(self.constants)

    @cached_property
    def chained(self) -> bool:
        """Whether some term is a chain of several links."""
        return any(term.links for term in self.terms)

    def part(self, factors: Sequence[Axes], terms: Sequence[Term], gate: Gate | None = None) -> Self:
        """A map of its own of these terms, whose `factors` are numbered anew and all alike, constants or not."""
        used = {a for axes in factors for a in axes}
        used |= {a for t in terms for x in t.chain for axes in (x.input, x.loaded, x.output) for a in axes}
        return replace(
            self,
            in_features=self.numel(terms[0].input),
            out_features=self.numel(terms[0].output),
            sizes=tuple((a, n) for a, n in self.sizes if a in used),
            factors=tuple(factors),
            terms=tuple(terms),
            gate=gate,
            constants=(),
            asked=None,
        )

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the factors as parameters: `factor_0`, `factor_1`, ... in written order."""
        return tuple(f"factor_{i}" for i in range(self.trainable))

    def name_of(self, factor: int) -> str:
        """What a factor is called in a page: its name, or the kind of constant."""
        return self.factor_names[factor] if factor < self.trainable else self.constants[factor - self.trainable].kind

    @cached_property
    def plain(self) -> bool:
        """Whether every term is one einsum of trainable factors, at these widths: no chain, constant or padding."""
        return not self.chained and not self.constants and self.asked is None

    @property
    def widths(self) -> tuple[int, int]:
        """(in_features, out_features) as asked for, before any padding."""
        return self.asked or (self.in_features, self.out_features)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all terms, one term after another."""
        return tuple(step for term in self.terms for step in term.steps)

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """The sizes of `axes`."""
        return tuple(self.size[a] for a in axes)

    def numel(self, axes: Axes) -> int:
        """The product of the sizes of `axes`."""
        return math.prod([self.size[a] for a in axes])  # a list, as torch.compile does not follow a generator here

    @cached_property
    def params(self) -> int:
        """Trainable numbers of all factors, and of the router where there is one, without the bias."""
        return sum(math.prod(shape) for shape in self.factor_shapes) + math.prod(self.router_shape)

    @property
    def router_shape(self) -> tuple[int, ...]:
        """(experts, in_features); (0,) without a gate."""
        return (0,) if self.gate is None else (self.gate.experts, self.widths[0])

    @property
    def dense_params(self) -> int:
        """Entries of a dense weight, of the widths as asked for."""
        return math.prod(self.widths)

    def flops(self, tokens: int = 1, *, train: bool = False) -> int:
        """Floating-point operations of `tokens` tokens: 2 per multiply-add, forward, without the bias.

        With a gate those of the chosen experts and of the router; what a backend runs is its `executed_flops`.

        Args:
            train: count the gradients of the input and of every factor too: three times the forward, for a constant,
                which has no gradient, twice.
        """
        passes = {True: 3, False: 2} if train else {True: 1, False: 1}
        each = sum(passes[step.factor < self.trainable] * self.active(step.axes) for step in self.steps)
        return 2 * tokens * (each + passes[True] * math.prod(self.router_shape))

    def active(self, axes: Axes) -> int:
        """The product of the sizes of `axes`, the expert axis as large as the number of experts chosen."""
        if self.gate is None or self.gate.axis not in axes:
            return self.numel(axes)
        return self.numel(axes) // self.gate.experts * self.gate.active

    def dense_flops(self, tokens: int = 1, *, train: bool = False) -> int:
        """The same count for a dense layer of these widths."""
        return 2 * tokens * self.dense_params * (3 if train else 1)

    @cached_property
    def activation_size(self) -> int:
        """Numbers a token in the intermediate activations, from the first step's result to the last one's operand."""
        return sum(self.active(step.result) for term in self.terms for step in term.steps[:-1])

    def bytes(self, tokens: int = 1, itemsize: int = 4, *, train: bool = False, intermediates: bool = True) -> int:
        """Bytes moved when every tensor passes through memory once for each product that reads or writes it.

        Forward: input and factors are read, the output is written, each intermediate is written and read. Training
        adds the backward: input, intermediates and factors are read again, the output's gradient is read, and the
        gradients of input, factors and intermediates are written (those of intermediates also read, twice).

        Args:
            itemsize: bytes of one number.
            intermediates: without them it is the least that any execution of this structure moves.
        """
        inputs, outputs = tokens * self.in_features, tokens * self.out_features
        between = tokens * self.activation_size if intermediates else 0
        fixed = sum(constant.numel for constant in self.constants)
        count = inputs + outputs + self.params + fixed + 2 * between
        if train:
            count += 2 * inputs + outputs + 2 * self.params + fixed + 4 * between
        return count * itemsize

    def dense_bytes(self, tokens: int = 1, itemsize: int = 4, *, train: bool = False) -> int:
        """The same count for a dense layer of these widths."""
        inputs, outputs = self.widths
        count = tokens * (inputs + outputs) + self.dense_params
        if train:
            count += tokens * (2 * inputs + outputs) + 2 * self.dense_params
        return count * itemsize

    @cached_property
    def exponents(self) -> Mapping[str, float]:
        """Each axis's size as a power of the width it divides: the realised theta of the einsum space.

        Input axes are powers of in_features, output axes of out_features, all others of the smaller width.
        """
        inputs = {a for term in self.terms for a in term.input}
        outputs = {a for term in self.terms for a in term.output}
        small = min(self.in_features, self.out_features)
        base = {a: self.in_features if a in inputs else self.out_features if a in outputs else small for a in self.size}
        return {a: math.log(n) / math.log(base[a]) if base[a] > 1 else 0.0 for a, n in self.size.items()}

    def fan(self, factor: int) -> tuple[int, int]:
        """(fan_in, fan_out) of one slice of the batched product that applies `factor`; of one expert's, with a gate."""
        step = next(step for step in self.steps if step.factor == factor)
        gate = None if self.gate is None else self.gate.axis
        fan_in, fan_out = (self.numel(tuple(a for a in axes if a != gate)) for axes in (step.contracted, step.cols))
        return fan_in, fan_out

    def summed(self, experts: int | None = None) -> Self:
        """Without a gate itself; else the structure without it, whose W is a sum over `experts` experts.

        That is the matrix of one token, up to the experts' weights; by default of as many experts as are active.
        An axis in a single factor is left out of it: the sum of such experts is one more of their kind.
        """
        if self.gate is None:
            return self
        gate, factors, terms = self.gate, list(self.factors), []
        count = gate.active if experts is None else experts
        for term in self.terms:
            links = []
            for link in term.chain:
                if sum(gate.axis in factors[f] for f in link.factors) == 1:
                    for f in link.factors:
                        factors[f] = tuple(a for a in factors[f] if a != gate.axis)
                order = [step.factor for step in link.steps]
                held = {f: factors[f] for f in link.factors}
                links.append(replace(link, steps=chained(link.loaded, order, held, link.output)))
            terms.append(Term.of_links(links))
        used = {a for axes in (*factors, *(v for t in terms for x in t.chain for v in (x.loaded, x.output)))
                for a in axes}  # fmt: skip
        sizes = ((a, count if a == gate.axis else n) for a, n in self.sizes)
        kept = tuple((a, n) for a, n in sizes if a != gate.axis or a in used)
        return replace(self, sizes=kept, factors=tuple(factors), terms=tuple(terms), gate=None)

    def term_of(self, factor: int) -> Term:
        """The term that `factor` belongs to."""
        return next(term for term in self.terms if factor in term.factors)
