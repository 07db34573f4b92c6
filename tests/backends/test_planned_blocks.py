"""Products written straight into the blocks of y, as the planner has it for CUDA; the values are checked on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contract import assert_right, error, limits_of, value_and_gradients

import structures
from structures import reference
from structures.backends import stages
from structures.backends.planned import emit, figures, search, source
from structures.backends.planned.program import Assemble, Copy, GatherBlocks, Multiply, Want

RATES = figures.built_in("float32", 1, "cuda")
BLOCKS = ["dyad_it", "block_diagonal", "blast", "btt"]  # the batch is outermost in y
OTHERS = ["dyad_ot", "dyad_dt", "block_dense", "pixelfly", "monarch"]  # a term, or all, in another order


def _operands(structure, tokens):
    torch.manual_seed(0)
    x = torch.randn(tokens, structure.in_features, dtype=torch.float64)
    factors = [torch.randn(shape, dtype=torch.float64) for shape in structure.factor_shapes]
    return x, factors, torch.randn(structure.out_features, dtype=torch.float64)


def _plans(structure, tokens, *, bias=True, want=None):
    return search.candidates(structure, tokens, search.Conditions("float64", bias=bias, want=want), RATES)


def _placed(plan):
    return [op for op in (*plan.forward, *plan.backward) if isinstance(op, Multiply) and op.placed]


@pytest.mark.parametrize("name", BLOCKS)
def test_on_cuda_no_sum_and_no_pass_over_y_is_planned_where_its_blocks_lie_side_by_side(name):
    plan = _plans(structures.get(name).bind(4096, 4096), 512)[0]
    assert _placed(plan) and not any(isinstance(op, Assemble) for op in plan.forward), str(plan)
    assert "into its blocks" in str(plan)


@pytest.mark.parametrize(
    ("name", "launches"),
    [
        ("dyad_it", [Multiply, Copy, Multiply]),  # x once in the order of the blocks that are read with a stride
        ("dyad_ot", [Multiply, Multiply, Assemble]),  # the second term added from its own order, in one pass
        ("monarch", [Multiply, Multiply, Assemble]),  # turned, and the bias with it
        ("pixelfly", [GatherBlocks, Multiply, Multiply, Multiply]),  # the low rank added onto the blocks
    ],
)
def test_on_cuda_a_call_of_many_tokens_has_no_launch_to_spare(name, launches):
    (structure,) = stages.every(structures.get(name).bind(4096, 4096))
    plan = search.candidates(structure, 4096, search.Conditions("bfloat16"), figures.built_in("bfloat16", 1, "cuda"))[0]
    assert [type(op) for op in plan.forward] == launches, str(plan)
    assert not any(op.bias and not op.once for op in plan.forward if isinstance(op, Assemble))


def test_on_a_cpu_it_is_not():
    structure = structures.get("dyad_it").bind(4096, 4096)
    plans = search.candidates(structure, 512, search.Conditions("float64"), figures.built_in("float32", 2))
    assert not any(_placed(plan) for plan in plans)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("name", [*BLOCKS, *OTHERS])
def test_every_forward_program_with_cudas_prices_agrees_with_the_reference(name, tokens, bias):
    (structure,) = stages.every(structures.get(name).bind(48, 96))
    x, factors, b = _operands(structure, tokens)
    b = b if bias else None
    truth = reference.apply(structure, x, factors, b)
    (most,) = limits_of(structure, x, [*factors, torch.zeros(96, dtype=x.dtype) if b is None else b], None, [truth])
    for plan in _plans(structure, tokens, bias=bias):
        for pure in (False, True):
            y = source.compiled(emit.forward_source(plan, pure=pure), "forward")(x, *factors, b)[0]
            assert error(y, truth) <= most, f"{plan}\npure={pure}"
            assert y.is_contiguous() and y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", [*BLOCKS, "dyad_dt", "pixelfly"])
def test_gradients_with_cudas_prices_agree_with_the_reference(name):
    (structure,) = stages.every(structures.get(name).bind(48, 96))
    x, factors, b = _operands(structure, 7)
    dy = torch.randn(7, 96, dtype=torch.float64)
    truth = value_and_gradients(lambda x, p: reference.apply(structure, x, p[:-1], p[-1]), x, [*factors, b], dy)
    most = limits_of(structure, x, [*factors, b], dy, truth)
    plans = [p for p in _plans(structure, 7, want=Want(True, (True,) * len(factors), True)) if not p.native]
    assert any(op.result == "dx" for plan in plans for op in _placed(plan)) or name != "block_diagonal"
    for plan in plans:
        forward = source.compiled(emit.forward_source(plan, pure=False), "forward")
        backward = source.compiled(emit.backward_source(plan, pure=False), "backward")
        with torch.no_grad():
            y, *saved = forward(x, *factors, b)
            dx, *found = backward(dy, *factors, *(x if n == "x" else saved.pop(0) for n in plan.saved))
        assert_right([y, dx, *found, dy.sum(0)], truth, most, str(plan))


def test_a_program_that_places_blocks_in_chunks_of_tokens_agrees(monkeypatch):
    monkeypatch.setattr(search, "CHUNKS", (8,))
    structure = structures.get("dyad_it").bind(48, 96)
    x, factors, b = _operands(structure, 35)
    truth = reference.apply(structure, x, factors, b)
    chunked = [plan for plan in _plans(structure, 35) if plan.chunk and _placed(plan)]
    assert chunked
    for plan in chunked:
        y = source.compiled(emit.forward_source(plan, pure=False), "forward")(x, *factors, b)[0]
        torch.testing.assert_close(y, truth)


def test_a_product_added_to_the_wrong_blocks_is_noticed():
    structure = structures.get("dyad_it").bind(48, 96)
    x, factors, b = _operands(structure, 7)
    plan = next(plan for plan in _plans(structure, 7) if len(_placed(plan)) == 2)
    wrong = tuple(replace(op, bias=False) if isinstance(op, Multiply) else op for op in plan.forward)
    y = source.compiled(emit.forward_source(replace(plan, forward=wrong), pure=False), "forward")(x, *factors, b)[0]
    assert error(y, reference.apply(structure, x, factors, b)) > 0.1
