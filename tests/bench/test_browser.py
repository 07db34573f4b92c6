"""The report in a real browser: charts are drawn, filters work by keyboard, and nothing leaves or breaks the page."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, installed, started
from test_report import MARKUP, STRUCTURES, made_up, refusal, rendered, results, small

pytestmark = pytest.mark.skipif(installed() is None, reason="no chromium is installed: apt-get install chromium")

SOME = {name: STRUCTURES[name] for name in ("block_diagonal", "dyad_dt", "dyad_it", "kronecker", "low_rank", "monarch")}
PHONE, LAPTOP = (360, 740), (1366, 768)  # CSS pixels


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of chart."""
    folder = tmp_path_factory.mktemp("page")
    content = made_up(structures=SOME, shapes=[(256, 256), (768, 3072)], tokens=(1, 128),
                      budgets={"params=0.25": 0.25, None: None})  # fmt: skip
    for row in (b["extra_info"] for b in content["benchmarks"]):
        row["activation_bytes"] = 4 * row["tokens"] * row["in_features"] if row["mode"] == "train" else None
    more = copy.deepcopy([b for b in content["benchmarks"] if b["extra_info"]["structure"] == "monarch"])
    for row in (b["extra_info"] for b in more):
        row["backend"] = "einsum"
        row["speedup"] = {key: value * (0.8 if key != "rounds" else 1) for key, value in row["speedup"].items()}
    path = folder / "index.html"
    path.write_text(rendered(results(folder, content | {"benchmarks": content["benchmarks"] + more})), encoding="utf-8")
    return path


def sized(browser: Browser, size: tuple[int, int]) -> None:
    browser.do("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)


def shown(group: str) -> str:
    """JavaScript: the view of a group that is not hidden."""
    return f"document.getElementById('{group}').parentElement.querySelector('.panel:not([hidden])')"


def middles(browser: Browser, group: str) -> list[tuple[float, float]]:
    """Where the points of a group's view are in the window."""
    points = f"[...{shown(group)}.querySelectorAll('[aria-roledescription=\"point\"]')]"
    boxes = f"{points}.map((point) => point.getBoundingClientRect())"
    return [(x, y) for x, y in browser.run(f"{boxes}.map((b) => [b.x + b.width / 2, b.y + b.height / 2])")]


def test_every_chart_is_drawn_and_nothing_is_asked_for(browser: Browser, page: Path) -> None:
    sized(browser, LAPTOP)
    browser.open(page)
    marks = browser.run(
        "Object.fromEntries([...document.querySelectorAll('.group')].map((group) => [group.querySelector('h2').id, "
        "[...group.querySelectorAll('.panel:not([hidden]) .drawing')].map((drawing) => "
        "drawing.querySelectorAll('[role=graphics-symbol]:not([aria-roledescription=axis], "
        "[aria-roledescription=legend])').length)]))"
    )
    assert set(marks) == {"winners", "curves", "break-even", "pareto", "roofline", "memory", "backends"}
    # two modes; four quantities and two by shape; two costs; the rest one, memory also for the rectangle
    assert [len(marks[group]) for group in marks] == [2, 6, 0, 2, 1, 2, 1]
    assert all(count for counts in marks.values() for count in counts)
    assert marks["winners"] == [4, 4], "a cell for each shape and number of tokens"
    text = "document.querySelector('#winners').parentElement.querySelector('svg').textContent"
    assert "block_diagonal" in browser.run(text).replace("_ ", "_") or "low_rank" in browser.run(text)
    assert browser.complaints() == []


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


def test_a_view_is_chosen_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert "forward, " in browser.run(shown("curves") + ".querySelector('h3').textContent")
    browser.run("document.querySelector('#curves').parentElement.querySelector('[name=Mode]:checked').focus()")
    browser.press("ArrowRight")
    browser.wait(f"{shown('curves')}.querySelector('h3').textContent.includes('train')")
    browser.wait(f"[...{shown('curves')}.querySelectorAll('.drawing')].every((drawing) => drawing.dataset.drawn)")
    assert browser.run("document.activeElement.name + document.activeElement.value") == "Modetrain"
    assert browser.run(f"{shown('pareto')}.querySelector('h3').textContent.includes('forward')")
    assert browser.complaints() == []


def test_a_structure_is_taken_out_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = f"{shown('pareto')}.querySelectorAll('[aria-roledescription=\"point\"]').length"
    before = browser.run(count)
    assert before
    browser.run(f"{shown('pareto')}.querySelector('.show').focus()")
    browser.press("Space")
    browser.wait(f"{count} < {before} && {count} > 0")
    browser.press("Space")
    browser.wait(f"{count} === {before}")


def test_points_are_filtered_and_sorted_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, "points")
    browser.run("document.querySelector('#points').parentElement.querySelector('summary').focus()")
    browser.press("Enter")
    browser.run("document.querySelector('[data-filters=points-table]').focus()")
    browser.do("Input.insertText", text="monarch train einsum")
    rows = "[...document.querySelectorAll('#points-table tbody tr')].filter((row) => row.checkVisibility())"
    words = browser.run(f"{rows}.map((row) => row.textContent)")
    assert len(words) == 8 and all("monarch" in row and "train" in row and "einsum" in row for row in words)
    names = browser.run("[...document.querySelectorAll('#points-table th button')].map((b) => b.textContent.trim())")
    column = names.index("Time")
    times = f"{rows}.map((row) => Number(row.cells[{column}].dataset.v))"
    for arrow, reverse in (("ascending", False), ("descending", True)):
        browser.run(f"document.querySelectorAll('#points-table th button')[{column}].focus()")
        browser.press("Enter")
        assert browser.run(f"document.querySelectorAll('#points-table th')[{column}].ariaSort") == arrow
        assert browser.run(times) == sorted(browser.run(times), reverse=reverse)


def test_a_link_to_a_chart_shows_the_view_it_is_in(browser: Browser, page: Path) -> None:
    place = "params-0.25-train-1-tokens-float32-cpu-2-threads.2"
    browser.open(page, place)
    assert browser.run(f"document.getElementById('{place}').checkVisibility()")
    top = browser.run(f"document.getElementById('{place}').getBoundingClientRect().top")
    assert -5 < top < LAPTOP[1]
    checked = "document.querySelector('#curves').parentElement.querySelector('[name=Tokens]:checked').value"
    assert browser.run(checked) == "1"


def test_pointing_at_a_mark_tells_everything_known_of_it(browser: Browser, page: Path) -> None:
    browser.open(page, "pareto")
    x, y = middles(browser, "pareto")[0]
    browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('#vg-tooltip-element')?.classList.contains('visible')")
    said = browser.run("document.querySelector('#vg-tooltip-element').innerText")
    for name in ("layer", "speed-up", "time", "of dense", "backend", "FLOPs", "achieved", "bound by", "relative error"):
        assert name in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_light_and_dark(scheme: str, browser: Browser, page: Path) -> None:
    browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    brightness = "((c) => c.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765)"
    paper = browser.run(f"{brightness}(getComputedStyle(document.documentElement).backgroundColor)")
    label = f"{shown('curves')}.querySelector('.drawing svg text')"
    ink = browser.run(f"{brightness}(getComputedStyle({label}).fill)")
    browser.do("Emulation.setEmulatedMedia", features=[])
    assert (paper > 0.9 and ink < 0.3) if scheme == "light" else (paper < 0.2 and ink > 0.8)


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_the_page_never_scrolls_sideways(size: tuple[int, int], browser: Browser, page: Path) -> None:
    sized(browser, size)
    browser.open(page)
    browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
    wide = browser.run("document.documentElement.scrollWidth")
    browser.run("document.body.insertAdjacentHTML('beforeend', '<div id=wide style=\"width:2000px\">x</div>')")
    assert browser.run("document.documentElement.scrollWidth") > size[0], "what is too wide is seen"
    sized(browser, LAPTOP)
    assert wide <= size[0]


def test_everything_to_choose_has_a_name_and_headings_leave_no_level_out(browser: Browser, page: Path) -> None:
    browser.open(page)
    tree = browser.do("Accessibility.getFullAXTree")["nodes"]
    roles = ("radio", "checkbox", "button", "link", "textbox", "searchbox", "region", "table", "graphics-document")
    nameless = [
        node["role"]["value"] for node in tree
        if not node["ignored"] and node["role"]["value"] in roles and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert nameless == []
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.run("[...document.querySelectorAll('table')].every((table) => table.caption)")


def hostile() -> dict[str, Any]:
    content = small(structures={name: (0.25, 2.0, 0.5 + 0.04 * i) for i, name in enumerate(MARKUP)}, modes=("train",))
    content["structures"]["run"] |= {"cpu": MARKUP[0], "argv": MARKUP, "allocator": MARKUP[1]}
    content["structures"]["rules"] = dict.fromkeys(content["structures"]["rules"], MARKUP[0])
    content["structures"]["refused"].append(refusal(MARKUP[1], None, MARKUP[0], (1, 1), 1, "forward", "cpu"))
    more = []
    for benchmark in content["benchmarks"]:
        row = benchmark["extra_info"]
        row |= {"flags": [MARKUP[0]], "options": {MARKUP[1]: MARKUP[0]}, "activation_bytes": 64}
        if row["structure"] == MARKUP[1]:
            more.append(copy.deepcopy(benchmark))
            more[-1]["extra_info"]["backend"] = MARKUP[0]
    return content | {"benchmarks": content["benchmarks"] + more}


def test_a_hostile_file_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(rendered(results(tmp_path, hostile())), encoding="utf-8")
    browser.open(path, "pareto")
    for x, y in middles(browser, "pareto")[:4]:  # tooltips are written by the charts' library
        browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('#vg-tooltip-element')?.innerText.includes('<script>')")
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.run("document.scripts.length") == 3
