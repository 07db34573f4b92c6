"""One file of a user's own, with a link, a constant and a width that needs padding, through the whole package."""

import json

import pytest
import torch
from bench_runs import quick
from torch import nn

import structures
from bench.__main__ import main
from structures import registry

MINE = """
turned_blocks:                         # two block-diagonal links, the second read anew, and a random turn in between
  title: Turned blocks
  source: this test
  options: {n_blocks: 4, seed: 3}
  sizes: {k: n_blocks, q: in_features / n_blocks, l: n_blocks, w: in_features}
  einsum: (k p), k p q -> (k q); w, sign.seed(w) -> w; (r l), l r s -> (s l)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE, encoding="utf-8")
    monkeypatch.setattr(registry, "_added", {})
    structures.load(file)
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_structure_of_ones_own_goes_the_whole_path(mine, tmp_path, capsys):
    status, text, _ = quick(
        tmp_path, "--registry", "mine.yaml", "--structures=turned_blocks dyad_it", "--widths=24", "--tokens=8",
        "--budget=none", "--threads=1", "--no-controls",
    )  # fmt: skip
    assert status == 0, text
    results = tmp_path / "results.json"
    series = {row["extra_info"]["series"] for row in json.loads(results.read_text())["benchmarks"]}
    assert any(name.startswith("turned_blocks") for name in series), text
    assert main(["report", str(results), "-o", str(tmp_path / "report")]) == 0
    assert "turned_blocks" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["recommend", str(results), "--in", "24", "--out", "24", "--tokens", "8", "--params", "60%"]) in (0, 1)

    torch.manual_seed(0)
    weight = torch.randn(24, 24)
    made = structures.project(weight, "turned_blocks")
    assert made.projection.weight_error < 0.9
    model = nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 8))
    structures.swap(model, {"*": ("turned_blocks", {"pad": True})}, skip=())
    assert [type(m).__name__ for m in (model[0], model[2])] == ["StructuredLinear"] * 2
    x, y = torch.randn(64, 24), torch.randn(64, 8)
    optimizer = torch.optim.AdamW(structures.param_groups(model, lr=1e-2))
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    structures.save_swapped(model, tmp_path / "saved")
    fresh = nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 8))
    structures.load_swapped(fresh, tmp_path / "saved")
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)
    assert fresh[2].structure.widths == (30, 8)
    assert dict(fresh[2].structure.options)["pad"] is True
