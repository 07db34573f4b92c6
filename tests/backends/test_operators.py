"""A kernel as operators of a graph: what text says which structure, or which stage of one."""

from __future__ import annotations

import pytest

import structures
from structures.backends import operators, stages

CHAINED = [n for n in structures.names() if not structures.get(n).bind(48, 96).plain]


@pytest.mark.parametrize("name", structures.names())
def test_every_stage_of_an_entry_is_bound_again_by_its_text(name):
    for stage in stages.every(structures.get(name).bind(48, 96)):
        again = operators.bound(operators.name(stage))
        assert again is not stage and again.plain
        for field in ("terms", "factors", "sizes", "in_features", "out_features"):
            assert getattr(again, field) == getattr(stage, field)


def test_there_are_entries_whose_stages_are_not_the_whole():
    assert CHAINED
    for name in CHAINED:
        whole = structures.get(name).bind(48, 96)
        assert all(stages.place(stage)[0] is whole for stage in stages.every(whole))


def test_a_padded_structure_is_bound_at_its_padded_widths():
    for stage in stages.every(structures.get("dyad_it").bind(47, 95, pad=True)):
        again = operators.bound(operators.name(stage))
        assert (again.in_features, again.out_features) == (stage.in_features, stage.out_features)
        assert again.terms == stage.terms
