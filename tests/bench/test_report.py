"""The report: from results files, made up here and never measured, to a page, pictures and tables."""

import copy
import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import vl_convert
from made_up import document, refusal
from made_up import point as benchmark
from made_up import saved as named_files

from bench import report
from bench.__main__ import main
from bench.answers import inputs
from bench.answers.qualities import NONE
from bench.files.rows import Results, Spread, read
from bench.report import page
from bench.report.drawing import layout, plot, style, words
from bench.report.drawing.plot import Axis, Chart, Guide, PlotPoint, PlotSeries
from bench.report.sweep import data, tables
from structures.reading import BadFile

# name: share of dense parameters at its own options, FLOPs per parameter, share of the saving that arrives when large
STRUCTURES = {
    "block_diagonal": (0.25, 2.0, 0.92),
    "blast": (0.5, 2.0, 0.7),
    "btt": (0.0625, 2.0, 0.45),
    "butterfly": (0.02, 2.0, 0.12),
    "dyad_dt": (0.5, 2.0, 0.82),
    "dyad_it": (0.5, 2.0, 0.9),
    "dyad_ot": (0.5, 2.0, 0.88),
    "einsum": (0.25, 2.0, 0.4),
    "kronecker": (0.002, 130.0, 0.3),
    "low_rank": (0.0625, 2.0, 0.95),
    "monarch": (0.5, 2.0, 0.75),
    "pixelfly": (0.25, 2.0, 0.6),
    "tensor_train": (0.03, 60.0, 0.35),
    "toeplitz": (0.002, 900.0, 0.2),
}
BUDGETS = {"params=0.5": 0.5, "params=0.25": 0.25, "params=0.125": 0.125, None: None}
SQUARES = [(n, n) for n in (256, 512, 1024, 2048)]
RECTANGLES = [(768, 3072), (3072, 768), (2048, 8192)]


def made_up(
    *,
    structures: dict[str, tuple[float, float, float]] = STRUCTURES,
    shapes: list[tuple[int, int]] = SQUARES,
    tokens: tuple[int, ...] = (16, 128, 1024),
    modes: tuple[str, ...] = ("forward", "train"),
    budgets: dict[str | None, float | None] = BUDGETS,
    device: str = "cpu",
    clock: str = "host",
    cpu: str = "Made-up CPU @ 2.00GHz",
) -> dict[str, Any]:
    """A results file with invented figures of plausible size."""
    dice = random.Random(0)
    benchmarks, refused, rules = [], [], {"dense": "has no options", "nn.Linear": "has no options"}
    for shape, t, mode in ((s, t, m) for s in shapes for t in tokens for m in modes):
        where = {"shape": shape, "tokens": t, "mode": mode, "device": device, "clock": clock, "dice": dice}
        benchmarks.append(point("dense", "dense", None, 1.0, 2.0, 1.0, **where))
        benchmarks.append(point("dense", "nn.Linear", None, 1.0, 2.0, 0.97, control=True, **where))
        for budget, part in budgets.items():
            if budget:
                control = point(
                    "dense_narrow", f"dense_narrow @ {budget}", budget, part, 2.0, 0.93, control=True, **where
                )
                benchmarks.append(control)
            for name, (own, density, efficiency) in structures.items():
                if (part and name in ("kronecker", "toeplitz")) or (name == "blast" and shape[0] == 256):
                    reason = f"{name}: no options come within 20 % of {budget or 'these widths'}"
                    series = f"{name} @ {budget}" if budget else f"{name} n_blocks=4"
                    place = {"in_features": shape[0], "out_features": shape[1], "tokens": t, "device": device}
                    refused.append(refusal(name, reason, series=series, budget=budget, mode=mode, **place))
                    continue
                series = f"{name} @ {budget}" if budget else f"{name} n_blocks=4"
                scale = "n_blocks = 4 at every width" if budget is None else f"rank or blocks so that {budget}"
                rules[series] = scale
                benchmarks.append(point(name, series, budget, part or own, density, efficiency, **where))
    names = {"cpu": cpu} | ({"cuda": "Made-up GPU"} if device == "cuda" else {})
    limit = {"device": device, "dtype": "float32", "threads": 2, "gemm_flops_per_s": 1.9e11, "copy_bytes_per_s": 1.8e10}
    run = {"cpu": cpu, "device_names": names, "allocator": "mallopt M_MMAP_THRESHOLD=4294967296"}
    return document(*benchmarks, refused=refused, run=run, roofline=[limit], rules=rules)


def point(
    structure: str,
    series: str,
    budget: str | None,
    share: float,
    density: float,
    efficiency: float,
    *,
    shape: tuple[int, int],
    tokens: int,
    mode: str,
    device: str,
    clock: str,
    dice: random.Random,
    control: bool = False,
) -> dict[str, Any]:
    """One benchmark: a call costs its overhead, and its FLOPs at a rate that grows with the work."""
    passes = 3 if mode == "train" else 1
    dense_params = shape[0] * shape[1]
    params = max(1, round(dense_params * share))
    dense_flops = 2 * dense_params * tokens * passes
    flops = params * density * tokens * passes
    is_dense = structure.startswith("dense")

    def seconds(work: float, rate: float, calls: float) -> float:
        return calls * passes * 4e-6 + work / (1.6e11 * rate * work / (work + 2e6))

    def spread(median: float) -> tuple[float, float, float]:
        width = dice.uniform(0.01, 0.08) if tokens > 16 else dice.uniform(0.05, 0.15)
        return median, median * (1 - width), median * (1 + width)

    time = seconds(flops, efficiency, 1 if is_dense else 4) * dice.uniform(0.96, 1.04)
    return benchmark(
        series,
        speedup=None if structure == "dense" and not control else spread(seconds(dense_flops, 1.0, 1) / time),
        flags=["noisy"] if dice.random() < 0.05 else [],
        time=spread(time),
        rounds=31,
        structure=structure,
        options={} if is_dense else {"n_blocks": 4},
        budget=budget,
        in_features=shape[0],
        out_features=shape[1],
        tokens=tokens,
        device=device,
        mode=mode,
        backend="linear" if structure == "dense" else "planned",
        params=params,
        params_share=params / dense_params,
        flops=flops,
        executed_flops=flops,
        dense_flops=dense_flops,
        flops_share=flops / dense_flops,
        bytes=4 * (params + tokens * sum(shape)),
        parameter_bytes=4 * params,
        error=1.2e-7,
        roofline={"bound": "arithmetic", "fraction": 0.7},
        control=control,
        clock=clock,
    )


SMALL = {"dyad_it": STRUCTURES["dyad_it"], "dyad_ot": STRUCTURES["dyad_ot"], "monarch": STRUCTURES["monarch"]}


def small(**changes: Any) -> dict[str, Any]:
    """Made-up results of one panel."""
    plain: dict[str, Any] = {"structures": SMALL, "tokens": (128,), "modes": ("forward",)}
    plain |= {"budgets": {"params=0.25": 0.25}}
    return made_up(**plain | changes)


def saved(folder: Path, *contents: Any) -> list[Path]:
    return named_files(folder, **{f"results{i}": content for i, content in enumerate(contents)})


def results(folder: Path, *contents: Any) -> Results:
    return read(saved(folder, *contents))


def rendered(folder: Path, *contents: Any) -> str:
    """The page of files, with no quality but theirs."""
    given = inputs.read(saved(folder, *contents), report.KINDS)
    return page.render(given.results, report.made(given), NONE)


def embedded(text: str) -> dict[str, Any]:
    """What the page's script draws."""
    found: dict[str, Any] = json.loads(Elements(text).scripts[0])
    return found


class Elements(HTMLParser):
    """Start tags with their attributes, and the contents of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def test_the_command_writes_the_page_and_csv_and_pictures_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = saved(
        tmp_path, made_up(structures=SMALL, shapes=SQUARES[:2], tokens=(128,), budgets={"params=0.25": 0.25})
    )
    out = tmp_path / "report"
    assert main(["report", str(path), "-o", str(out), "--figures"]) == 0
    assert "24 points, 0 refused" in capsys.readouterr().out
    pictures = {file.name for file in (out / "figures").iterdir()}
    named = {f"{name}.{kind}" for name in ("speed-up", "dyad") for kind in ("svg", "png")}
    assert pictures - {"quality.svg", "quality.png"} == named  # losses are those committed, where there are any
    sheet = set(ElementTree.fromstring((out / "figures/dyad.svg").read_bytes()).itertext())
    assert {"FLOPs of a call", "parameters", "time of a call", "dyad_it", "dyad_ot"} <= sheet and "monarch" not in sheet
    assert any("Made-up CPU" in said for said in sheet) and (out / "figures/dyad.png").read_bytes()[1:4] == b"PNG"
    (out / "figures/mine.svg").write_text("a user's own")
    (out / "training.csv").write_text("of an earlier run")
    assert main(["report", str(path), "-o", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"index.html", "points.csv", "refused.csv", "figures"}
    assert {file.name for file in (out / "figures").iterdir()} == {"mine.svg"}


def test_files_of_one_machine_are_merged_and_others_stand_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, mine = small(), small(structures={"mine": (0.25, 2.0, 0.9)})
    mine["benchmarks"][0]["stats"]["median"] *= 1.01  # dense is in both, timed twice
    other = small(cpu="Second CPU")
    out = tmp_path / "report"
    assert main(["report", *map(str, saved(tmp_path, first, mine, other)), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 2 and "merged" in said and "results0.json" in said and "results1.json" in said
    shown = embedded((out / "index.html").read_text())
    here = [q for q in shown["questions"] if q["pick"]["machine"].startswith("Made-up CPU")]
    assert {"mine", "monarch"} <= {shown["rows"][one["i"]]["name"] for one in here[0]["ranking"]}
    assert len({q["pick"]["machine"] for q in shown["questions"]}) == 2


def test_the_tables_hold_every_point_and_every_refusal(tmp_path: Path) -> None:
    content = small(structures={"blast": STRUCTURES["blast"]}, shapes=[(256, 256), (512, 512)])
    content["benchmarks"][0]["extra_info"]["spare"] = {"unknown": 1}
    found = results(tmp_path, content)
    tables.write_points(found, tmp_path / "points.csv")
    tables.write_refused(found, tmp_path / "refused.csv")
    with (tmp_path / "points.csv").open(newline="") as points, (tmp_path / "refused.csv").open(newline="") as refused:
        lines, reasons = list(csv.DictReader(points)), list(csv.DictReader(refused))
    assert [line["structure"] for line in lines] == [b["extra_info"]["structure"] for b in content["benchmarks"]]
    assert [float(line["time_median"]) for line in lines] == [b["stats"]["median"] for b in content["benchmarks"]]
    assert lines[0]["extra.spare"] == '{"unknown": 1}' and lines[0]["speedup_median"] == ""
    assert [line["reason"] for line in reasons] == ["blast: no options come within 20 % of params=0.25"]


def test_neither_torch_nor_the_layers_are_imported() -> None:
    code = "import sys, bench.__main__, bench.report; print({'torch', 'structures.public'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    text = rendered(tmp_path, small())
    elements = Elements(text)
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert not [a for _, a in elements.tags if "src" in a or re.match(r"(https?:)?//", a.get("href") or "")]
    assert "url(" not in page.Path(page.__file__).with_name("page.css").read_text() and "@import" not in text
    runnable = [script for script in elements.scripts if not script.startswith("{")]
    assert [page._hash(script) in policy for script in runnable] == [True, True]
    assert page._hash(runnable[0] + " ") not in policy


MARKUP = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!-- <script>",
    "datum.constructor.constructor('alert(3)')()",
    "a.b[0]['c']",
    "{{ 7 * 7 }} ${alert(4)}",
    "quote' \" &amp; é 日本",
    "x" * 300,
]


def test_text_from_a_file_is_data_and_never_markup(tmp_path: Path) -> None:
    content = small(structures={name: (0.25, 2.0, 0.5 + 0.04 * i) for i, name in enumerate(MARKUP)})
    content["structures"]["run"] |= {"cpu": MARKUP[0], "argv": MARKUP, "allocator": "a\u2028b\x00"}
    content["structures"]["refused"].append(refusal(MARKUP[1], f"{MARKUP[0]}\n\x00", budget=None, in_features=1))
    for row in content["benchmarks"]:
        row["extra_info"] |= {"flags": [MARKUP[0]], "options": {MARKUP[1]: MARKUP[0]}}
    text = rendered(tmp_path, content)
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags if tag in ("script", "img", "iframe")] == ["script"] * 3
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert set(MARKUP) <= {row["name"] for row in embedded(text)["rows"]}
    assert not set("<>&") & set(elements.scripts[0]) and "\u2028" not in text
    assert text.encode("utf-8")


def test_no_specification_holds_a_name_from_a_file() -> None:
    chart = a_chart("hostile.name[0]", "monarch")
    made = plot.spec(chart, 300)
    bare = json.dumps({key: value for key, value in made.items() if key != "datasets"})
    assert "hostile" not in bare and "monarch" not in bare and "hostile" in json.dumps(made["datasets"])


def at(*keys: Any, value: Any) -> Callable[[Any], Any]:
    """A change that sets, or with `value` ... deletes, the entry under the keys."""

    def change(content: Any) -> Any:
        place = content
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        return content

    return change


ROW = ("benchmarks", 1)
INFO = (*ROW, "extra_info")
NAMED = "results0.json: benchmarks[1] ('test_linear[nn.Linear-256-256-128-float32-cpu-forward]')"
BAD = [
    (lambda content: [], "results0.json is a list, must be an object"),
    (lambda content: {"a": 1}, "not a results file: it has no 'benchmarks'"),
    (at("structures", value=...), "written by pytest-benchmark, but not by this sweep: it has no section 'structures'"),
    (at("structures", value=3), "structures is 3, must be an object"),
    (at("structures", "schema", value=2), "structures.schema 2 is newer than the 1 this version reads"),
    (at("structures", "schema", value="1"), "structures: schema is the text '1', must be a whole number from 1"),
    (at("structures", "run", "cpu", value=...), "structures: run: cpu is missing"),
    (at("structures", "run", "versions", "torch", value=...), "structures: run: versions: torch is missing"),
    (at("structures", "run", "foreign_load", value=float("nan")), "foreign_load is NaN, must be a finite number"),
    (at("structures", "refused", value=[{"structure": "a"}]), "structures: refused[0]: reason is missing"),
    (at("benchmarks", value=[]), "holds no points; the sweep ended before the first one"),
    (at("benchmarks", value={}), "benchmarks is an object, must be a list"),
    (at("benchmarks", 1, value=None), "benchmarks[1] is null, must be an object"),
    (at(*ROW, "stats", "median", value=-1.0), f"{NAMED}: stats: median is -1.0, must be a positive number"),
    (at(*ROW, "stats", "median", value=0), f"{NAMED}: stats: median is 0, must be a positive number"),
    (at(*ROW, "stats", "median", value=True), f"{NAMED}: stats: median is true, must be a positive number"),
    (at(*ROW, "stats", "median", value="0.1"), f"{NAMED}: stats: median is the text '0.1', must be a positive number"),
    (at(*ROW, "stats", "q1", value=float("nan")), "benchmarks[1]: stats: q1 is NaN, must be a finite number"),
    (at(*ROW, "stats", "q3", value=float("inf")), "benchmarks[1]: stats: q3 is Infinity, must be a finite number"),
    (at(*ROW, "stats", "q3", value=10**400), "benchmarks[1]: stats: q3 is 1000000000000000000000000000000000000000, "),
    (at(*ROW, "stats", "median", value=9.0), f"{NAMED}: stats: median is 9.0, must be between q1 = "),
    (at(*ROW, "stats", value=...), f"{NAMED}: stats is missing"),
    (at(*INFO, "speedup", "median", value=None), f"{NAMED}: extra_info: speedup: median is null, must be a positive"),
    (at(*INFO, "dense_flops", value=...), f"{NAMED}: extra_info: dense_flops is missing"),
    (at(*INFO, "tokens", value=1.5), f"{NAMED}: extra_info: tokens is 1.5, must be a whole number from 1"),
    (at(*INFO, "mode", value="backward"), f"{NAMED}: extra_info: mode is the text 'backward', must be one of "),
    (at(*INFO, "mode", value=[]), f"{NAMED}: extra_info: mode is a list, must be one of forward, train"),
    (at(*INFO, "budget", value="half"), f"{NAMED}: extra_info: budget is the text 'half', must be null, params=S"),
    (at(*INFO, "series", value="a\x1b[2J"), f"{NAMED}: extra_info: series is the text 'a\\x1b[2J', must be a name"),
    (at(*INFO, "series", value="\ud800"), "benchmarks[1]: extra_info: series '\\ud800' has half of a surrogate"),
    (at(*INFO, "peak_bytes", value=-1), f"{NAMED}: extra_info: peak_bytes is -1, must be a positive number"),
    (at(*INFO, "energy_joules", value=float("nan")), "extra_info: energy_joules is NaN, must be a finite number"),
    (
        at("structures", "roofline", 0, "copy_bytes_per_s_by_size", value=[[1e6, -1.0]]),
        "roofline[0]: copy_bytes_per_s_by_size is a list, must be a list of pairs of positive numbers",
    ),
    (at(*INFO, "error", value=float("nan")), "extra_info: error is NaN, must be a finite number"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[-40:] for _, message in BAD])
def test_a_bad_file_is_refused_in_one_sentence(
    change: Callable[[Any], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = saved(tmp_path, change(small(shapes=[(256, 256)])))
    assert main(["report", str(path), "-o", str(tmp_path / "report")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("error: ")
    assert not (tmp_path / "report").exists()


BROKEN = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"{", "not JSON: "),
    (b'{"benchmarks": [{"name": "te', "(cut off?)"),
    (b"\xff\xff\xff garbage", "not JSON that can be used"),
    (b"[" * 100_000, "not JSON that can be used"),
    (b'{"benchmarks": [], "benchmarks": []}', "the key 'benchmarks' stands twice in one object"),
    (b"1" * 5000, "not JSON that can be used"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_file_is_refused_in_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=re.escape(message)) as raised:
        read([path])
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_in_the_way_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "absent.json")]) == 2
    assert "absent.json: cannot be read: No such file or directory" in capsys.readouterr().err
    [path] = saved(tmp_path, small(shapes=[(256, 256)]))
    assert main(["report", str(path), "-o", str(path)]) == 2
    assert f"cannot write the report: {path}: File exists" in capsys.readouterr().err


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    content = json.dumps(small(shapes=[(256, 256)])).encode()
    path = tmp_path / "cut.json"
    for length in range(0, len(content), 211):
        path.write_bytes(content[:length])
        with pytest.raises(BadFile, match=r"cut\.json"):
            read([path])


def test_the_same_point_twice_is_kept_once_if_equal_and_refused_if_not(tmp_path: Path) -> None:
    first = small()
    second = copy.deepcopy(first)
    assert len(results(tmp_path, first, second).rows) == len(first["benchmarks"])
    second["benchmarks"][3]["stats"]["median"] *= 1.001
    with pytest.raises(BadFile, match=r"the same point twice.*results0\.json and .*results1\.json; leave one"):
        results(tmp_path, first, second)
    with pytest.raises(BadFile, match="the same point twice"):
        results(tmp_path, first | {"benchmarks": first["benchmarks"] + second["benchmarks"]})


# -- what the page shows


def with_all_speedups(speeds: dict[str, tuple[float, float, float]], **changes: Any) -> dict[str, Any]:
    """Made-up results in which structures have these speed-ups (median, q1, q3) everywhere."""
    content = small(**changes)
    for row in (b["extra_info"] for b in content["benchmarks"]):
        given = speeds.get(row["structure"])
        if given:
            row["speedup"] = dict(zip(("median", "q1", "q3", "rounds"), (*given, 9), strict=True))
            row["flags"] = []
    return content


def test_every_question_has_its_verdict_and_every_row_stands_once(tmp_path: Path) -> None:
    speeds = {
        "dyad_it": (3.0, 2.9, 3.1),
        "dyad_ot": (2.95, 2.8, 3.05),
        "monarch": (1.5, 1.4, 1.6),
        "dense_narrow": (2, 1.9, 2.1),
    }
    found = results(tmp_path, with_all_speedups(speeds, shapes=[*SQUARES, (768, 3072)]))
    shown = data.data(found, NONE)
    assert len(shown["rows"]) == len(found.rows)
    assert {q["pick"]["layer"] for q in shown["questions"]} == {
        "256x256",
        "512x512",
        "1024x1024",
        "2048x2048",
        "768x3072",
    }
    assert {q["pick"]["held"] for q in shown["questions"]} == {"25 % of dense parameters", "25 % of dense FLOPs"}
    first = shown["questions"][0]
    names = [shown["rows"][one["i"]]["name"] for one in first["ranking"]]
    assert names[:3] == ["dyad_it", "dyad_ot", "dense_narrow"] and names[-1] in ("dense", "monarch")
    assert [one["speed"] for one in first["ranking"]][:2] == ["3.00", "2.95"] and first["ranking"][0]["tied"]
    assert first["sentence"].startswith("Take dyad_it: 3.00 times faster") and shown["missing"]
    assert shown["rows"][first["winner"]]["name"] == shown["rows"][first["best"]]["name"] == "dyad_it"


def test_a_flagged_row_is_not_ranked_and_says_why(tmp_path: Path) -> None:
    content = with_all_speedups({"dyad_it": (3.0, 2.9, 3.1), "monarch": (1.5, 1.4, 1.6)})
    for row in (b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["structure"] == "dyad_it"):
        row["flags"] = ["load"]
    shown = data.data(results(tmp_path, content), NONE)
    for question in shown["questions"]:
        below = {shown["rows"][one["i"]]["name"]: one for one in question["below"]}
        assert below["dyad_it"]["doubts"] == ("flagged load",) and "rank" not in below["dyad_it"]


def test_an_entry_of_a_users_registry_is_marked(tmp_path: Path) -> None:
    content = small(structures={"mine": (0.25, 2.0, 0.9), **SMALL})
    for row in (b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["structure"] == "mine"):
        row["own"] = True
    rows = data.data(results(tmp_path, content), NONE)["rows"]
    assert {row["name"] for row in rows if row.get("own")} == {"mine"}


def test_a_gpu_stands_beside_the_cpu_under_the_machine(tmp_path: Path) -> None:
    contents = [small(), small(device="cuda", clock="device"), small(device="cuda")]
    for content in contents[1:]:
        content["structures"]["run"]["device_names"] = {"cpu": "Made-up CPU @ 2.00GHz", "cuda": "Made-up GPU"}
    machines = dict.fromkeys(q["pick"]["machine"] for q in data.data(results(tmp_path, *contents), NONE)["questions"])
    assert len(machines) == 3
    assert any("Made-up GPU" in name and name.endswith("device clock") for name in machines)
    assert any("Made-up GPU" not in name and ", cpu, 2 threads" in name for name in machines)


def test_an_incomplete_run_is_said_to_be_one(tmp_path: Path) -> None:
    content = small()
    assert "not complete" not in rendered(tmp_path, content)
    content["structures"]["run"]["complete"] = False
    assert "is not complete: points are missing" in rendered(tmp_path, content)


SPARSE = {
    "one point": small(structures={}, shapes=[(256, 256)], budgets={None: None}),
    "rectangles only": small(shapes=[(768, 3072)]),
    "no dense": small() | {"benchmarks": small()["benchmarks"][3:6]},
    "refusals only": small(structures={"blast": STRUCTURES["blast"]}, shapes=[(256, 256)]) | {"benchmarks": []},
}


@pytest.mark.parametrize("content", SPARSE.values(), ids=SPARSE)
def test_a_sparse_file_still_makes_a_page_and_pictures(content: dict[str, Any], tmp_path: Path) -> None:
    [path] = saved(tmp_path, content)
    assert main(["report", str(path), "-o", str(tmp_path / "out"), "--figures"]) == 0
    found = read([path])
    assert len(embedded((tmp_path / "out/index.html").read_text())["rows"]) == len(found.rows)


# -- drawing


def a_chart(*labels: str, beside: bool = False) -> Chart:
    series = [
        PlotSeries(label, style.look(label), [PlotPoint(x, 2.0 + i, {"title": label}, 1.9 + i, 3) for x in (1, 10)])
        for i, label in enumerate(labels)
    ]  # fmt: skip
    return Chart("Made up", Axis("x"), Axis("y", "s"), series, [Guide([(1.0, 2.0), (100.0, 2.0)])], 300, beside)


@pytest.mark.parametrize("beside", [True, False])
def test_a_chart_is_a_specification_that_vega_takes(beside: bool) -> None:
    chart = a_chart("dyad_it", "monarch", "dense", beside=beside)
    whole = plot.spec(chart, 400) | {"config": plot.PARTS["config"]}
    svg = vl_convert.vegalite_to_svg(whole, vl_version=plot.VEGALITE)
    assert {"dyad_it", "monarch", "dense"} <= set(ElementTree.fromstring(svg).itertext())
    with pytest.raises(ValueError, match="conversion failed"):
        vl_convert.vegalite_to_svg(whole | {"layer": [{"mark": {"type": "nothing"}}]}, vl_version=plot.VEGALITE)


def test_a_look_follows_from_the_name_alone() -> None:
    assert style.look("pixelfly") == style.look("pixelfly") != style.look("monarch")
    assert [style.look(name).colour for name in ("block_diagonal", "low_rank", "monarch")] == [
        "#0072B2",
        "#7A8B00",
        "#B5386E",
    ]
    dyad = [style.look(name) for name in ("dyad_it", "dyad_ot", "dyad_dt")]
    assert {look.colour for look in dyad} == {style.DYAD} and len({look.marker for look in dyad}) == 3
    assert style.look("dense") == style.PLAIN and style.look("dense_narrow", True).colour == style.GREY
    seen = [(look.marker, look.colour) for look in map(style.look, STRUCTURES)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("wanted", [[], [5], [50, 50, 50], [0, 1, 99, 100], [100] * 8, list(range(0, 100, 12))])
def test_names_at_the_edge_stay_in_order_and_apart(wanted: list[float]) -> None:
    heights = layout.apart(wanted, 12, 100)
    assert heights == sorted(heights)
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(heights))
    assert all(0 <= height <= 100 + 1e-9 for height in heights)


def test_names_beside_points_touch_nothing_and_are_left_out_where_there_is_no_room() -> None:
    crowd = [("name", 100.0 + i % 3, 100.0 + i // 3) for i in range(20)]
    marks = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in crowd]
    found = layout.free(crowd, marks, 400, 300)
    assert 1 <= sum(side is not None for side in found) <= len(layout.SIDES) and None in found
    assert layout.free([("one", 50, 50)], [(45, 45, 55, 55)], 400, 300) == [layout.SIDES[0]]
    assert layout.free([("one", 50, 50)], [(45, 45, 55, 55), (56, 45, 90, 55)], 400, 300) != [layout.SIDES[0]]


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([], []),
        ([(1, 1), (0.5, 0.9), (0.5, 0.8), (0.6, 0.85), (0, 0.4)], [4, 1, 0]),
        ([(0.5, 0.5), (0.5, 0.5)], [0]),
        ([(2, 0.1), (1, 0.2)], [1]),
    ],
)
def test_the_front_holds_what_nothing_beats(points: Sequence[tuple[float, float]], wanted: list[int]) -> None:
    assert layout.front(points) == wanted
    assert len(layout.stairs(points)) == max(0, 2 * len(points) - 1)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("limits", [(0.9, 1.3), (0.04, 12.0), (1e-5, 2.0), (3e6, 4e12), (2.0, 2.01)])
def test_an_axis_has_a_few_round_ticks(limits: tuple[float, float], log: bool) -> None:
    ticks = layout.ticks(*limits, log)
    assert 2 <= len(ticks) <= 11 and limits[0] <= min(ticks) and max(ticks) <= limits[1]


def test_numbers_are_written_for_readers() -> None:
    times = [words.prefixed(value, "s") for value in (1.234e-5, 0.9996e-3, 2.0, 3e-8)]
    assert times == ["12.3 µs", "1.00 ms", "2.00 s", "30.0 ns"]
    ratios = [words.ratio(value).strip(words.TIMES) for value in (3.14, 0.944, 12.4, 0.9999)]
    assert ratios == ["3.1", "0.94", "12", "1.0"]
    assert [words.share(v) for v in (0.25, 0.125, 0.002, 1.0, 15.0)] == ["25 %", "12.5 %", "0.2 %", "100 %", "1500 %"]
    assert words.quartiles(Spread(3.0, 2.9, 3.1, 9)) == "2.9 to 3.1"
    assert [words.error(e) for e in (None, 1.2e-7, {"y": 1e-7, "dx": 3e-7})] == ["", "1.2e-07", "3.0e-07"]
