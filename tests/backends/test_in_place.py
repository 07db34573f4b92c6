"""What a layer returns is its own: it may be changed in place, as the output of nn.Linear, at any number of tokens."""

from __future__ import annotations

import pytest
import torch
from contract import RUNS, RUNS_IN, SHAPES, error, layer, shapes, tensors

import structures
from structures.backends.planned import rates
from structures.backends.planned.run import Program, setting
from structures.backends.planned.search import candidates
from structures.spec import Spec

TOKENS = (1, 2, 8, 130)
SINGLE = [(name, backend) for name, backend, dtype in RUNS_IN if dtype is torch.float32]
FAST = [run for run in RUNS_IN if run[2] in (torch.float32, torch.bfloat16)]
PLAIN = [name for name, backend in RUNS if backend == "planned"]
ONE = [name for name in PLAIN if structures.get(name).bind(*SHAPES[0]).plain]  # the planner gets chains in stages


def activated(function, x, parameters, in_place: bool):
    """[relu(y), gradients], with the activation in place or not."""
    y = function(x, parameters)
    y = torch.relu_(y) if in_place else torch.relu(y)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *parameters])]


@pytest.mark.parametrize(("name", "backend", "dtype"), FAST, ids=str)
def test_an_activation_in_place_is_the_one_out_of_place(name, backend, dtype):
    made = layer(name, shapes(name)[0], dtype=dtype, backend=backend)
    for tokens in TOKENS if dtype is torch.float32 else (1, 130):
        x = tensors(made, tokens, dtype)[0].requires_grad_()
        found, wanted = (activated(lambda x, p: made(x), x, list(made.parameters()), both) for both in (True, False))
        assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True)), tokens


@pytest.mark.parametrize(("name", "backend"), SINGLE)
def test_an_output_made_without_gradients_may_be_changed_in_place_with_them(name, backend):
    made = layer(name, shapes(name)[0], dtype=torch.float32, backend=backend)
    scale = torch.ones((), requires_grad=True)
    for tokens in TOKENS:
        with torch.no_grad():
            y = made(tensors(made, tokens, torch.float32)[0])
        assert not y._is_view()
        y.mul_(scale).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("name", ONE)
def test_every_program_that_the_search_keeps_may_be_followed_in_place(name):
    dtype = torch.float32
    made = layer(name, shapes(name)[0], dtype=dtype)
    factors, bias = list(made.factors), made.bias
    for tokens in (1, 2, 8):
        x = tensors(made, tokens, dtype)[0].requires_grad_()
        want = (True,) * (2 + len(factors))
        for grads in (want, None):
            where = setting(dtype, "cpu", True, grads)
            figures = rates.of(where.dtype, where.threads, where.device)
            for program in map(Program, candidates(made.structure, tokens, where, figures)):
                if grads is None:
                    with torch.no_grad():
                        assert not program.run(None, x, factors, bias)._is_view()
                    continue

                def run(x, p, program=program, want=want):
                    return program.run(want, x, p[:-1], p[-1])

                found, wanted = (activated(run, x, [*factors, bias], both) for both in (True, False))
                assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("backend", ["auto", "bmm", "einsum", "planned"])
def test_a_term_without_factors_never_gives_the_input_itself(backend):
    made = structures.StructuredLinear(Spec("same", "x -> x"), 6, 6, bias=False, backend=backend)
    x = torch.ones(3, 6)
    y = made(x)
    y.zero_()
    assert x.all()


@pytest.mark.parametrize("backend", ["grouped", "all_experts", "auto"])
@pytest.mark.parametrize("name", sorted({name for name, backend in RUNS if backend == "grouped"}))
def test_an_expert_that_a_token_did_not_choose_may_overflow(name, backend):
    made = layer(
        name, shapes(name)[0], dtype=torch.float16, routed=False, backend=backend, n_experts=4, experts_active=2
    )
    x = tensors(made, 5, torch.float16)[0] * 30
    x.requires_grad_()
    with torch.no_grad():  # a router of zeros chooses experts 0 and 1
        for axes, factor in zip(made.structure.factors, made.factors, strict=True):
            factor.select(axes.index("e"), 3).mul_(20000)
    y = made(x)
    assert y.isfinite().all()
    gradients = torch.autograd.grad(y.float().sum(), [x, *made.parameters()])
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", PLAIN)
def test_factors_that_overflow_together_are_not_merged_in_half_precision(name):
    made = layer(name, (64, 64), dtype=torch.float32)
    with torch.no_grad():
        for factor in made.factors:
            factor.mul_(200 / factor.abs().max())
        x = (tensors(made, 600, torch.float64)[0] * 1e-4).half()
        half = made.half()
        exact = structures.StructuredLinear(name, 64, 64, dtype=torch.float64)
        exact.load_state_dict(half.state_dict())
        wanted = exact(x.double())
        if wanted.abs().max() > 6e4:
            pytest.skip("the output itself is out of range, so many factors follow one another")
        for tokens in (1, 8, 600):
            found = {}
            for backend in ("auto", "einsum"):
                half.backend = backend
                found[backend] = error(half(x[:tokens]), wanted[:tokens])
            assert not found["einsum"] < 1 or found["auto"] <= 3 * found["einsum"] + 0.01, (tokens, found)
