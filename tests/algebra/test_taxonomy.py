"""Exponents of sharing, rank and compute: against the published points, and against counts and ranks at two widths."""

from __future__ import annotations

import math
import random

import pytest
from test_structure import TAXONOMY

import structures
from structures.algebra import rank
from structures.algebra.growth import axis_powers
from structures.algebra.parting import MAX_PASSED
from structures.algebra.taxonomy import Taxonomy, seven_axes
from structures.spec import Spec
from structures.structure import Structure

SMALL, LARGE = 2**12, 2**20  # powers of 16: halves and quarters of the exponent are whole sizes

# name, options, (omega, psi, nu) by hand
ENTRIES: list[tuple[str, dict[str, object], tuple[float, float, float]]] = [
    ("dense", {}, (0, 1, 1)),
    ("block_diagonal", {"n_blocks": 8}, (0, 1, 1)),
    ("dyad_it", {}, (0, 1, 1)),
    ("dyad_dt", {"n_blocks": 16}, (0, 1, 1)),
    ("low_rank", {}, (0, 1, 1)),  # the rank follows the width
    ("low_rank", {"rank": 8}, (0, 0, 0)),
    ("monarch", {}, (0, 1, 1)),
    ("btt", {}, (0, 1, 0.5)),
    ("btt", {"rank": 4}, (0, 1, 0.5)),
    ("kronecker", {}, (0.5, 1, 0.5)),
    ("tensor_train", {"cores": 2, "rank": 8}, (0.5, 1, 0.5)),
    ("tensor_train", {"cores": 4, "rank": 8}, (0.75, 1, 0.25)),
    ("kronecker_sparse", {}, (0, 1, 1)),
    ("blast", {"n_blocks": 4, "rank": 16}, (0, 0, 0)),
    ("pixelfly", {}, (0, 1, 1)),
    ("pixelfly", {"rank": 0}, (0, 1, 1)),
]

# entries whose largest counts outweigh the others at these widths with a small rank alone
OUTWEIGHED: dict[str, dict[str, object]] = {"lokr": {"rank": 1}, "tucker": {"rank": 2}}

# "previously failed"-style traps: sizes that are no power of the width
NO_POWER = [
    {"r": "in_features - out_features + 4"},
    {"r": "in_features % 7 + 1"},
    {"r": "digits(in_features, 2)"},
    {"r": "2 ** digits(in_features, 2)"},
]


def placed(name: str, width: int, options: dict[str, object] | None = None) -> Taxonomy:
    found = structures.get(name).bind(width, width, **(options or {})).taxonomy
    assert found is not None
    return found


def exponents(found: Taxonomy | None) -> tuple[float, float, float]:
    assert found is not None
    return found.omega, found.psi, found.nu


def counted(small: Structure, large: Structure) -> tuple[float, float, float]:
    """The exponents that the counts of two widths show, the rank from above."""
    grown = math.log(large.in_features / small.in_features)

    def slope(a: float, b: float) -> float:
        return math.log(b / a) / grown

    flops = slope(small.flops(), large.flops())
    ranks = slope(rank.rank_bounds(small)[1], rank.rank_bounds(large)[1])
    return flops - slope(small.params, large.params), ranks, flops - 1


@pytest.mark.parametrize("name, theta, omega, psi, nu", TAXONOMY)
def test_the_published_points_stand_where_the_reference_says(
    name: str, theta: tuple[float, ...], omega: float, psi: float, nu: float
) -> None:
    assert seven_axes(theta) == pytest.approx((omega, psi, nu), abs=0.011)
    found = placed("einsum", 4096, {"theta": theta})
    assert exponents(found) == pytest.approx(seven_axes(theta), abs=1e-9) and found.how == "closed form"
    assert not found.psi_bound


def test_another_reading_of_theta_is_told_apart() -> None:
    """alpha and gamma of the input swapped, as its view is written."""
    read = [seven_axes((theta[2], theta[1], theta[0], *theta[3:])) for _, theta, *_ in TAXONOMY]
    published = [tuple(own) for _, _, *own in TAXONOMY]
    assert sum(found != pytest.approx(own, abs=0.05) for found, own in zip(read, published, strict=True)) > 10


@pytest.mark.parametrize("name, options, wanted", ENTRIES)
def test_entries_stand_where_their_formulas_say(
    name: str, options: dict[str, object], wanted: tuple[float, float, float]
) -> None:
    for width in (256, 1024, 768):
        assert exponents(placed(name, width, options)) == pytest.approx(wanted, abs=1e-6)


def test_every_entry_is_placed_as_its_counts_grow() -> None:
    for name in structures.names():
        spec, options = structures.get(name), OUTWEIGHED.get(name, {})
        small = spec.bind(SMALL, SMALL, **options)
        large = LARGE if not small.constants else MAX_PASSED  # as far as a Hadamard matrix is run by its factors
        slopes = counted(small, spec.bind(large, large, **options))
        assert exponents(placed(name, SMALL, options)) == pytest.approx(slopes, abs=0.035), name


def test_random_members_of_the_space_are_placed_as_their_counts_grow() -> None:
    dice, spec = random.Random(0), structures.get("einsum")
    for _ in range(40):
        inner, outer = ([dice.randint(0, 4) for _ in range(3)] for _ in range(2))
        if not sum(inner) or not sum(outer):
            continue
        theta = [n / sum(inner) for n in inner] + [n / sum(outer) for n in outer] + [dice.choice([0, 0.25, 0.5])]
        small, large = (spec.bind(width, width, theta=theta) for width in (2**12, 2**24))  # 12: thirds, quarters too
        assert exponents(small.taxonomy) == pytest.approx(counted(small, large), abs=0.09), theta
        assert exponents(small.taxonomy) == pytest.approx(seven_axes(theta), abs=1e-6)


def test_the_rank_grows_as_the_exponent_says() -> None:
    for name, theta, *_ in TAXONOMY:
        structure = structures.get("einsum").bind(256, 256, theta=theta)
        rank = structure.rank
        assert rank is not None
        realised = seven_axes([structure.exponents[axis] for axis in "abgdefr"])[1]
        assert 0.5 < rank / 256**realised < 1.01, name


def test_a_butterfly_is_fitted_and_its_logarithm_shows() -> None:
    found = placed("butterfly", 1024)
    assert found.how == "fitted over widths of 1024 to 1048576"
    assert (found.omega, found.psi) == pytest.approx((0, 1), abs=1e-6)
    assert 0.05 < found.nu < 0.15


def test_a_rectangular_layer_grows_like_a_square_one() -> None:
    for name in ("btt", "kronecker", "low_rank", "pixelfly"):
        found = structures.get(name).bind(768, 3072).taxonomy
        assert exponents(found) == pytest.approx(exponents(placed(name, 1024)), abs=0.01)


@pytest.mark.parametrize("sizes", NO_POWER)
def test_a_size_that_is_no_power_of_the_width_is_fitted(sizes: dict[str, str]) -> None:
    spec = Spec(name="odd", einsum="x, x r, r y -> y", sizes=sizes)  # type: ignore[arg-type]
    structure = spec.bind(64, 64)
    assert axis_powers(structure) is None
    assert structure.taxonomy is None or structure.taxonomy.how.startswith("fitted over widths of 64")


def test_an_entry_that_fits_few_widths_is_not_placed() -> None:
    spec = Spec(name="odd", einsum="x, x r, r y -> y", sizes={"r": "64 / (in_features % 129)"})  # type: ignore[arg-type]
    structure = spec.bind(64, 64)
    assert structure.taxonomy is None
    assert "unknown: too few widths" in str(structure)


def test_a_sum_takes_the_most_of_its_terms() -> None:
    spec = Spec(
        name="two",
        einsum=["(b a), d a, e b -> (e d)", "x, x r, r y -> y"],  # type: ignore[arg-type]
        sizes={"b a": "split(in_features, 2)", "e d": "split(out_features, 2)", "r": "8"},  # type: ignore[arg-type]
    )
    assert exponents(spec.bind(4096, 4096).taxonomy) == pytest.approx((0.5, 1, 0.5))


def test_show_says_where_a_structure_stands_and_between_what_its_rank_lies() -> None:
    page = str(structures.get("btt").bind(1024, 1024))
    lines = page[page.index("as the width grows") :].splitlines()
    assert lines[0] == "as the width grows: closed form"
    assert [line.split()[2] for line in lines[1:]] == ["0.00", "1.00", "0.50"]
    unknown = str(structures.get("butterfly").bind(4096, 11008))
    lower, upper = rank.rank_bounds(structures.get("butterfly").bind(4096, 11008))
    assert f"{lower:,} to {upper:,}" in unknown
