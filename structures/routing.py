"""Which experts a token goes to, and with what weights: the router of a gated structure, and its losses."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from structures.exporting import exporting
from structures.structure import Gate


class Routing(NamedTuple):
    """What the router decided for every token, leading dimensions flattened; `logits` and `weights` have gradients.

    Attributes:
        logits: (tokens, experts), in float32 or wider.
        experts: (tokens, active), the chosen experts, the largest logit first; the first of equal ones.
        weights: (tokens, active), the softmax over the chosen logits; zero where a choice was dropped.
        kept: (tokens, active), False where an expert had no room left; None without a capacity.
    """

    logits: Tensor
    experts: Tensor
    weights: Tensor
    kept: Tensor | None = None

    @property
    def load(self) -> Tensor:
        """(experts,): how many choices fell on each expert, dropped ones included."""
        return torch.bincount(self.experts.flatten(), minlength=self.logits.shape[1])

    @property
    def dropped(self) -> int:
        """How many choices were dropped because an expert was full."""
        return 0 if self.kept is None else int((~self.kept).sum())

    @property
    def gates(self) -> Tensor:
        """(tokens, experts): the weights, zero for experts that were not chosen."""
        return torch.zeros_like(self.logits).scatter(1, self.experts, self.weights.to(self.logits.dtype))

    @property
    def chosen(self) -> Tensor:
        """(tokens, experts): whether an expert was chosen and had room."""
        kept = torch.ones_like(self.experts, dtype=torch.bool) if self.kept is None else self.kept
        return torch.zeros_like(self.logits, dtype=torch.bool).scatter(1, self.experts, kept)

    def balance_loss(self) -> Tensor:
        """experts * sum of (share of choices) * (mean probability): 1 where probabilities are even, up to `experts`.

        With one expert a token its weight is always 1: the task gives the router no gradient, these losses alone do.
        Source: Fedus et al. 2022, arXiv:2101.03961 (for one expert a token; here choices are counted).
        """
        experts = self.logits.shape[1]
        if not len(self.logits):
            return self.logits.sum()
        chosen = torch.zeros_like(self.logits).scatter(1, self.experts, 1.0).mean(0) / self.experts.shape[1]
        return experts * (chosen.detach() * self.logits.softmax(1).mean(0)).sum()

    def z_loss(self) -> Tensor:
        """Mean over tokens of logsumexp(logits)^2, which keeps logits small.

        Source: Zoph et al. 2022, arXiv:2202.08906.
        """
        return self.logits.logsumexp(1).square().mean() if len(self.logits) else self.logits.sum()


def route(gate: Gate, x: Tensor, router: Tensor, *, training: bool = False) -> Routing:
    """Choose the experts of every token.

    Logits are computed in float32 or wider, autocast or not: a choice that depended on bfloat16's digits would differ
    between executions. In training the gate's jitter is added to them, and its capacity holds: an expert takes
    ceil(capacity * tokens * active / experts) tokens, all first choices before second ones, early tokens before late
    ones; what is above that is dropped, with no weight moved to the other choices.

    Args:
        x: (tokens, in_features).
        router: (experts, in_features).
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, router.dtype), torch.float32)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            logits = x.to(wide) @ router.to(wide).t()
    else:
        logits = x.to(wide) @ router.to(wide).t()
    if training and gate.jitter is not None:
        logits = logits + gate.jitter * torch.randn_like(logits)
    experts = _largest(logits.detach(), gate.active)
    weights = logits.gather(1, experts).softmax(1)
    if not training or gate.capacity is None:
        return Routing(logits, experts, weights)
    kept = _kept(gate, experts)
    return Routing(logits, experts, weights * kept, kept)


def _largest(logits: Tensor, count: int) -> Tensor:
    """(tokens, count): the places of the largest logits, the first of equal ones; topk promises no order for them."""
    if not exporting():
        return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    found = [logits.argmax(1, keepdim=True)]  # ONNX has no stable sort; the first of equal ones is argmax's
    while len(found) < count:
        logits = logits.scatter(1, found[-1], -torch.inf)
        found.append(logits.argmax(1, keepdim=True))
    return torch.cat(found, 1)


def room(gate: Gate, tokens: int) -> int:
    """Tokens that an expert takes in training, where the gate has a capacity."""
    assert gate.capacity is not None
    return math.ceil(gate.capacity * tokens * gate.active / gate.experts)


def _kept(gate: Gate, experts: Tensor) -> Tensor:
    """(tokens, active): whether each choice finds room with its expert."""
    tokens = experts.shape[0]
    choices = experts.t().reshape(-1)  # all first choices, then all second ones
    chosen = torch.nn.functional.one_hot(choices, gate.experts)
    before = (chosen.cumsum(0) - chosen).gather(1, choices[:, None])[:, 0]
    return (before < room(gate, tokens)).reshape(gate.active, tokens).t()
