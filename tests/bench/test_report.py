"""The report: from results files, made up here and never measured, to pages, figures and tables."""

import copy
import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import report
from bench.__main__ import main
from bench.files.fields import BadResults
from bench.files.rows import Results, Spread, read
from bench.report import page
from bench.report.drawing import layout, style, views, words
from bench.report.drawing.curve import CONTROL, DENSE, STRUCTURE, Curve
from bench.report.sweep import breaks, charts, panels, pareto, verdicts, winners
from bench.report.sweep.charts import specifications

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
                    refused.append(refusal(name, budget, reason, shape, t, mode, device))
                    continue
                series = f"{name} @ {budget}" if budget else f"{name} n_blocks=4"
                scale = "n_blocks = 4 at every width" if budget is None else f"rank or blocks so that {budget}"
                rules[series] = scale
                benchmarks.append(point(name, series, budget, part or own, density, efficiency, **where))
    run = {
        "argv": ["pytest", "bench", "--benchmark-json=results.json"],
        "datetime": "2031-02-03T04:05:06+00:00",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"python": "3.11", "torch": "2.13", "structures": "0.1", "numpy": "2.4", "pytest_benchmark": "5.3"},
        "cpu": cpu,
        "device_names": {"cpu": cpu} | ({"cuda": "Made-up GPU"} if device == "cuda" else {}),
        "threads": 2,
        "pinned": [0, 1],
        "allocator": "mallopt M_MMAP_THRESHOLD=4294967296",
        "tf32": None,
        "cold": False,
        "complete": True,
        "foreign_load": 0.03,
    }
    limit = {"device": device, "dtype": "float32", "threads": 2, "gemm_flops_per_s": 1.9e11, "copy_bytes_per_s": 1.8e10}
    section = {"schema": 1, "run": run, "roofline": [limit], "rules": rules, "refused": refused}
    return {
        "machine_info": {},
        "commit_info": {},
        "benchmarks": benchmarks,
        "datetime": run["datetime"],
        "version": "5.3.1",
        "structures": section,
    }


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

    def seconds(work: float, rate: float, calls: float) -> float:
        return calls * passes * 4e-6 + work / (1.6e11 * rate * work / (work + 2e6))

    dense = seconds(dense_flops, 1.0, 1)
    time = seconds(flops, efficiency, 1 if structure.startswith("dense") else 4) * dice.uniform(0.96, 1.04)
    ratio = dense / time

    def spread(median: float) -> dict[str, Any]:
        width = dice.uniform(0.01, 0.08) if tokens > 16 else dice.uniform(0.05, 0.15)
        return {"median": median, "q1": median * (1 - width), "q3": median * (1 + width), "rounds": 31}

    name = f"test_point[{series}-{shape[0]}x{shape[1]}-{tokens}-float32-{device}-{mode}]"
    info = {
        "structure": structure,
        "series": series,
        "options": {} if structure.startswith("dense") else {"n_blocks": 4},
        "budget": budget,
        "in_features": shape[0],
        "out_features": shape[1],
        "tokens": tokens,
        "dtype": "float32",
        "device": device,
        "mode": mode,
        "backend": "linear" if structure == "dense" else "planned",
        "threads": 2,
        "params": params,
        "params_share": params / dense_params,
        "flops": flops,
        "executed_flops": flops,
        "dense_flops": dense_flops,
        "flops_share": flops / dense_flops,
        "bytes": 4 * (params + tokens * sum(shape)),
        "parameter_bytes": 4 * params,
        "activation_bytes": None,
        "speedup": None if structure == "dense" and not control else spread(ratio),
        "error": 1.2e-7,
        "roofline": {"bound": "arithmetic", "fraction": 0.7},
        "flags": ["noisy"] if dice.random() < 0.05 else [],
        "control": control,
        "clock": clock,
    }
    stats = spread(time) | {"min": time * 0.8, "max": time * 2, "mean": time, "stddev": time * 0.1, "iterations": 1}
    return {"name": name, "fullname": f"bench/test_sweep.py::{name}", "group": None, "stats": stats, "extra_info": info}


def refusal(
    structure: str, budget: str | None, reason: str, shape: tuple[int, int], tokens: int, mode: str, device: str
) -> dict[str, Any]:
    return {
        "structure": structure,
        "series": f"{structure} @ {budget}" if budget else f"{structure} n_blocks=4",
        "options": None,
        "in_features": shape[0],
        "out_features": shape[1],
        "tokens": tokens,
        "dtype": "float32",
        "device": device,
        "mode": mode,
        "backend": "auto",
        "threads": 2,
        "budget": budget,
        "reason": reason,
    }


SMALL = {"dyad_it": STRUCTURES["dyad_it"], "dyad_ot": STRUCTURES["dyad_ot"], "monarch": STRUCTURES["monarch"]}


def small(**changes: Any) -> dict[str, Any]:
    """Made-up results of one panel."""
    plain: dict[str, Any] = {"structures": SMALL, "tokens": (128,), "modes": ("forward",)}
    plain |= {"budgets": {"params=0.25": 0.25}}
    return made_up(**plain | changes)


def saved(folder: Path, *contents: Any) -> list[Path]:
    paths = [folder / f"results{i}.json" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def results(folder: Path, *contents: Any) -> Results:
    return read(saved(folder, *contents))


def rendered(found: Results) -> str:
    """The page alone, without the static figures that take seconds to draw."""
    made = panels.panels(found)
    structures = {row.structure for row in found.rows if not row.control}
    return page.render(found, made, report.all_views(found, made, structures))


def viewed(found: Results, group: str) -> list[views.View]:
    """The views of one group, as the page shows them."""
    structures = {row.structure for row in found.rows if not row.control}
    return [view for view in report.all_views(found, panels.panels(found), structures) if view.group == group]


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


def test_the_command_writes_the_page_and_all_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [path] = saved(tmp_path, small(shapes=[(256, 256), (512, 512), (768, 3072)]))
    out = tmp_path / "report"
    assert main(["report", str(path), "-o", str(out)]) == 0
    assert "18 points in 1 panels, 0 refused" in capsys.readouterr().out
    place = "float32-cpu-2-threads"
    stems = [f"params-0.25-forward-128-tokens-{place}", f"params-0.25-forward-128-tokens-{place}-shapes"]
    layers = [f"pareto-{shape}-forward-128-tokens-{place}" for shape in ("256x256", "512x512", "768x3072")]
    others = [f"winners-{place}", f"roofline-forward-{place}", *layers]
    files = {f"{stem}.{kind}" for stem in (*stems, *others) for kind in ("svg", "png")}
    assert {file.name for file in out.iterdir()} == files | {"index.html", "points.csv", "refused.csv"}
    for name in sorted(files):
        content = (out / name).read_bytes()
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        elif name.startswith("params"):
            assert {"dyad_it", "dyad_ot", "monarch", "dense_narrow"} <= set(ElementTree.fromstring(content).itertext())
        else:
            assert any("Made-up CPU" in text for text in ElementTree.fromstring(content).itertext())
    links = {attributes["href"] for tag, attributes in Elements((out / "index.html").read_text()).tags if tag == "a"}
    assert {link for link in links if link and not link.startswith("#")} == files | {"points.csv"}


def test_the_tables_hold_every_point_and_every_refusal(tmp_path: Path) -> None:
    content = small(structures={"blast": STRUCTURES["blast"]}, shapes=[(256, 256), (512, 512)])
    content["benchmarks"][0]["extra_info"]["spare"] = {"unknown": 1}
    found = results(tmp_path, content)
    from bench.report.sweep import tables

    tables.write_points(found, tmp_path / "points.csv")
    tables.write_refused(found, tmp_path / "refused.csv")
    with (tmp_path / "points.csv").open(newline="") as points, (tmp_path / "refused.csv").open(newline="") as refused:
        lines, reasons = list(csv.DictReader(points)), list(csv.DictReader(refused))
    assert [line["structure"] for line in lines] == [b["extra_info"]["structure"] for b in content["benchmarks"]]
    assert [float(line["time_median"]) for line in lines] == [b["stats"]["median"] for b in content["benchmarks"]]
    assert lines[0]["extra.spare"] == '{"unknown": 1}' and lines[0]["speedup_median"] == ""
    assert [line["reason"] for line in reasons] == ["blast: no options come within 20 % of params=0.25"]


def test_neither_torch_nor_structures_is_imported() -> None:
    code = "import sys, bench.__main__, bench.report; print({'torch', 'structures'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    text = rendered(results(tmp_path, small()))
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
    content["structures"]["run"] |= {"cpu": MARKUP[0], "argv": MARKUP, "allocator": "a\u2028b\x00\ud800"}
    content["structures"]["refused"].append(refusal(MARKUP[1], None, f"{MARKUP[0]}\n\x00", (1, 1), 1, "forward", "cpu"))
    for row in content["benchmarks"]:
        row["extra_info"] |= {"flags": [MARKUP[0]], "options": {MARKUP[1]: MARKUP[0]}}
    text = rendered(results(tmp_path, content))
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags if tag in ("script", "img", "iframe")] == ["script"] * 3
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    data = json.loads(elements.scripts[0])
    stem = "params-0.25-forward-128-tokens-float32-cpu-2-threads"
    assert set(MARKUP) <= {record["label"] for record in data["views"][stem]["records"]}
    assert not set("<>&") & set(elements.scripts[0]) and "\u2028" not in text
    assert text.encode("utf-8")


def test_no_specification_holds_a_name_from_a_file(tmp_path: Path) -> None:
    content = small(structures={"hostile.name[0]": (0.25, 2.0, 0.5), **SMALL}, shapes=[*SQUARES, (768, 3072)])
    for row in (b["extra_info"] for b in content["benchmarks"]):
        row["activation_bytes"] = 4096
    more = copy.deepcopy([b for b in content["benchmarks"] if b["extra_info"]["structure"] == "hostile.name[0]"])
    for row in more:
        row["extra_info"]["backend"] = "hostile.backend[0]"
    found = results(tmp_path, content | {"benchmarks": content["benchmarks"] + more})
    made = report.all_views(found, panels.panels(found), {"hostile.name[0]", *SMALL})
    assert {view.group for view in made} == {"winners", "curves", "pareto", "roofline", "memory", "backends"}
    for view in made:
        assert set(view.specifications) == {*view.draw(300)}
        for chart in view.draw("container").values():
            chart.to_dict()  # meets Vega-Lite's schema, which the report itself does not check
        for spec in view.specifications.values():
            spec = {key: value for key, value in spec.items() if key != "datasets"}
            assert not [name for name in ("hostile", "dyad", "monarch", "narrow") if name in json.dumps(spec)]


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
NAMED = "results0.json: benchmarks[1] ('test_point[nn.Linear-256x256-128-float32-cpu-forward]')"
BAD = [
    (lambda content: [], "results0.json is a list, must be an object"),
    (lambda content: {"a": 1}, "not a results file: it has no 'benchmarks'"),
    (at("structures", value=...), "written by pytest-benchmark, but not by this sweep: it has no section 'structures'"),
    (at("structures", value=3), "structures is 3, must be an object"),
    (at("structures", "schema", value=2), "structures.schema 2 is newer than the 1 this version reads"),
    (at("structures", "schema", value="1"), "structures: schema is the text '1', must be a whole number from 1"),
    (at("structures", "run", "cpu", value=...), "structures: run: cpu is missing"),
    (at("structures", "run", "versions", "torch", value=...), "structures: run: versions: torch is missing"),
    (at("structures", "run", "foreign_load", value=float("nan")), "foreign_load is NaN, must be null or a number"),
    (at("structures", "refused", value=[{"structure": "a"}]), "structures: refused[0]: reason is missing"),
    (at("benchmarks", value=[]), "holds no points; the sweep ended before the first one"),
    (at("benchmarks", value={}), "benchmarks is an object, must be a list"),
    (at("benchmarks", 1, value=None), "benchmarks[1] is null, must be an object"),
    (at(*ROW, "stats", "median", value=-1.0), f"{NAMED}: stats: median is -1.0, must be a positive number"),
    (at(*ROW, "stats", "median", value=0), f"{NAMED}: stats: median is 0, must be a positive number"),
    (at(*ROW, "stats", "median", value=True), f"{NAMED}: stats: median is true, must be a positive number"),
    (at(*ROW, "stats", "median", value="0.1"), f"{NAMED}: stats: median is the text '0.1', must be a positive number"),
    (at(*ROW, "stats", "q1", value=float("nan")), f"{NAMED}: stats: q1 is NaN, must be a positive number"),
    (at(*ROW, "stats", "q3", value=float("inf")), f"{NAMED}: stats: q3 is Infinity, must be a positive number"),
    (at(*ROW, "stats", "q3", value=10**400), f"{NAMED}: stats: q3 is 1000000000000000000000000000000000000000, "),
    (at(*ROW, "stats", "median", value=9.0), f"{NAMED}: stats: median is 9.0, must be between q1 = "),
    (at(*ROW, "stats", value=...), f"{NAMED}: stats is missing"),
    (at(*INFO, "speedup", "median", value=None), f"{NAMED}: extra_info: speedup: median is null, must be a positive"),
    (at(*INFO, "dense_flops", value=...), f"{NAMED}: extra_info: dense_flops is missing"),
    (at(*INFO, "tokens", value=1.5), f"{NAMED}: extra_info: tokens is 1.5, must be a whole number from 1"),
    (at(*INFO, "mode", value="backward"), f"{NAMED}: extra_info: mode is the text 'backward', must be one of "),
    (at(*INFO, "mode", value=[]), f"{NAMED}: extra_info: mode is a list, must be one of forward, train"),
    (at(*INFO, "budget", value="half"), f"{NAMED}: extra_info: budget is the text 'half', must be null, params=S"),
    (at(*INFO, "series", value="a\x1b[2J"), f"{NAMED}: extra_info: series is the text 'a\\x1b[2J', must be a name"),
    (at(*INFO, "series", value="\ud800"), f"{NAMED}: extra_info: series is the text '\\ud800', must be a name"),
    (at(*INFO, "peak_bytes", value=-1), f"{NAMED}: extra_info: peak_bytes is -1, must be a positive number"),
    (at(*INFO, "energy_joules", value=float("nan")), f"{NAMED}: extra_info: energy_joules is NaN, must be a positive"),
    (
        at("structures", "roofline", 0, "copy_bytes_per_s_by_size", value=[[1e6, -1.0]]),
        "roofline[0]: copy_bytes_per_s_by_size is a list, must be a list of pairs of positive numbers",
    ),
    (at(*INFO, "error", value=float("nan")), f"{NAMED}: extra_info: error is NaN, must be null, a number from 0, or"),
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
    (b"\xff\xff\xff garbage", "not a results file"),
    (b"[" * 100_000, "not a results file"),
    (b'{"benchmarks": [], "benchmarks": []}', "the key 'benchmarks' stands twice in one object"),
    (b"1" * 5000, "not a results file"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_file_is_refused_in_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(BadResults, match=re.escape(message)) as raised:
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
        with pytest.raises(BadResults, match=r"cut\.json"):
            read([path])


def test_the_same_point_twice_is_kept_once_if_equal_and_refused_if_not(tmp_path: Path) -> None:
    first = small()
    second = copy.deepcopy(first)
    assert len(results(tmp_path, first, second).rows) == len(first["benchmarks"])
    second["benchmarks"][3]["stats"]["median"] *= 1.001
    with pytest.raises(BadResults, match=r"the same point twice.*results0\.json and .*results1\.json; leave one"):
        results(tmp_path, first, second)
    with pytest.raises(BadResults, match="the same point twice"):
        results(tmp_path, first | {"benchmarks": first["benchmarks"] + second["benchmarks"]})


def test_machines_commits_and_clocks_never_share_a_panel(tmp_path: Path) -> None:
    other = small()
    other["structures"]["run"]["commit"] = "fedcba9876543210"
    contents = [small(), other, small(cpu="Second CPU"), small(device="cuda", clock="device"), small(device="cuda")]
    made = panels.panels(results(tmp_path, *contents))
    assert len(made) == 5
    for panel in made:
        places = {(tuple(row.run.machine.items()), row.device, row.clock) for row in panel.rows}
        assert len(places) == 1
    assert len({panel.choices["Machine"] + panel.choices["Device"] for panel in made}) == 5
    assert any("commit fedcba987654" in panel.machine for panel in made)


def test_dense_and_the_controls_are_in_every_panel(tmp_path: Path) -> None:
    made = panels.panels(results(tmp_path, made_up(tokens=(128,))))
    assert sorted({panel.budget or "" for panel in made}) == ["", "params=0.125", "params=0.25", "params=0.5"]
    for panel in made:
        kinds = {curve.label: curve.kind for curve in panel.curves}
        assert kinds["dense"] == DENSE and kinds["nn.Linear"] == CONTROL
        assert ("dense_narrow" in kinds) == (panel.budget is not None)
        assert {row.budget for row in panel.rows} <= {None, panel.budget}
    assert (made[0].budget, made[0].mode, made[0].tokens) == ("params=0.25", "forward", 128)


def test_a_budget_that_only_controls_meet_has_no_panel(tmp_path: Path) -> None:
    content = made_up(tokens=(128,), modes=("forward",), structures={"monarch": STRUCTURES["monarch"]})
    content["benchmarks"] = [b for b in content["benchmarks"] if b["extra_info"]["series"] != "monarch @ params=0.5"]
    made = panels.panels(results(tmp_path, content))
    assert {panel.budget for panel in made} == {"params=0.125", "params=0.25", None} and len(made) == 3
    content["benchmarks"] = [b for b in content["benchmarks"] if b["extra_info"]["structure"] != "monarch"]
    [panel] = panels.panels(results(tmp_path, content))
    assert panel.budget is None and {curve.label for curve in panel.curves} == {"dense", "nn.Linear"}


def test_backends_are_curves_of_their_own(tmp_path: Path) -> None:
    content = small(structures={"monarch": STRUCTURES["monarch"]})
    for backend in ("einsum",):
        extra = [copy.deepcopy(b) for b in content["benchmarks"] if b["extra_info"]["structure"] == "monarch"]
        for row in extra[:4]:
            row["extra_info"]["backend"] = backend
        content["benchmarks"] += extra[:4]
    [panel] = panels.panels(results(tmp_path, content))
    labels = {curve.label: curve.kind for curve in panel.curves}
    assert labels["monarch · einsum"] == labels["monarch · planned"] == STRUCTURE
    assert all(len({row.backend for row in curve.rows}) == 1 for curve in panel.curves)


def test_a_backend_chosen_anew_at_each_width_leaves_one_curve(tmp_path: Path) -> None:
    content = small()
    for row in (b["extra_info"] for b in content["benchmarks"]):
        row["backend"] = "addmm" if row["in_features"] < 1024 else "bmm"
    [panel] = panels.panels(results(tmp_path, content))
    assert [len(curve.rows) for curve in panel.curves] == [4] * 6
    assert {curve.backends for curve in panel.curves} == {"addmm, bmm"}


def test_rectangles_are_in_no_curve_against_width(tmp_path: Path) -> None:
    [panel] = panels.panels(results(tmp_path, small(shapes=[*SQUARES, (768, 3072)])))
    assert {row.in_features for curve in panel.curves for row in curve.squares} == {256, 512, 1024, 2048}
    made = specifications(panel, style.styles(panel.curves, ["dense_narrow", *SMALL]), width=300)
    assert list(made) == ["speedup", "time", "flops", "params", "speedup by shape", "time by shape"]
    squares = json.dumps(made["time"].to_dict())
    assert '{"filter": "datum.square"}' in squares and "1536" not in squares


def with_speedups(folder: Path, *speedups: float) -> Curve:
    """The curve of one structure, with the given speed-ups at widths 256, 512, ..."""
    content = small(structures={"monarch": STRUCTURES["monarch"]}, shapes=SQUARES[: len(speedups)])
    rows = [b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["structure"] == "monarch"]
    for row, value in zip(rows, speedups, strict=True):
        row["speedup"] = {"median": value, "q1": value, "q3": value, "rounds": 9}
    [panel] = panels.panels(results(folder, content))
    return next(curve for curve in panel.curves if curve.structure == "monarch")


@pytest.mark.parametrize(
    ("speedups", "width", "said"),
    [
        ((0.5, 2.0), 512, "512"),
        ((0.5, 2.0, 0.5, 2.0), 2048, "2048"),
        ((2.0, 4.0), 256, "256 or less"),
        ((2.0, 0.5), None, "not within what was measured"),
        ((1.0, 1.0), None, "not within what was measured"),
    ],
)
def test_break_even_is_the_width_from_which_on_a_structure_is_faster(
    speedups: tuple[float, ...], width: int | None, said: str, tmp_path: Path
) -> None:
    row, sentence = verdicts.break_even(with_speedups(tmp_path, *speedups).rows)
    assert sentence == said and (row and row.in_features) == width


def test_a_median_above_1_does_not_break_even_where_the_lower_quartile_is_below(tmp_path: Path) -> None:
    content = small(structures={"monarch": STRUCTURES["monarch"]}, shapes=SQUARES[:2])
    rows = [b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["structure"] == "monarch"]
    for row, low in zip(rows, (1.01, 0.99), strict=True):
        row["speedup"] = {"median": 1.2, "q1": low, "q3": 1.3, "rounds": 9}
    [table] = breaks.tables(panels.panels(results(tmp_path, content)))
    [cell] = table.lines["monarch"].values()
    assert cell.start is None and cell.said == "not within what was measured" and cell.arrived == "30 % at 512"


def test_the_saving_that_arrives_is_the_speedup_over_the_saving_in_flops(tmp_path: Path) -> None:
    [row] = with_speedups(tmp_path, 3.0).rows
    assert row.dense_flops / row.flops == 4
    assert row.arrival == 0.75


def with_all_speedups(speeds: dict[str, tuple[float, float, float]], **changes: Any) -> dict[str, Any]:
    """Made-up results in which structures have these speed-ups (median, q1, q3) everywhere, and controls 9."""
    content = small(**changes)
    for row in (b["extra_info"] for b in content["benchmarks"]):
        given = (9.0, 9.0, 9.0) if row["control"] else speeds.get(row["structure"])
        if given:
            row["speedup"] = dict(zip(("median", "q1", "q3", "rounds"), (*given, 9), strict=True))
    return content


def test_the_overview_names_the_fastest_and_what_cannot_be_told_from_it(tmp_path: Path) -> None:
    speeds = {"dyad_it": (3.0, 2.9, 3.1), "dyad_ot": (2.95, 2.8, 3.05), "monarch": (1.5, 1.4, 1.6)}
    found = results(tmp_path, with_all_speedups(speeds))
    made = panels.panels(found)
    rows = [(label, row) for label, row in verdicts.candidates(made[0]) if row.in_features == 2048]
    best = verdicts.best(rows)
    assert best and (best.label, best.close, best.after, best.dense) == ("dyad_it", ("dyad_ot",), "dyad_ot", False)
    assert best.tie and best.lead == pytest.approx(3.0 / 2.95)
    said = winners.sentence(made, made[0])
    assert "forward, float32 on cpu: of the 4 layers measured, dyad_it is fastest at 4; 4 of these are ties" in said
    assert "The largest gain is dyad_it's, 3.0" in said and said in rendered(found).replace("&#39;", "'")
    [view] = viewed(found, "winners")
    assert [record["margin"].split("\n")[1] for record in view.records] == ["tie"] * 4


@pytest.mark.parametrize(
    ("speeds", "dense", "close", "lead"),
    [
        ({"dyad_it": (0.8, 0.7, 0.9), "dyad_ot": (0.5, 0.4, 0.6)}, True, (), 1.25),
        ({"dyad_it": (0.8, 0.7, 1.1), "dyad_ot": (0.5, 0.4, 0.6)}, True, ("dyad_it",), 1.25),
        ({"dyad_it": (1.6, 1.4, 1.7), "dyad_ot": (0.5, 0.4, 0.6)}, False, (), 1.6),
        ({"dyad_it": (1.2, 0.9, 1.4), "dyad_ot": (0.5, 0.4, 0.6)}, False, ("dense",), 1.2),
        ({"dyad_it": (3.0, 2.9, 3.1), "dyad_ot": (2.0, 1.9, 2.1)}, False, (), 1.5),
    ],
)
def test_dense_may_win_and_may_tie(
    speeds: dict[str, tuple[float, float, float]], dense: bool, close: tuple[str, ...], lead: float, tmp_path: Path
) -> None:
    structures = {name: STRUCTURES[name] for name in speeds}
    found = results(tmp_path, with_all_speedups(speeds, structures=structures, shapes=[(256, 256)]))
    made = panels.panels(found)
    best = verdicts.best(verdicts.candidates(made[0]))
    assert best and (best.dense, best.close, best.lead) == (dense, close, pytest.approx(lead))
    said = winners.sentence(made, made[0])
    assert ("dense stays ahead at 1" in said) == dense == ("No structure is faster than dense there." in said)


def test_a_control_wins_nothing(tmp_path: Path) -> None:
    content = with_all_speedups({"dyad_it": (2.0, 1.9, 2.1)}, structures={"dyad_it": STRUCTURES["dyad_it"]})
    for row in (b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["control"]):
        row["speedup"] = {"median": 50.0, "q1": 49.0, "q3": 51.0, "rounds": 9}
    found = results(tmp_path, content)
    [panel] = panels.panels(found)
    assert {row.structure for _, row in verdicts.candidates(panel)} == {"dyad_it"}
    [cells] = {tuple(record["name"] for record in view.records) for view in viewed(found, "winners")}
    assert set(cells) == {"dyad_it"}
    assert not [view for view in viewed(found, "pareto") for _, rows in view.content["fronts"].values() for row in rows
                if row.control]  # fmt: skip


def test_a_front_holds_those_that_no_other_of_as_much_cost_outruns() -> None:
    points = [(0.25, 0.5), (0.25, 0.4), (0.5, 0.45), (0.125, 0.42), (1.0, 1.0), (0.01, 0.1)]
    assert [points[i] for i in pareto.front(points)] == [(0.01, 0.1), (0.25, 0.4), (0.5, 0.45), (1.0, 1.0)]
    assert pareto.front([]) == []


def test_flops_executed_are_shown_beside_those_counted_where_they_differ(tmp_path: Path) -> None:
    content = small(shapes=[(256, 256), (512, 512)])
    [panel] = panels.panels(found := results(tmp_path, content))
    assert "executed" not in specifications(panel, style.styles(panel.curves, ["dense_narrow", *SMALL]), width=300)
    assert {tuple(view.content["fronts"]) for view in viewed(found, "pareto")} == {("parameters", "FLOPs")}
    for info in (b["extra_info"] for b in content["benchmarks"] if b["extra_info"]["structure"] == "monarch"):
        info["executed_flops"] = 4 * info["flops"]
    [panel] = panels.panels(found := results(tmp_path, content))
    made = specifications(panel, style.styles(panel.curves, ["dense_narrow", *SMALL]), width=300)
    assert list(made) == ["speedup", "time", "flops", "executed", "params"]
    for view in viewed(found, "pareto"):
        assert (
            list(view.content["fronts"])
            == ["parameters", "FLOPs", "FLOPs executed"]
            == [chart.removeprefix("Time against ") for chart in view.specifications]
        )
        ratios = {row.structure: record["executed_share"] / record["flops_share"]
                  for row, record in zip(view.rows, view.records, strict=True)}  # fmt: skip
        assert ratios.pop("monarch") == 4 and set(ratios.values()) == {1}
    assert (
        f"<small>{words.span([row.executed_share for row in found.rows if row.structure == 'monarch'])} executed"
        in (rendered(found))
    )


def test_backends_of_one_layer_are_set_against_each_other(tmp_path: Path) -> None:
    content = with_all_speedups({"dyad_it": (2.0, 1.9, 2.1)}, structures={"dyad_it": STRUCTURES["dyad_it"]},
                                shapes=[(256, 256)])  # fmt: skip
    assert viewed(results(tmp_path, content), "backends") == []
    ours = next(b for b in content["benchmarks"] if b["extra_info"]["structure"] == "dyad_it")
    for backend, speed in (("einsum", (1.0, 0.9, 1.1)), ("bmm", (1.95, 1.85, 2.05))):
        other = copy.deepcopy(ours)
        other["extra_info"]["backend"] = backend
        other["extra_info"]["speedup"] = dict(zip(("median", "q1", "q3", "rounds"), (*speed, 9), strict=True))
        content["benchmarks"].append(other)
    [view] = viewed(results(tmp_path, content), "backends")
    [contest] = view.content["contests"]
    assert [row.backend for row in contest.rows] == ["planned", "bmm", "einsum"]
    assert contest.tie and contest.lead == pytest.approx(2.0 / 1.95)
    assert [record["won"] for record in view.records] == [True, False, False]
    assert [label for _, label, _ in view.legend] == ["planned", "bmm", "einsum"]


def test_the_roofline_says_what_binds_each_point(tmp_path: Path) -> None:
    content = small()
    bounds = ("arithmetic", "memory", "calls")
    for i, row in enumerate(b["extra_info"] for b in content["benchmarks"]):
        row["roofline"] = {"bound": bounds[i % 3], "fraction": 0.5}
    limit = content["structures"]["roofline"][0]
    limit["copy_bytes_per_s_by_size"] = [[1e6, 9e10], [1e8, 1.8e10]]
    found = results(tmp_path, content)
    [view] = viewed(found, "roofline")
    assert view.content["limits"].cache_bytes_per_s == 9e10
    assert {record["c"] for record in view.records} == set(bounds)
    for record in view.records:
        row = view.rows[record["i"]]
        assert record["c"] == row.bound and not row.control
        assert record["rate"] == row.executed_flops / row.time.median
        assert record["intensity"] == row.executed_flops / row.bytes
    limit["dtype"] = "bfloat16"  # of another dtype: says nothing about these points
    assert viewed(results(tmp_path, content), "roofline") == []


def test_memory_is_drawn_where_rows_say_what_was_saved(tmp_path: Path) -> None:
    content = small(modes=("train",))
    assert viewed(results(tmp_path, content), "memory") == []
    for row in (b["extra_info"] for b in content["benchmarks"]):
        row |= {"activation_bytes": 1000, "checkpoint_bytes": 2000, "peak_bytes": 9000, "energy_joules": 0.5}
    found = results(tmp_path, content)
    [view] = viewed(found, "memory")
    saved_ = [record for record in view.records if record.get("part") == "saved for backward"]
    held = [record for record in view.records if record.get("part") == "parameters"]
    assert {record["end"] for record in saved_} == {1000} and len(saved_) == 4
    assert all(record["end"] - record["start"] == view.rows[record["i"]].params * 4 for record in held)
    assert [record["end"] for record in view.records if record.get("mark") == "checkpoint"] == [2000] * 4
    assert [record["end"] for record in view.records if record.get("mark") == "allocator peak"] == [9000] * 4
    text = rendered(found)
    assert "Energy was not measured" not in text and "500 mJ a call" in text
    assert "Energy was not measured" in rendered(results(tmp_path, small()))


def test_every_chart_can_be_linked_to(tmp_path: Path) -> None:
    tags = Elements(rendered(results(tmp_path, small(shapes=[*SQUARES, (768, 3072)])))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    links = {a["href"][1:] for tag, a in tags if tag == "a" and (a.get("href") or "").startswith("#") and a["href"]}
    drawings = [attributes for _, attributes in tags if attributes.get("class") == "drawing"]
    assert len(ids) == len(set(ids)) and links <= set(ids)
    assert (
        len([link for link in links if "." in link and link.rpartition(".")[2].isdigit()])
        == len(drawings)
        == 6 + 10 + 2
    )


def test_an_incomplete_run_is_said_to_be_one(tmp_path: Path) -> None:
    content = small()
    assert "not complete" not in rendered(results(tmp_path, content))
    content["structures"]["run"]["complete"] = False
    assert "is not complete: points are missing" in rendered(results(tmp_path, content))


SPARSE = {
    "one point": small(structures={}, shapes=[(256, 256)], budgets={None: None}),
    "rectangles only": small(shapes=[(768, 3072)]),
    "no dense": small() | {"benchmarks": small()["benchmarks"][3:6]},
    "refusals only": small(structures={"blast": STRUCTURES["blast"]}, shapes=[(256, 256)]) | {"benchmarks": []},
}


@pytest.mark.parametrize("content", SPARSE.values(), ids=SPARSE)
def test_a_sparse_file_still_makes_a_page(content: dict[str, Any], tmp_path: Path) -> None:
    found = results(tmp_path, content)
    text = rendered(found)
    data = json.loads(Elements(text).scripts[0])
    assert len(data["rows"]) == len(found.rows)
    assert {record["i"] for view in data["views"].values() for record in view["records"]} == set(range(len(found.rows)))
    assert ("No point was measured" in text) == (not found.rows)


def test_curves_differ_without_their_colours(tmp_path: Path) -> None:
    for panel in panels.panels(results(tmp_path, made_up(tokens=(128,), modes=("forward",)))):
        looks = style.styles(panel.curves, list(STRUCTURES))
        seen = [(look.marker, look.dash, look.hollow) for look in looks.values()]
        assert len(seen) >= 13 and len(set(seen)) == len(seen)
        dyad = {looks[curve.id].colour for curve in panel.curves if curve.structure.startswith("dyad")}
        assert dyad == {style.DYAD} != {looks[curve.id].colour for curve in panel.curves if curve.kind == DENSE}


@pytest.mark.parametrize("wanted", [[], [5], [50, 50, 50], [0, 1, 99, 100], [100] * 8, list(range(0, 100, 12))])
def test_labels_stay_in_order_and_apart(wanted: list[float]) -> None:
    placed = layout.apart({str(i): w for i, w in enumerate(wanted)}, 12, 100)
    heights = [placed[str(i)] for i in range(len(wanted))]
    assert heights == sorted(heights)
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(heights))
    assert all(0 <= height <= 100 + 1e-9 for height in heights)


@pytest.mark.parametrize("limits", [(0.9, 1.3), (0.04, 12.0), (1e-5, 2.0), (3e6, 4e12)])
def test_an_axis_has_a_few_round_ticks(limits: tuple[float, float]) -> None:
    ticks = layout.ticks(*limits)
    assert 2 <= len(ticks) <= 9 and limits[0] <= min(ticks) and max(ticks) <= limits[1]


def test_numbers_are_written_for_readers() -> None:
    times = [words.prefixed(value, "s") for value in (1.234e-5, 0.9996e-3, 2.0, 3e-8)]
    assert times == ["12.3 µs", "1.00 ms", "2.00 s", "30.0 ns"]
    ratios = [words.ratio(value).strip(words.TIMES) for value in (3.14, 0.944, 12.4, 0.9999)]
    assert ratios == ["3.1", "0.94", "12", "1.0"]
    assert [words.share(v) for v in (0.25, 0.125, 0.002, 1.0, 15.0)] == ["25 %", "12.5 %", "0.2 %", "100 %", "1500 %"]
    assert words.quartiles(Spread(3.0, 2.9, 3.1, 9)) == "2.9 to 3.1"
    assert [words.error(e) for e in (None, 1.2e-7, {"y": 1e-7, "dx": 3e-7})] == ["", "1.2e-07", "3.0e-07"]


def test_every_chart_says_what_it_shows(tmp_path: Path) -> None:
    found = results(tmp_path, small())
    text = rendered(found)
    for quantity in charts.QUANTITIES:
        assert quantity.field == "executed" or quantity.title in text  # executed FLOPs are shown where they differ
    captions = [part.split("</figcaption>")[0] for part in text.split("<figcaption>")[1:]]
    assert len(captions) == 1 + 1 + 4 + 1  # of the winner map, the curves, the fronts at four widths, the roofline
    where = ("Made-up CPU", "float32", "2 threads", "host clock", "mallopt", "torch 2.13", "2031-02-03", "012345678")
    for caption in captions:
        assert not [said for said in where if said not in caption]
