"""A kernel as operators of a graph: what text says which structure, or which stage of one."""

from __future__ import annotations

import pytest

import structures
from structures.backends import operators, stages
from structures.backends.native.lower import lower

WITHOUT_GATE = [name for name in structures.names() if not structures.get(name).gate]


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_every_stage_of_an_entry_is_bound_again_by_its_text(name):
    for stage in stages.every(structures.get(name).bind(48, 96)):
        again = operators.bound(operators.name(stage))
        assert again is not stage and lower(again) == lower(stage)


def test_a_padded_structure_is_bound_at_its_padded_widths():
    for stage in stages.every(structures.get("dyad_it").bind(47, 95, pad=True)):
        again = operators.bound(operators.name(stage))
        assert (again.in_features, again.out_features) == (stage.in_features, stage.out_features)
        assert lower(again) == lower(stage)


def test_what_no_operator_runs_is_refused_and_text_that_is_none():
    with pytest.raises(ValueError, match="an operator runs structures without links, gate"):
        operators.name(structures.get("dyad_it").bind(47, 95, pad=True))
    with pytest.raises(ValueError, match="is no structure"):
        operators.bound("[1]")
