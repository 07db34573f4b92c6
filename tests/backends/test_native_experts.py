"""Experts in the native kernel against the reference: values, gradients, bits, refusals, and what `auto` takes."""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_right, error, limits, plain, tensors, truth
from gated import GATED, OWN, gradients, made, own
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import structures
from structures import backends, exactness, reference
from structures.backends import kept, native
from structures.backends.experts import price
from structures.backends.native import build, kernel, library

DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 5, 130)  # rows, rows and tiles of one expert beside another's, tiles that are not full
OTHERS = {"AVX2": ("-march=x86-64-v3",), "x86-64": ("-march=x86-64",)}


@pytest.fixture(scope="module", autouse=True)
def there_is_a_compiler() -> None:
    try:
        build.find_compiler()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    assert kernel.reason() is None, "there is a compiler, and the kernel does not run"


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory is NaN, so that numbers which nothing wrote show."""
    fresh = Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        tensor = fresh(self, *args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


def mixture(name: str, shape: tuple[int, int] = (48, 96), *, dtype: torch.dtype = torch.float32, **options):
    return made(own(name) if name in OWN else name, shape, dtype=dtype, backend="native", **options)


def check(layer, tokens: int, dtype: torch.dtype) -> None:
    """Value and every gradient by the error rule, and the value again where the factors' copies may be kept."""
    x, dy = tensors(layer, tokens, dtype)
    wanted = truth(layer, x, dy)
    most = limits(layer, x, dy, wanted, plain(layer, x, dy))
    assert_right(gradients(layer, x, dy), wanted, most, f"{tokens} tokens")
    assert layer.ran == "native"
    with torch.no_grad():
        for _ in range(2):
            assert_right([layer(x)], wanted[:1], most[:1], f"{tokens} tokens, no gradients")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*GATED, *OWN])
def test_value_and_every_gradient_are_those_of_the_reference(name, dtype):
    layer = mixture(name, dtype=dtype)
    for tokens in TOKENS:
        torch.set_num_threads(1 + tokens % 2)
        check(layer, tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("dense_moe", (57, 39), {"n_experts": 3, "experts_active": 3}),  # odd widths; every token takes every expert
        ("dense_moe", (1, 1), {"n_experts": 2, "experts_active": 1}),
        ("btt_moe", (144, 100), {"n_experts": 40, "experts_active": 1}),  # few tokens for each
        ("low_rank_moe", (260, 131), {"n_experts": 5, "experts_active": 2, "rank": 33}),
    ],
)
def test_odd_sizes_and_numbers_of_experts_are_right_too(name, shape, options, dtype):
    layer = mixture(name, shape, dtype=dtype, **options)
    for tokens in (3, 70):
        check(layer, tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["dense_moe", "beside_dense", "gathered_first"])
def test_other_processors_instructions_give_as_exact_results(name, dtype):
    before = kernel.state()
    try:
        for flags in OTHERS.values():
            kernel.use(kernel.load(flags))
            for tokens in (5, 70):
                check(mixture(name, dtype=dtype), tokens, dtype)
    finally:
        kernel.use(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tokens_in_batches_and_chunks_are_right(dtype, monkeypatch):
    """With a small L3 6000 tokens come in two batches, and an expert's in several chunks, bfloat16's sums beside."""
    found = kernel.library()
    monkeypatch.setattr(library, "caches", lambda: (32 << 10, 1 << 20, 1 << 20))
    kernel.use(library.Library(found.path, openmp=library.torch_openmp()))
    try:
        torch.set_num_threads(2)
        check(mixture("beside_dense", dtype=dtype), 6000, dtype)
    finally:
        monkeypatch.undo()
        kernel.use(library.Library(found.path, openmp=library.torch_openmp()))


def test_the_comparison_can_fail():
    layer = mixture("btt_moe")
    x, dy = tensors(layer, 33, torch.float32)
    wanted = truth(layer, x, dy)
    most = limits(layer, x, dy, wanted, plain(layer, x, dy))
    with torch.no_grad():
        layer.factor_0[3] *= 1 + 1e-3
    assert all(error(f, w) > m for f, w, m in zip(gradients(layer, x, dy)[:2], wanted, most, strict=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*GATED, "shared_ends", "two_terms", "gathered_first"])
def test_the_bits_are_the_same_for_any_number_of_threads(name, dtype):
    layer = mixture(name, (240, 240), dtype=dtype)
    factors, bias = list(layer.factors), layer.bias
    for tokens in (1, 17, 200):
        x, dy = tensors(layer, tokens, dtype)
        x.requires_grad_()
        routing = layer.forward_with_routing(x)[1]  # by torch's product, whose bits are not the same
        routing = routing._replace(weights=routing.weights.detach().requires_grad_())

        def call(x=x, dy=dy, routing=routing):
            y = backends.weighted("native", layer.structure, x, factors, routing, bias)
            return [y.detach(), *torch.autograd.grad(y, [x, routing.weights, bias, *factors], dy)]

        first = call()
        for number in (2, 3, 16, 1):  # 16: all threads work on each tile
            torch.set_num_threads(number)
            for f, g in zip(first, call(), strict=True):
                assert torch.equal(f, g), f"{number} threads, {tokens} tokens"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_expert_without_tokens_has_gradients_of_zero(dtype):
    layer = mixture("btt_moe", dtype=dtype, routed=0.0)  # of equal logits the first two experts
    for tokens in (1, 40):
        layer.zero_grad()
        x, dy = tensors(layer, tokens, dtype)
        layer(x).backward(dy)
        for factor in layer.factors:
            assert factor.grad[2:].count_nonzero() == 0 and factor.grad[:2].count_nonzero()
    layer.zero_grad()
    layer(x[:0]).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in layer.parameters())


def test_dropped_choices_weigh_nothing_and_take_no_gradient():
    layer = made(own("beside_dense", capacity="0.3"), dtype=torch.float32, backend="native")
    x, dy = tensors(layer, 40, torch.float32)
    y, routing = layer.forward_with_routing(x)
    assert routing.dropped > 40
    found = torch.autograd.grad(y, [*layer.parameters()], dy)
    layer.backend = "grouped"
    torch.testing.assert_close(y, layer(x))
    for f, w in zip(found, torch.autograd.grad(layer(x), [*layer.parameters()], dy), strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", ["x", "factor_0", "router", "bias"])
def test_only_the_gradients_asked_for_are_computed_and_they_are_the_same(asked):
    layer = mixture("low_rank_moe")
    x, dy = tensors(layer, 40, torch.float32)
    names = ["x", *dict(layer.named_parameters())]
    every = dict(zip(names, gradients(layer, x, dy)[1:], strict=True))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == asked)
    x.requires_grad_(asked == "x")
    (found,) = torch.autograd.grad(layer(x), x if asked == "x" else layer.get_parameter(asked), dy)
    if asked == "x":  # whose gradient comes through the router too
        torch.testing.assert_close(found, every["x"])
    else:
        assert torch.equal(found, every[asked])


def test_rows_of_x_and_of_the_gradient_may_lie_anywhere():
    layer = mixture("btt_moe")
    x, dy = tensors(layer, 40, torch.float32)
    wanted = truth(layer, x, dy)
    most = limits(layer, x, dy, wanted, plain(layer, x, dy))
    for view in (lambda t: t.t().contiguous().t(), lambda t: t.repeat_interleave(2, 0)[::2]):
        assert_right(gradients(layer, view(x), view(dy)), wanted, most)
    torch.testing.assert_close(layer(x[:1].expand(40, -1))[7], layer(x[:1])[0], rtol=1e-4, atol=1e-4)


def test_nan_and_inf_of_one_token_reach_no_other():
    layer = mixture("btt_moe")
    x, _ = tensors(layer, 40, torch.float32)
    with torch.no_grad():
        wanted = layer(x)
        x[7, 3] = math.inf
        found = layer(x)
    assert not found[7].isfinite().all()
    others = [t for t in range(40) if t != 7]
    torch.testing.assert_close(found[others], wanted[others], rtol=1e-4, atol=1e-4)  # it may have left another group


def test_second_derivatives_and_batched_ones_are_those_of_torch_s_own_products():
    layer = mixture("shared_ends", (12, 18))
    x, dy = tensors(layer, 9, torch.float32)
    x.requires_grad_()
    second = {}
    for layer.backend in ("native", "grouped"):
        first = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy, create_graph=True)
        total = sum(g.square().sum() for g in first)
        second[layer.backend] = torch.autograd.grad(total, [x, *layer.parameters()], allow_unused=True)
    for f, w in zip(second["native"], second["grouped"], strict=True):
        assert (f is None) == (w is None)
        if f is not None:
            torch.testing.assert_close(f, w, rtol=1e-3, atol=1e-4)
    several = torch.stack([dy, 2 * dy])
    layer.backend = "native"
    (batched,) = torch.autograd.grad(layer(x), x, several, is_grads_batched=True)
    torch.testing.assert_close(batched[1], torch.autograd.grad(layer(x), x, 2 * dy)[0], rtol=1e-4, atol=1e-5)


def test_autocast_runs_it_in_bfloat16_with_the_choice_as_it_was():
    layer = mixture("btt_moe")
    x, _ = tensors(layer, 60, torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = layer.forward_with_routing(x)
    assert y.dtype == torch.bfloat16 and layer.ran == "native" and routing.logits.dtype == torch.float32
    cast = exactness.Sums(0, 2 + len(layer.factors))  # x, the factors and the bias are rounded to bfloat16 first
    most = (exactness.sums(layer.structure, 60)[0] + cast).share(torch.bfloat16)
    assert error(y, reference.apply(layer.structure, x, layer.operands, layer.bias)) <= most
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("trained", ["in place", "in training"])
def test_kept_copies_follow_the_factors_and_go_with_training(trained):
    layer = mixture("dense_moe", dtype=torch.bfloat16)
    x, _ = tensors(layer, 130, torch.bfloat16)
    with torch.no_grad():
        before = layer(x)
        if native_pairs():
            assert kept.held_bytes(layer.factors) > 0
        if trained == "in training":
            layer.train()
            assert kept.held_bytes(layer.factors) == 0
        layer.factor_0 *= 2
        after = layer(x)
        layer.release()
        assert torch.equal(after, layer(x)) and not torch.equal(before, after)


def native_pairs() -> bool:
    return kernel.library().copies_bytes(_program("dense_moe").address, library.PAIRS) > 0


def _program(name: str):
    from structures.backends.experts import grouped
    from structures.backends.native.run import programs

    structure = structures.get(name).bind(48, 96)
    return programs(grouped.program(structure).terms[0].alone.structure).of(torch.bfloat16)


def test_it_refuses_by_name_what_it_cannot_run_and_auto_takes_another():
    layer = mixture("btt_moe")
    x, _ = tensors(layer, 4, torch.float32)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}

    def run(x):
        return torch.func.functional_call(layer, parameters, (x,))

    with pytest.raises(ValueError, match=r"backend 'native': it runs float32 and bfloat16, x is float64"):
        mixture("btt_moe", dtype=torch.float64)(x.double())
    with pytest.raises(ValueError, match=r"'native': its groups depend on the numbers in x.*all_experts"):
        torch.func.vmap(run)(x[:, None])
    with pytest.raises(ValueError, match=r"'native': .*meta device"):
        mixture("btt_moe", device="meta")(x.to("meta"))
    with FlopCounterMode(display=False):
        with pytest.raises(ValueError, match=r"'native': whoever records operations.*all_experts and grouped"):
            layer(x)
    layer.backend = "auto"
    torch.testing.assert_close(torch.func.vmap(run)(x[:, None])[:, 0], layer(x))
    before = kernel.use("no compiler, say")
    try:
        layer(x)
        assert layer.ran != "native"
        layer.backend = "native"
        with pytest.raises(ValueError, match="backend 'native': no compiler, say"):
            layer(x)
    finally:
        kernel.use(before)


def test_auto_takes_it_where_it_is_predicted_to_be_faster_and_the_plan_says_so(monkeypatch):
    layer = mixture("btt_moe", (256, 256))
    layer.backend = "auto"
    for seconds, other in ((math.inf, False), (0.0, True)):
        monkeypatch.setattr(price, "_native", lambda *_, seconds=seconds: seconds)
        layer.structure.memo.pop("experts", None)
        with torch.no_grad():
            layer(torch.randn(200, 256))
        assert (layer.ran == "native") == other
    monkeypatch.undo()
    layer.structure.memo.pop("experts")
    with torch.no_grad():
        layer(torch.randn(200, 256))
    assert layer.ran == layer.plan(200).runs
    layer.backend = "native"
    said = str(layer.plan(200))
    assert "200 tokens, 2 of 8 experts each, forward: native, tokens sorted by expert inside" in said
    assert all(f"{name} " in said.splitlines()[1] for name in ("native", "grouped", "all_experts"))
    layer.backend = "grouped"
    assert layer.plan(200, grad=True).runs == "grouped" and "backward: grouped" in str(layer.plan(200, grad=True))
    layer.backend = "bmm"
    with pytest.raises(ValueError, match="backend 'bmm': btt_moe has a gate"):
        layer.plan(200)


@pytest.mark.parametrize("name", [*GATED, "shared_ends"])
def test_executed_flops_are_those_of_the_chosen_experts(name):
    structure = mixture(name).structure
    module = backends.get("native")
    assert module.executed_flops(structure, 7) == structure.flops(7)
    assert module.executed_flops(structure, 7, train=True) >= structure.flops(7, train=True)


def test_an_empty_batch_is_empty():
    layer = mixture("low_rank_moe")
    assert layer(torch.empty(0, 48)).shape == (0, 96)
    assert native.refuses(structures.get("dense").bind(4, 4), torch.empty(0, 4)) is None
