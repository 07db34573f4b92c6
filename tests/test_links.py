"""Chains of links (`;`): what they mean, what they refuse, and that every part of the package takes them."""

import itertools
import math

import numpy as np
import pytest
import torch

import structures
from structures import backends, reference
from structures.algebra import rank
from structures.backends import stages
from structures.spec import SizeError, Spec, SpecError
from structures.structure import Structure

# what their authors' code runs, and a term of one einsum cannot say
MONARCHS = [(15, 15, 3), (44, 22, 2), (100, 60, 10), (384, 384, 12), (384, 384, 16), (768, 768, 32), (96, 192, 4)]
CHAIN = "(k p), k p q -> (k q); (r l), l r s -> (s l)"
GATED = "(k p), k p q -> (k q); (r l), e l r m, e l m s -> (s l)"


def spec(einsum: str, sizes: dict[str, str], **more: object) -> Spec:
    return Spec("chain", einsum=einsum, sizes=sizes, **more)  # type: ignore[arg-type]


def gated(**gate: str) -> Structure:
    sizes = {"k": "3", "l": "4", "q": "8", "e": "4", "m": "2"}
    return spec(GATED, sizes, gate={"axis": "e", "experts_active": "2"} | gate).bind(12, 20)


@pytest.mark.parametrize("wide, narrow, blocks", MONARCHS)
def test_a_chain_whose_views_cut_each_other_runs_on_every_backend(wide: int, narrow: int, blocks: int) -> None:
    layer = structures.StructuredLinear("monarch", wide, narrow, n_blocks=blocks, dtype=torch.float64)
    x = torch.randn(5, wide, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = reference.apply(layer.structure, x, layer.factors, layer.bias)
    gradients = torch.autograd.grad(wanted.square().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(x @ layer.to_dense().t() + layer.bias, wanted)
    for name in ("einsum", "bmm", "planned"):
        layer.backend = name
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]), gradients)
        count = backends.get(name).executed_flops(layer.structure, 5)
        assert count == 5 * layer.structure.flops() or name == "planned"
    assert layer.structure.flops() == 2 * layer.structure.params


@pytest.mark.parametrize("wide, narrow, blocks", MONARCHS[:4])
def test_two_links_of_one_factor_are_projected_exactly(wide: int, narrow: int, blocks: int) -> None:
    weight = torch.randn(narrow, wide, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = structures.project(weight, "monarch", n_blocks=blocks)
    assert made.projection.optimal
    again = structures.project(made.to_dense().detach(), "monarch", n_blocks=blocks)
    assert again.projection.weight_error < 1e-12
    # an optimum: no direction of the factors lowers the error, and none of a few starts by descent ends below
    found = (weight - made.to_dense()).square().sum()
    gradients = torch.autograd.grad(found, list(made.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-9 * float(weight.square().sum())


def test_a_longer_chain_of_sparse_factors_is_near_to_what_it_made_and_never_climbs() -> None:
    einsum = "(a p), a p q -> (a q); (r b), b r s -> (s b); (c u), c u v -> (c v)"
    sizes = {"a": "4", "q": "9", "b": "6", "s": "5", "c": "3"}
    structure = spec(einsum, sizes).bind(20, 30)
    factors = [
        torch.randn(s, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for s in structure.factor_shapes
    ]
    weight = reference.to_dense(structure, factors)
    made = structures.project(weight, structure, limit=10)
    other = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert made.projection.weight_error < structures.project(other, structure, limit=10).projection.weight_error / 2
    history = made.projection.history
    assert all(after <= before for before, after in itertools.pairwise(history))


def test_inputs_count_in_a_projection_of_a_chain() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(22, 44, dtype=torch.float64, generator=generator)
    inputs = torch.randn(300, 44, dtype=torch.float64, generator=generator) * torch.logspace(
        -2, 1, 44, dtype=torch.float64
    )
    with_inputs = structures.project(weight, "monarch", n_blocks=2, inputs=inputs, limit=10).projection
    plain = structures.project(weight, "monarch", n_blocks=2, held_out=inputs).projection
    assert with_inputs.output_error < plain.output_error


def test_a_sum_of_a_chain_and_other_terms_is_projected() -> None:
    entry = spec(CHAIN, {"k": "2", "l": "3", "q": "9"})
    both = Spec("both", einsum=(*entry.einsum, "x, x z, z y -> y"), sizes=(*entry.sizes, ("z", "2")))
    weight = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = structures.project(weight, entry).projection.weight_error
    assert structures.project(weight, both).projection.weight_error < alone


@pytest.mark.parametrize("backend", ["all_experts", "grouped"])
def test_experts_stand_in_any_link(backend: str) -> None:
    structure = gated()
    layer = structures.StructuredLinear(
        structures.spec.spec_of(structure), 12, 20, dtype=torch.float64, backend=backend
    )
    with torch.no_grad():
        layer.router.normal_(generator=torch.Generator().manual_seed(3))
    x = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    wanted = reference.apply(structure, x, layer.operands, layer.bias)
    torch.testing.assert_close(layer(x), wanted)
    first = torch.einsum("tkp,kpq->tkq", x.reshape(9, 3, 4), layer.factor_0).reshape(9, 6, 4)
    weights = reference.gates(structure, x, layer.router)
    by_hand = torch.einsum("trl,elrm,elms,te->tsl", first, layer.factor_1, layer.factor_2, weights).reshape(9, 20)
    torch.testing.assert_close(wanted, by_hand + layer.bias)
    count = backends.get(backend).executed_flops(structure, 9)
    assert count >= structure.flops(9) or backend == "grouped"
    made = structures.project(by_hand.new_ones(20, 12), structures.spec.spec_of(structure))
    assert made.projection.sum_error is not None


def test_the_output_has_the_variance_of_a_dense_layer_over_a_whole_chain() -> None:
    torch.manual_seed(0)
    layer = structures.StructuredLinear("monarch", 384, 768, n_blocks=12, bias=False)
    assert 0.9 < float(layer(torch.randn(2000, 384)).detach().std()) * math.sqrt(3) < 1.1


@pytest.mark.parametrize("wide, narrow, blocks", MONARCHS[:4])
def test_the_rank_of_a_chain_is_that_of_its_matrix(wide: int, narrow: int, blocks: int) -> None:
    structure = structures.get("monarch").bind(wide, narrow, n_blocks=blocks)
    rng = np.random.default_rng(0)
    dense = rank.dense(structure, [rng.standard_normal(s) for s in structure.factor_shapes])
    assert structure.rank == np.linalg.matrix_rank(dense)
    assert ((dense != 0) == rank.support(structure)).all()


MISTAKES = [
    ("x, x y -> y; z, z w", {}, (8, 8), SpecError, "a link has one '->', found 0"),
    ("x, x y -> y; -> w", {}, (8, 8), SpecError, "an operand is empty"),
    ("x, x y -> y; z, z w -> w", {}, (8, 8), SpecError, "the width between two links is found from neither side"),
    ("(a b), a b y -> y; (c d), c d w -> w", {"a": "2", "y": "6", "c": "2", "d": "2"}, (8, 8), SizeError,
     r"the view \(c d\) holds 2 x 2 = 4, but the width between links 0 and 1=6"),
    ("x, x y -> y; (c d), c d w -> w", {"y": "6", "c": "4"}, (8, 8), SizeError,
     "axis c=4 does not divide the width between links 0 and 1=6; nearest sizes that do: 3, 6"),
    ("x, x y -> y; z, y w -> w", {"y": "6"}, (8, 8), SpecError, "axis 'z' stands in one operand alone"),
]  # fmt: skip


@pytest.mark.parametrize("einsum, sizes, widths, kind, message", MISTAKES)
def test_a_chain_that_cannot_be_says_why(
    einsum: str, sizes: dict[str, str], widths: tuple[int, int], kind: type[SpecError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        spec(einsum, sizes).bind(*widths)


def test_a_width_between_links_may_be_found_through_another() -> None:
    structure = spec("x, x y -> y; z, z w -> w; (c d), c d o -> o", {"w": "10", "y": "6", "c": "5"}).bind(8, 4)
    assert structure.factor_shapes == ((8, 6), (6, 10), (5, 2, 4))


def test_links_with_a_list_a_gather_and_a_permutation_mean_what_they_say() -> None:
    whole = spec("(i[:]), i[t] o[t] -> (o[:]); (a b) -> (b a); (u v), w v y -> (w y)",
                 {"i": "split(in_features, 2)", "o": "split(24, 2)", "a": "4", "u": "6", "w": "2"},
                 index={"u": "w * 3 + 1"}).bind(12, 10)  # fmt: skip
    rng = np.random.default_rng(0)
    first, second, third = factors = [rng.standard_normal(s) for s in whole.factor_shapes]
    x = rng.standard_normal(12)
    z = np.kron(first.T, second.T) @ x
    z = z.reshape(4, 6).T.reshape(6, 4)[[1, 4]]  # read at u = 1 and 4
    wanted = np.concatenate([z[w] @ third[w] for w in range(2)])
    np.testing.assert_allclose(rank.dense(whole, factors) @ x, wanted)
    tensors = [torch.from_numpy(f) for f in factors]
    for name in ("einsum", "bmm", "planned"):
        y = backends.apply(name, whole, torch.from_numpy(x)[None], tensors, None)
        np.testing.assert_allclose(y[0].numpy(), wanted)


def test_factors_saved_under_another_definition_say_so() -> None:
    layer = structures.StructuredLinear("monarch", 64, 64, n_blocks=4)
    state = layer.state_dict()
    state["factor_0"] = state["factor_0"].reshape(4, 16, 4, 4)  # as the entry had it before
    with pytest.raises(RuntimeError, match=r"factor_0 has shape \(4, 16, 4, 4\), the entry monarch has \(4, 16, 16\)"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("backend", ["auto", "planned"])
def test_a_plan_shows_every_program_that_runs_the_chain(backend: str) -> None:
    one = structures.StructuredLinear("monarch", 64, 64, n_blocks=4, backend=backend).plan(64)
    assert "programs" not in str(one)
    several = structures.StructuredLinear("monarch", 15, 15, n_blocks=3, backend=backend).plan(64, grad=True)
    assert isinstance(several, stages.StagePlans) and len(several.plans) == 2
    assert str(several).startswith("monarch, 2 programs\nprogram 1: 15 -> 15")
    # the bias is added by the last alone
    assert ["bias" in str(plan) or backend == "auto" for plan in several.plans] == [backend == "auto", True]


def test_a_chain_that_is_one_program_takes_the_short_way_of_calls_without_gradients() -> None:
    made, several = (
        structures.StructuredLinear("monarch", n, n, n_blocks=b, bias=False, backend="native")
        for n, b in ((64, 4), (15, 3))
    )
    x = torch.randn(3, 64)
    wanted = made(x)  # with gradients: the long way, which opens the kernel
    with torch.no_grad():
        found = backends.plain("native", made.structure, x, made.factors, made.bias)
        assert found is not None and torch.equal(found, wanted)
        made.factor_0.mul_(2)
        assert torch.equal(made(x), 2 * wanted)  # nothing of the former numbers is kept
        assert backends.plain("native", several.structure, x[:, :15], several.factors, several.bias) is None
    assert backends.plain("native", made.structure, x, made.factors, made.bias) is None
