"""Learning rates for factors, sharding, and the warm start from a dense layer."""

from __future__ import annotations

import copy
import functools

import models
import pytest
import torch
import torch.distributed as dist
from contract import LONG
from dense_forms import DENSE_FORMS
from processes import of_two
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon

import structures
from structures.linear import StructuredLinear
from structures.models.distil import distil
from structures.models.rates import multiplier, param_groups, shard_placement
from structures.models.swap import swap
from structures.models.width_check import coordinate_check

NAMES = structures.names()
WIDTHS = (128, 512, 2048)


def layer(name: str, *shape: int, **options) -> StructuredLinear:
    torch.manual_seed(0)
    return StructuredLinear(name, *shape, **options)


# -- learning rates

# in_features 64, out_features 256: name, options, Adam's multiplier for each factor, SGD's, by hand
RULE = [
    ("dense", {}, [1], [1]),
    ("low_rank", {"rank": 8}, [64 / (64 * 2), 64 / (8 * 2)], [(8 / 64) / 4 / 2, (256 / 8) / 4 / 2]),
    ("block_diagonal", {"n_blocks": 4}, [64 / 16], [(64 / 16) / 4]),
    ("dyad_it", {"n_blocks": 4}, [64 / (16 * 2)] * 2, [(64 / 16) / 4 / 2] * 2),  # two terms of one factor
    ("monarch", {"n_blocks": 4}, [64 / (16 * 2), 64 / (16 * 2)], [(16 / 16) / 4 / 2, (64 / 16) / 4 / 2]),
    ("kronecker", {}, [64 / (8 * 2), 64 / (8 * 2)], [(16 / 8) / 4 / 2] * 2),
    (
        "pixelfly",  # two terms, of one factor and of two
        {"n_blocks": 8, "n_strides": 2, "rank": 4},
        [64 / (3 * 8 * 2), 64 / (64 * 4), 64 / (4 * 4)],
        [(32 / 24) / 4 / 2, (4 / 64) / 4 / 4, (256 / 4) / 4 / 4],
    ),
]


@pytest.mark.parametrize("name, options, adam, sgd", RULE)
def test_a_factor_learns_at_the_structured_rule(name, options, adam, sgd):
    shape = structures.get(name).bind(64, 256, **options)
    assert [multiplier(shape, i) for i in range(len(shape.factors))] == pytest.approx(adam)
    assert [multiplier(shape, i, optimizer=SGD) for i in range(len(shape.factors))] == pytest.approx(sgd)


def test_muon_scales_its_matrices_by_the_norm_that_is_wanted():
    shape = structures.get("low_rank").bind(64, 256, rank=16)
    # dense's step has norm 2 and should (wide 64, tall 256); the first factor's (64, 16) has 2 and should have 1/2
    assert [multiplier(shape, i, optimizer=Muon) for i in (0, 1)] == pytest.approx([(1 / 2 / 2) / 2, (4 / 1) / 2])
    assert multiplier(structures.get("dense").bind(64, 64), 0, optimizer=Muon) == 1


def rates(groups) -> dict[str, tuple[float, float]]:
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_plain_parameters_are_untouched_and_vectors_do_not_decay():
    model = nn.Sequential(nn.Embedding(5, 16), nn.LayerNorm(16), nn.Linear(16, 16), layer("monarch", 16, 64))
    found = rates(param_groups(model, 0.01, 0.1))
    assert found["0.weight"] == found["2.weight"] == (0.01, 0.1)
    assert found["1.weight"] == found["1.bias"] == found["2.bias"] == found["3.bias"] == (0.01, 0)
    assert found["3.factor_0"] == pytest.approx((0.02, 0.05)), (
        "decay a step, lr * weight_decay, is as for plain weights"
    )


def test_base_width_is_the_width_of_the_rate():
    made = layer("monarch", 64, 64, n_blocks=4)
    relative = rates(param_groups(made, 0.01))["factor_0"][0]
    assert rates(param_groups(made, 0.01, base_width=64))["factor_0"][0] == pytest.approx(relative)
    assert rates(param_groups(made, 0.01, base_width=16))["factor_0"][0] == pytest.approx(relative / 4)
    assert rates(param_groups(made, 0.01, base_width=16))["bias"][0] == 0.01


def test_frozen_parameters_are_left_out_and_shared_ones_occur_once():
    model = models.GPT()
    swap(model, {"*.mlp.*": "dyad_it"})
    model.h[0].mlp.fc1.bias.requires_grad_(False)
    groups = param_groups(model, 0.01, 0.1)
    listed = [p for group in groups for p in group["params"]]
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert len(listed) == len(wanted) and {id(p) for p in listed} == {id(p) for p in wanted}
    assert sum(len(group["names"]) for group in groups) == len(listed)


@pytest.mark.parametrize("optimizer", [Adam, AdamW, SGD, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam])
def test_every_optimizer_takes_the_groups(optimizer):
    made = layer("monarch", 16, 16)
    steps = optimizer(param_groups(made, 1e-3, 0.01, optimizer=optimizer), lr=1e-3)
    fall = torch.optim.lr_scheduler.StepLR(steps, 1)
    before = [p.detach().clone() for p in made.parameters()]
    made(torch.ones(2, 16)).square().sum().backward()
    steps.step()
    assert all(not torch.equal(b, p) for b, p in zip(before, made.parameters(), strict=True))
    fall.step()
    steps.load_state_dict(steps.state_dict())


def test_muon_is_refused_for_factors_that_are_not_matrices():
    model = nn.Sequential(layer("monarch", 16, 16), layer("low_rank", 16, 16), nn.LayerNorm(16))
    with pytest.raises(ValueError, match=r"these are none: 0.factor_0 \(4, 4, 4\) of monarch, .*give them to AdamW"):
        param_groups(model, 0.01, optimizer=Muon)

    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 2

    matrices = param_groups(model, 0.01, optimizer=Muon, only=is_matrix)
    assert sorted(rates(matrices)) == ["1.factor_0", "1.factor_1"]
    rest = param_groups(model, 0.01, only=lambda name, parameter: not is_matrix(name, parameter))
    optimizers = [Muon(matrices, lr=0.01), AdamW(rest)]
    model(torch.randn(8, 16)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    stack = structures.Spec("stack", "(b i), b i -> (b i)", sizes={"b": "4"})
    with pytest.raises(ValueError, match=r"factor_0 \(4, 4\) of stack"):
        param_groups(StructuredLinear(stack, 16, 16), 0.01, optimizer=Muon)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lr": True}, "lr is a number from 0, found True"),  # previously failed: taken as 1
        ({"lr": -1}, "lr is a number from 0, found -1"),
        ({"lr": float("nan")}, "lr is a number"),
        ({"lr": 1, "weight_decay": -1}, "weight_decay is a number from 0, found -1"),
        ({"lr": 1, "base_width": 0}, "base_width is a whole number from 1, found 0"),
        ({"lr": 1, "base_width": 64, "optimizer": SGD}, "base_width is for Adam"),
        ({"lr": 1, "optimizer": "adam"}, "optimizer is a class such as torch.optim.AdamW, found 'adam'"),
        ({"lr": 1, "only": lambda name, p: False}, "StructuredLinear has no parameter to train that `only` takes"),
    ],
)
def test_bad_rates_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        param_groups(layer("monarch", 16, 16), **arguments)


# -- coordinate check


def growth(rows) -> float:
    """The largest over the smallest size of the last layer after the last step, across widths."""
    sizes = [row.size for row in rows if row.step == rows[-1].step and row.layer == rows[-1].layer]
    assert len(sizes) == len({row.width for row in rows})
    return max(sizes) / min(sizes)


# A sum over many products of four Gaussian numbers each (CP, LoHa) or a product of twice log2(width) factors is so
# heavy-tailed that its typical size falls or wanders with the width, though its variance does not.
HEAVY_TAILED = {"cp", "loha", "kaleidoscope"}


@pytest.mark.parametrize(
    "name", sorted(DENSE_FORMS.keys() - HEAVY_TAILED)
)  # another's rank may not grow with the width
def test_activations_stay_of_order_one_as_width_grows(name):
    rows = coordinate_check(name, WIDTHS)
    assert {row.structure for row in rows} == {name} and len(rows) == len(WIDTHS) * 5 * 2
    assert growth(rows) < 2.5
    assert all(0.02 < row.size < 5 for row in rows)


@pytest.mark.parametrize("name", ["dense", "low_rank", "blast"])
def test_the_check_fails_without_the_rule(name):
    assert growth(coordinate_check(name, WIDTHS, scaled=False)) > 4


# -- sharding


@pytest.mark.parametrize(
    "shape, shards, axis",
    [((4, 12, 8), 2, 0), ((4, 12, 64), 8, 2), ((3, 12, 8), 2, 1), ((3, 5, 7), 2, None), ((6, 4), 1, 0), ((5,), 5, 0)],
)
def test_a_factor_is_sharded_along_an_axis_that_divides(shape, shards, axis):
    placement = shard_placement(torch.zeros(*shape), shards=shards)
    assert (None if placement is None else placement.dim) == axis


def test_shards_are_at_least_one():
    with pytest.raises(ValueError, match="shards is at least 1, found 0"):
        shard_placement(torch.zeros(4), shards=0)
    with pytest.raises(ValueError, match="shards is at least 1, found '2'"):
        shard_placement(torch.zeros(4), shards="2")


def sharded_model() -> nn.Module:
    """Numbers of blocks that two processes cannot divide, and a swapped block."""
    torch.manual_seed(0)
    rows = [layer("block_diagonal", 48, 48, n_blocks=3), layer("dyad_it", 48, 48, n_blocks=3), nn.Linear(48, 48)]
    model = nn.Sequential(*(part for row in rows for part in (row, nn.Tanh()))).double()
    swap(model, {"4": ("btt", {"rank": 3})})
    return model


def losses(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> list[float]:
    optimizer = AdamW(param_groups(model, 1e-2, 0.1))
    found = []
    for _ in range(3):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 8, 48, generator=generator, dtype=torch.float64)
    return x, y


def work(rank: int):
    from torch.distributed.fsdp import fully_shard

    sharded = sharded_model()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for part in (sharded[0], sharded[2], sharded):
        fully_shard(part, mesh=mesh, shard_placement_fn=shard_placement)
    placements = [(tuple(p.shape), tuple(p.to_local().shape)) for p in sharded.parameters()]
    x, target = (half.chunk(2)[rank] for half in batch())
    found = [losses(model, x, target) for model in (nn.parallel.DistributedDataParallel(sharded_model()), sharded)]
    mean = torch.tensor(found, dtype=torch.float64)
    dist.all_reduce(mean)
    return (mean / 2).tolist(), placements


def test_two_processes_train_as_one():
    found, placements = of_two(work)
    wanted = torch.tensor(losses(sharded_model(), *batch()))
    for kind, losses_ in zip(("DDP", "FSDP2"), found, strict=True):
        torch.testing.assert_close(torch.tensor(losses_), wanted, msg=lambda text, kind=kind: f"{kind}: {text}")
    for whole, local in placements:
        assert torch.Size(whole).numel() == 2 * torch.Size(local).numel(), "each process holds half of every parameter"
    assert ((3, 16, 16), (3, 8, 16)) in placements


# -- warm start


def correlated(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(width, width, generator=generator) * torch.linspace(1, 0.01, width)[:, None] / width**0.5
    return torch.randn(count, width, generator=generator) @ mixed


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dense"])
def test_a_layer_comes_nearer_to_the_dense_one_on_held_out_inputs(name):
    torch.manual_seed(0)
    width = 12 if name in LONG else 48
    dense = nn.Linear(width, width)
    x = correlated(1500, width)
    made = swap(dense, {"*": name}, project=True).model
    gate = made.structure.gate  # a router that leaves zero changes the choice of experts: that is learned first
    (match,) = distil(made, dense, x, steps=200 if gate else 60)
    if match.before < 1e-3:  # experts that are copies of the dense layer, or as many parameters as it has
        assert match.after <= match.before and (gate or made.structure.params >= dense.weight.numel())
        return
    fresh = correlated(3000, width)[1500:]  # the first 1500 are x
    wanted = dense(fresh)
    assert match.after < match.before
    assert float(((made(fresh) - wanted).norm() / wanted.norm()).detach()) < match.before


def test_a_model_is_matched_layer_by_layer():
    torch.manual_seed(0)
    model = models.GPT()
    teacher = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    swap(model, {"*.mlp.*": ("low_rank", {"rank": 8})}, project=True)
    bias_of_head = model.norm.bias.detach().clone()
    batches = [models.text(8), (models.text(4),), {"ids": models.text(4)}]
    shown = []
    matches = distil(model, teacher, batches, steps=40, tokens=150, progress=shown.append)
    assert [match.layer for match in matches] == ["h.0.mlp.fc1", "h.0.mlp.fc2", "h.1.mlp.fc1", "h.1.mlp.fc2"]
    assert all(match.after <= match.before for match in matches) and shown == matches
    assert sum(match.after < 0.9 * match.before for match in matches) >= 3
    assert all(torch.equal(before[name], p) for name, p in teacher.named_parameters()) and teacher.training
    assert torch.equal(model.norm.bias, bias_of_head)
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_matching_never_makes_a_layer_worse():
    torch.manual_seed(0)
    dense = nn.Linear(16, 16)
    made = swap(dense, {"*": "dense"}, project=True).model
    before = [p.detach().clone() for p in made.parameters()]
    (match,) = distil(made, dense, correlated(64, 16), steps=5, lr=1.0)
    assert match.before == match.after < 1e-6
    assert all(torch.equal(b, p) for b, p in zip(before, made.parameters(), strict=True))


# previously failed: a teacher that calls its layer by keyword
def test_inputs_given_by_keyword_are_seen():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 16)

        def forward(self, x):
            return self.a(input=x)

    torch.manual_seed(0)
    teacher = Keyword()
    model = copy.deepcopy(teacher)
    swap(model, {"a": "monarch"}, project=True)
    (match,) = distil(model, teacher, [correlated(200, 16)], steps=20)
    assert match.after < match.before


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match=r"param_groups: model is an nn\.Module, found list"):
        param_groups([], 0.1)
    with pytest.raises(ValueError, match=r"distil: teacher is an nn\.Module, found int"):
        distil(layer("dense", 8, 8), 3, torch.ones(4, 8))


def test_half_precision_is_trained_in_single():
    torch.manual_seed(0)
    dense = nn.Linear(48, 48).bfloat16()
    made = swap(dense, {"*": "monarch"}, project=True).model
    (match,) = distil(made, dense, correlated(600, 48).bfloat16(), steps=40)
    assert match.after < match.before and made.factors[0].dtype == torch.bfloat16


def test_a_sample_of_the_inputs_is_uniform_and_bounded():
    from structures.models.distil import _Sample

    sample = _Sample(50, torch.Generator().manual_seed(0))
    for start in range(0, 1000, 8):
        sample.add(torch.arange(start, start + 8).float()[:, None].expand(8, 2))
    rows = sample.rows("x", layer("dense", 2, 2))
    assert rows.shape == (50, 2) and len(rows.unique(dim=0)) == 50
    assert 400 < float(rows.mean()) < 600


def dense_pair() -> tuple[nn.Module, nn.Module]:
    return layer("dense", 8, 8), nn.Linear(8, 8)


ERRORS = [
    (lambda: distil(models.ViT(), models.ViT(), []), "ViT has no StructuredLinear; swap"),
    (
        lambda: distil(layer("dense", 8, 8), nn.ReLU(), torch.ones(4, 8)),
        "layer '' has ReLU of that name in the teacher",
    ),
    (lambda: distil(layer("dense", 8, 8), nn.Linear(8, 9), torch.ones(4, 8)), r"\(8, 8\), the teacher's is \(8, 9\)"),
    (lambda: distil(*dense_pair(), [1]), "for one layer inputs is a tensor, found list"),
    (lambda: distil(*dense_pair(), torch.ones(4, 7)), "takes in_features=8 numbers"),
    (lambda: distil(*dense_pair(), torch.ones(1, 8)), "has seen 1 rows of inputs; it needs two"),
    (lambda: distil(*dense_pair(), torch.full((4, 8), torch.inf)), "inputs that are not finite"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), steps=-1), "steps is a whole number from 0, found -1"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), steps="a"), "steps is a whole number from 0, found 'a'"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), batch=2.0), r"batch is a whole number from 1, found 2\.0"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), tokens=True), "tokens is a whole number from 2, found True"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), held_out=1), "held_out is a number above 0 and below 1, found 1"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), lr="b"), "lr is a number above 0, found 'b'"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), lr=torch.inf), "lr is a number above 0, found inf"),
    (lambda: distil(*dense_pair(), torch.ones(4, 8), progress=True), "progress is called with each layer's Match"),
    (lambda: distil(*map(nn.Sequential, dense_pair()), 3), "inputs are the model's batches, .* found int"),
    (
        lambda: distil(*map(nn.Sequential, dense_pair()), "x"),
        "each is a tensor, a tuple or a mapping of arguments, found str",
    ),
    (lambda: distil(*[nn.Sequential(layer("dense", 8, 8))] * 2, torch.ones(4, 8)), "the teacher is the model itself"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_matched_is_an_error_that_names_the_layer(number):
    call, message = ERRORS[number]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_partial_of_the_placement_serves_a_smaller_mesh():
    assert functools.partial(shard_placement, shards=4)(torch.zeros(2, 8)).dim == 1
