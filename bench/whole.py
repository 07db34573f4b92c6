"""Rows of whole modules and models: timed as the sweep times a layer, in a section of their own of the results file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import machine, measure
from bench.cell import clock_of
from bench.output import SCHEMA, rounded
from bench.sweep import NOISY, Sweep
from bench.wrong import Wrong, one_of

EFFORT = measure.Effort(paired=0.5, alone=0.2, rounds=5)
LONG = measure.Effort(paired=3.0, alone=1.0, rounds=11)
SEQUENCE = 128  # tokens of one sequence, as the DYAD authors measured
BATCH = 32  # sequences, on CUDA and with --full
CPU_BATCH = 4  # stands in for it on a CPU

_ROWS = pytest.StashKey["Rows"]()


class Rows:
    """The rows of one kind of file; a plugin of pytest that writes them when the run ends."""

    def __init__(self, kind: str, sweep: Sweep, expected: int):
        self.kind, self.sweep, self.expected = kind, sweep, expected
        self.effort = LONG if sweep.request.full else EFFORT
        self.setup: dict[str, object] = {}
        self.rows: list[dict[str, Any]] = []
        self.kept: dict[str, Any] = {}  # what points of one cell share, such as dense's fastest way

    def time(
        self, facts: dict[str, Any], step: measure.Step, dense: measure.Step | None, benchmark: Any, *, train: bool
    ) -> dict[str, Any]:
        """Time a call alone, by the fixture, and in pairs with dense; returns the row, which is kept.

        Args:
            dense: what it is compared to; None for dense itself.
            train: gradients are recorded; else it is timed without.
        """
        clock = clock_of(facts["device"])
        self.sweep.load.since()
        with torch.set_grad_enabled(train):
            seconds = measure.once(step, clock)
            speedup = None
            if dense is not None:
                both = seconds, measure.once(dense, clock)
                speedup = measure.paired(step, dense, self.effort, seconds=both, clock=clock)
            calls = measure.calls_in_a_slice(seconds, self.effort)
            rounds = self.effort.count(self.effort.alone, calls * seconds)
            benchmark.pedantic(step, rounds=rounds, iterations=calls)
        row = facts | {"speedup": speedup and speedup.as_dict(), "clock": "host"}
        if benchmark.stats is not None:  # None under --benchmark-disable, which checks only
            found = benchmark.stats.stats
            row["time"] = {"median": found.median, "q1": found.q1, "q3": found.q3, "rounds": found.rounds}
            width = speedup.width if speedup else found.iqr / found.median
            foreign = self.sweep.load.since()
            raised = {"load": foreign is not None and foreign > machine.FOREIGN_LOAD, "noisy": width > NOISY}
            row["flags"] = [name for name, is_raised in raised.items() if is_raised]
            self.rows.append(row)
        return row

    @pytest.hookimpl(wrapper=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> Generator[None]:
        """In place of the sweep's section: this kind's. pytest-benchmark's own rows stay, without what they repeat."""
        own = output_json["benchmarks"]
        yield
        for row in own:
            row["stats"] = rounded(row["stats"] | {"data": []})
            row["params"] = row["param"] = None
            row["options"] = {"disable_gc": row["options"].get("disable_gc"), "timer": row["options"].get("timer")}
        facts = self.sweep.run_facts()
        facts["complete"] = bool(facts["complete"]) and len(self.rows) == self.expected
        output_json["benchmarks"] = own
        output_json["structures"] = rounded(
            {"schema": SCHEMA, "kind": self.kind, "run": facts, "setup": self.setup, "rows": self.rows,
             "refused": []}
        )  # fmt: skip


def rows_of(kind: str, request: pytest.FixtureRequest, sweep: Sweep) -> Rows:
    """The rows of this run, made by the first test that asks.

    Raises:
        UsageError: rows of another kind were measured in this run: a file holds one kind.
    """
    config = request.config
    found = config.stash.get(_ROWS, None)
    if found is None:
        module = request.node.nodeid.partition("::")[0]
        expected = sum(item.nodeid.partition("::")[0] == module for item in request.session.items)
        found = config.stash[_ROWS] = Rows(kind, sweep, expected)
        config.pluginmanager.register(found, "structures-rows")
    if found.kind != kind:
        raise pytest.UsageError(f"one results file holds one kind of rows: run {kind} and {found.kind} apart")
    return found


def where(option: Any) -> dict[str, Any]:
    """Batch, dtype and device of a run, from the sweep's options.

    Raises:
        Wrong: a value that is not allowed.
    """
    device = one_of("--device", option.device or ("cuda" if torch.cuda.is_available() else "cpu"), ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise Wrong("--device: there is no CUDA device here. Allowed: cpu")
    dtype = one_of("--dtypes", option.dtypes or "float32", ("float32", "bfloat16"), "one of them")
    batch = BATCH if device == "cuda" or option.full else CPU_BATCH
    if option.tokens:
        if not option.tokens.isdigit() or not int(option.tokens) or int(option.tokens) % SEQUENCE:
            raise Wrong(f"--tokens: {option.tokens!r} is not allowed here; write one multiple of {SEQUENCE}")
        batch = int(option.tokens) // SEQUENCE
    return {"device": device, "dtype": dtype, "batch": batch, "sequence": SEQUENCE, "tokens": batch * SEQUENCE}


def params(points: Sequence[Any]) -> list[Any]:
    """Points with a `device`, as pytest's parameters: timed by the clock of their device."""
    return [
        pytest.param(p, id=str(p), marks=pytest.mark.benchmark(disable_gc=True, timer=clock_of(p.device)))
        for p in points
    ]


class Addmm(nn.Module):
    """A dense layer with its weight kept as (in_features, out_features), so that no operand is transposed."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, input.shape[-1])
        return torch.addmm(self.bias, flat, self.weight).reshape(*input.shape[:-1], self.weight.shape[1])


class Kinks(nn.Module):
    """A ReLU whose side of zero is the one seen in the last recorded call.

    Two roundings of a number next to zero may fall on different sides of it; the gradients then differ by a whole
    unit, whatever computed them. A check that replays the sides compares what the layers compute.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []
        self.recording = True
        self.rows: Tensor | None = None  # of the recorded call that a replay sees; None for its first ones
        self.at = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.recording:
            self.sides.append(x.detach() > 0)
            return torch.relu(x)
        side = self.sides[self.at]
        self.at += 1
        return x * (side[: x.shape[0]] if self.rows is None else side[self.rows])

    @contextmanager
    def replayed(self, rows: Tensor | None = None) -> Iterator[None]:
        """Inside, calls take the recorded sides of these rows, in order; without `rows` of the first ones."""
        self.recording, self.rows, self.at = False, rows, 0
        try:
            yield
        finally:
            self.recording = True


def state_bytes(module: nn.Module) -> int:
    """Bytes of a checkpoint: all tensors of the state_dict at their dtypes, shared storages once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in module.state_dict().values()}
    return sum(storages.values())


def saved_by(forward: Callable[[], object], parameters: Iterator[Tensor]) -> int:
    """Bytes that a forward keeps for its backward: storages counted once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    del y
    return sum(kept.values())
