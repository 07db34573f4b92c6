"""Registry files: every bad entry has one clear error with its place, nothing in a file runs or hangs, and what `load`
and packages add."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

import structures
from structures import registry
from structures.registry import MAX_BYTES, RegistryError
from structures.spec import SizeError, SpecError

ROOT = Path(registry.__file__).parents[1]
GOOD = "mine:\n  einsum: x, x y -> y\n"
DENSE = "  einsum: x, x y -> y\n"
LOW_RANK = "  einsum: x, x r, r y -> y\n"
COMMA = "inside {...} a comma ends a value"

# what is wrong, the file, line:column of the error, words of its message
NOT_A_REGISTRY: list[tuple[str, str | bytes, str, tuple[str, ...]]] = [
    ("nothing", "", "1:1", ("file is empty", "mapping of names to entries")),
    ("only a comment", "# later\n", "1:1", ("file is empty",)),
    ("only a null", "null\n", "1:1", ("mapping of names to entries", "found 'null'")),
    ("a list", "- a\n- b\n", "1:1", ("mapping of names to entries", "found a list")),
    ("a word", "hello\n", "1:1", ("mapping of names to entries", "found 'hello'")),
    ("two documents", GOOD + "---\n" + GOOD, "3:1", ("not YAML", "another document")),
    ("a tab", "m:\n\teinsum: x\n", "2:1", ("not YAML", "'\\t'")),
    ("an open quote", "m: 'abc\n", "2:1", ("not YAML", "end of stream")),
    ("a colon too many", "a: b: c\n", "1:5", ("not YAML", "mapping values")),
    ("a picture", b"\x89PNG\r\n\x1a\n\x00\x00", "1:1", ("not a text file", "UTF-8")),
    ("latin-1", b"m:\n  title: caf\xe9\n", "2:13", ("not a text file", "UTF-8")),
    ("UTF-16 with a mark", GOOD.encode("utf-16"), "1:1", ("not a text file", "UTF-8")),
    ("UTF-16 without one", GOOD.encode("utf-16-le"), "1:2", ("not YAML", "special characters")),
    ("a NUL byte", b"m:\n  einsum: x\x00y\n", "2:12", ("not YAML", "special characters")),
    ("no such character", 'm:\n  title: "\\U00110000"\n', "2:", ("not YAML",)),
    ("no such number", 'm:\n  title: "\\UFFFFFFFF"\n', "2:", ("not YAML",)),
    ("half a character", 'm:\n  title: "\\uD800"\n' + DENSE, "2:10", ("surrogate",)),
    ("nested lists", "m: " + "[" * 12, "1:13", ("nested deeper than 10",)),
    ("too large", "# " + "x" * MAX_BYTES, "", ("262,144 are read at most",)),
]
NEVER_RUN: list[tuple[str, str | bytes, str, tuple[str, ...]]] = [
    ("an alias", "m: &a\n  einsum: x, x y -> y\nn: *a\n", "1:4", ("anchors and aliases are not allowed",)),
    ("an alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "1:4", ("anchors and aliases are not allowed",)),
    ("an object", "m: !!python/object/apply:os.system ['exit 1']\n", "1:4", ("tags are not allowed", "os.system")),
    (
        "a tag by prefix",
        "%TAG ! tag:yaml.org,2002:python/\n---\nm: !object/apply:os.system [a]\n",
        "3:4",
        ("tags are",),
    ),
    ("a plain tag", "m: !!str a\n", "1:4", ("tags are not allowed", "str")),
    ("a merge key", "m:\n  <<: {title: a}\n" + DENSE, "2:3", ("unknown field '<<'", "there are: einsum")),
    (
        "an attribute",
        "m:\n  sizes: {r: in_features.real}\n" + LOW_RANK,
        "2:14",
        ("Attribute is not in the arithmetic",),
    ),
    ("a call", "m:\n  sizes:\n    r: __import__('os').system('a')\n" + LOW_RANK, "3:8", ("not a function here",)),
    ("a function", "m:\n  sizes: {r: abs(4)}\n" + LOW_RANK, "2:14", ("'abs' is not a function", "min, max, round")),
    ("a lambda", "m:\n  sizes: {r: '(lambda: 1)()'}\n" + LOW_RANK, "2:15", ("not a function here",)),
    ("a string", "m:\n  sizes: {r: '\"a\" * 9'}\n" + LOW_RANK, "2:15", ("'a' is not a number",)),
    ("a comparison", "m:\n  sizes: {r: 1 < 2}\n" + LOW_RANK, "2:14", ("Compare is not in the arithmetic",)),
    ("a choice", "m:\n  sizes: {r: 1 if 2 else 3}\n" + LOW_RANK, "2:14", ("IfExp is not in the arithmetic",)),
    ("an exponent tower", "m:\n  sizes: {r: 9**9**9**9}\n" + LOW_RANK, "2:", ("9**9**9**9", "beyond 2**53")),
    (
        "an expression too long",
        "m:\n  sizes: {r: 1" + " + 1" * 60 + "}\n" + LOW_RANK,
        "2:14",
        ("241 characters", "200"),
    ),
    ("one too deep", "m:\n  sizes: {r: " + "(1 + " * 30 + "1" + ")" * 30 + "}\n" + LOW_RANK, "2:", ("deeper than 20",)),
    ("no expression", "m:\n  sizes: {r: 1 +}\n" + LOW_RANK, "2:", ("is not an expression",)),
]
BAD_YAML_VALUES: list[tuple[str, str | bytes, str, tuple[str, ...]]] = [
    ("a name twice", GOOD + "other:\n" + DENSE + GOOD, "5:1", ("structure 'mine' stands twice", "in line 1")),
    ("a field twice", GOOD + DENSE, "3:3", ("field of mine 'einsum' stands twice", "in line 2")),
    ("a size twice", "m:\n  sizes: {r: 1, r: 2}\n" + LOW_RANK, "2:17", ("'r' stands twice", "in line 2")),
    ("an option twice", "m:\n  options:\n    n: 1\n    n: 2\n" + DENSE, "4:5", ("'n' stands twice", "in line 3")),
    ("a field unknown", "m:\n  einsums: x, x y -> y\n", "2:3", ("unknown field 'einsums'", "did you mean 'einsum'?")),
    ("a field far off", "m:\n  flops: 3\n" + DENSE, "2:3", ("unknown field 'flops'", "there are: einsum, gate, index")),
    ("an entry called on", "on:\n" + DENSE, "1:1", ("a structure", "'on'", "truth value", "quote it")),
    ("an axis called on", "m:\n  sizes: {on: 4}\n  einsum: x, x on, on y -> y\n", "2:11", ("'on' as a truth value",)),
    ("an axis called no", "m:\n  sizes:\n    no: 4\n" + DENSE, "3:5", ("'no' as a truth value",)),
    ("a size yes", "m:\n  sizes: {r: yes}\n" + LOW_RANK, "2:14", ("sizes r", "'yes' as a truth value")),
    ("an option true", "m:\n  options: {n: true}\n" + DENSE, "2:16", ("options n", "'true' as a truth value")),
    ("an option in a list", "m:\n  options:\n    n: [1, off]\n" + DENSE, "3:12", ("options n", "'off' as a truth")),
    ("a title off", "m:\n  title: off\n" + DENSE, "2:10", ("title", "'off' as a truth value")),
    ("an einsum no", "m:\n  einsum: no\n", "2:11", ("a term of the einsum", "'no' as a truth value")),
    ("1:8 as a size", "m:\n  sizes: {r: 1:8}\n" + LOW_RANK, "2:14", ("sizes r", "'1:8'", "base 60")),
    ("1:30.5 as a size", "m:\n  sizes: {r: 1:30.5}\n" + LOW_RANK, "2:14", ("sizes r", "'1:30.5'", "base 60")),
    ("1:30 as an option", "m:\n  options: {n: 1:30}\n" + DENSE, "2:16", ("options n", "'1:30'", "base 60")),
    ("1:30 as a key", "m:\n  sizes:\n    1:30: 4\n" + DENSE, "3:5", ("'1:30'", "base 60")),
    ("a date", "m:\n  title: 2024-01-01\n" + DENSE, "2:10", ("title", "'2024-01-01' as a date")),
    ("a date as a name", "2024-01-01:\n" + DENSE, "1:1", ("'2024-01-01' as a date",)),
    ("an entry null", "m:\n", "1:3", ("an entry is a mapping with an einsum", "found nothing")),
    ("a size null", "m:\n  sizes:\n    r:\n" + LOW_RANK, "3:7", ("sizes r", "no value")),
    ("a size ~", "m:\n  sizes: {r: ~}\n" + LOW_RANK, "2:14", ("sizes r", "no value")),
    ("an option null", "m:\n  options:\n    n: null\n" + DENSE, "3:8", ("options n", "no value")),
    ("a title null", "m:\n  title:\n" + DENSE, "2:9", ("title", "no value")),
    ("sizes null", "m:\n  sizes:\n" + DENSE, "2:9", ("sizes is a mapping", "found nothing")),
    ("an einsum null", "m:\n  einsum:\n", "2:10", ("einsum", "no value")),
    ("a comma in a size", "m:\n  sizes: {q: min(in_features, out_features)}\n" + DENSE, "2:44", ("no value", COMMA)),
    ("a comma in an option", "m:\n  options: {n: max(1, 2)}\n" + DENSE, "2:25", ("no value", COMMA)),
    ("a comma in an init", "m:\n  init: {uniform: min(1, 2)}\n" + DENSE, "2:28", ("no value", COMMA)),
    ("a comma in an einsum", "m: {title: T, einsum: x, x y -> y}\n", "1:34", ("no value", COMMA)),
    ("an entry that is a list", "m: [a]\n", "1:4", ("an entry is a mapping", "found a list")),
    ("an entry that is text", "m: x, x y -> y\n", "1:4", ("an entry is a mapping", "found 'x, x y -> y'")),
    ("options that are a list", "m:\n  options: [a]\n" + DENSE, "2:12", ("options is a mapping", "found a list")),
    ("a title that is a list", "m:\n  title: [a]\n" + DENSE, "2:10", ("title", "a single value", "found a list")),
    ("an einsum that is a mapping", "m:\n  einsum: {a: b}\n", "2:11", ("a single value", "found a mapping")),
    ("a term that is a list", "m:\n  einsum: [[a]]\n", "2:12", ("a single value", "found a list")),
    ("a key that is a list", "? [a, b]\n: 1\n", "1:3", ("a single value", "found a list")),
    ("a number as a name", "1:\n" + DENSE, "1:1", ("lower-case letters, digits and _", "'1'")),
    ("a name in capitals", "Monarch:\n" + DENSE, "1:1", ("lower-case letters, digits and _", "'Monarch'")),
    ("a name with a dash", "low-rank:\n" + DENSE, "1:1", ("lower-case letters, digits and _", "'low-rank'")),
    ("a word in a list", "m:\n  options: {n: [1, two]}\n" + DENSE, "2:20", ("options n", "holds numbers", "'two'")),
    ("an infinite option", "m:\n  options: {n: inf}\n" + DENSE, "2:16", ("option n is a number", "inf")),
    ("an option of 400 digits", f"m:\n  options: {{n: 1{'0' * 400}}}\n" + DENSE, "2:16", ("option n is a number",)),
    ("one of 5000 digits", f"m:\n  options: {{n: 1{'0' * 5000}}}\n" + DENSE, "2:16", ("option n is a number",)),
    ("400 digits in a list", f"m:\n  options: {{n: [1{'0' * 400}]}}\n" + DENSE, "2:16", ("option n is a list",)),
]
BAD_ENTRIES: list[tuple[str, str | bytes, str, tuple[str, ...]]] = [
    ("no einsum", "m:\n  title: a\n", "1:1", ("the entry has no einsum",)),
    ("an empty entry", "a:\n" + DENSE + "m: {}\n", "3:1", ("the entry has no einsum",)),
    ("no terms", "m:\n  einsum: []\n", "2:11", ("the entry has no einsum",)),
    ("an empty term", "m:\n  einsum: ''\n", "2:12", ("one '->', found 0",)),
    ("no arrow", "m:\n  einsum: x, x y\n", "2:11", ("one '->', found 0", "'x, x y'")),
    ("a term cut at commas", "m:\n  einsum: [x, x y -> y]\n", "2:12", ("one '->', found 0",)),
    ("a stray character", "m:\n  einsum: x, x ! -> y\n", "2:16", ("unexpected '!'",)),
    ("one in quotes", "m:\n  einsum: 'x, x ! -> y'\n", "2:17", ("unexpected '!'",)),
    ("one in the second term", "m:\n  einsum:\n    - x, x y -> y\n    - x, x ! -> y\n", "4:12", ("unexpected '!'",)),
    ("one in a folded term", "m:\n  einsum: >\n    x, x\n    ! -> y\n", "2:11", ("unexpected '!'",)),
    ("a factor in parentheses", "m:\n  einsum: x, (x y) -> y\n", "2:14", ("a factor is written without",)),
    ("an axis without size", "m:\n" + LOW_RANK, "2:16", ("axis 'r' of a factor has no size", "x, y")),
    (
        "one with a neighbour",
        "m:\n  sizes: {rank: 2}\n  einsum:\n    - x, x rank, rank y -> y\n    - x, x ran, ran y -> y\n",
        "5:12",
        ("axis 'ran' of a factor has no size", "mean 'rank'?"),
    ),
    ("two inferred axes", "m:\n  einsum: (a b), a b y -> y\n", "2:14", ("'a', 'b'", "have no size", "by division")),
    (
        "an axis of a factor once",
        "m:\n  sizes: {r: 2}\n  einsum: x, x r y -> y\n",
        "3:11",
        ("'r' stands in one operand",),
    ),
    ("an axis of the input once", "m:\n  sizes: {a: 2}\n  einsum: (a x), x y -> y\n", "3:11", ("'a' stands in one",)),
    ("an output axis from nowhere", "m:\n  sizes: {a: 2}\n  einsum: x, x y -> (y a)\n", "3:11", ("output axis 'a'",)),
    ("a whole output from nowhere", "m:\n  einsum: x, x -> y\n", "2:11", ("output axis 'y' occurs neither",)),
    ("a size for no axis", "m:\n  sizes: {q: 4, r: 2}\n" + DENSE, "2:14", ("'q' has a size but stands neither",)),
    ("two sizes at once", "m:\n  sizes: {a a: 'split(in_features, 2)'}\n" + DENSE, "2:17", ("axis 'a' has two sizes",)),
    ("a size again", "m:\n  sizes:\n    a b: split(in_features, 2)\n    b: 3\n" + DENSE, "4:8", ("'b' has two sizes",)),
    ("a size of the width", "m:\n  sizes: {in_features: 4}\n" + DENSE, "2:24", ("cannot be called 'in_features'",)),
    ("a size of t", "m:\n  sizes: {t: 4}\n" + DENSE, "2:14", ("an axis cannot be called 't'",)),
    ("a name unknown", "m:\n  sizes: {r: in_feature}\n" + LOW_RANK, "2:14", ("'in_feature'", "'in_features'?")),
    ("an option unused", "m:\n  options: {n_blocks: 4}\n" + DENSE, "2:23", ("option 'n_blocks' is used by no size",)),
    ("an option of the layer", "m:\n  options: {bias: 4}\n" + DENSE, "2:19", ("cannot be called 'bias'",)),
    ("an option called t", "m:\n  options: {t: 4}\n" + DENSE, "2:16", ("cannot be called 't'",)),
    ("an option of a later one", "m:\n  options: {a: b, b: 4}\n" + DENSE, "2:16", ("unknown name 'b' in 'b'",)),
    ("an option that is no expression", "m:\n  options: {n: 1 +}\n" + DENSE, "2:", ("'1 +' is not an expression",)),
    ("an init that is none", "m:\n  init: {uniform: 1 +}\n" + DENSE, "2:", ("'1 +' is not an expression",)),
    (
        "an index that is none",
        "m:\n  sizes: {b: 4, u: 4}\n  index: {b: u //}\n  einsum: (b i), u i o -> (u o)\n",
        "3:",
        ("'u //' is not an expression",),
    ),
    ("an init of neither kind", "m:\n  init: {std: 1}\n" + DENSE, "2:9", ("'uniform'", "'normal'")),
    ("an init of both kinds", "m:\n  init: {uniform: 1, normal: 1}\n" + DENSE, "2:9", ("'uniform'", "'normal'")),
    (
        "an init that misspells",
        "m:\n  init: {uniform: fan + 1}\n" + DENSE,
        "2:19",
        ("'fan'", "mean 'fan_in' or 'fan_out'?"),
    ),
    ("an index of no axis", "m:\n  index: {b: y}\n" + DENSE, "2:14", ("'b' is not an axis of the einsum", "x, y")),
    ("an index without size", "m:\n  index: {x: y}\n" + DENSE, "2:14", ("axis 'x' needs a size",)),
    (
        "an index by itself",
        "m:\n  sizes: {b: 4, u: 4}\n  index: {b: b + u}\n  einsum: (b i), u i o -> (u o)\n",
        "3:14",
        ("'b' is read through itself",),
    ),
    (
        "an index of a list",
        "m:\n  sizes:\n    i: split(in_features, 2)\n    u: 2\n  index: {i: u}\n  einsum: (i[:]), u o -> (u o)\n",
        "5:14",
        ("index", "'i'"),
    ),
    (
        "an index of no axis of the term",
        "m:\n  sizes: {b: 4, u: 4}\n  index: {b: in_features // in_features}\n  einsum: (b i), u i o -> (u o)\n",
        "3:14",
        ("reads no axis of the term",),
    ),
    (
        "an indexed axis elsewhere",
        "m:\n  sizes: {b: 4, u: 4}\n  index: {b: u}\n  einsum: (b i), u b i o -> (u o)\n",
        "4:11",
        ("'b' is read through an index", "input view alone"),
    ),
    (
        "a list for too few axes",
        "m:\n  sizes:\n    a b: split(in_features, 3)\n  einsum: (a b), a b y -> y\n",
        "3:10",
        ("'a b' names 2 axes", "its list has 3"),
    ),
    (
        "a list that is not indexed",
        "m:\n  sizes:\n    i: split(in_features, 2)\n  einsum: i, i y -> y\n",
        "4:",
        ("'i' is a list of 2 sizes", "i[:]"),
    ),
    (
        "a repeated factor without a list",
        "m:\n  sizes: {r: 2}\n  einsum: x, x r[t] y -> y\n",
        "3:14",
        ("mentions 't'", "needs an axis whose size is a list"),
    ),
    (
        "lists of two lengths",
        "m:\n  sizes:\n    i: split(in_features, 2)\n    o: split(out_features, 3)\n"
        "  einsum: (i[:]), i[t] o[t] -> (o[:])\n",
        "5:",
        ("lists of different lengths [2, 3]",),
    ),
    (
        "a list of ten thousand",
        f"m:\n  options: {{n: [{','.join(['1'] * 4000)}]}}\n  sizes: {{i: n, o: n}}\n"
        "  einsum: (i[:]), o[:t] i[t] o[t] i[t+1:] -> (o[:])\n",
        "4:11",
        ("more than 8000 axes",),
    ),
    ("too many terms", "m:\n  einsum:\n" + "    - x, x y -> y\n" * 2000, "3:5", ("terms", "2000")),
    ("a term too long", "m:\n  einsum: x" + ", x" * 700 + " -> x\n", "2:11", ("at most 2000 characters",)),
]
BAD = NOT_A_REGISTRY + NEVER_RUN + BAD_YAML_VALUES + BAD_ENTRIES

# bound at 768 -> 3072 but for the entries that say otherwise: entry, options, line:column, words
UNFIT: list[tuple[str, str, dict[str, object], str, tuple[str, ...]]] = [
    (
        "an axis",
        "m:\n  options: {n_blocks: 4}\n  sizes: {n: n_blocks}\n  einsum: (n i), n i o -> (n o)\n",
        {"n_blocks": 5},
        "4:11",
        (
            "axis n=5 does not divide in_features=768",
            "nearest sizes that do: 4, 6",
            "n_blocks that work here: 2, 3, 4, 6",
        ),
    ),
    (
        "an axis of the output",
        "m:\n  sizes: {a: 7}\n  einsum: x, x a y -> (a y)\n",
        {},
        "3:11",
        ("axis a=7 does not divide out_features=3072", "nearest sizes that do: 6, 8"),
    ),
    (
        "a product of axes",
        "m:\n  sizes: {a: 32, b: 48}\n  einsum: (a b c), a b c y -> y\n",
        {},
        "3:11",
        ("(a b c) without c multiply to 1536", "in_features=768", "nearest products that do: 768"),
    ),
    (
        "a view that is full",
        "m:\n  sizes: {a: 32, b: 12}\n  einsum: (a b), a b y -> y\n",
        {},
        "3:11",
        ("the view (a b) holds 32 x 12 = 384", "in_features=768"),
    ),
    (
        "a quotient",
        "m:\n  options: {n: 5}\n  sizes: {q: in_features / n**2}\n  einsum: (q x), q x y -> y\n",
        {},
        "3:14",
        ("size q", "768 / 25 is not a whole number", "n=5", "n that work here: 1, 2, 4"),
    ),
    (
        "an option of zero",
        "m:\n  options: {n: 4}\n  sizes: {n: n}\n  einsum: (n i), n i o -> (n o)\n",
        {"n": 0},
        "4:11",
        ("axis n=0 does not divide", "n that work here: 1"),
    ),
    (
        "a rank of zero in the only term",
        "m:\n  options: {rank: 4}\n  sizes: {r: rank}\n" + LOW_RANK,
        {"rank": 0},
        "1:1",
        ("every term is dropped", "rank that work here: 1"),
    ),
    (
        "a fraction",
        "m:\n  options: {part: 0.5}\n  sizes: {r: part}\n" + LOW_RANK,
        {},
        "3:14",
        ("size r = part is 0.5", "not a whole number"),
    ),
    (
        "a negative size",
        "m:\n  sizes: {r: in_features - out_features}\n" + LOW_RANK,
        {},
        "2:14",
        ("size r", "-2304", "in_features=768, out_features=3072"),
    ),
    (
        "a tower of widths",
        "m:\n  sizes: {r: in_features**in_features**in_features}\n" + LOW_RANK,
        {},
        "2:14",
        ("size r", "768 ** 768 is beyond 2**53"),
    ),
    (
        "a gather",
        "m:\n  options: {n: 4}\n  sizes: {b: n, u: n}\n  index: {b: u + 1}\n  einsum: (b i), u i o -> (u o)\n",
        {},
        "4:14",
        ("b = u + 1 is 4 at u=3", "outside 0 to 3"),
    ),
    (
        "a huge gather",
        "m:\n  sizes: {b: 4, u: 1024, k: 1024}\n  index: {b: (u + k) % 4}\n  einsum: (b i), u k i o -> (u o)\n",
        {},
        "3:14",
        ("more than 65536 values",),
    ),
    (
        "many gathers",
        "m:\n  sizes: {b: 16, u: 16, k: 2048}\n  index: {b: u ^ k // 128}\n  einsum:\n"
        + "    - (b i), u k i o -> (u o)\n" * 3,
        {},
        "3:",
        ("more than 65536 values",),
    ),
    (
        "a bond that ends nowhere",
        "m:\n  options: {r: [2, 4, 1]}\n"
        "  sizes:\n    i: split(in_features, 2)\n    o: split(out_features, 2)\n    r: r\n"
        "  einsum: (i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])\n",
        {},
        "7:11",
        ("r0=2", "one operand alone"),
    ),
]
BAD_OPTIONS: list[tuple[dict[str, object], tuple[str, ...]]] = [
    ({"n_block": 4}, ("there is no option 'n_block'", "did you mean 'n_blocks'?")),
    ({"rank": 4}, ("there is no option 'rank'", "there are: n_blocks")),
    ({"n_blocks": -1}, ("option n_blocks cannot be negative", "-1")),
    ({"n_blocks": 2.0}, ("option n_blocks is a whole number", "2.0")),
    ({"n_blocks": True}, ("option n_blocks is a whole number", "True")),
    ({"n_blocks": "4"}, ("option n_blocks is a whole number", "'4'")),
    ({"n_blocks": None}, ("option n_blocks is a whole number", "None")),
    ({"n_blocks": 10**400}, ("option n_blocks", "1000")),
]
# texts that are long, deep or repetitive in the ways that make parsers slow; each is refused, or read, and that is all
ADVERSARIES: dict[str, str] = {
    "open brackets": "[" * 10_000,
    "open braces": "{" * 10_000,
    "open brackets in an entry": "m: " + "[" * 200_000,
    "nested mappings": "{a: " * 60_000,
    "question marks": "? " * 10_000,
    "dashes": "- " * 100_000,
    "many empty lists": "m: [" + "[]," * 15_000,
    "a long key": "a" * 200_000 + ": 1\n",
    "colons": ":" * 200_000,
    "exclamation marks": "!" * 200_000,
    "anchors": "&a " * 60_000,
    "directives": "%a\n" * 60_000,
    "documents": "---\n" * 20_000,
    "keys without value": "?\n" * 10_000,
    "comments": "#\n" * 100_000,
    "escapes": 'm: "' + "\\x41" * 50_000 + '"\n',
    "a long title": "m:\n  title: " + "a b " * 50_000 + "\n" + DENSE,
    "many bad entries": "".join(f"k{i}: 1\n" for i in range(4_000)),
    "many entries": "".join(f"k{i}:\n{DENSE}" for i in range(500)),
    "many options": "m:\n  options:\n"
    + "".join(f"    o{i}: 1\n" for i in range(800))
    + "  sizes:\n    s0: o0\n"
    + "".join(f"    s{i}: s{i - 1} * o{i}\n" for i in range(1, 800))
    + "  einsum: x, x s799, s799 y -> y\n",
    "many sizes": "m:\n  sizes:\n    a0: 1\n"
    + "".join(f"    a{i}: a{i - 1}\n" for i in range(1, 1200))
    + "  einsum: x, x a1199, a1199 y -> y\n",
    "64 cores": "m:\n  sizes:\n    i: split(in_features, 64)\n    o: split(out_features, 64)\n    r: 8\n"
    "  einsum: (i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])\n",
    "a thousand cores": f"m:\n  options: {{n: [{','.join(['1'] * 1000)}]}}\n  sizes: {{i: n, o: n, r: 1}}\n"
    "  einsum: (i[:]), r[t] i[t] o[t] r[t+1] -> (o[:])\n",
    "a hundred factors": "m:\n  sizes: {r: 2}\n  einsum: x" + ", x r" * 300 + ", x y -> y\n",
    "ten factors in any order": "m:\n  sizes: {a: 2, b: 3}\n  einsum: x" + ", x a b" * 10 + ", x y -> y\n",
    "sixteen weights": "m:\n  options: {w: [" + ", ".join(["0.0625"] * 16) + "]}\n  sizes:\n"
    "    i: split(14414400, w)\n    r: max(i)\n" + LOW_RANK,
    "digits of a rich number": "m:\n  sizes:\n    r: digits(14414400, 2)\n" + LOW_RANK,
    "splits of a rich number": "m:\n  sizes:\n    i: split(14414400, 64)\n    r: max(i) + max(split(8648640, 9))\n"
    + LOW_RANK,
    "a huge size": "m:\n  sizes: {r: 2**53}\n" + LOW_RANK,
}

# a fake package: entry_points.txt, its module, its registry file; words of the warnings; whether `pkg_entry` is added
PACKAGES: list[tuple[str, str, str, str, tuple[str, ...], bool]] = [
    ("good", "good = fake_pkg:PATH", "PATH = {path!r}", "pkg_entry:\n" + DENSE, (), True),
    (
        "a path object",
        "good = fake_pkg:PATH",
        "import pathlib\nPATH = pathlib.Path({path!r})",
        "pkg_entry:\n" + DENSE,
        (),
        True,
    ),
    ("no module", "lost = no_such_module:PATH", "", "", ("'lost'", "no_such_module"), False),
    ("no attribute", "lost = fake_pkg:PATHS", "PATH = {path!r}", "", ("'lost'", "PATHS"), False),
    ("raises", "loud = fake_pkg:PATH", "raise RuntimeError('oh no')", "", ("'loud'", "oh no"), False),
    ("exits", "quits = fake_pkg:PATH", "import sys\nsys.exit('bye')", "", ("'quits'", "bye"), False),
    ("no path", "number = fake_pkg:PATH", "PATH = 3", "", ("'number'", "int", "path of a YAML file"), False),
    ("no file", "gone = fake_pkg:PATH", "PATH = '/no/such/file.yaml'", "", ("'gone'", "/no/such/file.yaml"), False),
    (
        "a bad file",
        "bad = fake_pkg:PATH",
        "PATH = {path!r}",
        "pkg_entry:\n  einsum: x\n",
        ("'bad'", "'->'", ":2:11"),
        False,
    ),
    (
        "a built-in name",
        "taken = fake_pkg:PATH",
        "PATH = {path!r}",
        "monarch:\n" + DENSE,
        ("'taken'", "'monarch'"),
        False,
    ),
    ("no value", "nonsense", "", "", ("fake",), False),
]

# registry.py without structures/__init__.py, which imports torch: a second less for each subprocess
SUBPROCESS = """
import json, sys, types, warnings
package = types.ModuleType("structures")
package.__path__ = [sys.argv[1]]
sys.modules["structures"] = package
from structures import registry
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = registry.names()
print(json.dumps({"names": names, "warnings": [str(w.message) for w in caught]}))
"""


pytestmark = pytest.mark.usefixtures("nothing_added_stays")


def write(folder: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def explain(message: str, file: Path, place: str, words: tuple[str, ...]) -> str:
    """What an error message lacks; empty if it names the place and holds all words."""
    start = f"{file}:{place}" if place else str(file)
    if not message.startswith(start if not place or place.endswith(":") else f"{start}: "):
        return f"place {place!r}, in {message[:300]!r}"
    missing = [word for word in words if word not in message]
    return f"{missing} in {message[:600]!r}" if missing or "\n" in message else ""


@pytest.mark.parametrize(("text", "place", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_file_has_one_error_with_its_place(
    tmp_path: Path, text: str | bytes, place: str, words: tuple[str, ...]
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SpecError) as error:
        registry.read(file)
    assert explain(str(error.value), file, place, words) == ""
    assert isinstance(error.value, ValueError)
    assert not isinstance(error.value, SizeError)


@pytest.mark.parametrize(
    "message",
    ["{file}:2:1: no value", "{file}:2:14: something else", "2:14: no value", "{file}:2:14: no value\nand more"],
)
def test_the_check_of_messages_can_fail(tmp_path: Path, message: str) -> None:
    file = tmp_path / "mine.yaml"
    assert explain(f"{file}:2:14: no value", file, "2:14", ("no value",)) == ""
    assert explain(message.format(file=file), file, "2:14", ("no value",)) != ""


@pytest.mark.parametrize(("text", "options", "place", "words"), [u[1:] for u in UNFIT], ids=[u[0] for u in UNFIT])
def test_what_does_not_fit_the_widths_names_the_numbers_and_the_place(
    tmp_path: Path, text: str, options: Mapping[str, object], place: str, words: tuple[str, ...]
) -> None:
    file = write(tmp_path, text)
    (spec,) = registry.read(file).values()
    with pytest.raises(SizeError) as error:
        spec.bind(768, 3072, **options)
    assert explain(str(error.value), file, place, words) == ""


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_an_option_that_cannot_be_is_named_with_its_entry(
    tmp_path: Path, options: Mapping[str, object], words: tuple[str, ...]
) -> None:
    file = write(tmp_path, "m:\n  options: {n_blocks: 4}\n  sizes: {n: n_blocks}\n  einsum: (n i), n i o -> (n o)\n")
    with pytest.raises(SpecError) as error:
        registry.read(file)["m"].bind(64, 64, **options)
    assert explain(str(error.value), file, "1:1", ("m: ", *words)) == ""


def test_the_values_that_an_error_offers_work() -> None:
    offers = set()
    for name in structures.names():
        spec = structures.get(name)
        for option in (option for option, default in spec.options if isinstance(default, int)):
            try:
                spec.bind(96, 144, **{option: 10007})
            except SizeError as error:
                _, found, offered = str(error).partition(f"{option} that work here: ")
                for value in offered.partition(";")[0].split(", ") if found else ():
                    spec.bind(96, 144, **{option: int(value)})
                    offers.add(name)
    assert {"block_diagonal", "dyad_it", "monarch", "blast", "kronecker_sparse"} <= offers


@pytest.mark.parametrize("text", ADVERSARIES.values(), ids=ADVERSARIES)
def test_no_text_stops_the_loader(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    try:
        specs = registry.read(file)
    except SpecError as error:
        assert str(error).startswith(str(file))
        return
    for spec in [*specs.values()][:3]:
        for widths in ((14414400, 14414400), (2**24, 3), (7919, 7919)):
            try:
                spec.bind(*widths)
            except SizeError as error:
                assert str(error).startswith(str(file))


def test_a_refused_expression_prints_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    with pytest.raises(SpecError, match=r":2:\d+: m: "):
        registry.read(write(tmp_path, "m:\n  sizes: {r: 1if 2else 3}\n" + LOW_RANK))
    assert recwarn.list == []


def test_no_path_is_more_than_an_error(tmp_path: Path) -> None:
    missing, folder = tmp_path / "missing.yaml", tmp_path
    with pytest.raises(RegistryError) as error:
        registry.read(missing)
    assert str(error.value) == f"{missing}: cannot be read: No such file or directory"
    with pytest.raises(RegistryError) as error:
        registry.read(folder)
    assert str(error.value) == f"{folder}: cannot be read: Is a directory"
    with pytest.raises(RegistryError, match="cannot be read"):
        structures.load("a\0b.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_that_nobody_writes_to_does_not_hang_the_loader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    script = SUBPROCESS.replace("registry.names()", f"registry.load({str(pipe)!r})")
    command = [sys.executable, "-c", script, str(ROOT / "structures")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert "RegistryError" in run.stderr
    assert "is not a regular file" in run.stderr


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    text = (
        "\ufeff# byte order mark, comment, quotes, folding, numbers of both kinds\n"
        "mine:\n"
        "  title: 'Mine: café'\n"
        '  source: "me"\n'
        "  options: {n_blocks: 4, part: 0.5, theta: [1, 0.5], rank: 'max(1, in_features // 4)'}\n"
        "  sizes:\n"
        "    n: n_blocks\n"
        "    r: round(rank * part * theta[1])\n"
        "  init: {uniform: fan_in ** -0.5, source: here}\n"
        "  einsum:\n"
        "    - (n i), n i o -> (n o)\n"
        "    - >\n"
        "      x, x r,\n"
        "      r y -> y\n"
    )
    spec = registry.read(write(tmp_path, text))["mine"]
    assert (spec.title, spec.source) == ("Mine: café", "me")
    assert dict(spec.options) == {"n_blocks": 4, "part": 0.5, "theta": (1, 0.5), "rank": "max(1, in_features // 4)"}
    assert dict(spec.init) == {"uniform": "fan_in ** -0.5", "source": "here"}
    assert len(spec.einsum) == 2
    assert spec.bind(64, 32).params == 64 * 32 // 4 + 4 * (64 + 32)
    assert spec.where("sizes", "r") == f"{tmp_path / 'mine.yaml'}:8:8"


def test_windows_line_ends_and_no_line_end_are_read(tmp_path: Path) -> None:
    for text in (GOOD.replace("\n", "\r\n"), GOOD.rstrip()):
        assert list(registry.read(write(tmp_path, text))) == ["mine"]
    with pytest.raises(SpecError, match=r"mine\.yaml:2:16: m: axis 'r'"):
        registry.read(write(tmp_path, ("m:\n" + LOW_RANK).replace("\n", "\r\n")))


# -- load


def test_load_adds_the_entries_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    before = structures.names()
    assert structures.load(file) == ["mine"]
    assert structures.names() == sorted([*before, "mine"])
    assert structures.get("mine").bind(4, 6).params == 24


def test_loading_a_file_again_replaces_what_it_added(tmp_path: Path) -> None:
    before = structures.names()
    structures.load(write(tmp_path, GOOD + "gone:\n" + DENSE))
    structures.load(str(write(tmp_path, "mine:\n  sizes: {r: 2}\n" + LOW_RANK)))
    assert structures.names() == sorted([*before, "mine"])
    assert structures.get("mine").bind(4, 6).params == 20


def test_a_file_is_the_same_by_every_path_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "link.yaml").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    before = len(registry._added)  # by other tests of the same process
    for path in (file, "mine.yaml", "./mine.yaml", tmp_path / "link.yaml"):
        assert structures.load(path) == ["mine"]
    assert len(registry._added) == before + 1


def test_an_empty_mapping_takes_the_entries_of_a_file_away(tmp_path: Path) -> None:
    before = structures.names()
    structures.load(write(tmp_path, GOOD))
    assert structures.load(write(tmp_path, "{}\n")) == []
    assert structures.names() == before


def test_a_built_in_name_is_refused_unless_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "monarch:\n" + DENSE)
    before, monarch = structures.names(), structures.get("monarch")
    with pytest.raises(RegistryError) as error:
        structures.load(file)
    assert (
        explain(str(error.value), file, "3:1", ("monarch is already an entry of", "registry.yaml", "replace=True"))
        == ""
    )
    assert structures.names() == before
    structures.load(file, replace=True)
    assert structures.get("monarch").bind(4, 6).params == 24
    structures.load(write(tmp_path, GOOD))
    assert structures.get("monarch") == monarch


def test_a_name_of_another_file_is_refused_unless_asked_for(tmp_path: Path) -> None:
    first, second = write(tmp_path, GOOD, "first.yaml"), write(tmp_path, GOOD, "second.yaml")
    structures.load(first)
    with pytest.raises(RegistryError) as error:
        structures.load(second)
    assert explain(str(error.value), second, "1:1", ("mine is already an entry of", "first.yaml")) == ""
    assert structures.get("mine").file == str(first)
    structures.load(second, replace=True)
    assert structures.get("mine").file == str(second)


@pytest.mark.parametrize("text", ["", "mine:\n  einsum: x\n", GOOD + "bad:\n  einsum: x\n", GOOD + "dense:\n" + DENSE])
def test_a_file_that_fails_changes_nothing(tmp_path: Path, text: str) -> None:
    good = write(tmp_path, "mine:\n  sizes: {r: 2}\n" + LOW_RANK)
    structures.load(good)
    before = {name: structures.get(name) for name in structures.names()}
    for name in ("mine.yaml", "other.yaml"):
        with pytest.raises(RegistryError if text == "" else SpecError):
            structures.load(write(tmp_path, text, name))
        assert {name: structures.get(name) for name in structures.names()} == before


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(KeyError) as error:
        structures.get("monach")
    assert error.value.args[0] == "unknown structure 'monach'; did you mean 'monarch'?"
    with pytest.raises(KeyError) as error:
        structures.get("zzz")
    assert error.value.args[0] == f"unknown structure 'zzz'; there are: {', '.join(structures.names())}"


def test_every_built_in_entry_has_title_and_source_and_says_where_it_stands() -> None:
    lines = (ROOT / "registry.yaml").read_text().splitlines()
    for name in structures.names():
        spec = structures.get(name)
        assert spec.title, name
        assert spec.source, name
        line, column = spec.where().rsplit(":", 2)[1:]
        assert column == "1"
        assert lines[int(line) - 1].startswith(f"{name}:")


# -- packages


def names_and_warnings(path: Path) -> tuple[list[str], list[str]]:
    command = [sys.executable, "-c", SUBPROCESS, str(ROOT / "structures")]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path, timeout=120)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    return answer["names"], answer["warnings"]


def make_package(folder: Path, name: str, point: str, module: str, entries: str) -> None:
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[structures.registries]\n{point}\n")
    path = write(folder, entries, f"{name}.yaml")
    (folder / f"{name}.py").write_text(module.format(path=str(path)))


@pytest.mark.parametrize(
    ("point", "module", "entries", "words", "added"), [p[1:] for p in PACKAGES], ids=[p[0] for p in PACKAGES]
)
def test_a_package_adds_entries_and_a_broken_one_harms_nobody(
    tmp_path: Path, point: str, module: str, entries: str, words: tuple[str, ...], added: bool
) -> None:
    make_package(tmp_path, "fake_pkg", point, module, entries)
    make_package(tmp_path, "sound", "sound = sound:PATH", "PATH = {path!r}", "sound_entry:\n" + DENSE)
    names, warnings = names_and_warnings(tmp_path)
    assert set(registry._builtin()) <= set(names)
    assert "sound_entry" in names
    assert ("pkg_entry" in names) == added
    assert len(warnings) == (1 if words else 0)
    for word in words:
        assert word in warnings[0]


def test_two_packages_with_one_name_keep_the_first_and_warn(tmp_path: Path) -> None:
    make_package(tmp_path, "one", "one = one:PATH", "PATH = {path!r}", "pkg_entry:\n" + DENSE)
    make_package(tmp_path, "two", "two = two:PATH", "PATH = {path!r}", "more:\n" + DENSE + "pkg_entry:\n" + DENSE)
    names, warnings = names_and_warnings(tmp_path)
    assert {"pkg_entry", "more"} <= set(names)
    assert len(warnings) == 1
    assert "'pkg_entry'" in warnings[0]
