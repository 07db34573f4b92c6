"""Factors that are computed from other parameters: every function that looks at parameters goes by their names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import structures
from structures.linear import StructuredLinear
from structures.models.distil import distil
from structures.models.linears import to_linear
from structures.models.rates import multiplier, param_groups
from structures.models.saved import load_swapped, save_swapped
from structures.models.swap import swap


class Mask(nn.Module):
    """Every other number of a factor is zero; no right inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.numel()).reshape(x.shape) % 2 == 0)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x


PARAMETRIZATIONS = {
    "orthogonal": parametrizations.orthogonal,
    "cayley": lambda layer, name: parametrizations.orthogonal(
        layer, name, orthogonal_map="cayley", use_trivialization=False
    ),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "mask": lambda layer, name: parametrize.register_parametrization(layer, name, Mask()),
    "identity": lambda layer, name: parametrize.register_parametrization(layer, name, Same()),
}
ALL = {**PARAMETRIZATIONS, "pruning": lambda layer, name: prune.l1_unstructured(layer, name, amount=0.5)}
ENTRIES = [("block_diagonal", {"n_blocks": 3}), ("monarch", {"n_blocks": 2}), ("dense_moe", {})]


def made(entry: tuple[str, dict], kind: str) -> StructuredLinear:
    torch.manual_seed(0)
    layer = StructuredLinear(entry[0], 12, 24, **entry[1])
    for name in layer.structure.factor_names:
        ALL[kind](layer, name)
    return layer


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e[0])
def test_a_computed_factor_learns_at_the_factors_own_rate(entry, kind):
    layer = made(entry, kind)
    groups = param_groups(nn.Sequential(layer), lr=1.0)
    rates = {name.removeprefix("0."): group["multiplier"] for group in groups for name in group["names"]}
    assert rates.keys() == dict(layer.named_parameters()).keys()
    for number, name in enumerate(layer.structure.factor_names):
        own = [rate for other, rate in rates.items() if name in other]
        assert own and own == [multiplier(layer.structure, number)] * len(own)
    assert rates["bias"] == 1


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e[0])
def test_a_computed_factor_is_drawn_anew_as_when_it_was_registered(entry, kind):
    layer = made(entry, kind)
    before, held = [f.detach().clone() for f in layer.factors], list(layer.parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.5)
    torch.manual_seed(0)
    layer.reset_parameters()
    fresh = StructuredLinear(entry[0], 12, 24, **entry[1])
    assert all(a is b for a, b in zip(held, layer.parameters(), strict=True)), "an optimizer still holds them"
    for old, new, plain in zip(before, layer.factors, fresh.factors, strict=True):
        assert new.std() > 0.1 * plain.detach().std(), "what was filled with 0.5 is drawn again"
        if kind in ("weight norm", "mask", "identity"):  # the others complete the draw with draws of their own
            assert torch.allclose(old, new, atol=1e-6)
    y = layer(torch.randn(4, 12))
    assert y.isfinite().all() and not torch.allclose(y, y[0].expand_as(y))


def test_a_pruned_factor_is_not_drawn_in_vain():
    layer = made(ENTRIES[0], "pruning")
    with pytest.raises(ValueError, match=r"block_diagonal: factor_0 is computed by a hook .* would undo the draw"):
        layer.reset_parameters()


@pytest.mark.parametrize("kind", ALL)
def test_a_computed_factor_is_refused_before_anything_is_written(kind, tmp_path):
    model = nn.Sequential(made(ENTRIES[1], kind))
    with pytest.raises(ValueError, match=r"save_swapped: 0: its factor_0 is computed .*remove_parametrizations"):
        save_swapped(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = model(torch.ones(2, 12)).detach()
    for name in model[0].structure.factor_names:
        if kind == "pruning":
            prune.remove(model[0], name)
        else:
            parametrize.remove_parametrizations(model[0], name)
            factor = model[0].get_parameter(name)
            factor.data = factor.data.clone()  # Cayley's leaves a part of a larger matrix, which safetensors refuses
    save_swapped(model, tmp_path / "out")
    again = load_swapped(nn.Sequential(nn.Linear(12, 24)), tmp_path / "out")
    assert torch.allclose(again(torch.ones(2, 12)), before, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_a_computed_factor_stays_where_layers_are_replaced(kind):
    model = nn.Sequential(made(ENTRIES[0], kind), nn.Linear(24, 12))
    layer = model[0]
    swap(model, {"*": ("low_rank", {"rank": 2})}, skip=())
    assert model[0] is layer and model[1].structure.name == "low_rank"


@pytest.mark.parametrize("kind", ALL)
def test_a_computed_factor_is_not_matched_to_a_dense_layer(kind):
    model, teacher = nn.Sequential(made(ENTRIES[0], kind)), nn.Sequential(nn.Linear(12, 24))
    with pytest.raises(ValueError, match=r"distil: layer '0': its factor_0 is computed .* register that afterwards"):
        distil(model, teacher, [torch.randn(64, 12)], steps=1)


@pytest.mark.parametrize("kind", ALL)
def test_the_dense_layer_of_computed_factors_keeps_map_and_training(kind):
    layer = made(ENTRIES[1], kind)
    if kind != "pruning":
        parametrize.register_parametrization(layer, "bias", Mask())
    x = torch.randn(3, 12)
    dense = to_linear(layer)
    assert torch.allclose(dense(x), layer(x), atol=1e-5)
    assert dense.weight.requires_grad and dense.bias is not None
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert not to_linear(layer).weight.requires_grad


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_a_computed_factor_runs_trains_and_is_copied(kind):
    layer = made(ENTRIES[1], kind)
    x = torch.randn(5, 12)
    y = layer(x)
    y.square().sum().backward()
    assert torch.allclose(y, x @ layer.to_dense().T + layer.bias, atol=1e-5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert torch.allclose(copy.deepcopy(layer).eval()(x), layer.eval()(x), atol=1e-6)
    assert structures.to_linear is to_linear
