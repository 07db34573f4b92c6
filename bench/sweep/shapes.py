"""Widths of real layers, (in_features, out_features), under the names that `--shapes` takes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.files.errors import UsageError, one_of
from bench.files.options import numbers, words

Shape = tuple[int, int]

# The up-projection (Llama and Mistral have two of one shape, gate and up), then the projections of attention as
# models have them: GPT-2, Pythia and ViT-B project to queries, keys and values at once, Mistral's keys and values
# have 8 heads of 128.
_LAYERS: dict[str, tuple[Shape, ...]] = {
    "opt-125m": ((768, 3072), (768, 768)),
    "opt-350m": ((1024, 4096), (1024, 1024)),
    "opt-1.3b": ((2048, 8192), (2048, 2048)),
    "pythia-70m": ((512, 2048), (512, 1536), (512, 512)),
    "pythia-160m": ((768, 3072), (768, 2304), (768, 768)),
    "pythia-410m": ((1024, 4096), (1024, 3072), (1024, 1024)),
    "gpt2": ((768, 3072), (768, 2304), (768, 768)),
    "llama-7b": ((4096, 11008), (4096, 4096)),
    "mistral-7b": ((4096, 14336), (4096, 4096), (4096, 1024)),
    "vit-b": ((768, 3072), (768, 2304), (768, 768)),
}
NAMED: dict[str, tuple[Shape, ...]] = {
    **{name: (up, up[::-1]) for name, (up, *_) in _LAYERS.items()},
    **{f"{name}-attention": tuple(attention) for name, (_, *attention) in _LAYERS.items()},
}
MAX_WIDTH = 2**20


def parse(text: str) -> list[Shape]:
    """`"768x3072,opt-125m"` -> shapes, each once, in the order given.

    Raises:
        UsageError: a word is neither INxOUT nor a named set.
    """
    return list(dict.fromkeys(shape for word in words(text) for shape in _shapes(word)))


def widths(text: str) -> list[Shape]:
    """`"256,512"` -> square shapes."""
    return [(width, width) for width in numbers("--widths", text, MAX_WIDTH)]


def _shapes(word: str) -> Iterable[Shape]:
    match = re.fullmatch(r"(\d+)x(\d+)", word.lower())
    if match:
        shape = int(match[1]), int(match[2])
        if not all(1 <= width <= MAX_WIDTH for width in shape):
            raise UsageError(f"--shapes: widths are from 1 to {MAX_WIDTH}, found {word!r}")
        return [shape]
    return NAMED[one_of("--shapes", word.lower(), NAMED, "or INxOUT, such as 768x3072")]
