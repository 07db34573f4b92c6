"""Members of the space: sizes that divide, exponents reported, registry YAML that runs as it is."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_structure import TAXONOMY

import structures
from structures import reference, registry, space
from structures.language.errors import SizeError, SpecError
from structures.space.term import term
from structures.spec import Spec

THREE = {"x1": 4, "x12": 2, "x3": 3, "12": 2, "123": 2, "23": 3, "2y": 4, "3y": 3, "13y": 2}  # 24 -> 24
BLOCKS = {"x1y": 4, "x1": 6, "1y": 9}  # 24 -> 36

# sizes by kind, widths, an entry of the registry with the same counts
KNOWN = [
    ({"x1": 24, "1y": 36}, (24, 36), ("dense", {})),
    (BLOCKS, (24, 36), ("block_diagonal", {"n_blocks": 4})),
    ({"x1": 24, "12": 5, "2y": 36}, (24, 36), ("low_rank", {"rank": 5})),
    ({"x12": 2, "x1": 12, "12y": 2, "2y": 18, "12": 6}, (24, 36), ("monarch", {"n_blocks": 2})),
    ({"x1": 4, "x2": 6, "1y": 6, "2y": 6}, (24, 36), ("kronecker", {})),
    ({"x12y": 2, "x1": 3, "x12": 4, "12y": 6, "2y": 3}, (24, 36), None),
    ({"x1y": 2, "x2y": 3, "x12": 4, "12": 2, "12y": 6}, (24, 36), None),
    (THREE, (24, 24), None),
]
WRONG_THETA = [
    ((0.5, 0.5), "theta has seven exponents .*found 2 numbers"),
    ((0.5, 0, 0, 1, 0, 0, 0), "the exponents of the input's axes sum to 1, found 0.5"),
    ((1, 0, 0, 0.2, 0, 0.5, 0), "the exponents of the output's axes sum to 1, found 0.7"),
    ((1.5, -0.5, 0, 1, 0, 0, 0), "the exponent of x1 is a number from 0 to 1, found 1.5"),
    ((True, 0, 0, 1, 0, 0, 0), "the exponent of x1 is a number from 0 to 1, found True"),
    ({"x1": float("nan"), "1y": 1}, "the exponent of x1 is a number from 0 to 1, found nan"),
    ({"xy": 1}, "'xy' is no kind of axis; a kind names two or more"),
    ({"x": 1, "1y": 1}, "'x' is no kind of axis"),
    ({"1": 1}, "'1' is no kind of axis"),
    ({"x21": 1, "1y": 1}, "'x21' is no kind of axis"),
    ({"x11": 1, "1y": 1}, "'x11' is no kind of axis"),
    ({"1x": 1, "1y": 1}, "'1x' is no kind of axis"),
    ({"x1y": 0.5, "1y": 0.5}, "no axis of input takes the"),
    ({}, "the exponents of the input's axes sum to 1, found 0"),
]
WRONG_SIZES = [
    ({"x1": 4, "1y": 6}, "the axes of x multiply to 4, not to 24: 1y=6 x1=4; divisors of 24: 1, 2, 3"),
    ({"x1": 24, "1y": 5}, "the axes of y multiply to 5, not to 36"),
    ({"x1": 24.0, "1y": 36}, "the size of 'x1' is a whole number from 1, found 24.0"),
    ({"x1": 0, "1y": 36}, "the size of 'x1' is a whole number from 1, found 0"),
    ({"x123456": 24, "1y": 36}, "a term has at most 5 factors, found 6"),
    ({"x1": 24}, "a term has an input axis, an output axis and a factor"),
]


def read_back(member: space.Member, tmp_path: Path) -> Spec:
    file = tmp_path / "member.yaml"
    file.write_text(member.yaml(), encoding="utf-8")
    return registry.read(file)[member.spec.name]


def random_members(count: int) -> list[space.Member]:
    """Two and three factors, shared axes, strides and sums, at rectangular widths."""
    dice, found = random.Random(0), []
    kinds = [
        k for k in ("x1", "x2", "x12", "x3", "x123", "1y", "2y", "12y", "3y", "123y", "x1y", "x12y", "12", "23", "123")
    ]
    while len(found) < count:
        sizes = {kind: dice.choice([2, 3, 4]) for kind in dice.sample(kinds, dice.randint(3, 8))}
        try:
            first = term(sizes, dice.choice(["", "x", "y", "xy"]))
        except SpecError:
            continue
        widths = first.widths
        if max(widths) > 300:
            continue
        members = [space.of_sizes(first, *widths)]
        if dice.random() < 0.3:
            members.append(space.of_sizes({"x1": widths[0], "12": 2, "2y": widths[1]}, *widths))
        if dice.random() < 0.3:
            members.append(space.of_sizes(sizes, *widths, strided=dice.choice(["x", "xy"])))
        found.append(space.add(*members) if len(members) > 1 else members[0])
    return found


@pytest.mark.parametrize("name, theta, omega, psi, nu", TAXONOMY)
def test_a_named_theta_is_the_entry_of_the_registry_at_that_theta(
    name: str, theta: tuple[float, ...], omega: float, psi: float, nu: float
) -> None:
    member = space.member(theta, 4096, 4096)
    entry = structures.get("einsum").bind(4096, 4096, theta=theta)
    scalars = sum(1 for shape in entry.factor_shapes if math.prod(shape) == 1)  # left out of the member
    assert member.structure.params == entry.params - scalars
    assert abs(member.structure.flops() - entry.flops()) <= 2 * 4096 * scalars
    assert member.exact and member.structure.taxonomy is not None
    found = member.structure.taxonomy
    assert (found.omega, found.psi, found.nu) == pytest.approx((omega, psi, nu), abs=0.011)


@pytest.mark.parametrize("sizes, widths, entry", KNOWN)
def test_counts_of_a_term_are_those_of_its_structure(
    sizes: dict[str, int], widths: tuple[int, int], entry: tuple[str, dict[str, object]] | None
) -> None:
    member = space.of_sizes(sizes, *widths)
    (own,), structure = member.terms, member.structure
    counts = (structure.params, structure.flops(), structure.activation_size)
    assert (own.params, 2 * own.multiply_adds, own.between) == counts
    assert structure.rank is not None and structure.rank <= own.rank_bound
    if entry:
        known = structures.get(entry[0]).bind(*widths, **entry[1])
        assert counts == (known.params, known.flops(), known.activation_size)
        assert (structure.rank, structure.degrees_of_freedom) == (known.rank, known.degrees_of_freedom)


def test_random_members_count_right_and_run_from_their_yaml(tmp_path: Path) -> None:
    sums = 0
    for number, member in enumerate(random_members(40)):
        structure = member.structure
        assert structure.params == sum(t.params for t in member.terms)
        assert structure.flops() == 2 * sum(t.multiply_adds for t in member.terms)
        spec = read_back(member, tmp_path)
        assert spec == member.spec and spec.bind(member.in_features, member.out_features) == structure
        sums += len(member.terms) > 1
        if number % 8:
            continue
        layer = structures.StructuredLinear(spec, member.in_features, member.out_features, backend="einsum").double()
        x = torch.randn(3, member.in_features, dtype=torch.float64)
        assert torch.allclose(layer(x), x @ layer.to_dense().T + layer.bias)
    assert sums > 5


def test_a_sum_of_blocks_with_strides_is_dyad() -> None:
    plain = space.of_sizes(BLOCKS, 24, 36)
    for strided, name in (("x", "dyad_it"), ("y", "dyad_ot"), ("xy", "dyad_dt")):
        made = space.add(plain, space.of_sizes(BLOCKS, 24, 36, strided=strided))
        dyad = structures.get(name).bind(24, 36, n_blocks=4)
        torch.manual_seed(0)
        factors = [torch.randn(shape, dtype=torch.float64) for shape in dyad.factor_shapes]
        x = torch.randn(5, 24, dtype=torch.float64)
        assert made.structure.factor_shapes == dyad.factor_shapes
        assert torch.equal(reference.apply(made.structure, x, factors), reference.apply(dyad, x, factors))


def test_every_entry_of_the_registry_is_its_yaml_again(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    specs = [structures.get(name) for name in structures.names()]
    file.write_text(space.to_yaml(specs), encoding="utf-8")
    assert registry.read(file) == {spec.name: spec for spec in specs}


def test_an_entry_that_is_padded_and_a_variant_is_its_yaml_again(tmp_path: Path) -> None:
    spec = Spec(name="mine", einsum=("x, x y -> y",), title="Mine", source="me", pad=True, variant_of="dense")
    file = tmp_path / "mine.yaml"
    file.write_text(space.to_yaml(spec), encoding="utf-8")
    assert registry.read(file) == {"mine": spec}


def test_the_layer_of_a_member_trains() -> None:
    layer = space.of_sizes(THREE, 24, 24).layer(bias=False)
    layer(torch.randn(2, 24)).square().sum().backward()
    assert layer.bias is None and all(f.grad is not None and f.grad.abs().sum() > 0 for f in layer.factors)
    dense = layer.to_dense().detach().numpy()
    assert np.linalg.matrix_rank(dense) <= layer.structure.rank


def test_a_member_keeps_its_exponents_at_other_widths() -> None:
    member = space.member((0.5, 0, 0.5, 0, 0.5, 0.5, 0.25), 256, 256)
    wide = member.spec.bind(4096, 4096)
    assert sorted(n for n in wide.size.values()) == [8, 64, 64, 64, 64]
    blocks = space.of_sizes(BLOCKS, 24, 36).spec.bind(48, 48)
    assert sorted(blocks.size.values()) == [4, 12, 12]


def test_an_unreachable_theta_gives_the_nearest_and_says_so() -> None:
    theta = (0.5, 0, 0.5, 0, 0.5, 0.5, 0)
    with pytest.warns(
        UserWarning,
        match=r"theta is not reachable at 512 -> 4096; the nearest: x1 +size +16 +theta 0.444, asked for 0.500",
    ):
        member = space.member(theta, 512, 4096)
    assert not member.exact and member.difference == pytest.approx(0.5 - 4 / 9)
    assert {t.widths for t in member.terms} == {(512, 4096)}  # nothing is padded or cut off
    assert dict(member.realised[0])["x1"] == pytest.approx(4 / 9)
    with pytest.raises(SizeError, match=r"not reachable at 512 -> 4096.*choose widths with these divisors"):
        space.member(theta, 512, 4096, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.member(theta, 1024, 4096, strict=True).exact


def test_shared_axes_are_common_divisors() -> None:
    member = space.member({"x1y": 0.25, "x1": 0.75, "1y": 0.75}, 256, 256)
    assert member.terms[0].sizes == (("1y", 64), ("x1", 64), ("x1y", 4))
    with pytest.warns(UserWarning, match="x1y +size +6"):
        assert dict(space.member({"x1y": 0.5, "x1": 0.5, "1y": 0.5}, 24, 30).terms[0].sizes)["x1y"] == 6


@pytest.mark.parametrize("theta, message", WRONG_THETA)
def test_a_theta_that_is_none_is_an_error(theta: object, message: str) -> None:
    with pytest.raises(SpecError, match=f"space: {message}"):
        space.member(theta, 24, 36)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes, message", WRONG_SIZES)
def test_sizes_that_are_none_are_an_error(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=f"space: {message}"):
        space.of_sizes(sizes, 24, 36)


def test_a_sum_is_of_one_shape_and_few_terms() -> None:
    one, other = space.of_sizes({"x1": 4, "1y": 4}, 4, 4), space.of_sizes({"x1": 4, "1y": 6}, 4, 6)
    with pytest.raises(SpecError, match=r"members of a sum have the same widths, found \(4, 4\), \(4, 6\)"):
        space.add(one, other)
    with pytest.raises(SpecError, match="a sum has at most 4 terms, found 5"):
        space.add(*[one] * 5)
    with pytest.raises(SpecError, match="strided is '', 'x', 'y' or 'xy', found 'z'"):
        space.of_sizes({"x1": 4, "1y": 4}, 4, 4, strided="z")


def test_names_tell_members_apart() -> None:
    members = random_members(30)
    assert len({m.spec.name for m in members}) == len({m.spec.title for m in members})
    assert str(members[0]).startswith(f"{members[0].spec.name}: ")
