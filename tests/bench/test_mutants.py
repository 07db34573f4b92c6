"""Damaged results and journals are read or refused with one sentence; no mutant ends in another error.

`python tests/bench/test_mutants.py COUNT SEED [KIND ...]` tries so many, for longer than the suite has time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from made_up import dense, document, point, refusal
from mutants import FuzzedKind, fallen

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

ROOT = Path(__file__).parents[2]
ROOF = {"device": "cpu", "dtype": "float32", "threads": 1, "gemm_flops_per_s": 1e11, "copy_bytes_per_s": 1e10,
        "copy_bytes_per_s_by_size": [[1000, 1e10]], "seconds_per_step": 1e-6,
        "seconds_per_train_step": 1e-5}  # fmt: skip
RUN = {"request": {"tokens": "128", "shard": "1/2"}, "argv": ["pytest", "bench", "--shard=1/2"],
       "resumed": [{"datetime": "2031", "argv": ["pytest"]}]}  # fmt: skip
BAD = (BadResults, UsageError)


def results() -> bytes:
    """A results file with all that one may have."""
    made = document(dense(), point(), point(tokens=1), refused=[refusal("btt", "no")], roofline=[ROOF], run=RUN,
                    rules={"dense": "all"})  # fmt: skip
    return json.dumps(made).encode()


def read_results(path: Path) -> None:
    found = rows.read([path])
    compare(found, found, absolute=False)
    tables.write_points(found, path.with_name("points.csv"))
    tables.write_refused(found, path.with_name("refused.csv"))


def merged(path: Path) -> None:
    """Merge the mutant with a good file; what is written can be read."""
    good, out = path.with_name("good.json"), path.with_name("out.json")
    good.write_text(json.dumps(document(point(tokens=8), run={"request": {"shard": "2/2"}})))
    merge.merge([path, good], out)
    rows.read([out])


def modules() -> bytes:
    """Two rows of a committed file of whole modules."""
    made = json.loads((ROOT / "bench/results/intel-xeon/ff.json").read_text())
    made["benchmarks"], made["structures"]["rows"] = made["benchmarks"][:2], made["structures"]["rows"][:2]
    return json.dumps(made).encode()


def merged_modules(path: Path) -> None:
    out = path.with_name("out.json")
    merge_tables.merge([path], out)
    wholes.check(merge_tables.parse("out", json.loads(out.read_text()), wholes.ROWS))


def sweep() -> Sweep:
    """A sweep of one shape."""
    options = {"structures": "dyad_it:n_blocks=2", "widths": "16", "tokens": "4"}
    asked = request.read(options, cuda=False, cores=1)
    made = Sweep(asked, setup.Threads(1, (0,), True, False), "plain", ["pytest"], asked=launch.asked(options))
    made.points, made.unreachable = points(made.request)
    made.selected = [str(p) for p in made.points]
    return made


def begun() -> bytes:
    """The journal of a sweep with an entry of each kind."""
    of = sweep()
    first, second = map(str, of.points[:2])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "mutant.json")
        kept, _ = launch.journal_of(output, of, resume=False)
        whole = json.loads(modules())["structures"]["rows"][0]
        kept.add([{"roofline": ROOF}, {"cell": [16, 16, 4, "float32"], "way": "linear"}])
        kept.add([{"row": point(), "id": first}, {"load": [0.5, 1.0]}])
        kept.add([{"refused": refusal("btt", "no"), "id": second}, {"resumed": {"datetime": "2031", "argv": []}}])
        kept.add([{"whole": whole, "benchmark": {"name": "b"}, "id": "w"}])
        kept.close()
        return journal.of(output).read_bytes()


def resumed(path: Path) -> None:
    path.rename(journal.of(path))
    opened, _ = launch.journal_of(path, sweep(), resume=True)
    opened.close()


def records() -> bytes:
    """The journal of a command with two records."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Records(Path(folder, "mutant.json"), {"search": {"seed": 1}})
        for name in "ab":
            kept.add("time", name, seconds=1.0)
        kept.close()
        return kept.path.read_bytes()


def read_records(path: Path) -> None:
    path.rename(journal.of(path))
    Records(path, {"search": {"seed": 1}}).close()


KINDS = {
    "results": FuzzedKind(results, read_results, BAD),
    "merged results": FuzzedKind(results, merged, BAD),
    "merged modules": FuzzedKind(modules, merged_modules, BAD),
    "journal of a sweep": FuzzedKind(begun, resumed, BAD, lines=True),
    "journal of a command": FuzzedKind(records, read_records, BAD, lines=True),
}


def tried(name: str, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """As `fallen`, while nobody commits and the machine's name is read once."""
    found = setup.versions()
    with mock.patch.multiple(setup, commit=lambda: {"commit": "0" * 40, "dirty": False}, versions=lambda: found):
        return fallen(KINDS[name], folder, count, seed)


@pytest.mark.parametrize("name", KINDS)
def test_a_mutant_is_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    refused, found = tried(name, tmp_path, 200, 0)
    assert found == [] and 60 < refused < 200


def test_an_error_of_another_kind_is_noticed(tmp_path: Path) -> None:
    kind = FuzzedKind(results, lambda path: json.loads(path.read_bytes())["benchmarks"][2], (BadResults,))
    assert len(fallen(kind, tmp_path, 50, 0)[1]) > 5


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for kind_name in sys.argv[3:] or KINDS:
        with tempfile.TemporaryDirectory() as work:
            print(kind_name, *tried(kind_name, Path(work), int(sys.argv[1]), int(sys.argv[2])), flush=True)
