"""Converted layers trained end to end for a fixed time: how much of what was lost comes back, and how soon."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.minilm.data import Batches

RATES = (0.01, 0.03, 0.1)  # the first step of an entry, as a share of its tensor's root mean square
TRIAL = 1 / 8  # of the time, that each rate is tried for from the same start
MARKS = (1 / 8, 1 / 4, 1 / 2)  # of the time, after which agreement is measured, beside its start and its end
WARM_UP = 0.05  # of the time, over which the rate rises; then it falls linearly to zero
LEAST = 1e-3  # a tensor of zeros moves as if its entries were this large

Targets = Sequence[tuple[Tensor, ...]]  # of each batch the dense encoder's states after each layer


class Tuning:
    """The dense encoder's states on the sentences to fit on; all batches but one train, that one chooses the rate."""

    def __init__(self, model: nn.Module, batches: Batches, layers: Sequence[str]):
        self.batches, self.layers = batches, layers
        with torch.no_grad():
            self.targets: Targets = [_states(model, batch) for batch in batches]
        self.chooses = len(batches) // 2  # they are sorted by length
        self.trains = [i for i in range(len(batches)) if i != self.chooses] or [self.chooses]

    def tuned(
        self, model: nn.Module, seconds: float, agreement: Callable[[nn.Module], Mapping[str, float]]
    ) -> dict[str, Any]:
        """Train the layers in place, at the best of the rates; returns the rate, the steps and agreement by minutes.

        Args:
            seconds: of CPU time, which other processes hardly change: one thread's, those of trials not counted.
        """
        tried = {}
        for rate in RATES:
            trial = copy.deepcopy(model)
            self._train(trial, rate, seconds * TRIAL)
            with torch.no_grad():
                tried[rate] = float(self._loss(trial, self.chooses))
        rate = min(tried, key=lambda rate: (not tried[rate] < float("inf"), tried[rate]))
        curve = [{"minutes": 0.0, **agreement(model)}]

        def mark(spent: float) -> None:
            curve.append({"minutes": spent / 60, **agreement(model)})

        steps = self._train(model, rate, seconds, mark)
        return {"rate": rate, "rates": RATES, "steps": steps, "curve": curve}

    def _train(
        self, model: nn.Module, rate: float, seconds: float, mark: Callable[[float], None] = lambda spent: None
    ) -> int:
        """Steps until the time is over; `mark` is called at MARKS and at the end, and what it takes does not count."""
        model.requires_grad_(False)
        own = [p.requires_grad_() for layer in self.layers for p in model.get_submodule(layer).parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p], "first": rate * max(float(p.detach().square().mean().sqrt()), LEAST)} for p in own
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        marks, steps, start = [m * seconds for m in MARKS], 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            if marks and spent >= marks[0]:
                marks.pop(0)
                mark(spent)
                start = time.process_time() - spent
            done = spent / seconds
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * min(1.0, 0.05 + done / WARM_UP) * (1 - done)
            loss = self._loss(model, self.trains[steps % len(self.trains)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
        mark(spent)
        return steps

    def _loss(self, model: nn.Module, batch: int) -> Tensor:
        """The squared error of the tokens' states, as a share of their square, a mean over the layers."""
        given, wanted = self.batches[batch], self.targets[batch]
        mask = given["attention_mask"][..., None]
        pairs = zip(_states(model, given), wanted, strict=True)
        return sum(((a - w).square() * mask).sum() / (w.square() * mask).sum() for a, w in pairs) / len(wanted)  # type: ignore[return-value]


def _states(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What each layer hands on: (sentences, tokens, width)."""
    return tuple(model(**batch, output_hidden_states=True).hidden_states[1:])
