"""Fresh factors: what each entry's source draws, in numbers, and the other starts."""

from __future__ import annotations

import math

import pytest
import torch

import structures
from structures import initial
from structures.spec import Spec, SpecError

UNIFORM, NORMAL = "uniform", "normal"
NAMES = structures.names()

# What the source's own code draws at rectangular widths: (entry, widths, options, (kind, bound or standard deviation)
# of each factor, bound of the bias), worked out by hand from that code's shapes, never from this project's steps.
PAPER = [
    ("dense", (512, 768), {}, [(UNIFORM, 512**-0.5)], 512**-0.5),
    # a dense draw within 1 / sqrt(512), of which one row of four blocks is kept, times 2
    ("block_diagonal", (512, 768), {"n_blocks": 4}, [(UNIFORM, 2 * 512**-0.5)], 768**-0.5),
    ("low_rank", (512, 768), {"rank": 64}, [(UNIFORM, 512**-0.5), (UNIFORM, 1 / 8)], 512**-0.5),
    ("dyad_it", (512, 768), {"n_blocks": 8}, [(UNIFORM, 512**-0.5)] * 2, 512**-0.5),
    ("dyad_ot", (512, 768), {"n_blocks": 8}, [(UNIFORM, 512**-0.5)] * 2, 512**-0.5),
    ("dyad_dt", (768, 512), {"n_blocks": 8}, [(UNIFORM, 768**-0.5)] * 2, 768**-0.5),
    # blocks (128, 128) then (192, 128); blocks (128, 192) then (128, 128)
    ("monarch", (512, 768), {"n_blocks": 4}, [(UNIFORM, 128**-0.5)] * 2, 768**-0.5),
    ("monarch", (768, 512), {"n_blocks": 4}, [(UNIFORM, 192**-0.5), (UNIFORM, 128**-0.5)], 512**-0.5),
    # sqrt(sqrt(5 / 512) / 8**2), and of four cores sqrt(sqrt(5 / 512) / 6**3): an exponent of 1/2 for every number
    ("tensor_train", (512, 768), {"cores": 3, "rank": 8}, [(NORMAL, 0.03929493)] * 3, 512**-0.5),
    ("tensor_train", (512, 768), {"cores": 4, "rank": 6}, [(NORMAL, 0.02138952)] * 4, 512**-0.5),
    ("tensor_train", (768, 512), {"cores": 2, "rank": 8}, [(NORMAL, math.sqrt(math.sqrt(5 / 768) / 8))] * 2, 768**-0.5),
    ("butterfly", (256, 512), {}, [(NORMAL, 2**-0.5)] * 8, 256**-0.5),
    # 3 of 16 blocks a row: 1 / sqrt(96); the low rank 1 / sqrt(512), 1 / sqrt(32); the mean halves both terms
    (
        "pixelfly",
        (512, 768),
        {"n_blocks": 16, "n_strides": 2, "rank": 32},
        [(UNIFORM, 96**-0.5 / 2), (UNIFORM, 1024**-0.5), (UNIFORM, 1 / 8)],
        768**-0.5,
    ),
    ("kronecker_sparse", (512, 768), {"a": 4, "d": 2}, [(UNIFORM, 1 / 8)], 512**-0.5),
    # 4 blocks of 128 x 128 side by side, then 4 of 192 x 128 interleaved
    ("kronecker_sparse_chain", (512, 768), {}, [(UNIFORM, 128**-0.5)] * 2, 512**-0.5),
    # alpha 4, beta 8, gamma 16, delta 32, eps 1, phi 3, rho 1: (alpha, delta phi rho), then (beta gamma rho, eps)
    (
        "einsum",
        (512, 96),
        {"theta": [2 / 9, 3 / 9, 4 / 9, 0.76, 0.0, 0.24, 0.0]},
        [(NORMAL, 1 / 2), (NORMAL, 128**-0.5 * 128**-0.5)],
        0,
    ),
    # 24 x 32 and 48 x 64: (24, 48 * 2), then (32 * 2, 64)
    ("btt", (768, 3072), {"rank": 2}, [(NORMAL, 24**-0.5), (NORMAL, 1 / 8)], 0),
    # (48, 24 * 2), then (64 * 2, 32)
    ("btt", (3072, 768), {"rank": 2}, [(NORMAL, 48**-0.5), (NORMAL, 128**-0.5 / 2)], 0),
    ("block_dense", (512, 768), {"n_blocks": 4, "rank": 64}, [(NORMAL, 128**-0.5), (NORMAL, 1 / 8)], 0),
    ("btt_moe", (768, 3072), {}, [(NORMAL, 24**-0.5), (NORMAL, 32**-0.5)], 0),
    ("low_rank_moe", (512, 768), {"rank": 64}, [(NORMAL, 512**-0.5), (NORMAL, 1 / 8)], 0),
    ("dense_moe", (768, 512), {}, [(NORMAL, 768**-0.5 * math.sqrt(512 / 768))], 0),
]
WITHOUT = sorted(set(NAMES) - {row[0] for row in PAPER})


@pytest.mark.parametrize(("name", "shape", "options", "draws", "bias"), PAPER)
def test_the_papers_init_draws_the_numbers_of_its_source(name, shape, options, draws, bias):
    torch.manual_seed(0)
    made = structures.StructuredLinear(name, *shape, init="paper", **options)
    assert len(made.factors) == len(draws)
    for factor, (kind, scale) in zip(made.factors, draws, strict=True):
        values = factor.detach()
        std = scale / math.sqrt(3) if kind == UNIFORM else scale
        # of n normal numbers it is off by std / sqrt(2 n), of uniform ones by less: five of that
        assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.numel()))
        assert (values.abs().max() <= scale * (1 + 1e-6)) == (kind == UNIFORM)
    found = made.bias.detach()
    assert found.abs().max() <= bias * (1 + 1e-6)
    assert found.std() == pytest.approx(bias / math.sqrt(3), rel=5 / math.sqrt(2 * len(found)))


@pytest.mark.parametrize("name", WITHOUT)
def test_an_entry_whose_source_draws_nothing_says_so(name):
    assert not structures.get(name).init
    with pytest.raises(ValueError, match=f"{name}: the entry gives no initialisation of its own; use 'linear' or"):
        structures.StructuredLinear(name, 96, 144, init="paper")


def test_the_papers_einsum_is_drawn_in_the_order_that_its_source_applies():
    made = structures.get("einsum").bind(512, 96, theta=next(row for row in PAPER if row[0] == "einsum")[2]["theta"])
    assert [step.factor for step in made.steps] == [1, 0], "a width at which the cheapest order is the other one"
    assert initial.draws(made, "spectral") != initial.draws(made, "paper")


def test_the_mean_of_two_terms_is_a_third_in_output():
    torch.manual_seed(0)
    made = structures.StructuredLinear("pixelfly", 512, 768, init="paper", bias=False, rank=32)
    with torch.no_grad():
        found = made(torch.randn(256, 512)).std()
    assert found == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_start_gives_nothing_and_the_next_step_reaches_every_term(name):
    torch.manual_seed(0)
    made = structures.StructuredLinear(name, 96, 144, init="zero")
    x = torch.randn(5, 96)
    y = made(x)
    assert not y.any()
    (y - 1).square().sum().backward()
    last = {term.factors[-1] for term in made.structure.terms}
    for number, factor in enumerate(made.factors):
        assert bool(factor.any()) == (number not in last)
        assert bool(factor.grad.any()) == (number in last)


def test_a_term_without_factors_comes_on_top_of_the_variance_of_linear():
    torch.manual_seed(0)
    spec = Spec("residual", ["x -> x", "x, x r, r y -> y"], sizes={"r": 128})
    found = []
    for _ in range(8):
        made = structures.StructuredLinear(spec, 512, 512, bias=False)
        with torch.no_grad():
            found.append(made(torch.randn(64, 512)).square().mean())
    assert sum(found) / len(found) == pytest.approx(1 + 1 / 3, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_entry_without_factors_has_the_dense_form_of_the_layers_dtype(dtype):
    made = structures.StructuredLinear(Spec("same", "x -> x"), 6, 6, dtype=dtype)
    x = torch.randn(3, 6, dtype=dtype)
    assert made.to_dense().dtype == dtype
    assert torch.equal(x @ made.to_dense().T + made.bias, made(x))


def test_an_entry_without_any_parameter_has_the_dense_form_of_the_dtype_it_was_made_in():
    made = structures.StructuredLinear(Spec("same", "x -> x"), 6, 6, bias=False, dtype=torch.float64)
    assert made.to_dense().dtype == torch.float64
    assert made.float().to_dense().dtype == torch.float32 and made.to(torch.bfloat16).to_dense().dtype == torch.bfloat16


INIT_ERRORS = [
    ({"std": 1}, "init has one of 'uniform'"),
    ({"uniform": "1", "spectral": "1"}, "init has one of 'uniform'"),
    ({"bias": "0"}, "init has one of 'uniform'"),
    ({"uniform": "1", "bias": "fan_in ** -0.5"}, "unknown name 'fan_in'"),
    ({"spectral": "term"}, "unknown name 'term' in 'term'; did you mean 'terms'?"),
    ({"normal": "factors"}, "'factors' is the factor's own in an init, and an option or axis too"),
]


@pytest.mark.parametrize(("init", "words"), INIT_ERRORS)
def test_a_wrong_rule_is_refused_when_the_entry_is_read(init, words):
    with pytest.raises(SpecError) as caught:
        Spec("low", "x, x r, r y -> y", sizes={"r": "factors"}, options={"factors": 4}, init=init)
    assert words in str(caught.value)


def test_the_split_of_the_authors_is_an_option_of_btt():
    shape = structures.get("btt").bind(768, 3072)
    authors = structures.get("btt").bind(768, 3072, in_blocks=48, out_blocks=32)
    assert (shape.params, authors.params) == (135_168, 172_032)
    assert [authors.size[a] for a in "gafe"] == [48, 16, 32, 96]
    assert (structures.get("btt").bind(768, 768).params, authors.rank) == (43_008, 768)
    assert structures.get("btt").bind(768, 768, in_blocks=48, out_blocks=16).params == 49_152


SQUARE, WIDE, TALL = (64, 64), (96, 144), (144, 96)
# Where an entry with its default options can be the identity. Elsewhere its rank, or that of its blocks, is too small,
# or the ones on the diagonal of a rectangle leave its blocks.
AT = {
    "dense dense_moe dyad_dt": {SQUARE, WIDE, TALL},
    "monarch": {SQUARE, WIDE},
    "butterfly": {SQUARE, TALL},
    "block_diagonal dyad_it dyad_ot kronecker tensor_train pixelfly kronecker_sparse einsum blast": {SQUARE},
    "low_rank low_rank_moe block_dense btt btt_moe": set(),
}
CAN = {name: shapes for names, shapes in AT.items() for name in names.split()}


def identity(name, shape, **options):
    made = structures.StructuredLinear(name, *shape, init="identity", **options)
    gate = made.structure.gate
    return made, made.to_dense(torch.full((gate.experts,), 1 / gate.experts) if gate else None)


@pytest.mark.parametrize("shape", [SQUARE, WIDE, TALL], ids=str)
@pytest.mark.parametrize("name", sorted(CAN))
def test_an_identity_start_is_the_identity_or_refused(name, shape):
    torch.manual_seed(0)
    if shape not in CAN[name]:
        with pytest.raises(ValueError, match=f"{name}: no factors of zeros and ones make the identity of {shape[0]}"):
            identity(name, shape)
        return
    made, dense = identity(name, shape)
    assert torch.equal(dense, torch.eye(shape[1], shape[0])) and not made.bias.any()
    x = torch.randn(3, shape[0])
    assert torch.allclose(made(x), x @ dense.T, atol=1e-6)
    (made(x) - 1).square().sum().backward()
    for term in made.structure.terms:  # a term that is zero now has a step to take
        assert any(made.factors[f].grad.any() for f in term.factors)


def test_an_identity_start_uses_the_rank_that_it_needs():
    assert torch.equal(identity("low_rank", (24, 16), rank=16)[1], torch.eye(16, 24))
    assert torch.equal(identity("btt", (16, 16), rank=4)[1], torch.eye(16))
    with pytest.raises(ValueError, match="no factors of zeros and ones"):
        identity("low_rank", (24, 16), rank=15)


def test_a_term_without_factors_is_the_identity_by_itself():
    spec = Spec("residual", ["x -> x", "x, x r, r y -> y"], sizes={"r": 4})
    made, dense = identity(spec, (8, 8))
    assert torch.equal(dense, torch.eye(8)) and made.factor_0.any() and not made.factor_1.any()
