"""Opt-in: the planner's first few programs, timed on this machine for the shapes that a layer really sees.

The planner ranks programs by predicted cost and runs the first. Here the first few, and the two backends without a
planner, are checked against the plain einsum in float64 and timed in turn; another one takes over only for a gain
beyond noise. What was chosen is data: it is copied and pickled with a layer, and kept in a file for the next process.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import sha256
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from structures.backends import bmm, einsum, kept_choices, planned
from structures.backends.planned import choose, emit, function, rates
from structures.backends.planned.program import Plan
from structures.backends.race import Clock, race
from structures.structure import Structure

NAME = "autotune"
FEW = 5  # of the planner's programs, cheapest first; beyond them the cheapest of a kind not among these
DEEP = 64  # programs among which a kept choice is looked for
ROWS = 8  # compared with the plain einsum in float64
TWICE, FLOOR = 2.0, 8  # errors of the plain einsum in the same dtype, and units in the last place on top
PLAIN = {"einsum": einsum, "bmm": bmm}
CLOCK: Clock = time.perf_counter

Key = tuple[Any, ...]  # tokens' power of two, dtype, device type, no bias, gradients wanted or None
Run = Callable[[Tensor, Sequence[Tensor], Tensor | None], Tensor]

_functorch_active = torch._C._are_functorch_transforms_active


def refuses(structure: Structure, x: Tensor) -> str | None:
    """Why there is nothing to choose from, as a sentence."""
    if getattr(structure, "gate", None) is not None:
        return f"{structure.name} has a gate; backends that run experts choose by the number of tokens"
    if x.device.type == "meta":
        return "x is on the meta device: there is nothing to time"
    return planned.refuses(structure, x)


def executed_flops(structure: Structure, tokens: int = 1, *, train: bool = False) -> int:
    """Those of the planner's own choice; a layer's record tells what was chosen in its place."""
    return planned.executed_flops(structure, tokens, train=train)


def apply(structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """y (tokens, out_features), by a choice looked up or made for this call: a layer keeps it instead."""
    y = Keeper(tunes=True)(structure, x, factors, bias)
    return planned.apply(structure, x, factors, bias) if y is None else y


@dataclass(frozen=True)
class Timing:
    """One program: what it does, the planner's prediction and what was measured, in seconds a call."""

    name: str
    digest: str  # of the emitted source: the program is found again by it
    predicted: float | None
    median: float | None  # None where it was not timed
    q1: float | None = None
    q3: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Record:
    """What was timed for one shape, and what runs from now on; print it.

    Args:
        grad: "none", or which gradients: x, bias and factors.
        timings: the default first.
        again: medians of default and challenger in the second loop, where there was one.
        when: the date; kept: it comes from the file of an earlier run.
    """

    what: str
    tokens: int
    dtype: str
    device: str
    threads: int
    grad: str
    timings: tuple[Timing, ...]
    winner: int
    reason: str
    again: tuple[float, float] | None
    when: str
    kept: bool = False

    @property
    def chosen(self) -> Timing:
        """The program that runs."""
        return self.timings[self.winner]

    def __str__(self) -> str:
        origin = f"kept from {self.when}" if self.kept else f"timed {self.when}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        lines = [
            f"{self.what}, {self.tokens} tokens, {self.dtype} on {self.device}, {threads}, gradients: {self.grad}",
            f"{origin}: {self.reason}",
        ]
        for number, timing in enumerate(self.timings):
            mark = ">" if number == self.winner else " "
            told = f"{_us(timing.predicted)} predicted" if timing.predicted else ""
            lines.append(f"{mark} {_spread(timing):30} {told:>20}  {timing.name}")
        return "\n".join(lines)


@dataclass(eq=False)
class Keeper:
    """The choices of one layer by shape. Records are data; programs are found again from them.

    Args:
        tunes: a shape without a choice is tuned when it is first seen; else it is left to `auto`.
    """

    tunes: bool = False
    records: dict[Key, Record] = field(default_factory=dict)
    ran: str = NAME
    number: int = field(default_factory=itertools.count().__next__)
    _runs: dict[Key, Run] = field(default_factory=dict)

    bytes = 0  # nothing is held beside the factors

    def __post_init__(self) -> None:
        _keepers[self.number] = self

    def __call__(
        self,
        structure: Structure,
        x: Tensor,
        factors: Sequence[Tensor],
        bias: Tensor | None,
        *,
        own: Sequence[Tensor] = (),
        training: bool = False,
    ) -> Tensor | None:
        """y (tokens, out_features); None where this shape has no choice and none is to be made.

        Raises:
            ValueError: it refuses, or a graph is compiled of a layer for which nothing was tuned.
        """
        if torch.compiler.is_compiling():
            return self._traced(structure, x, factors, bias)
        if self.tunes and (reason := refuses(structure, x)) is not None:
            raise ValueError(f"backend {NAME!r}: {reason}")
        if _functorch_active() or forward_ad._current_level >= 0:
            return None  # a transform sees the planner's pure form
        key = key_of(x, factors, bias)
        run = self._runs.get(key)
        if run is None:
            if key not in self.records and not self.tunes:
                return None
            run = self._found(structure, key, x, factors, bias)
        return run(x, factors, bias)

    def release(self) -> None:
        """Training keeps choices."""

    def set(self, structure: Structure, key: Key, record: Record) -> None:
        """Use what a record chose for its shape from now on.

        Raises:
            LookupError: the planner does not offer that program any more.
        """
        self._runs[key] = _run_of(structure, key, record.chosen)
        self.records[key] = record
        _known.setdefault(structure, {})[key, record.threads] = record

    def plan(
        self, structure: Structure, tokens: int, *, dtype: torch.dtype, device: str, bias: bool, grad: bool
    ) -> Plan | None:
        """The planner's program chosen for a shape; None where nothing was, or another backend was."""
        want = (True, bias, *(True,) * len(structure.factors)) if grad else None
        key: Key = ((tokens - 1).bit_length(), dtype, device, not bias, want)
        record = self.records.get(key)
        if record is None or record.chosen.digest in PLAIN:
            return None
        return _program(structure, key, record.chosen.digest).plan

    def _found(self, structure: Structure, key: Key, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Run:
        """The run of a shape seen first: from the layer's record, another layer's, the file, or tuned now."""
        threads = torch.get_num_threads()
        for record in (self.records.get(key), _known.get(structure, {}).get((key, threads)), _kept(structure, key)):
            if record is not None:
                try:
                    self.set(structure, key, record)
                except LookupError:
                    continue  # the planner has changed since
                return self._runs[key]
        self.set(structure, key, tune(structure, x, factors, bias, key))
        return self._runs[key]

    def _traced(self, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
        """The program tuned at most tokens, in the form that a compiler can follow: a graph serves any number."""
        want = _want(x, factors, bias)
        name = _traced_name(self.number, structure, x.dtype, x.device.type, bias is None, want)
        if name == "":
            return None
        if name == "einsum":
            return einsum.apply(structure, x, factors, bias)
        if name == "bmm":
            return bmm.apply(structure, x, factors, bias)
        program = getattr(_programs, name)
        if want is None or program.native:
            run = program.traced[0]
            return run(x, *factors, bias)[0]  # type: ignore[no-any-return]
        return function._planned(program, want, x, bias, *factors)

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        return Keeper(self.tunes, dict(self.records))

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, (self.tunes, dict(self.records))


def key_of(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Key:
    """What a choice is made for."""
    return (x.shape[0] - 1).bit_length(), x.dtype, x.device.type, bias is None, _want(x, factors, bias)


def _want(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> tuple[bool, ...] | None:
    if not torch.is_grad_enabled():
        return None
    want = (x.requires_grad, bias is not None and bias.requires_grad, *[f.requires_grad for f in factors])
    return want if True in want else None


# -- tuning


def tune(
    structure: Structure,
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    key: Key,
    clock: Clock | None = None,
) -> Record:
    """Time the programs for this input and keep the record in the file.

    Raises:
        ValueError: there is nothing to time: no tokens, the meta device, fake tensors, or a CUDA graph is captured.
        RuntimeError: the planner's own choice computes something else than the plain einsum.
    """
    check_can_time(x)
    want = key[4]
    x, factors = x.detach(), [f.detach() for f in factors]
    bias = None if bias is None else bias.detach()
    generator = torch.Generator().manual_seed(0)  # the user's random numbers stay as they are
    dy = torch.randn(x.shape[0], structure.out_features, generator=generator).to(x.device, x.dtype)
    with torch.autocast(x.device.type, enabled=False), torch.inference_mode(False):
        operands = _leaves(x, factors, bias, want)
        timings, steps, failed = [], [], []
        expected = _expected(structure, operands, dy, want)
        for timing in _offered(structure, key):
            run = _run_of(structure, key, timing)
            worse = _worse(_results(run, operands, dy, want), expected, x.dtype)
            if worse is None:
                timings.append(timing)
                steps.append(_step(run, operands, dy, want))
            elif not timings:
                raise RuntimeError(f"{structure.name}: the planner's program {timing.name} is wrong: {worse}")
            else:
                failed.append(replace(timing, note=worse))
        with torch.set_grad_enabled(want is not None):
            outcome = race(steps, clock or clock_of(x.device.type))
    timed = [replace(t, median=o.median, q1=o.q1, q3=o.q3) for t, o in zip(timings, outcome.times, strict=True)]
    record = Record(
        what=_what(structure),
        tokens=x.shape[0],
        dtype=str(x.dtype).removeprefix("torch."),
        device=x.device.type,
        threads=torch.get_num_threads(),
        grad=grad_text(want),
        timings=(*timed, *failed),
        winner=outcome.winner,
        reason=outcome.reason,
        again=outcome.again and (outcome.again[0].median, outcome.again[1].median),
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    kept_choices.write(_file_key(structure, key), asdict(record))
    return record


def check_can_time(x: Tensor) -> None:
    """Raises ValueError where calls on x cannot be timed."""
    reason = None
    if type(x) not in (Tensor, torch.nn.Parameter):
        reason = f"a {type(x).__name__} has nothing to time"
    elif x.device.type == "meta":
        reason = "x is on the meta device: there is nothing to time"
    elif x.shape[0] == 0:
        reason = "x has no tokens: there is nothing to time"
    elif x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        reason = "nothing can be timed while a CUDA graph is captured; run the layer once before"
    if reason is not None:
        raise ValueError(f"backend {NAME!r}: {reason}")


def clock_of(device: str) -> Clock:
    """The host's clock; on CUDA read once everything queued has finished."""
    if device != "cuda":
        return CLOCK

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def _offered(structure: Structure, key: Key) -> list[Timing]:
    """The planner's first few different programs, the first of every other kind, and the backends without a planner."""
    found: dict[str, Timing] = {}
    kinds: set[tuple[bool, bool]] = set()
    for plan in _plans(structure, key, torch.get_num_threads())[:DEEP]:
        kind = plan.native, plan.chunk > 0
        if len(found) >= FEW and kind in kinds:
            continue
        digest = _digest(plan)
        if digest not in found:
            kinds.add(kind)
            found[digest] = Timing(_summary(plan), digest, plan.seconds, None)
    plain = [Timing(f"backend {name}", name, None, None) for name in PLAIN]
    return [*found.values(), *plain]


@lru_cache(maxsize=16)
def _plans(structure: Structure, key: Key, threads: int) -> list[Plan]:
    """The planner's programs for a key, cheapest first."""
    bits, dtype, device, no_bias, want = key
    setting = function.setting(dtype, device, not no_bias, want)
    return choose.candidates(structure, 1 << bits, setting, rates.of(setting.dtype, setting.threads, setting.device))


@lru_cache(maxsize=1024)
def _program(structure: Structure, key: Key, digest: str) -> function.Program:
    for plan in _plans(structure, key, torch.get_num_threads())[:DEEP]:
        if _digest(plan) == digest:
            return function.Program(plan)
    raise LookupError(f"{structure.name}: the planner offers no program {digest} for this shape")


def _run_of(structure: Structure, key: Key, timing: Timing) -> Run:
    """What runs a program.

    Raises:
        LookupError: the planner offers no such program.
    """
    if timing.digest in PLAIN:
        backend = PLAIN[timing.digest]
        return lambda x, factors, bias: backend.apply(structure, x, factors, bias)
    program, want = _program(structure, key, timing.digest), key[4]
    return lambda x, factors, bias: program.run(want, x, factors, bias)


def _digest(plan: Plan) -> str:
    """The emitted source, shortened: what tells programs apart, in every process."""
    sources = [emit.forward_source(plan, pure=plan.native)]
    if plan.backward:
        sources.append(emit.backward_source(plan, pure=False))
    text = "\n".join([str(plan.native), *(source.text for source in sources), *map(str, sources[0].tables)])
    return sha256(text.encode()).hexdigest()[:16]


def _summary(plan: Plan) -> str:
    words = [type(op).__name__.lower() for op in plan.forward]
    back = [type(op).__name__.lower() for op in plan.backward]
    chunk = f", {plan.chunk} tokens at a time" if plan.chunk else ""
    ending = ", gradients by autograd" if plan.native else f"; backward {' '.join(back)}" if back else ""
    return " ".join(words) + chunk + ending


# -- results, compared with the plain einsum in float64


Operands = tuple[Tensor, list[Tensor], Tensor | None]


def _leaves(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, want: tuple[bool, ...] | None) -> Operands:
    """The same numbers as leaves that ask for the gradients wanted."""
    flags = want or (False,) * (2 + len(factors))

    def leaf(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor.detach().requires_grad_(wanted)

    own = [leaf(factor, wanted) for factor, wanted in zip(factors, flags[2:], strict=True)]
    return leaf(x, flags[0]), own, None if bias is None else leaf(bias, flags[1])


def _results(run: Run, operands: Operands, dy: Tensor, want: tuple[bool, ...] | None) -> list[Tensor]:
    """y and the gradients of x in the rows looked at, and of factors and bias with dy zero in all other rows."""
    x, factors, bias = operands
    rows = _rows(x.shape[0], x.device)
    with torch.set_grad_enabled(want is not None):
        y = run(x, factors, bias)
        found = [y.detach()[rows]]
        if want is not None:
            masked = torch.zeros_like(dy)
            masked[rows] = dy[rows]
            wanted = [t for t in (x, *factors, bias) if t is not None and t.requires_grad]
            gradients = torch.autograd.grad(y, wanted, masked)
            found += [g[rows] if t is x else g for t, g in zip(wanted, gradients, strict=True)]
    return found


def _expected(
    structure: Structure, operands: Operands, dy: Tensor, want: tuple[bool, ...] | None
) -> list[tuple[Tensor, float]]:
    """Each result of the plain einsum in float64 on the rows looked at, and its error in the dtype that is timed."""
    x, factors, bias = operands
    rows = _rows(x.shape[0], x.device)

    def by(dtype: torch.dtype) -> list[Tensor]:
        own = _leaves(x[rows].to(dtype), [f.to(dtype) for f in factors], None if bias is None else bias.to(dtype), want)
        return _results(lambda x, f, b: einsum.apply(structure, x, f, b), own, dy[rows].to(dtype), want)

    exact, usual = by(torch.float64), by(x.dtype)
    return [(e, _error(u, e)) for u, e in zip(usual, exact, strict=True)]


def _worse(found: list[Tensor], expected: list[tuple[Tensor, float]], dtype: torch.dtype) -> str | None:
    """What is further from float64 than the plain einsum explains; None where nothing is."""
    for number, (tensor, (exact, usual)) in enumerate(zip(found, expected, strict=True)):
        error = _error(tensor, exact)
        if not error <= TWICE * usual + FLOOR * torch.finfo(dtype).eps:  # also for NaN
            return f"result {number} is off by {error:.2g} of its largest number, the plain einsum by {usual:.2g}"
    return None


def _error(found: Tensor, exact: Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    scale = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - exact).abs().max() / scale)


def _rows(tokens: int, device: torch.device) -> Tensor:
    count = min(tokens, ROWS)
    return torch.tensor([i * (tokens - 1) // max(1, count - 1) for i in range(count)], device=device)


def _step(run: Run, operands: Operands, dy: Tensor, want: tuple[bool, ...] | None) -> Callable[[], object]:
    x, factors, bias = operands
    if want is None:
        return lambda: run(x, factors, bias)
    wanted = [t for t in (x, *factors, bias) if t is not None and t.requires_grad]
    return lambda: torch.autograd.grad(run(x, factors, bias), wanted, dy)


# -- kept choices


_known: dict[Structure, dict[tuple[Key, int], Record]] = {}  # of this process, for layers alike


def forget() -> None:
    """Drop what other layers of this process chose; their files and the layers' own records stay."""
    _known.clear()
    _plans.cache_clear()
    _program.cache_clear()


def _kept(structure: Structure, key: Key) -> Record | None:
    found = kept_choices.read(_file_key(structure, key))
    if found is None:
        return None
    try:
        timings = tuple(Timing(**timing) for timing in found["timings"])
        again = found["again"] and tuple(found["again"])
        record = Record(**{**found, "timings": timings, "again": again, "kept": True})
        record.chosen.digest.encode()
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    return record


def _file_key(structure: Structure, key: Key) -> str:
    bits, dtype, device, no_bias, want = key
    name = str(dtype).removeprefix("torch.")
    # of the definition too: another entry of the same name is another structure
    meaning = sha256(repr((structure.terms, structure.factor_shapes)).encode()).hexdigest()[:16]
    what = f"{_what(structure)} {meaning}, to {1 << bits} tokens, bias {not no_bias}, gradients {grad_text(want)}"
    return kept_choices.key(name, torch.get_num_threads(), device, what)


def _what(structure: Structure) -> str:
    options = ", ".join(f"{name}={value}" for name, value in structure.options)
    return f"{structure.name}({structure.in_features}, {structure.out_features}{', ' if options else ''}{options})"


def grad_text(want: tuple[bool, ...] | None) -> str:
    """Which gradients are wanted, in words."""
    if want is None:
        return "none"
    names = ["x", "bias", *(f"factor_{i}" for i in range(len(want) - 2))]
    return " ".join(name for name, wanted in zip(names, want, strict=True) if wanted)


def _us(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f} us"


def _spread(timing: Timing) -> str:
    if timing.median is None:
        return timing.note or "not timed"
    return f"{_us(timing.median)} ({(timing.q1 or 0) * 1e6:.1f} to {(timing.q3 or 0) * 1e6:.1f})"


# -- in a compiled graph

# Programs as attributes of a module: a compiler can guard on such a place.
_programs = ModuleType("structures_autotuned")
_keepers: weakref.WeakValueDictionary[int, Keeper] = weakref.WeakValueDictionary()


def _traced_name(
    number: int, structure: Structure, dtype: torch.dtype, device: str, no_bias: bool, want: tuple[bool, ...] | None
) -> str:
    """The name in `_programs`, or of a backend, of what was tuned at most tokens; empty where `auto` is to run.

    Raises:
        ValueError: nothing was tuned for these gradients, and the layer's backend asks for it.
    """
    keeper = _keepers[number]
    fitting = [key for key in keeper.records if key[1:] == (dtype, device, no_bias, want) and key[0] > 0]
    if not fitting:
        if keeper.tunes:
            raise ValueError(
                f"backend {NAME!r}: nothing can be timed while a graph is compiled, and nothing was tuned before for "
                f"{str(dtype).removeprefix('torch.')} on {device} with gradients of: {grad_text(want)}, at two tokens "
                "or more; call the layer once before, without the compiler, or structures.autotune(layer, x)"
            )
        return ""
    key = max(fitting, key=lambda key: int(key[0]))
    digest = keeper.records[key].chosen.digest
    if digest in PLAIN:
        return digest
    program = _program(structure, key, digest)
    program.pure()
    name = f"plan_{digest}_{id(structure)}"
    setattr(_programs, name, program)
    return name


# What torch.compiler.assume_constant_result does, without importing the compiler (1.4 s) where nothing is compiled.
_traced_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
