"""What the README of structures/models shows runs, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "structures" / "models" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter and of what it imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_every_block_runs_after_the_ones_before_it(tmp_path, monkeypatch):
    for name in ("transformers", "peft", "accelerate", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} comes with the extras")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{README.name} block {number}", "exec"), found)
    layers = found["structures"].StructuredLinear
    kinds = [m.structure.name for m in found["mlp"].modules() if isinstance(m, layers)]
    assert kinds == ["monarch", "dyad_it"], "the factory's layer, and the one that the predicate names"
    rates = [group["max_lr"] for group in found["optimizer"].param_groups]
    assert rates == found["peaks"] and len(set(rates)) > 1, "each factor keeps its own rate"
    assert found["trainer"].optimizer is found["optimizer"]
    assert any(isinstance(m, layers) for m in found["again"].modules())
    assert Path("mlp.onnx").stat().st_size > 0
