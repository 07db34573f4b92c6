"""What is measured of a trained network beside its loss: accuracy, bits per byte, minimal pairs of sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.files.errors import UsageError
from bench.training import grammar
from bench.training.loop import Outcome, correct, outputs
from bench.training.parallel import Processes
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting

FIRST = "\n\n"  # what stands before every document, and so before a sentence that is scored


def of(model: nn.Module, problem: TrainingProblem, outcome: Outcome, group: Processes) -> dict[str, Any]:
    """Fields of a row: what the data allows."""
    assert outcome.loss is not None
    if problem.bytes_per_token is None:
        return {} if problem.teacher else {"accuracy": correct(model, problem, group), "chance": 1 / problem.outputs}
    found: dict[str, Any] = {"bits_per_byte": outcome.loss / math.log(2) / problem.bytes_per_token}
    if problem.setting.grammar:
        pairs = grammar.pairs(problem.setting.grammar)
        every, by_phenomenon = grammar.accuracy(lambda texts: scores(model, problem, texts, group), pairs)
        found["grammar"] = _accuracy(every)
        found["grammar_by_phenomenon"] = {name: _accuracy(a) for name, a in by_phenomenon.items()}
    return found


def check(setting: Setting, problem: TrainingProblem) -> None:
    """Whether the grammar test can be made.

    Raises:
        UsageError: its sentences are longer than a sequence, or have characters that the data has not.
    """
    if not setting.grammar:
        return
    ids = _encoded(problem, [text for pair in grammar.pairs(setting.grammar) for text in (pair.good, pair.bad)])
    longest = max(map(len, ids))
    if longest > setting.length:
        raise UsageError(f"--length: the grammar test has sentences of {longest} tokens, more than {setting.length}")


@torch.no_grad()
def scores(model: nn.Module, problem: TrainingProblem, texts: Sequence[str], group: Processes) -> list[float]:
    """The log-probability of each sentence, as the first of a document."""
    every = _encoded(problem, texts)
    order = sorted(range(len(texts)), key=lambda i: len(every[i]))  # of like length together: less padding
    found = [0.0] * len(texts)
    given = len(problem.tokenizer.encode(FIRST))
    for some in (order[i : i + 64] for i in range(0, len(order), 64)):
        length = max(len(every[i]) for i in some)
        rows = torch.tensor([every[i] + [0] * (length - len(every[i])) for i in some])
        logits = outputs(model, rows[:, :-1], problem.setting, group).float().cpu()
        nats = -functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        for row, i in enumerate(some):
            found[i] = float(nats[row, given - 1 : len(every[i]) - 1].sum())
    return found


def _encoded(problem: TrainingProblem, texts: Sequence[str]) -> list[list[int]]:
    return [problem.tokenizer.encode(FIRST + text).tolist() for text in texts]


def _accuracy(found: grammar.Accuracy) -> dict[str, float]:
    return {"accuracy": found.share, "low": found.low, "high": found.high, "pairs": found.pairs, "chance": found.chance}
