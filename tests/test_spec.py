"""Entries made in Python: normalised, hashed, bound; whatever can be written as a sum of einsum terms works."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from contract import ROUNDING
from numpy.typing import NDArray

import structures
from structures import backends, reference
from structures.algebra import rank
from structures.spec import SizeError, Spec, SpecError

Array = NDArray[np.float64]
Dense = Callable[..., Array]

LOW_RANK = "x, x r, r y -> y"


def flat(array: Array, out_features: int) -> Array:
    """An array of output axes, then input axes, as a matrix."""
    return array.reshape(out_features, -1)


def delta(n: int) -> Array:
    return np.eye(n)


def gathered(factor: Array, read: Callable[[int, int], int], blocks: int) -> Array:
    """The matrix of (b i), u k i o -> (u o), block u of the output reading block read(u, k) of the input."""
    u_size, k_size, i_size, o_size = factor.shape
    dense = np.zeros((u_size, o_size, blocks, i_size))
    for u in range(u_size):
        for k in range(k_size):
            dense[u, :, read(u, k)] += factor[u, k].T
    return flat(dense, u_size * o_size)


# name: the entry, widths, options, the matrix (out, in) from the factors, written by hand
ENTRIES: dict[str, tuple[dict[str, Any], tuple[int, int], dict[str, Any], Dense]] = {
    "one factor": ({"einsum": "x, x y -> y"}, (4, 6), {}, lambda w: w.T),
    "five factors": (
        {"einsum": "x, x a, a b, b c, c d, d y -> y", "sizes": {"a": 3, "b": 2, "c": 5, "d": 4}},
        (4, 6),
        {},
        lambda p, q, r, s, t: (p @ q @ r @ s @ t).T,
    ),
    "five terms": (
        {
            "einsum": ["x, x y -> y", "(a b), a b z -> z", "x, x r, r y -> y", "x, x a c -> (a c)", "x, x, y -> y"],
            "sizes": {"a": 2, "r": 3},
        },
        (4, 6),
        {},
        lambda p, q, r, s, t, u, v: (
            p.T + flat(q.transpose(2, 0, 1), 6) + (r @ s).T + flat(t.transpose(1, 2, 0), 6) + np.outer(v, u)
        ),
    ),
    "identity": ({"einsum": "x -> x"}, (5, 5), {}, lambda: delta(5)),
    "permutation": (
        {"einsum": "(a b c) -> (c a b)", "sizes": {"a": 2, "b": 3}},
        (12, 12),
        {},
        lambda: flat(np.einsum("aA,bB,cC->cabABC", delta(2), delta(3), delta(2)), 12),
    ),
    "identity, permutation and a product": (
        {"einsum": ["x -> x", "(a b) -> (b a)", "z, z r, r v -> v"], "sizes": {"a": 2, "r": 1}},
        (6, 6),
        {},
        lambda p, q: delta(6) + flat(np.einsum("aA,bB->baAB", delta(2), delta(3)), 6) + (p @ q).T,
    ),
    "a diagonal": ({"einsum": "x, x -> x"}, (5, 5), {}, lambda d: np.diag(d)),
    "diagonals in a row": ({"einsum": "x, x, x, x -> x"}, (5, 5), {}, lambda a, b, c: np.diag(a * b * c)),
    "nothing in common": ({"einsum": "x, x, y -> y"}, (4, 6), {}, lambda p, q: np.outer(q, p)),
    "steps that contract nothing": (
        {"einsum": "x, r, x r, r s, s -> (x r s)", "sizes": {"r": 3, "s": 2}},
        (4, 24),
        {},
        lambda a, b, c, d: flat(np.einsum("r,xr,rs,s,xX->xrsX", a, b, c, d, delta(4)), 24),
    ),
    "an axis in three operands": (
        {"einsum": "(k p), k p q, k q s -> (k s)", "sizes": {"k": 2, "q": 3}},
        (8, 6),
        {},
        lambda a, b: flat(np.einsum("kpq,kqs,kK->ksKp", a, b, delta(2)), 6),
    ),
    "an axis in five operands": (
        {"einsum": "(k p), k p q, k q, q k r, r k s -> (s k)", "sizes": {"k": 2, "q": 3, "r": 2}},
        (8, 6),
        {},
        lambda a, b, c, d: flat(np.einsum("kpq,kq,qkr,rks,kK->skKp", a, b, c, d, delta(2)), 6),
    ),
    "an input axis summed in two factors": (
        {"einsum": "x, x r, x r, r y -> y", "sizes": {"r": 3}},
        (4, 6),
        {},
        lambda a, b, c: np.einsum("xr,xr,ry->yx", a, b, c),
    ),
    "an axis of input, factor and output": (
        {"einsum": "(a b), a c, b c -> (a c)", "sizes": {"a": 2, "c": 3}},
        (8, 6),
        {},
        lambda p, q: flat(np.einsum("ac,bc,aA->acAb", p, q, delta(2)), 6),
    ),
    "a bond ring": (
        {"einsum": "(a b), r a s, s b r -> (a b)", "sizes": {"a": 2, "r": 3, "s": 2}},
        (8, 8),
        {},
        lambda p, q: np.diag(np.einsum("ras,sbr->ab", p, q).ravel()),
    ),
    "equal factors": (
        {"einsum": "(a b), a c, b d, c e, d f -> (e f)", "sizes": {"a": 2, "c": 2, "e": 3, "d": 4}},
        (6, 12),
        {},
        lambda p, q, r, s: np.kron((p @ r).T, (q @ s).T),
    ),
    "a list option": (
        {
            "einsum": "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])",
            "options": {"ranks": [1, 4, 1]},
            "sizes": {"i": "split(in_features, 2)", "o": "split(out_features, 2)", "r": "ranks"},
        },
        (12, 20),
        {},
        lambda p, q: flat(np.einsum("aior,rIOb->oOiI", p, q), 20),
    ),
    "a longer list given": (
        {
            "einsum": "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])",
            "options": {"ranks": [1, 4, 1], "cores": 2},
            "sizes": {"i": "split(in_features, cores)", "o": "split(out_features, cores)", "r": "ranks"},
        },
        (12, 30),
        {"ranks": (1, 2, 3, 1), "cores": 3},
        lambda p, q, r: flat(np.einsum("aior,rIOs,sjpb->oOpiIj", p, q, r), 30),
    ),
    "a bond of one size": (
        {
            "einsum": "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])",
            "options": {"cores": 3},
            "sizes": {"i": "split(in_features, cores)", "o": "split(out_features, cores)", "r": 2},
        },
        (12, 30),
        {},
        lambda p, q, r: flat(np.einsum("aior,rIOs,sjpb->oOpiIj", p, q, r), 30),
    ),
    "sizes that are options": (
        {"einsum": "(i[:]), i[0] i[1] o -> o", "options": {"n": [2, 3]}, "sizes": {"i": "n"}},
        (6, 4),
        {},
        lambda w: flat(np.einsum("ijo->oij", w), 4),
    ),
    "indices that are numbers": (
        {"einsum": "(i[1:] i[0]), i[0] i[-1] r, r i[1] y -> y", "sizes": {"i": "split(in_features, 3)", "r": 2}},
        (30, 4),
        {},
        lambda p, q: flat(np.einsum("acr,rby->ybca", p, q), 4),
    ),
    "a gather": (
        {"einsum": "(b i), u k i o -> (u o)", "sizes": {"b": 4, "u": 6, "k": 2}, "index": {"b": "(u + 2*k) % 4"}},
        (8, 12),
        {},
        lambda w: gathered(w, lambda u, k: (u + 2 * k) % 4, 4),
    ),
    "a gather without factors": (
        {"einsum": "(b i) -> (u i)", "sizes": {"b": 4, "u": 4}, "index": {"b": "3 - u"}},
        (8, 8),
        {},
        lambda: np.kron(np.eye(4)[::-1], np.eye(2)),
    ),
    "a gather summed over": (
        {"einsum": "(b i), k i o -> o", "sizes": {"b": 4, "k": 3}, "index": {"b": "k + 1"}},
        (8, 3),
        {},
        lambda w: flat(np.concatenate([np.zeros((1, 2, 3)), w]).transpose(2, 0, 1), 3),
    ),
    "two gathers": (
        {
            "einsum": "(b c), u v o -> (v o u)",
            "sizes": {"b": 3, "c": 2, "u": 3, "v": 2},
            "index": {"b": "2 - u", "c": "1 - v"},
        },
        (6, 12),
        {},
        lambda w: flat(np.einsum("uvo,ub,vc->voubc", w, np.eye(3)[::-1], np.eye(2)[::-1]), 12),
    ),
    "a gather in one term of two": (
        {"einsum": ["(b i), u i o -> (u o)", "x, x y -> y"], "sizes": {"b": 2, "u": 2}, "index": {"b": "1 - u"}},
        (4, 6),
        {},
        lambda p, q: gathered(p[:, None], lambda u, k: 1 - u, 2) + q.T,
    ),
    "a rank of zero": (
        {"einsum": ["x, x y -> y", LOW_RANK], "options": {"rank": 2}, "sizes": {"r": "rank"}},
        (4, 6),
        {"rank": 0},
        lambda w: w.T,
    ),
    "widths of one": (
        {"einsum": ["x, x y -> y", LOW_RANK], "sizes": {"r": 1}},
        (1, 1),
        {},
        lambda w, p, q: w.T + (p @ q).T,
    ),
    "one input": ({"einsum": "x, x y -> y"}, (1, 6), {}, lambda w: w.T),
    "one output": (
        {"einsum": "(a b), a b r, r y -> y", "sizes": {"a": 1, "r": 2}},
        (6, 1),
        {},
        lambda p, q: flat(np.einsum("abr,ry->yab", p, q), 1),
    ),
    "names as programs have them": (
        {"einsum": "(tokens in_), tokens in_ lambda, lambda y_ -> (tokens y_)", "sizes": {"tokens": 2, "lambda": 3}},
        (4, 6),
        {},
        lambda p, q: flat(np.einsum("til,ly,tT->tyTi", p, q, delta(2)), 6),
    ),
    "expressions of every kind": (
        {
            "einsum": "(a b), a b r, r y -> y",
            "options": {"part": 0.5, "r": "max(1, min(in_features, out_features) // 4)"},
            "sizes": {
                "n": "digits(in_features, 2)",
                "a": "split(in_features, n)[0]",
                "r": "round(r * part) ^ 3 % 7 - -1 + 2**n // 2",
            },
        },
        (12, 24),
        {},
        lambda p, q: flat(np.einsum("abr,ry->yab", p, q), 24),
    ),
}
# what is passed to Spec, words of the error
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"name": "no name", "einsum": "x -> x"}, ("'no name' is not a name",)),
    ({"name": "", "einsum": "x -> x"}, ("is not a name",)),
    ({"einsum": ()}, ("m: the entry has no einsum",)),
    ({"einsum": "x, x ! -> y"}, ("m: unexpected '!'", "'x, x ! -> y'")),
    ({"einsum": LOW_RANK}, ("m: axis 'r' of a factor has no size", "x, y")),
    ({"einsum": "x, x y -> y", "options": {"n": 4}}, ("m: option 'n' is used by no size",)),
    ({"einsum": LOW_RANK, "sizes": {"r": None}}, ("m: None is not a number",)),
    ({"einsum": LOW_RANK, "sizes": {"r": True}}, ("m: True is not a number",)),
    ({"einsum": LOW_RANK, "sizes": {"r": "rank"}}, ("m: unknown name 'rank' in 'rank'", "in_features, out_features")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": None}}, ("option n is a number", "None")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": True}}, ("option n is a number", "True")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": {}}}, ("option n is a number", "{}")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": []}}, ("option n is a list of numbers", "[]")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": [[1]]}}, ("option n is a list of numbers", "[[1]]")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": float("nan")}}, ("option n is a number", "nan")),
    ({"einsum": LOW_RANK, "sizes": {"r": "n"}, "options": {"n": 10**400}}, ("option n is a number",)),
    ({"einsum": LOW_RANK, "sizes": {"r": 2}, "init": {"uniform": 1, "normal": 1}}, ("init has one of",)),
    ({"einsum": "x, x r[0] -> (r[0] r0)", "sizes": {"r": 2}}, ("axis 'r0'",)),
]

SCALAR = {"einsum": LOW_RANK, "options": {"n": 4}, "sizes": {"r": "n"}}
FLOAT = {"einsum": LOW_RANK, "options": {"n": 0.5}, "sizes": {"r": "round(in_features * n)"}}
LIST = {"einsum": LOW_RANK, "options": {"n": [4, 1]}, "sizes": {"r": "n[0]"}}
EXPRESSION = {"einsum": LOW_RANK, "options": {"n": "in_features // 2"}, "sizes": {"r": "n"}}

# entry, value of its option n, rank that follows at 8 -> 8
ACCEPTED: list[tuple[dict[str, Any], object, int]] = [
    (SCALAR, 3, 3),
    (SCALAR, np.int64(3), 3),
    (SCALAR, np.uint8(3), 3),
    (SCALAR, np.array(3), 3),
    (SCALAR, torch.tensor(3), 3),
    (FLOAT, 0.25, 2),
    (FLOAT, np.float64(0.25), 2),
    (FLOAT, 1, 8),
    (FLOAT, np.int32(1), 8),
    (LIST, [3, 1], 3),
    (LIST, (3,), 3),
    (LIST, range(3, 5), 3),
    (LIST, torch.Size([3, 1]), 3),
    (LIST, [np.int64(3), np.int64(1)], 3),
    (EXPRESSION, 3, 3),
    (EXPRESSION, np.int16(3), 3),
]
WRONG_VALUES: list[tuple[dict[str, Any], object, str]] = [
    (SCALAR, 2.0, "m: option n is a whole number, found 2.0"),
    (SCALAR, np.float32(2), "m: option n is a whole number, found"),
    (SCALAR, True, "m: option n is a whole number, found True"),
    (SCALAR, np.True_, "m: option n is a whole number, found"),
    (SCALAR, "2", "m: option n is a whole number, found '2'"),
    (SCALAR, None, "m: option n is a whole number, found None"),
    (SCALAR, [2], "m: option n is a whole number, found [2]"),
    (SCALAR, -2, "m: option n cannot be negative, found -2"),
    (SCALAR, 10**400, "m: option n"),
    (SCALAR, 2**60, "m: option n"),
    (EXPRESSION, "in_features", "m: option n is a whole number, found 'in_features'"),
    (EXPRESSION, 0.5, "m: option n is a whole number, found 0.5"),
    (FLOAT, "0.5", "m: option n is a number, found '0.5'"),
    (FLOAT, True, "m: option n is a number, found True"),
    (FLOAT, -0.5, "m: option n cannot be negative, found -0.5"),
    (FLOAT, float("nan"), "m: option n is a number, found nan"),
    (FLOAT, float("inf"), "m: option n is a number, found inf"),
    (LIST, 4, "m: option n is a list of numbers, found 4"),
    (LIST, "41", "m: option n is a list of numbers, found '41'"),
    (LIST, [], "m: option n is a list of numbers, found []"),
    (LIST, [[1]], "m: option n is a list of numbers, found [[1]]"),
    (LIST, [True], "m: option n is a list of numbers, found [True]"),
    (LIST, [float("inf")], "m: option n is a list of numbers, found [inf]"),
    (LIST, ["1"], "m: option n is a list of numbers, found ['1']"),
    (LIST, [-1], "m: size r = n[0] is -1"),
    (LIST, [0.5], "m: size r = n[0] is 0.5, not a whole number"),
]
WRONG_WIDTHS: list[tuple[object, object, str]] = [
    (0, 4, "m: in_features is from 1 to 16777216, found 0"),
    (4, 0, "m: out_features is from 1 to 16777216, found 0"),
    (-4, 4, "m: in_features is from 1 to 16777216, found -4"),
    (2**24 + 1, 4, "m: in_features is from 1 to 16777216, found 16777217"),
    (10**400, 4, "m: in_features is from 1 to 16777216, found 1000"),
    (True, 4, "m: in_features is"),
    (4.0, 4, "m: in_features is a whole number, found 4.0"),
    (4, 4.5, "m: out_features is a whole number, found 4.5"),
    (float("nan"), 4, "m: in_features is a whole number, found nan"),
    ("4", 4, "m: in_features is a whole number, found '4'"),
    (None, 4, "m: in_features is a whole number, found None"),
    ([4], 4, "m: in_features is a whole number, found [4]"),
]


def make(**fields: Any) -> Spec:
    return Spec(**{"name": "m", **fields})


def draw(shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def near(found: Array, wanted: Array, said: str = "") -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max(), err_msg=said)


@pytest.mark.parametrize(("fields", "widths", "options", "by_hand"), ENTRIES.values(), ids=ENTRIES)
def test_an_entry_is_the_matrix_that_its_einsum_says(
    fields: dict[str, Any], widths: tuple[int, int], options: Mapping[str, Any], by_hand: Dense
) -> None:
    structure = make(**fields).bind(*widths, **options)
    factors = draw(structure.factor_shapes)
    wanted = by_hand(*factors)
    assert wanted.shape == (structure.out_features, structure.in_features)
    tensors = [torch.from_numpy(f) for f in factors]
    x = np.random.default_rng(1).standard_normal((3, widths[0]))
    near(rank.dense(structure, factors), wanted)
    near(reference.to_dense(structure, tensors), wanted)
    np.testing.assert_array_equal(rank.support(structure)[wanted != 0], True)
    for name in backends.names():
        if backends.get(name).refuses(structure, torch.from_numpy(x)) is None:
            y = backends.apply(name, structure, torch.from_numpy(x), tensors, None)
            near(y.numpy(), x @ wanted.T, name)
    assert str(structure).startswith(f"m({widths[0]} -> {widths[1]}")


def test_a_wrong_matrix_is_noticed() -> None:
    fields, widths, options, by_hand = ENTRIES["a bond ring"]
    with pytest.raises(AssertionError):
        test_an_entry_is_the_matrix_that_its_einsum_says(fields, widths, options, lambda p, q: by_hand(p, q).T + 1e-9)
    with pytest.raises(AssertionError):
        test_an_entry_is_the_matrix_that_its_einsum_says(fields, widths, options, lambda p, q: 2 * by_hand(p, q))


@pytest.mark.parametrize("fields", [e[0] for e in ENTRIES.values()], ids=ENTRIES)
def test_a_spec_equals_its_copies_however_it_is_written(fields: dict[str, Any]) -> None:
    spec = make(**fields)
    pairs = {k: tuple(v.items()) if isinstance(v, dict) else v for k, v in fields.items()}
    for other in (
        make(**pairs),
        pickle.loads(pickle.dumps(spec)),
        make(**fields, file="a.yaml", marks=((("x",), (1, 1)),)),
    ):
        assert other == spec
        assert hash(other) == hash(spec)
    assert make(**fields, title="other") != spec
    assert len({spec, make(**fields)}) == 1


def test_a_structure_equals_its_copies() -> None:
    for fields, widths, options, _ in ENTRIES.values():
        structure = make(**fields).bind(*widths, **options)
        again = make(**fields).bind(*widths, **options)
        copy = pickle.loads(pickle.dumps(structure))
        assert structure == again == copy
        assert hash(structure) == hash(again) == hash(copy)
        assert structure.spec == copy.spec


def test_fields_are_normalised_to_tuples_of_text() -> None:
    spec = make(einsum=LOW_RANK, options={"n": [4, 1], "f": 0.5}, sizes={"s": 3, "r": "n[0] * s // f"})
    assert spec.einsum == (LOW_RANK,)
    assert spec.options == (("n", (4, 1)), ("f", 0.5))
    assert spec.sizes == (("s", "3"), ("r", "n[0] * s // f"))
    assert spec.index == spec.init == ()
    assert eval(repr(spec), {"Spec": Spec}) == spec


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_cannot_be_is_refused_when_the_spec_is_made(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as error:
        make(**fields)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(("fields", "value", "rank"), ACCEPTED)
def test_an_option_takes_numbers_of_its_kind(fields: dict[str, Any], value: object, rank: int) -> None:
    structure = make(**fields).bind(8, 8, n=value)
    assert structure.size.get("r") == rank
    ((_, kept),) = structure.options
    assert all(type(n) in (int, float, np.float64) for n in (kept if isinstance(kept, tuple) else (kept,)))
    assert hash(structure) == hash(make(**fields).bind(8, 8, n=value))


@pytest.mark.parametrize(("fields", "value", "message"), WRONG_VALUES, ids=[w[2] for w in WRONG_VALUES])
def test_an_option_of_another_kind_is_refused(fields: dict[str, Any], value: object, message: str) -> None:
    with pytest.raises(SpecError) as error:
        make(**fields).bind(8, 8, n=value)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("in_features", "out_features", "message"), WRONG_WIDTHS, ids=[w[2] for w in WRONG_WIDTHS])
def test_a_width_is_a_whole_number_in_range(in_features: Any, out_features: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        make(**SCALAR).bind(in_features, out_features)
    assert str(error.value).startswith(message)


def test_widths_may_be_any_kind_of_integer_up_to_the_limit() -> None:
    plain = make(**SCALAR).bind(8, 12)
    assert make(**SCALAR).bind(np.int64(8), torch.tensor(12)) == plain  # type: ignore[arg-type]
    assert make(**SCALAR).bind(2**24, 2**24).params == 2**24 * 8


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"m: there is no option 'm'; there are: n$"):
        make(**SCALAR).bind(8, 8, m=4)
    with pytest.raises(SpecError, match=r"m: there is no option 'n_blocks'; there are none$"):
        make(einsum="x -> x").bind(8, 8, n_blocks=4)
    with pytest.raises(SpecError, match=r"there is no option 'nblocks'; did you mean 'n_blocks'\?$"):
        structures.get("monarch").bind(8, 8, nblocks=4)


def test_sizes_may_be_zero_only_where_a_term_can_be_dropped() -> None:
    with pytest.raises(SizeError, match=r"every term is dropped"):
        make(einsum=LOW_RANK, sizes={"r": 0}).bind(4, 4)
    with pytest.raises(SizeError, match=r"axis a=0 does not divide in_features=4"):
        make(einsum="(a b), a b y -> y", sizes={"a": 0}).bind(4, 4)


def test_an_index_outside_its_axis_names_the_place_and_the_value() -> None:
    fields: dict[str, Any] = {"einsum": "(b i), u i o -> (u o)", "sizes": {"b": 3, "u": 4}}
    with pytest.raises(SizeError, match=r"m: index: b = u is 3 at u=3, outside 0 to 2$"):
        make(**fields, index={"b": "u"}).bind(12, 12)
    with pytest.raises(SizeError, match=r"m: index: b = u - 1 is -1 at u=0, outside 0 to 2$"):
        make(**fields, index={"b": "u - 1"}).bind(12, 12)
    with pytest.raises(SizeError, match=r"3 / 2 is not a whole number"):
        make(**fields, index={"b": "u * 3 / 2 % 3"}).bind(12, 12)


@pytest.mark.parametrize(
    ("n_blocks", "n_strides", "works"), [(12, 2, True), (6, 1, True), (6, 2, False), (10, 3, False), (3, 0, True)]
)
def test_pixelfly_takes_numbers_of_blocks_that_are_no_powers_of_two(n_blocks: int, n_strides: int, works: bool) -> None:
    spec = structures.get("pixelfly")
    options = {"n_blocks": n_blocks, "n_strides": n_strides, "rank": 2}
    if not works:
        with pytest.raises(SizeError, match=r"index: b = u \^ 2\*\*k // 2 is \d+ at u=\d+, k=\d+, outside 0 to"):
            spec.bind(60, 120, **options)
        return
    structure = spec.bind(60, 120, **options)
    blocks, left, right = factors = draw(structure.factor_shapes)
    wanted = gathered(blocks, lambda u, k: u ^ (2**k // 2), n_blocks) + (left @ right).T
    near(reference.to_dense(structure, [torch.from_numpy(f) for f in factors]), wanted)


def test_a_spec_in_place_of_a_name_makes_a_layer() -> None:
    fields, widths, _, by_hand = ENTRIES["five factors"]
    layer = structures.StructuredLinear(make(**fields), *widths, bias=False, dtype=torch.float64)
    x = torch.randn(2, 3, widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = by_hand(*(f.detach().numpy() for f in layer.factors))
    near(layer(x).detach().numpy(), x.numpy() @ wanted.T)
