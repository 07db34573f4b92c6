"""Whole modules and models in the bench: what is timed computes the right thing, and what the report makes of it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_runs import QUICK, STILL, environment
from processes import run_pytest
from torch import nn

import structures
from bench.__main__ import main
from bench.files import merge_tables
from bench.files.errors import UsageError
from bench.files.rows import Spread
from bench.modules import feed_forward, timed
from bench.report.others import modules, published
from bench.sweep.check import CheckFailed, check
from structures import backends

ROOT = Path(__file__).parents[2]
NONE = SimpleNamespace(device=None, dtypes=None, tokens=None, full=False)
HALF = torch.finfo(torch.float32).eps ** 0.5  # half of the digits: no rounding takes more
SMALL = {"batch": 1, "sequence": 16, "tokens": 16, "dtype": "float32", "device": "cpu"}


# A module of the authors' made narrow, timed for no longer than it takes to have a ratio.
NARROW_MODULE = (
    QUICK
    + """
    from dataclasses import replace
    from bench.modules import feed_forward, timed
    from bench.sweep import request
    request.default_names = lambda: ["dense"]  # beside a module nothing of the sweep is timed
    feed_forward.MODULES = (replace(feed_forward.MODULES[0], width=64),)
    timed.EFFORT = replace(timed.EFFORT, paired=0.01, alone=0.01, rounds=3)
"""
)


def run(folder: Path, *arguments: str) -> str:
    (folder / "plugin_narrow.py").write_text(NARROW_MODULE)
    still = ["-p", "plugin_narrow", "-p", "no:xdist", *STILL]
    one = environment() | {"OMP_NUM_THREADS": "1"}  # a second thread would spin on a core that another test runs on
    return run_pytest(folder, [f"--rootdir={ROOT}", *still, *arguments], one)[1]


# -- feed-forward modules


@pytest.fixture(scope="module")
def small() -> list[feed_forward.ModulePoint]:
    """Every kind of layer in two narrow modules."""
    modules = (feed_forward.Module("narrow", 64, "relu"), feed_forward.Module("narrow and smooth", 64, "gelu"))
    wide = feed_forward.points(NONE)
    kinds = {(p.structure, p.n_blocks, p.mode): p for p in wide}.values()
    return [replace(p, module=module, **SMALL) for module in modules for p in kinds]


def test_the_modules_are_the_authors_with_every_variant_beside_dense():
    points = feed_forward.points(NONE)
    assert {p.module.width for p in points} == {768, 1024, 1536, 2048}
    assert {(p.structure, p.n_blocks) for p in points} == {
        ("dense", None), *((name, n) for name in ("dyad_it", "dyad_ot", "dyad_dt", "dyad_it_cat") for n in (4, 8))
    }  # fmt: skip
    assert {p.tokens for p in points} == {4 * 128} and len(points) == len(set(map(str, points))) == 5 * 2 * 9
    assert feed_forward.points(SimpleNamespace(**NONE.__dict__ | {"full": True}))[0].tokens == 32 * 128
    assert feed_forward.points(SimpleNamespace(**NONE.__dict__ | {"tokens": "256"}))[0].batch == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [({"tokens": "100"}, "multiple of 128"), ({"device": "cuda"}, "no CUDA device"), ({"dtypes": "int8"}, "float32")],
)
def test_a_wrong_option_is_one_sentence(option, message):
    if option.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UsageError, match=message):
        timed.where(SimpleNamespace(**NONE.__dict__ | option), 4)


def test_every_module_passes_the_check_and_a_wrong_one_fails(small):
    for point in small:
        x, dy = feed_forward.inputs(point)
        for way in feed_forward.WAYS if point.structure == "dense" else feed_forward.WAYS[:1]:
            built = feed_forward.build(point, way)
            assert 0 < check(built.checked, x, dy if point.train else None) < HALF
            torch.testing.assert_close(built.checked.forward(x), built.module(x))
            with torch.no_grad():
                built.module.fc2.forward = lambda h, right=built.module.fc2.forward: right(h) * 1.001
            with pytest.raises(CheckFailed, match="is off by"):
                check(built.checked, x, dy if point.train else None)


def test_a_check_of_a_relu_replays_the_sides_that_were_seen():
    kinks = timed.Kinks()
    x = torch.tensor([[1e-9, -1.0], [2.0, -1e-9], [3.0, 4.0]])
    assert torch.equal(kinks(x), x.relu())
    with kinks.replayed(torch.tensor([0, 1])):
        assert torch.equal(kinks(-x[:2]), torch.tensor([[-1e-9, 0.0], [-2.0, 0.0]]))
    with kinks.replayed():
        assert torch.equal(kinks(-x[:1]), torch.tensor([[-1e-9, 0.0]]))


def test_bytes_of_a_checkpoint_count_a_shared_storage_once():
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    assert timed.state_bytes(nn.Sequential(a, b)) == 128
    b.weight = a.weight
    assert timed.state_bytes(nn.Sequential(a, b)) == 64


def test_published_ratios_are_those_of_the_source():
    forward, both = published.ratios("relu", 768, "dyad_it", 4)
    assert (round(forward, 3), round(both, 3)) == (1.406, 1.103)
    assert round(published.ratios("relu", 2048, "dyad_it_cat", 4)[1], 3) == 1.655
    assert published.ratios("relu", 768, "dyad_ot", 8) is None and published.ratios("relu", 768, "dense", None) is None


# -- decoders


def tiny(monkeypatch, model: str, structure: str, place: str, mode: str = "train"):
    decoder = pytest.importorskip("bench.modules.decoder")
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "ffn_dim": 384, "intermediate_size": 384}
    kind, settings = decoder.SHAPES[model]
    monkeypatch.setitem(decoder.SHAPES, model, (kind, settings | sizes | {"word_embed_proj_dim": 96}))
    monkeypatch.setattr(decoder, "MODELS", tuple(replace(shape, width=96) for shape in decoder.MODELS))
    share = None if structure == "dense" else 0.5
    at = {**SMALL, "batch": 2, "tokens": 32}
    return decoder, decoder.DecoderPoint(model, structure, share, place, 3, mode=mode, **at)


@pytest.mark.parametrize("model", ["opt-125m", "pythia-160m"])
def test_a_decoder_passes_the_check_and_a_wrong_layer_fails(model, monkeypatch):
    pytest.importorskip("transformers", reason="decoders are built from transformers' configs")
    decoder, point = tiny(monkeypatch, model, "dyad_mix", "feed-forward and attention")
    made = decoder.dense_model(point)
    decoder.replaced(point, made)
    names = decoder.layer_names(point)
    assert len(names) == 3 * (2 + len(point.shape.attention))
    kinds = [made.get_submodule(name).structure.name for name in names]
    assert kinds == sorted(kinds, key=["dyad_it", "dyad_ot", "dyad_dt"].index)  # a layer each
    x, dy = decoder.inputs(point)
    assert 0 < decoder.check(point, made, x, dy) < HALF
    layer = made.get_submodule(names[0])
    right = layer.forward
    layer.forward = lambda input: right(input) * 1.001
    with pytest.raises(CheckFailed, match="is off by"):
        decoder.check(point, made, x, dy)


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_every_structure_of_a_decoder_passes_the_check(mode, monkeypatch):
    """Previously failed: Monarch, whose links the plain run did not take one after the other."""
    pytest.importorskip("transformers", reason="decoders are built from transformers' configs")
    from bench.modules.decoder import NAMES

    for name in NAMES:
        decoder, point = tiny(monkeypatch, "opt-125m", name, "feed-forward", mode)
        made = decoder.dense_model(point)
        decoder.replaced(point, made)
        assert 0 < decoder.check(point, made, *decoder.inputs(point)) < HALF, name


def test_decoders_are_measured_at_equal_shares_in_both_places():
    pytest.importorskip("transformers", reason="decoders are built from transformers' configs")
    from bench.modules import decoder

    points = decoder.points(NONE)
    assert len(points) == len(set(map(str, points))) == 2 * 2 * (2 + 2 * 2 * 6)
    assert {p.layers for p in points} == {0, 3}
    dense = {p.layers for p in decoder.points(SimpleNamespace(**NONE.__dict__ | {"full": True}))}
    assert dense == {0, 12}


# -- the file and the report


FILE = str(ROOT / "bench/test_ff.py")
CHOSEN = ("--tokens=128", "-k", "relu64 and (dense or dyad_it-n8)")  # two points forward, two of training


def section_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["structures"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    """The points of two runs, a cell each; the time of the first is spent once, and it goes on."""
    folder = tmp_path_factory.mktemp("shards")
    asked = (FILE, *CHOSEN, "--shard=1/2")
    said = run(folder, *asked, "--time-budget=0.01s", "--benchmark-json=part1.json")
    assert "1 point measured" in said and "1 more were left out for lack of time" in said, said
    before = section_of(folder / "part1.json")
    assert len(before["rows"]) == 1 and not before["run"]["complete"]
    said = run(folder, *asked, "--resume=part1.json")
    assert "goes on with 1 of 2 points done" in said and "2 points measured" in said, said
    after = section_of(folder / "part1.json")
    assert after["rows"][0] == before["rows"][0] and len(after["rows"]) == 2 and after["run"]["complete"]
    assert after["setup"] == before["setup"] and not (folder / "part1.json.journal").exists()
    said = run(folder, FILE, *CHOSEN, "--shard=2/2", "--benchmark-json=part2.json")
    assert "2 points measured" in said and "- verdict -" not in said, said
    return [folder / "part1.json", folder / "part2.json"]


def test_a_run_goes_on_and_its_shards_are_merged_into_a_file_that_the_report_draws(shards, tmp_path, capsys):
    file = tmp_path / "ff.json"
    assert main(["merge", *map(str, shards), "-o", str(file)]) == 0
    assert capsys.readouterr().out.endswith("4 rows, of 2 files; complete\n")
    section = section_of(file)
    assert section["kind"] == "ff" and len(json.loads(file.read_text())["benchmarks"]) == 4
    assert section["setup"]["batch"] == 1 and len(section["run"]["merged_from"]) == 2
    dense, dyad = (row for row in section["rows"] if row["mode"] == "forward")
    assert dense["speedup"] is None and dense["backend"] in feed_forward.WAYS
    assert dyad["params_share"] == dyad["flops_share"] == 0.25
    usual = backends.choose("auto", structures.get("dyad_it").bind(64, 256, n_blocks=8), torch.empty(1, 64))
    assert dyad["backend"] == usual and usual in ("native", "planned")  # by whether there is a compiler
    assert dyad["checkpoint_bytes"] == 4 * (2 * 64 * 256 // 4 + 64 + 256)
    assert 0 < dyad["speedup"]["q1"] <= dyad["speedup"]["median"] and 0 < dyad["error"] < HALF
    assert main(["report", str(file), "-o", str(tmp_path / "report")]) == 0
    assert "Feed-forward" in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "OPT-125m, OPT-Custom 768" in page and "cpu, float32" in page and "only the order compares" in page
    alone = tmp_path / "alone.json"
    assert main(["merge", str(shards[0]), "-o", str(alone)]) == 0
    assert "shard 2/2 is not among the files" in capsys.readouterr().out and not section_of(alone)["run"]["complete"]


def test_of_a_point_in_two_files_the_one_with_fewer_flags_is_kept(shards, tmp_path):
    one, two = (json.loads(shards[0].read_text()) for _ in range(2))
    for document, flags in ((one, ["load"]), (two, [])):
        for row in document["structures"]["rows"]:
            row["flags"] = flags
    paths = []
    for document in (one, two):
        paths.append(tmp_path / f"{len(paths)}.json")
        paths[-1].write_text(json.dumps(document))
    said = merge_tables.merge(paths, tmp_path / "out.json")
    assert sum(f"kept {paths[1]}'s" in line for line in said) == 2
    assert [row["flags"] for row in section_of(tmp_path / "out.json")["rows"]] == [[], []]


MIXED = [
    (("structures", "setup", "batch"), 9, "another setup"),
    (("structures", "kind"), "decoder", "another kind"),
    (("structures", "run", "threads"), 7, "threads is '1' and '7'"),
    (("benchmarks",), [], "0 benchmarks beside 2 rows"),
]


@pytest.mark.parametrize(("place", "value", "message"), MIXED, ids=[message for *_, message in MIXED])
def test_files_that_must_not_be_mixed_are_refused(place, value, message, shards, tmp_path, capsys):
    document = json.loads(shards[1].read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert main(["merge", str(shards[0]), str(tmp_path / "other.json"), "-o", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out.json").exists()


def test_an_option_of_the_sweep_alone_and_two_kinds_in_a_file_are_refused(tmp_path):
    said = run(tmp_path, FILE, "--widths=64", "--mode=train")
    assert "--widths, --mode: only for the sweep of layers" in said and "Traceback" not in said
    said = run(tmp_path, FILE, str(ROOT / "bench/test_linear.py"), "--list")
    assert "one results file holds one kind of rows" in said and "Traceback" not in said


def test_the_bare_sweep_takes_neither(tmp_path):
    said = run(tmp_path, str(ROOT / "bench"), "--list", "--widths=64", "--tokens=16", "--structures=dense")
    assert "test_ff" not in said and "decoder" not in said and "64x64" in said


@pytest.fixture(scope="module")
def committed() -> dict[str, object]:
    return {
        kind: json.loads((ROOT / f"bench/results/intel-xeon/{kind}.json").read_text()) for kind in ("ff", "decoder")
    }


def page_of(tmp_path: Path, *documents: object) -> str:
    paths = []
    for number, document in enumerate(documents):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(document))
    assert main(["report", *map(str, paths), "-o", str(tmp_path / "report")]) == 0
    return (tmp_path / "report" / "index.html").read_text()


def test_the_committed_runs_make_tables_with_published_ratios_and_whole_models(committed, tmp_path):
    page = page_of(tmp_path, *committed.values())
    for words in ("Feed-forward", "Decoders", "dyad_it_cat", "dyad_mix", "pythia-160m", "Whole model", "Published"):
        assert words in page


def test_the_fastest_of_a_group_leads_and_so_does_what_ties_with_it():
    def row(*speedup: float) -> Any:
        spread = Spread(*speedup, 5)
        measured = SimpleNamespace(speedup=spread)
        return modules.Line({"forward": measured}, "", {})

    rows = [row(2.0, 1.9, 2.1), row(1.8, 1.7, 1.95), row(1.7, 1.6, 1.85)]  # the first, a tie, a slower one
    assert [modules.leads(rows, one, "forward") for one in rows] == [True, True, False]
    assert not modules.leads(rows, rows[0], "train")


BAD = [
    ("ff", "mode", "backward", "must be one of forward, train"),
    ("ff", "params_share", 0, "must be a positive number"),
    ("ff", "speedup", {"median": 1, "q1": 2, "q3": 3, "rounds": 5}, "median is 1, must be between q1 = 2 and q3 = 3"),
    ("ff", "names", None, "names is null"),
    ("decoder", "place", "nowhere", "must be one of rest, feed-forward, feed-forward and attention"),
    ("decoder", "time", None, "time is null, must be an object"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), BAD, ids=[f"{k}-{f}" for k, f, *_ in BAD])
def test_a_bad_field_is_one_sentence(kind, field, value, message, committed, tmp_path, capsys):
    document = copy.deepcopy(committed[kind])
    document["structures"]["rows"][1][field] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document))
    assert main(["report", str(path), "-o", str(tmp_path / "report")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_row_twice_and_markup_in_a_name_do_no_harm(committed, tmp_path, capsys):
    document = copy.deepcopy(committed["ff"])
    document["structures"]["rows"][0]["names"] = "<script>alert(1)</script>"
    assert "<script>alert" not in page_of(tmp_path, document)
    document["structures"]["rows"].append(document["structures"]["rows"][1])
    (tmp_path / "twice.json").write_text(json.dumps(document))
    assert main(["report", str(tmp_path / "twice.json"), "-o", str(tmp_path / "report")]) == 2
    assert "stands twice" in capsys.readouterr().err
