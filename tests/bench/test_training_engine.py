"""The parts of a training run: networks and what stands in their layers' place, costs, rates, divergence, scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bench.__main__ import main  # noqa: E402
from bench.training import costs, jobs, loop, measures, plan, problems, rates, settings, timed, variants  # noqa: E402
from bench.training.decoders import ALL  # noqa: E402
from bench.training.parallel import Processes  # noqa: E402
from bench.training.timing import Pairs  # noqa: E402
from bench.training.variants import Unreachable, Variant  # noqa: E402
from structures import StructuredLinear  # noqa: E402
from structures.models.rates import multiplier  # noqa: E402

SMOKE = {task: several[0] for task, several in settings.SETTINGS["smoke"].items()}
REGRESSION, TEXT, DIGITS = SMOKE["regression"], SMOKE["language"], SMOKE["images"]
NETWORKS = [("mlp", DIGITS), ("mixer", DIGITS), ("vit", DIGITS), *((m, TEXT) for m in ("gpt", "opt", "pythia", "gpt2"))]


@pytest.mark.parametrize(
    ("model", "setting", "layers"),
    [(*n, "ff") for n in NETWORKS] + [(*n, "all") for n in NETWORKS if n[0] in ("mlp", "vit", "gpt", "gpt2")],
)
def test_every_network_takes_structures_and_controls(model: str, setting: settings.Setting, layers: str) -> None:
    setting = replace(setting, model=model, layers=layers, widths=(32,), grammar=0)
    problem = problems.load(setting)
    x, y = problem.batch(0, 0)
    plain = variants.dense(setting, 32, problem)
    names = variants.replaced(setting, plain)
    own = costs.costs(plain, names, x, setting.tokens)
    share = {}
    for variant in (Variant("dense_narrow", "params=0.5"), Variant("removed"), Variant("low_rank", "params=0.5")):
        net = variants.build(setting, variant, 32, problem)
        narrow = variant.structure == "dense_narrow"
        cost = costs.costs(net, names, x, setting.tokens, dense=net if narrow else plain)
        share[variant.structure] = cost["replaced_params"] / own["replaced_params"]
        problem.loss(net(x), y).backward()
        assert cost["flops"] < own["flops"] and cost["params"] < own["params"]
        structured = [n for n in names if isinstance(net.get_submodule(n), StructuredLinear)]
        assert structured == (names if variant.structure == "low_rank" else [])
        assert all(p.grad is not None for n in structured for p in net.get_submodule(n).parameters())
    assert share["low_rank"] == pytest.approx(0.5, rel=0.15)
    assert share["dense_narrow"] == pytest.approx(0.5, rel=0.35)  # widths are multiples of 8
    ff = ALL[model].names(plain, "ff")
    kept = sum(p.numel() for n in names if n not in ff for p in plain.get_submodule(n).parameters())
    assert share["removed"] == pytest.approx(kept / own["replaced_params"])


def test_costs_are_what_pytorch_counts() -> None:
    problem = problems.load(DIGITS)
    x, _ = problem.batch(0, 0)
    for variant in (Variant("dense"), Variant("low_rank", "params=0.25"), Variant("block_diagonal", "params=0.25")):
        net = variants.build(DIGITS, variant, 64, problem)
        found = costs.costs(net, variants.replaced(DIGITS, net), x, len(x), dense=variants.dense(DIGITS, 64, problem))
        with FlopCounterMode(display=False) as counter:
            net(x)
        assert found["flops"] * len(x) == counter.get_total_flops()
        assert found["params"] == sum(p.numel() for p in net.parameters())
        assert found["train_flops"] == 3 * found["flops"]
        assert found["executed_train_flops"] >= found["train_flops"]  # the native kernel works intermediates out again


def test_rates_of_wider_layers_and_of_factors_follow_the_rule() -> None:
    problem = problems.load(REGRESSION)
    base = variants.base_inputs(REGRESSION, problem)
    net = variants.build(REGRESSION, Variant("dyad_it", "params=0.25"), 128, problem)
    lr = {id(p): g["lr"] for g in rates.groups(net, base, 0.01) for p in g["params"]}
    layer = net.get_submodule("hidden.0")
    assert isinstance(layer, StructuredLinear)
    for i, factor in enumerate(layer.factors):
        assert lr[id(factor)] == pytest.approx(0.01 * multiplier(layer.structure, i) * 64 / 128)
    assert lr[id(net.get_submodule("first").weight)] == 0.01  # its inputs do not grow with the width
    assert lr[id(net.get_submodule("last").weight)] == pytest.approx(0.005)
    assert lr[id(net.get_submodule("last").bias)] == lr[id(layer.bias)] == 0.01


def test_networks_of_one_seed_share_what_is_not_replaced() -> None:
    problem = problems.load(REGRESSION)
    one = variants.build(REGRESSION, Variant("dense"), 64, problem, seed=3).state_dict()
    other = variants.build(REGRESSION, Variant("monarch", "params=0.25"), 64, problem, seed=3).state_dict()
    third = variants.build(REGRESSION, Variant("dense"), 64, problem, seed=4).state_dict()
    assert torch.equal(one["first.weight"], other["first.weight"])
    assert not torch.equal(one["first.weight"], third["first.weight"])


def test_batches_depend_on_seed_and_step_alone() -> None:
    for setting in (REGRESSION, DIGITS, TEXT):
        problem = problems.load(setting)
        x, y = problem.batch(1, 30)
        problem.batch(0, 0)
        again = problem.batch(1, 30)
        assert torch.equal(x, again[0]) and torch.equal(y, again[1])
        assert not torch.equal(x, problem.batch(2, 30)[0]) and not torch.equal(x, problem.batch(1, 31)[0])


def test_what_finds_rates_is_neither_trained_on_nor_reported() -> None:
    problem = problems.load(DIGITS)
    seen = {part: {tuple(row.flatten().tolist()) for row in problem.parts[part][0]} for part in ("tune", "report")}
    trained = {tuple(row.flatten().tolist()) for row in problems.floats(problem.arrays["x"])}
    assert not seen["tune"] & seen["report"] and not seen["tune"] & trained and not seen["report"] & trained


def test_a_run_that_diverges_is_a_result() -> None:
    problem = problems.load(REGRESSION)
    net = variants.dense(REGRESSION, 64, problem)
    with torch.no_grad():
        net.get_submodule("last").weight.fill_(1e38)
    told = {"key": "k", "steps": 5, "seed": 0, "part": "report", "group": Processes()}
    out = loop.train(net, lambda n: [{"params": list(n.parameters()), "lr": 0.1}], problem, **told)
    assert out.loss is None and "not finite at step 1 of 5" in str(out.reason)


def test_a_structure_of_which_every_rate_diverges_is_left_out_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    words = "train regression --scale smoke --structures dyad_it --widths 64 --rates 9 --tune-steps 4 --steps 4"
    assert main([*words.split(), "--only", "losses", "-o", str(path)]) == 0
    held: dict[str, Any] = json.loads(path.read_text())["structures"]
    assert {row["status"] for row in held["rows"]} == {"diverged"} and held["run"]["complete"]
    assert {row["structure"] for row in held["refused"]} == {"dense", "dense_narrow", "removed", "dyad_it"}
    assert {row["reason"] for row in held["refused"]} == {"every learning rate tried diverged"}


def test_rates_rise_and_stay_or_fall() -> None:
    constant = [loop.rate(REGRESSION, step, 100) for step in range(100)]
    falling = [loop.rate(replace(REGRESSION, schedule="linear"), step, 100) for step in range(100)]
    assert constant[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and set(constant[5:]) == {1.0}
    assert falling[:5] == constant[:5] and falling[5:] == sorted(falling[5:], reverse=True) and falling[-1] < 0.02
    assert loop.points(100)[0] == 0 and loop.points(100)[-1] == 100 and loop.points(1) == [0, 1]


def test_a_sentence_scores_the_sum_of_its_tokens() -> None:
    problem = problems.load(TEXT)
    net = variants.dense(TEXT, 32, problem)
    texts = ["The nation has the land.", "No."]
    found = measures.scores(net, problem, texts, Processes())
    for text, score in zip(texts, found, strict=True):
        ids = torch.tensor(problem.tokenizer.encode("\n\n" + text).tolist())
        logs = net(ids[None, :-1])[0].log_softmax(-1).detach()
        wanted = sum(float(logs[i, ids[i + 1]]) for i in range(1, len(ids) - 1))
        assert score == pytest.approx(wanted, rel=1e-4)


def test_bits_per_byte_are_those_of_the_text() -> None:
    problem = problems.load(replace(TEXT, tokenizer="bytes"))
    out = loop.Outcome(curve=[(1, math.log(256))])
    quiet = replace(problem, setting=replace(TEXT, tokenizer="bytes", grammar=0))
    assert measures.of(torch.nn.Identity(), quiet, out, Processes()) == {"bits_per_byte": pytest.approx(8.0)}


def test_equal_layers_are_trained_once_and_said_so() -> None:
    setting = replace(REGRESSION, budgets=("params=0.25", "flops=0.25"), structures=("low_rank", "einsum"))
    made = plan.Grid({setting: problems.load(setting)}, (1, 1))
    found = [v.series for v in made.variants[setting] if not v.control]
    assert "low_rank @ params=0.25" in found and "low_rank @ flops=0.25" not in found
    [reason] = [r["reason"] for r in made.refused if r["series"] == "low_rank @ flops=0.25"]
    assert "the same layers as at params=0.25" in reason


def test_a_budget_in_time_is_met_by_what_takes_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def ratio(self: Pairs, variant: Variant) -> dict[str, Any]:
        if variant.structure == "monarch":
            raise Unreachable("it does not fit")
        return {"speedup": {"median": 1 / (0.3 + variant.share())}}

    monkeypatch.setattr(Pairs, "ratio", ratio)
    pairs = Pairs.__new__(Pairs)
    chosen, found = Pairs.matched(pairs, Variant("low_rank", "time=0.8"))
    assert chosen.budget == "params=0.5" and found["time_share"] == pytest.approx(0.8)
    with pytest.raises(Unreachable, match=r"no share of parameters gives a step of 0.2 .*0.36 at params=0.0625"):
        Pairs.matched(pairs, Variant("low_rank", "time=0.2"))
    with pytest.raises(Unreachable, match="no share of parameters can be met"):
        Pairs.matched(pairs, Variant("monarch", "time=0.5"))
    assert timed.in_time(Variant("low_rank", "time=0.2")) and not timed.in_time(Variant("low_rank", "flops=0.2"))


def test_a_time_is_met_where_steps_are_timed_and_by_what_every_width_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """btt_moe can have a quarter of the parameters at width 512, not at 128; a control can have any share."""

    def matched(self: Pairs, variant: Variant) -> tuple[Variant, dict[str, Any]]:
        speedup = {"median": 1.4, "q1": 1.4, "q3": 1.4, "rounds": 5}
        found = {"speedup": speedup, "dense_seconds": 0.1, "step_seconds": 0.07, "flags": [], "time_share": 0.71}
        return replace(variant, budget="params=0.25"), found

    monkeypatch.setattr(Pairs, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr(Pairs, "matched", matched)
    monkeypatch.setattr(timed, "times", lambda ledger, trainer: None)
    words = "train regression --scale smoke --widths 128,512 --steps 2 --tune-steps 2 --batch 8 --held-out 32 --seeds 1"
    words += " --rates 0.001"

    def made(*more: str) -> tuple[set[str], dict[str, str]]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert main([*words.split(), *more, "-o", str(path)]) == 0
        section = json.loads(path.read_text())["structures"]
        trained = {row["series"] for row in section["rows"] if row["phase"] == "train"}
        return trained, {r["series"]: r["reason"] for r in section["refused"]}

    timed_alone = ["--structures", "btt_moe low_rank", "--budget", "time=0.7"]
    trained, refused = made(*timed_alone)
    assert {"dense_narrow @ time=0.7", "low_rank @ time=0.7"} <= trained and "btt_moe @ time=0.7" not in trained
    reason = refused["btt_moe @ time=0.7"]
    assert reason.startswith("met by params=0.25 at width 512, but the nearest share") and "width 128" in reason

    trained, refused = made(*timed_alone, "--only", "losses")  # nothing is timed then, whatever the machine does
    assert "low_rank @ time=0.7" not in trained and "run --only times" in refused["low_rank @ time=0.7"]
    _, refused = made(*timed_alone, "--only", "losses", "--resume", str(tmp_path / "0.json"))
    assert refused["btt_moe @ time=0.7"] == reason  # as the file of times says

    both = ["--structures", "low_rank", "--budget", "params=0.25 time=0.7"]
    for shard in ("1/2", "2/2"):  # one of them has low_rank at params=0.25, the other at the time that it meets
        trained, _ = made(*both, "--shard", shard)
        assert "low_rank @ time=0.7" not in trained


def test_shards_part_the_variants() -> None:
    controls, several = jobs.variants(REGRESSION)
    every = [*controls, *several]
    parts = [jobs.shard(every, k, 3) for k in (1, 2, 3)]
    assert sorted(v.series for part in parts for v in part) == sorted(v.series for v in every)
