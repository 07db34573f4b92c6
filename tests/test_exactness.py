"""The error rule lets right results pass, added in whatever order, and no wrong ones."""

from __future__ import annotations

import math

import pytest
import torch
from contract import DTYPES, RUNS, SHAPES, error, layer, limits, of_backend, plain, tensors, truth, value_and_gradients

import structures
from structures import exactness, reference
from structures.exactness import Sums

WITHOUT_GATE = [name for name in structures.names() if not structures.get(name).gate]
GATED = [name for name in structures.names() if structures.get(name).gate]
LOWER = {torch.float64: torch.float32, torch.float32: torch.float16}  # the most exact dtype below
TYPICAL = 30  # how many times above the error of adding one by one a bound may lie
NUMBERS = 4000


def judged(name: str, dtype: torch.dtype, tokens: int, shape=SHAPES[0]):
    """A layer, x, dy, the truth, and the largest errors allowed."""
    made = layer(name, shape, dtype=dtype)
    x, dy = tensors(made, tokens, dtype)
    wanted = truth(made, x, dy)
    return made, x, dy, wanted, limits(made, x, dy, wanted, plain(made, x, dy))


def by_reference(made, x, dy, parameters):
    return value_and_gradients(lambda x, p: reference.apply(made.structure, x, p[:-1], p[-1]), x, parameters, dy)


# -- what is derived


@pytest.mark.parametrize("name", ["low_rank", "dyad_dt"])
def test_the_squares_are_those_of_all_products_that_are_added(name):
    made = layer(name, (12, 8), bias=True, **{"low_rank": {"rank": 3}, "dyad_dt": {"n_blocks": 2}}[name])
    x, dy = tensors(made, 2, torch.float64)
    wanted = truth(made, x, dy)
    found = exactness.deviations(made.structure, x, list(made.parameters()), dy, wanted, torch.float32)
    if name == "low_rank":
        one, two = made.factors[0].detach(), made.factors[1].detach()
        products = x[:, :, None, None] * one[None, :, :, None] * two[None, None]  # (tokens, in, rank, out)
        each = products.flatten(1, 2)
        first = dy[:, None, None, :] * products / one[None, :, :, None]  # of one[i, r]: over tokens and out
        gradient = first.square().sum((0, 3))
        count = exactness.sums(made.structure, 2)[2].variance(torch.float32)
        expected = exactness.DEVIATIONS * (count * (gradient + wanted[2].square())).sqrt()
        torch.testing.assert_close(found[2], expected)
    else:
        near, far = (made.structure.term_of(f) for f in (0, 1))
        assert near.loaded != far.loaded  # two terms: each input number is multiplied twice
        each = torch.stack([p for p in by_terms(made, x)], 1)
    squares = each.square().sum(1) + made.bias.detach().square()
    count = exactness.sums(made.structure, 2)[0].variance(torch.float32)
    torch.testing.assert_close(found[0], exactness.DEVIATIONS * (count * (squares + wanted[0].square())).sqrt())


def by_terms(made, x):
    """The part of y that each input number has in each term, without the bias."""
    for keep in range(2):
        factors = [f.detach() * (i == keep) for i, f in enumerate(made.factors)]
        for i in range(made.in_features):
            alone = torch.zeros_like(x)
            alone[:, i] = x[:, i]
            yield reference.apply(made.structure, alone, factors)


def test_a_longer_sum_is_allowed_more_and_16_bits_are_summed_in_float32():
    assert Sums(400).share(torch.float32) < Sums(1600).share(torch.float32) < 2 * Sums(400).share(torch.float32)
    assert Sums(10**6, 0).share(torch.bfloat16) == Sums(10**6, 0).share(torch.float32)
    assert Sums(1).share(torch.bfloat16) > 2**15 * Sums(1).share(torch.float32)
    assert Sums(3, 1) + Sums(4, 2) == Sums(7, 3)


def test_gradients_of_factors_sum_over_tokens_and_values_do_not():
    structure = structures.get("monarch").bind(48, 96)
    few, many = (exactness.sums(structure, tokens) for tokens in (1, 1000))
    assert few[:2] == many[:2] and all(a.numbers < b.numbers for a, b in zip(few[2:], many[2:], strict=True))
    assert many[-1].numbers == 1000


def test_layers_in_turn_add_their_sums():
    one, two = [[Sums(n, 1) for n in layer] for layer in ((2, 3, 5, 7), (11, 13, 17))]  # y, dx, gradients
    y, dx, *gradients = exactness.in_turn([one, two], Sums(1, 0))
    assert (y, dx) == (Sums(2 + 1 + 11 + 1, 2), Sums(13 + 1 + 3 + 1, 2))
    assert gradients == [Sums(5 + 13 + 1, 2), Sums(7 + 13 + 1, 2), Sums(17 + 2 + 1, 2)]


# -- what is right passes


@pytest.mark.parametrize("numbers", ["random", "positive", "products of a chain"])
def test_adding_one_by_one_passes_and_the_bound_is_not_far_above(numbers):
    torch.manual_seed(0)
    parts = torch.randn(NUMBERS, 500)
    if numbers == "positive":
        parts = parts.abs()
    if numbers == "products of a chain":
        parts = parts * torch.randn(NUMBERS, 500)
    found = torch.zeros(500)
    for part in parts:
        found = found + part
    wanted = parts.double().sum(0)
    spread = parts.double().square().sum(0) + wanted.square()
    bound = exactness.DEVIATIONS * math.sqrt(Sums(NUMBERS).variance(torch.float32)) * spread.sqrt()
    assert ((found - wanted).abs() < bound).all()
    assert error(found, wanted) > float(bound.norm() / wanted.norm()) / TYPICAL
    assert error(found, wanted) > Sums(NUMBERS).share(torch.float32) / TYPICAL


@pytest.mark.parametrize("name", structures.names())
def test_a_layer_whose_numbers_are_summed_in_another_order_passes(name):
    """The input's numbers, the tokens and the outputs turned round: other sums on the same processor."""
    made, x, dy, wanted, most = judged(name, torch.float32, 63)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(3))
    found = of_backend(made, "auto", x[order], dy[order])
    found[:2] = [f[order.argsort()] for f in found[:2]]
    for f, w, limit in zip(found, wanted, most, strict=True):
        assert error(f, w) <= limit


def test_a_result_that_cancels_is_allowed_what_its_products_explain():
    made = layer("dense", SHAPES[0])
    x, dy = tensors(made, 2, torch.float64)
    with torch.no_grad():
        made.factor_0[24:] = -made.factor_0[:24]
        made.bias.zero_()
    x[:, 24:] = x[:, :24] * (1 + 1e-9)  # pairs of products that differ in the ninth digit
    wanted = truth(made, x, dy)
    usual = limits(made, x, dy, wanted, wanted)
    other = layer("dense", SHAPES[0])
    assert usual[0] > 1e8 * limits(other, x, dy, truth(other, x, dy), truth(other, x, dy))[0]


# -- what is wrong fails


def largest(found, wanted, most):
    return max(error(f, w) / limit for f, w, limit in zip(found, wanted, most, strict=True) if limit)


def without(made, axes):
    """The layer's parameters, with zeros at the first place of one of these axes of the first step that has one.

    Of a diagonal, whose places are single numbers, at an eighth of them. None where no step has such an axis.
    """
    trained = [s for s in made.structure.steps if s.factor < made.structure.trainable]
    step, axis = next(((s, a) for s in trained for a in axes(s) if made.structure.size[a] > 1), (None, None))
    if step is None:
        return None
    parameters = [p.detach().clone() for p in made.parameters()]
    places = 1 if step.contracted or step.cols else max(1, made.structure.size[axis] // 8)
    parameters[step.factor].narrow(made.structure.factors[step.factor].index(axis), 0, places).zero_()
    return parameters


FAULTS = {
    "a summand": lambda step: step.contracted,
    "a block": lambda step: step.batch or step.cols,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", structures.names())
@pytest.mark.parametrize("missing", FAULTS)
def test_a_value_that_misses_something_fails_in_every_dtype(missing, name, dtype):
    made, x, dy, wanted, most = judged(name, dtype, 63)
    parameters = without(made, FAULTS[missing])
    if parameters is None:
        assert missing == "a summand" and not any(
            s.contracted for s in made.structure.steps if s.factor < len(made.factors)
        )
        return
    found = by_reference(made, x, dy, parameters)
    assert error(found[0], wanted[0]) > most[0]
    assert name in GATED or error(found[1], wanted[1]) > most[1]  # a router's share of dx may be the larger


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", structures.names())
def test_gradients_that_miss_three_tokens_fail_in_every_dtype(name, dtype):
    made, x, dy, wanted, most = judged(name, dtype, 63)
    missing = dy.clone()
    missing[7:10] = 0
    found = by_reference(made, x, missing, list(made.parameters()))
    looked = [(error(f, w), limit) for f, w, limit in zip(found, wanted, most, strict=True)]
    assert all(far > limit for far, limit in (*looked[2 : 2 + len(made.factors)], looked[-1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", structures.names())
def test_numbers_in_other_places_fail_in_every_dtype(name, dtype):
    made, x, dy, wanted, most = judged(name, dtype, 63)
    for f, w, limit in zip(by_reference(made, x, dy, list(made.parameters())), wanted, most, strict=True):
        assert error(f, w) <= limit < error(f.roll(1, -1), w) or f.shape[-1] == 1


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("name", structures.names())
def test_an_operand_or_a_result_in_the_dtype_below_fails(name, dtype):
    made, x, dy, wanted, most = judged(name, dtype, 63)
    parameters = list(made.parameters())
    rounded = x.to(LOWER[dtype]).to(dtype)
    for what, found in {
        "x": by_reference(made, rounded, dy, parameters)[0],
        "y": by_reference(made, x, dy, parameters)[0].to(LOWER[dtype]),
    }.items():
        assert error(found, wanted[0]) > most[0], what
    lower = [p.detach().to(LOWER[dtype]).to(dtype) for p in parameters]
    for f, w, limit in zip(by_reference(made, x, dy, lower)[1:2], wanted[1:2], most[1:2], strict=True):
        assert error(f, w) > limit


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("name", [n for n in WITHOUT_GATE if len(structures.get(n).bind(*SHAPES[0]).steps) > 1])
def test_an_intermediate_in_the_dtype_below_fails(name, dtype, monkeypatch):
    made, x, dy, wanted, most = judged(name, dtype, 1000)
    real = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda *a: real(*a).to(LOWER[dtype]).to(dtype))
    found = of_backend(made, "einsum", x, dy)
    monkeypatch.undo()
    assert all(error(f, w) > limit for f, w, limit in zip(found[:-1], wanted, most, strict=False))


@pytest.mark.parametrize("name", GATED)
def test_a_routers_gradient_without_its_subtraction_fails(name):
    made, x, dy, wanted, most = judged(name, torch.float64, 63)
    parameters = list(made.parameters())
    exact = reference.gates(made.structure, x, parameters[-2].detach())
    weights = exact.clone().requires_grad_()
    (gain,) = torch.autograd.grad(
        reference.mixture(made.structure, x, [p.detach() for p in parameters[:-2]], weights), weights, dy
    )
    right = (exact * (gain - (exact * gain).sum(1, keepdim=True))).t() @ x
    wrong = (exact * gain).t() @ x
    assert error(right, wanted[-2]) <= most[-2] < error(wrong, wanted[-2])
    assert error(right.float(), wanted[-2]) > most[-2]


def test_what_is_not_a_number_fails():
    _, _, _, wanted, most = judged("dense", torch.float32, 5)
    assert not error(wanted[0] * float("nan"), wanted[0]) <= most[0]


def test_the_rule_is_judged_on_every_entry():
    assert {name for name, _ in RUNS} == set(structures.names())
