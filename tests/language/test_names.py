"""Names are ASCII, in one place; expressions are parsed before anything asks what they read. All previously failed."""

from __future__ import annotations

import pytest

import structures
from structures.language.expressions import ExpressionError, is_name, parse
from structures.spec import SizeError, Spec, SpecError

LIGATURE = "a\ufb01"  # Python's parser makes `afi` of it; an einsum does not
DIGIT = "\u0663"  # Arabic three, which `\\d` and `\\w` take

REFUSED = [
    ({"einsum": f"({LIGATURE} afi), afi y -> y", "sizes": {"afi": 4}}, "unexpected '\ufb01'"),
    ({"einsum": "x, x r, r y -> y", "sizes": {LIGATURE: 2, "afi": 4, "r": LIGATURE}}, "'\ufb01' is no ASCII character"),
    ({"einsum": "x, x r, r y -> y", "sizes": {LIGATURE: 2, "r": "2"}}, "an axis cannot be called"),
    ({"einsum": "x, x r, r y -> y", "sizes": {"r": "2"}, "options": {LIGATURE: 2}}, "an option cannot be called"),
    ({"einsum": f"x, x r{DIGIT}, r{DIGIT} y -> y"}, f"unexpected '{DIGIT}'"),
    ({"einsum": f"x, x r[{DIGIT}], r y -> y", "sizes": {"r": "2"}}, f"'{DIGIT}' is no ASCII character"),
    ({"einsum": "x, x r, r y -> y", "sizes": {"r": DIGIT}}, "is no ASCII character"),
    ({"name": LIGATURE, "einsum": "x, x y -> y"}, "is not a name; write ASCII letters"),
    # found by division, indexed in a factor
    ({"einsum": "(n i), n i[0] i o -> (n o)", "sizes": {"n": "2"}}, "axis 'i' is indexed and needs a size"),
]


@pytest.mark.parametrize(("entry", "words"), REFUSED)
def test_a_name_that_is_not_ascii_or_an_index_without_size_is_refused(entry, words):
    with pytest.raises(SpecError) as caught:
        Spec(**{"name": "m", **entry})
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["r", "_", "in_features", "r2"])
def test_a_name_is_ascii_letters_digits_and_underscores(text):
    assert is_name(text) and parse(text)


@pytest.mark.parametrize("text", ["", "2r", "r r", LIGATURE, f"r{DIGIT}", "r\n", "é"])
def test_what_is_no_name_is_no_name(text):
    assert not is_name(text)


def test_an_expression_points_at_what_is_not_ascii():
    with pytest.raises(ExpressionError, match="ASCII") as caught:
        parse(f"2 * {LIGATURE}")
    assert caught.value.offset == 5


GATED = """m:
  sizes: {{x: 4, e: 2}}
  gate: {{axis: e, experts_active: {active}}}
  index: {{x: "{index}"}}
  einsum: (x i), e x i y -> y
"""


@pytest.mark.parametrize("index", ["~1", "1e308", "\u0663", "(" * 21 + "1" + ")" * 21 + "(", "e +"])
def test_an_index_of_an_entry_with_a_gate_is_an_error_with_its_place(index, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(GATED.format(active=1, index=index), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        structures.load(file)
    assert str(caught.value).startswith(f"{file}:4:")


def test_no_axis_is_larger_than_the_largest_width():
    entry = Spec("wide", "x, x r, r y -> y", options={"p": 7}, sizes={"r": "in_features**p"})
    with pytest.raises(SizeError, match="wide: axis r = 268435456 is larger than 16777216, the largest width"):
        entry.bind(16, 16)


def test_a_factor_too_large_to_analyse_is_printed_without_it():
    entry = Spec("wide", "x, x r s, r s y -> y", sizes={"r": "2**12", "s": "2**12"})
    made = entry.bind(8, 8)
    assert made.params == 2**28
    assert made.degrees_of_freedom is None
    assert "degrees of freedom        too large" in str(made)
