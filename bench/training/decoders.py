"""Decoders of transformers in small: OPT, Pythia (GPT-NeoX) and GPT-2 by their own configs, freshly drawn."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from bench.files.errors import UsageError
from bench.training.models import FAMILIES, Family, NetworkShape


class Logits(nn.Module):
    """A causal model of transformers that takes ids and gives logits: (batch, length) -> (..., vocabulary)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "--model: opt, pythia and gpt2 need transformers: pip install 'structures[models]'; gpt is built in"
        ) from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


def _causal(config: Any) -> nn.Module:
    made: nn.Module = _transformers().AutoModelForCausalLM.from_config(config)
    return Logits(made)


def opt(shape: NetworkShape) -> nn.Module:
    """OPT: ReLU, learned places, the head tied to the embedding."""
    config = _transformers().OPTConfig(
        vocab_size=shape.outputs,
        hidden_size=shape.width,
        word_embed_proj_dim=shape.width,
        ffn_dim=shape.inside(),
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.inputs[0],
        dropout=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _causal(config)


def pythia(shape: NetworkShape) -> nn.Module:
    """GPT-NeoX as Pythia has it: GELU, rotary places, attention and feed-forward side by side, the head untied."""
    config = _transformers().GPTNeoXConfig(
        vocab_size=shape.outputs,
        hidden_size=shape.width,
        intermediate_size=shape.inside(),
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.inputs[0],
        bos_token_id=None,
        eos_token_id=None,
    )
    return _causal(config)


def gpt2(shape: NetworkShape) -> nn.Module:
    """GPT-2: GELU, learned places, Conv1D layers, the head tied to the embedding."""
    config = _transformers().GPT2Config(
        vocab_size=shape.outputs,
        n_embd=shape.width,
        n_inner=shape.inside(),
        n_layer=shape.depth,
        n_head=shape.heads,
        n_positions=shape.inputs[0],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _causal(config)


DECODERS = {
    "opt": Family(
        opt,
        r".*\.layers\.\d+\.fc[12]",
        r".*\.layers\.\d+\.(fc[12]|self_attn\.(q|k|v|out)_proj)",
        r".*\.fc2",
    ),
    "pythia": Family(
        pythia,
        r".*\.mlp\.dense_(h_to_4h|4h_to_h)",
        r".*\.(mlp\.dense_(h_to_4h|4h_to_h)|attention\.(query_key_value|dense))",
        r".*\.mlp\.dense_4h_to_h",
    ),
    "gpt2": Family(
        gpt2,
        r".*\.mlp\.c_(fc|proj)",
        r".*\.(mlp\.c_(fc|proj)|attn\.c_(attn|proj))",
        r".*\.mlp\.c_proj",
    ),
}
ALL = {**FAMILIES, **DECODERS}
