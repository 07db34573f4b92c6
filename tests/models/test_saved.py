"""What is saved is loaded into dense, swapped and meta models, or nothing changes."""

from __future__ import annotations

import json

import models
import pytest
import torch
from torch import nn

from structures.linear import StructuredLinear
from structures.models.saved import load_swapped, save_swapped
from structures.models.swap import swap

pytest.importorskip("safetensors", reason="a swapped model is saved as safetensors")


def swapped(folder) -> nn.Module:
    torch.manual_seed(0)
    model = models.GPT()
    swap(model, {"*.mlp.*": "monarch", "*.attn.out": "dyad_it"})
    save_swapped(model, folder)
    return model


def sharded(folder) -> None:
    """As accelerate and transformers write a large model: several files and an index."""
    from safetensors.torch import load_file, save_file

    numbers = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(numbers), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: numbers[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_numbers_are_loaded_from_one_file_or_several_into_a_real_or_a_meta_model(device, in_parts, tmp_path):
    """Previously failed: both were refused."""
    model = swapped(tmp_path)
    if in_parts:
        sharded(tmp_path)
    with torch.device(device):
        fresh = models.GPT()
    loaded = load_swapped(fresh, tmp_path)
    assert all(p.device.type == "cpu" for p in loaded.parameters())
    assert torch.equal(loaded(models.text()), model(models.text()))
    assert loaded.unembed.weight is loaded.embed.weight and repr(loaded) == repr(model)
    assert all(type(p) is nn.Parameter and p.requires_grad for p in loaded.parameters())


def test_a_buffer_that_no_file_holds_is_named_when_it_is_on_the_meta_device(tmp_path):
    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(8, 8))
        made.register_buffer("angles", torch.ones(3), persistent=False)
        return made

    first = model()
    swap(first, {"0": "dense"})
    save_swapped(first, tmp_path)
    with torch.device("meta"):
        fresh = model()
    with pytest.raises(ValueError, match=r"angles is on the meta device and in no file; .*init_empty_weights"):
        load_swapped(fresh, tmp_path)
    assert type(fresh[0]) is nn.Linear


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES = {
    "cut": (cut, "damaged, or no safetensors file"),
    "pickle": (lambda data: b"\x80\x04" + data, "damaged, or no safetensors file"),
    "empty": (lambda data: b"", "damaged, or no safetensors file"),
    "header": (lambda data: data[:8] + b"?" + data[9:], "damaged, or no safetensors file"),
    "name": (
        lambda data: data.replace(b'"h.0.mlp.fc1.bias"', b'"h.0.mlp.fc1.bais"'),
        "missing: h.0.mlp.fc1.bias; not in|was saved with other numbers",
    ),
    "shape": (lambda data: data.replace(b"[128]", b"[ 64]").replace(b'"F32"', b'"F32"'), "damaged|other shapes"),
}


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it_and_the_model_is_unchanged(damage, in_parts, tmp_path):
    """Previously failed: safetensors' own error, after the layers were replaced."""
    swapped(tmp_path)
    if in_parts:
        sharded(tmp_path)
    for file in sorted(tmp_path.glob("*.safetensors")):
        file.write_bytes(DAMAGES[damage][0](file.read_bytes()))
    model = models.GPT()
    modules, wanted = list(model.modules()), model(models.text())
    with pytest.raises(ValueError, match=rf"{tmp_path}.*({DAMAGES[damage][1]})"):
        load_swapped(model, tmp_path)
    assert list(model.modules()) == modules and torch.equal(model(models.text()), wanted)
    assert not any(isinstance(module, StructuredLinear) for module in model.modules())


@pytest.mark.parametrize(
    "index, kind, message",
    [
        ("{", ValueError, "index.json:1:2: not JSON"),
        ("{}", ValueError, "weight_map maps names to files"),
        ('{"weight_map": {"a": 3}}', ValueError, "weight_map maps names to files"),
        ('{"weight_map": {"a": "../model.safetensors"}}', ValueError, "names a file of another folder"),
        ('{"weight_map": {"a": "absent.safetensors"}}', FileNotFoundError, "has no absent.safetensors"),
    ],
)
def test_a_damaged_index_is_an_error(index, kind, message, tmp_path):
    swapped(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(kind, match=message):
        load_swapped(models.GPT(), tmp_path)


def test_generation_settings_are_kept(tmp_path):
    """Previously failed: they were lost."""
    transformers = pytest.importorskip("transformers", reason="transformers is the extra `models`")
    model = models.pretrained_shape("gpt2", transformers)
    model.generation_config.max_new_tokens = 7
    swap(model, {"*.mlp.*": "dyad_it"})
    save_swapped(model, tmp_path)
    assert transformers.GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 7
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 7
    assert torch.equal(again(input_ids=models.text()).logits, model.eval()(input_ids=models.text()).logits)


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path):
    """Previously failed: its target was overwritten."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("structures.json", "model.safetensors"):
        (tmp_path / name).write_text("mine")
        (folder / name).symlink_to(tmp_path / name)
    model = swapped(folder)
    assert [(tmp_path / name).read_text() for name in ("structures.json", "model.safetensors")] == ["mine", "mine"]
    assert torch.equal(load_swapped(models.GPT(), folder)(models.text()), model(models.text()))
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "structures.json"]


def test_both_files_appear_or_neither(tmp_path, monkeypatch):
    """Previously failed: an error between the two left a new description beside old numbers."""
    import safetensors.torch

    swapped(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device; choose a folder"):
        patched.setattr(safetensors.torch, "save_model", full)
        model = models.GPT()
        swap(model, {"*.mlp.*": "low_rank"})
        save_swapped(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_files_of_two_times_do_not_load_though_their_layers_are_alike(tmp_path):
    swapped(tmp_path / "one")
    other = swapped(tmp_path / "two")
    with torch.no_grad():
        other.position += 1
    save_swapped(other, tmp_path / "two")
    assert load_swapped(models.GPT(), tmp_path / "two").position.equal(other.position)
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(ValueError, match=r"was saved with other numbers than .* of another time"):
        load_swapped(models.GPT(), tmp_path / "one")


def test_a_single_bit_of_the_numbers_is_noticed(tmp_path):
    swapped(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors has: damaged"):
        load_swapped(models.GPT(), tmp_path)


def test_numbers_that_somebody_wrote_again_load(tmp_path):
    from safetensors.torch import load_file, save_file

    model, file = swapped(tmp_path), tmp_path / "model.safetensors"
    save_file({name: number.bfloat16() for name, number in load_file(file).items()}, file)
    loaded = load_swapped(models.GPT(), tmp_path)
    assert torch.allclose(loaded(models.text()), model(models.text()), atol=0.1)


def test_what_a_process_that_was_killed_left_is_removed(tmp_path):
    left = tmp_path / ".4194305.part"  # beyond the largest process id
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    swapped(tmp_path)
    assert not left.exists()
