"""Runs of a model that wait at one layer after another, so that each layer can be replaced before it is computed."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from structures.models import linears

MAX_WAITING = 64  # runs that wait at a time, each in a thread of its own
HELD = 4  # what a waiting run holds, in inputs and outputs of its widest layer: the residual, what was made of it, ...


class Calls(NamedTuple):
    """When a layer is first called, how often, and with how many rows in all, by the first batch."""

    first: int
    times: int
    rows: int


def calls_of(model: nn.Module, names: Sequence[str], batch: Any) -> dict[str, Calls]:
    """How the layers are called by a batch. Their hooks are left behind: `model` is a copy that is not needed any more.

    Raises:
        ValueError: a layer is not called.
    """
    seen: list[tuple[str, int]] = []

    def hook(name: str, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        seen.append((name, x.numel() // max(1, x.shape[-1])))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: hook(name, args, kwargs), with_kwargs=True
        )
    call(model, batch)
    order = [name for name, _ in seen]
    missing = [name for name in names if name not in order]
    if missing:
        raise ValueError(
            f"{missing[0]}: the first batch does not reach it, so that there is nothing to fit it on; leave it out of "
            "the rules, or swap it without sequential=True"
        )
    rows = {name: sum(count for called, count in seen if called == name) for name in order}
    return {name: Calls(order.index(name), order.count(name), rows[name]) for name in names}


def call(model: nn.Module, batch: Any) -> None:
    """Run the model on a batch: a tensor, a sequence of arguments or a mapping of keyword arguments.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        found = type(batch).__name__
        raise ValueError(f"batches: each is a tensor, a tuple or a mapping of arguments, found {found}")


class Runs:
    """A model run over batches from layer to layer: `rows` gives what a layer reads, `replace` what it becomes.

    A run waits where it reached the layer and goes on from there, so that the model is run once for all of its layers.
    As many batches wait as hold their tensors in `kept` bytes; the others begin anew for every layer. A layer that is
    called more than once stays what it is until all of its calls are read; its runs then begin anew. They keep the
    precision (autocast) in which this is made.

    `model` is a copy that is not needed any more: its layers' `forward` is replaced. Without `close`, threads stay.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], calls: Mapping[str, Calls], batches: Sequence[Any], kept: int
    ):
        self.model, self.calls, self.batches = model, calls, batches
        self.made: dict[str, Callable[..., Any]] = {}
        self.waiting: dict[int, _Run] = {}  # by the batch's number
        kind = next(model.get_submodule(names[0]).parameters()).device.type
        self.narrow = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        chosen = {name: model.get_submodule(name) for name in names}
        self.most = min(MAX_WAITING, kept // max(1, HELD * max(_bytes(chosen[name], calls[name]) for name in names)))
        for name, layer in chosen.items():
            layer.forward = self._stopping(name, layer.forward)

    def rows(self, name: str) -> Iterator[Tensor | None]:
        """What the layer reads of each batch, (rows, in_features); None where the batch does not reach it."""
        times = self.calls[name].times
        for number, batch in enumerate(self.batches):
            run = self.waiting.pop(number, None)
            found = run.until(name, times) if run else []
            if run is None or not found:  # none was under way, or it had passed the layer already
                run = _Run(self.model, batch, self.narrow)
                found = run.until(name, times)
            if len(found) == times == 1 and len(self.waiting) < self.most:
                self.waiting[number] = run
            else:
                run.leave()
            yield torch.cat(found) if found else None

    def replace(self, name: str, new: Callable[..., Any]) -> None:
        """What the layer is from here on, also in the runs that wait at it."""
        self.made[name] = new

    def close(self) -> None:
        """Leave all runs."""
        for run in self.waiting.values():
            run.leave()
        self.waiting.clear()

    def _stopping(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = threading.current_thread()
            if isinstance(run, _Run):
                run.reached(name, args[0] if args else next(iter(kwargs.values())))
            return self.made.get(name, own)(*args, **kwargs)

        return forward


class _Left(BaseException):
    """The run is not needed any more."""


class _Run(threading.Thread):
    """One call of a model, without gradients, under this kind of autocast."""

    def __init__(self, model: nn.Module, batch: Any, narrow: tuple[str, torch.dtype] | None):
        super().__init__(daemon=True)
        self.model, self.batch = model, batch
        self.stop, self.times = "", 0
        self.rows: list[Tensor] = []
        self.go, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.left = False
        self.error: BaseException | None = None
        self.context = contextvars.copy_context()
        self.narrow = narrow

    def until(self, name: str, times: int) -> list[Tensor]:
        """Go on to the last of so many calls of a layer, or to the end; what the layer reads in these calls."""
        self.stop, self.times, self.rows = name, times, []
        if self.ident is None:
            self.start()
        self.go.release()
        self.stopped.acquire()
        if self.error is not None:
            raise self.error
        return self.rows

    def leave(self) -> None:
        """End it where it waits."""
        self.left = True
        self.go.release()
        self.join()

    def reached(self, name: str, x: Tensor) -> None:
        """Called by a layer, in this thread: wait there if that was asked for."""
        if name != self.stop or len(self.rows) == self.times:
            return
        self.rows.append(x.detach().reshape(-1, x.shape[-1]).clone())
        if len(self.rows) == self.times:
            self.stopped.release()
            self.go.acquire()
            if self.left:
                raise _Left

    def run(self) -> None:
        self.go.acquire()
        try:
            with torch.no_grad(), nullcontext() if self.narrow is None else torch.autocast(*self.narrow):
                self.context.run(call, self.model, self.batch)
        except _Left:
            pass
        except BaseException as error:  # raised by the thread that waits for this one
            self.error = error
        finally:
            self.stopped.release()


def _bytes(layer: nn.Module, calls: Calls) -> int:
    """Of a layer's inputs and outputs in a batch."""
    return calls.rows * sum(linears.widths(layer)) * next(layer.parameters()).element_size()
