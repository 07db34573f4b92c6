"""What the sweep's options ask for: entries, shapes, tokens and so on, checked; and what is swept without any."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structures
from bench.files.errors import UsageError, one_of
from bench.files.options import Budget, budgets, dtype, numbers, some_of, words
from bench.files.vocabulary import CLOCKS, DEVICES, DTYPES, MODES
from bench.sweep import shapes
from bench.sweep.shapes import Shape
from structures import backends, registry
from structures.language.entry import PAD
from structures.language.words import value

# The options that say what is measured and how: a run that goes on with another one, or repeats a part, has the same.
MEASURED = ("structures", "widths", "shapes", "tokens", "dtypes", "device", "clock", "mode", "backend", "threads",
            "registry", "budget", "no_controls", "cold", "allocator", "full", "shard",
            "benchmark_precision", "benchmark_confidence")  # fmt: skip
MAX_TOKENS = 2**20

SQUARES = tuple((n, n) for n in (256, 512, 1024, 2048))
OPT = shapes.NAMED["opt-125m"]


@dataclass(frozen=True)
class Wanted:
    """A structure asked for: with options of the user's own, or, where they are None, at budgets."""

    name: str
    options: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Block:
    """Points that are a whole product of these lists."""

    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    modes: tuple[str, ...] = MODES
    budgets: tuple[Budget, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    backends: tuple[str, ...] = (backends.AUTO,)
    controls: bool = True  # rows of dense's candidates and of the narrowed dense layer


@dataclass(frozen=True)
class Request:
    """A whole sweep: blocks, and what all of them share."""

    entries: tuple[Wanted, ...]
    blocks: tuple[Block, ...]
    threads: tuple[int, ...] = (1,)
    clocks: tuple[str, ...] = CLOCKS  # on CUDA; a CPU has the host's alone
    controls: bool = True
    affordable: bool = True  # leave out budgets that an entry meets only with more FLOPs, or parameters, than dense
    full: bool = False
    cold: bool = False
    check: bool = False  # outputs and gradients alone, no times


HALF, QUARTER, EIGHTH = (Budget("params", share) for share in (0.5, 0.25, 0.125))

# About two minutes on two cores: every entry at a quarter of dense's parameters over widths, tokens, both modes and a
# real model's layers; the other budgets at the widths where structures pay.
DEFAULT = (
    Block(SQUARES, (128,), MODES, (QUARTER,)),
    Block(SQUARES[2:], (128,), MODES, (HALF, EIGHTH)),
    Block(OPT, (128,), MODES, (QUARTER,)),
    Block(SQUARES[:3], (1,), ("forward",), (QUARTER,)),
    Block(SQUARES[1:3], (512,), ("train",), (QUARTER,)),
)
OTHERS = ("bmm", "einsum")
# Beside it where nothing is narrowed down: from which width on bfloat16 pays, and the backends that `auto` passes over.
BESIDE = (
    Block(SQUARES[1:], (128,), MODES, (QUARTER,), ("bfloat16",), controls=False),
    Block(SQUARES[2:3], (128,), MODES, (QUARTER,), backends=OTHERS),
)
WIDE = tuple((n, n) for n in (512, 1024, 2048, 4096, 8192))
DEFAULT_CUDA = (
    Block(WIDE, (128, 4096), MODES, (QUARTER,), ("float32", "bfloat16"), ("cuda",)),
    Block(WIDE[1:4], (4096,), MODES, (HALF, EIGHTH), ("bfloat16",), ("cuda",)),
    Block(WIDE[2:3], (4096,), MODES, (QUARTER,), ("float32", "bfloat16"), ("cuda",), OTHERS),
)
FULL = (
    Block(
        (*SQUARES, (4096, 4096), *OPT, *shapes.NAMED["opt-1.3b"]),
        (1, 16, 128, 1024, 4096),
        MODES,
        (HALF, QUARTER, EIGHTH),
        ("float32", "bfloat16"),
    ),
)


def read(options: Mapping[str, Any], *, cuda: bool, cores: int) -> Request:
    """The request that the command line makes.

    Args:
        options: its values by name, as text or None, without the dashes.
        cuda: there is a CUDA device.
        cores: physical cores of this process.
    Raises:
        UsageError: a value that is not allowed.
    """
    register(options.get("registry"))
    given = _given(options, cuda)
    full = bool(options.get("full"))
    blocks: tuple[Block, ...] = FULL if full else DEFAULT
    if not given and not full:
        blocks += BESIDE
    if cuda:
        short = DEFAULT_CUDA if set(given) <= {"devices"} else DEFAULT_CUDA[:1]
        blocks += tuple(replace(b, devices=("cuda",)) for b in FULL) if full else short
    if "devices" in given:
        blocks = tuple(b for b in blocks if b.devices[0] in given["devices"]) or blocks
    named = options.get("structures")
    return Request(
        entries=entries(named) if named else tuple(Wanted(name) for name in in_order(default_names())),
        blocks=tuple(dict.fromkeys(replace(block, **given) for block in blocks)),
        clocks=some_of("--clock", options.get("clock"), CLOCKS) or ((CLOCKS[0],) if options.get("check") else CLOCKS),
        threads=numbers("--threads", options.get("threads"), cores) or (cores,),
        controls=not options.get("no_controls"),
        affordable=not named and not options.get("budget"),
        full=full,
        cold=bool(options.get("cold")),
        check=bool(options.get("check")),
    )


def register(files: Sequence[str] | None) -> None:
    """Load the registry files of a command, so that their entries are known by name.

    Raises:
        UsageError: one cannot be read.
    """
    for file in files or ():
        try:
            structures.load(file)
        except ValueError as error:
            raise UsageError(f"--registry: {error}") from None


def default_names() -> list[str]:
    """All entries but the variants of built-in ones: those of a user's own file are all taken."""
    return [name for name in structures.names() if not structures.get(name).variant_of or not registry.is_builtin(name)]


def in_order(names: Sequence[str]) -> list[str]:
    """DYAD first, then the others by name."""
    return sorted(names, key=lambda name: (not name.startswith("dyad"), name))


def entries(text: str) -> tuple[Wanted, ...]:
    """`"dyad_it:n_blocks=2,4,8 monarch"` -> three entries with options and one without; `all`: every one.

    An option has one value or several, `pixelfly:n_blocks=16,32,rank=8` is two entries; lists stand in brackets.
    Raises:
        UsageError: no such structure, no such option, or a value that is no number.
    """
    if text.strip().lower() == "all":
        return tuple(Wanted(name) for name in in_order(structures.names()))
    found: list[Wanted] = []
    for word in entry_words(text):
        name, colon, rest = word.partition(":")
        name = one_of("--structures", name, structures.names())
        values = _option_values(name, rest) if colon else {}
        combinations = itertools.product(*values.values()) if values else ()
        found += [Wanted(name, dict(zip(values, one, strict=True))) for one in combinations] or [Wanted(name)]
    return tuple(entry for i, entry in enumerate(found) if entry not in found[:i])


def entry_words(text: str) -> list[str]:
    """`monarch,dyad_it n_blocks=2,4` -> `monarch`, `dyad_it:n_blocks=2,4`: what is no option and no value is a name.

    Raises:
        UsageError: none is named.
    """
    found: list[str] = []
    for piece in _pieces(text):
        if found and ("=" in piece or not isinstance(value(piece), str)):
            found[-1] += ("," if ":" in found[-1] else ":") + piece
        else:
            found.append(piece)
    if not found:
        raise UsageError(f"--structures: name some of {', '.join(structures.names())}")
    return found


def options_text(options: Mapping[str, object] | Sequence[tuple[str, object]]) -> str:
    """`n_blocks=4,rank=8`, as `entries` reads it."""
    pairs = options.items() if isinstance(options, Mapping) else options
    return ",".join(f"{name}={_value_text(value)}" for name, value in pairs)


def read_options(text: str) -> dict[str, object]:
    """The options that `options_text` wrote."""
    found: dict[str, object] = {}
    for piece in _pieces(text):
        name, _, text = piece.partition("=")
        found[name] = _value(name, text)
    return found


def _given(options: Mapping[str, Any], cuda: bool) -> dict[str, Any]:
    """The dimensions of a block that the command line sets."""
    given: dict[str, Any] = {}
    if options.get("widths") or options.get("shapes"):
        both = shapes.widths(options.get("widths") or "") + shapes.parse(options.get("shapes") or "")
        given["shapes"] = tuple(dict.fromkeys(both))
    given["tokens"] = numbers("--tokens", options.get("tokens"), MAX_TOKENS)
    given["dtypes"] = tuple(dict.fromkeys(dtype("--dtypes", word) for word in words(options.get("dtypes"))))
    allowed = {"device": DEVICES, "mode": MODES, "backend": (backends.AUTO, *backends.names())}
    for option, field in (("device", "devices"), ("mode", "modes"), ("backend", "backends")):
        given[field] = some_of(f"--{option}", options.get(option), allowed[option])
    if options.get("budget"):
        given["budgets"] = budgets(options["budget"])
    if "cuda" in given["devices"] and not cuda:
        raise UsageError("--device: there is no CUDA device here. Allowed: cpu")
    return {key: value for key, value in given.items() if value or key == "budgets"}


def _option_values(name: str, text: str) -> dict[str, list[object]]:
    known = [option for option, _ in structures.get(name).options]
    values: dict[str, list[object]] = {}
    option = ""
    for piece in _pieces(text):
        left, equals, right = piece.partition("=")
        if equals:
            if not known and left != PAD:
                raise UsageError(f"--structures: {name} has no options but {PAD}, found {piece!r}")
            option = left if left == PAD else one_of(f"--structures: option of {name}", left, known)
        if not option:
            raise UsageError(f"--structures: {name}: {piece!r} names no option. Allowed: {', '.join(known) or 'none'}")
        values.setdefault(option, []).append(_value(option, right if equals else left))
    return values


def _pieces(text: str) -> list[str]:
    """Split at commas, blanks and colons outside brackets."""
    return [piece for piece in re.split(r"[,:\s]+(?![^\[]*\])", text) if piece]


def _value(option: str, text: str) -> object:
    found = value(text)
    if isinstance(found, str) or isinstance(found, bool) != (option == PAD):
        what = "true or false" if option == PAD else "a number"
        raise UsageError(f"--structures: {option}={text!r} is not {what}")
    return found


def _value_text(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def add_options(group: Any) -> None:
    """Declare the options on pytest's parser group."""
    add = group.addoption
    named = 'entries, with options or without: "dyad_it:n_blocks=2,4,8 monarch"'
    add("--structures", "--structure", metavar="WORDS", help=named)
    add("--widths", metavar="N,...", help="square layers: 256,512")
    add("--shapes", metavar="INxOUT,NAME,...", help=f"768x3072, or layers of {', '.join(shapes.NAMED)}")
    add("--tokens", metavar="N,...", help="rows of the input: 1,128,1024")
    add("--dtypes", "--dtype", metavar="WORDS", help=f"{', '.join(DTYPES)}; fp32, bf16")
    add("--device", metavar="WORDS", help=", ".join(DEVICES))
    add("--mode", metavar="WORDS", help=", ".join(MODES))
    add("--backend", metavar="WORDS", help=", ".join((backends.AUTO, *backends.names())))
    add("--threads", metavar="N,...", help="threads; by default one on each physical core")
    add("--registry", metavar="FILE", action="append", default=[], help="a YAML file with more entries")
    add("--budget", metavar="SHARES", help="bring entries to shares of dense: params=0.5,25%% or flops=0.5; none")
    add("--no-controls", action="store_true", help="leave out dense's candidates and the narrowed dense layer")
    add("--cold", action="store_true", help="rotate copies of the weights beyond the last-level cache")
    add("--allocator", default="tuned", metavar="WORD", help="tuned: keep large tensors on the heap; plain")
    add("--full", action="store_true", help="the long sweep: more widths, tokens and dtypes, more rounds")
    add("--list", action="store_true", help="print the points, their number and about how long they take; run nothing")
    add("--check", action="store_true", help="check outputs and gradients of every point, time nothing")
    add("--clock", metavar="WORDS", help=f"of CUDA points: {', '.join(CLOCKS)}")
    add("--shard", metavar="K/N", help="only part K of N of the sweep; python -m bench merge joins them")
    add("--time-budget", metavar="TIME", help="end in time, with whole curves: 90s, 10m, 1h")
    add("--point-timeout", metavar="TIME", help="give up a point after so long: 30s")
    add("--resume", metavar="FILE", help="go on with the unfinished run that writes this results file")
    add("--overwrite", action="store_true", help="replace the results file if it exists")
    add("--rerun-flagged", metavar="FILE", help="measure again, for longer, only the flagged points of a results file")
