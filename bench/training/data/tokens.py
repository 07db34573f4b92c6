"""Tokenizers without a download: characters, bytes, and byte-level BPE trained here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.files.errors import UsageError
from bench.training.data.cache import cache
from bench.training.data.records import MissingData

PIECE = 4096  # characters encoded at once: 2.6 s for 10.2 M characters on one core, 13 s in a single call
LEAST = 256  # byte-level BPE has a token for every byte

Ids = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Tokenizer:
    """`encode` a text to ids below `size`; `decode` gives the same text back."""

    name: str
    size: int
    encode: Callable[[str], Ids] = field(repr=False)
    decode: Callable[[Iterable[int]], str] = field(repr=False)


def bytes_() -> Tokenizer:
    """UTF-8 bytes: 256 tokens, every text can be encoded."""

    def encode(text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)

    def decode(ids: Iterable[int]) -> str:
        return bytes(map(int, ids)).decode(errors="replace")  # ids a model gives may cut a character

    return Tokenizer("bytes", 256, encode, decode)


def characters(text: str | Sequence[str]) -> Tokenizer:
    """The distinct characters of a text, or of several, in code point order.

    Give the held-out documents too: a character that is not in the vocabulary is an error, since leaving it out would
    make the bits per byte of that text wrong.
    """
    points = [np.unique(_points(part)) for part in ([text] if isinstance(text, str) else text)]
    known = np.unique(np.concatenate(points)) if points else np.empty(0, np.uint32)
    if not len(known):
        raise UsageError("characters: the text is empty, so there is no vocabulary")
    dtype = _dtype(len(known))

    def encode(text: str) -> Ids:
        found = _points(text)
        ids = np.searchsorted(known, found).clip(max=len(known) - 1)
        strange = np.unique(found[known[ids] != found])
        if len(strange):
            shown = ", ".join(repr(chr(c)) for c in strange[:8])
            raise UsageError(f"characters: {shown} not in the vocabulary of {len(known)}; build it from all documents")
        return ids.astype(dtype)

    def decode(ids: Iterable[int]) -> str:
        return "".join(chr(known[i]) for i in ids)

    return Tokenizer("characters", len(known), encode, decode)


def bpe(text: str | Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level byte-pair encoding, trained on the text and kept in the cache by the text's checksum.

    Every text can be encoded. Texts are encoded in pieces cut where a token never crosses, so the ids are those of the
    whole. Training twice gives the same merges.

    Args:
        text: what to train on: the training documents, not the held-out ones.
        vocab: how many tokens, from 256; fewer come out where the text has not as many pairs.
    """
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ModuleNotFoundError:
        raise MissingData("bpe: needs tokenizers: pip install 'structures[training]'") from None
    if vocab < LEAST:
        raise UsageError(f"bpe: vocab={vocab} is too small; it has a token for every byte, so at least {LEAST}")
    texts = [text] if isinstance(text, str) else list(text)
    digest = hashlib.sha256(str(vocab).encode())
    for part in texts:
        digest.update(hashlib.sha256(part.encode()).digest())
    folder = cache() / "tokenizers" / f"bpe-{vocab}-{digest.hexdigest()[:32]}"
    files = folder / "vocab.json", folder / "merges.txt"
    if not all(file.is_file() for file in files):
        trained = ByteLevelBPETokenizer()
        pieces = (piece for part in texts for piece in _pieces(part))
        trained.train_from_iterator(pieces, vocab_size=vocab, min_frequency=2, show_progress=False)
        _keep(trained, folder)
    tokenizer: Any = ByteLevelBPETokenizer(str(files[0]), str(files[1]))
    size = tokenizer.get_vocab_size()
    dtype = _dtype(size)

    def encode(text: str) -> Ids:
        ids = [np.array(tokenizer.encode(piece).ids, dtype) for piece in _pieces(text)]
        return np.concatenate(ids) if ids else np.empty(0, dtype)

    def decode(ids: Iterable[int]) -> str:
        return str(tokenizer.decode(list(map(int, ids)), skip_special_tokens=False))

    return Tokenizer(f"bpe-{vocab}", size, encode, decode)


def _keep(trained: Any, folder: Path) -> None:
    """Write the vocabulary and the merges; the folder appears whole."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(part))
    try:
        os.replace(part, folder)
    except OSError:  # another process has just written the same
        if not folder.is_dir():
            raise
        for file in part.iterdir():
            file.unlink()
        part.rmdir()


def _pieces(text: str) -> Iterator[str]:
    """Cut before white space that follows something else: byte-level BPE's words never cross from one to the other."""
    start = 0
    cut = re.compile(r"(?<=\S)(?=\s)")
    while start < len(text):
        match = cut.search(text, start + PIECE)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def _points(text: str) -> NDArray[np.uint32]:
    """Code points; surrogates too, which a text read with errors may have."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def _dtype(size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if size <= 1 << 16 else np.uint32
