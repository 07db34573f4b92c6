"""Fitting in the precision of its own tensors, whatever the caller runs its model in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast, which would turn the products of a fit into bfloat16."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
