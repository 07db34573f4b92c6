"""What stands in the place of a network's linear layers: a structure at a budget, a mix of them, or a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import structures
from bench.files.vocabulary import DENSE, MIX, NARROW, NEAR, REMOVED
from bench.sweep.request import read_options
from bench.training import rates
from bench.training.models import FAMILIES, NetworkShape, remove
from bench.training.problems import TrainingProblem
from bench.training.settings import Setting
from structures import StructuredLinear, backends
from structures.models import linears
from structures.models.swap import swap
from structures.options import closest_options
from structures.spec import SpecError

CONTROLS = (DENSE, NARROW, REMOVED)

Rules = dict[str, tuple[str, dict[str, object]]]  # structure and options by the layer's name


@dataclass(frozen=True)
class Variant:
    """A structure (or mix, or control), and what it is brought to.

    budget: `params=0.5` or `flops=0.5`, of the replaced layers' parameters or FLOPs.
    options: of the user's own, as `n_blocks=4`; then there is no budget.
    """

    structure: str
    budget: str | None = None
    options: str = ""

    @property
    def control(self) -> bool:
        return self.structure in CONTROLS

    @property
    def series(self) -> str:
        """A name for tables: `dyad_it @ params=0.5`."""
        return self.structure + (f" @ {self.budget}" if self.budget else f" {self.options}" if self.options else "")

    def named(self, setting_name: str) -> dict[str, Any]:
        """The fields that identify a row to a reader."""
        return {
            "setting": setting_name,
            "structure": self.structure,
            "way": "control" if self.control else "structure",
            "series": self.series,
            "budget": self.budget,
        }

    def share(self) -> float:
        return float(self.budget.partition("=")[2]) if self.budget else 1.0


class Unreachable(Exception):
    """A variant that does not exist in this network; the message says why."""


def shape(setting: Setting, width: int, problem: TrainingProblem, hidden: float = 1.0) -> NetworkShape:
    return NetworkShape(width, setting.depth, problem.inputs, problem.outputs, hidden)


def dense(setting: Setting, width: int, problem: TrainingProblem, *, seed: int = 0, hidden: float = 1.0) -> nn.Module:
    """The dense network, drawn from `seed`; its layers to replace are drawn as structures are."""
    torch.manual_seed(seed)
    model = FAMILIES[setting.model].build(shape(setting, width, problem, hidden))
    rates.draw(model, replaced(setting, model))
    return model


def replaced(setting: Setting, model: nn.Module) -> list[str]:
    """Names of the layers to replace, controls included."""
    return FAMILIES[setting.model].names(model, setting.layers)


def empty(setting: Setting, width: int, problem: TrainingProblem) -> nn.Module:
    """The dense network without numbers."""
    with torch.device("meta"):
        return FAMILIES[setting.model].build(shape(setting, width, problem))


def base_inputs(setting: Setting, problem: TrainingProblem) -> dict[str, int]:
    """Inputs of every linear layer of the dense network at the width that rates are given for."""
    return rates.inputs_of(empty(setting, setting.base, problem))


def build(setting: Setting, variant: Variant, width: int, problem: TrainingProblem, *, seed: int = 0) -> nn.Module:
    """The network of a variant. Networks of one seed share the parameters of layers that are not replaced.

    Raises:
        Unreachable: it cannot be brought to its budget here; the message says why.
    """
    if variant.structure == NARROW:
        return _narrow(setting, variant, width, problem, seed)
    model = dense(setting, width, problem, seed=seed)
    names = replaced(setting, model)
    if variant.structure == REMOVED:
        torch.manual_seed(seed + 1)
        remove(model, [n for n in names if n in FAMILIES[setting.model].names(model, "ff")])
    elif variant.structure != DENSE:
        rules = options(setting, variant, width, problem)
        torch.manual_seed(seed + 1)
        try:
            swap(model, rules, init="spectral", skip=())
        except ValueError as error:
            raise Unreachable(str(error).partition("\n")[0]) from None
    return model


def trained(setting: Setting, variant: Variant, width: int, problem: TrainingProblem, seed: int) -> nn.Module:
    """The network as it is trained: by the native kernel wherever it runs, so that a run comes to the same bits."""
    model = build(setting, variant, width, problem, seed=seed)
    for layer in model.modules():
        if isinstance(layer, StructuredLinear):
            x = torch.empty(0, layer.in_features, device=setting.device)
            if backends.refusal("native", layer.structure, x) is None:
                layer.backend = "native"
    return model


def options(setting: Setting, variant: Variant, width: int, problem: TrainingProblem) -> Rules:
    """The structure and options of every layer to replace.

    Raises:
        Unreachable: the budget, or the options given, do not fit.
    """
    model = empty(setting, width, problem)
    names, words = replaced(setting, model), variant.structure.split(MIX)
    rules: Rules = {}
    have, want = {"params": 0, "flops": 0}, {"params": 0, "flops": 0}
    quantity = (variant.budget or "").partition("=")[0]
    for i, name in enumerate(names):
        word, widths = words[i % len(words)], linears.widths(model.get_submodule(name))
        try:
            own = read_options(variant.options)
            if variant.budget:
                own = dict(closest_options(word, *widths, **{quantity: variant.share()}).options)  # type: ignore[arg-type]
            bound = structures.get(word).bind(*widths, **own)  # type: ignore[arg-type]
        except SpecError as error:
            raise Unreachable(str(error).partition("\n")[0]) from None
        if bound.gate is not None and bound.gate.active == 1 < bound.gate.experts:
            raise Unreachable("each token has one expert, so that the loss gives the router no gradient")
        have = {"params": have["params"] + bound.params, "flops": have["flops"] + bound.flops()}
        want = {"params": want["params"] + bound.dense_params, "flops": want["flops"] + bound.dense_flops()}
        rules[name] = word, own if variant.budget else dict(bound.options)
    shares = {key: have[key] / want[key] for key in have}
    if quantity and abs(shares[quantity] / variant.share() - 1) > NEAR:
        raise Unreachable(f"the nearest share of dense's {quantity} it can reach at width {width} is "
                          f"{shares[quantity]:.3g}")  # fmt: skip
    other = "flops" if quantity == "params" else "params"
    if quantity and shares[other] > 1 + NEAR:
        raise Unreachable(f"{variant.budget} takes {shares[other]:.3g} times dense's {other} at width {width}")
    return rules


def _narrow(setting: Setting, variant: Variant, width: int, problem: TrainingProblem, seed: int) -> nn.Module:
    """The dense network with its layers to replace narrowed to the budget: inside, or of a smaller width."""
    family, share = FAMILIES[setting.model], variant.share()
    if not family.narrow_width and setting.layers == "ff":
        return dense(setting, width, problem, seed=seed, hidden=share)
    step = shape(setting, width, problem).heads * 2
    count = _replaced_params(setting, width, problem)
    near = min(range(step, width + 1, step), key=lambda w: abs(_replaced_params(setting, w, problem) - share * count))
    return dense(setting, near, problem, seed=seed)


def _replaced_params(setting: Setting, width: int, problem: TrainingProblem) -> int:
    built = empty(setting, width, problem)
    return sum(i * o for i, o in (linears.widths(built.get_submodule(name)) for name in replaced(setting, built)))


def described(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Options of the structured layers among `names` by `INxOUT`, with the structure's name where they are a mix."""
    found = [m for m in map(model.get_submodule, names) if isinstance(m, StructuredLinear)]
    mixed = len({m.structure.name for m in found}) > 1
    return {
        f"{m.in_features}x{m.out_features}{f' {m.structure.name}' if mixed else ''}": dict(m.structure.options)
        for m in found
    }
