"""A model's linear layers are replaced, and nothing else about it changes."""

from __future__ import annotations

import copy
import json
import logging
import re
import sys

import models
import pytest
import torch
from torch import nn

import structures
from structures.linear import StructuredLinear
from structures.models.linears import to_linear
from structures.models.rules import linear_layers
from structures.models.saved import load_swapped, save_swapped
from structures.models.swap import swap
from structures.models.table import SwapTable

NAMES = structures.names()
FEED_FORWARD = {"opt": "*.fc[12]", "gpt_neox": "*.mlp.dense_*", "gpt2": "*.mlp.c_*"}
OWN = {"vit": models.ViT, "mixer": models.Mixer}
STEPS = 6

SMALL = {"low_rank": {"rank": 4}, "pixelfly": {"n_blocks": 4, "n_strides": 1, "rank": 2}}


def target(name: str):
    return name, SMALL.get(name, {})


def structured(model: nn.Module) -> dict[str, StructuredLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, StructuredLinear)}


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def falls(losses: list[float]) -> bool:
    return losses[-1] < losses[0] - 0.1 * abs(losses[0])


def trained(model: nn.Module, loss_of) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# -- which layers


LAYERS = ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")
RULES = [
    ({"h.*.mlp.*": "dense"}, ["h.0.mlp.fc1", "h.0.mlp.fc2", "h.1.mlp.fc1", "h.1.mlp.fc2"]),
    ({"*.mlp.fc?": "dense"}, ["h.0.mlp.fc1", "h.0.mlp.fc2", "h.1.mlp.fc1", "h.1.mlp.fc2"]),
    ({r"re:h\.1\..*": "dense"}, ["h.1.attn.qkv", "h.1.attn.out", "h.1.mlp.fc1", "h.1.mlp.fc2"]),
    ({r"re:fc1": "dense", "h.0.attn.out": "dense"}, ["h.0.attn.out"]),
    ({lambda name, module: module.out_features == 96: "dense"}, ["h.0.attn.qkv", "h.1.attn.qkv"]),
    ({"h.0.*": None, "*.out": "dense"}, ["h.1.attn.out"]),
    ([("*.out", "dense"), ("h.0.*", None)], ["h.0.attn.out", "h.1.attn.out"]),
    ({"all-linear": ("dense", {})}, [f"h.{i}.{n}" for i in (0, 1) for n in LAYERS]),
]  # fmt: skip


@pytest.mark.parametrize("rules, wanted", RULES)
def test_rules_name_layers_by_glob_regex_and_predicate(rules, wanted):
    model = models.GPT()
    plan = swap(model, rules)
    assert [row.layer for row in plan.rows] == wanted
    assert list(structured(model)) == wanted


def test_the_first_rule_that_names_a_layer_decides():
    model = perceptron()
    swap(model, {"0": ("low_rank", {"rank": 3}), "all-linear": structures.get("block_diagonal"), "2": None})
    assert repr(model[0]) == "StructuredLinear('low_rank', 16, 32, bias=True, rank=3)"
    assert model[2].structure.name == "block_diagonal"


def test_a_head_and_tied_weights_stay_with_a_message(caplog):
    model = models.GPT()
    model.head = nn.Linear(32, 4)
    with caplog.at_level(logging.WARNING, "structures"):
        plan = swap(model, {"all-linear": "dense"})
    assert dict(plan.skipped) == {
        "unembed": "tied to embed; skip=() swaps it and unties them",
        "head": "an output head; skip=() swaps it too",
    }
    assert len(caplog.records) == 1 and "left alone: unembed: tied to embed" in caplog.text
    assert model.unembed.weight is model.embed.weight


def test_skip_chooses_what_stays():
    model = models.GPT()
    swap(model, {"all-linear": "dense"}, skip=())
    assert isinstance(model.unembed, StructuredLinear)
    model = models.GPT()
    plan = swap(model, {"all-linear": "dense"}, skip=["tied", "*.attn.*"])
    assert {name.split(".")[-1] for name in structured(model)} == {"fc1", "fc2"}
    assert ("h.0.attn.out", "named by skip, '*.attn.*'") in plan.skipped


def test_weights_that_are_read_or_computed_elsewhere_stay():
    model = nn.ModuleDict({
        "attention": nn.MultiheadAttention(8, 2),
        "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        "lazy": nn.LazyLinear(8),
        "own": type("Own", (nn.Linear,), {"forward": lambda self, x: x})(8, 8),
        "plain": nn.Linear(8, 8),
    })  # fmt: skip
    plan = swap(model, {"all-linear": "dense"})
    reasons = dict(plan.skipped)
    assert list(structured(model)) == ["plain"]
    assert reasons["attention.out_proj"].startswith("MultiheadAttention reads out_proj.weight itself")
    assert "is computed" in reasons["normed"] and "unknown until" in reasons["lazy"]
    assert reasons["own"] == "Own has a forward of its own"


BAD = [
    ({"*.mpl.*": "dense"}, ValueError, r"no linear layer of GPT is named by '\*.mpl.\*'; its linear layers: h\."),
    ({"h.0.mlp": "dense"}, ValueError, r"did you mean 'h.0.mlp.\*'\?"),
    ({"*.fc1": "monach"}, KeyError, r"rule '\*.fc1': unknown structure 'monach'; did you mean 'monarch'\?"),
    ({"*.fc1": 3}, ValueError, r"rule '\*.fc1': the value is the name of a structure, .*; found 3"),
    ({"re:(": "dense"}, ValueError, r"rule 're:\(': not a regular expression"),
    ({3: "dense"}, ValueError, "a rule's key is a glob"),
    ({}, ValueError, "there are no rules"),
    ("dense", ValueError, "rules map keys to structures"),
    ({"*.fc1": ("monarch", {"n_blocks": 5})}, ValueError, r"2 of 2 layers do not fit:\n  h.\*.mlp.fc1: .*: 1, 2, 4"),
    ({"*.fc1": structures.get("monarch").bind(32, 64)}, ValueError,
     r"h.\*.mlp.fc1: monarch is bound to 32 -> 64, the layer is 32 -> 128; give the entry and its options"),
    ({"*.fc1": (structures.get("monarch").bind(32, 64), {})}, ValueError, r"a bound Structure"),
    ({"*.fc1": ("monarch", {"blocks": 5})}, ValueError, r"h.\*.mlp.fc1: .*no option 'blocks'; did you mean 'n_blocks'"),
]  # fmt: skip


@pytest.mark.parametrize("rules, kind, message", BAD)
def test_a_mistake_is_an_error_that_names_what_is_possible(rules, kind, message):
    model = models.GPT()
    with pytest.raises(kind) as caught:
        swap(model, rules)
    assert re.search(message, str(caught.value.args[0]))
    assert not structured(model)


def test_a_bound_structure_is_taken_where_it_fits():
    model = perceptron()
    structure = structures.get("dyad_it").bind(16, 32, n_blocks=2)
    swap(model, {"0": structure, "2": ("dyad_it", {"n_blocks": 4})})
    assert model[0].structure == structure and dict(model[2].structure.options) == {"n_blocks": 4}


def test_a_model_without_linear_layers_says_so():
    with pytest.raises(ValueError, match="it has none"):
        swap(nn.ReLU(), {"all-linear": "dense"})


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="init is one of linear, spectral, paper, zero, identity, found 'xavier'"):
        swap(perceptron(), {"0": "dense"}, init="xavier")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        swap(perceptron(), {"0": "dense"}, backend="cuda")
    with pytest.raises(ValueError, match="inputs names no layer to replace; there are: 0"):
        swap(perceptron(), {"0": "dense"}, project=True, inputs={"1": torch.ones(3, 16)})


# previously failed: each of these was taken, and did nothing or something else than was meant
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"project": "yes"}, "project is True, False or a mapping of arguments of from_linear, found 'yes'"),
        ({"project": {"limt": 3}}, "project has no argument 'limt'; did you mean 'limit'?"),
        ({"inputs": {"0": torch.ones(3, 16)}}, "inputs is for a projection; add project=True"),
        ({"inputs": {"0": torch.ones(3, 16), "7": torch.ones(3, 16)}, "project": True}, "inputs names '7'"),
        ({"inputs": torch.ones(3, 16), "project": True}, "inputs maps layers' names to tensors, found Tensor"),
        ({"predict_error": True}, "predict_error is for dry_run=True"),
        (
            {"skip": ["head"]},
            "skip: no linear layer is named by 'head'; skip takes 'heads', 'routers', 'tied', 'read' and keys",
        ),
    ],
)
def test_an_argument_that_would_do_nothing_is_an_error(arguments, message):
    model = perceptron()
    with pytest.raises(ValueError, match=re.escape(message)):
        swap(model, {"0": "dense"}, **arguments)
    assert not structured(model)


def test_what_is_no_model_is_an_error_and_a_list_does_for_a_tuple():
    with pytest.raises(ValueError, match=r"model is an nn\.Module, found list"):
        swap([nn.Linear(4, 4)], {"*": "dense"})
    with pytest.raises(ValueError, match="did you mean 'all-linear'"):
        swap(perceptron(), {"all_linear": "dense"})
    assert swap(perceptron(), {"0": ["low_rank", {"rank": 3}]}).rows[0].options == (("rank", 3),)


def test_an_entry_of_ones_own_is_saved_and_loaded(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("own_blocks:\n  options: {n_blocks: 4}\n  sizes: {n: n_blocks}\n  einsum: (n i), n i o -> (n o)\n")
    structures.load(file)
    try:
        model = perceptron()
        swap(model, {"*": ("own_blocks", {"n_blocks": 2})}, project=True)
        save_swapped(model, tmp_path / "saved")
        loaded = load_swapped(perceptron(), tmp_path / "saved")
        assert repr(loaded) == repr(model)
        assert torch.equal(loaded(torch.ones(2, 16)), model(torch.ones(2, 16)))
    finally:
        file.write_text("{}\n")
        structures.load(file)  # takes its entries away again
    with pytest.raises(ValueError, match=r"layer '0': unknown structure 'own_blocks'.*structures.load"):
        load_swapped(perceptron(), tmp_path / "saved")


def test_a_key_that_names_nothing_beside_others_is_told():
    plan = swap(perceptron(), {"0": "dense", "*.fc1": "dense"})
    assert plan.unused == ("*.fc1",) and "no linear layer is named by '*.fc1'" in str(plan)


def test_an_error_in_one_layer_leaves_the_model_unchanged():
    model = perceptron()
    model[2].weight.data[0, 0] = torch.nan
    before = list(model)
    with pytest.raises(ValueError, match=r"^2: .*NaN"):
        swap(model, {"all-linear": "low_rank"}, project=True)
    assert list(model) == before


# -- what is kept


def test_shared_modules_stay_shared():
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())})
    plan = swap(model, {"b.0": "dyad_it"})
    assert model["a"] is model["b"][0] and isinstance(model["a"], StructuredLinear)
    assert plan.rows[0].layer == "a" and plan.rows[0].aliases == ("b.0",)
    assert plan.params_after == sum(p.numel() for p in model.parameters()) == 2 * 4 * 4 * 4 + 16


def test_a_model_that_is_a_layer_is_returned():
    linear = nn.Linear(16, 32)
    assert swap(linear, {"all-linear": "dense"}, dry_run=True).model is linear
    made = swap(linear, {"*": "dense"}, project=True).model
    assert isinstance(made, StructuredLinear)
    torch.testing.assert_close(made(torch.eye(16)), linear(torch.eye(16)))


def test_hooks_flags_dtype_and_device_are_kept():
    model = perceptron().double()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    model[2].register_forward_pre_hook(lambda module, args, kwargs: seen.append("pre"), with_kwargs=True)
    bias = model[0].bias.detach().clone()
    swap(model, {"all-linear": "monarch"}, init="spectral", backend="einsum")
    model(torch.ones(2, 16, dtype=torch.float64))
    assert seen == ["StructuredLinear", "pre"]
    assert not model[0].training and model[2].training
    assert [p.requires_grad for p in model[0].parameters()] == [False, False, True]
    assert all(p.requires_grad for p in model[2].parameters())
    assert model[0].factors[0].dtype == torch.float64 and torch.equal(model[0].bias, bias)
    assert (model[0].init, model[0].backend, model[0].ran) == ("spectral", "einsum", "einsum")
    handle.remove()
    model(torch.ones(2, 16, dtype=torch.float64))
    assert seen == ["StructuredLinear", "pre", "pre"]


@pytest.mark.parametrize("name", NAMES)
def test_projecting_keeps_the_bias_and_reports_the_error(name):
    model = perceptron()
    dense = copy.deepcopy(model)
    plan = swap(model, {"0": target(name)}, project=True)
    weight, gate = dense[0].weight.detach(), model[0].structure.gate
    weights = () if gate is None else (torch.arange(gate.experts).lt(gate.active) / gate.active,)  # a router of zeros
    found = (model[0].to_dense(*weights).detach() - weight).norm() / weight.norm()
    assert plan.rows[0].error == pytest.approx(float(found), rel=1e-3, abs=1e-6)
    assert torch.equal(model[0].bias, dense[0].bias) and model[0].bias is not dense[0].bias


def test_inputs_make_the_projection_activation_aware():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator) * torch.linspace(3, 0.01, 16)
    rules = {"0": ("low_rank", {"rank": 4})}
    plain = swap(perceptron(), rules, project=True, held_out={"0": x}).rows[0]
    aware = swap(perceptron(), rules, project={"damping": 1e-4}, inputs={"0": x}).rows[0]
    assert aware.output_error < plain.output_error and aware.error > plain.error


# -- the table


def test_a_dry_run_says_what_the_swap_does_and_changes_nothing():
    model = models.GPT()
    before = [(name, id(module)) for name, module in model.named_modules()]
    plan = swap(model, {"*.mlp.*": ("dyad_it", {"n_blocks": 8})}, dry_run=True)
    assert before == [(name, id(module)) for name, module in model.named_modules()]
    assert isinstance(plan, SwapTable) and len(plan) == 4 and plan.model is model
    done = swap(model, {"*.mlp.*": ("dyad_it", {"n_blocks": 8})})
    assert done == plan
    assert plan.params_after == sum(p.numel() for p in model.parameters())
    row = plan.rows[0]
    assert (row.layer, row.source, row.target, row.options) == ("h.0.mlp.fc1", "Linear", "dyad_it", (("n_blocks", 8),))
    assert (row.params_before, row.params_after) == (32 * 128 + 128, 2 * 32 * 128 // 8 + 128)
    assert (row.flops_before, row.flops_after) == (2 * 32 * 128, 2 * 2 * 32 * 128 // 8)
    assert row.error is None


def test_the_table_is_printed_with_like_layers_on_one_line():
    plan = swap(models.GPT(), {"*.mlp.*": ("dyad_it", {"n_blocks": 8})}, dry_run=True)
    lines = str(plan).splitlines()
    assert lines[0].split() == ["layer", "from", "to", "in", "->", "out", *"params after share FLOPs after".split()]
    assert lines[1].startswith("h.*.mlp.fc1 x2  Linear  dyad_it(n_blocks=8)  32 -> 128")
    assert lines[3] == "4 layers: parameters 16,704 -> 4,416 (0.264), FLOPs a token 32,768 -> 8,192 (0.250)"
    assert len(plan.lines(each=True)) == len(lines) + 2


def test_the_predicted_error_is_the_one_that_a_projection_reaches():
    rules = {"all-linear": ("low_rank", {"rank": 8})}
    predicted = swap(perceptron(), rules, dry_run=True, predict_error=True)
    assert predicted.rows == swap(perceptron(), rules, project=True).rows
    wanted = torch.linalg.svdvals(perceptron()[0].weight.detach())
    assert predicted.rows[0].error == pytest.approx(float(wanted[8:].norm() / wanted.norm()), rel=1e-3)
    assert "output error" not in str(predicted) and f"{predicted.rows[0].error:.4f}" in str(predicted)


def test_a_model_on_the_meta_device_is_planned_and_swapped_but_not_projected():
    with torch.device("meta"):
        model = models.GPT()
    plan = swap(model, {"*.mlp.*": "monarch"}, dry_run=True)
    with pytest.raises(ValueError, match=r"h.0.mlp.fc1: it is on the meta device"):
        swap(model, {"*.mlp.*": "monarch"}, project=True)
    assert swap(model, {"*.mlp.*": "monarch"}) == plan
    assert model.h[0].mlp.fc1.factors[0].is_meta


# -- and back


@pytest.mark.parametrize("name", [name for name in NAMES if not structures.get(name).gate])
def test_to_linear_gives_the_same_map(name):
    made = StructuredLinear(name, 16, 32, dtype=torch.float64, **SMALL.get(name, {})).eval()
    linear = to_linear(made)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(linear(x), made(x))
    assert type(linear) is nn.Linear and not linear.training and linear.bias is not made.bias


@pytest.mark.parametrize("name", [name for name in NAMES if structures.get(name).gate])
def test_experts_have_no_dense_layer_of_their_own(name):
    made = StructuredLinear(name, 16, 32)
    with pytest.raises(ValueError, match=rf"{name}: there is no one dense matrix, since 2 of \d experts are chosen"):
        to_linear(made)
    with pytest.raises(ValueError, match=rf"0: {name}: there is no one dense matrix"):
        swap(nn.Sequential(made), {"0": nn.Linear}, skip=())


def test_to_linear_refuses_what_is_no_layer_of_numbers():
    with pytest.raises(ValueError, match="takes a linear layer, found Sequential"):
        to_linear(perceptron())
    with pytest.raises(ValueError, match="monarch is on the meta device"):
        to_linear(StructuredLinear("monarch", 16, 16, device="meta"))


def test_a_model_is_swapped_back_to_dense_and_on_to_another_structure():
    model = perceptron()
    x = torch.randn(4, 16)
    swap(model, {"all-linear": ("low_rank", {"rank": 3})}, project=True)
    y = model(x)
    swap(model, {"0": "dense"}, project=True)
    torch.testing.assert_close(model(x), y)
    assert model[0].structure.name == "dense" and model[2].structure.name == "low_rank"
    plan = swap(model, {"all-linear": nn.Linear})
    assert [row.target for row in plan.rows] == ["Linear", "Linear"] and type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), y)
    assert len(swap(model, {"all-linear": nn.Linear})) == 0, "what is so already is no row"


# -- saved and loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_loaded_into_a_dense_one(name, tmp_path):
    pytest.importorskip("safetensors", reason="a swapped model is saved as safetensors")
    model = models.GPT()
    swap(model, {"*.mlp.*": target(name), "*.attn.out": nn.Linear})
    save_swapped(model, tmp_path)
    loaded = load_swapped(models.GPT(), tmp_path)
    assert torch.equal(loaded(models.text()), model(models.text()))
    assert loaded.unembed.weight is loaded.embed.weight
    assert repr(loaded) == repr(model)
    assert load_swapped(loaded, tmp_path) is loaded, "a model that is swapped already is loaded too"


def saved_perceptron(folder):
    model = perceptron()
    swap(model, {"0": "monarch"})
    save_swapped(model, folder)
    return json.loads((folder / "structures.json").read_text())


DAMAGED = [
    (lambda d: d.update(format=2), r'expected \{"format": 1'),
    (lambda d: d.update(layers=[]), r'expected \{"format": 1'),
    (lambda d: d["layers"].update({"0": 3}), "layer '0': expected a mapping, found 3"),
    (lambda d: d["layers"]["0"].update(structure="monach"), "'0': unknown structure 'monach'; did you mean"),
    (lambda d: d["layers"]["0"].update(structure="dyad_it"), "layer '0': dyad_it was saved as .*, the registry has"),
    (lambda d: d["layers"]["0"].pop("bias"), "layer '0': bias is a bool, found None"),
    (lambda d: d["layers"]["0"].update(widths=["a", 3]), "layer '0': widths is a list of int"),
    (lambda d: d["layers"]["0"].update(widths=[16, 16]), r"\(16, 16\) was saved, '0' of the model is \(16, 32\)"),
    (lambda d: d["layers"]["0"].update(bias=False), "bias=False was saved, the model's layer has bias=True"),
    (lambda d: d["layers"]["0"].update(options={"n_blocks": 3}), "layer '0': .*n_blocks that work here"),
    (lambda d: d["layers"]["0"].update(options={"device": 3}), "layer '0': .*device"),
    (lambda d: d["layers"]["0"].update(init="x"), "layer '0': init is one of"),
    (lambda d: d["layers"]["0"].update(backend="x"), "layer '0': unknown backend 'x'"),
    (lambda d: d["layers"].update({"5": d["layers"].pop("0")}), "the model has no linear layer '5'"),
]  # fmt: skip


@pytest.mark.parametrize("damage, message", DAMAGED)
def test_a_damaged_description_is_an_error_that_names_the_layer(damage, message, tmp_path):
    described = saved_perceptron(tmp_path)
    damage(described)
    (tmp_path / "structures.json").write_text(json.dumps(described))
    model = perceptron()
    with pytest.raises(ValueError, match=message):
        load_swapped(model, tmp_path)
    assert not structured(model)


def test_a_folder_or_model_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no structures.json: was it written by structures.save_swapped\?"):
        load_swapped(perceptron(), tmp_path)
    saved_perceptron(tmp_path)
    model = perceptron()
    swap(model, {"2": "dense"})
    with pytest.raises(ValueError, match="'2' is structured in the model and dense in the folder"):
        load_swapped(model, tmp_path)
    with pytest.raises(ValueError, match=r"(?s)model.safetensors: .*1.weight"):
        load_swapped(nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32)), tmp_path)
    (tmp_path / "structures.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_swapped(perceptron(), tmp_path)


# -- models


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("name", ["dyad_it", "monarch", "low_rank"])
def test_a_vision_model_runs_trains_and_compiles(kind, name):
    torch.manual_seed(0)
    model = OWN[kind]()
    x, labels = models.images()
    swap(
        model, {r"re:.*\.fc[12]": target(name), "*.attn.*": target(name)} if kind == "vit" else {"*.fc*": target(name)}
    )
    assert falls(trained(model, lambda m: nn.functional.cross_entropy(m(x), labels)))
    if name == "monarch":  # every structure is compiled in test_compile.py
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.fixture(scope="module")
def transformers():
    found = pytest.importorskip("transformers", reason="transformers is the extra `models`")
    found.logging.set_verbosity_error()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own making
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", FEED_FORWARD)
def test_a_language_model_runs_trains_generates_and_compiles(family, transformers):
    model = models.pretrained_shape(family, transformers)
    ids = models.text()
    plan = swap(model, {FEED_FORWARD[family]: "monarch", "all-linear": "dyad_it"})
    assert {row.source for row in plan.rows} == {"Conv1D" if family == "gpt2" else "Linear"}
    assert [name for name, _ in plan.skipped] == ["lm_head"]
    assert plan.params_after == sum(p.numel() for p in model.parameters())
    assert falls(trained(model, lambda m: m(input_ids=ids, labels=ids).loss))
    model.eval()
    out = model.generate(ids[:1, :4], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert out.shape == (1, 9)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(
            compiled(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
        )


@pytest.mark.parametrize("family", FEED_FORWARD)
def test_a_language_model_projected_exactly_gives_the_same_logits_and_goes_back(family, transformers, tmp_path):
    model = models.pretrained_shape(family, transformers).eval()
    ids, kinds = models.text(), [type(module) for module in model.modules()]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        swap(model, {"all-linear": "dense"}, project=True)
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
        save_swapped(model, tmp_path)
        fresh = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
        torch.testing.assert_close(load_swapped(fresh, tmp_path)(input_ids=ids).logits, model(input_ids=ids).logits)
        for each in (model, fresh):
            swap(each, {"all-linear": nn.Linear})
            assert [type(module) for module in each.modules()] == kinds, "Conv1D where it was Conv1D"
            torch.testing.assert_close(each(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)


def encoder(layers: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("rules", [{"*.linear?": "dense"}, {"layers.1.*": "dense"}, {"layers.0.linear2": "dense"}])
def test_torchs_encoder_leaves_its_fast_path_while_it_is_structured(rules):
    model, padded = encoder().eval(), torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        wanted = model(x, src_key_padding_mask=padded)
        plan = swap(model, rules, project=True)
        found = model(x, src_key_padding_mask=padded)
        torch.testing.assert_close(found[~padded], wanted[~padded], rtol=1e-4, atol=1e-5)
        again = copy.deepcopy(model)(x, src_key_padding_mask=padded)
        torch.testing.assert_close(again, found)
        assert all(row.layer.split(".")[-1].startswith("linear") for row in plan.rows)
        swap(model, {"all-linear": nn.Linear})
        assert model.use_nested_tensor and all(layer.activation_relu_or_gelu == 1 for layer in model.layers)
        torch.testing.assert_close(model(x, src_key_padding_mask=padded), wanted, rtol=1e-4, atol=1e-5)


def test_torchs_encoder_trains():
    model = encoder()
    x, target_ = torch.randn(4, 6, 16), torch.randn(4, 6, 16)
    swap(model, {"all-linear": "monarch"})
    assert falls(trained(model, lambda m: (m(x) - target_).square().mean()))
    model.eval()
    with torch.no_grad():
        assert model(x).isfinite().all()


# -- the plan of a config


def test_plan_shows_a_swap_of_a_config_without_weights(transformers):
    from structures.models.shapes import plan_lines

    lines = plan_lines("opt-125m", [["*.fc[12]", "dyad_it", "n_blocks=8"]])
    assert lines[0] == "OPTForCausalLM of opt-125m: 125,239,296 parameters, no weights"
    assert lines[3].split()[:3] == ["model.decoder.layers.*.fc1", "x12", "Linear"]
    assert lines[-1] == "whole model: parameters 125,239,296 -> 82,771,968 (0.661)"


@pytest.mark.parametrize(
    "shape, params", [("gpt2", 124_439_808), ("pythia-70m", 70_426_624), ("bert-base", 109_482_240)]
)
def test_known_shapes_have_their_published_sizes(shape, params, transformers):
    from structures.models.shapes import model_of

    model = model_of(shape)
    assert sum(p.numel() for p in model.parameters()) == params and linear_layers(model)


def test_plan_reads_a_config_file_and_settings(transformers, tmp_path):
    from structures.models.shapes import model_of, plan_lines

    models.pretrained_shape("gpt2", transformers).config.save_pretrained(tmp_path)
    rules = [["*.mlp.c_fc", "none"], ["*.mlp.*", "einsum", "theta=0.5,0.25,0.25,0.5,0.25,0.25,0"]]
    lines = plan_lines(str(tmp_path), rules, overrides=["n_layer=3"])
    assert "transformer.h.*.mlp.c_proj x3" in lines[3] and len(lines) == 6
    assert model_of(str(tmp_path / "config.json")).config.n_layer == 2


@pytest.mark.parametrize(
    "config, rule, overrides, message",
    [
        ("opt-125", ["*", "dense"], [], "unknown model 'opt-125'; near: opt-125m"),
        ("opt", ["*", "dense"], ["hiden_size=8"], "opt has no setting 'hiden_size'; did you mean 'hidden_size'"),
        ("opt", ["*"], [], r"a rule is written KEY STRUCTURE \[option=value ...\], found '\*'"),
        ("opt", ["*", "dense", "rank"], [], "a setting is written name=value, found 'rank'"),
        ("./none.json", ["*", "dense"], [], "there is no config none.json"),
    ],
)
def test_a_mistake_in_a_plan_is_one_line(config, rule, overrides, message, transformers):
    from structures.models.shapes import plan_lines

    with pytest.raises(ValueError, match=message):
        plan_lines(config, [rule], overrides=overrides)


def test_plan_without_transformers_names_the_extra(monkeypatch):
    from structures.models.shapes import plan_lines

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'structures\[models\]'"):
        plan_lines("opt-125m", [["*", "dense"]])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "cannot write into .*file: .*file is a file; name a folder, or move that file away"),
        ("file/deeper", "cannot write into .*deeper: .*file is a file; name a folder"),
        ("/proc/absent/deeper", "cannot write into /proc/absent/deeper: .*; choose a folder that you may write into"),
        ("locked", "cannot write into .*locked: .*; choose a folder that you may write into"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(tmp_path, place, words):
    """Previously failed: the system's own error, which names neither."""
    (tmp_path / "file").write_text("")
    (tmp_path / "locked" / "structures.json").mkdir(parents=True)  # for root too: a folder where a file is to be
    model = nn.Sequential(nn.Linear(8, 8))
    swap(model, {"*": ("low_rank", {"rank": 2})}, skip=())
    with pytest.raises(OSError, match=words):
        save_swapped(model, tmp_path / place)
