"""The einsum notation: what parses, where the mistakes are, and how indexed axes are written out."""

from typing import Any

import pytest

from structures.language import notation
from structures.language.notation import MAX_AXES, Expanded, NotationError, expand, parse_term

# term; the axes of its operands, in brackets what they are indexed by
PARSES: list[tuple[str, list[list[str]]]] = [
    ("x, x y -> y", [["x"], ["x", "y"], ["y"]]),
    ("x -> x", [["x"], ["x"]]),
    ("(x), x y -> (y)", [["x"], ["x", "y"], ["y"]]),
    ("(a b) -> (b a)", [["a", "b"], ["b", "a"]]),
    ("  ( a  b ),a b   c,c->c  ", [["a", "b"], ["a", "b", "c"], ["c"], ["c"]]),
    ("(a b),\n  a c,\n  b c -> (a c)\n", [["a", "b"], ["a", "c"], ["b", "c"], ["a", "c"]]),
    ("(in_1 B2), in_1 B2 o -> o", [["in_1", "B2"], ["in_1", "B2", "o"], ["o"]]),
    ("(i[:]), i[t] o[t] -> (o[:])", [["i[:]"], ["i[t]", "o[t]"], ["o[:]"]]),
    ("(i[:] p[0]), o[:t] p[t+1] i[t + 1:] -> (p[-1])", [["i[:]", "p[0]"], ["o[:t]", "p[t+1]", "i[t + 1:]"], ["p[-1]"]]),
    ("(i[1:2] i[0]), i[0] i[1] y -> y", [["i[1:2]", "i[0]"], ["i[0]", "i[1]", "y"], ["y"]]),
]

# term, characters before the mistake, words of the message
MISTAKES: list[tuple[str, int, tuple[str, ...]]] = [
    ("", 0, ("one '->', found 0",)),
    ("x, x y", 0, ("one '->', found 0",)),
    ("x -> y -> z", 7, ("one '->', found 2",)),
    (", x y -> y", 0, ("an operand is empty",)),
    ("x, -> y", 2, ("an operand is empty",)),
    ("x,, x y -> y", 2, ("an operand is empty",)),
    ("x, x y ->", 9, ("an operand is empty",)),
    ("-> y", 0, ("an operand is empty",)),
    ("() -> y", 0, ("an operand is empty",)),
    ("x, x ! -> y", 5, ("unexpected '!'",)),
    ("x, x y -> y!", 11, ("unexpected '!'",)),
    ("x, 2 y -> y", 3, ("unexpected '2'",)),
    ("x, x y-z -> y", 6, ("unexpected '-'",)),
    ("x, x y ... -> y", 7, ("unexpected '.'",)),
    ("x, x y; z -> y", 6, ("unexpected ';'",)),
    ("x, x y[ -> y", 6, ("unexpected '['",)),
    ("x, x y[[0]] -> y", 6, ("unexpected '['",)),
    ("a b, a b y -> y", 0, ("the input view has 2 axes and needs parentheses",)),
    ("x, x a b -> a b", 12, ("the output view has 2 axes and needs parentheses",)),
    ("x, (x y) -> y", 3, ("a factor is written without parentheses",)),
    ("(a b, a b y -> y", 0, ("a parenthesis is not closed",)),
    ("a b), a b y -> y", 3, ("one pair of parentheses",)),
    ("((a b)), a b y -> y", 1, ("one pair of parentheses",)),
    ("(a b) c, a b c y -> y", 4, ("one pair of parentheses",)),
    ("a (b c), a b c y -> y", 2, ("one pair of parentheses",)),
    ("(a b)(c), a b c y -> y", 4, ("one pair of parentheses",)),
    ("(a b a), a b y -> y", 1, ("'a' stands twice in one operand",)),
    ("x, x y x -> y", 3, ("'x' stands twice in one operand",)),
    ("(i[0] i[0]), i[0] y -> y", 1, ("'i' stands twice in one operand",)),
    ("t, t y -> y", 0, ("'t' counts repeated factors",)),
    ("x, x t -> t", 5, ("'t' counts repeated factors",)),
    ("(i[]), i[] y -> y", 1, ("axis 'i': index []",)),
    ("(i[::2]), i[0] y -> y", 1, ("axis 'i'", "no step")),
    ("(i[n]), i[n] y -> y", 1, ("axis 'i' is indexed by numbers and 't' alone", "[n]")),
    ("(i[:]), i[t+n] y -> y", 8, ("axis 'i' is indexed by numbers and 't' alone", "[t+n]")),
    ("(i[1+]), i[0] y -> y", 1, ("axis 'i': index [1+]",)),
    ("(i[t.real]), i[0] y -> y", 1, ("axis 'i'", "Attribute is not in the arithmetic")),
    ("x" * 2001, 0, ("at most 2000 characters, found 2001",)),
]

# term, lengths of its lists, input, factors, output
WRITTEN_OUT: list[tuple[str, dict[str, int], str, str, str]] = [
    ("x, x y -> y", {}, "x", "x y", "y"),
    ("(i[:]), i[t] o[t] -> (o[:])", {"i": 2, "o": 2}, "i0 i1", "i0 o0, i1 o1", "o0 o1"),
    ("(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])", {"i": 2, "o": 2}, "i0 i1", "r0 i0 o0 r1, r1 i1 o1 r2", "o0 o1"),
    (
        "(i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])",
        {"i": 2, "o": 2, "r": 3},
        "i0 i1",
        "r0 i0 o0 r1, r1 i1 o1 r2",
        "o0 o1",
    ),
    ("(i[:]), i[t] o[1-t] -> (o[:])", {"i": 2, "o": 2}, "i0 i1", "i0 o1, i1 o0", "o0 o1"),
    (
        "(i[:] p[0]), o[:t] i[t] p[t] o[t] p[t+1] i[t+1:] -> (o[:] p[-1])",
        {"i": 3, "o": 3},
        "i0 i1 i2 p0",
        "i0 p0 o0 p1 i1 i2, o0 i1 p1 o1 p2 i2, o0 o1 i2 p2 o2 p3",
        "o0 o1 o2 p3",
    ),
    ("(i[1:] i[0]), i[0] i[1] i[-1] y -> y", {"i": 3}, "i1 i2 i0", "i0 i1 i2 y", "y"),
    ("x, x r[3], r[3] y -> y", {}, "x", "x r3, r3 y", "y"),
    ("(i[:]), i[t] a, a y -> y", {"i": 1}, "i0", "i0 a, a y", "y"),
]

BAD_LENGTHS: list[tuple[str, dict[str, int], int, tuple[str, ...]]] = [
    ("i, a y -> y", {"i": 2}, 0, ("'i' is a list of 2 sizes", "i[:]")),
    ("x, x r[:] y -> y", {}, 5, ("'r' is sliced, but its size is not a list",)),
    ("(i[:]), i[5] y -> y", {"i": 2}, 8, ("'i': index 5 is outside its 2 positions",)),
    ("(i[:]), i[-3] y -> y", {"i": 2}, 8, ("'i': index -3 is outside its 2 positions",)),
    ("(i[:]), i[0] y -> i[t]", {"i": 2}, 18, ("axis 'i'", "'t'")),
    ("x, x r[t] -> r[0]", {}, 3, ("mentions 't'", "needs an axis whose size is a list")),
    ("(i[:]), i[t/2] y -> y", {"i": 2}, 8, ("axis 'i'", "not a whole number")),
    ("(i[:]), i[t] i[0] -> y", {"i": 2}, 8, ("stands twice in one operand once its indices are written out",)),
    ("(i[:] i[0]), i[0] y -> y", {"i": 2}, 0, ("stands twice in one operand once its indices",)),
    ("(i[:]), i[:] y -> y", {"i": MAX_AXES}, 0, ("more than 8000 axes",)),
    ("(i[:]), r[t] i[t] r[t+1] -> r[0]", {"i": 3 * MAX_AXES}, 0, ("more than 8000 axes",)),
    ("(i[:]), i[t] o[t] -> (o[:])", {"i": 2, "o": 3}, 8, ("lists of different lengths [2, 3]",)),
    ("(i[:]), r[t] i[t] r[t+1] -> r[0]", {"i": 3, "r": 3}, 8, ("lists of different lengths [2, 3]",)),
    ("(i[:]), i[:t] i[t] i[t+1:] -> y", {"i": 1000}, 0, ("more than 8000 axes",)),
]


def axes_of(term: str) -> list[list[str]]:
    return [
        [a.name if a.subscript is None else f"{a.name}[{a.subscript}]" for a in operand.axes]
        for operand in parse_term(term).operands
    ]


def plain(axes: tuple[tuple[str, int | None], ...]) -> str:
    return " ".join(name if position is None else f"{name}{position}" for name, position in axes)


def written(term: str, lengths: dict[str, int]) -> Expanded:
    return expand(parse_term(term), lengths)


@pytest.mark.parametrize(("term", "axes"), PARSES)
def test_a_term_has_an_input_view_factors_and_an_output_view(term: str, axes: list[list[str]]) -> None:
    assert axes_of(term) == axes
    pattern = parse_term(term)
    assert len(pattern.factors) == len(axes) - 2
    assert pattern.text == term


@pytest.mark.parametrize(("term", "_axes"), PARSES)
def test_every_axis_knows_where_it_stands(term: str, _axes: list[list[str]]) -> None:
    for operand in parse_term(term).operands:
        for axis in operand.axes:
            assert term[axis.offset :].startswith(axis.name)
        assert term[operand.offset] in (*"(", operand.axes[0].name[0])


@pytest.mark.parametrize(("term", "offset", "words"), MISTAKES)
def test_a_mistake_is_named_at_its_offset(term: str, offset: int, words: tuple[str, ...]) -> None:
    with pytest.raises(NotationError) as error:
        parse_term(term)
    assert [word for word in words if word not in str(error.value)] == []
    assert error.value.offset == offset


@pytest.mark.parametrize(("term", "lengths", "view", "factors", "output"), WRITTEN_OUT)
def test_indexed_axes_and_repeated_factors_are_written_out(
    term: str, lengths: dict[str, int], view: str, factors: str, output: str
) -> None:
    found = written(term, lengths)
    assert plain(found.input) == view
    assert ", ".join(map(plain, found.factors)) == factors
    assert plain(found.output) == output


def test_copies_of_one_factor_are_one_family() -> None:
    found = written("(i[:]), i[t] a o[t], a b, o[t] b -> b", {"i": 3, "o": 3})
    assert found.families == (0, 0, 0, 1, 2, 2, 2)


@pytest.mark.parametrize(("term", "lengths", "offset", "words"), BAD_LENGTHS)
def test_what_the_lists_do_not_allow_is_named_at_its_offset(
    term: str, lengths: dict[str, int], offset: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(NotationError) as error:
        written(term, lengths)
    assert [word for word in words if word not in str(error.value)] == []
    assert error.value.offset == offset


def test_a_term_that_is_too_long_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def count(*arguments: Any) -> Any:
        nonlocal made
        operand = original(*arguments)
        made += len(operand)
        return operand

    original = notation._expand_operand
    monkeypatch.setattr(notation, "_expand_operand", count)
    with pytest.raises(NotationError, match="more than 8000 axes"):
        written("(i[:]), i[:t] i[t] i[t+1:] -> y", {"i": 1000})  # a million axes
    assert made < 3 * MAX_AXES


def test_a_mistake_at_another_offset_or_none_at_all_is_noticed() -> None:
    with pytest.raises(AssertionError):
        test_a_mistake_is_named_at_its_offset("x, x ! -> y", 4, ("unexpected '!'",))
    with pytest.raises(AssertionError):
        test_a_mistake_is_named_at_its_offset("x, x ! -> y", 5, ("unexpected '?'",))
    with pytest.raises(pytest.fail.Exception):
        test_a_mistake_is_named_at_its_offset("x, x y -> y", 0, ())
