"""The coordinate check over the whole space: every named point trains alike at every width, by the structured rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_minilm import run_of
from test_report import rendered
from test_structure import TAXONOMY

import structures
from bench.__main__ import main
from bench.files import kinds
from bench.report.others import widths
from bench.sweep.named import NAMED
from bench.training import width_check
from structures.algebra.taxonomy import seven_axes
from structures.models.width_check import Coordinate, coordinate_check

WIDTHS = (64, 256)  # powers of four: halves and quarters of the exponent are whole sizes
BAND = 2.5


def sizes(rows: list[Coordinate]) -> list[float]:
    last = rows[-1]
    return [row.size for row in rows if (row.step, row.layer) == (last.step, last.layer)]


def growth(rows: list[Coordinate]) -> float:
    return max(sizes(rows)) / min(sizes(rows))


@pytest.mark.parametrize("point", NAMED)
def test_every_named_point_trains_alike_at_every_width(point: str) -> None:
    """Within a band, or where the rank is less than full between that and what an untrained network loses: a random
    activation keeps width**((psi - 1) / 2) of its size in the row space of each of the two layers."""
    rows = coordinate_check("einsum", WIDTHS, theta=NAMED[point])
    assert len(sizes(rows)) == len(WIDTHS)
    lost = (WIDTHS[-1] / WIDTHS[0]) ** (seven_axes(NAMED[point])[1] - 1)
    first, *others = sizes(rows)
    assert all(lost / BAND**0.5 < size / first < BAND**0.5 or growth(rows) < BAND for size in others)
    assert 0.01 < min(sizes(rows)) and max(sizes(rows)) < 5


@pytest.mark.parametrize("point", ["btt3", "btt13", "l1"])
def test_without_the_rule_named_points_leave_the_band(point: str) -> None:
    assert growth(coordinate_check("einsum", (64, 256, 1024), theta=NAMED[point], scaled=False)) > BAND


def test_the_named_points_are_the_published_ones() -> None:
    assert NAMED == {name: theta for name, theta, *_ in TAXONOMY}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": ()}, r"widths are two different ones or more, such as .*, found \(\)"),
        ({"widths": (64,)}, r"widths are two different ones or more"),
        ({"widths": (64, 64)}, r"widths are two different ones or more"),
        ({"widths": 64}, r"widths are two different ones or more"),
        ({"widths": "64"}, r"widths are whole numbers from 1, found '64'"),
        ({"widths": (64, 0)}, r"widths are whole numbers from 1, found \(64, 0\)"),
        ({"widths": (64, 128.0)}, r"widths are whole numbers from 1"),
        ({"steps": 0}, r"steps is a whole number from 1, found 0"),
        ({"layers": 0}, r"layers is a whole number from 1, found 0"),
        ({"lr": 0}, r"lr is a number above 0, found 0"),
        ({"lr": float("nan")}, r"lr is a number above 0, found nan"),
    ],
)
def test_a_check_that_checks_nothing_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"coordinate_check: {message}"):
        coordinate_check("dense", **arguments)  # type: ignore[arg-type]


def test_named_points_are_measured_and_drawn_beside_the_entries(tmp_path: Path) -> None:
    run = run_of("coordinates", tmp_path / "out.json")
    width_check.measure(run, "dyad_it, btt1", (32, 64))
    content = json.loads((tmp_path / "out.json").read_text())
    rows = content["structures"]["rows"]
    assert {(r["structure"], r["width"], r["step"], r["layer"]) for r in rows} == {
        (name, width, step, 1) for name in ("dyad_it", "einsum btt1") for width in (32, 64) for step in (0, 4)
    }
    assert content["structures"]["run"]["complete"]
    assert "einsum btt1" in rendered(tmp_path, content)


def test_without_words_every_entry_and_every_named_point_is_measured() -> None:
    labels = set(width_check.subjects())
    assert {"dense", "dyad_it", "monarch", "einsum", "einsum btt16", "einsum g2"} <= labels
    assert "einsum dense" not in labels and len([n for n in labels if n.startswith("einsum ")]) == 23


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--structures", "btt4"], "--structures: 'btt4' is not known; did you mean 'btt14'?"),
        (["--structures", ","], "--structures: ',' names nothing"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.files.run.setup.pin", lambda: run_of("coordinates", tmp_path / "x.json").threads)
    monkeypatch.setattr("bench.files.run.setup.tune_allocator", lambda: "plain")
    assert main(["coordinates", "-o", str(tmp_path / "out.json"), *words]) == 2
    assert message.split("?")[0].rpartition("did you mean")[0] in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_widths_are_two_or_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["coordinates", "-o", str(tmp_path / "out.json"), "--widths", "64"])
    assert "'64' names no two different numbers; write 128,256,512" in capsys.readouterr().err


def test_the_committed_run_holds_every_entry_and_every_named_point() -> None:
    path = Path(__file__).parents[2] / "bench/results/intel-xeon/coordinates.json"
    found = widths.read(kinds.parse(str(path), json.loads(path.read_text()), (kinds.COORDINATES,)))
    lines = {(line.structure, line.scaled): line for line in found}
    missing = {label: name for label, (name, _) in width_check.subjects().items() if (label, True) not in lines}
    assert all(getattr(structures.get(name), "gate", ()) for name in missing.values())  # experts: no fixed weight
    assert {name for (name, scaled), line in lines.items() if scaled and not line.stays} == set()
    assert sum(not line.stays for (_, scaled), line in lines.items() if not scaled) > 10  # what the rule is for
