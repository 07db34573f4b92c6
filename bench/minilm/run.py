"""Every conversion, then some of them tuned, then every time: the first two need not have the machine to themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from bench.answers.conversions import EncoderTime, Fit, Tuned
from bench.files import declared
from bench.files.journal import Left, Records
from bench.files.run import RunRecord
from bench.files.vocabulary import DENSE
from bench.minilm import timing
from bench.minilm.conversion import Conversions, Slow
from bench.minilm.data import Data
from bench.minilm.quality import without_feed_forward
from bench.minilm.request import CONTROL, ConversionPoint, ConversionRequest, points, refusal
from bench.minilm.tuning import Tuning

REMOVED = "feed-forward removed"
FITS, TUNE, TIMES = "fits", "tune", "times"
Make = Callable[[ConversionPoint, str], tuple[dict[str, Any], str]]  # a record, and what is told of it


@dataclass(frozen=True, kw_only=True)
class FitRow(Fit):
    """A conversion, with what is said of it and not drawn."""

    methods: declared.Names
    optimal: declared.Flag
    params_share: declared.Number


@dataclass(frozen=True)
class FitRecord:
    """What the journal holds of a conversion."""

    row: FitRow


KINDS = {FITS: (FitRecord, Left), TUNE: (Tuned, Left), TIMES: (EncoderTime,)}  # what the journal holds of each stage


class Encoder:
    """A run: what is in its journal is not made again."""

    def __init__(self, data: Data, request: ConversionRequest, run: RunRecord, journal: Records):
        torch.set_num_threads(run.threads.count)
        self.data, self.request, self.run, self.journal = data, request, run, journal
        self.conversions = Conversions(data, request)
        shapes = self.conversions.shapes
        self.points, self.left = points(request, shapes.values())
        run.setup = {**data.facts, "layers": len(shapes), "feed_forward_params": self.conversions.feed_forward}
        run.setup |= {"params": self.conversions.whole, "limit": request.limit, "aware_limit": request.aware_limit}
        run.setup |= {"damping": request.damping, "tune_minutes": request.tune}

    def fit(self) -> None:
        """Every conversion of every point, into the journal."""
        for name, reason in ((r["structure"], r["reason"]) for r in self.left):
            print(f"{name}: left out: {reason}", flush=True)
        self._each(FITS, [(point, way) for point in self.points for way in self.request.ways], self._fitted)

    def tune(self) -> None:
        """The best conversions of each share, and those asked for by name, trained from their best fit."""
        if todo := self.to_tune() if self.request.tune else []:
            tuning = Tuning(self.data.model, self.data.fit, self.conversions.layers)
            self._each(TUNE, todo, partial(self._tuned, tuning))

    def _each(self, stage: str, todo: Sequence[tuple[ConversionPoint, str]], make: Make) -> None:
        """What each conversion comes to in a stage, or why it is left out, into the journal."""
        progress = self.run.progress(todo)
        for point, way in todo:
            if self.journal.get(stage, _key(point, way)) is not None:
                progress.skip(1.0)
                continue
            try:
                found, told = make(point, way)
            except Slow as error:
                found, told = {"refused": str(error)}, f"left out: {error}"
            self.journal.add(stage, _key(point, way), **found)
            progress.finish(1.0, f"{point.name:18} {point.share:<5g} {way:10} {told}")

    def _fitted(self, point: ConversionPoint, way: str) -> tuple[dict[str, Any], str]:
        row = self.conversions.row(point, way)
        told = f"cosine {row['cosine']:.3f}, neighbour {row['neighbour']:.2f}"
        told += f", projected in {row['projection_seconds']:.1f} s"
        return {"row": row}, told + (f", stopped after {row['sweeps']} sweeps" if row["limited"] else "")

    def _tuned(self, tuning: Tuning, point: ConversionPoint, way: str) -> tuple[dict[str, Any], str]:
        """By one thread, so that its CPU time is the time of one core, whatever else the machine does."""
        model, *_ = self.conversions.made(point, way)
        torch.set_num_threads(1)
        try:
            found = tuning.tuned(model, 60 * self.request.tune, self.conversions.agreement)
        finally:
            torch.set_num_threads(self.run.threads.count)
        first, last = found["curve"][0], found["curve"][-1]
        told = f"cosine {first['cosine']:.3f} to {last['cosine']:.3f}, neighbour {first['neighbour']:.2f} to "
        return found, told + f"{last['neighbour']:.2f} in {found['steps']} steps at {found['rate']:g}"

    def to_tune(self) -> list[tuple[ConversionPoint, str]]:
        """Share by share, by agreement, what comes near to it; each in the way that fits it best."""
        todo: list[tuple[ConversionPoint, str]] = []
        for share in self.request.shares:
            made = [(p, way) for p in self.points if p.share == share and p.near for way in self.request.ways]
            found = [(self._fit(p, way)["row"]["cosine"], p, way) for p, way in made if "row" in self._fit(p, way)]
            best: dict[str, tuple[ConversionPoint, str]] = {}
            for _, point, way in sorted(found, key=lambda one: -one[0]):
                best.setdefault(point.name, (point, way))
            also = [name for name in list(best)[self.request.tune_best :] if name in self.request.tune_also]
            todo += [best[name] for name in [*list(best)[: self.request.tune_best], *also]]
        return todo

    def time(self) -> None:
        """The time of every structure that was converted, and of the controls, into the journal."""
        shapes = self.conversions.shapes
        made = [point for point in self.points if any("row" in self._fit(point, way) for way in self.request.ways)]
        dense = self.data.model
        models: dict[str, Any] = {DENSE: lambda: dense, REMOVED: lambda: without_feed_forward(dense)}
        models |= {_timed(p): lambda p=p: timing.shaped(self.data, p, shapes) for p in made}
        progress = self.run.progress(models)
        for name, build in models.items():
            if self.journal.get(TIMES, name) is not None:
                progress.skip(1.0)
            else:
                found = self.journal.add(TIMES, name, **timing.timed(self.data, build(), self.run.load))
                progress.finish(1.0, f"{found['speedup']['median']:.2f}x dense: {name}")

    def write(self) -> None:
        """The results file, from the journal."""
        self.run.rows = [self._control(DENSE, 0.0), self._control(REMOVED, 1.0)]
        self.run.refused = list(self.left)
        for point in self.points:
            for way in self.request.ways:
                found = self._fit(point, way)
                if "row" in found:
                    tuned = self.journal.get(TUNE, _key(point, way)) or {"refused": ""}
                    row = found["row"] | self.journal.found[TIMES, _timed(point)]
                    self.run.rows.append(row if "refused" in tuned else row | {"tuned": tuned})
                else:
                    self.run.refused.append(refusal(point.name, point.share, way, found["refused"]))
        self.run.complete = True
        self.run.save({name: version(name) for name in ("transformers",) if find_spec(name)})

    def _fit(self, point: ConversionPoint, way: str) -> dict[str, Any]:
        return self.journal.found[FITS, _key(point, way)]

    def _control(self, name: str, error: float) -> dict[str, Any]:
        """The dense encoder, or the one without its feed-forward blocks: the most time that can be saved."""
        model = without_feed_forward(self.data.model) if error else self.data.model
        row: dict[str, Any] = {"structure": name, "way": CONTROL, "budget": None, "options": {}}
        row |= {"weight_error": error, "output_error": error, "projection_seconds": 0.0, "sweeps": 0, "methods": []}
        row |= {"optimal": True} | self.conversions.quality(model, 0 if error else self.conversions.feed_forward)
        return row | self.journal.found[TIMES, name] | ({} if error else {"speedup": None})


def run_all(data: Data, request: ConversionRequest, run: RunRecord, journal: Records, until: str = TIMES) -> bool:
    """Fit, then time and write the results file, which ends the journal. Returns whether all was done.

    Args:
        until: the last stage to go through.
    """
    encoder = Encoder(data, request, run, journal)
    encoder.fit()
    if until == FITS:
        return False
    encoder.tune()
    if until == TUNE:
        return False
    encoder.time()
    encoder.write()
    return True


def _key(point: ConversionPoint, way: str) -> str:
    return f"{point.name} {point.share:g} {way}"


def _timed(point: ConversionPoint) -> str:
    """One structure with one set of options: its calls are the same however it was fitted."""
    return f"{point.name} {json.dumps(point.words)}"
