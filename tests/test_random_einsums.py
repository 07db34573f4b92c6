"""Random sums of einsum terms against numpy, on the reference and on every backend; random damage to the registry."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from structures import backends, exactness, reference, registry
from structures.algebra import rank
from structures.algebra.links import joined
from structures.spec import Spec, SpecError
from structures.structure import Structure

Array = NDArray[np.float64]

LETTERS = "abcdefghijklmnopqrsuvwxyz"  # all but t, which counts repeated factors; capital letters stay for the tokens
WIDTHS = (1, 2, 3, 4, 6, 8, 12)
TOKENS = 3
# what a user may see written in a registry file, right and wrong, put in anywhere by the test of damaged files
TOKENS_OF_YAML = (
    ":", ": ", ",", "{", "}", "[", "]", "- ", "\n", "\n  ", "  ", "\t", "'", '"', "#", "&a ", "*a", "!", "!!int ",
    "|", ">", "%", "@", "`", "?", "? ", "---\n", "...\n", "<<", "null", "~", "yes", "on", "1:8", "2024-01-01", "0",
    "-1", "1e9", "0x10", "010", ".inf", "9**9**9", "in_features", "out_features", "split(", "min(", ")", "(", "->",
    "i[:]", "r[t+1]", "t", "b", "\x00", "\ufeff", "\ud7ff", "é", "\\U00110000", "\\UFFFFFFFF", "99999999999999999999",
    "9" * 400, "einsum:", "sizes: {r: 0}", "index: {n: i}",
)  # fmt: skip
DAMAGE = ("delete", "double", "swap", "insert", "flip", "cut")

COMMON = settings(
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Entry:
    """A random entry, as plain data: nothing here is read back from the package."""

    terms: tuple[tuple[str, tuple[str, ...], str], ...]  # letters of input, factors and output
    size: tuple[tuple[str, int], ...]
    inferred: str  # letters whose size is left out of the entry
    in_features: int
    out_features: int

    @property
    def einsum(self) -> list[str]:
        return [", ".join((view(i), *map(" ".join, f))) + f" -> {view(o)}" for i, f, o in self.terms]

    def spec(self) -> Spec:
        sizes = {letter: n for letter, n in self.size if letter not in self.inferred}
        return Spec("random", einsum=self.einsum, sizes=sizes)  # type: ignore[arg-type]


def view(letters: str) -> str:
    return letters if len(letters) == 1 else f"({' '.join(letters)})"


def factorisations(n: int) -> list[tuple[int, ...]]:
    """Ways to write n as up to three factors of at most 4, in order; the width itself as one factor of any size."""
    sizes = (1, 2, 3, 4)
    ways = [(n,), *((a, b) for a in sizes for b in sizes), *((a, b, c) for a in sizes for b in sizes for c in sizes)]
    return [way for way in dict.fromkeys(ways) if np.prod(way) == n]


@st.composite
def entries(draw: st.DrawFn, widths: tuple[int, int] | None = None, most: int = 3) -> Entry:
    widths = widths or (draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS)))
    size: dict[str, int] = {}

    def letter(n: int, taken: Sequence[str]) -> str:
        """An old letter of this size, or a new one."""
        old = [name for name, m in size.items() if m == n and name not in taken]
        if old and draw(st.booleans()):
            return draw(st.sampled_from(old))
        new = LETTERS[len(size)]
        size[new] = n
        return new

    terms = []
    for _ in range(draw(st.integers(1, most))):
        views = []
        for width in widths:
            axes: list[str] = []
            for n in draw(st.sampled_from(factorisations(width))):
                axes.append(letter(n, axes))
            views.append("".join(draw(st.permutations(axes))))
        pool = list(dict.fromkeys("".join(views)))
        for n in draw(st.lists(st.integers(1, 4), max_size=2)):
            pool.append(letter(n, pool))
        factors = draw(st.lists(st.lists(st.sampled_from(pool), min_size=1, max_size=4, unique=True), max_size=4))
        for name in pool:  # whatever stands in one operand alone is put into a factor that lacks it
            uses = sum(name in operand for operand in (*views, *factors))
            if uses == 1:
                lacking = [f for f in factors if name not in f]
                if not lacking:
                    factors.append([])
                    lacking = factors[-1:]
                draw(st.sampled_from(lacking)).append(name)
        if draw(st.integers(0, 3)) == 0 and factors:
            factors.append(list(draw(st.sampled_from(factors))))
        terms.append((views[0], tuple("".join(f) for f in factors), views[1]))
    # one size of a view may be left out where every term that has the letter has it in a view
    free = [a for a in size if all(a not in i + o + "".join(f) or a in i or a in o for i, f, o in terms)]
    inferred = draw(st.sampled_from(free)) if free and draw(st.booleans()) else ""
    used = {a: n for a, n in size.items() if any(a in i + o + "".join(f) for i, f, o in terms)}
    return Entry(tuple(terms), tuple(used.items()), inferred if inferred in used else "", *widths)


def by_numpy(entry: Entry, x: Array, factors: Sequence[Array]) -> Array:
    """y from x: each whole term in one np.einsum, from the letters alone."""
    size = dict(entry.size)
    y = np.zeros((len(x), entry.out_features))
    rest = list(factors)
    for read, letters, written in entry.terms:
        here, rest = rest[: len(letters)], rest[len(letters) :]
        equation = f"Z{read},{','.join(letters)}->Z{written}" if letters else f"Z{read}->Z{written}"
        y += np.einsum(equation, x.reshape(-1, *(size[a] for a in read)), *here).reshape(y.shape)
    return y


def draw_numbers(shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    rng = np.random.default_rng(len(shapes))
    return [rng.standard_normal(shape) for shape in shapes]


def value_and_gradients(name: str, structure: Structure, x: Array, factors: Sequence[Array], dy: Array) -> list[Array]:
    """y and the gradients of x and of every factor, by the backend of this name or by the reference."""
    inputs = [torch.from_numpy(a).requires_grad_() for a in (x, *factors)]
    if name == "reference":
        y = reference.apply(structure, inputs[0], inputs[1:])
    else:
        y = backends.apply(name, structure, inputs[0], inputs[1:], None)
    gradients = torch.autograd.grad(y, inputs, torch.from_numpy(dy), allow_unused=True, materialize_grads=True)
    return [y.detach().numpy(), *(g.numpy() for g in gradients)]


def limits(
    structure: Structure, x: Array, factors: Sequence[Array], dy: Array | None, exact: Sequence[Array]
) -> list[float]:
    """How far y, and with `dy` the gradients of x and of every factor, may be off, by the error rule; in its norm."""
    operands = [torch.from_numpy(f) for f in factors]
    results = [torch.from_numpy(np.ascontiguousarray(e)) for e in exact]
    bias = torch.zeros(structure.widths[1], dtype=torch.float64)
    over = None if dy is None else torch.from_numpy(dy)
    results += [] if over is None else [over.sum(0)]
    found = exactness.deviations(structure, torch.from_numpy(x), [*operands, bias], over, results, torch.float64)
    return [float(d.norm()) for d in found[: len(exact)]]


def apart(found: Array, wanted: Array) -> float:
    return norm(found - wanted)


def norm(array: Array) -> float:
    return float(np.linalg.norm(array))


def check(entry: Entry) -> None:
    structure = entry.spec().bind(entry.in_features, entry.out_features)
    size = dict(entry.size)
    wanted_shapes = tuple(tuple(size[a] for a in f) for _, factors, _ in entry.terms for f in factors)
    assert structure.factor_shapes == wanted_shapes
    assert structure.params == sum(int(np.prod(s)) for s in wanted_shapes)
    x, dy, *factors = draw_numbers([(TOKENS, entry.in_features), (TOKENS, entry.out_features), *wanted_shapes])
    wanted = by_numpy(entry, x, factors)
    dense = by_numpy(entry, np.eye(entry.in_features), factors).T
    (most_of_dense,) = limits(structure, np.eye(entry.in_features), factors, None, [dense.T])
    assert apart(rank.dense(structure, factors), dense) <= most_of_dense
    assert rank.support(structure)[np.abs(dense) > 0].all()
    y, dx, *gradients = value_and_gradients("reference", structure, x, factors, dy)
    most = limits(structure, x, factors, dy, [y, dx, *gradients])
    assert apart(y, wanted) <= most[0]
    assert apart(dx, dy @ dense) <= most[1] + norm(dy) * most_of_dense
    for gradient, factor, limit, position in zip(gradients, factors, most[2:], range(len(factors)), strict=True):
        # y is linear in each factor: <gradient, factor> = <dy, its terms' y>, and errors are at most the norms' product
        moved = by_numpy(entry, x, [f * 2 if i == position else f for i, f in enumerate(factors)])
        change = norm(dy) * most[0] * (2 + 1)  # of y at twice the factor, and of y
        assert abs(np.sum(gradient * factor) - np.sum(dy * (moved - wanted))) <= limit * norm(factor) + change
    for name in backends.names():
        if backends.get(name).refuses(structure, torch.from_numpy(x)) is None:
            found = value_and_gradients(name, structure, x, factors, dy)
            for ours, theirs, limit in zip(found, (y, dx, *gradients), most, strict=True):
                assert ours.shape == theirs.shape and apart(ours, theirs) <= limit, f"{name}: {entry.einsum}"


@settings(COMMON, max_examples=70)  # the planner takes 0.2 s for an entry it has not seen
@given(entries())
@example(Entry((("x", ("x",), "x"),), (("x", 1),), "", 1, 1))  # previously failed: the reference at widths of one
@example(Entry((("ab", ("ab", "ab"), "ba"), ("c", (), "c")), (("a", 2), ("b", 3), ("c", 6)), "c", 6, 6))
def test_any_sum_of_einsum_terms_is_what_numpy_says(entry: Entry) -> None:
    check(entry)


# -- chains of links


@dataclass(frozen=True)
class RandomChain:
    """Links of one term each, joined by `;`; a link's letters are those of its Entry with its number behind."""

    links: tuple[Entry, ...]

    def spec(self) -> Spec:
        """The widths between links are known before `;`, so that the view after it may leave one size open."""
        texts, sizes = [], {}
        for number, link in enumerate(self.links):
            (text,) = link.einsum
            texts.append(re.sub(r"[a-z]", lambda letter, n=number: f"{letter[0]}{n}x", text))
            open_letter = link.inferred if link.inferred in (link.terms[0][0] if number else "") else ""
            sizes |= {f"{a}{number}x": str(n) for a, n in link.size if a not in open_letter or not open_letter}
        return Spec("chain", einsum="; ".join(texts), sizes=sizes)  # type: ignore[arg-type]


@st.composite
def chains(draw: st.DrawFn) -> RandomChain:
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=3, max_size=4))
    return RandomChain(tuple(draw(entries(pair, most=1)) for pair in itertools.pairwise(widths)))


def check_chain(chain: RandomChain) -> None:
    links = chain.links
    structure = chain.spec().bind(links[0].in_features, links[-1].out_features)
    shapes = [tuple(dict(link.size)[a] for a in f) for link in links for _, factors, _ in link.terms for f in factors]
    assert structure.factor_shapes == tuple(shapes)
    alone = [link.spec().bind(link.in_features, link.out_features) for link in links]
    assert structure.flops() == sum(link.flops() for link in alone)
    x, dy, *factors = draw_numbers([(TOKENS, structure.in_features), (TOKENS, structure.out_features), *shapes])

    def by_links(rows: Array, held: Sequence[Array]) -> Array:
        rest = list(held)
        for link in links:
            count = sum(len(f) for _, f, _ in link.terms)
            rows, rest = by_numpy(link, rows, rest[:count]), rest[count:]
        return rows

    wanted, dense = by_links(x, factors), by_links(np.eye(structure.in_features), factors).T
    scale = 1 + np.abs(wanted).max() + np.abs(dense).max()
    np.testing.assert_allclose(rank.dense(structure, factors), dense, atol=1e-10 * scale)
    assert rank.support(structure)[np.abs(dense) > 0].all()
    lower, upper = rank.rank_bounds(structure)
    assert lower <= rank.generic_rank(structure) <= upper  # type: ignore[operator]
    shorter = joined(structure)
    held = [f.reshape(s) for f, s in zip(factors, shorter.factor_shapes, strict=True)]
    np.testing.assert_allclose(rank.dense(shorter, held), dense, atol=1e-10 * scale)
    y, dx, *gradients = value_and_gradients("reference", structure, x, factors, dy)
    np.testing.assert_allclose(y, wanted, atol=1e-10 * scale)
    np.testing.assert_allclose(dx, dy @ dense, atol=1e-10 * scale)
    for name in backends.names():
        if backends.refusal(name, structure, torch.from_numpy(x)) is None:
            ours = value_and_gradients(name, structure, x, factors, dy)
            for mine, theirs in zip(ours, (y, dx, *gradients), strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-9 * scale, err_msg=f"{name}: {structure.spec.einsum}")
    assert str(structure).count("\n    ;") == len(links) - 1


@settings(COMMON, max_examples=50)
@given(chains())
def test_any_chain_of_links_is_what_numpy_says_of_one_link_after_another(chain: RandomChain) -> None:
    check_chain(chain)


def test_random_chains_are_joined_in_part() -> None:
    seen = set()

    @settings(COMMON, max_examples=60)
    @given(chains())
    def look(chain: RandomChain) -> None:
        structure = chain.spec().bind(chain.links[0].in_features, chain.links[-1].out_features)
        seen.add((len(chain.links), len(joined(structure).terms[0].chain)))

    look()
    assert {(2, 1), (2, 2), (3, 1), (3, 2)} <= seen


def test_random_entries_are_of_many_kinds() -> None:
    seen = set()

    @settings(COMMON, max_examples=120)
    @given(entries())
    def look(entry: Entry) -> None:
        seen.add(f"{len(entry.terms)} terms")
        seen.add("inferred" if entry.inferred else "all given")
        for i, factors, o in entry.terms:
            seen.add(f"{len(factors)} factors")
            seen.add("shared by input and output" if set(i) & set(o) else "not shared")
            seen.add("bond" if set("".join(factors)) - {*i, *o} else "no bond")
            if any((a in i) + (a in o) + sum(a in f for f in factors) > 2 for a in i + o + "".join(factors)):
                seen.add("three operands")

    look()
    assert {"1 terms", "2 terms", "3 terms", "inferred", "all given", "0 factors", "1 factors", "4 factors"} <= seen
    assert {"shared by input and output", "not shared", "bond", "no bond", "three operands"} <= seen


@pytest.mark.parametrize("fault", ["value", "gradient"])
def test_a_wrong_backend_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class UsageError:
        @staticmethod
        def refuses(structure: Structure, x: torch.Tensor) -> None:
            return None

        @staticmethod
        def apply(
            structure: Structure, x: torch.Tensor, factors: Sequence[torch.Tensor], bias: torch.Tensor | None
        ) -> torch.Tensor:
            if fault == "value":
                return reference.apply(structure, x, factors) + 1e-6
            return reference.apply(structure, x, [factors[0].detach(), *factors[1:]])

    monkeypatch.setitem(backends._BACKENDS, "wrong", UsageError)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="wrong: "):
        check(Entry((("x", ("xr", "ry"), "y"),), (("x", 4), ("r", 2), ("y", 3)), "", 4, 3))


# -- damaged registry files


def blocks() -> list[str]:
    """Each entry of the built-in registry as its own file."""
    text = (Path(registry._builtin()["dense"].file)).read_text(encoding="utf-8")
    return [block for block in re.split(r"\n(?=[a-z_]+:)", text) if re.match(r"[a-z_]+:", block)]


BLOCKS = blocks()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(BLOCKS))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(DAMAGE))
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(1, 30)))
        part = text[start:end]
        if kind == "delete":
            text = text[:start] + text[end:]
        elif kind == "double":
            text = text[:end] + part + text[end:]
        elif kind == "swap":
            lines = text.split("\n")
            i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
        elif kind == "insert":
            text = text[:start] + draw(st.sampled_from(TOKENS_OF_YAML)) + text[start:]
        elif kind == "cut":
            text = text[:start] if start > len(text) // 2 else text[start:]
    data = bytearray(text.encode())
    if kind == "flip" and data:
        at = draw(st.integers(0, len(data) - 1))
        data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def read_and_use(file: Path) -> str:
    """Read a file as a user would, bind what it holds, run what is small; `read`, `bound` or the kind of error."""
    try:
        specs = registry.read(file)
    except SpecError as error:
        assert str(error).startswith(str(file)), error
        assert re.match(r":\d+:\d+: |: ", str(error)[len(str(file)) :]), error
        return "refused"
    reached = "read"
    for spec in specs.values():
        try:
            structure = spec.bind(12, 24)
        except SpecError as error:
            assert str(error).startswith(str(file)), error
            continue
        reached = "bound"
        if structure.params > 20_000 or len(structure.size) > 40:
            continue
        if structure.gate is not None:
            continue  # no one matrix: test_experts.py
        x, *factors = draw_numbers([(2, 12), *structure.factor_shapes])
        tensors = [torch.from_numpy(f) for f in factors]
        wanted = x @ rank.dense(structure, factors)[:24, :12].T  # as asked for, where it is padded
        (most,) = limits(structure, x, factors, None, [wanted])
        assert apart(reference.apply(structure, torch.from_numpy(x), tensors).numpy(), wanted) <= most
        assert str(structure)
    return reached


@settings(COMMON, max_examples=400)
@given(data=damaged())
@example(data=b'm:\n  title: "\\UFFFFFFFF"\n  einsum: x, x y -> y\n')  # previously failed: OverflowError
@example(data=b"m:\n  options: {n: 1%s}\n  einsum: x, x y -> y\n" % (b"0" * 400))  # previously failed: OverflowError
@example(
    data=b"m:\n  sizes:\n    i: split(in_features, 2)\n    u: 2\n  index: {i: u}\n  einsum: (i[:]), u o -> (u o)\n"
)
def test_a_damaged_registry_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(data)
    assert read_and_use(file) in ("read", "bound", "refused")


def test_damage_leaves_some_files_whole_and_breaks_others(tmp_path: Path) -> None:
    ends = []

    @settings(COMMON, max_examples=60)
    @given(damaged())
    def look(data: bytes) -> None:
        file = tmp_path / "damaged.yaml"
        file.write_bytes(data)
        ends.append(read_and_use(file))

    look()
    assert ends.count("bound") > 5
    assert ends.count("refused") > 5


def test_an_error_of_another_kind_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("m:\n  einsum: x\n")
    assert read_and_use(file) == "refused"

    def fails(path: Path) -> dict[str, Spec]:
        raise SpecError("m: no place at all")

    monkeypatch.setattr(registry, "read", fails)
    with pytest.raises(AssertionError):
        read_and_use(file)


def test_every_entry_alone_is_whole(tmp_path: Path) -> None:
    assert len(BLOCKS) == len(registry._builtin())
    for block in BLOCKS:
        file = tmp_path / "one.yaml"
        file.write_text(block)
        assert read_and_use(file) in ("read", "bound")
