"""Constant factors: their numbers, the same everywhere; what they cost; that nobody trains or saves them."""

import copy
import itertools
import math
import pickle
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from contract import layer
from scipy.fft import dct
from scipy.linalg import hadamard

import structures
from structures import backends, reference
from structures.algebra import binding, constants, padding, rank
from structures.algebra.constants import Constant
from structures.algebra.widths import least_flops
from structures.language.expressions import divisors
from structures.spec import SizeError, Spec, SpecError
from structures.structure import Structure

ROTATED = "x, sign.1(x), hadamard(x z), z, permutation.2(z y) -> y"


def rotated(**more: object) -> Spec:
    return Spec("rotated", einsum=ROTATED, sizes={"z": "in_features"}, **more)  # type: ignore[arg-type]


def by_hand(n: int, diagonal: np.ndarray) -> np.ndarray:
    """The matrix of `rotated`, from scipy and the numbers of the two random constants."""
    moved = np.zeros((n, n))
    moved[constants.order(Constant("permutation", (n, n), 2)), np.arange(n)] = 1
    signs = np.diag(constants.values(Constant("sign", (n,), 1)))
    return moved @ np.diag(diagonal) @ hadamard(n) / np.sqrt(n) @ signs


# -- numbers: a model of a constant is saved without it, so these may never change


def test_signs_are_the_top_bits_of_the_raw_stream() -> None:
    assert constants.values(Constant("sign", (12,), 1)).tolist() == [1, 1, 1, 1, -1, -1, 1, -1, -1, -1, -1, 1]
    other = constants.values(Constant("sign", (12,), 1, position=1)).tolist()
    assert other != constants.values(Constant("sign", (12,), 1)).tolist()
    assert constants.values(Constant("sign", (3,), 1)).tolist() == [1, 1, 1]  # a longer one begins with a shorter one


def test_permutations_sort_the_raw_stream() -> None:
    assert constants.order(Constant("permutation", (8, 8), 3)).tolist() == [4, 3, 0, 1, 2, 5, 7, 6]
    drawn = constants.order(Constant("permutation", (1000, 1000), 7))
    assert sorted(drawn.tolist()) == list(range(1000))


def test_normal_numbers_have_their_variance_and_are_rounded() -> None:
    first = constants.values(Constant("normal", (4, 2), 3))
    np.testing.assert_array_equal(first[:2] * 2 * 2**20, np.round(first[:2] * 2 * 2**20))
    np.testing.assert_allclose(first.ravel()[:4], [-0.33906937, -0.26152897, 0.93845749, 0.02088308], atol=5e-9)
    many = constants.values(Constant("normal", (500, 400), 5))
    assert abs(many.mean()) < 5 / np.sqrt(many.size * 500)
    assert abs(many.var() * 500 - 1) < 5 * np.sqrt(2 / many.size)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_hadamard_and_cosine_matrices_are_those_of_scipy(n: int) -> None:
    np.testing.assert_allclose(constants.values(Constant("hadamard", (n, n))), hadamard(n) / np.sqrt(n))
    np.testing.assert_allclose(constants.values(Constant("dct", (n, n))), dct(np.eye(n), norm="ortho"), atol=1e-14)


# -- meaning


@pytest.mark.parametrize("n", [1, 2, 16, 64])
def test_a_rotated_diagonal_is_what_it_says_on_every_backend(n: int) -> None:
    made = structures.StructuredLinear(rotated(), n, n, dtype=torch.float64)
    wanted = torch.from_numpy(by_hand(n, made.factor_0.detach().numpy()))
    torch.testing.assert_close(made.to_dense(), wanted)
    np.testing.assert_allclose(rank.dense(made.structure, [made.factor_0.detach().numpy()]), wanted.numpy(), atol=1e-14)
    x = torch.randn(5, n, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad((x @ wanted.t()).square().sum(), x)
    for name in ("einsum", "bmm", "planned"):
        y = backends.apply(name, made.structure, x, made.factors, made.bias)
        torch.testing.assert_close(y, x @ wanted.t() + made.bias)
        again = backends.apply(name, made.structure, x, made.factors, None)
        torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x), gradients)
    torch.testing.assert_close(reference.apply(made.structure, x, made.factors, made.bias), x @ wanted.t() + made.bias)


def test_a_hadamard_matrix_costs_n_log_n_and_a_permutation_nothing() -> None:
    structure = rotated().bind(1024, 1024)
    assert structure.flops() == 4 * 1024 * 10 + 2 * 2 * 1024  # the sign and the diagonal: 2 each
    assert structure.params == 1024
    without = Spec("w", einsum="x, permutation(x y) -> y").bind(1024, 1024)
    assert (without.flops(), without.params) == (0, 0)


def test_other_constants_are_operands_like_factors() -> None:
    entry = Spec("vera", einsum="x, normal.7(x r), r, normal.8(r y), y -> y", sizes={"r": "4"})  # type: ignore[arg-type]
    made = structures.StructuredLinear(entry, 12, 20, dtype=torch.float64, bias=False)
    down, up = (constants.values(Constant("normal", s, n)) for s, n in (((12, 4), 7), ((4, 20), 8)))
    d, b = (f.detach().numpy() for f in made.factors)
    np.testing.assert_allclose(made.to_dense().detach().numpy(), np.diag(b) @ up.T @ np.diag(d) @ down.T, atol=1e-14)
    spectrum = Spec("acdc", einsum="x, x, dct(x z), z, dct(y z) -> y", sizes={"z": "in_features"})  # type: ignore[arg-type]
    whole = structures.StructuredLinear(spectrum, 12, 12, dtype=torch.float64, bias=False)
    a, d = (f.detach().numpy() for f in whole.factors)
    c = constants.values(Constant("dct", (12, 12)))
    np.testing.assert_allclose(whole.to_dense().detach().numpy(), c @ np.diag(d) @ c.T @ np.diag(a), atol=1e-14)


def test_a_constant_that_others_hold_too_is_multiplied_by() -> None:
    """Masked by a Hadamard matrix: no activation passes through it."""
    entry = Spec("masked", einsum="x, x y, hadamard(x y) -> y")
    made = structures.StructuredLinear(entry, 8, 8, dtype=torch.float64, bias=False)
    wanted = (made.factor_0 * torch.from_numpy(hadamard(8) / np.sqrt(8))).t()
    torch.testing.assert_close(made.to_dense(), wanted)
    torch.testing.assert_close(made(torch.eye(8, dtype=torch.float64)), wanted.t())


def test_each_copy_in_a_family_has_numbers_of_its_own() -> None:
    entry = Spec("signs", einsum="(i[:]), sign.4(i[t]) -> (i[:])", sizes={"i": "split(in_features, 2)"})  # type: ignore[arg-type]
    dense = rank.dense(entry.bind(64, 64), [])
    first, second = (constants.values(Constant("sign", (8,), 4, position=t)) for t in (0, 1))
    np.testing.assert_array_equal(dense, np.diag(np.kron(first, second)))
    assert first.tolist() != second.tolist()


def test_fastfood_is_padded_to_a_power_of_two() -> None:
    made = structures.get("fastfood").bind(50, 20)
    assert (made.in_features, made.out_features, made.asked) == (64, 64, (50, 20))
    assert made.flops() == 2 * 4 * 64 * 6 + 3 * 2 * 64
    assert made.flops(train=True) == 2 * 2 * 4 * 64 * 6 + 3 * 3 * 2 * 64  # a Hadamard matrix has no gradient
    assert {backends.get(name).executed_flops(made, train=True) for name in ("einsum", "bmm")} == {
        made.flops(train=True)
    }


def test_widths_that_an_option_of_another_type_has_refused_are_not_refused_for_ever() -> None:
    """Previously failed: 4 and 4.0 are equal, and what was found for the one was kept for the other."""
    bind = structures.get("kronecker_sparse_chain").bind
    with pytest.raises(SizeError, match=r"4\.0, not a whole number"):
        bind(61, 61, outer=[4.0, 1.0], inner=[1, 4], width=64, pad=True)
    assert bind(61, 61, outer=[4, 1], inner=[1, 4], width=64, pad=True).widths == (61, 61)


def test_a_seed_may_be_an_option() -> None:
    entry = Spec("p", einsum="x, permutation.seed(x y) -> y", options={"seed": 3})  # type: ignore[arg-type]
    three, four = (rank.dense(entry.bind(16, 16, seed=s), []) for s in (3, 4))
    assert (three != four).any()
    np.testing.assert_array_equal(three, rank.dense(entry.bind(16, 16), []))


# -- as a layer


def test_constants_are_no_parameters_and_are_not_saved() -> None:
    made = structures.StructuredLinear(rotated(), 16, 16)
    assert list(made.state_dict()) == ["factor_0", "bias"]
    assert [name for name, _ in made.named_buffers()] == []
    before = made.to_dense()
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(again.to_dense(), before, rtol=0, atol=0)
    empty = structures.StructuredLinear(rotated(), 16, 16, device="meta").to_empty(device="cpu")
    empty.load_state_dict(made.state_dict())
    torch.testing.assert_close(empty.to_dense(), before, rtol=0, atol=0)
    assert made.double()(torch.ones(1, 16, dtype=torch.float64)).dtype == torch.float64


def test_torch_s_generators_decide_nothing() -> None:
    torch.manual_seed(0)
    one = constants.values.__wrapped__(Constant("normal", (4, 4), 1))
    torch.manual_seed(1)
    np.random.seed(1)
    np.testing.assert_array_equal(one, constants.values.__wrapped__(Constant("normal", (4, 4), 1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the compiler's own
def test_a_layer_of_constants_compiles_whole() -> None:
    made = structures.StructuredLinear(rotated(), 16, 16, backend="planned")
    x = torch.randn(4, 16)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(x), made(x))


def test_the_variance_is_kept_through_constants() -> None:
    torch.manual_seed(0)
    made = structures.StructuredLinear(rotated(), 256, 256, bias=False)
    assert 0.9 < float(made(torch.randn(2000, 256)).detach().std()) * 3**0.5 < 1.1


def test_a_projection_holds_the_constants_fixed() -> None:
    weight = torch.from_numpy(by_hand(16, np.random.default_rng(0).standard_normal(16)))
    assert structures.project(weight, rotated()).projection.weight_error < 1e-10


def test_a_page_shows_links_and_constants() -> None:
    page = str(rotated().bind(16, 16))
    assert ROTATED in page
    assert "hadamard   1 x (tokens" in page
    assert "z is read at permutation.2 of y" in page


# -- mistakes

MISTAKES = [
    ("x, hadamard(x z), z y -> y", {"z": "8"}, (12, 12), SizeError, "two sides of one size, found x=12"),
    ("x, hadamard(x y) -> y", {}, (12, 12), SizeError, "is of a power of two, found 12; pad=True"),
    ("x, hadamard(x y) -> y", {}, (8, 16), SizeError, "found x=8 and y=16 at in_features=8, out_features=16"),
    ("x, hadamar(x y) -> y", {}, (8, 8), SpecError, "there is no constant 'hadamar'; did you mean 'hadamard'"),
    ("x, sign(x y) -> y", {}, (8, 8), SpecError, "sign has 1 axis, found 2"),
    ("x, hadamard.1(x y) -> y", {}, (8, 8), SpecError, "hadamard takes no seed"),
    ("x, permutation.s(x y) -> y", {}, (8, 8), SpecError, "the seed 's' of permutation is no option"),
    ("x, permutation (x y) -> y", {}, (8, 8), SpecError, "one pair of parentheses"),
    ("x, normal(x y -> y", {}, (8, 8), SpecError, "the parenthesis of normal is not closed"),
    ("x, normal(x r), r y -> y", {"r": "4096"}, (8192, 8), SizeError, "too large for a matrix"),
]  # fmt: skip


@pytest.mark.parametrize("einsum, sizes, widths, kind, message", MISTAKES)
def test_a_constant_that_cannot_be_says_why(
    einsum: str, sizes: dict[str, str], widths: tuple[int, int], kind: type[SpecError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Spec("wrong", einsum=einsum, sizes=sizes).bind(*widths)  # type: ignore[arg-type]


def test_a_constant_does_not_hold_the_expert_axis() -> None:
    with pytest.raises(SizeError, match="the same for all experts"):
        Spec("wrong", einsum="x, normal(x e), e y -> y", sizes={"e": "4"},
             gate={"axis": "e", "experts_active": "1"}).bind(8, 8)  # type: ignore[arg-type]  # fmt: skip


# -- padding


@pytest.mark.parametrize(
    "name, widths", [("dyad_it", (1021, 1021)), ("monarch", (50, 70)), ("btt_moe", (50, 34)), ("blast", (17, 5))]
)
def test_padded_layers_are_the_larger_one_cut(name: str, widths: tuple[int, int]) -> None:
    made = layer(name, widths, pad=True)
    structure: Structure = made.structure
    assert (made.in_features, made.out_features) == widths == structure.widths
    assert structure.in_features >= widths[0] and structure.out_features >= widths[1]
    x = torch.randn(6, widths[0], dtype=torch.float64)
    wide = torch.nn.functional.pad(x, (0, structure.in_features - widths[0]))
    larger = structures.get(name).bind(structure.in_features, structure.out_features,
                                       **{k: v for k, v in structure.options if k != "pad"})  # fmt: skip
    operands = list(made.operands)
    if structure.gate is not None:
        operands[-1] = torch.nn.functional.pad(operands[-1], (0, structure.in_features - widths[0]))
    wanted = reference.apply(larger, wide, operands)[:, : widths[1]] + made.bias
    torch.testing.assert_close(made(x), wanted)
    torch.testing.assert_close(reference.apply(structure, x, made.operands, made.bias), wanted)
    assert made(x).is_contiguous() and "pad=True" in repr(made)
    if structure.gate is None:
        assert made.to_dense().shape == widths[::-1]
        torch.testing.assert_close(x @ made.to_dense().t() + made.bias, wanted)
    assert structure.params == larger.params + (len(operands[-1]) * 0 if structure.gate is None else
           structure.gate.experts * (widths[0] - structure.in_features))  # fmt: skip
    assert structure.dense_params == widths[0] * widths[1]


def test_what_is_refused_names_padding_as_a_way_out_and_what_fits_stays() -> None:
    with pytest.raises(SizeError, match="pad=True runs it as 768 -> 50260"):
        structures.get("monarch").bind(768, 50257)
    fits = structures.get("monarch").bind(768, 768, pad=True)
    assert fits.widths == (fits.in_features, fits.out_features) == (768, 768)
    with pytest.raises(SpecError, match="pad is True or False, found 'yes'"):
        structures.get("monarch").bind(768, 768, pad="yes")


@pytest.mark.parametrize("cores, named", [(5, True), (65, False)])
def test_padded_widths_are_named_for_entries_that_are_bound_in_no_time(cores: int, named: bool) -> None:
    sizes = {"i": "n", "o": "n", "r": "1"}
    options = {"n": (4, *[1] * (cores - 1))}
    einsum = "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])"
    with pytest.raises(SizeError) as error:
        Spec("many", einsum=einsum, sizes=sizes, options=options).bind(3, 3)  # type: ignore[arg-type]
    assert ("pad=True runs it as 4 -> 4" in str(error.value)) == named


@pytest.mark.parametrize("first, last", [(1, 70), (768, 832), (4095, 4400), (2**24 - 100, 2**24), (17, 17)])
def test_the_widths_with_most_divisors_are_found_by_counting_them(first: int, last: int) -> None:
    assert padding._divisor_counts(first, last).tolist() == [len(divisors(n)) for n in range(first, last + 1)]


def _every(name: str, ins: Iterable[int], outs: Iterable[int]) -> dict[tuple[int, int], int]:
    """What a token's steps cost at each pair of widths that fit."""
    found = {}
    for pair in itertools.product(ins, outs):
        try:
            bound = structures.get(name).bind(*pair, pad=False)
        except SizeError:
            continue
        found[pair] = sum(bound.active(step.axes) for step in bound.steps)
    return found


@pytest.mark.parametrize("name", structures.names())
def test_what_pairs_of_widths_cost_is_counted_without_binding_them(name: str) -> None:
    rng = np.random.default_rng(len(name))
    ins, outs = (sorted({16, 64, *rng.integers(1, 130, 8).tolist()}) for _ in range(2))
    every = _every(name, ins, outs)
    wanted = [[every.get((i, o), math.inf) for o in outs] for i in ins]
    entry = structures.get(name)
    counted = least_flops(entry, {}, ins, outs)
    if "hadamard" in {factor.constant for chain in entry.chains for link in chain for factor in link.factors}:
        np.testing.assert_array_equal(np.isfinite(counted), np.isfinite(wanted))
        assert (counted <= wanted).all()  # a bound: what such a constant costs is left out
    else:
        np.testing.assert_array_equal(counted, wanted)


def test_an_entry_that_fits_nowhere_is_counted_nowhere() -> None:
    """Previously failed: an error of numpy where every width of a side, and then every one of the other, is refused."""
    both = {"a": "in_features / 1000003", "b": "out_features / 1000003", "c": "in_features"}
    entry = Spec("nowhere", einsum="(a x), a b x, c x -> (b c)", sizes=both)  # type: ignore[arg-type]
    assert not np.isfinite(least_flops(entry, {}, range(5, 9), range(3, 5))).any()
    with pytest.raises(SizeError, match="is not a whole number"):
        entry.bind(5, 5, pad=True)


@pytest.mark.parametrize("widths", [(13, 29), (61, 22)])
@pytest.mark.parametrize("name", ["dyad_it", "monarch", "kronecker", "butterfly", "kaleidoscope", "btt_moe", "blast"])
def test_padding_takes_the_cheapest_of_all_widths_above(
    name: str, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding, "LEAST", 9)
    every = _every(name, *(range(w, w + 10) for w in widths))
    best = min(every, key=lambda pair: (every[pair], sum(pair), pair))
    found = padding.padded(structures.get(name), {}, widths, lambda i, o: structures.get(name).bind(i, o))
    assert (found.in_features, found.out_features) == best


def test_padding_of_a_hadamard_matrix_takes_the_next_power_of_two() -> None:
    assert rotated(pad=True).bind(768, 768).in_features == 1024
    assert structures.get("dyad_it").bind(61, 61, pad=True).in_features == 64


def test_of_too_many_pairs_those_with_most_divisors_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "MAX_PAIRS", 100)
    ins, outs = padding._ranges((97, 101))
    assert len(ins) * len(outs) <= 100
    assert ins[0] == 97 and outs[0] == 101 and {120} <= {*ins} & {*outs}


def test_a_gather_that_never_fits_is_given_up() -> None:
    entry = Spec("never", einsum="(b i), u i o -> (u o)", sizes={"b": "4", "u": "4"}, index={"b": "u + 4"})  # type: ignore[arg-type]
    with pytest.raises(SizeError, match="outside 0 to 3"):
        entry.bind(8, 8, pad=True)


def test_projection_fills_with_zeros_and_reports_the_part_that_is_used() -> None:
    weight = torch.randn(22, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = structures.project(weight, "block_diagonal", pad=True, n_blocks=4)
    error = float((weight - made.to_dense().detach()).norm() / weight.norm())
    assert abs(made.projection.weight_error - error) < 1e-12
    inputs = torch.randn(100, 33, dtype=torch.float64)
    with_inputs = structures.project(weight, "low_rank", pad=True, rank=3, inputs=inputs)
    found = (weight - with_inputs.to_dense().detach()) @ inputs.t()
    assert abs(with_inputs.projection.output_error - float(found.norm() / (weight @ inputs.t()).norm())) < 1e-10


def test_fit_options_pads() -> None:
    options = structures.fit_options("dyad_it", 768, 50257, params=0.25, pad=True)
    assert options == {"n_blocks": 8, "pad": True}
    bound = structures.get("dyad_it").bind(768, 50257, **options)
    assert abs(bound.params / bound.dense_params - 0.25) < 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("block_dense", {"rank": 0}, "every term is dropped"),
        ("btt_moe", {"experts_active": 9}, "has 8 experts"),
        ("low_rank_moe", {"experts_active": 0}, "experts_active"),
    ],
)
def test_no_widths_are_tried_for_options_that_fit_none(
    name: str, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previously failed: 53,421 and 520 pairs of widths were bound, which took 6 s for each such value."""
    tried, bind = [], binding._build
    monkeypatch.setattr(binding, "_build", lambda *given: (tried.append(given), bind(*given))[1])
    with pytest.raises(SizeError, match=message):
        binding.build(structures.get(name), 768, 50257, {**options, "pad": True})
    assert len(tried) == 1  # for its error
