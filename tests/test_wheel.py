"""A wheel built from this checkout holds the package with its registry, nothing else, and works on its own."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from structures import registry

ROOT = Path(__file__).parents[1]
# finding pip passes setuptools' hook, which warns where torch has loaded distutils before
pytestmark = pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")
LIMIT = 300  # seconds for one command; a build takes about five

ASK = """
import contextlib, io, json
import structures
from structures.__main__ import main
spec = structures.get("monarch")
with contextlib.redirect_stdout(io.StringIO()) as page:
    status = main(["show", "dense", "4", "6"])
print(json.dumps({
    "status": status,
    "page": page.getvalue(),
    "package": structures.__file__,
    "registry": spec.file,
    "names": structures.names(),
    "version": structures.__version__,
    "params": spec.bind(64, 64, n_blocks=4).params,
}))
"""


def run(command: Sequence[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=LIMIT)


def strangers(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    """What a wheel lacks or holds too much of, given the modules of the package."""
    wanted = {"structures/registry.yaml", *modules}
    held = {n for n in names if ".dist-info/" not in n}
    return sorted(held ^ wanted)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("pip", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building a wheel offline needs {module}, which is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        ".",
    ]
    built = run(command, ROOT, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "target"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = run(command, wheel.parent, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert done.returncode == 0, done.stderr
    return target


def modules_of_the_checkout() -> list[str]:
    """What the package needs to run: its modules, and the source that the native kernel is compiled from."""
    package = ROOT / "structures"
    files = [file for kind in ("*.py", "*.cpp", "*.h") for file in package.rglob(kind)]
    return [str(file.relative_to(ROOT)) for file in files]


def test_the_wheel_holds_the_package_its_registry_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert strangers(names, modules_of_the_checkout()) == []
        assert archive.read("structures/registry.yaml") == (ROOT / "registry.yaml").read_bytes()
        (licence,) = [n for n in names if n.endswith("/LICENSE")]
        assert b"MIT" in archive.read(licence)
        (metadata,) = [n for n in names if n.endswith("/METADATA")]
        assert "\nName: structures\n" in archive.read(metadata).decode()


def test_a_wheel_with_the_bench_or_without_the_registry_is_noticed() -> None:
    modules = ["structures/__init__.py"]
    good = ["structures/__init__.py", "structures/registry.yaml", "structures-0.1.0.dist-info/METADATA"]
    assert strangers(good, modules) == []
    assert strangers([*good, "bench/__init__.py"], modules) == ["bench/__init__.py"]
    assert strangers([*good, "tests/test_wheel.py"], modules) == ["tests/test_wheel.py"]
    assert strangers(good[:1], modules) == ["structures/registry.yaml"]
    assert strangers(good, [*modules, "structures/new.py"]) == ["structures/new.py"]


def test_the_installed_wheel_knows_its_registry_and_its_command(installed: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", ASK], tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert Path(answer["package"]).parent == installed / "structures"
    assert Path(answer["registry"]) == installed / "structures" / "registry.yaml"
    assert answer["names"] == sorted(registry._builtin())
    assert answer["params"] == 2 * 64 * 64 // 4
    assert answer["status"] == 0
    assert answer["page"].startswith("dense(4 -> 6)")
    assert f"structures-{answer['version']}.dist-info" in os.listdir(installed)
