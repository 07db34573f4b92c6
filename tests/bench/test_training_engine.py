"""The parts of a training run: networks and what stands in their layers' place, costs, members, rates, divergence."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bench.__main__ import main  # noqa: E402
from bench.files.vocabulary import FEWER_BITS  # noqa: E402
from bench.sweep import rivals  # noqa: E402
from bench.training import costs, jobs, members, problems, rates, rows, settings, variants  # noqa: E402
from bench.training.members import Members, Outcome  # noqa: E402
from bench.training.variants import Unreachable, Variant  # noqa: E402
from structures import StructuredLinear  # noqa: E402
from structures.backends.native import kernel  # noqa: E402
from structures.models.rates import multiplier, param_groups  # noqa: E402

SMOKE = {task: several[0] for task, several in settings.SETTINGS["smoke"].items()}
TEACHER, FACTS, TEXT = SMOKE["teacher"], SMOKE["facts"], replace(SMOKE["language"], layers="ff")


class Blocks(problems.TrainingProblem):
    """The encoder's task without the encoder."""

    squared = True

    def batch(self, seed: int, step: int) -> problems.Batch:
        x = torch.randn(self.setting.batch, 32, generator=self._drawn(seed, step))
        return x, x.flip(1).relu()


def problem_of(setting: settings.Setting) -> problems.TrainingProblem:
    return Blocks(setting, (32,), 32, {}) if setting.task == "encoder" else problems.load(setting)


BLOCK = replace(SMOKE["encoder"], widths=(32,), base=32)


@pytest.mark.parametrize("setting", [TEACHER, BLOCK, TEXT, replace(TEXT, layers="all")], ids=lambda s: s.name)
def test_every_network_takes_structures_and_controls(setting: settings.Setting) -> None:
    problem, [width] = problem_of(setting), setting.widths
    x, y = problem.batch(0, 0)
    plain = variants.dense(setting, width, problem)
    names = variants.replaced(setting, plain)
    own = costs.costs(plain, names, x, setting.tokens)
    share = {}
    for variant in (Variant("dense_narrow", "params=0.5"), Variant("removed"), Variant("low_rank", "params=0.5")):
        net = variants.build(setting, variant, width, problem)
        narrow = variant.structure == "dense_narrow"
        cost = costs.costs(net, names, x, setting.tokens, dense=net if narrow else plain)
        share[variant.structure] = cost["replaced_params"] / own["replaced_params"]
        problem.losses(net(x)[None], y[None]).sum().backward()
        assert cost["flops"] < own["flops"] and cost["params"] < own["params"]
        structured = [n for n in names if isinstance(net.get_submodule(n), StructuredLinear)]
        assert structured == (names if variant.structure == "low_rank" else [])
        assert all(p.grad is not None for n in structured for p in net.get_submodule(n).parameters())
    assert share["low_rank"] == pytest.approx(0.5, rel=0.15)
    assert share["dense_narrow"] == pytest.approx(0.5, rel=0.35)  # widths are multiples of 8
    assert share["removed"] < 0.5


def test_costs_are_what_pytorch_counts() -> None:
    text, [width] = problems.load(TEXT), TEXT.widths
    decoder, (ids, _) = variants.dense(TEXT, width, text), text.batch(0, 0)
    linear = 12 * width**2 * TEXT.depth + width * text.outputs
    found = costs.costs(decoder, variants.replaced(TEXT, decoder), ids, ids.numel())
    assert found["flops"] == 2 * linear + 4 * TEXT.length * width * TEXT.depth  # attention's two products, in full
    problem = problems.load(TEACHER)
    x, _ = problem.batch(0, 0)
    for variant in (Variant("dense"), Variant("low_rank", "params=0.25"), Variant("block_diagonal", "params=0.25")):
        net = variants.build(TEACHER, variant, 64, problem)
        found = costs.costs(net, variants.replaced(TEACHER, net), x, len(x), dense=variants.dense(TEACHER, 64, problem))
        with FlopCounterMode(display=False) as counter:
            net(x)
        assert found["flops"] * len(x) == counter.get_total_flops()
        assert found["params"] == sum(p.numel() for p in net.parameters())
        assert found["train_flops"] == 3 * found["flops"]
        assert found["executed_train_flops"] >= found["train_flops"]  # the native kernel works intermediates out again


def test_rates_of_wider_layers_and_of_factors_follow_the_rule() -> None:
    problem = problems.load(TEACHER)
    net = variants.build(TEACHER, Variant("dyad_it", "params=0.25"), 128, problem)
    times = rates.multipliers(net, variants.base_inputs(TEACHER, problem))
    layer = net.get_submodule("hidden.0")
    assert isinstance(layer, StructuredLinear)
    for i in range(len(layer.factors)):
        assert times[f"hidden.0.factor_{i}"] == pytest.approx(multiplier(layer.structure, i) * 64 / 128)
    assert times["first.weight"] == 1  # its inputs do not grow with the width
    assert times["last.weight"] == 0.5
    assert times["last.bias"] == times["hidden.0.bias"] == 1


def alone(setting: settings.Setting, variant: Variant, seed: int, lr: float) -> float:
    """The reported loss of one network trained by a plain loop, by whichever backend is chosen for it."""
    problem, [width] = problem_of(setting), setting.widths
    net = variants.build(setting, variant, width, problem, seed=seed)
    groups: list[dict[str, Any]] = param_groups(net, lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(setting.steps):
        for group in groups:
            group["lr"] = lr * group["multiplier"] * members.schedule(step, setting.steps)
        x, y = problem.batch(seed, step)
        optimizer.zero_grad()
        problem.losses(net(x)[None], y[None]).sum().backward()
        optimizer.step()
    x, y = problem.held("report", seed)
    with torch.no_grad():
        return float(problem.losses(net(x)[None], y[None]))


@pytest.mark.parametrize("setting", [TEACHER, FACTS, replace(TEXT, layers="all")], ids=lambda s: s.name)
@pytest.mark.parametrize("structure", ["dense", "dyad_it", "low_rank", "btt_moe"])
def test_members_side_by_side_end_where_each_ends_alone(setting: settings.Setting, structure: str) -> None:
    """As far as float32 allows: rounding, 6e-8 of a number a step, grows tenfold in as few steps."""
    setting = replace(setting, steps=6)
    problem, [width] = problems.load(setting), setting.widths
    variant = Variant(structure, None if structure in ("dense", "btt_moe") else "params=0.25")
    told = [(seed, lr) for seed in (0, 1) for lr in (0.003, 0.01)]
    nets = [variants.trained(setting, variant, width, problem, seed) for seed, _ in told]
    whole = Members(nets, told, rates.multipliers(nets[0], variants.base_inputs(setting, problem)), problem)
    found = whole.train(setting.steps, say=lambda step: None)
    for (seed, lr), outcome in zip(told, found, strict=True):
        assert outcome.loss == pytest.approx(alone(setting, variant, seed, lr), rel=1e-5)
    assert len({outcome.loss for outcome in found}) == 4


@pytest.mark.parametrize("compiled", [True, False])
def test_a_network_is_trained_by_the_kernel_where_it_runs(compiled: bool) -> None:
    """Which does not depend on what `auto` measures, so that a run comes to the same bits again."""
    problem, before = problems.load(TEACHER), kernel.use(None if compiled else "no compiler")
    try:
        net = variants.trained(TEACHER, Variant("monarch", "params=0.25"), 64, problem, 0)
        net(problem.batch(0, 0)[0])
    finally:
        kernel.use(before)
    ran = {layer.ran for layer in net.modules() if isinstance(layer, StructuredLinear)}
    assert ran == {"native"} if compiled else "native" not in ran


def test_rounded_layers_are_those_that_are_named_and_the_network_stays() -> None:
    problem = problems.load(TEACHER)
    net = variants.dense(TEACHER, 64, problem)
    one = Members([net], [(0, 0.003)], rates.multipliers(net, {}), problem)
    [before], names = one.held("report"), variants.replaced(TEACHER, net)
    [found] = one.rounded(names)
    assert set(found) == set(FEWER_BITS) and len(set(found.values()) | {before}) == 4
    assert all(loss == pytest.approx(before, rel=0.02) for loss in found.values())
    assert one.held("report") == [before] and one.nets == [net]
    low = rivals.lowered(copy.deepcopy(net), names, "dense_int8_weights")
    assert type(low.get_submodule("first")) is torch.nn.Linear
    assert {type(low.get_submodule(name)) for name in names} == {rivals.WeightOnly}


def test_experts_of_which_each_token_has_one_are_refused_with_the_reason() -> None:
    with pytest.raises(Unreachable, match="the loss gives the router no gradient"):
        variants.options(
            TEACHER, Variant("dense_moe", None, "n_experts=2,experts_active=1"), 64, problems.load(TEACHER)
        )


def test_settings_of_one_scale_that_are_not_compared_have_names_of_their_own() -> None:
    for tasks in settings.SETTINGS.values():
        every = [setting for several in tasks.values() for setting in several]
        assert len({s.name for s in every}) == len({settings.digest(s.decides) for s in every})


def test_dyad_cat_is_dyad_it_in_one_product() -> None:
    """CAT puts the blocks of both terms side by side in one batched product, as its authors run it."""
    torch.manual_seed(0)
    layer = StructuredLinear("dyad_it", 24, 36, n_blocks=4, bias=False)
    x = torch.randn(5, 24)
    blocks, strided = x.view(5, 4, 6).transpose(0, 1), x.view(5, 6, 4).permute(2, 0, 1)
    both = torch.bmm(torch.cat([blocks, strided]), torch.cat(list(layer.factors)))  # (8, 5, 9)
    y = (both[:4] + both[4:]).transpose(0, 1).reshape(5, 36)
    torch.testing.assert_close(layer(x), y)


def test_networks_of_one_seed_share_what_is_not_replaced() -> None:
    problem = problems.load(TEACHER)
    one = variants.build(TEACHER, Variant("dense"), 64, problem, seed=3).state_dict()
    other = variants.build(TEACHER, Variant("monarch", "params=0.25"), 64, problem, seed=3).state_dict()
    third = variants.build(TEACHER, Variant("dense"), 64, problem, seed=4).state_dict()
    assert torch.equal(one["first.weight"], other["first.weight"])
    assert not torch.equal(one["first.weight"], third["first.weight"])


@pytest.mark.parametrize("setting", [TEACHER, FACTS, TEXT], ids=lambda s: s.name)
def test_batches_depend_on_seed_and_step_alone(setting: settings.Setting) -> None:
    problem = problems.load(setting)
    x, y = problem.batch(1, 30)
    problem.batch(0, 0)
    again = problem.batch(1, 30)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(x, problem.batch(2, 30)[0]) and not torch.equal(x, problem.batch(1, 31)[0])


def test_the_seed_draws_the_task_where_runs_are_paired() -> None:
    for setting in (TEACHER, FACTS):
        problem = problems.load(setting)
        assert problem.paired and not torch.equal(problem.held("report", 0)[1], problem.held("report", 1)[1])
    problem = problems.load(TEXT)
    assert not problem.paired and torch.equal(problem.held("report", 0)[1], problem.held("report", 1)[1])


def test_a_teacher_has_outputs_of_unit_variance_and_parts_of_its_own() -> None:
    problem = problems.load(TEACHER)
    parts = {part: problem.held(part, 1) for part in ("tune", "report")}
    assert not torch.equal(parts["tune"][0], parts["report"][0])
    deviations = torch.cat([y for _, y in parts.values()]).std(0)
    assert float((deviations - 1).abs().max()) < 5 / math.sqrt(2 * 1024)  # five standard errors


def test_what_chooses_rates_is_neither_trained_on_nor_reported() -> None:
    ids = {part: x for part, (x, _) in problems.load(TEXT).parts.items()}
    texts = {part: "".join(map(chr, x.flatten().tolist())) for part, x in ids.items()}
    assert not any(texts[a] in texts[b] for a in texts for b in texts if a != b)


def outcomes(**losses: list[float | None]) -> dict[float, list[Outcome]]:
    """By rates, written as r3 for 0.003, the tune losses of the seeds."""
    made = {name: [Outcome([(0, 9.0)], v, None if v else "diverged") for v in own] for name, own in losses.items()}
    return {float(name[1:]) / 1000: several for name, several in made.items()}


def test_the_rate_is_best_over_all_seeds() -> None:
    tried = outcomes(r1=[1.0, 9.0], r3=[4.0, 5.0], r10=[2.0, None])
    assert rows.best(tried) == 0.003 and rows.beyond(tried) is None  # not the first seed's, nor one that diverged


def test_a_grid_is_extended_where_the_best_is_at_its_end() -> None:
    assert rows.beyond(outcomes(r1=[5.0], r3=[4.0], r10=[3.0])) == 0.03
    assert rows.beyond(outcomes(r3=[3.0], r10=[4.0])) == 0.0009
    assert rows.beyond(outcomes(r3=[3.0])) is None  # one rate is no grid


def test_a_member_that_diverges_is_a_result_and_hurts_no_other() -> None:
    problem = problems.load(TEACHER)
    nets = [variants.dense(TEACHER, 64, problem, seed=seed) for seed in (0, 0)]
    with torch.no_grad():
        nets[0].get_submodule("last").weight.fill_(1e38)
    found = Members(nets, [(0, 0.003)] * 2, rates.multipliers(nets[0], {}), problem).train(5, say=lambda _: None)
    assert found[0].loss is None and "not finite at step 0 of 5" in str(found[0].reason)
    assert found[1].loss is not None and found[1].loss < found[1].curve[0][1]


def test_a_structure_of_which_every_rate_diverges_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    words = "train teacher --scale smoke --structures dyad_it --rates 9 --steps 4 --only losses"
    assert main([*words.split(), "-o", str(path)]) == 0
    held: dict[str, Any] = json.loads(path.read_text())["structures"]
    assert {row["status"] for row in held["rows"]} == {"diverged"} and held["run"]["complete"]
    assert {row["loss"] for row in held["rows"]} == {None} and all(row["reason"] for row in held["rows"])


def test_rates_rise_and_fall() -> None:
    falling = [members.schedule(step, 100) for step in range(100)]
    assert falling[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert falling[5:] == sorted(falling[5:], reverse=True) and falling[-1] < 0.02
    assert members.points(100) == {0, 6, 12, 25, 50, 100} and members.points(1) == {0, 1}


def test_equal_layers_are_trained_once_and_said_so() -> None:
    setting = replace(TEACHER, budgets=("params=0.25", "flops=0.25"), structures=("low_rank", "einsum"))
    made = jobs.Grid({setting: problems.load(setting)}, (1, 1))
    found = [v.series for v in made.variants[setting] if not v.control]
    assert "low_rank @ params=0.25" in found and "low_rank @ flops=0.25" not in found
    [reason] = [r["reason"] for r in made.refused if r["series"] == "low_rank @ flops=0.25"]
    assert "the same layers as low_rank @ params=0.25" in reason


def test_every_entry_is_asked_for_and_each_that_misses_a_quarter_is_named() -> None:
    import structures

    problem = problems.load(settings.TEACHER)
    made = jobs.Grid({settings.TEACHER: problem}, (1, 1))
    named = [*(v.structure for v in made.variants[settings.TEACHER]), *(r["structure"] for r in made.refused)]
    assert sorted(named) == sorted([*structures.names(), "dense_narrow", "removed"])
    assert all("share of dense's" in r["reason"] or "times dense's" in r["reason"] for r in made.refused)


def test_shards_part_the_variants() -> None:
    whole, *parts = (jobs.Grid({FACTS: problems.load(FACTS)}, shard).variants[FACTS] for shard in
                     ((1, 1), (1, 3), (2, 3), (3, 3)))  # fmt: skip
    assert sorted(v.series for part in parts for v in part) == sorted(v.series for v in whole)
