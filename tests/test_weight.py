"""`layer.weight` is looked at for free, computed when it is used, and never written to."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import structures

WITHOUT_GATE = [name for name in structures.names() if not structures.get(name).gate]
READ = "its weight is read, so the dense"


def layer(name: str = "monarch", **more: object) -> structures.StructuredLinear:
    torch.manual_seed(0)
    return structures.StructuredLinear(name, 48, 96, **more)


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_the_weight_is_described_without_being_computed(name, monkeypatch):
    made = layer(name, dtype=torch.bfloat16)
    monkeypatch.setattr(structures.StructuredLinear, "to_dense", None)  # would fail if it were called
    weight = made.weight
    assert isinstance(weight, Tensor) and weight.requires_grad
    assert weight.shape == (96, 48) == weight.size() and weight.ndim == 2 and len(weight) == 96
    assert (weight.dtype, weight.device.type, weight.numel()) == (torch.bfloat16, "cpu", 48 * 96)
    assert weight.is_floating_point() and weight.is_contiguous() and weight.grad is None
    assert made.requires_grad_(False).weight.requires_grad is False
    assert "bfloat16" in repr(weight)


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_an_operation_runs_on_the_dense_form_with_gradients_to_the_factors(name):
    made, x = layer(name, dtype=torch.float64), torch.randn(5, 48, dtype=torch.float64)
    with pytest.warns(UserWarning, match=READ):
        y = functional.linear(x, made.weight, made.bias)
    torch.testing.assert_close(y, made(x))
    wanted = torch.autograd.grad(made(x).square().sum(), list(made.parameters()))
    found = torch.autograd.grad(y.square().sum(), list(made.parameters()))  # what was warned of once is not again
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(x @ made.weight.t() + made.bias, made(x))


def test_reading_is_told_once_for_each_layer():
    one, other = layer(), layer()
    with pytest.warns(UserWarning, match=r"monarch: its weight is read, so the dense \(96, 48\) matrix") as told:
        for made in (one, other, one, other):
            made.weight.sum()
    assert len(told) == 2


WRITES = {
    "in place": lambda w, layer: w.mul_(2),
    "item": lambda w, layer: w.__setitem__(0, 1.0),
    "operator": lambda w, layer: w.__iadd__(1),
    "data": lambda w, layer: w.data.normal_(),
    "data assigned": lambda w, layer: setattr(w, "data", torch.zeros(96, 48)),
    "detached": lambda w, layer: w.detach().zero_(),
    "init": lambda w, layer: nn.init.xavier_uniform_(w),
    "out": lambda w, layer: torch.mul(torch.ones(96, 48), 2, out=w),
    "view": lambda w, layer: w.t().zero_(),
    "row": lambda w, layer: w[0].copy_(torch.ones(48)),
    "chunk": lambda w, layer: w.chunk(2)[1].zero_(),
    "inplace=True": lambda w, layer: functional.relu(w, inplace=True),
    "frozen": lambda w, layer: w.requires_grad_(False),
    "gradient": lambda w, layer: setattr(w, "grad", torch.zeros(96, 48)),
    "parameter": lambda w, layer: setattr(layer, "weight", nn.Parameter(torch.zeros(96, 48))),
    "tensor": lambda w, layer: setattr(layer, "weight", torch.zeros(96, 48)),
    "registered": lambda w, layer: layer.register_parameter("weight", nn.Parameter(torch.zeros(96, 48))),
}


@pytest.mark.filterwarnings(f"ignore:.*{READ}")
@pytest.mark.parametrize("how", WRITES)
def test_a_write_is_an_error_with_a_way_out(how):
    made = layer()
    before = [f.detach().clone() for f in made.factors]
    with torch.no_grad(), pytest.raises(AttributeError, match=r"monarch: weight .*reset_parameters\(\).*from_linear"):
        WRITES[how](made.weight, made)
    assert list(made.state_dict()) == ["factor_0", "factor_1", "bias"]
    assert all(torch.equal(a, b) for a, b in zip(before, made.factors, strict=True))


@pytest.mark.filterwarnings(f"ignore:.*{READ}")
def test_what_was_computed_from_the_weight_is_an_ordinary_tensor():
    made = layer()
    for fresh in (made.weight.clone(), made.weight * 2, made.weight.double(), made.weight.detach().clone()):
        assert type(fresh) is Tensor
    made.weight.clone().detach().zero_()
    for copied in (copy.deepcopy(made.weight), pickle.loads(pickle.dumps(made.weight))):
        assert type(copied) is Tensor and torch.equal(copied, made.to_dense())


def test_an_entry_with_a_gate_has_none():
    made = layer("dense_moe")
    assert not hasattr(made, "weight")
    with pytest.raises(AttributeError, match="dense_moe has no dense weight; `factors` holds its parameters"):
        _ = made.weight


def test_where_a_gradient_could_not_reach_the_factors_nothing_is_computed():
    weight = layer().weight
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match="gradients would be lost"):
        torch.mul(weight, 2)


@pytest.mark.parametrize("name", structures.names())
def test_reading_every_attribute_changes_nothing(name):
    made = layer(name)
    before = {key: repr(value) for key, value in made.__dict__.items()}
    inspect.getmembers(made)
    assert {key: repr(value) for key, value in made.__dict__.items()} == before


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_a_graph_holds_the_dense_form(name):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = layer(name, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x.to(self.fc.weight.dtype), self.fc.weight)

    reads, x = Reads(), torch.randn(3, 48, dtype=torch.float64)
    wanted = x @ reads.fc.to_dense().t()
    torch.testing.assert_close(torch.export.export(reads, (x,)).module()(x), wanted)
