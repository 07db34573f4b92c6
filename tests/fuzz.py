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
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

import structures
from bench.answers import conversions
from bench.answers.compare import compare
from bench.files import journal, kinds, merge, merge_tables, rows, training_rows, wholes
from bench.files.errors import UsageError
from bench.files.fields import Fields
from bench.files.journal import Records
from bench.files.rounding import rounded
from bench.files.run import RunRecord
from bench.machine import setup
from bench.minilm import run as encoder_run
from bench.report.others import search
from bench.report.sweep import tables
from bench.search import quality, records
from bench.search import request as searched
from bench.search import run as search_run
from bench.search.candidates import all_candidates, chosen
from bench.sweep import launch, request
from bench.sweep.points import points
from bench.sweep.sweep import Sweep
from bench.training import rows as training
from structures import registry
from structures.backends.planned import rates
from structures.models.saved import LAYERS, NUMBERS, load_swapped, save_swapped
from structures.reading import BadFile
from structures.spec import SpecError
from tests.support.made_up import dense, document, point, refusal
from tests.support.mutants import Kind, faults

T = TypeVar("T")
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

    return Kind(files, use, (BadFile, UsageError))


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


SPREAD = {"median": 2.0, "q1": 1.5, "q3": 2.5, "rounds": 5}
WIDTHS = {"in_features": 16, "out_features": 16, "tokens": 4, "params": "0.25-0.75", "candidates": 3, "finalists": 2}


def _search() -> Kind:
    """The journal of a search through all its stages, gone on with as far as it goes in no time; its file is drawn."""
    none = dict.fromkeys(("flops", "omega", "memory", "time", "weight", "key", "inputs"))
    asked = searched.read({**none, **WIDTHS, "rank": 0.0, "mode": "forward", "dtype": "float32", "seed": 0,
                           "quality": "projection"})  # fmt: skip
    met, rejected = all_candidates(asked)
    named = [candidate.name for candidate in chosen(met, asked)]
    places = search_run.taxonomy_points(asked)
    header = {"search": asdict(asked)}
    time_of = {"speedup": SPREAD, "seconds": 1.0, "backend": "einsum", "error": 1e-7}

    def begun(path: Path) -> None:
        kept = Records(path, header, records.KINDS)
        for name in named[1:]:
            kept.add(records.TIME, name, **time_of)
            for number in range(len(quality.RUNGS["projection"])):
                kept.add(records.rung(number), name, value=0.5)
            kept.add(records.FINAL, name, **time_of)
        kept.add(records.TIME, named[0], refused="no")
        kept.close()

    def read(path: Path) -> None:
        path.rename(journal.of(path))
        kept, out = Records(path, header, records.KINDS), path.with_name("out.json")
        try:
            with mock.patch.multiple(search_run, all_candidates=lambda asked: (met, rejected.copy()),
                                     taxonomy_points=lambda asked: places):  # fmt: skip
                search_run.Search(asked, _run(kinds.SEARCH, out), kept, seconds=0).search()
        finally:
            kept.close()
        document = json.loads(out.read_text())
        if document["structures"]["rows"]:
            search.section(_sound(kinds.parse, "out", document, (kinds.SEARCH,)))

    return _of_bench([_left(begun)], read)


def _encoder() -> Kind:
    """The journal of an encoder's conversions; what it holds makes rows that can be read."""
    fit = {"structure": "monarch", "way": "plain", "budget": "params=0.5", "options": {"8x8": {"n_blocks": 2}},
           "weight_error": 0.5, "output_error": 0.5, "projection_seconds": 0.1, "sweeps": 3, "methods": ["svd"],
           "optimal": True, "limited": False, "cosine": 0.9, "neighbour": 0.5, "feed_forward_params": 100,
           "feed_forward_share": 0.5, "params": 1000, "params_share": 0.9}  # fmt: skip
    taken = {"speedup": SPREAD, "seconds_per_sentence": 1e-3, "flags": ["noisy"]}

    def begun(path: Path) -> None:
        kept = Records(path, {}, encoder_run.KINDS)
        kept.add(encoder_run.FITS, "monarch 0.5 plain", row=fit)
        kept.add(encoder_run.FITS, "monarch 0.5 aware", refused="slow")
        kept.add(encoder_run.TIMES, "monarch", **taken)
        kept.close()

    def read(path: Path) -> None:
        path.rename(journal.of(path))
        kept = Records(path, {}, encoder_run.KINDS)
        kept.close()
        several = {stage: [one for (own, _), one in kept.found.items() if own == stage] for stage in encoder_run.KINDS}
        for row in (one["row"] for one in several[encoder_run.FITS] if "row" in one):
            for its_time in several[encoder_run.TIMES]:
                found = rounded([row | its_time])
                conversions.read(_sound(Fields, "out", json.loads(json.dumps(found, allow_nan=False))[0]))

    return _of_bench([_left(begun)], read)


def _training() -> Kind:
    """The file of a training run, taken up, and the journal of another; what is written of it can be read."""
    made = json.loads((ROOT / "bench/results/epyc-zen4/training.json").read_text())
    section = made["structures"]
    rows_of = {phase: [r for r in section["rows"] if r["phase"] == phase][:1] for phase in ("train", "time")}
    left = section["refused"][:1]
    section |= {"rows": [*rows_of["train"], *rows_of["time"]], "refused": left}
    now = section["rows"][0]["versions"]

    def begun(path: Path) -> None:
        kept = journal.start(path, {"kind": kinds.TRAINING, "setup": section["setup"]})
        kept.add([{"row": row} for row in section["rows"]])
        kept.add([{"refused": row} for row in left])
        kept.close()

    def read(path: Path) -> None:
        if path.read_bytes().count(b"\n") > 1:
            path.rename(journal.of(path))
        found = training.take_up(path, now)
        settings, data = found.setup.settings or {}, found.setup.data or {}
        of = {"setup": {"settings": dict(settings), "data": dict(data)}, "rows": [*found.rows.values()]}
        document = json.loads(json.dumps({"structures": {**section, **of, "refused": found.beside(["x"])}}))
        if found.rows:
            file = _sound(kinds.parse, "out", document, (kinds.TRAINING,))
            for row in file.rows:
                training_rows.read([row])

    return _of_bench([json.dumps(made).encode(), _left(begun)], read)


def _run(kind: str, output: Path) -> RunRecord:
    return RunRecord(kind, output, ["test"], setup.Threads(1, (0,), True, False), "plain")


def _sound(read: Callable[..., T], *given: Any) -> T:
    """What is made of something that was written here: that it cannot be read is a fault."""
    try:
        return read(*given)
    except BadFile as error:
        raise AssertionError(f"it was written, and cannot be read: {error}") from error


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
    "search": _search,
    "encoder": _encoder,
    "training": _training,
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
