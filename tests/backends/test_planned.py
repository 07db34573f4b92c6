"""The planner: what BLAS can read, every program the search keeps, its autograd function, and the file of rates."""

from __future__ import annotations

import functools
import json
import multiprocessing
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from contract import assert_right, error, limits_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import structures
from structures import exactness, reference
from structures.__main__ import main as command
from structures.backends import planned, stages
from structures.backends.planned import dense, emit, figures, measure, price, problem, rates, search, source
from structures.backends.planned import run as programs
from structures.backends.planned.grouping import merged_whole
from structures.backends.planned.layout import TOKENS, fuse, products, readable
from structures.backends.planned.program import Assemble, GatherBlocks, Multiply, Scatter, Want
from structures.spec import Spec

WIDTHS = {"square": (240, 240), "rectangle": (48, 96)}


def one_program(name: str) -> bool:
    entry = structures.get(name)
    return not entry.gate and all(len(stages.every(entry.bind(*widths))) == 1 for widths in WIDTHS.values())


NAMES = [name for name in structures.names() if one_program(name)]  # the others: test_experts.py and test_linear.py
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]


def bound(spec: str | Spec, *widths: int, **options: object):
    """The structure of an entry as the planner gets it: of a chain what its links are joined to."""
    (program,) = stages.every((structures.get(spec) if isinstance(spec, str) else spec).bind(*widths, **options))
    return program


def odd(einsum: str | tuple[str, ...], **more: object) -> Spec:
    return Spec("odd", einsum, **more)  # type: ignore[arg-type]


# What no entry of the registry has: (definition, in_features, out_features)
ODD = {
    "identity": (odd("x -> x"), 12, 12),
    "permutation": (odd("(a b) -> (b a)", sizes={"a": "3"}), 12, 12),
    "elementwise scaling": (odd("x, x -> x"), 15, 15),
    "scaling and a permutation": (odd(("x, x -> x", "(a b) -> (b a)"), sizes={"a": "3"}), 15, 15),
    "shared axis without a factor": (odd("(a b), b c -> (c a)", sizes={"a": "3"}), 12, 15),
    "outer product only": (odd("(a b), c a -> (c a b)", sizes={"a": "3", "c": "2"}), 12, 24),
    "axis in four operands": (odd("(a b), a b c, a c d, a d e -> (e a)", sizes={"a": "3", "c": "5", "d": "2"}), 12, 21),
    "three-core block tensor train": (
        odd(
            "(a b c), a b c d r, b c d e r s, c d e f s -> (d e f)",
            sizes={"a b c": "split(in_features, 3)", "d e f": "split(out_features, 3)", "r": "2", "s": "3"},
        ),
        30,
        42,
    ),
    "three-core tensor train of rank 4": (
        odd(
            "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])",
            sizes={"i": "split(in_features, 3)", "o": "split(out_features, 3)", "r": "4"},
        ),
        30,
        36,
    ),
    "batch innermost": (odd("(n i), i o n -> (n o)", sizes={"n": "3"}), 12, 15),
    "batch split by the contracted axis": (odd("(m i n), m i n o -> (o m n)", sizes={"m": "3", "n": "2"}), 24, 30),
    "gather through one axis": (
        odd("(b i), u i o -> (u o)", sizes={"b": "6", "u": "6"}, index={"b": "(u + 1) % 6"}),
        18,
        12,
    ),
    "gather that skips blocks": (
        odd("(b i), u i o -> (u o)", sizes={"b": "6", "u": "3"}, index={"b": "2 * u"}),
        18,
        12,
    ),
    "gather by two axes that stay": (
        odd("(b i), u v i o -> (v o u)", sizes={"b": "4", "u": "2", "v": "4"}, index={"b": "(2 * u + v) % 4"}),
        20,
        24,
    ),
    "gather that the first factor sees half of": (
        odd(
            "(b i), u i r, u k r o -> (u o)",
            sizes={"b": "4", "u": "4", "k": "2", "r": "3"},
            index={"b": "u ^ k"},
        ),
        20,
        24,
    ),
    "gather and a second term": (
        odd(
            ("(b i), u k i o -> (u o)", "x, x r, r y -> y"),
            sizes={"b": "4", "u": "4", "k": "3", "r": "2"},
            index={"b": "u ^ 2**k // 2"},
        ),
        20,
        24,
    ),
    "gather of the output's own axis": (
        odd("(b i) -> (u i)", sizes={"b": "4", "u": "4"}, index={"b": "3 - u"}),
        20,
        20,
    ),
    "many narrow terms": (odd(("x, x r, r y -> y",) * 4, sizes={"r": "1"}), 9, 11),
    # previously failed: a view without a dimension
    "one input feature": (
        odd("(a b), a e d f b c, f -> (c d e)", sizes={"a": "1", "c": "2", "d": "2", "f": "4"}),
        1,
        8,
    ),
    "wide rank": (odd("x, x r, r y -> y", sizes={"r": "40"}), 12, 15),
}
CASES = [*((name, width) for name in NAMES for width in WIDTHS), *((name, "") for name in ODD)]


def structure_of(name: str, width: str):
    if name in ODD:
        spec, *widths = ODD[name]
        return spec.bind(*widths)
    return bound(name, *WIDTHS[width])


def operands(structure, tokens: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    """[x, bias, *factors] and dy, factors scaled so that y stays near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    factors = [draw(*s, scale=structure.fan(i)[0] ** -0.5) for i, s in enumerate(structure.factor_shapes)]
    made = [draw(tokens, structure.in_features), draw(structure.out_features), *factors]
    return made, draw(tokens, structure.out_features)


def wanted(structure, made, dy):
    """[y, dx, db, gradients of factors] of the reference."""
    made = [t.detach().clone().requires_grad_() for t in made]
    y = reference.apply(structure, made[0], made[2:], made[1])
    found = torch.autograd.grad(y, made, dy, materialize_grads=True)
    return [y.detach(), *found]


def allowed(structure, made, dy, truth, usual=None):
    """The largest error of each result; all in the order of `wanted`."""
    (x, bias, *factors), turn = made, [0, 1, *range(3, len(made) + 1), 2]  # the bias stands last among parameters
    ordered = [[rs[i] for i in turn] for rs in (truth, usual or truth)]
    y, dx, *rest, db = limits_of(structure, x, [*factors, bias], dy, *ordered)
    return [y, dx, db, *rest]


def share(structure, tokens, dtype=torch.float64):
    """The same for random numbers and whatever is derived from the results: the largest deviation of any of them."""
    return max(s.share(dtype) for s in exactness.sums(structure, tokens))


def whole(structure, made, dy, backend=planned):
    made = [t.detach().clone().requires_grad_() for t in made]
    y = backend.apply(structure, made[0], made[2:], made[1])
    return [y.detach(), *torch.autograd.grad(y, made, dy, materialize_grads=True)]


def everything(structure) -> Want:
    return Want(True, (True,) * len(structure.factors), True)


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory is NaN, so that numbers which nothing wrote show."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


# -- layouts and products


@pytest.mark.parametrize(
    ("layout", "groups", "order"),
    [
        ("btk", ("b", "t", "k"), (0, 1, 2)),
        ("tbk", ("b", "t", "k"), (1, 0, 2)),
        ("bkt", ("b", "t", "k"), (0, 2, 1)),
        ("tkb", ("b", "t", "k"), None),  # batch innermost: no stride of 1 in a matrix
        ("tk", ("", "t", "k"), (1, 2)),
        ("tuk", ("", "tu", "k"), (1, 2)),
        ("tku", ("", "tu", "k"), None),  # rows on both sides of the contracted axis
        ("utk", ("", "tu", "k"), None),  # another order of the rows
        ("b", ("b", "", ""), (0,)),
        ("", ("", "", ""), ()),
    ],
)
def test_an_operand_is_readable_when_its_groups_are_runs_and_batch_is_not_innermost(layout, groups, order):
    assert readable(tuple(layout), tuple(tuple(g) for g in groups)) == order


def results(first: str, second: str, out: str):
    return {"".join(p.result) for p in products(tuple(first), tuple(second), frozenset(out))}


def test_a_plain_product_is_readable_in_both_orientations():
    assert results("tk", "kc", "tc") == {"tc", "ct"}


def test_a_batched_product_puts_the_batch_first():
    assert results("tbk", "bkc", "tbc") == {"btc", "bct"}


def test_a_factor_without_batch_is_read_with_stride_zero_where_rows_surround_the_contracted_axis():
    found = products(("t", "b", "d"), ("e", "b"), frozenset("tde"))
    assert {("".join(p.result), p.expand) for p in found} == {("tde", "right"), ("ted", "left")}


def test_a_factor_gradient_is_the_same_function_with_the_tokens_contracted():
    assert results("btk", "btc", "bkc") == {"bkc", "bck"}
    assert "kc" in results("tbk", "tbc", "kc")  # summed over a batch of tokens, or flattened


def test_nothing_is_readable_where_batch_orders_differ():
    assert products(tuple("abtk"), tuple("bakc"), frozenset("abtc")) == ()


def test_axes_side_by_side_everywhere_are_one():
    assert fuse(tuple("tabc"), tuple("bcta")) == {"t": ("t", "a"), "b": ("b", "c")}
    assert fuse(tuple("tab"), tuple("ab"), keep="t") == {"t": ("t",), "a": ("a", "b")}


# -- every program


@pytest.mark.parametrize(
    ("name", "width", "tokens"), [(*case, n) for case in CASES for n in ((7,) if case[1] == "square" else (1, 7))]
)
def test_every_program_that_the_search_keeps_agrees_with_the_reference(name, width, tokens, poison):
    structure = structure_of(name, width)
    made, dy = operands(structure, tokens)
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    setting = search.Conditions("float64", want=everything(structure))
    plans = search.candidates(structure, tokens, setting, figures.built_in("float32", 2))
    assert plans
    if width == "square":
        plans = plans[::6]  # the others are run at the other width
    for plan in plans:
        for pure in (False, True):
            assert_right(run(plan, made, dy, pure), truth, most, f"{plan}\npure={pure}")


@pytest.mark.parametrize("name", ["dyad_ot", "dyad_dt", "monarch", "pixelfly", "btt"])
def test_programs_planned_for_16_bits_agree_as_well(name, poison):
    structure = bound(name, 48, 96)
    made, dy = operands(structure, 7)
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    setting = search.Conditions("bfloat16", want=everything(structure))
    for plan in search.candidates(structure, 7, setting, figures.built_in("bfloat16", 2)):
        assert_right(run(plan, made, dy, False), truth, most, str(plan))  # in float64, where a wrong program shows


def test_16_bit_pieces_are_turned_before_they_are_added():
    structure = bound("dyad_dt", 1024, 1024)
    place = planned.plan(structure, 128, dtype=torch.bfloat16).forward[-1]
    assert isinstance(place, Assemble) and all(view[-1] == target[-1] for _, view, target in place.pieces)


class Dtypes(TorchDispatchMode):
    """Collects the dtypes of all floating-point results."""

    def __init__(self):
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.seen.update(t.dtype for t in tree_leaves(found) if isinstance(t, torch.Tensor) and t.is_floating_point())
        return found


@pytest.mark.parametrize("name", NAMES)
def test_16_bits_are_never_widened(name):
    structure = bound(name, 48, 96)
    made, dy = operands(structure, 7, torch.bfloat16)
    posed = through_matrix(structure, 7, everything(structure), figures.built_in("bfloat16", 2))
    with Dtypes() as mode:
        whole(structure, made, dy)
        for plan in posed:
            run(plan, made, dy, True)
    assert mode.seen == {torch.bfloat16}


def test_a_widened_product_is_seen():
    with Dtypes() as mode:
        torch.ones(2, 2, dtype=torch.bfloat16).float().mm(torch.ones(2, 2)).bfloat16()
    assert mode.seen == {torch.bfloat16, torch.float32}


def run(plan, made, dy, pure):
    x, bias, *factors = made
    if plan.native:  # autograd takes the pure form alone
        leaves = [t.detach().clone().requires_grad_() for t in made]
        y = source.compiled(emit.forward_source(plan, pure=True), "forward")(leaves[0], *leaves[2:], leaves[1])[0]
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    forward = source.compiled(emit.forward_source(plan, pure=pure), "forward")
    backward = source.compiled(emit.backward_source(plan, pure=pure), "backward")
    with torch.no_grad():
        y, *saved = forward(x, *factors, bias)
        dx, *gradients = backward(dy, *factors, *(x if n == "x" else saved.pop(0) for n in plan.saved))
    return [y, dx, dy.sum(0), *gradients]


@pytest.mark.parametrize(("name", "width"), CASES)
def test_forward_programs_agree_whole_and_in_chunks_with_a_ragged_tail(name, width, poison, monkeypatch):
    monkeypatch.setattr(search, "CHUNKS", (8,))
    structure = structure_of(name, width)
    made, _ = operands(structure, 35)
    x, bias, *factors = made
    for b in (bias, None):
        truth = reference.apply(structure, x, factors, b)
        (most,) = limits_of(structure, x, [*factors, torch.zeros_like(bias) if b is None else b], None, [truth])
        setting = search.Conditions("float64", bias=b is not None)
        plans = search.candidates(structure, 35, setting, figures.built_in("float32", 2))
        assert any(plan.chunk for plan in plans)
        for plan in plans[::3] if width == "square" else plans:
            y = source.compiled(emit.forward_source(plan, pure=False), "forward")(x, *factors, b)[0]
            assert error(y, truth) <= most, str(plan)
            assert y.data_ptr() != x.data_ptr() and y.is_contiguous()


@pytest.mark.parametrize("name", [n for n in NAMES if len(bound(n, 48, 96).steps) > 1])
def test_every_grouping_of_neighbouring_factors_is_exact(name, monkeypatch):
    structure = bound(name, 48, 96)
    made, dy = operands(structure, 5)
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    setting = search.Conditions("float64", want=everything(structure))
    for merged in dict.fromkeys(groupings_of(structure)):  # of two factors, several are one
        monkeypatch.setattr(search, "groupings", lambda *a, _m=merged, **k: [_m])
        for plan in search.candidates(structure, 5, setting, figures.built_in("float32", 2))[:3]:
            assert_right(run(plan, made, dy, False), truth, most, str(plan))


@pytest.mark.parametrize("name", ["block_diagonal", "dyad_it"])
def test_few_wide_matrices_are_multiplied_one_by_one(name):
    structure = bound(name, 2048, 2048, n_blocks=2)
    plan = planned.plan(structure, 128, dtype=torch.float32)
    assert "2 times mm" in str(plan) and ("2 times addmm" in str(plan)) == (len(structure.terms) > 1)
    few, half = planned.plan(structure, 4, dtype=torch.float32), planned.plan(structure, 128, dtype=torch.bfloat16)
    assert "times mm" not in str(few) + str(half)
    made, _ = operands(structure, 96, torch.float32)
    with torch.no_grad():
        y = planned.apply(structure, made[0], made[2:], made[1])
        truth = reference.apply(structure, made[0].double(), [f.double() for f in made[2:]], made[1].double())
        assert error(y, truth) <= share(structure, 96, torch.float32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dyad_it", {"n_blocks": 128}),
        ("monarch", {"n_blocks": 64}),
        ("low_rank", {"rank": 64}),
        ("btt", {}),
        ("kronecker", {}),
        ("butterfly", {}),
        ("pixelfly", {"n_blocks": 512, "rank": 0}),
    ],
)
@pytest.mark.parametrize("widths", [(16384, 16384), (4096, 16384)], ids=str)
def test_widths_to_16384_agree_with_the_reference(name, options, widths):
    structure = bound(name, *widths, **options)
    made, dy = operands(structure, 3, torch.float32)
    truth = wanted(structure, made, dy)
    both = 2 * share(structure, 3, torch.float32)  # the reference is in float32 too, and as far off
    assert_right(whole(structure, made, dy), truth, [both] * len(truth))


def through_matrix(structure, tokens, want, rates):
    posed = dense.with_matrix(problem.pose(structure, merged_whole(structure, tokens, rates, 4)))
    return dense.through_matrix(posed, price.Price(posed, tokens, rates), bias=True, want=want)


@pytest.mark.parametrize(
    ("name", "equally"),
    [
        ("gather by two axes that stay", True),
        ("gather that the first factor sees half of", True),
        ("gather that skips blocks", False),
    ],
)
def test_what_a_gather_reads_equally_often_goes_back_in_one_product(name, equally):
    structure = ODD[name][0].bind(192, 192)
    setting = search.Conditions("float64", want=everything(structure))
    plans = search.candidates(structure, 1024, setting, figures.built_in("float32", 2))
    by_product = [plan for plan in plans if any(isinstance(op, GatherBlocks) for op in plan.backward)]
    assert bool(by_product) == equally
    made, dy = operands(structure, 9)
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    for plan in by_product[:4]:
        assert not any(isinstance(op, Scatter) for op in plan.backward)
        for pure in (False, True):
            assert_right(run(plan, made, dy, pure), truth, most, str(plan))


@pytest.mark.parametrize(("name", "width"), [case for case in CASES if case[1] != "square"])
def test_the_dense_matrix_of_a_call_is_exact(name, width):
    structure = structure_of(name, width)
    made, dy = operands(structure, 7)
    plans = through_matrix(structure, 7, everything(structure), figures.built_in("float32", 2))
    assert bool(plans) == (bool(structure.factors) and all(term.factors for term in structure.terms))
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    for plan in plans:
        assert_right(run(plan, made, dy, True), truth, most, str(plan))


def test_a_position_that_a_term_reads_twice_has_no_dense_matrix():
    structure = odd("(b i), u k i o -> (u o)", sizes={"b": "4", "u": "4", "k": "2"}, index={"b": "u + k // 2"}).bind(
        12, 8
    )
    assert not through_matrix(structure, 7, None, figures.built_in("float32", 2))
    made, dy = operands(structure, 7)
    truth = wanted(structure, made, dy)
    assert_right(whole(structure, made, dy), truth, allowed(structure, made, dy, truth))


def test_16_bits_take_the_dense_matrix_at_thousands_of_tokens_and_the_flops_say_so(no_measured_rates):
    structure = bound("pixelfly", 1024, 1024, n_blocks=32, n_strides=5, rank=0)
    few, many = (planned.plan(structure, tokens, dtype=torch.bfloat16, grad=True) for tokens in (16, 4096))
    assert few.flops(16) == structure.flops(16, train=True)
    assert many.flops(4096) == structure.dense_flops(4096, train=True) and "the dense matrix of" in str(many)


@pytest.fixture
def no_measured_rates(tmp_path, monkeypatch):
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path))
    programs.forget()
    yield
    programs.forget()


def groupings_of(structure):
    """Nothing merged, the first two factors of each term, everything: one after another, by halves, from the end."""
    plain = problem.as_written(structure)
    yield plain
    yield tuple(((g[0], g[1]), *g[2:]) if len(g) > 1 else g for g in plain)
    for tree in (first_two, halves, last_two):
        yield tuple((tree(g),) if g else g for g in plain)


def first_two(factors):
    return functools.reduce(lambda one, two: (one, two), factors)


def last_two(factors):
    return functools.reduce(lambda two, one: (one, two), reversed(factors))


def halves(factors):
    middle = len(factors) // 2
    return (halves(factors[:middle]), halves(factors[middle:])) if middle else factors[0]


# the registry's entries at other numbers of tokens, and in every dtype: test_linear.py
@pytest.mark.parametrize(
    ("name", "width", "tokens"),
    [(*case, n) for case in CASES if case[1] != "square" for n in ((0, 63) if case[1] else (0, 1, 63, 1000))],
)
def test_the_backend_agrees_with_the_reference(name, width, tokens, poison):
    structure = structure_of(name, width)
    made, dy = operands(structure, tokens)
    truth = wanted(structure, made, dy)
    assert_right(whole(structure, made, dy), truth, allowed(structure, made, dy, truth))
    made[1].zero_()
    with torch.no_grad():
        y = planned.apply(structure, made[0], made[2:], None)
    truth = wanted(structure, made, dy)
    assert_right([y], truth[:1], allowed(structure, made, dy, truth)[:1])


@pytest.mark.parametrize("pattern", ["x", "factors", "bias", "first factor", "x and last factor"])
@pytest.mark.parametrize("name", ["low_rank", "dyad_dt", "butterfly", "pixelfly"])
def test_only_the_gradients_asked_for_are_computed(name, pattern, poison):
    structure = bound(name, 48, 96)
    made, dy = operands(structure, 9)
    last = len(made) - 1
    asked = {
        "x": [0],
        "factors": [*range(2, last + 1)],
        "bias": [1],
        "first factor": [2],
        "x and last factor": [0, last],
    }
    made = [t.requires_grad_(i in asked[pattern]) for i, t in enumerate(made)]
    truth = wanted(structure, made, dy)
    most = allowed(structure, made, dy, truth)
    y = planned.apply(structure, made[0], made[2:], made[1])
    found = torch.autograd.grad(y, [made[i] for i in asked[pattern]], dy)
    for i, f in zip(asked[pattern], found, strict=True):
        assert error(f, truth[1 + i]) <= most[1 + i]


def test_strided_inputs_and_gradients_are_taken():
    structure = bound("monarch", 48, 96)
    made, dy = operands(structure, 14)
    dy = dy[::2]
    for x in (made[0][::2], made[0].t().contiguous().t()[:7], made[0][:1].expand(7, 48)):
        strided = [x, *made[1:]]
        leaf = x.detach().requires_grad_()
        y = planned.apply(structure, leaf, made[2:], made[1])
        truth = wanted(structure, strided, dy)
        found = [y, *torch.autograd.grad(y, leaf, dy)]
        assert_right(found, truth[:2], allowed(structure, strided, dy, truth)[:2])


def test_a_structure_whose_axes_all_have_size_one():
    structure = bound("dense", 1, 1)
    made, dy = operands(structure, 5)
    x, bias, factor = made
    truth = [x * factor + bias, dy * factor, dy.sum(0), (x * dy).sum().reshape(1, 1)]
    assert_right(whole(structure, made, dy), truth, allowed(structure, made, dy, truth))


def test_results_are_the_same_each_time():
    for name in NAMES:
        structure = bound(name, 48, 96)
        made, dy = operands(structure, 63, torch.float32)
        for one, two in zip(whole(structure, made, dy), whole(structure, made, dy), strict=True):
            assert torch.equal(one, two)


# -- derivatives and transforms


SMALL = {"monarch": {"n_blocks": 2}, "dyad_dt": {"n_blocks": 2}, "low_rank": {"rank": 2}, "kronecker": {}, "dense": {}}


@pytest.mark.parametrize("name", SMALL)
def test_it_can_be_differentiated_twice(name):
    structure = bound(name, 8, 8, **SMALL[name])
    made, _ = operands(structure, 2)
    made = [t.requires_grad_() for t in made]

    def call(x, bias, *factors):
        return planned.apply(structure, x, factors, bias)

    assert torch.autograd.gradcheck(call, made)
    assert torch.autograd.gradgradcheck(call, made)


def test_second_derivatives_exist_where_x_alone_was_differentiated():
    structure = bound("btt", 48, 96)
    made, dy = operands(structure, 3)
    dy.requires_grad_()
    x = made[0].requires_grad_()
    y = planned.apply(structure, x, made[2:], made[1])
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (found,) = torch.autograd.grad(dx.sum(), dy)
    assert error(found, reference.apply(structure, torch.ones_like(x), made[2:])) <= share(structure, 3)


def test_an_input_computed_from_a_factor_gets_both_paths_once():
    structure = bound("low_rank", 12, 12, rank=12)
    factors = [torch.randn(12, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(apply):
        y = apply(structure, factors[0] * 2, factors, None)
        (g,) = torch.autograd.grad(y.pow(2).sum(), factors[0], create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), factors)

    for f, t in zip(loss(planned.apply), loss(reference.apply), strict=True):
        assert error(f, t) <= 10 * share(structure, 12)  # of degree 10 in the factors: as many relative errors add


@pytest.mark.parametrize("name", ["monarch", "dyad_it", "pixelfly", "butterfly", "kronecker"])
def test_function_transforms_agree_with_the_reference(name):
    structure = bound(name, 48, 48)
    made, _ = operands(structure, 3)
    x, bias, *factors = made
    stacked = torch.stack([x, 2 * x, -x])

    def of(apply):
        def call(x):
            return apply(structure, x, factors, bias)

        def loss(x, factors):
            return apply(structure, x, factors, bias).pow(2).sum()

        mapped = torch.func.vmap(call)(stacked)
        jacobian = torch.func.jacrev(call)(x)
        per_sample = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(stacked, tuple(factors))
        ensembled = torch.func.vmap(lambda *f: apply(structure, x, f, bias))(
            *(torch.stack([f, 3 * f]) for f in factors)
        )
        return [mapped, jacobian, *per_sample, ensembled]

    for f, t in zip(of(planned.apply), of(reference.apply), strict=True):
        assert error(f, t) <= 2 * share(structure, 3)  # the loss squares y


def test_forward_mode_derivatives_agree_with_the_reference():
    structure = bound("pixelfly", 48, 48)
    (x, bias, *factors), direction = operands(structure, 3)
    call = [lambda x, a=apply: a(structure, x, factors, bias) for apply in (planned.apply, reference.apply)]
    found, wanted = (torch.func.jvp(c, (x,), (direction,))[1] for c in call)
    assert error(found, wanted) <= share(structure, 3)
    for requires in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(requires), direction)
            found = torch.autograd.forward_ad.unpack_dual(call[0](dual)).tangent
        assert error(found, wanted) <= share(structure, 3)


def test_fake_tensors_leave_no_trace():
    from torch._subclasses.fake_tensor import FakeTensorMode

    structure = bound("pixelfly", 48, 96, n_blocks=4)
    made, dy = operands(structure, 3)
    truth = wanted(structure, made, dy)
    for _ in range(2):
        with FakeTensorMode() as mode:
            fake = whole(structure, [mode.from_tensor(t) for t in made], mode.from_tensor(dy))
        assert [f.shape for f in fake] == [t.shape for t in truth]
        assert_right(whole(structure, made, dy), truth, allowed(structure, made, dy, truth))


def test_several_output_gradients_at_once():
    structure = bound("monarch", 48, 96)
    made, dy = operands(structure, 3)
    x = made[0].requires_grad_()
    batch = torch.stack([dy, 2 * dy])
    y = planned.apply(structure, x, made[2:], made[1])
    (found,) = torch.autograd.grad(y, x, batch, is_grads_batched=True)
    (once,) = torch.autograd.grad(reference.apply(structure, x, made[2:], made[1]), x, dy)
    assert error(found, torch.stack([once, 2 * once])) <= share(structure, 3)


def test_autocast_runs_in_its_dtype_and_differentiates():
    layer = structures.StructuredLinear("dyad_it", 48, 96)
    x = torch.randn(9, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = planned.apply(layer.structure, x, layer.factors, layer.bias)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_meta_tensors_pass_through():
    for name in NAMES:
        structure = bound(name, 48, 96)
        x = torch.empty(5, 48, device="meta", requires_grad=True)
        factors = [torch.empty(s, device="meta", requires_grad=True) for s in structure.factor_shapes]
        y = planned.apply(structure, x, factors, torch.empty(96, device="meta"))
        y.sum().backward()
        assert y.shape == (5, 96) and x.grad.shape == (5, 48)


# -- compiled


# All names are compiled as layers in test_compile.py; here operations that none of them has.
@pytest.mark.parametrize("name", ["scaling and a permutation", "batch innermost", "gather that skips blocks"])
def test_it_compiles_to_one_graph_for_any_number_of_tokens(name, fresh_compiler):
    structure = structure_of(name, "rectangle")
    graphs = []

    def count(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    def call(x, bias, *factors):
        return planned.apply(structure, x, factors, bias)

    compiled = torch.compile(call, backend=count, fullgraph=True, dynamic=True)
    for tokens in (11, 63):  # no size of an axis, or the compiler would take it for one
        made, dy = operands(structure, tokens)
        truth = wanted(structure, made, dy)
        most = allowed(structure, made, dy, truth)
        made = [t.requires_grad_() for t in made]
        y = compiled(*made)
        assert_right([y, *torch.autograd.grad(y, made, dy, materialize_grads=True)], truth, most)
    assert len(graphs) == 1


def test_it_is_exported_with_dynamic_tokens():
    structure = bound("monarch", 48, 96)

    class Module(torch.nn.Module):
        def forward(self, x, factors, bias):
            return planned.apply(structure, x, factors, bias)

    (x, bias, *factors), _ = operands(structure, 8)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    exported = torch.export.export(
        Module(), (x, factors, bias), dynamic_shapes={"x": {0: tokens}, "factors": [{}, {}], "bias": {}}
    )
    (more, _, *_), _ = operands(structure, 100, seed=1)
    found = exported.module()(more, factors, bias)
    assert error(found, reference.apply(structure, more, factors, bias)) <= share(structure, 100)


# -- plans


def test_a_plan_is_frozen_hashable_and_says_what_it_does():
    structure = bound("monarch", 64, 64)
    plan = planned.plan(structure, 100, grad=True)
    assert hash(plan) == hash(replace(plan)) and plan == replace(plan, seconds=0.0)
    text = str(plan)
    assert "predicted" in text and "k=4" in text and ("backward" in text or "gradients by autograd" in text)
    with pytest.raises(AttributeError):
        plan.seconds = 1.0


def test_dense_is_one_addmm_and_low_rank_two_products():
    dense = planned.plan(bound("dense", 64, 96), 100)
    (op,) = dense.forward
    assert isinstance(op, Multiply) and op.bias and not op.product.batch and op.layout == (TOKENS, "y")
    first, second = planned.plan(bound("low_rank", 1024, 1024, rank=128), 128).forward
    assert isinstance(first, Multiply) and isinstance(second, Multiply) and second.bias


def test_terms_of_one_layout_are_accumulated_by_one_product():
    plan = planned.plan(bound("dyad_it", 2048, 2048), 128)
    assert any(isinstance(op, Multiply) and op.into for op in plan.forward)
    assert sum(isinstance(op, Assemble) for op in plan.forward) == 1


def test_the_butterfly_is_merged_into_few_factors_and_the_flops_say_so():
    structure = bound("butterfly", 1024, 1024)
    plan = planned.plan(structure, 128)
    assert 2 <= sum(isinstance(op, Multiply) and TOKENS in op.layout for op in plan.forward) <= 4
    assert planned.executed_flops(structure, 128) > structure.flops(128)


@pytest.mark.parametrize("name", ["dense", "block_diagonal", "dyad_it", "monarch", "kronecker", "btt"])
def test_executed_flops_are_the_structure_s_where_nothing_is_merged(name):
    structure = bound(name, 1024, 1024)
    assert planned.executed_flops(structure, 128) == structure.flops(128)
    assert planned.executed_flops(structure, 128, train=True) == structure.flops(128, train=True)


def test_the_problem_drops_axes_of_size_one_and_joins_neighbours():
    made = problem.pose(bound("btt", 64, 64))
    assert all("r" not in axes for axes in made.factors)
    assert problem.pose(bound("tensor_train", 64, 64)).chains[0].output[0] == TOKENS


def test_equal_structures_share_their_programs():
    spec = structures.get("btt")
    one = spec.bind(48, 96)
    two = replace(one)
    made, _ = operands(one, 5)
    planned.apply(one, made[0], made[2:], None)
    planned.apply(two, made[0], made[2:], None)
    assert programs._by_id[id(one)][1] is programs._by_id[id(two)][1]


def test_no_name_of_the_registry_stands_in_the_code():
    for file in Path(planned.__file__).parent.glob("*.py"):
        code = re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", file.read_text(), flags=re.S)
        assert not [n for n in NAMES if n not in ("einsum", "dense") and re.search(rf"\b{n}\b", code)], file


def test_a_longer_run_of_tokens_is_never_predicted_to_be_faster(no_measured_rates):
    for name in ("dense", "monarch", "dyad_dt"):
        structure = bound(name, 1024, 1024)
        seconds = [planned.plan(structure, tokens).seconds for tokens in (1, 16, 128, 1024, 4096)]
        assert seconds == sorted(seconds)


# -- figures measured and kept


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path))
    monkeypatch.setattr(measure, "OURS", 0.0)  # beside the other tests
    return tmp_path


def slowed(call: float = 7e-6) -> figures.Rates:
    """Figures that no machine has built in."""
    return replace(figures.built_in("float32", 2), call=call)


def key(dtype: str = "float32", threads: int = 2) -> str:
    return rates.machine(dtype, threads)


def test_measured_figures_take_the_place_of_built_in_ones(folder):
    assert rates.of("float32", 2).call != 7e-6
    assert rates.write(key(), rates.parts(slowed()))
    assert rates.of("float32", 2) == slowed()
    assert rates.of("float32", 1).call != 7e-6 and rates.of("bfloat16", 2).call != 7e-6


def test_a_plan_is_priced_with_them(folder):
    structure = bound("low_rank", 64, 96)
    before = planned.plan(structure, 8, dtype=torch.float32).seconds
    rates.write(key(threads=torch.get_num_threads()), rates.parts(slowed(1e-3)))
    assert planned.plan(structure, 8, dtype=torch.float32).seconds > before + 1e-3


def written(change) -> str:
    """The text of a good file after a change to what it holds."""
    rates.write(key(), rates.parts(slowed()))
    held = json.loads(rates.path(key()).read_text())
    change(held)
    return json.dumps(held)


BROKEN = {
    "empty": lambda: "",
    "cut off": lambda: written(lambda held: None)[:100],
    "a list": lambda: "[]",
    "null": lambda: "null",
    "binary": lambda: "\x00\x01",
    "of another version": lambda: written(lambda held: held.update(version=99)),
    "of another machine": lambda: written(lambda held: held.update(machine="another processor")),
    "without a curve": lambda: written(lambda held: held["figures"].pop("turned")),
    "with a negative rate": lambda: written(lambda held: held["figures"].update(plain=[[8, -1.0]])),
    "with a rate that is not a number": lambda: written(lambda held: held["figures"].update(plain=[[8, float("nan")]])),
    "with a curve that is a number": lambda: written(lambda held: held["figures"].update(plain=3)),
    "with seconds that are a text": lambda: written(lambda held: held["figures"].update(call="soon")),
    "with too many seconds": lambda: written(lambda held: held["figures"].update(call=3600.0)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_corrupt_or_foreign_file_is_ignored_with_a_warning(folder, broken):
    text = BROKEN[broken]()
    rates.path(key()).write_text(text)
    rates._of.cache_clear()
    with pytest.warns(UserWarning, match=r"rates-.*it is not used"):
        assert rates.of("float32", 2) == figures.built_in("float32", 2)
    rates._of.cache_clear()


def write_often(call: float) -> None:
    for _ in range(30):
        rates.write(key(), rates.parts(slowed(call)))


def test_two_processes_leave_a_whole_file(folder):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=write_often, args=(call,)) for call in (1e-6, 2e-6)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert rates.of("float32", 2).call in (1e-6, 2e-6)
    assert [f.name for f in folder.iterdir()] == [rates.path(key()).name]


def test_a_home_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(rates.VARIABLE, str(blocked / "below"))
    with pytest.warns(UserWarning, match="not kept"):
        assert not rates.write(key(), rates.parts(slowed()))
    assert rates.of("float32", 2) == figures.built_in("float32", 2)


def test_importing_or_planning_measures_and_writes_nothing(folder):
    planned.plan(bound("monarch", 64, 64), 3)
    assert list(folder.iterdir()) == []


def test_calibrating_keeps_figures_of_the_right_kind(folder):
    (found,) = structures.calibrate([torch.float32], seconds=0.0)
    assert rates.of("float32", torch.get_num_threads()) == found
    assert 0 < found.call < 1e-3
    assert all(size < more for curve in dict(found.product).values() for (size, _), (more, _) in pairwise(curve))
    assert set(dict(found.copy)) == set(figures.COPIES) and set(dict(found.product)) == set(figures.PRODUCTS)
    assert {curve[0][0] for curve in dict(found.product).values()} == {1}, "one row has a rate of its own"
    with pytest.raises(ValueError, match=r"torch.int8 is not a real floating-point dtype"):
        structures.calibrate([torch.int8])


def test_a_machine_that_others_take_is_not_measured(folder, monkeypatch):
    monkeypatch.setattr(measure, "BUSY", 0.0)
    monkeypatch.setattr(measure, "_tried", set())
    measure.ensure(torch.float32)
    assert list(folder.iterdir()) == []
    with pytest.raises(measure.BusyError, match="other processes take this machine's processors"):
        structures.calibrate([torch.float32])


@pytest.mark.parametrize("share, anew", [(0.4, True), (1.0, False)])
def test_figures_of_a_moment_that_others_took_are_measured_anew(share, anew, folder, monkeypatch):
    key = rates.machine("float32", torch.get_num_threads())
    built_in = figures.built_in("float32", torch.get_num_threads())
    slow = {kind: tuple((n, r * share) for n, r in curve) for kind, curve in built_in.product}
    rates.write(key, rates.parts(built_in.replaced({}, slow)))
    now = dict(built_in.product)["contiguous"][-1][1]
    monkeypatch.setattr(measure, "_product_rate", lambda *_: now)
    monkeypatch.setattr(measure, "_looked", {})
    monkeypatch.setattr(measure, "AGAIN", 5.0)
    said = []
    monkeypatch.setattr(measure, "calibrate", lambda dtypes, seconds: said.append(dtypes))
    measure.ensure(torch.float32)
    measure.ensure(torch.float32)  # not so soon again
    assert said == ([[torch.float32]] if anew else [])


def test_the_command_says_what_it_found_and_where_it_keeps_it(folder, monkeypatch, capsys):
    monkeypatch.setattr(measure, "LONGER", 0.0)
    assert command(["calibrate", "--dtype", "float32"]) == 0
    assert "float32, 1 threads: products to" in (said := capsys.readouterr().out) and str(folder) in said
    for wrong, text in ((["--dtype", "int8"], "choose from float32"), (["--threads", "0"], "at least 1")):
        assert command(["calibrate", *wrong]) == 2
        assert text in capsys.readouterr().err


# -- prices


def test_a_line_is_read_again_after_what_lies_between_in_the_new_order():
    extents = {"a": 32, "b": 4096, "c": 64}
    assert price.held(("b", "a"), ("a", "b"), extents, 4) == 4096 * 32 * 4  # each line in a place of its own
    assert price.held(("a", "b"), ("b", "a"), extents, 4) == 32 * 4096  # lines a page apart share few places
    assert price.held(("c", "b", "a"), ("c", "a", "b"), extents, 4) == 4096 * 32 * 4


def test_far_transpositions_cost_more_than_near_ones_and_these_more_than_plain_copies():
    sizes = (("a", 4), ("b", 256), (TOKENS, 4096))
    made = price.Price(problem.ChainProblem(1, 1, sizes[:2], (), (), ()), 4096, figures.built_in("float32", 2))
    plain = made.move((TOKENS, "a", "b"), (TOKENS, "a", "b"))
    runs = made.move((TOKENS, "a", "b"), ("a", TOKENS, "b"))
    near = made.move((TOKENS, "b", "a"), (TOKENS, "a", "b"))
    far = made.move(("a", "b", TOKENS), (TOKENS, "b", "a"))
    assert plain <= runs < near < far / 3
