"""The Triton kernels' values and gradients, on a card or, with TRITON_INTERPRET=1, in Triton's interpreter on the CPU.

    TRITON_INTERPRET=1 pytest tests/backends/test_triton_values.py       every entry, every form

`test_triton.py` runs one entry of each pattern of steps in such a process.
"""

import copy
import os

import pytest
import torch
import without_card
from contract import assert_right, error, layer, limits, of_backend, plain, tensors, truth
from functorch.compile import make_boxed_func
from gated import gradients, own
from torch._dynamo.backends.common import aot_autograd

import structures
from structures import backends
from structures.backends import kept, operators, stages
from structures.backends.triton import gated, run
from structures.spec import Spec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU here: TRITON_INTERPRET=1 runs the interpreter"
)
DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))

# entry, widths, options: one for each pattern of steps
PATTERNS = [
    ("dense", (37, 53), {}),  # one block, odd widths
    ("dyad_it", (36, 60), {"n_blocks": 3}),  # two terms in one launch, one read with a stride
    ("dyad_ot", (64, 64), {"n_blocks": 4}),  # a second launch that adds, written with a stride; turned
    ("monarch", (64, 128), {"n_blocks": 4}),  # two steps
    ("kronecker", (36, 30), {}),  # rows besides tokens
    ("kronecker_sparse", (60, 36), {"a": 2, "d": 3}),  # a factor with the batch innermost
    ("pixelfly", (64, 96), {"n_blocks": 8, "rank": 5}),  # a gather beside a chain of two
    ("blast", (36, 48), {"n_blocks": 3, "rank": 5}),  # three steps
]
SHAPE = (48, 96)  # of every entry
# the same with experts, few of them: the interpreter takes some milliseconds for each program of a grid
FEW = {"n_experts": 3, "experts_active": 2}
EXPERTS = [
    ("dense_moe", (37, 53), FEW),  # one step
    ("btt_moe", (16, 36), FEW),  # two, both with a batch
    ("low_rank_moe", (24, 40), FEW | {"rank": 3}),
    (own("shared_ends", 3, 2), (24, 40), {}),  # what all experts share before, between and behind
    (own("gathered_first", 3, 2), (8, 16), {}),  # a gather, and the axis of experts within a factor
]

INNERMOST = Spec(
    name="innermost", einsum="(n i), i e o n -> (n o)", sizes={"n": "4", "e": "3"},
    gate={"axis": "e", "experts_active": "2"},
)  # fmt: skip


if INTERPRETED:
    without_card.interpret()


@pytest.fixture(autouse=True)
def poison():
    """Memory that nothing has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _check(name, shape, options, dtype, tokens, form=None):
    """Values and gradients in a form; the forms that the launches had."""
    made = layer(name, shape, dtype=dtype, **options)
    x, dy = tensors(made, tokens, dtype)
    made, x, dy = made.to(DEVICE), x.to(DEVICE), dy.to(DEVICE)
    wanted = truth(made, x, dy)
    most = limits(made, x, dy, wanted, plain(made, x, dy))
    programs = [made for stage in stages.every(made.structure) for made in gated.programs(stage)]
    with run.held_to(programs, form):
        assert_right(of_backend(made, "triton", x, dy), wanted, most, f"{name} {shape} {form}")
        return set().union(*(program.forms() for program in programs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "shape", "options"), PATTERNS, ids=[p[0] for p in PATTERNS])
def test_a_pattern_of_steps_has_the_references_values_and_gradients(name, shape, options, dtype):
    _check(name, shape, options, dtype, 19)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("entry", "shape", "options"), EXPERTS, ids=[getattr(e[0], "name", e[0]) for e in EXPERTS])
def test_a_pattern_of_experts_has_the_references_values_and_gradients(entry, shape, options, dtype):
    _check(entry, shape, options, dtype, 5)


def experts(entry, shape, backend="triton", **more):
    """A layer in float32 on the device, its router drawn."""
    return layer(entry, shape, dtype=torch.float32, backend=backend, **more).to(DEVICE)


def test_experts_without_tokens_have_gradients_of_zero_and_so_has_no_token_at_all():
    made = experts("btt_moe", (16, 36), routed=False, **FEW)  # equal logits choose the first two
    x, dy = (t.to(DEVICE) for t in tensors(made, 5, torch.float32))
    made(x).backward(dy)
    assert all(f.grad[2:].count_nonzero() == 0 and f.grad[:2].count_nonzero() for f in made.factors)
    made.zero_grad()
    made(x[:0]).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in made.parameters())


def test_choices_that_found_no_room_count_nothing_and_the_bits_are_the_same_every_time():
    made = experts(own("beside_dense", 3, 2, capacity="0.6"), (12, 20))
    x, dy = (t.to(DEVICE) for t in tensors(made, 12, torch.float32))
    routing = made.forward_with_routing(x)[1]
    assert routing.dropped
    found, again = (gradients(made, x, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    double = copy.deepcopy(made).double()
    double.backend = "all_experts"
    for f, w in zip(found, gradients(double, x.double(), dy.double()), strict=True):
        assert error(f, w) < 1e-5  # float32's; a choice counted wrongly is off by percents


def test_a_second_derivative_of_experts_is_the_planners():
    x, second = tensors(experts("low_rank_moe", (24, 40), rank=3, **FEW), 5, torch.float32)[0].to(DEVICE), []
    for backend in ("triton", "all_experts"):
        made = experts("low_rank_moe", (24, 40), backend, rank=3, **FEW)
        given = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(made(given).square().sum(), given, create_graph=True)
        second.append(torch.autograd.grad(dx.square().sum(), made.factors))
    for a, b in zip(*second, strict=True):
        assert error(a, b) < 1e-5  # both in float32; a derivative that is missing is off by 1


def test_experts_refuse_function_transforms():
    with pytest.raises(ValueError, match=r"'triton': its operator of experts .*; all_experts transforms"):
        torch.func.vmap(experts("btt_moe", (16, 36)))(torch.zeros(2, 1, 16, device=DEVICE))


@pytest.mark.parametrize(
    ("entry", "options"), [("kronecker_sparse", {"a": 2, "d": 4}), (INNERMOST, {})], ids=["plain", "gated"]
)
def test_a_copy_of_a_factor_is_kept_while_it_does_not_change(entry, options):
    made = experts(entry, (128, 128), **options)
    x = tensors(made, 5, torch.float32)[0].to(DEVICE)
    made(x)
    assert kept.held_bytes(made.factors) == 0  # gradients are wanted
    with torch.no_grad():
        first, held = made(x), kept.held_bytes(made.factors)
        assert held and torch.equal(first, made(x))
        made.factors[0].mul_(2)
        changed = made(x)
        assert kept.held_bytes(made.factors) == held
        made.train()
        assert kept.held_bytes(made.factors) == 0
        assert torch.equal(changed, made(x)) and not torch.equal(first, changed)


@pytest.mark.parametrize("form", ["copied", "turned"])
def test_every_form_of_a_launch_has_the_same_values_and_gradients(form):
    assert form in _check("dyad_dt", (64, 64), {"n_blocks": 4}, torch.float32, 5, form)


@pytest.mark.parametrize("tokens", [1, 33])
def test_a_sum_in_parts_is_added_in_their_order(tokens, monkeypatch):
    """One token leaves most processors without a tile, so that what is contracted is split among them."""
    made = layer("dense", (1024, 16), dtype=torch.float32).to(DEVICE)
    x, dy = (t.to(DEVICE) for t in tensors(made, tokens, torch.float32))
    wanted = truth(made, x, dy)
    most = limits(made, x, dy, wanted, plain(made, x, dy))
    found = of_backend(made, "triton", x, dy)
    assert any(way.split > 1 for way in run.program(made.structure)._ways.values())
    assert_right(found, wanted, most)
    again = of_backend(made, "triton", x, dy)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_operator_in_a_graph_gives_what_the_call_gives():
    made = layer("dyad_ot", (64, 64), dtype=torch.float32, n_blocks=4, backend="triton").to(DEVICE)
    x, _ = tensors(made, 3, torch.float32)
    x = x.to(DEVICE).requires_grad_()
    called = made(x)
    text = operators.name(made.structure)
    written = torch.ops.structures.triton(x, list(made.factors), made.bias, text)
    assert torch.equal(called, written)
    parameters = [x, *made.factors, made.bias]
    for a, b in zip(*(torch.autograd.grad(y.sum(), parameters) for y in (called, written)), strict=True):
        assert torch.equal(a, b)


def test_a_compiled_layer_calls_one_operator_forward_and_one_back():
    """As a compiler sees it: shapes without values, one graph without a break, the same values and gradients."""
    seen = []

    def keep(graph, _):
        seen.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    made = layer("pixelfly", (64, 96), dtype=torch.float32, n_blocks=8, rank=5, backend="triton").to(DEVICE)
    x = tensors(made, 3, torch.float32)[0].to(DEVICE).requires_grad_()
    compiled = torch.compile(made, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    parameters = [x, *made.factors, made.bias]
    called, graphed = made(x), compiled(x)
    assert torch.equal(called, graphed)
    for a, b in zip(*(torch.autograd.grad(y.sum(), parameters) for y in (called, graphed)), strict=True):
        assert torch.equal(a, b)
    own = [[str(target) for target in targets if "structures" in str(target)] for targets in seen]
    assert own == [["structures.triton.default"], ["structures.triton_backward.default"]]


def test_compiled_experts_are_one_graph_that_waits_for_no_number():
    seen = []

    def keep(graph, _):
        seen.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    made = experts("dense_moe", (16, 24), **FEW)
    x = tensors(made, 3, torch.float32)[0].to(DEVICE).requires_grad_()
    compiled = torch.compile(made, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    called, graphed = made(x), compiled(x)
    assert torch.equal(called, graphed)
    parameters = [x, *made.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.sum(), parameters) for y in (called, graphed)), strict=True):
        assert torch.equal(a, b)
    ours = [[target for target in targets if "structures" in target] for targets in seen]
    assert ours == [["structures.triton_experts.default"], ["structures.triton_experts_backward.default"]]


# every entry, in the form that is chosen for few tokens and for more, and in each form wherever it can run
EVERY = [(None, 1), (None, 19), ("strided", 19), ("copied", 5), ("turned", 5)]


@pytest.mark.parametrize(("form", "tokens"), EVERY)
@pytest.mark.parametrize("name", structures.names())
def test_every_entry_has_the_references_values_and_gradients(name, form, tokens):
    structure = structures.get(name).bind(*SHAPE)
    reason = backends.refusal("triton", structure, torch.empty(1, SHAPE[0], device=DEVICE))
    assert reason is None
    _check(name, SHAPE, {}, torch.float32, tokens, form)
