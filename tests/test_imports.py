"""Imports run one way, down through the rooms, without a circle; and no name of the registry stands in the code.

The rooms of `structures/`, from below: `language` (text, no widths), `algebra` (entries at given widths, as numbers),
the two public nouns `structure` and `spec`; above these `constants`, `reference`, `initial`, `routing` and `backends`,
of which the reference and the backends do not know each other, so that one can judge the other; then `registry` and
`options`, the layer (`linear`), and what uses layers: `space`, `projection`, and `models`, somebody else's network. The
public names come last (`public`; the package gives them when they are asked for, so that it comes without torch).
`reading` and `atomic`, of files that others may write, know nothing; the bench reads and writes with them too, where
no torch comes.
The rooms of `bench/`, from below: `machine`, `files` and `answers` (no torch, no charts), then `report`, which reads
files alone, and `sweep`; above the sweep the other experiments, of which none imports another; then the doors.
An import under `TYPE_CHECKING` is an import: a record stands below the functions that work on it, a facade above.
"""

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import structures
from structures import registry

ROOT = Path(__file__).parents[1]

# room -> the rooms directly below it that it may import, and with them all that these may; a room is a folder of
# structures/ or bench/, or a file that stands in neither
BELOW: dict[str, tuple[str, ...]] = {
    "structures.language": (),
    "structures.algebra": ("structures.language",),
    "structures.structure": ("structures.algebra",),
    "structures.spec": ("structures.structure",),
    "structures.exporting": (),
    "structures.routing": ("structures.structure", "structures.exporting"),
    "structures.constants": ("structures.structure",),
    "structures.reference": ("structures.constants",),
    "structures.initial": ("structures.structure",),
    "structures.exactness": ("structures.reference",),
    "structures.reading": (),
    "structures.atomic": (),
    "structures.backends": (
        "structures.spec", "structures.routing", "structures.constants", "structures.reading", "structures.atomic",
    ),
    "structures.registry": ("structures.spec", "structures.reading"),
    "structures.options": ("structures.registry",),
    "structures.weight": (),
    "structures.linear": (
        "structures.registry", "structures.backends", "structures.initial", "structures.reference", "structures.weight",
    ),
    "structures.space": ("structures.linear",),
    "structures.projection": ("structures.linear",),
    "structures.models": ("structures.projection", "structures.options", "structures.space", "structures.exactness"),
    "structures.public": ("structures.models",),
    "structures": ("structures.public",),
    "structures.__main__": ("structures.models",),
    "bench.machine": ("structures",),
    "bench.files": ("bench.machine",),
    "bench.answers": ("bench.files",),
    "bench.report": ("bench.answers",),
    "bench.sweep": ("bench.answers",),
    "bench.modules": ("bench.sweep",),
    "bench.training": ("bench.sweep",),
    "bench.search": ("bench.sweep",),
    "bench.minilm": ("bench.sweep",),
    "bench.__main__": ("bench.report", "bench.training", "bench.search", "bench.minilm"),
    "bench.conftest": ("bench.modules",),
    "bench.test_linear": ("bench.sweep",),
    "bench.test_ff": ("bench.modules",),
    "bench.test_decoder": ("bench.modules",),
}  # fmt: skip
WITHOUT_TORCH = (
    "structures.language",
    "structures.algebra",
    "structures.structure",
    "structures.spec",
    "structures.registry",
    "structures.reading",
    "structures.atomic",
)
# folders of bench/ -> what comes with none of their modules; of structures what files and words need
BENCH_WITHOUT = {
    "bench.files": ("torch", "vl_convert", "jinja2"),
    "bench.answers": ("torch", "structures", "vl_convert", "jinja2"),
    "bench.report": ("torch", "structures"),
}
OF_FILES = ("structures.reading", "structures.atomic", "structures.language.words")
# `einsum` is a field of an entry and a backend too; `dense` is a word; both may stand alone in code
WORDS_OF_THEIR_OWN = {"einsum"}

# the modules that are imported -> those of torch, and of structures
IMPORT = """
import importlib, json, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps(sorted(m for m in sys.modules if m.partition(".")[0] in ("torch", "structures"))))
"""

# file, its text, words of the complaint: each must be found
MUST_FAIL_ARROWS: list[tuple[str, str, str]] = [
    ("structures/spec.py", "import torch\n", "torch"),
    ("structures/spec.py", "from torch import nn\n", "torch"),
    ("structures/registry.py", "def f():\n    import torch.nn as nn\n", "torch"),
    ("structures/algebra/rank.py", "from structures.registry import get\n", "structures.registry"),
    ("structures/algebra/rank.py", "from structures.spec import Spec\n", "structures.spec"),
    (
        "structures/algebra/rank.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from structures.spec import Spec\n",
        "structures.spec",
    ),
    ("structures/algebra/rank.py", "import structures\n", "structures"),
    ("structures/language/entry.py", "from structures.algebra.map import Map\n", "structures.algebra.map"),
    (
        "structures/language/notation.py",
        "import importlib\nm = importlib.import_module('structures.linear')\n",
        "structures.linear",
    ),
    ("structures/language/notation.py", "import importlib\nm = importlib.import_module(name)\n", "import_module"),
    ("structures/language/notation.py", "m = __import__('torch')\n", "torch"),
    ("structures/backends/bmm.py", "from structures import reference\n", "structures.reference"),
    ("structures/backends/planned/search.py", "from structures.reference import apply\n", "structures.reference"),
    ("structures/backends/planned/search.py", "from ... import registry\n", "structures.registry"),
    ("structures/backends/planned/__init__.py", "from ...linear import StructuredLinear\n", "structures.linear"),
    ("structures/reference.py", "from structures import backends\n", "structures.backends"),
    ("structures/reference.py", "from structures.backends.views import load\n", "structures.backends"),
    ("structures/linear.py", "from structures.models.swap import swap\n", "structures.models"),
    ("structures/linear.py", "from structures import StructuredLinear\n", "structures"),
    ("structures/projection/solve.py", "from structures.models import linears\n", "structures.models"),
    ("structures/brand_new.py", "import math\n", "structures.brand_new"),
    ("structures/brand_new/part.py", "import math\n", "structures.brand_new"),
    ("structures/models/swap.py", "from structures.__main__ import main\n", "structures.__main__"),
    ("structures/models/swap.py", "from bench.files import rows\n", "bench"),
    ("structures/models/swap.py", "import tests.contract\n", "tests"),
    ("bench/files/rows.py", "import torch\n", "torch"),
    ("bench/files/kinds.py", "import vl_convert\n", "vl_convert"),
    ("bench/files/kinds.py", "from bench.report.drawing import style\n", "bench.report"),
    ("bench/answers/verdict.py", "from bench.report.drawing import words\n", "bench.report"),
    ("bench/answers/verdict.py", "from structures import reading, registry\n", "structures.registry"),
    ("bench/report/sweep/data.py", "import structures\n", "structures"),
    ("bench/report/deep/er.py", "from structures.spec import Spec\n", "structures"),
    ("bench/report/sweep/data.py", "from bench.sweep import points\n", "bench.sweep"),
    ("bench/minilm/run.py", "from bench.search import run\n", "bench.search"),
    ("bench/sweep/cell.py", "from bench.modules import timed\n", "bench.modules"),
]
MUST_PASS_ARROWS: list[tuple[str, str]] = [
    (
        "structures/linear.py",
        "import torch\nfrom structures import backends, registry\nfrom structures.spec import Spec\n",
    ),
    ("structures/backends/planned/search.py", "import torch\nfrom . import layout\nfrom ..views import load\n"),
    ("structures/backends/planned/search.py", "from structures.backends.planned.layout import TOKENS\n"),
    ("structures/algebra/rank.py", "from structures.language.entry import Entry\n"),
    ("structures/__init__.py", "from structures.linear import StructuredLinear\n"),
    ("bench/sweep/points.py", "import torch\nimport structures\n"),
    ("bench/report/sweep/data.py", "from structures.reading import BadFile\n"),
    ("bench/report/sweep/data.py", "import vl_convert\nfrom bench.files.rows import Row\n"),
]
MUST_FAIL_NAMES: list[str] = [
    'if name == "monarch":\n    pass\n',
    'table = {"dense": 1}\n',
    'raise ValueError(f"pixelfly: {x}")\n',
    'print("use low_rank instead")\n',
    'def f(x):\n    """Docstring."""\n    "butterfly"\n',
    'match name:\n    case "btt":\n        pass\n',
    "x = 'dyad_' 'it'\n",
    "spec.monarch()\n",
    "from structures.fast import kronecker\n",
    "def tensor_train(x):\n    return x\n",
]
MUST_PASS_NAMES: list[str] = [
    '"""Butterfly, monarch: a docstring."""\n',
    'def f():\n    """As in low_rank."""\n',
    "# monarch\nx = 1\n",
    'class A:\n    """pixelfly"""\n    x: int = 1\n',
    'fields = ("title", "einsum")\n',
    'print("share of dense")\n',
    "y = torch.einsum(equation, x, w)\n",
    "def dense(structure):\n    return structure\n",
]


def imports(source: str, module: str) -> Iterator[str]:
    """Every module or name that `source` imports, absolute, at any depth, `import_module` and `__import__` included."""
    package = module if module.endswith("__init__") else module.rpartition(".")[0]
    package = package.removesuffix(".__init__")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            constant = isinstance(first, ast.Constant) and isinstance(first.value, str)
            yield str(first.value) if constant else "import_module of what is known at run time only"  # type: ignore[union-attr]


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}.")


def is_of_files(name: str) -> bool:
    return any(is_in(name, word) for word in OF_FILES)


def room_of(name: str) -> str:
    """The room that a module stands in, or that an imported name comes from; empty for other packages."""
    return _module_of(name, BELOW)


def below(room: str) -> set[str]:
    """Every room that `room` may import: those directly below it, and all below these."""
    direct = BELOW.get(room, ())
    return set(direct).union(*(below(other) for other in direct))


def wrong_imports(file: str, source: str) -> list[str]:
    """What the file at `file`, relative to the repository, must not import; itself, where it stands in no room."""
    module = module_name(file)
    room = "bench" if module == "bench" else room_of(module)
    if room in ("structures", "") and module != "structures":
        return [module]  # in no room of the table
    found = sorted(set(imports(source, file.removesuffix(".py").replace("/", "."))))
    facade = module == "structures"  # it gives whatever room is asked for
    wrong = [name for name in found if (name.startswith("import_module of") and not facade) or is_in(name, "tests")]
    banned = next((words for place, words in BENCH_WITHOUT.items() if is_in(module, place)), ())
    banned += ("torch",) if room in WITHOUT_TORCH else ()
    wrong += [name for name in found if any(is_in(name, word) for word in banned) and not is_of_files(name)]
    for name in found:
        other = "bench" if name == "bench" else room_of(name)
        if other and other != room and other not in below(room):
            wrong.append(name)
        elif not other and (is_in(name, "bench") or is_in(name, "structures")):
            wrong.append(name)
    return wrong


def module_name(file: str) -> str:
    """The dotted name of the module in a file."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def circle(files: Mapping[str, str]) -> list[str]:
    """The modules of a circle of imports among `files`, those for types alone included; empty if there is none."""
    modules = {module_name(file) for file in files}
    graph = {}
    for file, source in files.items():
        own = module_name(file)
        found = imports(source, file.removesuffix(".py").replace("/", "."))
        graph[own] = {m for name in found if (m := _module_of(name, modules)) not in ("", own)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _module_of(name: str, modules: Iterable[str]) -> str:
    return max((m for m in modules if is_in(name, m)), key=len, default="")


def registry_names_in(source: str, names: Iterable[str]) -> list[str]:
    """Names of the registry in code: in strings other than docstrings, or as names of things.

    A name of two words is looked for inside longer strings too; an English word only as a whole string.
    """
    tree = ast.parse(source)
    docstrings = {id(text) for node in ast.walk(tree) if (text := _docstring(node)) is not None}
    names = set(names) - WORDS_OF_THEIR_OWN
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words = set(re.findall(r"[a-z_0-9]+", node.value)) - {"dense"}
            found += sorted(names & (words | {node.value}))
        for attribute in ("id", "attr", "name", "arg"):
            text = getattr(node, attribute, None)
            if isinstance(text, str) and text in names - {"dense"}:
                found.append(text)
    return found


def _docstring(node: ast.AST) -> ast.Constant | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return None
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return first.value if is_text else None  # type: ignore[union-attr,return-value,attr-defined]


def sources(folder: str) -> Mapping[str, str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


PACKAGE, BENCH = sources("structures"), sources("bench")


@pytest.mark.parametrize("file", [*PACKAGE, *BENCH])
def test_a_module_imports_only_what_lies_below_it(file: str) -> None:
    assert wrong_imports(file, {**PACKAGE, **BENCH}[file]) == []


@pytest.mark.parametrize(("file", "source", "word"), MUST_FAIL_ARROWS)
def test_an_import_against_the_arrows_is_noticed(file: str, source: str, word: str) -> None:
    wrong = wrong_imports(file, source)
    assert any(name.startswith(word) for name in wrong)


@pytest.mark.parametrize(("file", "source"), MUST_PASS_ARROWS)
def test_an_import_along_the_arrows_is_none(file: str, source: str) -> None:
    assert wrong_imports(file, source) == []


def test_the_checkers_read_real_files_and_the_table_names_what_there_is() -> None:
    assert {"structures/spec.py", "structures/registry.py", "structures/backends/bmm.py"} <= set(PACKAGE)
    assert {"bench/files/rows.py", "bench/report/page.py"} <= set(BENCH)
    assert set(BELOW) == {room_of(module_name(file)) for file in (*PACKAGE, *BENCH)} - {""}
    assert list(imports(PACKAGE["structures/linear.py"], "structures.linear")).count("torch") == 1


def test_the_imports_have_no_circle() -> None:
    assert circle(PACKAGE) == []
    assert circle(BENCH) == []


@pytest.mark.parametrize(
    "source",
    [
        "from structures.b import f\n",
        "def f():\n    from structures import b\n",
        "from . import b\n",
        "from .b import x\n",
    ],
)
def test_a_circle_is_noticed(source: str) -> None:
    files = {"structures/a.py": source, "structures/b.py": "from structures.c import x\n", "structures/c.py": ""}
    assert circle(files) == []
    assert set(circle({**files, "structures/c.py": "import structures.a\n"})) == {f"structures.{m}" for m in "abc"}
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import structures.a\n"
    assert set(circle({**files, "structures/c.py": for_types})) == {f"structures.{m}" for m in "abc"}


def come_with(script: str, modules: Iterable[str]) -> set[str]:
    """The modules of torch and of structures that come with some modules, by any way."""
    run = subprocess.run([sys.executable, "-c", script, *modules], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_a_room_is_there_as_an_attribute_of_the_package() -> None:
    script = "import structures\nstructures.registry.names(), structures.backends.names(), structures.reference.apply\n"
    found = come_with(script + IMPORT, ())
    assert {"structures.registry", "structures.backends", "structures.reference"} <= found
    with pytest.raises(AttributeError, match="module 'structures' has no attribute 'nothing'"):
        structures.nothing  # noqa: B018


def test_the_spec_the_registry_and_the_reader_come_without_torch() -> None:
    script = IMPORT + "assert structures.registry.get('monarch').bind(64, 64).params\n"
    found = come_with("import structures.registry\n" + script, WITHOUT_TORCH)
    assert not [m for m in found if is_in(m, "torch")] and "structures.spec" in found


@pytest.mark.parametrize("folder", BENCH_WITHOUT)
def test_a_folder_of_the_bench_comes_without_torch_and_with_what_reads_and_writes_files(folder: str) -> None:
    found = come_with(IMPORT, (name for file in BENCH if is_in(name := module_name(file), folder)))
    packages = {"structures", "structures.models", "structures.language"}
    assert found <= {*packages, "structures.models.waiting", *OF_FILES}


def test_torch_that_comes_in_is_noticed() -> None:
    assert come_with(IMPORT.replace("print", "sys.modules['torch.nn'] = json\nprint"), ["structures"]) >= {"torch.nn"}


def test_a_public_name_is_there_when_it_is_asked_for() -> None:
    script = "import structures\nassert 'swap' in dir(structures) and not hasattr(structures, 'swop')\n"
    script += "assert structures.project.__name__ == 'project' and structures.Plan is structures.SwapTable\n"
    assert come_with(script + IMPORT, []) >= {"torch", "structures.public", "structures.models.swap"}
    assert come_with("from structures import *\nassert project_factors\n" + IMPORT, []) >= {"torch"}


@pytest.mark.parametrize("file", PACKAGE)
def test_no_name_of_the_registry_stands_in_the_package(file: str) -> None:
    assert registry_names_in(PACKAGE[file], registry._builtin()) == []


@pytest.mark.parametrize("source", MUST_FAIL_NAMES)
def test_a_name_of_the_registry_in_code_is_noticed(source: str) -> None:
    assert len(registry_names_in(source, registry._builtin())) == 1


@pytest.mark.parametrize("source", MUST_PASS_NAMES)
def test_docstrings_comments_and_words_are_no_names(source: str) -> None:
    assert registry_names_in(source, registry._builtin()) == []


def test_the_dense_forms_know_nothing_of_the_package() -> None:
    source = (ROOT / "tests" / "support" / "dense_forms.py").read_text(encoding="utf-8")
    assert {name.partition(".")[0] for name in imports(source, "tests.dense_forms")} & {"structures", "torch"} == set()
    calls = {_called(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert not {"einsum", "rearrange", "contract"} & calls


def test_public_names_are_written_by_hand_and_exist() -> None:
    assert sorted(structures.__all__) == structures.__all__
    assert all(hasattr(structures, name) for name in structures.__all__)
