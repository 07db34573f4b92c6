"""The pretrained encoder and its sentences: all-MiniLM-L6-v2 on Python's own documentation.

The sentences of every second topic fit, the others measure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from bench.files import encoder

FEED_FORWARD = r"encoder\.layer\.\d+\.(intermediate|output)\.dense"
BATCH = 32  # sentences

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Data:
    """The encoder and its sentences: one part to collect covariances on, another to measure on, and a batch to time."""

    model: nn.Module
    fit: Batches
    held_out: Batches
    timed: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def load(count: int) -> Data:
    """The pretrained encoder with `count` sentences to fit on and as many to measure on, or as many as there are.

    Raises:
        UsageError: a package is missing, or the model's file is another one.
    """
    model, tokenizer = encoder.load()

    def batch(text: Sequence[str]) -> Mapping[str, Tensor]:
        return dict(tokenizer(list(text), padding=True, return_tensors="pt"))

    # of as many tokens together: 6,400 rows instead of the 8,032 of an order by letters, for 5,532 tokens
    parts = [sorted(part, key=lambda text: len(tokenizer(text)["input_ids"])) for part in split(count)]
    batches = [[batch(part[i : i + BATCH]) for i in range(0, len(part), BATCH)] for part in parts]
    middle = (len(parts[1]) - BATCH) // 2
    timed = batch(parts[1][max(0, middle) :][:BATCH])
    facts = {
        "model": encoder.NAME,
        "sha256": encoder.SHA256,
        "sentences": "Python's documentation (pydoc_data.topics); fitted on every second topic, measured on the others",
        "fit_sentences": len(parts[0]),
        "held_out_sentences": len(parts[1]),
        "fit_tokens": _tokens(batches[0]),
        "held_out_tokens": _tokens(batches[1]),
        "sentences_sha256": hashlib.sha256("\n".join([*parts[0], "", *parts[1]]).encode()).hexdigest(),
        "transformers": version("transformers"),
        "timed": f"a batch of {len(timed['input_ids'])} held-out sentences, padded to {timed['input_ids'].shape[1]}",
    }
    return Data(model, batches[0], batches[1], timed, facts)


def split(count: int) -> tuple[list[str], list[str]]:
    """Sentences to fit on and to measure on, of different topics; none stands twice."""
    from pydoc_data.topics import topics

    ordered = [text for _, text in sorted(topics.items())]
    fit = list(dict.fromkeys(_sentences(ordered[::2])))
    held_out = [s for s in dict.fromkeys(_sentences(ordered[1::2])) if s not in set(fit)]
    return fit[:count], held_out[:count]


def _sentences(texts: Sequence[str]) -> list[str]:
    parts = re.split(r"(?<=[.!?])\s+", " ".join(" ".join(texts).split()))
    return [part for part in parts if re.fullmatch(r"[A-Z][\w ,;:'()-]{30,300}[.]", part)]


def _tokens(batches: Batches) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
