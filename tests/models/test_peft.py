"""peft's own functions train, save, load and remove adapters beside structured layers."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from torch import nn

import structures
from structures.models.swap import swap

peft = pytest.importorskip("peft", reason="peft is an extra")
transformers = pytest.importorskip("transformers", reason="transformers is the extra `models`")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # what peft asks of transformers


@pytest.fixture(scope="module", autouse=True)
def registered():
    from structures.models.peft import register_lora

    register_lora()
    register_lora()  # a second time does nothing


def model() -> nn.Module:
    made = models.pretrained_shape("opt", transformers).eval()
    swap(made, {"*.fc1": "monarch", "*.q_proj": "dense_moe"})
    return made


def logits(net: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return net(input_ids=models.text()).logits


def trained(net: nn.Module) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = net(input_ids=models.text(), labels=models.text()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return net.eval()


def test_all_linear_takes_structured_layers_but_no_head():
    """Previously failed: the dense half alone was adapted."""
    net = peft.get_peft_model(model(), peft.LoraConfig(target_modules="all-linear", r=2))
    adapted = {n.split(".")[-1] for n, m in net.named_modules() if hasattr(m, "base_layer")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


@pytest.mark.parametrize("targets", [["fc1"], "all-linear"])
def test_an_adapter_is_trained_saved_and_loaded(targets, tmp_path):
    """Previously failed: "Target module StructuredLinear is not supported", or a reload that did not know it."""
    base = model()
    fresh, plain = copy.deepcopy(base), logits(base)
    net = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets, r=2, lora_dropout=0.1))
    assert torch.equal(logits(net.eval()), plain), "an adapter begins as nothing"
    trained(net.train())
    wanted = logits(net)
    assert not torch.allclose(wanted, plain)
    net.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(logits(again), wanted)
    assert torch.equal(logits(again.unload()), plain)


def test_several_adapters_are_kept_side_by_side(tmp_path):
    net = trained(peft.get_peft_model(model(), peft.LoraConfig(target_modules=["fc1", "fc2"], r=2)).train())
    first = logits(net)
    net.save_pretrained(tmp_path)
    net.add_adapter("second", peft.LoraConfig(target_modules=["q_proj"], r=3))
    net.set_adapter("second")
    trained(net.train())
    second = logits(net)
    net.load_adapter(tmp_path, "third")
    net.set_adapter("third")
    assert torch.equal(logits(net.eval()), first)
    net.set_adapter("second")
    assert torch.equal(logits(net), second)


@pytest.mark.filterwarnings("ignore:.*its weight is read:UserWarning")
def test_merging_is_refused_with_the_way_out():
    net = peft.get_peft_model(model(), peft.LoraConfig(target_modules=["fc1"], r=2))
    with pytest.raises(ValueError, match=r"monarch: an adapter cannot be merged .*; keep it beside, or unload\(\)"):
        net.merge_and_unload()
    for variant in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises((ValueError, AttributeError), match=r"variant|weight is computed"):
            peft.get_peft_model(model(), peft.LoraConfig(target_modules=["fc1"], r=2, **variant))


def test_a_model_with_adapters_is_swapped_below_them():
    """Previously failed: adapters were replaced as well."""
    base = models.pretrained_shape("opt", transformers).eval()
    net = trained(peft.get_peft_model(base, peft.LoraConfig(target_modules=["fc1"], r=2)).train())
    wanted = logits(net)
    plan = swap(net, {"*.fc1.*": "dense"}, project=True)
    assert all(row.layer.endswith("fc1.base_layer") for row in plan.rows) and len(plan.rows) == 2
    torch.testing.assert_close(logits(net), wanted, rtol=1e-4, atol=1e-4)
    trained(net.train())


def test_transformers_own_adapters_work(tmp_path):
    net = model()
    plain = logits(net)
    net.add_adapter(peft.LoraConfig(target_modules=["fc1"], r=2))
    trained(net.train())
    net.disable_adapters()
    assert torch.equal(logits(net.eval()), plain)


def test_without_peft_the_extra_is_named(monkeypatch):
    import sys

    from structures.models import peft as ours

    ours._lora.cache_clear()
    monkeypatch.setitem(sys.modules, "peft.tuners", None)
    with pytest.raises(ImportError, match=r"pip install 'structures\[peft\]'"):
        structures.models.peft.register_lora()
