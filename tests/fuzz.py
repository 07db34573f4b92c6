"""Mutation fuzzers of the files that others may write: `python -m tests.fuzz [KIND ...] --minutes 60 --seed 1`.

A kind has good files and says what is done with a changed one. A fault is an error that is none of the kind's own, or
anything that its `use` finds wrong. Other kinds are added to KINDS, each by one function that makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import structures
from structures import registry
from structures.backends.planned import rates
from structures.models.saved import LAYERS, NUMBERS, load_swapped, save_swapped
from structures.spec import SpecError

ODD = [
    "0", "-1", "1e999", "-0.0", "1" + "0" * 400, "NaN", "Infinity", "null", "true", "[]", "{}", '""', '"\\ud800"',
    '"a"', "1.5", str(2**53), str(2**63), "[" * 800 + "]" * 800, "[" * 90000, '{"a": 1}', "[1, 2]", "~", "%", "**",
    "^ 3", "//", ";", "->", ", ", "t", "[t+1]", "[:]", "(", ")", "hadamard(x z)", "permutation.3(x z)", "min(",
    "split(in_features, 2)", "\u0000", "\ufb01", "\u0663", "in_features", "out_features", "\n", "  ", ":", "#",
    "&a", "*a", "!!python/object:os.system", "1e308", "2**28",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file: good ones, what is done with a changed one in a folder, and the errors that are right."""

    files: list[bytes]
    use: Callable[[bytes, int, Path], None]  # what a mutant is, of which file, and an empty folder
    right: tuple[type[Exception], ...]


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: of bytes, of words, and of lines."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice((_bytes, _words, _words, _words, _lines, _cut))(data, rng)
    return data


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _words(data: bytes, rng: random.Random) -> bytes:
    """A word, number or sign becomes an odd one, another one of the file, or goes."""
    found = list(re.finditer(rb"[A-Za-z_]+|-?[0-9.]+(?:e-?[0-9]+)?|[^\sA-Za-z0-9]", data[: 2**16]))
    if not found:
        return data
    at, other = rng.choice(found), rng.choice(found)
    new = rng.choice((rng.choice(ODD).encode(), other.group(), b"", at.group() * 2))
    return data[: at.start()] + new + data[at.end() :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines[one], lines[two] = lines[two], lines[one]
    else:
        lines.insert(one, lines[two])
    return b"\n".join(lines)


def _cut(data: bytes, rng: random.Random) -> bytes:
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:low], data[:low] + data[high:], data[:low] + data[low:high] * 2 + data[high:]))


def faults(kind: Kind, rng: random.Random) -> Iterator[str | None]:
    """For each mutant None, or what went wrong with it."""
    while True:
        number = rng.randrange(len(kind.files))
        data = mutant(kind.files[number], rng)
        with tempfile.TemporaryDirectory() as folder:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    kind.use(data, number, Path(folder))
            except kind.right:
                yield None
            except Exception:
                yield f"{traceback.format_exc(limit=-4)}of file {number}: {data[:4000]!r}"
            else:
                yield None


# -- the kinds


def _registries() -> Kind:
    """Loading and binding: errors of an entry, with its place; what binds and is small runs as it is defined."""
    text = (Path(__file__).parents[1] / "registry.yaml").read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=[a-z_]+:)", text)[1:]
    many = "e:\n  sizes:\n    r: 2\n  einsum: " + "x, " + ", ".join(f"x a{k}" for k in range(3)) + " -> x\n"

    def use(data: bytes, number: int, folder: Path) -> None:
        (folder / "mine.yaml").write_bytes(data)
        for spec in registry.read(folder / "mine.yaml").values():
            for widths in ((16, 16), (24, 36), (64, 48)):
                try:
                    found = spec.bind(*widths)
                except SpecError:
                    continue
                if found.params <= 2**12 and found.flops() < 2**16 and found.in_features < 2**10:
                    layer = structures.StructuredLinear(spec, *widths, bias=False, backend="einsum", init="linear")
                    x = torch.randn(2, widths[0])
                    if found.gate is None:
                        torch.testing.assert_close(layer(x), x @ layer.to_dense().t(), rtol=1e-3, atol=1e-3)

    return Kind([entry.encode() for entry in [*entries, many]], use, (SpecError,))


def _rates() -> Kind:
    """The user's cache of rates: whatever is in it, there are figures to plan with, finite and positive."""
    key = rates.machine("float32", 1)
    good = {"version": rates.VERSION, "machine": key, "figures": rates.parts(rates.of("float32", 1))}

    def use(data: bytes, number: int, folder: Path) -> None:
        before = os.environ.get(rates.VARIABLE)
        os.environ[rates.VARIABLE] = str(folder)
        try:
            rates.path(key).write_bytes(data)
            figures = rates.parts(rates.of("float32", 1))
        finally:
            os.environ.pop(rates.VARIABLE)
            if before is not None:
                os.environ[rates.VARIABLE] = before
        for value in figures.values():
            curve = value if isinstance(value, tuple) else ((1, 1.0),)
            assert isinstance(value, tuple) or 0 <= value < 1
            assert curve and all(size >= 1 and 0 < rate < 1e15 for size, rate in curve)

    return Kind([json.dumps(good, indent=1).encode()], use, ())


def _saved() -> Kind:
    """A saved model, of which one file was changed: it is loaded, or the model stays what it was."""

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.LayerNorm(6)
        )

    swapped = model()
    structures.swap(swapped, {"0": ("monarch", {"n_blocks": 2}), "2": "low_rank"}, skip=())
    names = LAYERS, NUMBERS
    with tempfile.TemporaryDirectory() as whole:
        save_swapped(swapped, whole)
        files = [(Path(whole) / name).read_bytes() for name in names]

    def use(data: bytes, number: int, folder: Path) -> None:
        for name, content in zip(names, files, strict=True):
            (folder / name).write_bytes(content)
        (folder / names[number]).write_bytes(data)
        fresh = model()
        held, before = list(fresh), {name: p.clone() for name, p in fresh.state_dict().items()}
        try:
            load_swapped(fresh, folder)
        except ValueError:
            assert list(fresh) == held and all(torch.equal(p, before[name]) for name, p in fresh.state_dict().items())
            raise

    return Kind(files, use, (ValueError,))


KINDS: dict[str, Callable[[], Kind]] = {"registry": _registries, "rates": _rates, "saved": _saved}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all unless given")
    parser.add_argument("--minutes", type=float, default=1, help="of each kind")
    parser.add_argument("--count", type=int, help="of mutants of each kind, in place of a time")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    given: Any = parser.parse_args(words)
    fell = 0
    for name in given.kinds or KINDS:
        rng, began, done, slowest = random.Random(f"{name} {given.seed}"), time.monotonic(), 0, 0.0
        several, last = faults(KINDS[name](), rng), began
        while done < given.count if given.count else last - began < 60 * given.minutes:
            fault = next(several)
            done, now = done + 1, time.monotonic()
            slowest, last = max(slowest, now - last), now
            if fault is not None:
                fell += 1
                print(f"{name}, seed {given.seed}, mutant {done}: {fault}\n", flush=True)
        print(
            f"{name}: {done} mutants of seed {given.seed}, {fell} faults so far, the slowest {slowest:.1f} s",
            flush=True,
        )
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
