"""Losses beside dense's, from rows alone: pairs where the seed draws the task, power, the neighbouring rate."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.files import trained
from bench.files.fields import BadResults, Fields


def row(series: str, seed: int, loss: float | None, *, paired: bool = True, **own: Any) -> dict[str, Any]:
    structure = series.partition(" @ ")[0]
    return {
        "phase": "train", "setting": "teacher", "width": 8, "task": "teacher", "structure": structure, "series": series,
        "way": "control" if structure == "dense" else "structure", "budget": None, "seed": seed, "paired": paired,
        "lr": 0.003, "rate_at_end": False, "loss": loss, "params": 64.0, "replaced_params_share": 0.25,
        "by_rate": [{"lr": 0.001, "tune": 3.0, "loss": loss and loss * 1.1}, {"lr": 0.003, "tune": 2.0, "loss": loss},
                    {"lr": 0.01, "tune": None, "loss": None}], **own,
    }  # fmt: skip


def compared(*rows: dict[str, Any]) -> dict[str, trained.Comparison]:
    found = trained.comparisons(trained.read([Fields(f"row {i}", r) for i, r in enumerate(rows)]))
    return {c.first.series: c for several in found.values() for c in several}


LEVELS = (1.0, 3.0, 9.0)  # of three tasks, drawn by three seeds


def rows(paired: bool) -> list[dict[str, Any]]:
    dense = [row("dense", s, level, paired=paired) for s, level in enumerate(LEVELS)]
    noise = (1.00, 1.01, 0.99)
    return dense + [row("low_rank", s, 1.1 * noise[s] * level, paired=paired) for s, level in enumerate(LEVELS)]


def test_pairs_remove_what_the_task_adds() -> None:
    paired, apart = compared(*rows(True))["low_rank"], compared(*rows(False))["low_rank"]
    assert paired.difference == pytest.approx(0.1, abs=1e-3) and not paired.tie
    assert apart.difference == pytest.approx(0.1, abs=1e-3) and apart.tie
    assert paired.told and apart.told and paired.told < 0.1 < apart.told
    assert "draws the task" in paired.rests_on and "not paired" in apart.rests_on


def test_a_difference_of_the_size_told_is_seen_in_four_runs_of_five() -> None:
    """By the definition of power: the estimate's error is Student's, and must not fall short of the margin."""
    from scipy import stats

    one = compared(*rows(True))["low_rank"]
    assert one.told and one.high is not None and one.difference is not None
    margin = math.log1p(one.high) - math.log1p(one.difference)
    error = margin / trained.quantile(1, 2)
    assert stats.t.cdf((math.log1p(one.told) - margin) / error, 2) == pytest.approx(0.8)


def test_the_neighbouring_rate_stands_beside() -> None:
    lr, costs = compared(*rows(True))["dense"].neighbour or (0, 0)
    assert lr == 0.001 and costs == pytest.approx(0.1)


def test_one_seed_and_no_dense_tell_nothing() -> None:
    assert compared(row("dense", 0, 1.0), row("low_rank", 0, 2.0))["low_rank"].difference is None
    assert compared(*rows(True)[3:])["low_rank"].difference is None
    diverged = compared(*rows(True), row("btt", 0, None))["btt"]
    assert diverged.loss is None and diverged.difference is None


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(BadResults, match="row 0: by_rate is missing"):
        trained.read([Fields("row 0", {k: v for k, v in row("dense", 0, 1.0).items() if k != "by_rate"})])
