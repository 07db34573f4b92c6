"""transformers' save_pretrained and from_pretrained keep structured layers; whole families run with them."""

from __future__ import annotations

import json
import subprocess
import sys

import models
import pytest
import torch
from torch import Tensor, nn

import structures
from structures.linear import StructuredLinear
from structures.models.saved import load_swapped, save_swapped
from structures.models.swap import swap

transformers = pytest.importorskip("transformers", reason="transformers is the extra `models`")
RULES = {"*.mlp.*": ("monarch", {"n_blocks": 4}), "all-linear": "dyad_it"}
FAMILIES = ("opt", "gpt_neox", "gpt2")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def model(family: str = "gpt2") -> nn.Module:
    return models.pretrained_shape(family, transformers).eval()


def logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(input_ids=models.text()).logits


def layers(net: nn.Module) -> dict[str, str]:
    return {n: repr(m) for n, m in net.named_modules() if isinstance(m, StructuredLinear)}


def loaded(folder, **more: object) -> nn.Module:
    net, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **more)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swapped_model_is_saved_and_loaded_by_transformers(family, tmp_path):
    """Previously failed: random dense weights, told in a load report alone."""
    net = model(family)
    swap(net, RULES, project=True)
    net.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = loaded(tmp_path)
    assert layers(again) == layers(net) and torch.equal(logits(again), logits(net))
    narrow = loaded(tmp_path, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and torch.isfinite(logits(narrow)).all()
    if family == "gpt_neox":  # transformers keeps its head under another name
        with pytest.raises(ValueError, match=r"GPTNeoXForCausalLM\.from_pretrained knows names"):
            load_swapped(model(family), tmp_path)
    else:
        assert torch.equal(logits(load_swapped(model(family), tmp_path)), logits(net))


def test_a_device_map_is_taken(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate comes with the extra `peft`")
    net = model()
    swap(net, RULES)
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path, device_map="cpu")), logits(net))


def test_a_dense_checkpoint_is_swapped_when_it_is_loaded_and_is_an_ordinary_model_afterwards(tmp_path):
    net = model()
    net.save_pretrained(tmp_path / "dense")
    config = structures.quantization_config({"all-linear": "dense"})
    converted = loaded(tmp_path / "dense", quantization_config=config)
    assert len(layers(converted)) == 8
    torch.testing.assert_close(logits(converted), logits(net), rtol=1e-4, atol=1e-5)
    assert not getattr(converted, "is_quantized", False) and not hasattr(converted, "hf_quantizer")
    ids = models.text()
    before = [p.detach().clone() for p in converted.parameters()]
    optimizer = torch.optim.AdamW(structures.param_groups(converted, lr=1e-3))
    converted.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, converted.parameters(), strict=True))
    converted.eval().save_pretrained(tmp_path / "structured")
    assert torch.equal(logits(loaded(tmp_path / "structured")), logits(converted))


def test_a_fresh_process_that_imports_both_reads_the_folder_in_any_order(tmp_path):
    net = model()
    swap(net, RULES)
    net.save_pretrained(tmp_path)
    # each in a fork of a process that has loaded what both import, and neither of the two
    script = """
import os, sys
import huggingface_hub, safetensors.torch, torch._dynamo
assert not {"structures", "transformers"} & set(sys.modules)
for imports in ("import structures, transformers", "import transformers.modeling_utils, structures"):
    child = os.fork()
    if not child:
        exec(imports)
        net = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
        print(sum(isinstance(m, structures.StructuredLinear) for m in net.modules()), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": "."})
    assert run.stdout.split() == ["8", "8"], run.stderr


def test_importing_structures_does_not_import_transformers():
    code = "import sys, structures; print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["False"], run.stderr


def test_a_body_is_loaded_from_a_model_with_a_head_and_the_other_way(tmp_path):
    net = model()
    swap(net, RULES)
    net.save_pretrained(tmp_path / "whole")
    body = transformers.GPT2Model.from_pretrained(tmp_path / "whole")
    ids = models.text()
    with torch.no_grad():
        assert torch.equal(body(ids).last_hidden_state, net.transformer(ids).last_hidden_state)
        net.transformer.config.quantization_config = None
        body.save_pretrained(tmp_path / "body")
        whole = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "body")
        assert torch.equal(whole.transformer(ids).last_hidden_state, body(ids).last_hidden_state)


def test_going_back_to_dense_leaves_no_trace_in_the_config(tmp_path):
    net = model()
    swap(net, RULES)
    assert net.config.quantization_config["quant_method"] == "structures.models.transformers"
    swap(net, {"all-linear": nn.Linear})
    assert not hasattr(net.config, "quantization_config")
    net.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(net))


def test_another_quantization_is_left_in_the_config():
    net = model()
    net.config.quantization_config = {"quant_method": "other"}
    swap(net, RULES)
    assert net.config.quantization_config == {"quant_method": "other"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda q: q.update(layers={"nowhere": next(iter(q["layers"].values()))}), "no linear layer 'nowhere'"),
        (lambda q: next(iter(q["layers"].values())).update(structure="monach"), "unknown structure 'monach'"),
        (lambda q: q.update(layers=3), "layers is a mapping, found 3"),
    ],
)
def test_a_damaged_config_is_an_error(damage, message, tmp_path):
    net = model("opt")
    swap(net, RULES)
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    damage(config["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path)


# -- tied heads


def tied() -> nn.Module:
    net = model("gpt2")
    assert net.lm_head.weight is net.transformer.wte.weight
    return net


@pytest.mark.parametrize("way", ["save_swapped", "save_pretrained"])
def test_a_tied_head_that_is_replaced_is_untied(way, tmp_path):
    """Previously failed: tie_weights() planted a dense parameter, and what was saved did not load."""
    net = tied()
    embedding = net.transformer.wte.weight.detach().clone()
    swap(net, {"lm_head": ("low_rank", {"rank": 8})}, project=True, skip=())
    wanted, names = logits(net), list(net.state_dict())
    net.tie_weights()
    net.resize_token_embeddings(net.config.vocab_size)
    assert list(net.state_dict()) == names and torch.equal(net.transformer.wte.weight, embedding)
    assert torch.equal(logits(net), wanted) and not net.config.tie_word_embeddings
    if way == "save_swapped":
        save_swapped(net, tmp_path)
        again = load_swapped(tied(), tmp_path)
        again.tie_weights()
    else:
        net.save_pretrained(tmp_path)
        again = loaded(tmp_path)
    assert list(again.state_dict()) == names and torch.equal(logits(again), wanted)


def test_other_ties_of_a_model_stay(tmp_path):
    config = transformers.T5Config(
        vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    net = transformers.T5ForConditionalGeneration(config).eval()
    swap(net, {"lm_head": ("low_rank", {"rank": 8})}, skip=())
    net.tie_weights()
    assert net.encoder.embed_tokens.weight is net.shared.weight
    ids = models.text()
    with torch.no_grad():
        wanted = net(input_ids=ids, labels=ids).logits
        net.save_pretrained(tmp_path)
        again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
        assert torch.equal(again(input_ids=ids, labels=ids).logits, wanted)
        assert again.encoder.embed_tokens.weight is again.shared.weight


# -- families whose code reads weights


def t5(**more: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0, **more)
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_all_of_t5s_feed_forward_is_replaced(projection):
    """Previously failed: `wo` stayed dense, since T5 asks for wo.weight.dtype."""
    net, ids = t5(feed_forward_proj=projection), models.text()
    with torch.no_grad():
        wanted = net(input_ids=ids, labels=ids).logits
        plan = swap(net, {"*DenseReluDense*": "dense"}, project=True)
        assert not plan.skipped and sum(row.layer.endswith(".wo") for row in plan.rows) == 2
        torch.testing.assert_close(net(input_ids=ids, labels=ids).logits, wanted, rtol=1e-4, atol=1e-4)
    net(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if ".wo." in n)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own making
def test_t5_compiles_whole_with_all_of_its_feed_forward_replaced():
    net, ids = t5().get_encoder(), models.text()
    swap(net, {"*DenseReluDense*": "monarch"})
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids).last_hidden_state, net(ids).last_hidden_state)


@pytest.mark.filterwarnings("ignore:.*its weight is read:UserWarning")
def test_wavlm_whose_helper_method_reads_weights():
    """Previously failed: the first forward after the swap."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0}
    torch.manual_seed(0)
    net = transformers.WavLMModel(transformers.WavLMConfig(**sizes, **convolutions)).eval()
    x = torch.randn(2, 400)
    with torch.no_grad():
        wanted = net(x).last_hidden_state
        plan = swap(net, {"all-linear": "dense"}, project=True)
        assert any("reads" in reason for _, reason in plan.skipped), "what the helper reads stays"
        torch.testing.assert_close(net(x).last_hidden_state, wanted, rtol=1e-3, atol=1e-4)
        assert not swap(net, {"all-linear": "dense"}, project=True, skip=()).skipped
        torch.testing.assert_close(net(x).last_hidden_state, wanted, rtol=1e-3, atol=1e-4)
