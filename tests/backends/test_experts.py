"""Gated structures: the registry's field, the router, the two executions, counts, and what is derived from them."""

from __future__ import annotations

import copy
import math
import pickle

import experts_by_hand
import numpy as np
import pytest
import torch
from contract import assert_right, error, limits, limits_of, plain, tensors, truth
from gated import GATED, OWN, gradients, made, own
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import structures
from structures import backends, exactness, reference, registry
from structures.backends.experts import all_experts, grouped, price
from structures.routing import room, route
from structures.spec import SizeError, Spec, SpecError
from structures.structure import Gate

EXECUTIONS = ("all_experts", "grouped")


# -- against formulas and the reference


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(experts_by_hand.EXPERTS))
def test_the_entry_is_the_mixture_of_its_formula(name, active):
    options = {"n_experts": 4, "experts_active": active, **({"rank": 3} if name == "low_rank_moe" else {})}
    layer = made(name, (12, 18), bias=False, **options)
    x = torch.randn(9, 12, dtype=torch.float64)
    factors = [f.detach().numpy() for f in layer.factors]
    wanted = torch.from_numpy(experts_by_hand.mixture(name, factors, layer.router.detach().numpy(), active, x.numpy()))
    bias = torch.zeros(18, dtype=torch.float64)
    most = limits_of(layer.structure, x, [*layer.operands, bias], None, [wanted])
    with torch.no_grad():
        assert_right([reference.apply(layer.structure, x, layer.operands)], [wanted], most)
        for backend in EXECUTIONS:
            layer.backend = backend
            assert_right([layer(x)], [wanted], most)
        layer.factor_0 *= 1 + 1e-9  # the comparison can fail
        assert error(reference.apply(layer.structure, x, layer.operands), wanted) > most[0]


def test_every_gated_entry_has_a_formula():
    assert sorted(experts_by_hand.EXPERTS) == sorted(GATED)


WAYS = (("all_experts", 0), ("grouped", math.inf), ("grouped", -1))  # groups side by side, and one by one


@pytest.mark.parametrize("structure", [*GATED, *OWN])
def test_both_executions_are_the_reference_in_value_and_every_gradient(structure, monkeypatch):
    layer = made(structure if structure in GATED else own(structure))
    for tokens in (0, 1, 23):
        x, dy = tensors(layer, tokens, torch.float64)
        wanted = truth(layer, x, dy)
        most = limits(layer, x, dy, wanted, wanted)
        for layer.backend, call in WAYS:
            monkeypatch.setattr(grouped, "CALL", call)
            assert_right(gradients(layer, x, dy), wanted, most, f"{tokens} tokens, {layer.backend}, {call}")


@pytest.mark.parametrize(("experts", "active"), [(1, 1), (4, 4), (5, 1), (16, 3)])
def test_one_expert_all_experts_and_one_of_many_are_the_reference_too(experts, active):
    for name in GATED:
        layer = made(name, n_experts=experts, experts_active=active)
        x, dy = tensors(layer, 23, torch.float64)
        wanted = truth(layer, x, dy)
        most = limits(layer, x, dy, wanted, wanted)
        for layer.backend in EXECUTIONS:
            assert_right(gradients(layer, x, dy), wanted, most)


def test_with_one_expert_it_is_the_plain_structure():
    layer = made("dense_moe", n_experts=1, experts_active=1)
    x, _ = tensors(layer, 5, torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.factor_0[0] + layer.bias)


@pytest.mark.parametrize("backend", EXECUTIONS)
def test_equal_logits_choose_the_first_experts_and_one_token_alone_gets_the_same(backend):
    layer = made("btt_moe", backend=backend, routed=0.0)
    x, _ = tensors(layer, 300, torch.float64)
    routing = layer.forward_with_routing(x)[1]
    assert routing.experts.unique(dim=0).tolist() == [[0, 1]] and (routing.weights == 0.5).all()
    layer.router.data[5] = layer.router.data[2] = 0.1  # 2 and 5 alike: 2 first, and where they are below, 0 and 1
    routing = layer.forward_with_routing(x)[1]
    assert set(map(tuple, routing.experts.tolist())) == {(2, 5), (0, 1)}
    y = layer(x).detach()
    (most,) = limits_of(layer.structure, x[7:8], list(layer.parameters()), None, [y[7:8]])
    assert_right([layer(x[7])], [y[7]], [most])


@pytest.mark.parametrize("backend", EXECUTIONS)
def test_experts_without_a_token_have_gradients_of_zero(backend):
    layer = made("btt_moe", backend=backend, routed=0.0)
    x, dy = tensors(layer, 11, torch.float64)
    layer(x).backward(dy)
    for factor in layer.factors:
        assert factor.grad[2:].count_nonzero() == 0 and (factor.grad[:2] != 0).any(dim=(1, 2, 3)).all()
    assert layer.router.grad[2:].count_nonzero() == 0 and layer.router.grad[:2].count_nonzero()
    none = made("btt_moe", backend=backend)
    none(x[:0]).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in none.parameters())


def test_a_call_gives_the_same_numbers_every_time():
    for backend in EXECUTIONS:
        layer = made("low_rank_moe", backend=backend, dtype=torch.float32)
        x, dy = tensors(layer, 200, torch.float32)
        first = gradients(layer, x, dy)
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(layer, x, dy), strict=True))


# -- as a layer


def test_autocast_leaves_the_choice_of_experts_as_it_was():
    for backend in EXECUTIONS:
        layer = made("btt_moe", dtype=torch.float32, backend=backend)
        x = torch.randn(60, 48, requires_grad=True)
        plain = layer.forward_with_routing(x)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, routing = layer.forward_with_routing(x)
        assert y.dtype == torch.bfloat16 and routing.logits.dtype == torch.float32
        assert torch.equal(routing.experts, plain.experts) and torch.equal(routing.logits, plain.logits)
        cast = exactness.Sums(0, 2 + len(layer.factors))  # x, the factors and the bias are rounded to bfloat16 first
        most = (exactness.sums(layer.structure, 60)[0] + cast).share(torch.bfloat16)
        assert error(y, reference.apply(layer.structure, x, layer.operands, layer.bias)) <= most
        y.float().square().sum().backward()
        assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_as_the_reference_in_it(dtype):
    for name in GATED:
        layer = made(name, dtype=dtype)
        x, dy = tensors(layer, 40, dtype)
        wanted = truth(layer, x, dy)
        most = limits(layer, x, dy, wanted, plain(layer, x, dy))
        for layer.backend in EXECUTIONS:
            assert_right(gradients(layer, x, dy), wanted, most)


def test_it_is_copied_pickled_saved_and_holds_its_router():
    layer = made("btt_moe")
    x, _ = tensors(layer, 4, torch.float64)
    assert list(layer.state_dict()) == ["factor_0", "factor_1", "router", "bias"]
    assert layer.state_dict()["router"].shape == (8, 48) == layer.structure.router_shape
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), layer(x))
    assert structures.StructuredLinear("btt_moe", 48, 96).router.count_nonzero() == 0
    assert sum(p.numel() for p in layer.parameters()) == layer.structure.params + 96


def test_grouping_refuses_graphs_and_transforms_and_auto_takes_the_other():
    layer = made("btt_moe", backend="grouped")
    x, _ = tensors(layer, 4, torch.float64)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}

    def run(x):
        return torch.func.functional_call(layer, parameters, (x,))

    with pytest.raises(ValueError, match=r"'grouped': its groups depend on the numbers in x.*all_experts"):
        torch.func.vmap(run)(x[:, None])
    with pytest.raises(ValueError, match=r"'grouped': .*meta device"):
        made("btt_moe", backend="grouped", device="meta")(torch.empty(3, 48, dtype=torch.float64, device="meta"))
    layer.backend = "auto"
    torch.testing.assert_close(torch.func.vmap(run)(x[:, None])[:, 0], layer(x))


def test_ordinary_backends_refuse_a_gate_and_those_of_experts_what_has_none():
    x = torch.randn(2, 48, dtype=torch.float64)
    for backend in backends.names():
        if backend in EXECUTIONS:
            with pytest.raises(ValueError, match=f"backend '{backend}': dense has no gate"):
                structures.StructuredLinear("dense", 48, 48, dtype=torch.float64, backend=backend)(x)
        elif backend not in ("native", "triton"):  # which run both kinds
            with pytest.raises(ValueError, match=r"a gate.*run experts: native, triton, all_experts, grouped"):
                made("btt_moe", backend=backend)(x)


def test_what_needs_one_matrix_says_that_there_is_none():
    layer = made("btt_moe")
    with pytest.raises(ValueError, match=r"2 of 8 experts are chosen.*to_dense\(gates\).*none are given"):
        layer.to_dense()
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        layer.to_dense(torch.ones(3))
    with pytest.raises(ValueError, match="dense has no gate: to_dense"):
        structures.StructuredLinear("dense", 4, 4).to_dense(torch.ones(3))
    with pytest.raises(ValueError, match="there is no one dense matrix"):
        structures.to_linear(layer)
    with pytest.raises(ValueError, match="dense has no gate, so there is no routing"):
        structures.StructuredLinear("dense", 4, 4).forward_with_routing(torch.ones(2, 4))
    x, _ = tensors(layer, 1, torch.float64)
    routing = layer.forward_with_routing(x)[1]
    torch.testing.assert_close(x @ layer.to_dense(routing.gates[0]).T + layer.bias, layer(x))


# -- router, losses, collecting


def test_losses_are_those_of_their_formulas():
    layer = made("low_rank_moe", n_experts=4)
    x, _ = tensors(layer, 30, torch.float64)
    routing = layer.forward_with_routing(x)[1]
    logits = (x @ layer.router.T).detach().numpy()
    share = np.zeros(4)
    for row in logits:
        for e in experts_by_hand.chosen(row, 2):
            share[e] += 1 / 60
    probability = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).mean(0)
    assert math.isclose(routing.balance_loss().item(), 4 * share @ probability)
    assert math.isclose(routing.z_loss().item(), np.square(np.log(np.exp(logits).sum(1))).mean())
    assert routing.load.tolist() == (60 * share).round().tolist() and routing.dropped == 0
    (gradient,) = torch.autograd.grad(routing.balance_loss() + routing.z_loss(), layer.router)
    assert gradient.abs().min() > 0
    empty = layer.forward_with_routing(x[:0])[1]
    assert empty.balance_loss().item() == empty.z_loss().item() == 0


def test_the_balance_loss_spreads_the_tokens():
    layer = made("btt_moe", routed=0.0, dtype=torch.float32)
    x = torch.randn(400, 48)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(60):
        y, routing = layer.forward_with_routing(x)
        loss = (y - x.repeat(1, 2)).square().mean() + 0.1 * routing.balance_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert routing.load.min() > 30 and routing.load.max() < 250  # 100 each would be even; 400 at the start


def test_routing_is_collected_inside_the_block_alone():
    model = nn.Sequential(made("btt_moe"), nn.ReLU(), made("low_rank_moe", (96, 48)), nn.Linear(48, 2).double())
    x = torch.randn(10, 48, dtype=torch.float64)
    with structures.collect_routing(model) as routings:
        model(x)
        model(x[:3])
    model(x)
    assert [(name, len(r.logits)) for name, r in routings] == [("0", 10), ("0", 3), ("2", 10), ("2", 3)]
    each = torch.stack([r.balance_loss() for _, r in routings])
    assert torch.equal(routings.balance_loss(), each.mean()) and routings.z_loss() > 0
    routings.balance_loss().backward()
    assert model[0].router.grad.count_nonzero() and model[2].router.grad.count_nonzero()
    with structures.collect_routing(model) as routings:  # computed a second time in the backward: not counted
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert len(routings) == 2
    with pytest.raises(ValueError, match="being collected already"), structures.collect_routing(model):
        with structures.collect_routing(model):
            pass
    with structures.collect_routing(model) as routings:
        pass
    with pytest.raises(ValueError, match="no layer with a gate has run"):
        routings.balance_loss()
    with (
        pytest.raises(ValueError, match="Linear has no layer with a gate"),
        structures.collect_routing(nn.Linear(2, 2)),
    ):
        pass
    copy.deepcopy(model)(x)


def test_jitter_is_noise_on_the_logits_in_training_alone():
    layer = made(own("shared_ends", jitter="0.5"))
    x, _ = tensors(layer, 50, torch.float64)
    torch.manual_seed(1)
    first, second = (layer.forward_with_routing(x)[1].logits for _ in range(2))
    exact = x @ layer.router.T
    assert not torch.equal(first, second) and math.isclose((first - exact).std().item(), 0.5, rel_tol=0.2)
    assert torch.equal(layer.eval().forward_with_routing(x)[1].logits, exact)


def test_capacity_drops_late_tokens_and_second_choices_first_and_counts_them():
    gate = Gate("e", experts=3, active=2, capacity=0.5)  # 6 tokens: 2 each
    logits = torch.tensor([[3, 2, 1], [3, 2, 1], [3, 1, 2], [2, 3, 1], [1, 3, 2], [1, 3, 2]], dtype=torch.float64)
    x = torch.eye(6, dtype=torch.float64)
    routing = route(gate, x, logits.T.contiguous(), training=True)
    assert room(gate, 6) == 2 and routing.experts.tolist() == [[0, 1], [0, 1], [0, 2], [1, 0], [1, 2], [1, 2]]
    # first choices: 0 takes tokens 0 and 1, 1 takes 3 and 4; then second ones: 2 takes tokens 2 and 4
    kept = [[True, False], [True, False], [False, True], [True, False], [True, True], [False, False]]
    assert routing.kept.tolist() == kept and routing.dropped == 6
    strong = math.e / (1 + math.e)  # no weight moves to the choices that stay
    torch.testing.assert_close(routing.weights[:, 0], torch.tensor([strong, strong, 0, strong, strong, 0]).double())
    assert route(gate, x, logits.T).kept is None


@pytest.mark.parametrize("backend", EXECUTIONS)
def test_with_a_capacity_both_executions_weigh_the_kept_choices(backend):
    layer = made(own("beside_dense", capacity="0.6"), backend=backend)
    x, _ = tensors(layer, 40, torch.float64)
    y, routing = layer.forward_with_routing(x)
    assert 0 < routing.dropped < 120
    lost = routing.experts[~routing.kept]
    assert torch.bincount(routing.experts[routing.kept], minlength=5).max() == room(layer.structure.gate, 40) == 15
    assert lost.numel() == routing.dropped
    for number in range(0, 40, 7):
        wanted = x[number] @ _dense(layer, routing.gates[number]).T + layer.bias
        torch.testing.assert_close(y[number], wanted)
    layer.eval()
    torch.testing.assert_close(layer(x), reference.apply(layer.structure, x, layer.operands, layer.bias))


def _dense(layer, gates):
    return layer.to_dense(gates)


# -- counts


def test_counts_are_those_of_the_formulas():
    d, e, k = 1024, 8, 2
    btt = structures.get("btt_moe").bind(d, d)
    assert btt.params == e * 2 * d * 32 + e * d and btt.flops() == 2 * (k * 2 * d * 32 + e * d)
    low = structures.get("low_rank_moe").bind(d, d, rank=16)
    assert low.params == e * 2 * d * 16 + e * d and low.flops(3) == 3 * 2 * (k * 2 * d * 16 + e * d)
    dense = structures.get("dense_moe").bind(d, 512, n_experts=4)
    assert dense.params == 4 * d * 512 + 4 * d and dense.flops(train=True) == 3 * 2 * (k * d * 512 + 4 * d)
    assert (dense.rank, btt.summed(3).size["e"], dense.summed().params) == (512, 3, d * 512)
    assert low.rank == 32  # of a token's own matrix


@pytest.mark.parametrize("backend", EXECUTIONS)
@pytest.mark.parametrize("structure", [*GATED, "shared_ends", "beside_dense"])
def test_executed_flops_are_what_pytorch_counts(structure, backend):
    shape = (192, 192)  # where no plan has elementwise products, which PyTorch does not count
    layer = made(structure if structure in GATED else own(structure), shape, dtype=torch.float32, backend=backend)
    x, dy = tensors(layer, 256, torch.float32)
    lengths = {"lengths": grouped.lengths(layer.forward_with_routing(x)[1])} if backend == "grouped" else {}
    module = backends.get(backend)
    counted = FlopCounterMode(display=False)
    for pads in (math.inf, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouped, "CALL", pads)
            with counted, torch.no_grad():
                layer(x)
            assert counted.get_total_flops() == module.executed_flops(layer.structure, 256, **lengths)
            with counted:
                y = layer(x.requires_grad_())
            forward = counted.get_total_flops()
            with counted:
                torch.autograd.grad(y, [x, *layer.parameters()], dy)
            assert forward + counted.get_total_flops() == module.executed_flops(
                layer.structure, 256, train=True, **lengths
            )
            x.requires_grad_(False)


def test_all_experts_run_what_a_token_does_not_count_and_groups_do_not():
    structure = structures.get("dense_moe").bind(256, 256, n_experts=8)
    assert all_experts.executed_flops(structure, 64) == 2 * 64 * (
        8 * 256 * 256 + 2 * 8 * 256
    )  # router and weighted sum
    even = grouped.executed_flops(structure, 64)
    assert even == structure.flops(64) + 2 * 64 * 2 * 256  # and the weighted sum
    skewed = grouped.executed_flops(structure, 64, lengths=[64, 64, 0, 0, 0, 0, 0, 0])
    assert skewed == even  # one expert after another: nothing is padded


def test_auto_groups_where_the_price_says_so():
    wide, narrow = (structures.get(n).bind(1024, 1024, n_experts=8) for n in ("dense_moe", "low_rank_moe"))
    with torch.no_grad():  # in float64, which the native kernel does not run
        assert backends.choose("auto", wide, torch.empty(512, 1024, dtype=torch.float64)) == "grouped"
        for tokens in (0, 1, 64):
            predicted = price.seconds(narrow, max(tokens, 1), train=False, dtype=torch.float64)
            chosen = backends.choose("auto", narrow, torch.empty(tokens, 1024, dtype=torch.float64))
            assert chosen == min(predicted, key=predicted.__getitem__)
    for structure in (wide, narrow):
        for tokens in (1, 64, 4096):
            less, more = (price.seconds(structure, n, train=True, dtype=torch.float64) for n in (tokens, 2 * tokens))
            assert set(less) == set(EXECUTIONS) and all(0 < less[name] < more[name] for name in less)
    layer = made("dense_moe", (256, 256))
    layer(torch.randn(2048, 256, dtype=torch.float64))
    assert layer.ran == "grouped"


# -- what is derived


def test_a_fresh_mixture_has_the_output_variance_of_a_fresh_linear():
    for spec in (*GATED, own("beside_dense"), own("shared_ends")):
        torch.manual_seed(0)
        squares = []
        for _ in range(40):
            layer = structures.StructuredLinear(spec, 96, 240, bias=False)
            squares.append(layer(torch.randn(64, 96)).detach().square().mean())
        found = torch.stack(squares)
        assert abs(float(found.mean()) - 1 / 3) < 5 * float(found.std()) / math.sqrt(40) + 0.02


@pytest.mark.parametrize(
    ("name", "options", "plain", "plain_options"),
    [("low_rank_moe", {"rank": 5}, "low_rank", {"rank": 10}), ("btt_moe", {}, "btt", {"rank": 2})],
)
def test_a_warm_start_is_the_leading_summands_and_says_what_all_of_them_are(name, options, plain, plain_options):
    torch.manual_seed(0)
    linear = nn.Linear(48, 96, dtype=torch.float64)
    x = torch.randn(7, 48, dtype=torch.float64)
    layer, wanted = (
        structures.from_linear(linear, name, **options),
        structures.from_linear(linear, plain, **plain_options),
    )
    assert math.isclose(layer.projection.weight_error, wanted.projection.weight_error, rel_tol=1e-9)
    torch.testing.assert_close(layer(x), wanted(x))
    assert layer.router.count_nonzero() == 0 and torch.equal(layer.bias, linear.bias)
    every = structures.from_linear(linear, name, n_experts=8, experts_active=8, **options)
    assert every.projection.optimal and not layer.projection.optimal
    assert math.isclose(every.projection.weight_error, layer.projection.sum_error, abs_tol=1e-12)


def test_dense_experts_start_as_copies_exact_for_any_router():
    linear = nn.Linear(48, 96, dtype=torch.float64)
    layer = structures.from_linear(linear, "dense_moe", held_out=torch.randn(9, 48, dtype=torch.float64))
    layer.router.data.normal_()
    x = torch.randn(7, 48, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))
    assert layer.projection.optimal and layer.projection.weight_error == layer.projection.output_error == 0


def test_models_are_swapped_saved_loaded_and_given_rates(tmp_path):
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48))
    plan = structures.swap(model, {"*": "btt_moe"}, project=True, skip=())
    assert all(
        row.params_after == layer.structure.params + row.out_features
        for row, layer in zip(plan.rows, model[::2], strict=True)
    )
    x = torch.randn(5, 48)
    structures.save_swapped(model, tmp_path)
    other = structures.load_swapped(nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48)), tmp_path)
    assert torch.equal(other(x), model(x)) and not list(other[0].named_buffers())
    rates = {name: g["multiplier"] for g in structures.param_groups(model, 1e-3) for name in g["names"]}
    assert rates["0.router"] == 1 and rates["0.factor_0"] == 48 / 6 / 2  # fan-in of one expert, two factors
    sgd = {n: g["multiplier"] for g in structures.param_groups(model, 1, optimizer=torch.optim.SGD) for n in g["names"]}
    assert math.isclose(sgd["0.router"], 8 / 96)
    structures.swap(model, {"0": "monarch"}, skip=())  # fresh factors need no matrix
    with pytest.raises(ValueError, match="2: btt_moe: there is no one dense matrix"):
        structures.swap(model, {"2": nn.Linear}, skip=())


def test_a_saved_gate_that_differs_is_an_error(tmp_path):
    file = tmp_path / "mine.yaml"
    text = "mine:\n  sizes: {e: 4}\n  gate: {axis: e, experts_active: 2}\n  einsum: x, e x y -> y\n"
    try:
        file.write_text(text)
        structures.load(file)
        structures.save_swapped(nn.Sequential(structures.StructuredLinear("mine", 4, 4)), tmp_path / "saved")
        file.write_text(text.replace("2", "3"))
        structures.load(file)
        with pytest.raises(ValueError, match=r"saved with the gate \{.*'2'\}, the registry has \{.*'3'\}"):
            structures.load_swapped(nn.Sequential(nn.Linear(4, 4)), tmp_path / "saved")
    finally:
        registry._added.clear()


def test_options_are_fitted_and_a_distilled_copy_comes_nearer():
    options = structures.fit_options("btt_moe", 1024, 1024, params=0.25)
    structure = structures.get("btt_moe").bind(1024, 1024, **options)
    assert abs(structure.params / structure.dense_params - 0.25) < 0.02
    teacher = nn.Linear(16, 16)
    layer = structures.StructuredLinear("low_rank_moe", 16, 16, rank=2)
    (match,) = structures.distil(layer, teacher, torch.randn(512, 16), steps=60)
    assert match.after < match.before


def test_distilling_measures_without_the_noise_of_training():
    layer, teacher = made(own("shared_ends", jitter="5"), (16, 16), dtype=torch.float32), nn.Linear(16, 16)
    x = torch.randn(64, 16)
    first, second = (structures.distil(layer, teacher, x, steps=0)[0].before for _ in range(2))
    assert first == second


def test_activations_stay_alike_as_width_grows():
    rows = structures.coordinate_check("btt_moe", widths=(64, 256), steps=2)
    assert len(rows) == 2 * 3 * 2 and all(0 < row.size < 100 for row in rows)


# -- the registry's field

GOOD = "m:\n  options: {n: 4, k: 2}\n  sizes: {e: n}\n  gate: {axis: e, experts_active: k}\n  einsum: x, e x y -> y\n"
BAD = [  # (what is written instead, text of the error)
    (
        "gate: {axis: q, experts_active: k}",
        "m.yaml:4:16: m: gate: 'q' is not an axis of the einsum; there are: e, x, y",
    ),
    ("gate: {axis: x, experts_active: k}", "m.yaml:4:16: m: gate: the input view of 'x, e x y -> y' holds axis 'x'"),
    (
        "gate: {axis: y, experts_active: k}",
        "the output view of 'x, e x y -> y' holds axis 'y', so it cannot number exp",
    ),
    ("gate: {axis: y, experts_active: k}", "; axes that no view holds: e"),
    ("gate: {axis: e, experts_active: kk}", "m.yaml:4:35: m: unknown name 'kk' in 'kk'; did you mean"),
    (
        "gate: {axis: e, experts_activ: k}",
        "m.yaml:4:34: m: gate has no 'experts_activ'; did you mean 'experts_active'?",
    ),
    ("gate: {axis: e}", "m.yaml:4:9: m: gate has no 'experts_active'; write it as {axis: r, experts_active: 2}"),
    ("gate: {experts_active: k}", "gate has no 'axis'"),
    ("gate: e", "m.yaml:4:9: m: gate is a mapping, found 'e'"),
    (
        "gate: {axis: e, experts_active: k + 3}",
        "m.yaml:4:35: m: gate: experts_active = k + 3 is 5, but axis 'e' has 4 experts",
    ),
    (
        "gate: {axis: e, experts_active: k - 2}",
        "m.yaml:4:35: m: gate: experts_active = k - 2 is 0, not a whole number from 1",
    ),
    ("gate: {axis: e, experts_active: n / k, jitter: 0 - 1}", "jitter = 0 - 1 is -1, not a number from 0"),
    ("gate: {axis: e, experts_active: k, capacity: x}", "unknown name 'x'"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_wrong_gate_is_an_error_with_its_place(tmp_path, line, message):
    file = tmp_path / "m.yaml"
    file.write_text(GOOD.replace("gate: {axis: e, experts_active: k}", line))
    with pytest.raises(SpecError) as caught:
        spec = registry.read(file)["m"]
        spec.bind(8, 8)
        raise AssertionError(spec)
    assert message in str(caught.value)


def test_options_set_the_gate_and_wrong_ones_name_what_works(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text(GOOD)
    spec = registry.read(file)["m"]
    assert spec.bind(8, 8, n=6, k=3).gate == Gate("e", 6, 3)
    with pytest.raises(SizeError, match=r"m\.yaml:4:35: m: gate: experts_active = k is 9.*k that work here: 1, 2, 4"):
        spec.bind(8, 8, k=9)
    with pytest.raises(SizeError, match="has 0 experts"):
        spec.bind(8, 8, n=0)
    page = str(spec.bind(8, 8))
    assert "gate: 2 of 4 experts on axis e a token" in page and "router     1 x (tokens, 8) @ (8, 4)" in page
    assert "jitter 0.5" in str(own("shared_ends", jitter="0.5").bind(8, 8))


@pytest.mark.parametrize(
    ("einsum", "index", "message"),
    [
        ("(i[:]), e[t] i[t] o[t] -> (o[:])", {}, "axis 'e' is indexed; experts stand on an axis of one size"),
        ("(b w), u e w v -> (u v)", {"b": "u ^ e"}, "the input axis 'b' is read through axis 'e'"),
    ],
)
def test_axes_that_cannot_number_experts_are_refused(einsum, index, message):
    sizes = {"i": "split(in_features, 2)", "o": "split(out_features, 2)", "e": "split(4, 2)"}
    sizes = sizes if "[" in einsum else {"u": "4", "b": "4", "e": "2"}
    with pytest.raises(SpecError, match=message):
        Spec(name="m", einsum=einsum, sizes=sizes, index=index, gate={"axis": "e", "experts_active": "1"})
