"""The layer behaves as nn.Linear does, for every entry and backend."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import safetensors.torch
import torch
from contract import (
    DTYPES,
    RUNS,
    RUNS_IN,
    SHAPES,
    TRACED,
    error,
    layer,
    limits,
    of_backend,
    plain,
    shapes,
    tensors,
    truth,
)  # fmt: skip
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import structures
from structures import backends, exactness, reference

NAMES = structures.names()
WITHOUT_GATE = [name for name in structures.names() if not structures.get(name).gate]  # the others: test_experts.py
PLAIN_RUNS = [(name, backend) for name, backend in RUNS if name in WITHOUT_GATE]
OUTER_PRODUCTS = {"cp", "loha", "fastfood"}  # entries with a step that contracts nothing
BACKENDS = backends.names()
TOKENS = (1, 63, 1000)
SMALL = (48, 48)


# Of three widths and three numbers of tokens each dtype sees three pairs, in which each width and number stands once;
# the dtypes of an entry see all nine: what depends on both is a program, and that knows no dtype.
PAIRS = {dtype: [(i, TOKENS[(i + turn) % 3]) for i in range(3)] for turn, dtype in enumerate(DTYPES)}
# the fourth dtype's pairs are again those of the first, with fewer tokens: torch's own float16 products are slow here
PAIRS[torch.float16] = [(i, min(tokens, 300)) for i, tokens in PAIRS[torch.float16]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_matches_the_reference_in_value_and_every_gradient(name, dtype):
    several = [run[1] for run in RUNS_IN if run[0] == name and run[2] is dtype]
    assert len(several) >= 2
    for i, tokens in PAIRS[dtype]:
        shape = shapes(name)[i]
        made = layer(name, shape, dtype=dtype)
        x, dy = tensors(made, tokens, dtype)
        wanted = truth(made, x, dy)
        most = limits(made, x, dy, wanted, plain(made, x, dy))
        for backend in several:
            found = of_backend(made, backend, x, dy)
            for what, f, w, limit in zip(["y", "dx", *dict(made.named_parameters())], found, wanted, most, strict=True):
                assert f.dtype == dtype and f.shape == w.shape
                assert error(f, w) <= limit, (backend, shape, tokens, what)


def test_the_comparison_with_the_reference_can_fail():
    made = layer("monarch", SHAPES[0])
    x, dy = tensors(made, 5, torch.float64)
    wanted = truth(made, x, dy)
    with torch.no_grad():
        made.factor_1[0, 0] += 1e-6
    assert error(of_backend(made, "bmm", x, dy)[0], wanted[0]) > 1e-8


@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_the_dense_form_is_what_the_layer_multiplies_by(name):
    for shape in shapes(name):
        made = layer(name, shape)
        weight = made.to_dense()
        assert weight.shape == shape[::-1] and weight.is_contiguous()
        x, _ = tensors(made, 7, torch.float64)
        torch.testing.assert_close(made(x), nn.functional.linear(x, weight, made.bias))
        assert all(g is not None for g in torch.autograd.grad(weight.sum(), made.factors))


@pytest.mark.parametrize(("name", "backend"), PLAIN_RUNS)
def test_any_leading_dimensions_and_strides_are_taken(name, backend):
    made = layer(name, SHAPES[0], backend=backend)
    linear = nn.Linear(*SHAPES[0], dtype=torch.float64)
    linear.weight.data, linear.bias.data = made.to_dense().detach(), made.bias.detach()
    x = torch.randn(6, 5, 48, dtype=torch.float64)
    inputs = {  # of 1, 0 and 18 to 30 tokens: three plans
        "one vector": x[0, 0],
        "three dimensions": x,
        "no tokens": x[:0],
        "no tokens, two dimensions": x[0, :0],
        "transposed": x.transpose(0, 1),
        "columns first": x.reshape(30, 48).t().contiguous().t(),
        "every other row": x[:, ::2],
        "every other column": torch.randn(20, 96, dtype=torch.float64)[:, ::2],
        "expanded": x[:1, :1].expand(6, 3, 48),
        "five dimensions": x.reshape(2, 3, 1, 5, 48),
    }
    for what, case in inputs.items():
        y = made(case)
        torch.testing.assert_close(y, linear(case), msg=lambda m, what=what: f"{what}: {m}")
    assert made(x[:0]).shape == (0, 5, 96)


@pytest.mark.parametrize("name", NAMES)
def test_without_bias_nothing_is_added(name):
    made = layer(name, SHAPES[0], bias=False)
    assert made.bias is None and "bias" not in made.state_dict()
    x, _ = tensors(made, 3, torch.float64)
    torch.testing.assert_close(made(x), reference.apply(made.structure, x, made.operands))
    assert not made(torch.zeros_like(x)).any()


@pytest.mark.parametrize(("name", "backend"), PLAIN_RUNS)
def test_autocast_runs_in_its_dtype_and_gives_gradients_in_the_parameters(name, backend):
    made = layer(name, SMALL, dtype=torch.float32, backend=backend)
    x = torch.randn(9, 48, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
        assert y.dtype == nn.Linear(48, 48)(x).dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in made.parameters()} == {torch.float32} and x.grad.dtype == torch.float32
    wanted = reference.apply(made.structure, x.double(), [f.double() for f in made.factors], made.bias.double())
    plain = layer(name, SMALL, dtype=torch.float32, backend="einsum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = error(plain(x), wanted)
    cast = exactness.Sums(0, 2 + len(made.factors))  # x, the factors and the bias are rounded to bfloat16 first
    rounded = (exactness.sums(made.structure, 9)[0] + cast).share(torch.bfloat16)
    assert error(y, wanted) <= exactness.allowed(usual, rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_it_is_differentiable_twice(name, backend):
    torch.manual_seed(0)
    spec = structures.get(name)
    made = layer(spec, (16, 16), backend=backend, **small_options(spec))  # a router of zeros would stand at a jump
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    leaves = [p.detach().clone().requires_grad_() for p in made.parameters()]
    keys = list(dict(made.named_parameters()))

    def run(x, *p):
        return torch.func.functional_call(made, dict(zip(keys, p, strict=True)), (x,))

    assert gradcheck(run, (x, *leaves), fast_mode=True)
    assert gradgradcheck(run, (x, *leaves), fast_mode=True)


def small_options(spec):
    """Default options, or the largest smaller ones that bind at width 16."""
    for divisor in (1, 2, 4, 8):
        options = {k: max(1, v // divisor) for k, v in spec.options if isinstance(v, int)}
        try:
            spec.bind(16, 16, **options)
        except structures.spec.SizeError:
            continue
        return options
    raise AssertionError(spec.name)


@pytest.mark.parametrize(("name", "backend"), TRACED)
def test_function_transforms_agree_with_the_plain_call(name, backend):
    made = layer(name, SMALL, backend=backend)
    x = torch.randn(4, 3, 48, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in made.named_parameters()}

    def run(parameters, x):
        return torch.func.functional_call(made, parameters, (x,))

    torch.testing.assert_close(torch.func.vmap(run, (None, 0))(parameters, x), made(x))
    jacobian = torch.func.jacrev(lambda x: made(x))(x[0, 0])
    torch.testing.assert_close(jacobian, jacobian_of(made, x[0, 0]))
    # per-sample gradients, as in differential privacy
    per_sample = torch.func.vmap(torch.func.grad(lambda p, x: run(p, x).square().sum()), (None, 0))(parameters, x)
    for key, stacked in per_sample.items():
        made.zero_grad()
        made(x[1]).square().sum().backward()
        torch.testing.assert_close(stacked[1], dict(made.named_parameters())[key].grad)
    # an ensemble: parameters batched too
    many = {k: torch.stack([p, 2 * p]) for k, p in parameters.items()}
    torch.testing.assert_close(torch.func.vmap(run, (0, None))(many, x[0])[0], made(x[0]))


def jacobian_of(made, x):
    """The dense form; with experts, whose weights depend on x too, the reference's Jacobian at x."""
    if made.structure.gate is None:
        return made.to_dense()
    return torch.autograd.functional.jacobian(
        lambda x: reference.apply(made.structure, x, made.operands, made.bias).reshape(-1), x
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_copied_pickled_and_saved_with_readable_names(name, tmp_path):
    made = layer(name, SHAPES[0])
    x, _ = tensors(made, 4, torch.float64)
    wanted = [f"factor_{i}" for i in range(len(made.factors))] + ["router"] * (made.structure.gate is not None)
    assert sorted(made.state_dict()) == sorted([*wanted, "bias"])
    assert all(torch.equal(copied(x), made(x)) for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))))

    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = layer(name, SHAPES[0], seed=5)
    assert not torch.equal(other(x), made(x))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), made(x))

    safetensors.torch.save_model(made, str(tmp_path / "layer.safetensors"))
    third = layer(name, SHAPES[0], seed=6)
    safetensors.torch.load_model(third, str(tmp_path / "layer.safetensors"), strict=True)
    assert torch.equal(third(x), made(x))
    for i, factor in enumerate(made.factors):
        assert factor is made.get_parameter(f"factor_{i}") and factor.is_contiguous()
        assert tuple(factor.shape) == made.structure.factor_shapes[i]


def test_a_state_dict_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for factor_0"):
        layer("monarch", SHAPES[0]).load_state_dict(layer("monarch", SHAPES[1]).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_on_meta_and_filled_later(name):
    made = layer(name, SHAPES[0], device="meta", dtype=torch.float32)
    assert all(p.is_meta for p in made.parameters())
    assert made(torch.empty(3, 48, device="meta")).shape == (3, 96)
    assert list(dict(made.named_buffers())) == []
    made.to_empty(device="cpu")
    torch.manual_seed(0)
    made.reset_parameters()
    fresh = layer(name, SHAPES[0], dtype=torch.float32, routed=False)
    for ours, theirs in zip(made.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_works_as_a_module_among_modules():
    model = nn.Sequential(
        layer("dyad_it", (48, 96), dtype=torch.float32), nn.ReLU(), layer("monarch", (96, 48), dtype=torch.float32)
    )
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    model[2].requires_grad_(False)
    groups = [
        {"params": [p for k, p in model.named_parameters() if k.endswith("factor_0")], "lr": 0.1},
        {"params": [p for k, p in model.named_parameters() if not k.endswith("factor_0")]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    model(torch.randn(3, 48)).sum().backward()
    optimizer.step()
    assert seen == [(3, 96)]
    assert model[0].factor_0.grad is not None and model[2].factor_0.grad is None
    assert model.half().half()[0].factor_0.dtype == torch.float16 and model.eval().training is False


@pytest.mark.parametrize("name", NAMES)
def test_its_repr_rebuilds_it(name):
    for made in (layer(name, SHAPES[0]), layer(name, SHAPES[1], bias=False, backend="einsum", dtype=torch.bfloat16)):
        rebuilt = eval(repr(made), {"StructuredLinear": structures.StructuredLinear, "torch": torch})
        assert repr(rebuilt) == repr(made) and rebuilt.structure == made.structure
        assert rebuilt.factor_0.dtype == made.factor_0.dtype and (rebuilt.bias is None) == (made.bias is None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(256, 256), (96, 240), (240, 96)], ids=str)
def test_a_fresh_layer_has_the_output_variance_and_bias_of_a_fresh_linear(name, shape):
    torch.manual_seed(0)
    squares = []
    for _ in range(24):
        made = structures.StructuredLinear(name, *shape, bias=False)
        with torch.no_grad():
            squares.append(made(torch.randn(64, shape[0])).square().mean())
    found = torch.stack(squares)
    # a chain's matrix fluctuates as a whole from draw to draw: the mean is held within five of its own errors
    slack = 5 * float(found.std()) / math.sqrt(len(squares)) + 0.02
    assert abs(float(found.mean()) - 1 / 3) < slack
    assert slack < 0.3, "too few draws to tell"
    bias = structures.StructuredLinear(name, *shape).bias
    assert bias.abs().max() <= shape[0] ** -0.5 and bias.abs().max() > 0.9 * shape[0] ** -0.5


def test_dense_draws_its_weight_as_linear_does():
    made = structures.StructuredLinear("dense", 300, 200)
    bound = 300**-0.5
    assert 0.99 * bound < made.factor_0.abs().max() <= bound
    assert math.isclose(made.factor_0.detach().std(), bound / math.sqrt(3), rel_tol=0.02)


@pytest.mark.parametrize(
    ("name", "options", "stds"),
    [
        ("dyad_it", {"n_blocks": 8}, [math.sqrt(1 / (2 * 64))] * 2),
        ("low_rank", {"rank": 64}, [math.sqrt(1 / 512) * math.sqrt(64 / 512), math.sqrt(1 / 64)]),
        ("btt", {"rank": 2}, [math.sqrt(1 / 16), math.sqrt(1 / 64) * math.sqrt(32 / 64)]),
        ("butterfly", {}, [math.sqrt(1 / 2)] * 9),
        ("dense", {}, [math.sqrt(1 / 512)]),
    ],
)
def test_spectral_init_is_the_mup_rule(name, options, stds):
    torch.manual_seed(0)
    made = structures.StructuredLinear(name, 512, 512, init="spectral", **options)
    for factor, std in zip(made.factors, stds, strict=True):
        assert math.isclose(factor.detach().std(), std, rel_tol=6 / math.sqrt(2 * factor.numel()))


ERRORS = [  # (arguments, options, words of the message)
    (("monach", 48, 48), {}, KeyError, "unknown structure 'monach'; did you mean 'monarch'?"),
    (("monarch", 48, 48), {"n_block": 2}, ValueError, "there is no option 'n_block'; did you mean 'n_blocks'?"),
    (("monarch", 48, 50), {}, ValueError, "l=4 does not divide out_features=50"),
    (("monarch", 24, 20), {"n_blocks": 7}, ValueError, "n_blocks that work here: 1, 2, 4"),
    (
        ("dyad_it", 48, 48),
        {"n_blocks": 5},
        ValueError,
        "n=5 does not divide in_features=48; nearest sizes that do: 4, 6",
    ),
    (("dyad_it", 48, 48), {"n_blocks": 0}, ValueError, "n=0 does not divide"),
    (("dyad_it", 48, 48), {"n_blocks": True}, ValueError, "option n_blocks is a whole number, found True"),
    (("dyad_it", 48, 48), {"n_blocks": -4}, ValueError, "cannot be negative"),
    (("dense", 0, 48), {}, ValueError, "in_features is from 1 to"),
    (("dense", 48, 48), {"backend": "einsumm"}, ValueError, "unknown backend 'einsumm'; did you mean 'einsum'?"),
    (("dense", 48, 48), {"init": "xavier"}, ValueError, "init is one of linear, spectral, paper, zero, identity"),
    (("kronecker", 48, 48), {"init": "paper"}, ValueError, "gives no initialisation of its own"),
]


@pytest.mark.parametrize(("arguments", "options", "kind", "words"), ERRORS, ids=[e[3][:40] for e in ERRORS])
def test_a_wrong_layer_is_an_error_that_names_a_way_out(arguments, options, kind, words):
    with pytest.raises(kind) as caught:
        structures.StructuredLinear(*arguments, **options)
    assert words in caught.value.args[0]


def test_a_wrong_input_is_an_error_that_names_a_way_out():
    made = layer("dyad_it", SHAPES[0], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"x has shape \(48, 7\).*in_features=48; .* is it transposed"):
        made(torch.randn(48, 7))
    with pytest.raises(ValueError, match=r"x has shape \(\)"):
        made(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"x is torch.float64, the parameters are torch.float32; convert"):
        made(torch.randn(3, 48, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x is on meta, the parameters are on cpu; move"):
        made(torch.randn(3, 48, device="meta"))
    with pytest.raises(AttributeError, match="no attribute 'wieght'"):
        made.wieght  # noqa: B018


def test_a_backend_asked_for_never_falls_back():
    class Never:
        @staticmethod
        def refuses(structure, x):
            return "it never runs"

    backends.register("never", Never)
    try:
        made = layer("dense", SMALL, backend="never")
        with pytest.raises(ValueError, match="backend 'never': it never runs"):
            made(torch.randn(2, 48, dtype=torch.float64))
        with pytest.raises(ValueError, match="there is a backend 'never' already"):
            backends.register("never", Never)
    finally:
        del backends._BACKENDS["never"]


@pytest.mark.parametrize(("name", "backend"), PLAIN_RUNS)
def test_flops_are_what_pytorch_counts(name, backend):
    made = layer(name, SHAPES[0], backend=backend)
    x, dy = tensors(made, 64, torch.float64)
    counted = FlopCounterMode(display=False)
    with counted:
        y = made(x.requires_grad_())
    forward = counted.get_total_flops()
    with counted:
        torch.autograd.grad(y, [x, *made.factors], dy)
    train = forward + counted.get_total_flops()
    assert sum(f.numel() for f in made.factors) == made.structure.params
    if backend == "planned":  # merged factors and elementwise steps run other counts, which the plan tells
        plan = made.plan(64, grad=True)
        assert plan.flops(64) > 0
        programs = getattr(plan, "plans", (plan,))
        if not any(type(op).__name__ == "Pointwise" for one in programs for op in (*one.forward, *one.backward)):
            assert train == plan.flops(64)
        return
    # a step that contracts nothing is an elementwise product to torch.einsum, which PyTorch does not count
    outer = sum(2 * 64 * made.structure.numel(s.axes) for s in made.structure.steps if not s.contracted)
    assert not outer or name in OUTER_PRODUCTS
    plain = outer if backend == "einsum" else 0
    assert forward == made.structure.flops(64) - plain
    assert train == made.structure.flops(64, train=True) - 3 * plain


def test_the_plan_of_a_layer_is_printed_with_its_cost():
    made = layer("monarch", SHAPES[0])
    forward, both = str(made.plan(128)), str(made.plan(128, grad=True))
    assert "predicted" in forward and "mm(" in forward
    assert "predicted" in both and both != forward


def test_the_input_can_be_passed_by_the_name_that_linear_gives_it():
    made = layer("dense", SMALL)
    x, _ = tensors(made, 3, torch.float64)
    assert torch.equal(made(input=x), made(x))


def test_the_layer_says_what_ran():
    made = layer("dense", SMALL)
    assert made.backend == "auto" and made.ran is None
    made(torch.randn(2, 48, dtype=torch.float64))
    assert made.ran in BACKENDS


@pytest.mark.parametrize(("name", "way_out"), [("autotune", "'auto' runs"), ("dense_cache", "structures.to_linear")])
def test_the_name_of_a_removed_backend_says_what_to_use(name, way_out):
    with pytest.raises(ValueError, match=rf"backend '{name}' was removed: .*{way_out}"):
        structures.StructuredLinear("monarch", 48, 96, backend=name)
