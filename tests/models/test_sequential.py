"""Layers converted one after another, each fitted on what the converted ones before it hand on."""

from __future__ import annotations

import copy
import threading

import models
import pytest
import torch
from torch import nn

import structures
from structures.linear import StructuredLinear
from structures.models import sequential
from structures.models.covariance import collect_covariances
from structures.models.sequential import Recorded
from structures.models.swap import swap

NAMES = [name for name in structures.names() if not structures.get(name).gate]
RULES = {"*": ("low_rank", {"rank": 6})}
SHARES = {"kaleidoscope": 1.0}  # of dense's parameters, where half of them is out of reach: two butterflies of 16


def perceptron(seed: int = 0, depth: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = [part for _ in range(depth) for part in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(*parts, nn.Linear(16, 16))


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated, in the same way for every seed."""
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(100))
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) @ mixing


def in_order(model: nn.Module, rules=RULES, *, skip=(), damping=1e-6, **more):
    return swap(model, rules, project={"damping": damping}, sequential=True, skip=skip, **more)


def error(model: nn.Module, dense: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("seed", range(4))
def test_errors_add_up_less_than_where_all_layers_are_fitted_on_dense_inputs(seed):
    dense, x = perceptron(seed), rows(400)
    rules = {"*": ("low_rank", {"rank": 3})}
    together, ordered = copy.deepcopy(dense), copy.deepcopy(dense)
    swap(together, rules, project=True, inputs=collect_covariances(dense, x), skip=())
    in_order(ordered, rules, inputs=[x], damping=1e-3)
    for given in (x, rows(400, seed=1)):
        assert error(ordered, dense, given) < 0.95 * error(together, dense, given)


def test_a_dense_layer_after_a_structured_one_is_the_least_squares_fit_of_the_outputs():
    dense, x = perceptron(depth=1).double(), rows(300).double()
    model = copy.deepcopy(dense)
    in_order(model, {"0": ("low_rank", {"rank": 6}), "2": "dense"}, inputs=[x], damping=1e-12)
    with torch.no_grad():
        seen, wanted = model[:2](x), dense(x) - dense[2].bias
    fitted = torch.linalg.lstsq(seen, wanted).solution.T
    torch.testing.assert_close(model[2].to_dense().detach(), fitted, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(fitted, dense[2].weight, rtol=1e-2)


def test_the_first_layer_is_the_one_that_inputs_alone_give():
    dense, x = perceptron().double(), rows(300).double()
    alone, ordered = copy.deepcopy(dense), copy.deepcopy(dense)
    swap(alone, {"0": ("low_rank", {"rank": 6})}, project=True, inputs={"0": x}, skip=())
    in_order(ordered, inputs=[x], damping=1e-3)
    torch.testing.assert_close(ordered[0].to_dense(), alone[0].to_dense())


@pytest.mark.parametrize("held_out", [None, rows(64, seed=3)], ids=["fitted", "held out"])
def test_the_record_has_the_errors_to_the_dense_layer(held_out):
    dense, x = perceptron(), rows(300)
    model = copy.deepcopy(dense)
    plan = in_order(model, inputs=[x[:100], x[100:]], held_out=None if held_out is None else [held_out])
    given = x if held_out is None else held_out
    for place, row in zip(range(0, 9, 2), plan.rows, strict=True):
        with torch.no_grad():
            wanted = dense[:place](given) @ dense[place].weight.T
            found = model[:place](given) @ model[place].to_dense().T
            far = (model[place].to_dense() - dense[place].weight).norm() / dense[place].weight.norm()
        assert row.output_error == pytest.approx(float((found - wanted).norm() / wanted.norm()), rel=1e-3)
        assert row.error == pytest.approx(float(far), rel=1e-3)
        assert model[place].projection.held_out == (held_out is not None)


class Backwards(nn.Module):
    """Calls its second layer first, and its third twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, *, scale=1.0):
        return self.c(self.a(self.c(self.b(x)).tanh()).tanh()) * scale


def test_layers_are_taken_in_the_order_of_their_calls():
    dense, x = Backwards().double(), rows(300).double()
    model = copy.deepcopy(dense)
    in_order(model, {"b": ("low_rank", {"rank": 6}), "a": "dense"}, inputs=[{"x": x, "scale": 2.0}], damping=1e-12)
    with torch.no_grad():
        seen = dense.c(model.b(x)).tanh()
        wanted = dense.c(dense.b(x)).tanh() @ dense.a.weight.T
    torch.testing.assert_close(model.a.to_dense().detach(), torch.linalg.lstsq(seen, wanted).solution.T)


def test_a_layer_that_is_called_twice_is_fitted_on_both_calls():
    dense, x = Backwards().double(), rows(300).double()
    model = copy.deepcopy(dense)
    in_order(model, {"b": ("low_rank", {"rank": 6}), "c": "dense"}, inputs=[(x,)], damping=1e-12)
    with torch.no_grad():
        first = model.b(x), dense.b(x)
        # while it is fitted the layer itself is the dense one
        second = dense.a(dense.c(first[0]).tanh()).tanh(), dense.a(dense.c(first[1]).tanh()).tanh()
        seen, wanted = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]) @ dense.c.weight.T
    torch.testing.assert_close(model.c.to_dense().detach(), torch.linalg.lstsq(seen, wanted).solution.T)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_converted_in_order(name):
    structure = structures.get(name)
    try:
        options = structures.fit_options(name, 16, 16, params=SHARES.get(name, 0.5))
    except ValueError as reason:
        pytest.skip(str(reason))
    model, dense, x = perceptron(depth=2), perceptron(depth=2), rows(200)
    fitted = {"damping": 1e-3, "limit": 10}  # sweeps: how near they come is the matter of projection/test_project.py
    plan = swap(model, {"*": (structure, options)}, project=fitted, sequential=True, skip=(), inputs=[x])
    assert all(row.output_error is not None and row.output_error < 1 for row in plan.rows)
    assert error(model, dense, x) < 1


def test_attention_and_shared_inputs_are_converted_in_order():
    torch.manual_seed(0)
    dense = models.GPT().eval()
    tokens = torch.randint(10, (6, 8))
    model = copy.deepcopy(dense)
    plan = swap(model, {"h.*": ("low_rank", {"rank": 24})}, project=True, inputs=[tokens], sequential=True)
    assert len(plan) == 8
    assert error(model, dense, tokens) < 0.5


def test_what_the_user_gave_the_model_is_kept():
    model, seen = perceptron(), []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    model[4].eval()
    model[0].weight.requires_grad_(False)
    in_order(model, inputs=[rows(100)])
    assert all(isinstance(model[i], StructuredLinear) for i in range(0, 9, 2))
    assert model.training and model[0].training and not model[4].training
    assert not model[0].factors[0].requires_grad and model[2].factors[0].requires_grad
    seen.clear()
    model(rows(3))
    assert seen == [1]


def test_dropout_is_off_while_inputs_are_compared():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16))
    model = copy.deepcopy(dense)
    plan = in_order(model, {"0": "dense", "2": "dense"}, inputs=[rows(100)])
    assert all(row.output_error < 1e-3 for row in plan.rows)


class Routed(nn.Module):
    """Its second layer reads only those rows that come out positive: others where the first one changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = self.first(x)
        return self.second(y[y[:, 0] > 0])


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.used(x)


# model, arguments beside, words of the error
MISTAKES = [
    (
        perceptron,
        {"inputs": None},
        "sequential=True is a projection on the model's batches; add project=True and inputs",
    ),
    (perceptron, {"inputs": [rows(9)], "project": False}, "add project=True and inputs"),
    (perceptron, {"inputs": {"0": rows(9)}}, "inputs of a conversion in order is a list of the model's batches"),
    (perceptron, {"inputs": 3}, "found int"),
    (perceptron, {"inputs": []}, "inputs has no batches"),
    (perceptron, {"inputs": "rows"}, "each is a tensor, a tuple or a mapping of arguments, found str"),
    (perceptron, {"inputs": [rows(9)], "held_out": []}, "held_out has no batches"),
    (perceptron, {"inputs": [rows(9)], "dry_run": True}, "which a dry run does not"),
    (perceptron, {"inputs": [torch.full((9, 16), torch.nan)]}, "0: its inputs hold NaN"),
    (perceptron, {"inputs": [torch.zeros(9, 16)]}, "0: inputs: all zero"),
    (Routed, {"inputs": [rows(300)]}, "second: it reads 1.. and 1.. rows"),
    (Unused, {"inputs": [rows(9)]}, "unused: the first batch does not reach it"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_an_error_and_the_model_stays_as_it_was(number):
    build, more, words = MISTAKES[number]
    model = build()
    before = [(name, id(module)) for name, module in model.named_modules()]
    rules = {"*": ("low_rank", {"rank": 1})}
    with pytest.raises(ValueError, match=words):
        swap(model, rules, **{"project": True, "sequential": True, "skip": (), **more})
    assert before == [(name, id(module)) for name, module in model.named_modules()]
    assert all(module.training for module in model.modules())


def test_batches_without_sequential_are_told_what_they_are_for():
    with pytest.raises(ValueError, match=r"found list; .* sequential=True takes the batches"):
        swap(perceptron(), RULES, project=True, inputs=[rows(9)], skip=())


def test_what_is_kept_at_a_time_changes_the_passes_and_not_the_result(monkeypatch):
    dense, batches, held_out = perceptron(), [rows(100, seed=i) for i in range(3)], [rows(50, seed=9)]
    runs, found = [], []
    for kept in (2**28, 1):
        monkeypatch.setattr(sequential, "KEPT", kept)
        model = copy.deepcopy(dense)
        count = []
        model[0].register_forward_pre_hook(lambda module, args, count=count: count.append(1))
        plan = in_order(model, inputs=batches, held_out=held_out)
        runs.append(len(count))
        found.append([row.output_error for row in plan.rows])
    # how the layers are called; then the batches and what is held out through both models, once or for each layer
    assert runs == [1 + 2 * (3 + 1), 1 + 5 * 2 * (3 + 1)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_recorded_dense_model_is_run_once_for_several_conversions():
    dense, batches, held_out = perceptron(), [rows(100, seed=i) for i in range(3)], [rows(50, seed=9)]
    names = [str(i) for i in range(0, 9, 2)]
    inputs, measured = Recorded(dense, names, batches), Recorded(dense, names, held_out)
    for rank in (2, 6):
        rules = {"*": ("low_rank", {"rank": rank})}
        first, second, count = copy.deepcopy(dense), copy.deepcopy(dense), []
        wanted = in_order(first, rules, inputs=batches, held_out=held_out)
        second[0].register_forward_pre_hook(lambda module, args, count=count: count.append(1))
        plan = in_order(second, rules, inputs=inputs, held_out=measured)
        assert len(count) == 1 + 3 + 1
        assert [row.output_error for row in plan.rows] == [row.output_error for row in wanted.rows]
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"^2: it was not recorded; record it with 0$"):
        in_order(copy.deepcopy(dense), RULES, inputs=Recorded(dense, ["0"], batches))


@pytest.mark.parametrize(
    ("names", "batches", "words"),
    [
        (["12"], [rows(9)], "the model has no linear layer '12'"),
        (["1"], [rows(9)], "the model has no linear layer '1'"),
        ([], [rows(9)], "names: no linear layers"),
        (["0"], [], "batches has no batches"),
        (["0"], 3, "batches of a conversion in order is a list"),
    ],
)
def test_what_cannot_be_recorded_is_refused(names, batches, words):
    with pytest.raises(ValueError, match=words):
        Recorded(perceptron(), names, batches)


class Narrow(nn.Module):
    """Its layers in between run in bfloat16 whoever calls it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.b(self.a(x))


@pytest.mark.parametrize("narrow", [False, True])
def test_runs_that_wait_leave_the_callers_precision_alone_and_end(narrow):
    before = threading.active_count()
    model = Narrow()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        in_order(model, inputs=[rows(100), rows(50)])
        assert torch.is_autocast_enabled("cpu") == narrow and torch.is_grad_enabled()
    assert all(isinstance(layer, StructuredLinear) for layer in (model.a, model.b))
    assert threading.active_count() == before


class Broken(nn.Module):
    """Fails after its first layer for a batch of seven."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = self.a(x)
        if len(x) == 7:
            raise RuntimeError("seven rows")
        return self.b(y)


def test_an_error_of_the_model_is_raised_and_no_thread_stays():
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="seven rows"):
        in_order(Broken(), inputs=[rows(50), rows(7), rows(50)])
    assert threading.active_count() == before


class Shuffled(nn.Module):
    """Calls its layers in an order that the batch decides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.a(self.b(x)) if len(x) == 50 else self.b(self.a(x))


def test_a_batch_that_calls_the_layers_in_another_order_is_read_too():
    dense, x = Shuffled().double(), [rows(100).double(), rows(50).double()]
    model = copy.deepcopy(dense)
    in_order(model, {"a": ("low_rank", {"rank": 6}), "b": "dense"}, inputs=x, damping=1e-12)
    with torch.no_grad():
        seen, wanted = torch.cat([model.a(x[0]), x[1]]), torch.cat([dense.a(x[0]), x[1]]) @ dense.b.weight.T
    torch.testing.assert_close(model.b.to_dense().detach(), torch.linalg.lstsq(seen, wanted).solution.T)
