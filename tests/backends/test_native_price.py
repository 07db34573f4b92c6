"""Which of the kernel and the planner `auto` takes: the one of the lower price, by figures of the machine for both."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import structures
from structures.backends import planned, stages
from structures.backends.native import choosing, kernel, price
from structures.backends.planned import measure, rates

MADE_UP = price.Kernel(
    flops=1e11, passes=4e10, reads=((1 << 16, 1e11), (1 << 26, 1e10)), vector=16, paired=False, l3=1 << 25
)
NAMES = ("dense", "dyad_it", "monarch", "butterfly", "kronecker_sparse")


@pytest.fixture(autouse=True)
def there_is_a_library(monkeypatch) -> None:
    if kernel.reason() is not None:
        pytest.skip(str(kernel.reason()))
    monkeypatch.setattr(measure, "ensure", lambda dtype: None)  # the planner's built-in figures


def use(monkeypatch, figures: price.Kernel) -> None:
    monkeypatch.setattr(price, "kernel", lambda library, dtype: figures)


def bound(name: str, width: int = 1024):
    (program,) = stages.every(structures.get(name).bind(width, width))
    return program


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_taken_is_the_cheaper_of_the_two_by_made_up_figures(name, dtype, grad, monkeypatch):
    structure, taken = bound(name), set()
    for tokens in (1, 128):
        around = 0.0 if grad else choosing.AROUND
        other = (planned.plan(structure, tokens, dtype=dtype, grad=grad).seconds + around) * choosing.OVER[dtype, grad]
        for times in (1e-4, 0.1, 0.5, 1.0, 2.0, 1e3):
            scaled = tuple((size, rate * times) for size, rate in MADE_UP.reads)
            use(monkeypatch, replace(MADE_UP, flops=times * MADE_UP.flops, passes=times * MADE_UP.passes, reads=scaled))
            found = choosing._faster(structure, dtype, tokens, grad)
            assert found == (choosing.predicted(structure, dtype, tokens, grad) <= other)
            taken.add(found)
    assert taken == {False, True}, "a kernel a million times as fast is taken where a slow one is not"


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_more_tokens_wider_layers_and_slower_machines_cost_more(name, paired, grad, monkeypatch):
    dtype = torch.bfloat16 if paired else torch.float32

    def seconds(width: int, tokens: int, **figures: object) -> float:
        use(monkeypatch, replace(MADE_UP, paired=paired, **figures))
        return choosing.predicted(bound(name, width), dtype, tokens, grad)

    for low, high in pairwise((1, 128, 1024, 4096)):
        assert seconds(256, low) < seconds(256, high)
    for low, high in pairwise((256, 1024, 4096)):
        assert seconds(low, 128) < seconds(high, 128)
    assert seconds(1024, 128) < seconds(1024, 128, flops=MADE_UP.flops / 2)
    assert seconds(1024, 128) < seconds(1024, 128, passes=MADE_UP.passes / 2)
    if not grad:
        assert seconds(1024, 1) < seconds(1024, 1, reads=((1 << 16, 1e8), (1 << 26, 1e8)))


def test_of_the_kernel_s_figures_the_best_ever_measured_are_kept_beside_the_planner_s(tmp_path, monkeypatch):
    monkeypatch.setenv(rates.VARIABLE, str(tmp_path))
    flops = iter((1e11, 0.5e11, 1.01e11, 2e11))

    def measured(library, dtype, seconds):
        now = next(flops)
        return {"products": ((64, now),), "passes": ((64, 4e21 / now),), "reads": ((1 << 16, 1e11), (1 << 26, 1e10))}

    monkeypatch.setattr(price, "measured", measured)
    best = []
    for _ in range(4):  # processes, one after another
        monkeypatch.setattr(price, "_held", {})
        found = price.kernel(kernel.library(), "float32")
        assert price.kernel(kernel.library(), "float32") == found, "it is not measured again so soon"
        best.append((found.flops, found.passes))
        assert [file.name[:6] for file in tmp_path.iterdir()] == ["rates-"]
    assert best == [(1e11, 4e10), (1e11, 8e10), (1e11, 8e10), (2e11, 8e10)], "but for what is within the noise"
