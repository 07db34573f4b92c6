"""The layer under torch.compile: one graph, any number of tokens. Under torch.export: models/test_flows.py."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from contract import SHAPES, TRACED, assert_right, layer, limits, plain, shapes, tensors, truth
from torch import nn

import structures
from structures import backends

NAMES = structures.names()
# What the compiler itself warns of; none of it concerns the graph.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]


def check(compiled, made, tokens, dtype=torch.float64):
    x, dy = tensors(made, tokens, dtype)
    wanted = truth(made, x, dy)
    most = limits(made, x, dy, wanted, plain(made, x, dy))
    x.requires_grad_()
    y = compiled(x)
    assert_right([y.detach(), *torch.autograd.grad(y, [x, *made.parameters()], dy)], wanted, most)


def compiled_here():
    """Every entry with the backends that `auto` takes for any of them, and one entry with each other backend."""
    taken = set()
    for name, tokens in itertools.product(NAMES, (1, 130)):
        structure = structures.get(name).bind(*SHAPES[0])
        taken.add(backends.choose(backends.AUTO, structure, torch.empty(tokens, SHAPES[0][0], dtype=torch.float64)))
    others = {backend: (name, backend) for name, backend in reversed(TRACED) if backend not in taken}
    return [case for case in TRACED if case[1] in taken] + list(others.values())


def test_every_backend_is_compiled_and_every_entry_where_auto_takes_it():
    cases = compiled_here()
    assert {backend for _, backend in cases} == {backend for _, backend in TRACED}
    assert {name for name, _ in cases} == {name for name, _ in TRACED} and len(cases) < len(TRACED)


@pytest.mark.parametrize(("name", "backend"), compiled_here())
def test_it_compiles_to_one_graph_with_dynamic_tokens(name, backend):
    made = layer(name, shapes(name)[0], backend=backend)
    counted = []

    def count(graph, inputs):
        counted.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    import torch._dynamo.backends.debugging

    compiled = torch.compile(made, backend=count, fullgraph=True, dynamic=True)
    for tokens in (5, 63, 130):
        check(compiled, made, tokens)
    assert len(counted) == 1, "every number of tokens should share one graph"
    with torch.no_grad():
        x, _ = tensors(made, 7, torch.float64)
        torch.testing.assert_close(compiled(x), made(x))


@pytest.mark.parametrize("name", ["dyad_it", "monarch"])
def test_the_real_compiler_gives_the_same_values_and_gradients(name):
    made = layer(name, SHAPES[0], dtype=torch.float32)
    compiled = torch.compile(made, fullgraph=True, dynamic=True)
    for tokens in (16, 33):
        check(compiled, made, tokens, torch.float32)


def test_a_graph_returns_its_routing_and_is_collected():
    made = layer("btt_moe", SHAPES[0])
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    x, _ = tensors(made, 10, torch.float64)
    for _ in range(2):
        with structures.collect_routing(made) as routings:
            y = compiled(x)
        assert len(routings) == 1 and torch.equal(routings[0][1].experts, made.forward_with_routing(x)[1].experts)
        torch.testing.assert_close(compiled(x), y)


def test_a_model_of_several_layers_compiles_whole():
    model = nn.Sequential(layer("dyad_dt", (48, 96)), nn.GELU(), layer("btt", (96, 48)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 10, 48, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), model(x))


def test_more_structures_than_one_code_object_has_programs_for_are_compiled_one_by_one():
    """Previously failed: the ninth ran eagerly, with one line in the log. Copies and pickles take part."""
    x = torch.randn(3, 16)
    for rank in range(1, torch._dynamo.config.recompile_limit + 4):
        layer = structures.StructuredLinear("low_rank", 16, 16, rank=rank)
        made = layer if rank % 2 else pickle.loads(pickle.dumps(copy.deepcopy(layer)))
        compiled = torch.compile(made, backend="eager", fullgraph=True)  # which raises where it would fall back
        torch.testing.assert_close(compiled(x), layer(x))
