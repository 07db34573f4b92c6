"""The native kernel against the reference: every entry without a gate, every way to run, and where it may be called."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
import torch
from contract import SHAPES, error
from torch import Tensor

import structures
from structures import reference
from structures.backends import einsum, kept, native, stages
from structures.backends.native import build, kernel, library, operators
from structures.spec import Spec

NAMES = [name for name in structures.names() if not structures.get(name).gate]
NAMES = [name for name in NAMES if structures.get(name).bind(*SHAPES[0]).plain]  # chains run stage by stage
DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 3, 16, 33, 130)  # both sides of where rows end and tiles begin, and tiles that are not full
PROCESSORS = {"AVX2": ("-march=x86-64-v3",), "x86-64": ("-march=x86-64",)}


def odd(einsum: str | tuple[str, ...], **more: object) -> Spec:
    return Spec("odd", einsum, **more)  # type: ignore[arg-type]


# What no entry of the registry has: (definition, in_features, out_features)
ODD = {
    "identity": (odd("x -> x"), 12, 12),
    "permutation": (odd("(a b) -> (b a)", sizes={"a": "3"}), 12, 12),
    "elementwise scaling": (odd("x, x -> x"), 15, 15),
    "scaling and a permutation": (odd(("x, x -> x", "(a b) -> (b a)"), sizes={"a": "3"}), 15, 15),
    "outer product only": (odd("(a b), c a -> (c a b)", sizes={"a": "3", "c": "2"}), 12, 24),
    "axis in four operands": (odd("(a b), a b c, a c d, a d e -> (e a)", sizes={"a": "3", "c": "5", "d": "2"}), 12, 21),
    "batch innermost": (odd("(n i), i o n -> (n o)", sizes={"n": "3"}), 12, 15),
    "batch split by the contracted axis": (odd("(m i n), m i n o -> (o m n)", sizes={"m": "3", "n": "2"}), 24, 30),
    "gather that skips blocks": (
        odd("(b i), u i o -> (u o)", sizes={"b": "6", "u": "3"}, index={"b": "2 * u"}), 18, 12,
    ),
    "gather by two axes that stay": (
        odd("(b i), u v i o -> (v o u)", sizes={"b": "4", "u": "2", "v": "4"}, index={"b": "(2 * u + v) % 4"}), 20, 24,
    ),
    "gather that the first factor sees half of": (
        odd(
            "(b i), u i r, u k r o -> (u o)",
            sizes={"b": "4", "u": "4", "k": "2", "r": "3"}, index={"b": "u ^ k"},
        ), 20, 24,
    ),
    "gather of the output's own axis": (
        odd("(b i) -> (u i)", sizes={"b": "4", "u": "4"}, index={"b": "3 - u"}), 20, 20,
    ),
    "gather that repeats and skips without a factor": (
        odd("(b i) -> (u i)", sizes={"b": "4", "u": "6"}, index={"b": "u // 2"}), 20, 30,
    ),
    "many narrow terms": (odd(("x, x r, r y -> y",) * 4, sizes={"r": "1"}), 9, 11),
    "one input feature": (
        odd("(a b), a e d f b c, f -> (c d e)", sizes={"a": "1", "c": "2", "d": "2", "f": "4"}), 1, 8,
    ),
    "one feature of each": (odd("x, x y -> y"), 1, 1),
    "wide rank": (odd("x, x r, r y -> y", sizes={"r": "40"}), 12, 15),
    "vectors and a rest": (odd("x, x y -> y"), 257, 131),
}  # fmt: skip
CASES = [*((name, shape) for name in NAMES for shape in SHAPES), *((name, (0, 0)) for name in ODD)]


def structure_of(name: str, shape: tuple[int, int]):
    if name in ODD:
        spec, *widths = ODD[name]
        return spec.bind(*widths)
    return bound(name, *shape)


def bound(name: str, *widths: int, **options: object):
    """An entry at these widths; of one whose links are joined what a backend is given."""
    (program,) = stages.every(structures.get(name).bind(*widths, **options))
    return program


def operands(structure, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    """[x, bias, *factors] and dy, factors scaled so that y stays near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    factors = [draw(*s, scale=structure.fan(i)[0] ** -0.5) for i, s in enumerate(structure.factor_shapes)]
    made = [draw(tokens, structure.in_features), draw(structure.out_features), *factors]
    return made, draw(tokens, structure.out_features)


def whole(apply, structure, made, dy) -> list[Tensor]:
    """[y, dx, db, gradients of factors]."""
    made = [t.detach().clone().requires_grad_() for t in made]
    y = apply(structure, made[0], made[2:], made[1])
    return [y.detach(), *torch.autograd.grad(y, made, dy, materialize_grads=True)]


def check(structure, tokens: int, dtype: torch.dtype, seed: int = 0) -> None:
    """Value and every gradient: an error of at most twice that of torch's own products in this dtype."""
    made, dy = operands(structure, tokens, dtype, seed)
    truth = whole(reference.apply, structure, [t.double() for t in made], dy.double())
    plain = whole(einsum.apply, structure, made, dy)
    found = whole(native.apply, structure, made, dy)
    with torch.no_grad():
        found.append(native.apply(structure, made[0], made[2:], made[1]))
        parameters = [torch.nn.Parameter(t) for t in made[2:]]  # whose copies may be kept
        found += [native.apply(structure, made[0], parameters, made[1]) for _ in range(2)]
    for f, t, p in zip(found, (*truth, *[truth[0]] * 3), (*plain, *[plain[0]] * 3), strict=True):
        assert f.dtype == dtype and f.shape == t.shape
        floor = (1 + len(structure.steps)) * torch.finfo(dtype).eps  # plain has no error where nothing adds
        assert error(f, t) <= 2 * error(p, t) + floor


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory is NaN, so that numbers which nothing wrote show."""
    fresh = Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        tensor = fresh(self, *args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


@pytest.fixture(scope="module", autouse=True)
def there_is_a_compiler() -> None:
    try:
        build.find_compiler()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    assert kernel.reason() is None, "there is a compiler, and the kernel does not run"


@pytest.fixture(params=(1, 2))
def threads(request) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=PROCESSORS)
def processor(request) -> Iterator[str]:
    """The library for another processor in the place of this one's."""
    before = kernel.use(kernel.load(PROCESSORS[request.param]))
    yield request.param
    kernel.use(before)


# -- right


# Each case on one thread in one dtype and on two in the other, as the bits are the same for both; an entry of the
# registry at some numbers of tokens in one dtype or at one shape, and at the others in the other.
TURNS = [
    (1 + (i + j) % 2, *case, dtype, (i // 2 + j) % 2) for i, case in enumerate(CASES) for j, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("threads", "name", "shape", "dtype", "turn"), TURNS, indirect=["threads"])
def test_value_and_every_gradient_are_as_exact_as_torch_s_own(name, shape, dtype, threads, turn):
    structure = structure_of(name, shape)
    for tokens in TOKENS if name in ODD else TOKENS[turn::2]:
        check(structure, tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_other_processors_instructions_give_as_exact_results(name, dtype, processor):
    structure = structure_of(name, (144, 48))
    for tokens in (1, 5, 70):
        check(structure, tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "options", "widths"),
    [
        ("dense", {}, (1040, 1000)),
        ("monarch", {"n_blocks": 32}, (1024, 1024)),
        ("kronecker", {}, (1024, 4096)),  # few blocks with long sums over tokens
        ("butterfly", {"radix": 8, "block_size": 16}, (1024, 1024)),
        ("pixelfly", {"n_blocks": 32, "n_strides": 5, "rank": 0}, (1024, 1024)),
    ],
)
def test_wide_layers_and_many_tokens_keep_the_error_small(name, options, widths, dtype, threads):
    structure = bound(name, *widths, **options)
    for tokens in (2, 300):
        check(structure, tokens, dtype)


def test_the_comparison_can_fail():
    structure = structure_of("monarch", (48, 96))
    made, dy = operands(structure, 33)
    found = whole(native.apply, structure, made, dy)
    made[2] = made[2] * (1 + 1e-5)
    truth = whole(reference.apply, structure, [t.double() for t in made], dy.double())
    assert error(found[0], truth[0]) > 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_the_same_for_any_number_of_threads_and_each_time(name, dtype):
    structure = bound(name, 240, 240)
    for tokens in (1, 17, 200):
        made, dy = operands(structure, tokens, dtype)
        first = whole(native.apply, structure, made, dy)
        for number in (2, 3, 5, 1):
            torch.set_num_threads(number)
            for f, g in zip(first, whole(native.apply, structure, made, dy), strict=True):
                assert torch.equal(f, g), f"{number} threads, {tokens} tokens"


CHAINED = [name for name in structures.names() if not structures.get(name).bind(144, 144).plain]


@pytest.mark.parametrize("name", [name for name in CHAINED if not structures.get(name).gate])
def test_layers_whose_links_run_one_after_another_are_as_exact_as_torch_s_own(name):
    made = structures.StructuredLinear(name, 144, 144, backend="native")
    plain = structures.StructuredLinear(name, 144, 144, backend="einsum")
    plain.load_state_dict(made.state_dict())
    x, dy = torch.randn(33, 144, requires_grad=True), torch.randn(33, 144)
    exact = made.to_dense().detach().double()
    wanted = (x.double() @ exact.t() + made.bias.double(), dy.double() @ exact)
    found, usual = ([y := layer(x), torch.autograd.grad(y, x, dy)[0]] for layer in (made, plain))
    assert made.ran == "native"
    for f, p, w in zip(found, usual, wanted, strict=True):
        assert error(f, w) <= 2 * error(p, w) + (1 + len(made.structure.steps)) * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", NAMES)
def test_without_bias_nothing_is_added(name):
    structure = bound(name, 48, 96)
    made, _ = operands(structure, 20)
    y = native.apply(structure, made[0], made[2:], None)
    torch.testing.assert_close(y, einsum.apply(structure, made[0], made[2:], None), rtol=1e-4, atol=1e-5)


def test_strides_of_x_and_of_the_gradient_are_taken():
    structure = structure_of("monarch", (48, 96))
    made, dy = operands(structure, 40)
    wide = torch.randn(40, 100)
    wide[:, 7:55] = made[0]
    views = {
        "rows apart": (wide[:, 7:55], dy),
        "turned": (made[0].t().contiguous().t(), dy.t().contiguous().t()),
        "every other row": (made[0].repeat_interleave(2, 0)[::2], dy.repeat_interleave(2, 0)[::2]),
    }
    wanted = whole(native.apply, structure, made, dy)
    for what, (x, gradient) in views.items():
        x = x.detach().requires_grad_()
        y = native.apply(structure, x, made[2:], made[1])
        assert torch.equal(y, wanted[0]), what
        torch.testing.assert_close(torch.autograd.grad(y, x, gradient)[0], wanted[1], msg=what)
    x = made[0][:1].expand(40, 48).requires_grad_()
    y = native.apply(structure, x, made[2:], made[1])
    (dx,) = torch.autograd.grad(y.sum(), x)  # a gradient with strides of 0
    (wanted_dx,) = torch.autograd.grad(einsum.apply(structure, x, made[2:], made[1]).sum(), x)
    torch.testing.assert_close(dx, wanted_dx, rtol=1e-4, atol=1e-5)


def test_factors_that_are_views_are_taken():
    structure = structure_of("low_rank", (48, 96))
    made, _ = operands(structure, 9)
    turned = [f.t().contiguous().t() for f in made[2:]]
    assert not turned[0].is_contiguous()
    assert torch.equal(
        native.apply(structure, made[0], turned, made[1]), native.apply(structure, made[0], made[2:], made[1])
    )


@pytest.mark.parametrize(
    "pattern", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0)]
)
def test_only_the_gradients_asked_for_are_computed_and_they_are_the_same(pattern):
    structure = structure_of("monarch", (48, 96))
    made, dy = operands(structure, 40)
    every = whole(native.apply, structure, made, dy)[1:]
    made = [t.requires_grad_(bool(p)) for t, p in zip(made, pattern, strict=True)]
    y = native.apply(structure, made[0], made[2:], made[1])
    asked = [t for t in made if t.requires_grad]
    for f, w in zip(
        torch.autograd.grad(y, asked, dy), [e for e, p in zip(every, pattern, strict=True) if p], strict=True
    ):
        assert torch.equal(f, w)


def test_an_empty_batch_has_an_empty_result_and_gradients_of_zeros():
    structure = structure_of("monarch", (48, 96))
    made, dy = operands(structure, 0)
    y, dx, *others = whole(native.apply, structure, made, dy)
    assert y.shape == (0, 96) and dx.shape == (0, 48)
    assert all(not o.any() for o in others)


SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e-40, -1e-45, 3e38, -0.0)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("value", SPECIAL)
def test_nan_inf_and_subnormals_go_where_they_go_in_torch(value, tokens):
    structure = bound("block_diagonal", 64, 64)
    made, _ = operands(structure, tokens)
    made[0][tokens // 2, 5] = value
    made[2].copy_(torch.eye(16).expand(4, 16, 16))
    made[1].zero_()
    wanted = einsum.apply(structure, made[0], made[2:], made[1])
    torch.testing.assert_close(
        native.apply(structure, made[0], made[2:], made[1]), wanted, equal_nan=True, rtol=0, atol=0
    )


MADE = """
import os, torch, structures
from structures.backends import native, stages
torch.set_num_threads(2)
structure = structures.get("btt").bind(256, 256)
x, dy = torch.randn(300, 256), torch.randn(300, 256)
factors = [torch.randn(shape, requires_grad=True) for shape in structure.factor_shapes]
def call():
    y = native.apply(structure, x, factors)
    return y.detach(), *torch.autograd.grad(y, factors, dy)
"""
LOADING = """
import numpy
def small():
    one, many = numpy.float32(1e-38), torch.full((100_000,), 1e-38)  # many: of both threads
    return float(one * numpy.float32(0.1)), float((many * 0.1).min()), float(numpy.float64(1e-308) * 0.1)
before = small()
assert native.refuses(structure, x) is None
call()
assert before == small() and min(before) > 0, (before, small())
one = torch.tensor(float("inf"))
assert (one - one).isnan()
"""


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    kept = {**os.environ, **environment}
    given = {k: v for k, v in kept.items() if v is not None}
    return processes.python(Path.cwd(), ["-c", code], given)


def test_loading_and_calling_leave_subnormals_nan_and_inf_as_they_were():
    done = python(MADE + LOADING)
    assert done.returncode == 0, done.stderr


# -- from anywhere


def test_eight_python_threads_may_call_at_once():
    torch.set_num_threads(2)
    structure = structure_of("monarch", (240, 240))
    cases = [operands(structure, tokens, seed=tokens) for tokens in (1, 3, 16, 33, 64, 130, 200, 5)]
    wanted = [whole(native.apply, structure, made, dy) for made, dy in cases]
    wrong: list[str] = []

    def call(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        made, dy = cases[number]
        for _ in range(30):
            for f, w in zip(whole(native.apply, structure, made, dy), wanted[number], strict=True):
                if not torch.equal(f, w):
                    wrong.append(f"thread {number}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_number_of_threads_may_change_between_calls():
    structure = structure_of("btt", (240, 240))
    made, dy = operands(structure, 100)
    wanted = whole(native.apply, structure, made, dy)
    for number in (2, 1, 4, 2, 1, 3):
        torch.set_num_threads(number)
        assert all(map(torch.equal, whole(native.apply, structure, made, dy), wanted))


def test_a_call_inside_a_parallel_region_runs_on_its_own_thread():
    openmp = library.torch_openmp()
    assert openmp is not None
    structure = structure_of("monarch", (240, 240))
    made, _ = operands(structure, 100)
    wanted = native.apply(structure, made[0], made[2:], made[1])
    found: list[Tensor] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_: object) -> None:
        torch.set_num_threads(2)
        found.append(native.apply(structure, made[0], made[2:], made[1]))

    openmp.GOMP_parallel(body, None, 2, 0)
    assert len(found) == 2 and all(torch.equal(f, wanted) for f in found)


FORK = """
wanted = call()
child = os.fork()
if child == 0:
    signal.alarm(60)  # what hangs is killed
    torch.set_num_threads(THREADS)
    # as bytes: what torch itself computes on two threads never ends in a forked child
    os._exit(0 if all(f.numpy().tobytes() == w.numpy().tobytes() for f, w in zip(call(), wanted)) else 3)
assert os.waitpid(child, 0)[1] == 0
assert all(map(torch.equal, call(), wanted))
"""


@pytest.mark.parametrize("threads", [1, 2])  # a worker of a DataLoader asks for one
def test_a_forked_child_runs_on_one_thread_after_its_parent_used_two(threads):
    done = python(f"import signal\nTHREADS = {threads}\n" + MADE + FORK)
    assert done.returncode == 0, done.stderr


# -- refused


def test_what_it_cannot_run_is_refused_in_a_sentence():
    structure = structure_of("monarch", (48, 96))
    assert native.refuses(structure, torch.empty(1, 48)) is None
    assert native.refuses(structure, torch.empty(1, 48, dtype=torch.float64)) == (
        "it runs float32 and bfloat16, x is float64"
    )
    gated = structures.get("btt_moe").bind(48, 96)
    assert "has a gate" in str(native.refuses(gated, torch.empty(1, 48)))
    before = kernel.use("no compiler")
    try:
        assert native.refuses(structure, torch.empty(1, 48)) == "no compiler"
        with pytest.raises(ValueError, match="backend 'native': no compiler"):
            native.apply(structure, torch.empty(1, 48), [torch.empty(s) for s in structure.factor_shapes])
    finally:
        kernel.use(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_plan_of_a_layer_says_how_it_runs_with_its_cost(dtype):
    made = structures.StructuredLinear("dyad_it", 256, 256, dtype=dtype, backend="native")
    one, many, both = str(made.plan(1)), str(made.plan(128)), str(made.plan(128, grad=True))
    assert "1 tokens, forward: the native kernel, rows" in one and "tiles of" in many and "forward and backward" in both
    assert all("; predicted " in text and text.count("(4, 1, 64, 64)") == 2 for text in (one, many, both))
    assert made.plan(128).flops(128) == made.structure.flops(128)
    assert 0 < made.plan(1).seconds < made.plan(1024).seconds < made.plan(1024, grad=True).seconds
    with pytest.raises(ValueError, match="it runs float32 and bfloat16"):
        made.double().plan(1)


WITHOUT = """
import torch, warnings
from structures.backends import native
import structures
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    structure = structures.get("btt").bind(48, 96)
    for _ in range(3):
        print(native.refuses(structure, torch.empty(1, 48)))
print(len([w for w in seen if "native" in str(w.message)]))
"""


def test_without_a_compiler_the_reason_is_said_once(tmp_path):
    done = python(WITHOUT, PATH="", CXX=None, STRUCTURES_CACHE=str(tmp_path), STRUCTURES_NATIVE=None)
    assert done.returncode == 0, done.stderr
    *reasons, warned = done.stdout.splitlines()
    assert all("no C++ compiler is found" in reason for reason in reasons) and warned == "1"


def test_the_user_s_switch_is_no_warning(tmp_path):
    done = python(WITHOUT, STRUCTURES_CACHE=str(tmp_path), STRUCTURES_NATIVE="0")
    *reasons, warned = done.stdout.splitlines()
    assert reasons == ["STRUCTURES_NATIVE=0 turns it off"] * 3 and warned == "0"
    assert not list(tmp_path.iterdir()), "nothing is built"


def test_an_object_of_other_source_is_not_run(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / build.MAIN).write_text("int nothing;\n")
    monkeypatch.setattr(kernel, "object_file", lambda machine, again: build.object_file(machine, source))
    with pytest.raises(build.Unavailable, match="built from other source"):
        kernel.load()


# -- kept copies


def parameters(structure, tokens: int, dtype: torch.dtype):
    made, _ = operands(structure, tokens, dtype)
    return made[0], made[1], [torch.nn.Parameter(t) for t in made[2:]]


def copied(dtype: torch.dtype):
    """A structure, tokens and parameters that keep a copy."""
    structure = bound("butterfly", 256, 256, radix=4)
    tokens = 1 if dtype is torch.float32 else 128
    x, bias, factors = parameters(structure, tokens, dtype)
    with torch.no_grad():
        native.apply(structure, x, factors, bias)
    assert kept.held_bytes(factors) > 0, "this case should keep a copy"
    return structure, x, bias, factors


def changed_in_place(factors: list[torch.nn.Parameter]) -> None:
    factors[0].mul_(2)


def changed_by_data(factors: list[torch.nn.Parameter]) -> None:
    factors[-1].data = factors[-1].data * 2


def changed_by_an_optimizer(factors: list[torch.nn.Parameter]) -> None:
    for factor in factors:
        factor.grad = torch.ones_like(factor)
    torch.optim.SGD(factors, lr=0.1).step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", [changed_in_place, changed_by_data, changed_by_an_optimizer])
def test_a_kept_copy_is_made_anew_when_a_factor_changed(dtype, change):
    structure, x, bias, factors = copied(dtype)
    with torch.no_grad():
        before = native.apply(structure, x, factors, bias)
        change(factors)
        after = native.apply(structure, x, factors, bias)
        fresh = native.apply(structure, x, [torch.nn.Parameter(f.clone()) for f in factors], bias)
    assert torch.equal(after, fresh) and not torch.equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_copy_goes_with_its_factors_and_when_it_is_released(dtype):
    structure, x, bias, factors = copied(dtype)
    kept.release(factors)
    assert kept.held_bytes(factors) == 0
    with torch.no_grad():
        native.apply(structure, x, factors, bias)
    assert kept.held_bytes(factors) > 0
    count = len(kept._copies)
    del factors
    assert len(kept._copies) == count - 1


def test_a_layer_that_runs_in_stages_frees_the_copies_of_each():
    """Previously failed: a stage is given some of the factors, and the layer released those that all stages have."""
    layer = structures.StructuredLinear("kaleidoscope", 256, 256, backend="native").eval()
    with torch.no_grad():
        layer(torch.randn(1, 256))
    assert kept.held_bytes(layer.factors) > 0, "this case should keep a copy"
    layer.train()
    assert kept.held_bytes(layer.factors) == 0


def test_nothing_is_kept_where_gradients_are_wanted_or_changes_cannot_be_seen():
    structure, x, bias, factors = copied(torch.float32)
    kept.release(factors)
    native.apply(structure, x, factors, bias)  # grad is enabled, and the factors want it
    with torch.no_grad():
        native.apply(structure, x, factors, bias, keep=False)
        tensors = [f.detach().clone() for f in factors]
        native.apply(structure, x, tensors, bias)
    assert kept.held_bytes(factors) == 0 == kept.held_bytes(tensors)


# -- derivatives of other kinds, and graphs


def smooth(structure, tokens: int):
    made, dy = operands(structure, tokens)
    return [t.requires_grad_() for t in made], dy


# What torch itself warns of on first use of its transforms and compilers; none of it concerns what they do here.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*torch.jit.*")


@pytest.mark.parametrize("name", ["dyad_it", "monarch", "pixelfly"])
def test_it_is_differentiable_twice(name):
    structure = bound(name, 48, 96, **({"rank": 2} if name == "pixelfly" else {}))
    made, dy = smooth(structure, 6)

    def second(apply) -> tuple[Tensor, ...]:
        y = apply(structure, made[0], made[2:], made[1])
        first = torch.autograd.grad(y, made, dy, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), [made[0], *made[2:]])

    for f, w in zip(second(native.apply), second(einsum.apply), strict=True):
        torch.testing.assert_close(f, w, rtol=1e-3, atol=1e-4)


@quiet
def test_function_transforms_agree_with_torch_s_own_products():
    structure = structure_of("monarch", (48, 96))
    made, _ = operands(structure, 6)
    batch = torch.randn(4, 6, 48)

    def of(apply):
        def one(x: Tensor) -> Tensor:
            return apply(structure, x, made[2:], made[1])

        tangent = torch.ones_like(made[0])
        return [
            torch.vmap(one)(batch),
            torch.func.jvp(one, (made[0],), (tangent,))[1],
            torch.func.grad(lambda x: one(x).sum())(made[0]),
            torch.func.jacrev(one)(made[0][:1]),
            torch.func.hessian(lambda x: one(x).pow(2).sum())(made[0][:1]),
        ]

    for f, w in zip(of(native.apply), of(einsum.apply), strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-4)


@quiet
def test_forward_mode_derivatives_agree():
    import torch.autograd.forward_ad as forward_ad

    structure = structure_of("monarch", (48, 96))
    made, _ = operands(structure, 6)
    tangents = []
    for backend in (native, einsum):
        with forward_ad.dual_level():
            y = backend.apply(structure, forward_ad.make_dual(made[0], torch.ones(6, 48)), made[2:], made[1])
            tangents.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-5)


@quiet
def test_several_output_gradients_at_once():
    structure = structure_of("monarch", (48, 96))
    made, _ = smooth(structure, 6)
    several = torch.randn(3, 6, 96)
    found, wanted = (
        torch.autograd.grad(b.apply(structure, made[0], made[2:], made[1]), made, several, is_grads_batched=True)
        for b in (native, einsum)
    )
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-4)


def test_an_input_computed_from_a_factor_gets_both_paths_once():
    structure = structure_of("low_rank", (48, 48))
    made, dy = smooth(structure, 48)

    def gradient(apply) -> Tensor:
        x = made[2] @ torch.ones(made[2].shape[1], 48)
        y = apply(structure, x, made[2:], made[1])
        (g,) = torch.autograd.grad(y, made[2], dy, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), made[2])[0]

    torch.testing.assert_close(gradient(native.apply), gradient(einsum.apply), rtol=1e-3, atol=1e-2)


def test_checkpoints_and_hooks_on_saved_tensors_work():
    from torch.utils.checkpoint import checkpoint

    structure = structure_of("monarch", (48, 96))
    made, dy = smooth(structure, 40)
    wanted = torch.autograd.grad(native.apply(structure, made[0], made[2:], made[1]), made, dy)
    y = checkpoint(lambda x, b, *f: native.apply(structure, x, f, b), *made, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y, made, dy), wanted))
    with torch.autograd.graph.save_on_cpu():
        y = native.apply(structure, made[0], made[2:], made[1])
    assert all(map(torch.equal, torch.autograd.grad(y, made, dy), wanted))


def test_a_factor_changed_between_forward_and_backward_is_noticed():
    structure = structure_of("monarch", (48, 96))
    made, dy = smooth(structure, 40)
    y = native.apply(structure, made[0], made[2:], made[1])
    with torch.no_grad():
        made[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, made, dy)


def test_inference_mode_runs_and_keeps():
    structure, x, bias, factors = copied(torch.float32)
    with torch.no_grad():
        wanted = native.apply(structure, x, factors, bias)
    with torch.inference_mode():
        assert torch.equal(native.apply(structure, x, factors, bias), wanted)
    y = native.apply(structure, x, factors, bias)  # what was kept in inference mode does no harm outside
    torch.autograd.grad(y.sum(), factors)


def test_meta_tensors_pass_through():
    structure = structure_of("monarch", (48, 96))
    made = [torch.empty(s, device="meta") for s in structure.factor_shapes]
    x = torch.empty(7, 48, device="meta")
    assert native.refuses(structure, x) is None
    assert native.apply(structure, x, made).shape == (7, 96)


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_whoever_watches_operations_sees_the_kernel_s():
    structure = structure_of("monarch", (48, 96))
    made, dy = smooth(structure, 20)
    wanted = whole(native.apply, structure, made, dy)
    with Counted() as mode:
        found = whole(native.apply, structure, made, dy)
    assert "structures.native.default" in mode.seen and "structures.native_backward.default" in mode.seen
    assert all(map(torch.equal, found, wanted))


def test_what_a_counter_of_flops_sees_is_what_is_executed():
    from torch.utils.flop_counter import FlopCounterMode

    structure = structure_of("monarch", (48, 96))
    made, dy = smooth(structure, 20)
    with FlopCounterMode(display=False) as counted:
        native.apply(structure, made[0], made[2:], made[1])
    assert counted.get_total_flops() == native.executed_flops(structure, 20)
    with FlopCounterMode(display=False) as counted:
        whole(native.apply, structure, made, dy)
    assert counted.get_total_flops() == native.executed_flops(structure, 20, train=True)


@quiet
def test_a_trace_holds_the_operator_and_no_constant():
    structure = structure_of("monarch", (48, 96))
    made, _ = operands(structure, 20)
    traced = torch.jit.trace(lambda x: native.apply(structure, x, made[2:], made[1]), (made[0],))
    other = torch.randn(33, 48)
    assert torch.equal(traced(other), native.apply(structure, other, made[2:], made[1]))


@pytest.mark.parametrize("name", [name for name in structures.names() if not structures.get(name).gate])
def test_a_structure_written_as_text_is_bound_again_and_so_is_every_stage_of_a_chain(name):
    for structure in stages.every(structures.get(name).bind(144, 144)):
        again = operators.bound(operators.name(structure))
        assert again.plain and again.gate is None
        for field in ("factors", "sizes", "in_features", "out_features", "factor_shapes", "steps"):
            assert getattr(again, field) == getattr(structure, field)
        made, _ = operands(structure, 5)
        wanted = native.apply(structure, made[0], made[2:], made[1])
        assert torch.equal(native.apply(again, made[0], made[2:], made[1]), wanted)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"entry": {}, "widths": [1], "options": {}}', "[" * 2000])
def test_a_text_that_is_no_structure_is_an_error(text):
    with pytest.raises(ValueError, match="is no structure"):
        operators.bound(text)


class Product(torch.nn.Module):
    """The backend alone, as a module whose parameters an export finds."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, **options: object):
        super().__init__()
        self.structure = bound(name, 48, 96, **options)
        made, _ = operands(self.structure, 1, dtype)
        self.bias = torch.nn.Parameter(made[1])
        self.factors = torch.nn.ParameterList(made[2:])

    def forward(self, x: Tensor) -> Tensor:
        assert native.refuses(self.structure, x) is None
        return torch.nn.functional.gelu(native.apply(self.structure, x, list(self.factors), self.bias))


@quiet
@pytest.mark.parametrize(("compiler", "dtype"), [("aot_eager", torch.bfloat16), ("inductor", torch.float32)])
def test_it_compiles_to_one_graph_for_any_number_of_tokens(compiler, dtype, fresh_compiler):
    made = Product("monarch", dtype)
    compiled = torch.compile(made, backend=compiler, fullgraph=True, dynamic=True)
    leaves = list(made.parameters())
    for tokens in (5, 63, 130):
        x, dy = torch.randn(tokens, 48, dtype=dtype, requires_grad=True), torch.randn(tokens, 96, dtype=dtype)
        found, wanted = compiled(x), made(x)
        torch.testing.assert_close(found, wanted)
        grads = torch.autograd.grad(found, [x, *leaves], dy)
        for f, w in zip(grads, torch.autograd.grad(wanted, [x, *leaves], dy), strict=True):
            torch.testing.assert_close(f, w)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), made(x))
    leaves[1].requires_grad_(False)
    y = compiled(x)
    assert len(torch.autograd.grad(y, [x, *[p for p in leaves if p.requires_grad]], dy)) == len(leaves)


@quiet
def test_an_exported_graph_holds_one_operator_for_any_number_of_tokens(tmp_path):
    made = Product("dyad_it").eval()
    x = torch.randn(8, 48)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    exported = torch.export.export(made, (x,), dynamic_shapes={"x": {0: tokens}})
    ops = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert ops.count("structures.native.default") == 1
    torch.export.save(exported, tmp_path / "model.pt2")
    more = torch.randn(100, 48)
    torch.save((more, made(more).detach()), tmp_path / "pair.pt")
    done = python(
        "import torch, structures\n"
        "from structures.backends import native  # whose operators the graph names\n"
        f"x, wanted = torch.load({str(tmp_path / 'pair.pt')!r})\n"
        f"y = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()(x)\n"
        "torch.testing.assert_close(y, wanted)\n"
    )
    assert done.returncode == 0, done.stderr


@quiet
def test_auto_compiles_to_the_kernel_and_exports_and_traces_to_torch_s_own_operations(fresh_compiler):
    made = structures.StructuredLinear("btt", 256, 256).eval()
    x, more, seen = torch.randn(8, 256), torch.randn(33, 256), []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(made, backend=look, fullgraph=True, dynamic=True)(x)
    assert seen.count("structures.native") == 1
    exported = torch.export.export(made, (x,), dynamic_shapes={"input": {0: torch.export.Dim("tokens", min=2)}})
    assert not [node for node in exported.graph.nodes if "structures" in str(node.target)]
    traced = torch.jit.trace(made, (x,))
    assert "structures" not in str(traced.inlined_graph).replace("structures.linear", "").replace("__torch__", "")
    for run in (exported.module(), traced):
        torch.testing.assert_close(run(more), made(more), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        made(x)
    assert made.ran == "native"


def test_the_operators_pass_torch_s_own_checks():
    structure = structure_of("monarch", (48, 96))
    made, dy = smooth(structure, 20)
    text = operators.name(structure)
    torch.library.opcheck(torch.ops.structures.native.default, (made[0], made[2:], made[1], text))
    torch.library.opcheck(torch.ops.structures.native.default, (made[0], made[2:], None, text))
    given = [made[0].detach(), [f.detach() for f in made[2:]]]
    for want in ([True] * 4, [False, True, False, True]):
        torch.library.opcheck(torch.ops.structures.native_backward.default, (dy, *given, want, text))
