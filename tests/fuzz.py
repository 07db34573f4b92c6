"""Mutation fuzzers of the files that others may write: `python -m tests.fuzz [KIND ...] --minutes 60 --seed 1`.

A kind has good files and says what is done with a changed one. Other kinds are added to KINDS, each by one function
that makes it.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import structures
from bench.answers.compare import compare
from bench.files import journal, merge, merge_tables, rows, wholes
from bench.files.errors import UsageError
from bench.files.fields import BadResults
from bench.files.journal import Records
from bench.machine import setup
from bench.report.sweep import tables
from bench.sweep import launch, request
from bench.sweep.points import points
from bench.sweep.sweep import Sweep
from structures import registry
from structures.backends.planned import rates
from structures.models.saved import LAYERS, NUMBERS, load_swapped, save_swapped
from structures.spec import SpecError
from tests.support.made_up import dense, document, point, refusal
from tests.support.mutants import Kind, faults

ROOT = Path(__file__).parents[1]
ROOF = {"device": "cpu", "dtype": "float32", "threads": 1, "gemm_flops_per_s": 1e11, "copy_bytes_per_s": 1e10,
        "copy_bytes_per_s_by_size": [[1000, 1e10]], "seconds_per_step": 1e-6,
        "seconds_per_train_step": 1e-5}  # fmt: skip


def _registries() -> Kind:
    """Loading and binding: errors of an entry, with its place; what binds and is small runs as it is defined."""
    text = (ROOT / "registry.yaml").read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=[a-z_]+:)", text)[1:]
    many = "e:\n  einsum: x, x a, a b, b x -> x\n  sizes:\n    a: 2\n    b: 2\n"

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


def _of_bench(files: list[bytes], read: Callable[[Path], object]) -> Kind:
    """What `read` makes of a file that a command of the bench reads, where nobody commits meanwhile."""
    versions = setup.versions()  # read once

    def use(data: bytes, number: int, folder: Path) -> None:
        path = folder / "mutant.json"
        path.write_bytes(data)
        with mock.patch.multiple(setup, commit=lambda: {"commit": "0" * 40, "dirty": False}, versions=lambda: versions):
            read(path)

    return Kind(files, use, (BadResults, UsageError))


def _result() -> bytes:
    """A results file with all that one may have."""
    run = {"request": {"tokens": "128", "shard": "1/2"}, "argv": ["pytest", "bench", "--shard=1/2"],
           "resumed": [{"datetime": "2031", "argv": ["pytest"]}]}  # fmt: skip
    made = document(dense(), point(), point(tokens=1), refused=[refusal("btt", "no")], roofline=[ROOF], run=run,
                    rules={"dense": "all"})  # fmt: skip
    return json.dumps(made).encode()


def _results() -> Kind:
    """Read, compared with itself, and written as the tables of a report."""

    def read(path: Path) -> None:
        found = rows.read([path])
        compare(found, found, absolute=False)
        tables.write_points(found, path.with_name("points.csv"))
        tables.write_refused(found, path.with_name("refused.csv"))

    return _of_bench([_result()], read)


def _merged() -> Kind:
    """Merged with a good file; what is written can be read."""

    def read(path: Path) -> None:
        good, out = path.with_name("good.json"), path.with_name("out.json")
        good.write_text(json.dumps(document(point(tokens=8), run={"request": {"shard": "2/2"}})))
        merge.merge([path, good], out)
        rows.read([out])

    return _of_bench([_result()], read)


def _whole() -> dict[str, Any]:
    """Two rows of a committed file of whole modules."""
    made: dict[str, Any] = json.loads((ROOT / "bench/results/intel-xeon/ff.json").read_text())
    made["benchmarks"], made["structures"]["rows"] = made["benchmarks"][:2], made["structures"]["rows"][:2]
    return made


def _merged_modules() -> Kind:
    """Whole modules, merged; what is written can be read."""

    def read(path: Path) -> None:
        out = path.with_name("out.json")
        merge_tables.merge([path], out)
        wholes.check(merge_tables.parse("out", json.loads(out.read_text()), wholes.ROWS))

    return _of_bench([json.dumps(_whole()).encode()], read)


def _journal() -> Kind:
    """The journal of a sweep with an entry of each kind, gone on with."""
    options = {"structures": "dyad_it:n_blocks=2", "widths": "16", "tokens": "4"}

    def sweep() -> Sweep:
        asked = request.read(options, cuda=False, cores=1)
        made = Sweep(asked, setup.Threads(1, (0,), True, False), "plain", ["pytest"], asked=launch.asked(options))
        made.points, made.unreachable = points(made.request)
        made.selected = [str(p) for p in made.points]
        return made

    def begun(path: Path) -> None:
        of = sweep()
        first, second = map(str, of.points[:2])
        kept, _ = launch.journal_of(path, of, resume=False)
        kept.add([{"roofline": ROOF}, {"cell": [16, 16, 4, "float32"], "way": "linear"}])
        kept.add([{"row": point(), "id": first}, {"load": [0.5, 1.0]}])
        kept.add([{"refused": refusal("btt", "no"), "id": second}, {"resumed": {"datetime": "2031", "argv": []}}])
        kept.add([{"whole": _whole()["structures"]["rows"][0], "benchmark": {"name": "b"}, "id": "w"}])
        kept.close()

    def read(path: Path) -> None:
        path.rename(journal.of(path))
        opened, _ = launch.journal_of(path, sweep(), resume=True)
        opened.close()

    return _of_bench([_left(begun)], read)


def _records() -> Kind:
    """The journal of a command with two records, gone on with."""
    setup_of = {"search": {"seed": 1}}

    def begun(path: Path) -> None:
        kept = Records(path, setup_of)
        for name in "ab":
            kept.add("time", name, seconds=1.0)
        kept.close()

    def read(path: Path) -> None:
        path.rename(journal.of(path))
        Records(path, setup_of).close()

    return _of_bench([_left(begun)], read)


def _left(begun: Callable[[Path], None]) -> bytes:
    """The journal that is left of a run."""
    of_commit = mock.patch.object(setup, "commit", lambda: {"commit": "0" * 40, "dirty": False})
    with tempfile.TemporaryDirectory() as folder, of_commit:
        begun(Path(folder, "mutant.json"))
        return journal.of(Path(folder, "mutant.json")).read_bytes()


KINDS: dict[str, Callable[[], Kind]] = {
    "registry": _registries,
    "rates": _rates,
    "saved": _saved,
    "results": _results,
    "merged": _merged,
    "merged_modules": _merged_modules,
    "journal": _journal,
    "records": _records,
}


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
