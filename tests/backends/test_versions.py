"""Kept copies are never stale: every change of a parameter that PyTorch counts is seen."""

import pytest
import torch
from contract import SHAPES, layer
from torch import nn

from structures.backends import versions
from structures.backends.versions import Versions, unwatchable


def made():
    return layer("monarch", SHAPES[0])


def _swap_data(layer):
    layer.factor_0.data = layer.factor_0.data * 2


def _optimizer(layer, **more):
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.1, **more).step()


def _load(layer, **more):
    layer.load_state_dict(made().state_dict(), **more)


def _in_place(layer):
    with torch.no_grad():
        layer.factor_1[0, 0] += 1


def _in_place_under_inference_mode(layer):
    with torch.inference_mode():
        layer.factor_1.mul_(2)


def _replaced(layer):
    layer.factor_0 = nn.Parameter(torch.randn_like(layer.factor_0))


def _vector(layer):
    flat = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(flat.detach() * 1.5, layer.parameters())


def _other_strides(layer):
    """Same storage, other strides."""
    square = layer.factor_0.data
    layer.factor_0.data = square.transpose(-1, -2)


CHANGES = {
    "optimizer": _optimizer,
    "fused loops of an optimizer": lambda layer: _optimizer(layer, foreach=True),
    "load_state_dict": _load,
    "load_state_dict, assigned": lambda layer: _load(layer, assign=True),
    ".data swapped": _swap_data,
    "in place": _in_place,
    "in place under inference mode": _in_place_under_inference_mode,
    "through a view": lambda layer: layer.factor_0.detach().view(-1)[3:5].fill_(2),
    "drawn anew": lambda layer: layer.reset_parameters(),
    "another parameter": _replaced,
    "from a vector": _vector,
    "other strides": _other_strides,
    "float32": lambda layer: layer.float(),
    "bfloat16 and back": lambda layer: layer.bfloat16().double(),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_change_that_pytorch_counts_is_seen(change):
    held = made()
    seen = Versions.of(held.factors)
    with torch.no_grad():
        held(torch.randn(5, 48, dtype=torch.float64))
    assert seen.hold(held.factors)
    CHANGES[change](held)
    assert not seen.hold(held.factors)
    assert Versions.of(held.factors).hold(held.factors)


def test_the_address_of_a_freed_storage_that_comes_back_is_no_sameness():
    held = made()
    seen = Versions.of(held.factors)
    for _ in range(20):
        held.factor_0.data = held.factor_0.data * 1.1
        assert not seen.hold(held.factors)


def test_fewer_tensors_are_not_the_same():
    held = made()
    assert not Versions.of(held.factors).hold(held.factors[:1])


def test_what_pytorch_does_not_count_is_named():
    held = made()
    seen = Versions.of(held.factors)
    held.factor_0.data.mul_(2)  # a version counter of its own
    assert seen.hold(held.factors)
    assert "in place through `.data`" in " ".join(versions.__doc__.split())


def test_tensors_that_cannot_be_watched_are_refused_with_a_reason():
    held = made()
    assert unwatchable(held.factors) is None

    class Own(torch.Tensor):
        pass

    assert "Own cannot be seen" in unwatchable([torch.ones(2).as_subclass(Own)])
    with torch.inference_mode():
        born = torch.ones(2)
    assert "inference_mode" in unwatchable([born])
    assert torch.func.vmap(lambda x: x + (unwatchable([x]) is not None))(torch.zeros(2)).tolist() == [1, 1]
