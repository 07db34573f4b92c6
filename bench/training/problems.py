"""What a network is trained on: batches that depend on seed and step alone, and the loss on what is held out."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.files.errors import UsageError
from bench.training import data
from bench.training.settings import Setting

# A network without its layers between is left with twice dense's loss on this one; with 64 inputs and two hidden layers
# both learned little (0.14 and 0.18 of the variance after 1500 steps of 256 samples at width 256).
TEACHER = (16, 256, 256, 256, 16)  # widths of the random network to imitate, inputs first
TUNED_SHARE = 20  # every this many-th training document, or image, is kept from training for finding rates
EVAL_BATCH = 4096  # samples, or tokens, of one forward where a loss is measured

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingProblem:
    """Inputs, outputs and a loss.

    inputs, outputs: sizes for the network's `Shape`.
    parts: for "tune" (finds learning rates) and "report" (is reported): inputs and targets, equal rows.
    facts: name, sha256, licence and note of the data, for the results.
    """

    setting: Setting
    inputs: tuple[int, ...]
    outputs: int
    parts: dict[str, Batch]
    facts: dict[str, Any]
    arrays: dict[str, Tensor] = field(repr=False)
    bytes_per_token: float | None = None
    tokenizer: Any = None
    teacher: nn.Module | None = field(default=None, repr=False)

    def batch(self, seed: int, step: int) -> Batch:
        """The batch of a step: the same whatever was drawn before, so that a run can be taken up anywhere."""
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)
        size, length = self.setting.batch, self.setting.length
        if self.teacher is not None:
            x = torch.randn(size, *self.inputs, generator=generator)
            return x, self._taught(x)
        if "text" in self.arrays:
            text = self.arrays["text"]
            starts = torch.randint(len(text) - length, (size,), generator=generator)
            rows = text[starts[:, None] + torch.arange(length + 1)].long()
            return rows[:, :-1], rows[:, 1:]
        return self._epochs(seed, step)

    def _epochs(self, seed: int, step: int) -> Batch:
        """Images without repetition within an epoch."""
        x, y = self.arrays["x"], self.arrays["y"]
        size = self.setting.batch
        a_step = len(x) // size
        order = _order(len(x), seed, step // a_step)
        rows = order[step % a_step * size :][:size]
        return floats(x[rows]), y[rows]

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.teacher(x)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Mean squared error per output, or cross-entropy in nats."""
        if self.teacher is not None:
            errors = (outputs.float() - targets).square().mean(-1)
            return errors.mean() if reduction == "mean" else errors.sum()
        return functional.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction=reduction)

    def rows(self) -> int:
        """Rows of one forward where a loss is measured."""
        return max(1, EVAL_BATCH // self.setting.length)


def floats(x: Tensor) -> Tensor:
    """uint8 images as float32 of about unit size: (batch, side, side, channels)."""
    x = x.float() / 127.5 - 1
    return x if x.dim() == 4 else x[..., None]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))


@lru_cache(maxsize=8)
def load(setting: Setting) -> TrainingProblem:
    """The problem of a setting.

    Raises:
        UsageError: the data is missing (the message names the command that fetches it) or too small, or the tokenizer
            is wrong.
    """
    if setting.data == "teacher":
        return _regression(setting)
    found = data.load(setting.data)
    return _images(setting, found) if isinstance(found, data.Images) else _text(setting, found)


def _regression(setting: Setting) -> TrainingProblem:
    """A random network to imitate; its outputs have mean 0 and variance 1, so a loss is a share of the variance."""
    generator = torch.Generator().manual_seed(12345)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(TEACHER):
        layer = nn.Linear(i, o)
        layer.weight.data = torch.randn(o, i, generator=generator) * math.sqrt(2 / i)
        layer.bias.data = torch.randn(o, generator=generator) * 0.1
        layers += [layer, nn.ReLU()]
    teacher = nn.Sequential(*layers[:-1]).requires_grad_(False)
    last = layers[-2]
    assert isinstance(last, nn.Linear)
    y = teacher(torch.randn(65536, TEACHER[0], generator=generator))
    last.weight.data /= y.std(0)[:, None]
    last.bias.data = (last.bias.data - y.mean(0)) / y.std(0)
    parts = {}
    for part in ("tune", "report"):
        x = torch.randn(setting.held_out, TEACHER[0], generator=generator)
        parts[part] = (x, teacher(x))
    shape = "-".join(map(str, TEACHER))
    facts = {
        "data": "teacher",
        "data_sha256": _sha256(*(p for p in teacher.parameters())),
        "data_note": f"a random ReLU network {shape}, outputs of unit variance; fresh normal inputs at every step",
        "licence": None,
    }
    return TrainingProblem(setting, TEACHER[:1], TEACHER[-1], parts, facts, {}, teacher=teacher)


def _images(setting: Setting, found: data.Images) -> TrainingProblem:
    if setting.length != 1 or setting.tokenizer:
        raise UsageError(f"--data: {setting.data} holds images; {setting.task} with {setting.model} needs text")
    x, y = torch.from_numpy(found.train_x.copy()), torch.from_numpy(found.train_y.copy())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # some come sorted by class
    cut = len(x) // TUNED_SHARE
    tune, train = order[:cut], order[cut:]
    if setting.batch > len(train):
        raise UsageError(f"--batch: {setting.batch} is more than the {len(train)} images of {setting.data} to train on")
    test = torch.from_numpy(found.test_x[: setting.held_out].copy())
    parts = {
        "tune": (floats(x[tune]), y[tune]),
        "report": (floats(test), torch.from_numpy(found.test_y[: setting.held_out].copy())),
    }
    inputs = tuple(parts["report"][0].shape[1:])
    return TrainingProblem(setting, inputs, found.classes, parts, _facts(found), {"x": x[train], "y": y[train]})


def _text(setting: Setting, found: data.Text) -> TrainingProblem:
    if setting.length < 2 or not setting.tokenizer:
        raise UsageError(f"--data: {setting.data} holds text; {setting.task} with {setting.model} needs images")
    tokenizer, encoded = _encoded(setting.data, setting.tokenizer)
    for part, ids in encoded.items():
        if len(ids) <= setting.length:
            need = f"a sequence needs {setting.length + 1}"
            raise UsageError(f"--data: {setting.data} has {len(ids)} tokens to {part}; {need}")
    parts = {part: _windows(encoded[part], setting) for part in ("tune", "report")}
    held = "\n\n".join(found.validation)
    return TrainingProblem(
        setting,
        (setting.length,),
        tokenizer.size,
        parts,
        {**_facts(found), "train_tokens": len(encoded["train"]), "vocabulary": tokenizer.size},
        {"text": encoded["train"]},
        bytes_per_token=len(held.encode()) / len(encoded["report"]),
        tokenizer=tokenizer,
    )


@lru_cache(maxsize=4)
def _encoded(name: str, tokenizer_word: str) -> tuple[Any, dict[str, Tensor]]:
    """A tokenizer, and the ids to train on, to find rates on and to report on, each of documents of its own."""
    found = data.load(name)
    assert isinstance(found, data.Text)
    tokenizer = _tokenizer(tokenizer_word, found)
    train = [text for i, text in enumerate(found.train) if i % TUNED_SHARE]
    parts = (("train", train), ("tune", found.train[::TUNED_SHARE]), ("report", found.validation))
    return tokenizer, {
        part: torch.from_numpy(tokenizer.encode("\n\n".join(texts)).astype(np.int32)) for part, texts in parts
    }


def _tokenizer(word: str, found: data.Text) -> Any:
    kind, _, size = word.partition(":")
    if kind == "characters":
        return data.characters([*found.train, *found.validation])
    return data.bytes_() if kind == "bytes" else data.bpe(found.train, int(size))


def _windows(ids: Tensor, setting: Setting) -> Batch:
    """Sequences side by side, as many as the setting measures on, spread over the whole text."""
    count = (len(ids) - 1) // setting.length
    wanted = min(count, max(1, setting.held_out // setting.length))
    starts = torch.linspace(0, count - 1, wanted).long() * setting.length
    rows = ids[starts[:, None] + torch.arange(setting.length + 1)].long()
    return rows[:, :-1], rows[:, 1:]


def _facts(found: data.Images | data.Text) -> dict[str, Any]:
    return {"data": found.name, "data_sha256": found.sha256, "data_note": found.note, "licence": found.licence}


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()
