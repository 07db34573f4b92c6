"""What a network is trained on: batches that depend on seed and step alone, and losses on what is held out."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.files.errors import UsageError
from bench.training import data, encoder
from bench.training.settings import Setting

TEACHER = (16, 256, 256, 256, 16)  # widths of the random network to imitate, inputs first
BITS, VALUES = 32, 32  # of a key of facts, and of what it may stand for
TUNED_SHARE = 20  # every this many-th training document is kept from training for choosing rates
EVAL_BATCH = 4096  # samples, or tokens, of one forward where a loss is measured

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TrainingProblem:
    """Inputs, outputs and a loss.

    inputs, outputs: sizes for the network's shape.
    parts: for "tune" (where rates are chosen) and "report": inputs and targets, the same for all seeds.
    facts: name, sha256, licence and note of the data, for the results.
    """

    setting: Setting
    inputs: tuple[int, ...]
    outputs: int
    facts: Mapping[str, Any]
    parts: Mapping[str, Batch] = field(default_factory=dict, repr=False)
    bytes_per_token: float | None = None

    paired = False  # the seed draws the task, not just initial values and order
    squared = False  # squared error, not cross-entropy

    def batch(self, seed: int, step: int) -> Batch:
        """The batch of a step: the same whatever was drawn before, so that a run can be taken up anywhere."""
        raise NotImplementedError

    def held(self, part: str, seed: int) -> Batch:
        return self.parts[part]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over all but the leading axis: squared errors, or cross-entropies in nats."""
        if self.squared:
            return (outputs - targets).square().flatten(1).mean(1)
        found = functional.cross_entropy(outputs.flatten(1, -2).transpose(1, 2), targets.flatten(1), reduction="none")
        return found.mean(1)

    def rows(self) -> int:
        """Rows of one forward where a loss is measured."""
        return max(1, EVAL_BATCH // self.setting.length)

    def _drawn(self, seed: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)


class Imitation(TrainingProblem):
    """A random network to imitate, one for every seed; its outputs have unit variance, so a loss is a share of it."""

    paired, squared = True, True

    @cached_property
    def known(self) -> dict[int, tuple[list[Batch], dict[str, Batch]]]:
        return {}

    def teacher(self, seed: int) -> tuple[list[Batch], dict[str, Batch]]:
        """Its weights and biases, and what is held out."""
        if seed not in self.known:
            draw = torch.Generator().manual_seed(777 + seed)
            layers = [
                (torch.randn(o, i, generator=draw) * math.sqrt(2 / i), torch.randn(o, generator=draw) * 0.1)
                for i, o in itertools.pairwise(TEACHER)
            ]
            y = taught(layers, torch.randn(16384, TEACHER[0], generator=draw))
            weight, bias = layers[-1]
            layers[-1] = weight / y.std(0)[:, None], (bias - y.mean(0)) / y.std(0)
            inputs = {p: torch.randn(self.setting.held_out, TEACHER[0], generator=draw) for p in ("tune", "report")}
            self.known[seed] = layers, {part: (x, taught(layers, x)) for part, x in inputs.items()}
        return self.known[seed]

    def batch(self, seed: int, step: int) -> Batch:
        x = torch.randn(self.setting.batch, TEACHER[0], generator=self._drawn(seed, step))
        return x, taught(self.teacher(seed)[0], x)

    def held(self, part: str, seed: int) -> Batch:
        return self.teacher(seed)[1][part]


def taught(layers: list[Batch], x: Tensor) -> Tensor:
    """A ReLU network's outputs."""
    for weight, bias in layers[:-1]:
        x = (x @ weight.T + bias).relu()
    return x @ layers[-1][0].T + layers[-1][1]


class Facts(TrainingProblem):
    """Random keys of signs, each with one of 32 values, a table for every seed; the loss is on the table itself."""

    paired = True

    @property
    def count(self) -> int:
        return int(self.setting.data.partition(":")[2])

    @cached_property
    def known(self) -> dict[int, Batch]:
        return {}

    def held(self, part: str, seed: int) -> Batch:
        if seed not in self.known:
            draw = torch.Generator().manual_seed(31 + seed)
            keys = torch.randint(2, (self.count, BITS), generator=draw).float() * 2 - 1
            self.known[seed] = keys, torch.randint(VALUES, (self.count,), generator=draw)
        return self.known[seed]

    def batch(self, seed: int, step: int) -> Batch:
        x, y = self.held("", seed)
        epoch, at = divmod(step, self.count // self.setting.batch)
        rows = order(self.count, seed, epoch)[at * self.setting.batch :][: self.setting.batch]
        return x[rows], y[rows]


@lru_cache(maxsize=16)
def order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))


class Activations(TrainingProblem):
    """A feed-forward block of the pretrained encoder, learned from what it reads and gives."""

    squared = True

    def batch(self, seed: int, step: int) -> Batch:
        x, y = self.parts["train"]
        rows = torch.randint(len(x), (self.setting.batch,), generator=self._drawn(seed, step))
        return x[rows], y[rows]


class Writing(TrainingProblem):
    """Text, of which the next token is to be foretold."""

    def batch(self, seed: int, step: int) -> Batch:
        ids, length = self.parts["train"][0], self.setting.length
        starts = torch.randint(len(ids) - length, (self.setting.batch,), generator=self._drawn(seed, step))
        rows = ids[starts[:, None] + torch.arange(length + 1)].long()
        return rows[:, :-1], rows[:, 1:]


@lru_cache(maxsize=8)
def load(setting: Setting) -> TrainingProblem:
    """The problem of a setting.

    Raises:
        UsageError: the data or the encoder is missing (the message says how to get it), or too small for the setting.
    """
    if setting.task == "teacher":
        shape = "-".join(map(str, TEACHER))
        note = f"a random ReLU network {shape} for each seed, outputs of unit variance; fresh normal inputs every step"
        return Imitation(setting, TEACHER[:1], TEACHER[-1], _made("teacher", TEACHER, note))
    if setting.task == "facts":
        facts = Facts(setting, (BITS,), VALUES, _made("facts", (setting.data, BITS, VALUES), _keys(setting)))
        if facts.count < setting.batch:
            raise UsageError(f"--batch: {setting.batch} is more than the {facts.count} keys of {setting.data}")
        return facts
    if setting.task == "encoder":
        layer, _, texts = setting.data.partition(":")[2].partition(",")
        parts, told = encoder.activations(int(layer), texts or "sotu", setting.held_out)
        width = parts["train"][0].shape[1]
        return Activations(setting, (width,), width, told, parts)
    return _writing(setting)


def _keys(setting: Setting) -> str:
    return (
        f"{setting.data.partition(':')[2]} random keys of {BITS} signs for each seed, each with one of {VALUES} values"
    )


def _made(name: str, what: Any, note: str) -> dict[str, Any]:
    """Of what is drawn here: identified by its description."""
    digest = hashlib.sha256(repr(what).encode()).hexdigest()
    return {"data": name, "data_sha256": digest, "data_note": note, "licence": None}


def _writing(setting: Setting) -> TrainingProblem:
    if setting.length < 2 or not setting.tokenizer:
        raise UsageError("--length, --tokenizer: text needs sequences of two tokens or more and a tokenizer")
    found = data.load(setting.data)
    size, encoded = _encoded(setting.data, setting.tokenizer)
    for part, ids in encoded.items():
        if len(ids) <= setting.length:
            need = f"a sequence needs {setting.length + 1}"
            raise UsageError(f"--data: {setting.data} has {len(ids)} tokens to {part}; {need}")
    parts = {part: _windows(encoded[part], setting) for part in ("tune", "report")}
    told = {"data": found.name, "data_sha256": found.sha256, "data_note": found.note, "licence": found.licence}
    each = len("\n\n".join(found.validation).encode()) / len(encoded["report"])
    text = {"train": (encoded["train"], encoded["train"])}
    return Writing(setting, (setting.length,), size, told, {**parts, **text}, bytes_per_token=each)


@lru_cache(maxsize=4)
def _encoded(name: str, word: str) -> tuple[int, dict[str, Tensor]]:
    """The size of the vocabulary, and the ids to train, to tune and to report on, each of documents of its own."""
    found = data.load(name)
    kind, _, size = word.partition(":")
    if kind == "characters":
        tokenizer = data.characters([*found.train, *found.validation])
    else:
        tokenizer = data.bytes_() if kind == "bytes" else data.bpe(found.train, int(size))
    train = [text for i, text in enumerate(found.train) if i % TUNED_SHARE]
    parts = (("train", train), ("tune", found.train[::TUNED_SHARE]), ("report", found.validation))
    return tokenizer.size, {
        part: torch.from_numpy(tokenizer.encode("\n\n".join(texts)).astype(np.int32)) for part, texts in parts
    }


def _windows(ids: Tensor, setting: Setting) -> Batch:
    """Sequences side by side, as many as the setting measures on, spread over the whole text."""
    count = (len(ids) - 1) // setting.length
    wanted = min(count, max(1, setting.held_out // setting.length))
    starts = torch.linspace(0, count - 1, wanted).long() * setting.length
    rows = ids[starts[:, None] + torch.arange(setting.length + 1)].long()
    return rows[:, :-1], rows[:, 1:]
