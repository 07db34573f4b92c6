"""The report in a real browser: the answer is recommend's, everything is drawn and reached, nothing leaves the page."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, installed, started
from made_up import refusal
from test_report import MARKUP, STRUCTURES, a_chart, made_up, rendered, saved, small
from test_training_report import comparison
from test_training_report import document as training
from test_training_report import row as trained

from bench.__main__ import main
from bench.report.drawing import plot

pytestmark = pytest.mark.skipif(installed() is None, reason="no chromium is installed: apt-get install chromium")

SOME = {name: STRUCTURES[name] for name in ("block_diagonal", "dyad_dt", "dyad_it", "blast", "low_rank", "monarch")}
ROOT = Path(__file__).parents[2]
PHONE, LAPTOP = (390, 844), (1300, 900)  # CSS pixels
TABS = ("answer", "layers", "why", "data")
WORDS = """((first) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const holder = texts.currentNode.parentElement, option = holder.closest("option");
    const shown = option ? option.closest("select") : holder;
    if ((option && !option.selected) || holder.closest("script, style") || !shown.checkVisibility()) continue;
    const box = shown.getBoundingClientRect();
    if (first && (box.top > innerHeight || box.bottom < 0)) continue;
    count += texts.currentNode.data.split(/\\s+/).filter((word) => /\\p{L}/u.test(word)).length;
  }
  return count;
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as found:
        yield found


def content() -> dict[str, Any]:
    """Made-up results with every part of the page: two budgets and own options, rectangles, memory, two backends."""
    made = made_up(structures=SOME | {"mine": (0.25, 2.0, 0.6)}, shapes=[(256, 256), (512, 512), (768, 3072)],
                   tokens=(1, 128), budgets={"params=0.25": 0.25, "params=0.5": 0.5, None: None})  # fmt: skip
    for row in (b["extra_info"] for b in made["benchmarks"]):
        row["activation_bytes"] = 4 * row["tokens"] * row["in_features"] if row["mode"] == "train" else None
        row |= {"own": True} if row["structure"] == "mine" else {}
    more = copy.deepcopy([b for b in made["benchmarks"] if b["extra_info"]["structure"] == "monarch"])
    for row in (b["extra_info"] for b in more):
        row["backend"] = "einsum"
        row["speedup"] = {key: value * (0.8 if key != "rounds" else 1) for key, value in row["speedup"].items()}
    return made | {"benchmarks": made["benchmarks"] + more}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A made-up run of a CPU, one of a GPU on its own clock, and made-up losses."""
    gpu = small(device="cuda", clock="device", shapes=[(256, 256), (512, 512)])
    gpu["structures"]["run"]["device_names"]["cuda"] = "Made-up GPU"
    losses = training([*comparison(), *(trained("removed", 2.6, seed) for seed in range(3))])
    return saved(tmp_path_factory.mktemp("results"), content(), gpu, losses)


@pytest.fixture(scope="module")
def page(results: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    assert main(["report", *map(str, results), "-o", str(out)]) == 0
    return out / "index.html"


def sized(browser: Browser, size: tuple[int, int]) -> None:
    browser.do("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)


def settled(browser: Browser) -> None:
    browser.wait("[...document.querySelectorAll('.drawing')].every((d) => d.dataset.drawn || !d.checkVisibility())")


def at(browser: Browser, tab: str) -> None:
    """Go to a tab by the address of the page that is open."""
    browser.run(f"location.hash = 'tab={tab}'")
    browser.wait(f"document.documentElement.dataset.ready === '{tab}'")
    settled(browser)


def names(browser: Browser) -> list[str]:
    found: list[str] = browser.run("[...document.querySelectorAll('#ranking tbody tr')].map((row) => row.dataset.name)")
    return found


@pytest.mark.parametrize(
    ("layer", "tokens", "mode", "held", "options"),
    [
        ("512x512", "128", "forward", "25 % of dense parameters", ["--params", "25%"]),
        ("768x3072", "1", "train", "50 % of dense parameters", ["--params", "50%"]),
        ("256x256", "128", "train", "25 % of dense FLOPs", ["--flops", "25%"]),
    ],
)
def test_the_answer_on_the_page_is_that_of_recommend(
    layer: str, tokens: str, mode: str, held: str, options: list[str],
    browser: Browser, page: Path, results: list[Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    width, out = layer.split("x")
    asked = ["--in", width, "--out", out, "--tokens", tokens, "--mode", mode, *options]
    assert main(["recommend", str(results[0]), str(results[2]), *asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    verdict = told["verdict"]
    sized(browser, LAPTOP)
    browser.open(page)
    for name, value in (("layer", layer), ("tokens", tokens), ("mode", mode), ("held", held)):
        browser.run(f"((s) => {{ s.value = '{value}'; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
                    f"(document.querySelector('#picker [name={name}]'))")  # fmt: skip
    browser.run("document.querySelector('#ranking-note button')?.click()")
    settled(browser)
    assert browser.run("document.querySelector('#sentence').textContent") == told["sentence"]
    assert mode != "forward" or "loss +" in told["sentence"], "made-up losses are part of the answer"
    assert names(browser) == [one["structure"] for one in (*verdict["ranking"], *verdict["below"])]
    ranks = browser.run(
        "[...document.querySelectorAll('#ranking tbody tr')].map((row) => parseInt(row.cells[0].textContent))"
    )
    assert ranks[: len(verdict["ranking"])] == [one["rank"] for one in verdict["ranking"]]
    assert browser.complaints() == []


def test_the_address_holds_what_is_picked(browser: Browser, page: Path) -> None:
    browser.open(page, "layer=768x3072&mode=train&tab=why")
    picked = "[...document.querySelectorAll('#picker select')].slice(0, 3).map((select) => select.value)"
    assert browser.run(picked)[::2] == ["768x3072", "train"]
    assert browser.run("document.querySelector('#why').checkVisibility()")
    browser.run("document.querySelector('[aria-controls=answer]').click()")
    place = browser.run("location.hash.slice(1)")
    browser.open(page, place)
    assert browser.run(picked)[::2] == ["768x3072", "train"] and browser.run(
        "document.querySelector('#answer').checkVisibility()"
    )
    browser.open(page, "layer=1x1&tab=nowhere&y=nothing")
    assert browser.run("document.querySelector('#sentence').textContent") and browser.complaints() == []


def test_every_part_is_drawn_and_nothing_is_asked_for(browser: Browser, page: Path) -> None:
    sized(browser, LAPTOP)
    marks = {}
    for tab in TABS:
        browser.open(page, f"tab={tab}&mode=train")
        for id in browser.run(
            f"[...document.querySelectorAll('#{tab} :is(.drawing, table)')]"
            ".filter((e) => e.checkVisibility()).map((e) => e.id)"
        ):
            marks[id] = browser.run(
                f"document.querySelectorAll('#{id} :is([aria-roledescription=point], tbody tr)').length"
            )
        assert browser.complaints() == []
    assert set(marks) - {"quality"} == {
        "ranking",
        "scaling",
        "map",
        "roofline",
        "memory",
        "backends",
        "points",
        "refused",
    }
    assert all(marks.values()) and marks["points"] == 336 and marks["map"] == 4


def test_a_complaint_is_heard(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/a.png'><script>console.error('heard'); nothing.at.all;</script>")
    browser.open(bad)
    said = " ".join(browser.complaints())
    assert "request: http://127.0.0.1:9/a.png" in said and "heard" in said and "exception: Uncaught" in said
    bad.write_text("<div class='drawing'>never drawn</div>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("browser.PATIENCE", 1.0)
        with pytest.raises(AssertionError, match="still not so"):
            browser.open(bad)


@pytest.mark.parametrize("beside", [True, False])
def test_the_page_makes_of_a_chart_what_the_pictures_make(beside: bool, browser: Browser, page: Path) -> None:
    browser.open(page)
    chart = a_chart("dyad_it", "monarch", "low_rank", "dense", beside=beside)
    made = browser.run(f"spec({json.dumps(asdict(chart))}, 400)")
    wanted = json.loads(json.dumps(plot.spec(chart, 400)))
    for one in (made, wanted):
        for label in one["datasets"]["labels"]:
            label["y"] = round(label["y"], 9)
        for layer in one["layer"]:
            for channel in ("x", "y"):
                layer["encoding"][channel]["scale"]["domain"] = [
                    round(v, 9) for v in layer["encoding"][channel]["scale"]["domain"]
                ]
    assert made == wanted


def test_a_name_is_added_to_the_scaling_chart_and_taken_out_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    pressed = "[...document.querySelectorAll('#names [aria-pressed=true]')].map((button) => button.textContent)"
    before = browser.run(pressed)
    assert "mine" in before, "an entry of a user's registry file is in colour by itself"
    assert any(name.startswith("dyad") for name in before) and any("dense" in name for name in before)
    assert len(before) < browser.run("document.querySelectorAll('#names button').length")
    added = browser.run("document.querySelector('#names [aria-pressed=false]').textContent")
    browser.run("document.querySelector('#names [aria-pressed=false]').focus()")
    browser.press("Enter")
    settled(browser)
    assert set(browser.run(pressed)) == {*before, added}
    assert added in browser.run("document.querySelector('#scaling svg').textContent")
    assert f"add={added}" in browser.run("location.hash")
    browser.open(page, browser.run("location.hash.slice(1)") + "&y=params&x=tokens&of=own&layer=256x256")
    said = browser.run("document.querySelector('#scaling svg').textContent")
    assert "parameters" in said and "tokens" in said and browser.complaints() == []


def test_a_cell_of_all_layers_opens_its_ranking(browser: Browser, page: Path) -> None:
    browser.open(page, "tab=layers")
    browser.run("document.querySelector('#map tbody tr:last-child td:last-child button').focus()")
    browser.press("Enter")
    settled(browser)
    assert browser.run("document.querySelector('#answer').checkVisibility()")
    assert browser.run("document.querySelector('#picker [name=layer]').value") == "768x3072"


def test_points_are_filtered_and_sorted_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, "data")
    browser.run("document.querySelector('#filter').focus()")
    browser.do("Input.insertText", text="monarch train einsum")
    rows = "[...document.querySelectorAll('#points tbody tr')].filter((row) => row.checkVisibility())"
    words = browser.run(f"{rows}.map((row) => row.textContent)")
    assert len(words) == 18 and all("monarch" in row and "train" in row and "einsum" in row for row in words)
    headings = browser.run("[...document.querySelectorAll('#points th button')].map((b) => b.textContent.trim())")
    assert headings[2] == "speed-up"
    column = headings.index("time")
    times = f"{rows}.map((row) => Number(row.cells[{column}].dataset.v))"
    for arrow, reverse in (("ascending", False), ("descending", True)):
        browser.run(f"document.querySelectorAll('#points th button')[{column}].focus()")
        browser.press("Enter")
        assert browser.run(f"document.querySelectorAll('#points th')[{column}].ariaSort") == arrow
        assert browser.run(times) == sorted(browser.run(times), reverse=reverse)
    browser.run("document.querySelector('#points').closest('.scroll').scrollLeft = 500")
    left = "document.querySelector('#points tbody tr:not([hidden]) th').getBoundingClientRect().left"
    assert 0 <= browser.run(left) < 80, "the first column stays"


def test_pointing_at_a_mark_tells_four_lines(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#scaling').scrollIntoView({block: 'center'})")
    boxes = (
        "[...document.querySelectorAll('#scaling [aria-roledescription=point]')].map((p) => p.getBoundingClientRect())"
    )
    x, y = browser.run(f"{boxes}.map((b) => [b.x + b.width / 2, b.y + b.height / 2])")[-1]
    browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('#vg-tooltip-element')?.classList.contains('visible')")
    said = browser.run("document.querySelector('#vg-tooltip-element').innerText")
    assert all(name in said for name in ("layer", "speed-up", "of dense"))
    assert browser.run("document.querySelectorAll('#vg-tooltip-element :is(h2, tr)').length") == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_light_and_dark(scheme: str, browser: Browser, page: Path) -> None:
    browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    brightness = "((c) => c.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765)"
    paper = browser.run(f"{brightness}(getComputedStyle(document.documentElement).backgroundColor)")
    ink = browser.run(f"{brightness}(getComputedStyle(document.querySelector('#scaling svg text')).fill)")
    browser.do("Emulation.setEmulatedMedia", features=[])
    assert (paper > 0.9 and ink < 0.3) if scheme == "light" else (paper < 0.2 and ink > 0.8)


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_the_page_never_scrolls_sideways_and_has_few_words(size: tuple[int, int], browser: Browser, page: Path) -> None:
    sized(browser, size)
    wide, words = {}, {}
    for tab in TABS:
        browser.open(page, f"tab={tab}")
        wide[tab] = browser.run("document.documentElement.scrollWidth")
        words[tab] = browser.run(f"{WORDS}(false)")
    browser.open(page)
    first = browser.run(f"{WORDS}(true)")
    browser.run("document.body.insertAdjacentHTML('beforeend', '<div id=wide style=\"width:2000px\">x</div>')")
    assert browser.run("document.documentElement.scrollWidth") > size[0], "what is too wide is seen"
    sized(browser, LAPTOP)
    assert max(wide.values()) <= size[0]
    assert first < 150 and all(words[tab] < 1200 for tab in ("answer", "layers", "why"))


def test_the_committed_results_fit_the_page_and_files_of_a_kind_share_a_tab(browser: Browser, tmp_path: Path) -> None:
    files = sorted((ROOT / "bench" / "results").glob("*/*.json"))
    assert main(["report", *map(str, files), "-o", str(tmp_path)]) == 0
    page = tmp_path / "index.html"
    sized(browser, LAPTOP)
    browser.open(page)
    tabs = browser.run("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.getAttribute('aria-controls'))")
    assert len(tabs) == 10 and browser.run(f"{WORDS}(true)") < 150
    shared = next(tab.split() for tab in tabs if " " in tab)
    for section in [one for tab in tabs for one in tab.split()]:
        at(browser, section)
        assert browser.run(f"{WORDS}(false)") < 1200 and browser.complaints() == [], section
    at(browser, shared[0])
    browser.run(f"document.querySelector('#{shared[0]} .files a:not([aria-current])').click()")
    settled(browser)
    assert browser.run(f"document.querySelector('#{shared[1]}').checkVisibility()")
    assert browser.run("document.querySelector('[role=tab][aria-selected=true]').hash") == f"#{shared[0]}"


def test_everything_to_choose_has_a_name_and_headings_leave_no_level_out(browser: Browser, page: Path) -> None:
    for tab in TABS:
        browser.open(page, f"tab={tab}")
        tree = browser.do("Accessibility.getFullAXTree")["nodes"]
        roles = ("combobox", "button", "link", "tab", "textbox", "searchbox", "region", "graphics-document")
        nameless = [
            node["role"]["value"] for node in tree
            if not node["ignored"] and node["role"]["value"] in roles and not node.get("name", {}).get("value")
        ]  # fmt: skip
        assert nameless == []
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))


def hostile() -> dict[str, Any]:
    made = small(structures={name: (0.25, 2.0, 0.5 + 0.04 * i) for i, name in enumerate(MARKUP)}, modes=("train",))
    made["structures"]["run"] |= {"cpu": MARKUP[0], "argv": MARKUP, "allocator": MARKUP[1]}
    made["structures"]["refused"].append(refusal(MARKUP[1], MARKUP[0], budget=None, in_features=1))
    more = []
    for benchmark in made["benchmarks"]:
        row = benchmark["extra_info"]
        row |= {"flags": [MARKUP[0]] if row["structure"] == MARKUP[2] else [], "options": {MARKUP[1]: MARKUP[0]}}
        if row["structure"] == MARKUP[1]:
            more.append(copy.deepcopy(benchmark))
            more[-1]["extra_info"]["backend"] = MARKUP[0]
    return made | {"benchmarks": made["benchmarks"] + more}


def test_a_hostile_file_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(rendered(tmp_path, hostile()), encoding="utf-8")
    for tab in TABS:
        browser.open(path, f"tab={tab}&add={MARKUP[0]}")
        assert browser.complaints() == []
        assert browser.run("document.querySelectorAll('img, iframe, object').length") == 0
        assert browser.run("document.scripts.length") == 3
    browser.open(path)
    browser.run("document.querySelector('#ranking-note button').click()")
    settled(browser)
    assert "<script>" in browser.run("document.querySelector('#ranking').textContent")
    boxes = (
        "[...document.querySelectorAll('#scaling [aria-roledescription=point]')].map((p) => p.getBoundingClientRect())"
    )
    browser.run("document.querySelector('#scaling').scrollIntoView({block: 'center'})")
    for x, y in browser.run(f"{boxes}.map((b) => [b.x + b.width / 2, b.y + b.height / 2])")[:4:3]:
        browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)  # tooltips are written by the library
        browser.wait("document.querySelector('#vg-tooltip-element')?.classList.contains('visible')")
    assert browser.complaints() == []
