"""What is to be computed: a structure as chains of pairwise contractions, with no order of memory fixed yet.

Axes of size 1 are dropped, and axes that stand side by side wherever they stand are one axis. Factors of neighbouring
steps may be contracted with one another before the activation is touched (a *grouping*, each group a tree of pairs):
exact, and differentiable like every other contraction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from structures.backends.planned.layout import TOKENS, Layout, fuse, heads
from structures.structure import Structure, Term

X = "x"  # name of the input; f0, f1, ... are the factors as written

Tree = int | tuple["Tree", "Tree"]  # a factor, or two neighbours contracted with one another
Grouping = tuple[Tree, ...]  # what meets the activation, step by step


@dataclass(frozen=True)
class Read:
    """A gather of whole blocks: position j of the axes `by` reads position `table[j]` of `axis`.

    `extents` are the sizes of `axis` and of `by`; `again` is an axis along the readers of one position.
    """

    axis: str
    by: Layout
    table: tuple[int, ...]
    extents: tuple[int, ...]
    again: str

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...] | None:
        """For each position of `axis`, the positions of `by` that read it; None where some are read more often."""
        found: list[list[int]] = [[] for _ in range(self.extents[0])]
        for reader, position in enumerate(self.table):
            found[position].append(reader)
        often = len(self.table) // self.extents[0]
        return tuple(map(tuple, found)) if often and all(len(r) == often for r in found) else None

    def places(self, axes: Layout) -> tuple[int, ...]:
        """Positions along some of the axes of `by`, flattened in the order given, of all readers in turn."""
        size = dict(zip(self.by, self.extents[1:], strict=True))
        strides = {a: math.prod(size[b] for b in self.by[i + 1 :]) for i, a in enumerate(self.by)}
        places = []
        for reader in itertools.chain.from_iterable(self.readers or ()):
            place = 0
            for axis in axes:
                place = place * size[axis] + reader // strides[axis] % size[axis]
            places.append(place)
        return tuple(places)


@dataclass(frozen=True)
class Node:
    """`result` = contraction of `left` and `right` that keeps `axes`; left is the activation, or a merged factor."""

    result: str
    left: str
    right: str
    axes: frozenset[str]


@dataclass(frozen=True)
class Chain:
    """One term: x viewed as `view`, gathered by `reads` into `loaded`, contracted by `nodes` into axes `output`.

    `source` names the value that the first node takes, `result` the one to be placed.
    """

    source: str
    view: Layout
    reads: tuple[Read, ...]
    loaded: Layout
    nodes: tuple[Node, ...]
    output: Layout

    @property
    def result(self) -> str:
        return self.nodes[-1].result if self.nodes else self.source

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all values: the source, every factor's, every node's."""
        used = (v for n in self.nodes for v in (n.left, n.right, n.result))
        return tuple(dict.fromkeys((self.source, *used)))


@dataclass(frozen=True)
class ChainProblem:
    """All chains of a structure, the layouts and shapes of its factors as written, and the sizes of all other axes."""

    in_features: int
    out_features: int
    sizes: tuple[tuple[str, int], ...]
    factors: tuple[Layout, ...]
    factor_shapes: tuple[tuple[int, ...], ...]
    chains: tuple[Chain, ...]
    single: bool = False  # one token, and no axis for it

    def numel(self, axes: Iterable[str], tokens: int) -> int:
        """Number of elements of a tensor with these axes."""
        size = dict(self.sizes)
        return math.prod(tokens if a == TOKENS else size[a] for a in axes)


def factor_name(position: int) -> str:
    return f"f{position}"


def factor_number(name: str) -> int:
    return int(name[1:])


def as_written(structure: Structure) -> tuple[Grouping, ...]:
    """The grouping of each term that merges nothing."""
    return tuple(tuple(step.factor for step in term.steps) for term in structure.terms)


def leaves(tree: Tree) -> tuple[int, ...]:
    """The factors of a tree, in the order of their steps."""
    return (tree,) if isinstance(tree, int) else (*leaves(tree[0]), *leaves(tree[1]))


def pose(structure: Structure, groupings: Sequence[Grouping] | None = None, *, single: bool = False) -> ChainProblem:
    """The problem of a structure, its factors merged as `groupings` (one a term) say.

    Args:
        single: exactly one token; the axis of tokens is then dropped like every axis of size 1.
    """
    groupings = as_written(structure) if groupings is None else groupings
    runs = _runs(structure)
    sizes = {head: structure.numel(run) for head, run in runs.items()}

    def short(axes: Sequence[str]) -> Layout:
        return heads(tuple(axes), runs)

    factors = tuple(short(axes) for axes in structure.factors)
    names, lead = itertools.count(), () if single else (TOKENS,)
    chains = tuple(
        _chain(f"{X}{number}", lead, term, short, factors, grouping, names, dict(structure.sizes))
        for number, (term, grouping) in enumerate(zip(structure.terms, groupings, strict=True))
    )
    widths = structure.in_features, structure.out_features
    for read in (r for chain in chains for r in chain.reads):
        sizes[read.again] = len(read.table) // read.extents[0]
    return ChainProblem(*widths, tuple(sizes.items()), factors, structure.factor_shapes, chains, single)


def _runs(structure: Structure) -> Mapping[str, Layout]:
    """Axes of size > 1 and those of gathers; neighbours everywhere are one axis."""
    read = {a for term in structure.terms for gather in term.gathers for a in (gather.axis, *gather.by)}
    wide = read.union(axis for axis, size in structure.sizes if size > 1)
    views = [axes for term in structure.terms for axes in (term.input, term.loaded, term.output)]
    layouts = [tuple(a for a in axes if a in wide) for axes in (*views, *structure.factors)]
    return fuse(*layouts, keep=read)


def _chain(
    source: str,
    lead: Layout,
    term: Term,
    short: Callable[[Sequence[str]], Layout],
    factors: Sequence[Layout],
    grouping: Grouping,
    names: Iterator[int],
    size: Mapping[str, int],
) -> Chain:
    view, loaded, output = ((*lead, *short(axes)) for axes in (term.input, term.loaded, term.output))
    nodes: list[Node] = []

    def merged(tree: Tree, before: frozenset[str], after: frozenset[str]) -> tuple[str, frozenset[str]]:
        """A tree's value and its axes; `before`: of the activation it will meet, `after`: of all still to come."""
        if isinstance(tree, int):
            return factor_name(tree), frozenset(factors[tree])
        one, two = tree
        between = after.union(*(factors[p] for p in leaves(two)))
        left, left_axes = merged(one, before, between)
        right, right_axes = merged(two, (before | left_axes) & between, after)
        axes = (left_axes | right_axes) & (before | after)
        nodes.append(Node(f"m{next(names)}", left, right, axes))
        return nodes[-1].result, axes

    activation, axes = source, frozenset(loaded)
    for number, tree in enumerate(grouping):
        after = frozenset(output).union(*(factors[p] for later in grouping[number + 1 :] for p in leaves(later)))
        operand, operand_axes = merged(tree, axes, after)
        axes = (axes | operand_axes) & after
        nodes.append(Node(f"h{next(names)}", activation, operand, axes))
        activation = nodes[-1].result
    reads = tuple(
        Read(g.axis, g.by, g.table, tuple(size[a] for a in (g.axis, *g.by)), f"<{g.axis} {source}>")
        for g in term.gathers
    )
    return Chain(source, view, reads, loaded, tuple(nodes), output)
