"""How well a converted encoder's embeddings agree with the dense one's, and the lower bound: no feed-forward layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.minilm.data import Batches


@torch.inference_mode()
def embed(model: nn.Module, batches: Batches) -> Tensor:
    """The mean of the tokens' states, of length one: (sentences, width)."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state * mask
        found.append(nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1))
    return torch.cat(found)


def agreement(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """The mean cosine to the dense model's embeddings, and how often the nearest neighbour is the same sentence."""
    first, second = ((e @ e.T).fill_diagonal_(-1).argmax(1) for e in (wanted, found))
    cosine = float((wanted * found).sum(1).mean())
    return {"cosine": min(1.0, cosine), "neighbour": float((first == second).float().mean())}


class ZeroBranch(nn.Module):
    """In place of a feed-forward block: adds nothing to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without_feed_forward(model: nn.Module) -> nn.Module:
    """A copy of a BERT encoder whose layers are attention only."""
    model = copy.deepcopy(model)
    for layer in model.get_submodule("encoder.layer").children():
        layer.intermediate = nn.Identity()
        layer.get_submodule("output").dense = ZeroBranch()
    return model
