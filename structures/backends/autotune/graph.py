"""Choices in a compiled graph, which serves any number of tokens and cannot time anything."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from structures.backends.autotune.programs import PLAIN, program_of
from structures.backends.autotune.record import NAME, Want, grad_text, want_of
from structures.backends.planned import function
from structures.structure import Structure

if TYPE_CHECKING:
    from structures.backends.autotune.keeper import Keeper

_programs = ModuleType("structures_autotuned")  # programs as attributes: a compiler can guard on such a place
_keepers: weakref.WeakValueDictionary[int, Keeper] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number_of(keeper: Keeper) -> int:
    """A new number under which a graph finds this keeper: a constant that a compiler can follow."""
    number = next(_numbers)
    _keepers[number] = keeper
    return number


def apply(
    number: int, structure: Structure, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None
) -> Tensor | None:
    """y (tokens, out_features) by the program tuned at most tokens, in the form that a compiler can follow."""
    want = want_of(x, factors, bias)
    name = _name(number, structure, x.dtype, x.device.type, bias is None, want)
    if name == "":
        return None
    if name in PLAIN:
        y: Tensor = PLAIN[name].apply(structure, x, factors, bias)
        return y
    program = getattr(_programs, name)
    if want is None or program.native:
        run = program.traced[0]
        return run(x, *factors, bias)[0]  # type: ignore[no-any-return]
    return function._planned(program, want, x, bias, *factors)


def _name(number: int, structure: Structure, dtype: torch.dtype, device: str, no_bias: bool, want: Want | None) -> str:
    """The name in `_programs`, or of a backend, of what was tuned at most tokens; empty where `auto` is to run.

    Raises:
        ValueError: nothing was tuned for these gradients, and the layer's backend asks for it.
    """
    keeper = _keepers[number]
    fitting = [key for key in keeper.records if key[1:] == (dtype, device, no_bias, want) and key.bits > 0]
    if not fitting:
        if keeper.tunes:
            raise ValueError(
                f"backend {NAME!r}: nothing can be timed while a graph is compiled, and nothing was tuned before for "
                f"{str(dtype).removeprefix('torch.')} on {device} with gradients of: {grad_text(want)}, at two tokens "
                "or more; call the layer once before, without the compiler, or structures.autotune(layer, x)"
            )
        return ""
    key = max(fitting, key=lambda key: key.bits)
    digest = keeper.records[key].chosen.digest
    if digest in PLAIN:
        return digest
    program = program_of(structure, key, digest)
    program.pure()
    name = f"plan_{digest}_{id(structure)}"
    setattr(_programs, name, program)
    return name


# What torch.compiler.assume_constant_result does, without importing the compiler (1.4 s) where nothing is compiled.
_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
