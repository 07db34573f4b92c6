"""Decoders shaped as OPT-125m and Pythia-160m: a training step and a forward pass, dense against structured layers.

A few decoder layers on hidden states stand for all of them, since a model is that many equal layers; what a swap leaves
alone (embeddings, head, loss) is a row of its own, measured on the same model without layers.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import structures
from bench.files import kinds
from bench.files.errors import UsageError
from bench.files.vocabulary import MODES
from bench.files.wholes import BOTH, FF_ONLY, REST
from bench.machine import timing
from bench.modules.timed import SEED, Addmm, Kinks, Rows, TimedAt, drawn, state_bytes, where
from bench.sweep.check import CheckFailed, compare, saved_by
from bench.sweep.subject import PLAIN
from structures import StructuredLinear, backends, exactness, reference
from structures.models.shapes import SHAPES
from structures.models.swap import swap
from structures.options import closest_options

KIND = kinds.DECODER
SHARES = (0.5, 0.25)
DYAD = ("dyad_it", "dyad_ot", "dyad_dt")
MIX = "dyad_mix"  # the variants in turn, a layer each
NAMES = (*DYAD, MIX, "monarch", "low_rank")
WAYS = ("linear", "addmm")  # of dense; the faster one is what is compared to
CPU_LAYERS = len(DYAD)  # the least in which a mix has every variant
CPU_BATCH = 2  # sequences
RATE = 1e-4
LEAST = 1e-3  # of the largest gradient: what an error is relative to, where a tensor's own numbers are smaller


@dataclass(frozen=True)
class DecoderShape:
    """A model's family and size, and the names of its linear layers within a decoder layer."""

    name: str
    width: int
    layers: int
    feed_forward: tuple[str, ...]
    attention: tuple[str, ...]
    blocks: str  # where its layers are in the model without a head
    activation: str  # where a layer keeps its activation


MODELS = (
    DecoderShape(
        "opt-125m",
        768,
        12,
        ("fc1", "fc2"),
        tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        "decoder.layers",
        "activation_fn",
    ),
    DecoderShape(
        "pythia-160m",
        768,
        12,
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        ("attention.query_key_value", "attention.dense"),
        "layers",
        "mlp.act",
    ),
)


@dataclass(frozen=True)
class DecoderPoint(TimedAt):
    """One row: a model with some of its layers replaced, in one mode. `layers` of them are run; 0 for the rest."""

    model: str
    structure: str
    share: float | None
    place: str
    layers: int

    def __str__(self) -> str:
        share = f"-{self.share:g}" if self.share else ""
        return f"{self.model}-{self.structure}{share}-{self.place.replace(' ', '_')}-{self.mode}-t{self.tokens}"

    @property
    def shape(self) -> DecoderShape:
        return next(shape for shape in MODELS if shape.name == self.model)

    @property
    def cell(self) -> tuple[str, ...]:
        """What points share that are compared to one dense model."""
        return self.model, self.mode, str(self.layers)

    @property
    def cost(self) -> float:
        """About how long a dense call takes; the head and the embeddings as long as seven layers."""
        return (self.layers or 7) * (3.0 if self.train else 1.0)


def points(option: Any) -> list[DecoderPoint]:
    """All points: of each model and mode the rest, dense, then structures, feed-forward only before both places.

    Raises:
        UsageError: an option that is not allowed, or transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise UsageError("the decoders need transformers: pip install 'structures[models]'")
    at = where(option, CPU_BATCH)
    found = []
    for shape in MODELS:
        layers = shape.layers if at["device"] == "cuda" or option.full else CPU_LAYERS
        for mode in MODES:
            here = {"model": shape.name, "mode": mode, **at}
            found.append(DecoderPoint(structure="dense", share=None, place=REST, layers=0, **here))
            found.append(DecoderPoint(structure="dense", share=None, place=BOTH, layers=layers, **here))
            for share in SHARES:
                for place in (FF_ONLY, BOTH):
                    found += [DecoderPoint(structure=n, share=share, place=place, layers=layers, **here) for n in NAMES]
    return found


def setup(points: Sequence[DecoderPoint]) -> dict[str, object]:
    """What all rows of a file share."""
    first = points[0]
    more = {"optimizer": f"AdamW, fused, rate {RATE:g}", "ways of dense": WAYS, "dropout": 0}
    layers = max(point.layers for point in points)
    return {"batch": first.batch, "sequence": first.sequence, "tokens": first.tokens, "layers": layers, **more}


# -- models


def dense_model(point: DecoderPoint) -> nn.Module:
    """The decoder without a head, with `point.layers` layers, dropout off; for the rest the whole language model."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    kind, settings = SHAPES[point.model]
    settings = settings | {"num_hidden_layers": point.layers, "use_cache": False}
    if point.layers:
        settings |= {"vocab_size": 8}  # hidden states go in, so that no embedding is looked up
        settings |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(kind, **settings)
    for name in ("dropout", "attention_dropout", "hidden_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(SEED)
    auto = transformers.AutoModel if point.layers else transformers.AutoModelForCausalLM
    model: nn.Module = auto.from_config(config)
    return model.to(point.device, getattr(torch, point.dtype))


def replaced(point: DecoderPoint, model: nn.Module) -> dict[str, dict[str, object]]:
    """Swap the point's layers in place, with fresh factors and the options nearest to its share; returns these.

    How near they come is in the row: Monarch's blocks must divide the width twice, which leaves 0.625 for a half.
    """
    if point.structure == "dense":
        return {}
    chosen: dict[str, dict[str, object]] = {}
    rules: dict[Any, Any] = {}
    for name in layer_names(point):
        linear = model.get_submodule(name)
        widths = int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
        entry = point.structure
        if entry == MIX:
            entry = DYAD[_number(point, name) % len(DYAD)]
        options = dict(closest_options(entry, *widths, params=point.share).options)
        chosen[f"{widths[0]}x{widths[1]}"] = options
        rules[name] = (entry, options)
    swap(model, rules)
    return chosen


def layer_names(point: DecoderPoint, place: str = "") -> list[str]:
    """Names of the linear layers of the point's places, by layer."""
    shape = point.shape
    inner = (*shape.feed_forward, *(shape.attention if (place or point.place) == BOTH else ()))
    return [f"{shape.blocks}.{i}.{name}" for i in range(point.layers) for name in inner]


def _number(point: DecoderPoint, name: str) -> int:
    return int(name.removeprefix(point.shape.blocks + ".").partition(".")[0])


def _by_addmm(point: DecoderPoint, model: nn.Module) -> None:
    for name in layer_names(point, BOTH):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, Addmm(linear))


# -- one call


def inputs(point: DecoderPoint) -> tuple[Tensor, Tensor]:
    """Hidden states and their dy, (batch, sequence, width); for the rest token ids, twice. The same in every run."""
    if not point.layers:
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(2, 50000, (point.batch, point.sequence), generator=generator).to(point.device)
        return ids, ids
    return drawn(point, point.batch, point.sequence, point.shape.width)


def run(point: DecoderPoint, model: nn.Module, x: Tensor) -> Tensor:
    """The last hidden states, or for the rest the loss."""
    if not point.layers:
        return model(input_ids=x, labels=x).loss  # type: ignore[no-any-return]
    return model(inputs_embeds=x).last_hidden_state  # type: ignore[no-any-return]


def step(point: DecoderPoint, model: nn.Module, x: Tensor, dy: Tensor) -> timing.Step:
    """A forward pass, or a training step: forward, gradients of everything, AdamW."""
    if not point.train:
        return lambda: run(point, model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def train() -> None:
        y = run(point, model, x)
        y.backward(dy if point.layers else None)  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return train


# -- the check


class Meaning(nn.Module):
    """A structured layer run by the reference (one einsum a term) or by plain einsum steps."""

    def __init__(self, layer: StructuredLinear, apply: Callable[..., Tensor]):
        super().__init__()
        self.structure, self.apply = layer.structure, apply
        for name, parameter in layer.named_parameters():  # in the layer's order
            self.register_parameter(name, nn.Parameter(parameter.detach()))

    def forward(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, input.shape[-1])
        *factors, bias = self.parameters()
        y = self.apply(self.structure, flat, tuple(factors), bias)
        return y.reshape(*input.shape[:-1], y.shape[1])


def meaning(model: nn.Module, apply: Callable[..., Tensor]) -> nn.Module:
    """A copy of the model whose structured layers are run by `apply`; parameters keep their order."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, StructuredLinear):
            model.set_submodule(name, Meaning(layer, apply))
    return model


def check(point: DecoderPoint, model: nn.Module, x: Tensor, dy: Tensor) -> float:
    """The largest error of y, or when training of every gradient, relative to the largest number of each tensor.

    The first sequence is compared with the reference in float64; dy is zero in the others.

    Raises:
        CheckFailed: an error above what the error rule allows (`structures.exactness`), or a gradient in a sequence
            where dy is zero.
    """
    kinks = Kinks()
    exact, plain = meaning(model, reference.apply).double(), meaning(model, partial(backends.apply, PLAIN))
    acts = [f"{point.shape.blocks}.{i}.{point.shape.activation}" for i in range(point.layers)]
    kept = [model.get_submodule(name) for name in acts]
    if all(isinstance(act, nn.ReLU) for act in kept):
        for name in acts:
            for each in (model, exact, plain):
                each.set_submodule(name, kinks)
    first = x.detach()[:1]
    try:
        found = _results(point, model, x, torch.cat([dy[:1], torch.zeros_like(dy[1:])]))
        with kinks.replayed():
            wanted = _results(point, exact, first.double(), dy[:1].double())
        with kinks.replayed():
            usual = _results(point, plain, first, dy[:1])
    finally:
        for name, act in zip(acts, kept, strict=True):
            model.set_submodule(name, act)
    if point.train and found[1][1:].count_nonzero():
        raise CheckFailed("the gradient of x is not zero in sequences where dy is zero")
    deviation = _deviation(point, model, x.dtype)
    found = [f[:1] if number < 2 else f for number, f in enumerate(found)]  # y and dx: of the first sequence
    # keys' biases have gradients of zero (softmax does not see them): noise, small beside the other gradients
    least = LEAST * max((float(w.abs().max()) for w in wanted[1:]), default=0.0)
    y = compare(["y"], found[:1], wanted[:1], usual[:1], [deviation])
    gradients = (f"gradient {number}" for number in itertools.count())
    rest = compare(gradients, found[1:], wanted[1:], usual[1:], itertools.repeat(deviation), least)
    return max(y, rest)


def _deviation(point: DecoderPoint, model: nn.Module, dtype: torch.dtype) -> float:
    """The largest of any one layer, for the sums of a sequence.

    Errors of the layers before it are in plain's error too, which is made of so many that luck evens out.
    """
    found = []
    for name in layer_names(point, BOTH):
        layer = model.get_submodule(name)
        if isinstance(layer, StructuredLinear):
            structure = layer.structure
        else:
            structure = structures.get("dense").bind(*layer.weight.shape)  # type: ignore[union-attr,arg-type]
        found += exactness.sums(structure, point.sequence)
    return max(s.share(dtype) for s in found)


def _results(point: DecoderPoint, model: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, and when training the gradients of x and of every parameter that has one."""
    if not point.train:
        with torch.no_grad():
            return [run(point, model, x)]
    x = x.detach().requires_grad_()
    y = run(point, model, x)
    parameters = [x, *model.parameters()]
    gradients = torch.autograd.grad(y, parameters, dy, allow_unused=True)
    return [y.detach(), *(g for g in gradients if g is not None)]


# -- rows


def measure_point(point: DecoderPoint, rows: Rows, benchmark: Any) -> None:
    """Check a point, then time it and keep its row.

    Raises:
        CheckFailed: it computes something else; nothing is timed.
    """
    dense = rows.dense(point, lambda: _ways(point))
    x, dy, own = dense.x, dense.dy, point.structure == "dense"
    model = dense.what if own else dense_model(point)
    options = replaced(point, model)
    error = check(point, model, x, dy) if point.layers else None
    swapped = layer_names(point)
    params = _params(model, swapped)
    facts = asdict(point) | {
        "way": "control" if point.structure in ("dense", MIX) else "structure",  # the others are entries
        "budget": f"params={point.share:g}" if point.share else None,
        "options": options,
        "dense_way": dense.way if own else None,
        "model_layers": point.shape.layers,
        "threads": torch.get_num_threads(),
        "params": sum(p.numel() for p in model.parameters()),
        "swapped_params": params or None,
        "swapped_share": params / _params(dense.what, swapped) if params else None,
        "activation_bytes": saved_by(lambda: run(point, model, x), model.parameters()) if point.train else None,
        "checkpoint_bytes": state_bytes(model),
        "error": error,
    }
    if own:
        rows.time(point, facts, dense.step, None, benchmark)
    else:
        rows.time(point, facts, step(point, model, x, dy), dense.step, benchmark)


def _params(model: nn.Module, names: Sequence[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


def _ways(point: DecoderPoint) -> tuple[Tensor, Tensor, dict[str, tuple[nn.Module, timing.Step]]]:
    """The input of a cell, and its dense model with one call of it, for each way to run it."""
    place = replace(point, structure="dense", share=None, place=BOTH if point.layers else REST)
    x, dy = inputs(place)
    found = {}
    for way in WAYS if point.layers else WAYS[:1]:
        model = dense_model(place)
        if way == "addmm":
            _by_addmm(place, model)
        found[way] = model, step(place, model, x, dy)
    return x, dy, found
