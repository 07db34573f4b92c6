"""`python -m structures plan`: what a swap would change in a transformers model, from its config alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structures.language.expressions import nearest
from structures.language.words import settings
from structures.models.config import SwapConfig, rule_of_words
from structures.models.rules import SKIP


def _neox(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "vocab_size": 50304,
    }


# Shapes that are often asked for: the model type and what differs from its config class's defaults.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "llama-7b": ("llama", {}),
    "opt-125m": ("opt", {}),
    "opt-1.3b": ("opt", {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}),
    "opt-6.7b": ("opt", {"hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32}),
    "pythia-70m": ("gpt_neox", _neox(512, 6, 8)),
    "pythia-160m": ("gpt_neox", _neox(768, 12, 12)),
    "pythia-410m": ("gpt_neox", _neox(1024, 24, 16)),
    "pythia-1.4b": ("gpt_neox", _neox(2048, 24, 16)),
}
ENCODERS = ("bert", "roberta", "camembert", "electra", "xlm-roberta")  # a causal head exists too, but is not meant


def plan_lines(
    config: str,
    rules: Sequence[Sequence[str]] | SwapConfig,
    *,
    overrides: Iterable[str] = (),
    skip: Sequence[str] | None = None,
    each: bool = False,
) -> list[str]:
    """The table of a swap, for a model built from its config on the meta device: offline, in no memory.

    Args:
        config: a well-known shape (`opt-125m`), a model type of transformers (`opt`), or a config.json or its folder.
        rules: words for each rule: the key, the structure or `none`, and options as `n_blocks=8` (lists with commas);
            or a config, whose `skip` then holds unless another is given.
        overrides: settings of the config, as `hidden_size=1024`.
        each: a line for every layer, also where they differ by their number alone.
    Raises:
        ValueError: transformers is not installed, or anything that cannot be; the message says what can.
    """
    if isinstance(rules, SwapConfig):
        wanted = rules if skip is None else replace(rules, skip=skip)
    else:
        wanted = SwapConfig([rule_of_words(words) for words in rules], skip=SKIP if skip is None else skip)
    model = model_of(config, settings(overrides))
    plan = wanted.swap(model, dry_run=True)
    count = sum(p.numel() for p in model.parameters())
    return [f"{type(model).__name__} of {config}: {count:,} parameters, no weights", "", *plan.lines(each=each)]


def model_of(config: str, overrides: Mapping[str, object] | None = None) -> nn.Module:
    """The transformers model of a config, on the meta device: it has shapes and no numbers.

    Raises:
        ValueError: transformers is not installed, or there is no such config, model type or setting.
    """
    transformers = _transformers()
    made = _config(transformers, config, overrides or {})
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    named = getattr(transformers, (made.architectures or [""])[0], None)
    with torch.device("meta"):
        if named is not None:
            model = named(made)
        elif made.model_type in causal and made.model_type not in ENCODERS:
            model = transformers.AutoModelForCausalLM.from_config(made)
        else:
            model = transformers.AutoModel.from_config(made)
    assert isinstance(model, nn.Module)
    return model


def _config(transformers: Any, config: str, overrides: Mapping[str, object]) -> Any:
    path = Path(config)
    if path.suffix == ".json" or os.sep in config or path.is_dir():
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"there is no config {file}")
        settings = transformers.PretrainedConfig.get_config_dict(str(file))[0]
        model_type = settings.pop("model_type", None)
        if model_type is None:
            raise ValueError(f"{file} has no model_type")
    else:
        model_type, settings = SHAPES.get(config, (config, {}))
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if model_type not in known:
        near = get_close_matches(config, [*SHAPES, *known], n=5) or list(SHAPES)
        raise ValueError(
            f"unknown model {config!r}; near: {', '.join(near)}; any model type of transformers or the path of a "
            "config.json works"
        )
    settings = {**settings, **overrides}
    default = transformers.AutoConfig.for_model(model_type)
    for name in overrides:
        if not hasattr(default, name):
            raise ValueError(f"{model_type} has no setting {name!r}{nearest(name, sorted(default.to_dict()))}")
    if model_type == "opt" and "hidden_size" in settings:  # else its embeddings keep the default's width
        settings.setdefault("word_embed_proj_dim", settings["hidden_size"])
    return transformers.AutoConfig.for_model(model_type, **settings)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("plan builds a transformers model: pip install 'structures[models]'") from None
    return transformers
