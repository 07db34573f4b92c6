"""Every entry of the registry against its paper's own matrix (dense_forms.py), and equalities between structures."""

import ast
import inspect
from dataclasses import replace

import dense_forms
import numpy as np
import pytest
from contract import ROUNDING
from dense_forms import DENSE_FORMS, WITHOUT, Matrix

import structures
from structures.algebra.rank import dense, support
from structures.spec import SizeError
from structures.structure import Structure

WIDTHS = [(24, 24), (32, 48), (48, 32), (60, 36), (36, 60), (64, 64), (96, 96), (72, 180), (1, 1), (7, 5)]
# options beside the defaults; a pair of widths they do not divide is left out, but each line fits some
OPTIONS: dict[str, list[dict[str, object]]] = {
    "dense": [{}],
    "block_diagonal": [{}, {"n_blocks": 1}, {"n_blocks": 3}, {"n_blocks": 12}],
    "low_rank": [{}, {"rank": 1}, {"rank": 5}],
    "dyad_it": [{}, {"n_blocks": 1}, {"n_blocks": 3}, {"n_blocks": 12}],
    "dyad_ot": [{}, {"n_blocks": 1}, {"n_blocks": 3}, {"n_blocks": 12}],
    "dyad_dt": [{}, {"n_blocks": 1}, {"n_blocks": 3}, {"n_blocks": 12}],
    "monarch": [{}, {"n_blocks": 1}, {"n_blocks": 2}, {"n_blocks": 6}, {"n_blocks": 8}],
    "kronecker": [{}],
    "tensor_train": [{}, {"cores": 1}, {"cores": 2, "rank": 1}, {"cores": 3, "rank": 3}, {"cores": 4, "rank": 2}],
    "btt": [{}, {"rank": 2}, {"rank": 5}],
    "butterfly": [{}, {"radix": 3}, {"radix": 4}, {"block_size": 2}, {"radix": 3, "block_size": 4}, {"block_size": 12}],
    "pixelfly": [
        {},
        {"n_blocks": 8, "n_strides": 3, "rank": 2},
        {"n_blocks": 4, "n_strides": 1, "rank": 0},
        {"n_blocks": 4, "n_strides": 0, "rank": 1},
        {"n_blocks": 1, "n_strides": 0, "rank": 0},
    ],
    "kronecker_sparse": [
        {},
        {"a": 1, "d": 1},
        {"a": 3, "d": 4},
        {"a": 4, "d": 3},
        {"a": 12, "d": 1},
        {"a": 1, "d": 12},
    ],
    "einsum": [
        {},
        {"theta": [0.33, 0.33, 0.34, 0.5, 0.2, 0.3, 0.25]},
        {"theta": [0.5, 0.0, 0.5, 0.0, 0.5, 0.5, 0.5]},
        {"theta": [1.0, 0, 0, 0, 1.0, 0, 0.5]},
        {"theta": [0, 1.0, 0, 0, 0, 1.0, 0.1]},
    ],
    "blast": [
        {},
        {"n_blocks": 1, "rank": 3},
        {"n_blocks": 3, "rank": 2},
        {"n_blocks": 12},
        {"row_blocks": 4, "column_blocks": 3, "rank": 5},
    ],
    "block_dense": [{}, {"n_blocks": 1, "rank": 3}, {"n_blocks": 3, "rank": 6}, {"n_blocks": 12, "rank": 12}],
    "kaleidoscope": [{}, {"radix": 3}, {"radix": 4}],
    "deformable_butterfly": [
        {},
        {"rows": [2, 3, 4], "columns": [3, 4, 2], "stride_0": 4, "stride_1": 2, "stride_2": 1},  # 24, 16, 12, 24 wide
        {"rows": [3, 2, 4], "columns": [2, 4, 2], "stride_0": 4, "stride_1": 3, "stride_2": 1},  # 32, 48, 24, 48 wide
    ],
    "kronecker_sparse_chain": [
        {},
        {"outer": [1, 1], "inner": [1, 1], "width": 7},
        {"outer": [3, 2], "inner": [2, 3], "width": 36},
        {"outer": [2, 1], "inner": [1, 6], "width": 30},
    ],
    "tucker": [{}, {"rank": 1}, {"rank": 3}],
    "cp": [{}, {"rank": 1}, {"rank": 5}],
    "lokr": [{}, {"rank": 1}, {"rank": 3}],
    "loha": [{}, {"rank": 1}, {"rank": 6}],
    "group_and_shuffle": [{}, {"n_blocks": 1}, {"n_blocks": 2}, {"n_blocks": 6}, {"n_blocks": 8}],
    "boft": [
        {},
        {"n_blocks": 2},
        {"n_blocks": 6},
        {"factors": 1, "n_blocks": 3},
        {"factors": 3},
        {"factors": 4, "n_blocks": 8},
    ],
    "fastfood": [{}],
}


def factors_of(structure: Structure, seed: int = 0) -> list[Matrix]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in structure.factor_shapes]


def close(a: Matrix, b: Matrix) -> bool:
    """Equal up to rounding."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= ROUNDING * max(1.0, float(np.abs(b).max())))


def bindings(name: str) -> list[Structure]:
    """The structure at all widths and options that suit each other."""
    found = []
    for options in OPTIONS.get(name, [{}]):
        before = len(found)
        for widths in WIDTHS:
            try:
                found.append(structures.get(name).bind(*widths, **options))
            except SizeError:
                continue
        assert len(found) > before, f"{name} {options} suits none of the widths"
    return found


# -- each entry against its paper


def test_every_dense_form_is_of_a_registry_name_and_has_options_to_try() -> None:
    assert sorted(DENSE_FORMS) == sorted(OPTIONS)
    assert {*DENSE_FORMS, *WITHOUT} == set(structures.names())  # every entry has one, or a reason why not
    assert not set(DENSE_FORMS) & set(WITHOUT)
    assert all(structures.get(name).gate for name in WITHOUT)


def test_dense_forms_use_no_einsum_and_nothing_of_structures() -> None:
    tree = ast.parse(inspect.getsource(dense_forms))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not {m for m in imported if m.split(".")[0] in ("structures", "einops", "opt_einsum", "torch")}
    assert not attributes & {"einsum", "tensordot", "contract"}


@pytest.mark.parametrize("name", sorted(DENSE_FORMS))
def test_the_einsum_gives_the_matrix_of_the_paper(name: str) -> None:
    for structure in bindings(name):
        factors = factors_of(structure)
        expected = DENSE_FORMS[name](structure.size, factors)
        assert expected.shape == (structure.out_features, structure.in_features)
        assert close(dense(structure, factors), expected), structure.options


@pytest.mark.parametrize("name", sorted(DENSE_FORMS))
def test_factors_in_another_arrangement_do_not_give_that_matrix(name: str) -> None:
    structure = structures.get(name).bind(96, 96, **({"rank": 3} if name == "btt" else {}))
    factors = factors_of(structure)
    expected = DENSE_FORMS[name](structure.size, factors)
    for position in range(len(factors)):
        reversed_one = [f[::-1] if i == position else f for i, f in enumerate(factors)]
        axis = next(i for i, size in enumerate(factors[position].shape) if size > 1)
        rolled = [np.roll(f, 1, axis=axis) if i == position else f for i, f in enumerate(factors)]
        assert not close(dense(structure, rolled), expected)
        assert factors[position].shape[0] == 1 or not close(dense(structure, reversed_one), expected)


# -- the same matrix, written twice


@pytest.mark.parametrize("variant", ["it", "ot", "dt"])
@pytest.mark.parametrize("n, i, o", [(4, 6, 10), (8, 4, 4), (4, 3, 5), (1, 5, 3), (3, 1, 2)])
def test_dyad_as_permutations_is_dyad_entry_by_entry(variant: str, n: int, i: int, o: int) -> None:
    structure = structures.get(f"dyad_{variant}").bind(n * i, n * o, n_blocks=n)
    factors = factors_of(structure)
    assert close(dense_forms.dyad_entries(variant, *factors), dense_forms.dyad(variant, *factors))
    assert close(dense(structure, factors), dense_forms.dyad_entries(variant, *factors))


def test_the_three_dyads_are_three_matrices() -> None:
    w1, w2 = factors_of(structures.get("dyad_it").bind(24, 32))
    forms = [dense_forms.dyad(variant, w1, w2) for variant in ("it", "ot", "dt")]
    assert not any(close(a, b) for a, b in [forms[:2], forms[1:], forms[::2]])


def test_dyad_concatenated_on_the_reduction_axis_is_dyad_it() -> None:
    structure = structures.get("dyad_it").bind(24, 32)
    w1, w2 = factors_of(structure)
    both = np.concatenate([w1, w2], axis=1)  # (n, 2i, o)
    x = np.random.default_rng(1).standard_normal(24)
    parts = np.concatenate([x.reshape(4, 6), x.reshape(6, 4).T], axis=1)  # (n, 2i)
    y = np.concatenate([parts[j] @ both[j] for j in range(4)])
    assert close(y, dense(structure, [w1, w2]) @ x)


@pytest.mark.parametrize("n, i, o", [(4, 6, 10), (8, 4, 4), (3, 5, 2)])
def test_the_components_of_dyad_dt_are_kronecker_sparse_factors(n: int, i: int, o: int) -> None:
    structure = structures.get("dyad_dt").bind(n * i, n * o, n_blocks=n)
    w1, w2 = factors_of(structure)
    spec = structures.get("kronecker_sparse")
    first, second = spec.bind(n * i, n * o, a=n, d=1), spec.bind(n * i, n * o, a=1, d=n)
    parts = [w1.transpose(0, 2, 1)[..., None], w2.transpose(2, 1, 0)[None]]  # (n, o, i, 1) and (1, o, i, n)
    assert [p.shape for p in parts] == [first.factor_shapes[0], second.factor_shapes[0]]
    assert close(dense(first, parts[:1]) + dense(second, parts[1:]), dense(structure, [w1, w2]))


@pytest.mark.parametrize("a, b, c, d", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 5, 3, 3), (3, 1, 1, 2), (1, 4, 4, 1)])
def test_kronecker_sparse_has_the_support_of_its_definition(a: int, b: int, c: int, d: int) -> None:
    structure = structures.get("kronecker_sparse").bind(a * c * d, a * b * d, a=a, d=d)
    expected = dense_forms.kronecker_sparse_support(a, b, c, d)
    assert np.array_equal(dense(structure, factors_of(structure)) != 0, expected)
    assert np.array_equal(support(structure), expected)
    assert structure.params == a * b * c * d == int(expected.sum())


@pytest.mark.parametrize("widths, blocks", [((96, 96), 4), ((32, 64), 4), ((64, 32), 4), ((36, 72), 3), ((64, 64), 8),
    ((15, 15), 3), ((44, 22), 2), ((100, 60), 10), ((384, 384), 12), ((384, 384), 16), ((768, 768), 32)])  # fmt: skip
def test_monarch_is_the_published_one_at_every_number_of_blocks(widths: tuple[int, int], blocks: int) -> None:
    structure = structures.get("monarch").bind(*widths, n_blocks=blocks)
    w1, w2 = factors_of(structure)
    published_1, published_2 = w1.transpose(0, 2, 1), w2.transpose(0, 2, 1)  # (k, q, p) and (l, s, r)
    assert close(dense_forms.monarch_reread(published_1, published_2), dense(structure, [w1, w2]))
    assert structure.params == published_1.size + published_2.size == min(widths) * sum(widths) // blocks


# -- equalities between structures


@pytest.mark.parametrize(
    "widths, blocks", [((16, 16), 4), ((64, 64), 8), ((96, 96), 4), ((32, 64), 4), ((64, 32), 2), ((36, 72), 3)]
)
def test_monarch_is_block_tensor_train_with_its_output_axes_swapped(widths: tuple[int, int], blocks: int) -> None:
    monarch = structures.get("monarch").bind(*widths, n_blocks=blocks)
    options, sizes = {"blocks": 1, "rank": 1}, {"g": "blocks", "f": "blocks", "r": "rank"}
    of_blocks = replace(structures.get("btt"), options=options, sizes=sizes)  # the same einsum, blocks chosen by hand
    btt = of_blocks.bind(*widths, blocks=blocks, rank=min(widths) // blocks**2)
    first, second = factors_of(monarch)  # (k p (r f)) is (g a f r), (l (g r) s) is (f g r e)
    factors = [first.reshape(*first.shape[:2], -1, blocks).swapaxes(2, 3), second.reshape(btt.factor_shapes[1])]
    assert btt.factor_shapes == tuple(f.shape for f in factors)
    swap = dense_forms.perfect_shuffle(btt.size["e"], blocks)  # (s l) gathered from (l s)
    assert close(swap @ dense(btt, factors), dense(monarch, [first, second]))
    assert not close(dense(btt, factors), dense(monarch, [first, second]))
    assert (btt.params, btt.flops()) == (monarch.params, monarch.flops())


@pytest.mark.parametrize("widths", [(24, 24), (32, 48), (48, 32), (60, 36)])
def test_kronecker_is_tensor_train_of_rank_1(widths: tuple[int, int]) -> None:
    kronecker, train = structures.get("kronecker").bind(*widths), structures.get("tensor_train").bind(*widths, rank=1)
    a, b = factors_of(kronecker)
    cores = [b.T[None, :, :, None], a.T[None, :, :, None]]  # the first core is on the slow axes, where B is
    assert [c.shape for c in cores] == list(train.factor_shapes)
    assert close(dense(train, cores), dense(kronecker, [a, b]))


@pytest.mark.parametrize("theta", [(1, 0, 0, 0, 1, 0, 0.5), (0, 1, 0, 1, 0, 0, 0.5)])
@pytest.mark.parametrize("widths", [(36, 36), (64, 16), (16, 64)])
def test_low_rank_is_the_two_factor_einsum_with_one_factor_a_side(
    theta: tuple[float, ...], widths: tuple[int, int]
) -> None:
    structure = structures.get("einsum").bind(*widths, theta=theta)
    rank = round(min(widths) ** 0.5)
    low_rank = structures.get("low_rank").bind(*widths, rank=rank)
    down, up = factors_of(low_rank)
    written = [down.T, up.T] if theta[0] else [up.T, down.T]  # whichever factor the theta puts at the input
    as_einsum = [w.reshape(shape) for w, shape in zip(written, structure.factor_shapes, strict=True)]
    assert close(dense(structure, as_einsum), dense(low_rank, [down, up]))


@pytest.mark.parametrize("widths, blocks", [((24, 24), 4), ((32, 48), 8), ((60, 36), 12)])
def test_block_diagonal_is_a_kronecker_sparse_factor(widths: tuple[int, int], blocks: int) -> None:
    block_diagonal = structures.get("block_diagonal").bind(*widths, n_blocks=blocks)
    sparse = structures.get("kronecker_sparse").bind(*widths, a=blocks, d=1)
    (w,) = factors_of(block_diagonal)
    assert close(dense(sparse, [w.transpose(0, 2, 1)[..., None]]), dense(block_diagonal, [w]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_butterfly_of_radix_2_is_a_product_of_kronecker_sparse_factors(depth: int) -> None:
    width = 2**depth
    structure = structures.get("butterfly").bind(width, width)
    factors = factors_of(structure)
    product = np.eye(width)
    for t, factor in enumerate(factors):  # (o[:t] i 1 o 1 i[t+1:]) as (a, b, c, d)
        pattern = factor.reshape(2**t, 2, 2, 2 ** (depth - 1 - t)).transpose(0, 2, 1, 3)
        product = dense_forms.kronecker_sparse(pattern) @ product
    assert close(product, dense(structure, factors))
    assert structure.params == 2 * width * depth


@pytest.mark.parametrize("log_blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("block", [(1, 1), (3, 2)])
def test_pixelfly_with_all_strides_and_no_low_rank_is_as_dense_as_a_flat_butterfly(
    log_blocks: int, block: tuple[int, int]
) -> None:
    blocks = 2**log_blocks
    structure = structures.get("pixelfly").bind(
        blocks * block[0], blocks * block[1], n_blocks=blocks, n_strides=log_blocks, rank=0
    )
    mask = dense(structure, factors_of(structure)) != 0
    union = np.eye(blocks, dtype=bool)
    for t in range(log_blocks):
        union |= dense_forms.kronecker_sparse_support(2 ** (log_blocks - 1 - t), 2, 2, 2**t)
    assert np.array_equal(mask, np.kron(union, np.ones((block[1], block[0]), dtype=bool)))
    assert mask.mean() == (log_blocks + 1) / blocks
    assert structure.params == int(mask.sum())


@pytest.mark.parametrize("blocks, strides, density", [(8, 2, 3 / 8), (16, 2, 3 / 16), (16, 4, 5 / 16), (8, 3, 4 / 8)])
def test_pixelfly_has_the_density_of_its_paper(blocks: int, strides: int, density: float) -> None:
    structure = structures.get("pixelfly").bind(96, 48, n_blocks=blocks, n_strides=strides, rank=0)
    assert (dense(structure, factors_of(structure)) != 0).mean() == density


def test_blast_with_all_ones_between_is_low_rank_and_with_the_identity_block_diagonal() -> None:
    structure = structures.get("blast").bind(24, 36, n_blocks=4, rank=5)
    c, d, b = factors_of(structure)
    low_rank = b.transpose(0, 2, 1).reshape(36, 5) @ c.reshape(24, 5).T
    assert close(dense(structure, [c, np.ones_like(d), b]), low_rank)
    diagonal = np.repeat(np.eye(4)[:, :, None], 5, axis=2)
    blocks = [b[j].T @ c[j].T for j in range(4)]
    assert close(dense(structure, [c, diagonal, b]), dense_forms.block_diagonal(np.array([m.T for m in blocks])))


def test_block_dense_with_one_block_is_low_rank() -> None:
    structure = structures.get("block_dense").bind(24, 36, n_blocks=1, rank=5)
    v, u = factors_of(structure)
    assert close(dense(structure, [v, u]), dense_forms.low_rank(v[0], u[0]))
