"""Real activations: what the feed-forward blocks of the pretrained encoder read and give on sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench.files import encoder
from bench.files.errors import UsageError
from bench.training import data

TRAIN = 24000  # tokens to train on
SENTENCES = 32  # of a forward
LAYERS = 6

Part = tuple[Tensor, Tensor]


def activations(layer: int, texts: str, held_out: int) -> tuple[dict[str, Part], dict[str, Any]]:
    """Inputs and outputs (tokens, width) of a block's parts, and facts of the data.

    Inputs are centred and scaled as a whole; each output has mean 0 and variance 1 on the training part, since one of
    them alone has half of the variance (98 % in layer 0).
    Raises:
        UsageError: there is no such layer, the encoder or the texts are missing, or there are too few sentences.
    """
    if not 0 <= layer < LAYERS:
        raise UsageError(f"--data: layer:{layer} is not in the encoder; it has layers 0 to {LAYERS - 1}")
    found = _blocks(texts, held_out)
    x, y = found["train"][layer]
    center, scale = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
    parts = {
        part: ((own[layer][0] - center) / scale, (own[layer][1] - y.mean(0)) / y.std(0)) for part, own in found.items()
    }
    text = data.load(texts)
    note = f"feed-forward block {layer} of {encoder.NAME} on sentences of {text.name}, each output at unit variance"
    facts = {"data": f"encoder {layer}", "data_sha256": encoder.SHA256, "data_note": note, "licence": encoder.LICENCE}
    return parts, facts


@lru_cache(maxsize=1)
def _blocks(texts: str, held_out: int) -> dict[str, list[Part]]:
    """Of every layer, by part; all layers are read in one pass."""
    text = data.load(texts)
    tune = text.train[::20]
    train = [document for i, document in enumerate(text.train) if i % 20]
    model, tokenizer = encoder.load()
    wanted = (("train", train, TRAIN), ("tune", tune, held_out), ("report", text.validation, held_out))
    return {part: _read(model, tokenizer, documents, count) for part, documents, count in wanted}


@torch.no_grad()
def _read(model: Any, tokenizer: Any, documents: Sequence[str], count: int) -> list[Part]:
    blocks = model.encoder.layer
    seen: dict[tuple[int, str], list[Tensor]] = {(i, k): [] for i in range(len(blocks)) for k in "xy"}
    handles = []
    for i, block in enumerate(blocks):
        handles += [block.intermediate.dense.register_forward_hook(lambda m, x, y, i=i: seen[i, "x"].append(x[0]))]
        handles += [block.output.dense.register_forward_hook(lambda m, x, y, i=i: seen[i, "y"].append(y))]
    kept, total = [], 0
    sentences = _sentences(documents)
    try:
        while total < count:
            some = [s for _, s in zip(range(SENTENCES), sentences, strict=False)]
            if not some:
                break
            batch = tokenizer(some, padding=True, return_tensors="pt")
            model(**batch)
            kept.append(batch["attention_mask"].bool())
            total += int(kept[-1].sum())
    finally:
        for handle in handles:
            handle.remove()
    if total < 256:
        raise UsageError(f"--data: {total} tokens of sentences are too few to learn a block from")

    def joined(i: int, k: str) -> Tensor:
        return torch.cat([states[mask] for states, mask in zip(seen[i, k], kept, strict=True)])[:count]

    return [(joined(i, "x"), joined(i, "y")) for i in range(len(blocks))]


def _sentences(documents: Sequence[str]) -> Iterator[str]:
    """Of the first pages of every document, shuffled."""
    found = [s.strip() for d in documents for s in re.split(r"\.\s", d[:12000].replace("\n", " "))]
    found = [s for s in found if 40 < len(s) < 400]
    for i in torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist():
        yield found[i]
