"""What the options of `bench train` ask for, checked before anything is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.files.errors import UsageError, one_of
from bench.files.options import budgets, numbers, shard, words
from bench.files.vocabulary import DEVICES, MIX
from bench.sweep.request import entries, entry_words, register
from bench.sweep.shapes import MAX_WIDTH
from bench.training import settings
from bench.training.settings import Setting

LAYERS = ("ff", "all")
BOTH, TIMES, LOSSES = "both", "times", "losses"
TOKENIZERS = ("characters", "bytes", "bpe")
DATA = {"encoder": r"layer:[0-5](,[\w-]+)?", "teacher": "random", "facts": r"keys:\d+"}  # of tasks with no data set


@dataclass(frozen=True)
class TrainingRequest:
    """A whole run."""

    settings: tuple[Setting, ...]
    scale: str
    only: str = BOTH
    shard: tuple[int, int] = (1, 1)
    every: float = 30.0
    resume: Path | None = None


def read(options: Mapping[str, Any], *, cuda: bool) -> TrainingRequest:
    """The request that the command line makes.

    Raises:
        UsageError: a value that is not allowed; the message lists what is.
    """
    register(options.get("registry"))
    scale = one_of("--scale", options.get("scale") or "standard", settings.SCALES)
    chosen = tuple(s for task in _tasks(options["tasks"]) for s in _settings(task, scale, options))
    for setting in chosen:
        _check(setting, cuda=cuda)
    if not chosen:
        have = ", ".join(settings.SETTINGS[scale])
        raise UsageError(f"--scale {scale} has no setting of {' '.join(options['tasks'])}: {have} have")
    return TrainingRequest(
        settings=tuple(dict.fromkeys(chosen)),
        scale=scale,
        only=one_of("--only", options.get("only") or BOTH, (BOTH, TIMES, LOSSES)),
        shard=shard(options.get("shard") or "1/1"),
        every=_seconds(options.get("checkpoint_every")),
        resume=options.get("resume"),
    )


def _tasks(tasks: Sequence[str]) -> list[str]:
    found = [one_of("TASK", word, (*settings.TASKS, "all")) for text in tasks for word in words(text)]
    if not found:
        raise UsageError(f"TASK: name some of {', '.join(settings.TASKS)}, or all")
    return list(settings.TASKS) if "all" in found else list(dict.fromkeys(found))


def _settings(task: str, scale: str, options: Mapping[str, Any]) -> list[Setting]:
    """The task's settings at a scale, with what the options change."""
    found = list(settings.SETTINGS[scale].get(task, ()))
    for field in ("layers", "data", "tokenizer"):
        word = options.get(field)
        a_path = word and field == "data"  # which may have blanks
        wanted = [word] if a_path else words(word and word.lower())
        if wanted and found:
            kept = [s for s in found if getattr(s, field) in wanted]
            found = kept or [replace(found[0], **{field: word}) for word in wanted]
    return [replace(setting, **_changes(options)) for setting in found]


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("steps", "batch", "depth", "length", "held_out", "seeds", "device")
    changes: dict[str, Any] = {field: options[field] for field in fields if options.get(field)}
    if options.get("widths"):
        changes["widths"] = tuple(sorted(numbers("--widths", options["widths"], MAX_WIDTH)))
    if options.get("rates"):
        changes["rates"] = tuple(sorted({_rate(word) for word in words(options["rates"])}))
    if options.get("structures"):
        changes["structures"] = _structures(options["structures"])
    if options.get("budget"):
        changes["budgets"] = tuple(map(str, budgets(options["budget"])))
    if changes.get("device"):
        changes["device"] = changes["device"].lower()
    return changes


def _structures(text: str) -> tuple[str, ...]:
    """Words as `dyad_it:n_blocks=2,4`, `dyad_it+dyad_ot`, each checked."""
    found: dict[str, None] = {}
    for word in entry_words(text):
        name, colon, own = word.partition(":")
        parts = [entries(f"{part}{colon}{own}")[0].name for part in name.split(MIX)]
        found[f"{MIX.join(parts)}{colon}{own}"] = None
    return tuple(found)


def _check(setting: Setting, *, cuda: bool) -> None:
    """Values that must fit together."""
    own = DATA.get(setting.task)
    if own and not re.fullmatch(own, setting.data):
        raise UsageError(f"--data: {setting.data!r} is not allowed for {setting.task}; leave it out, or write as {own}")
    one_of("--layers", setting.layers, LAYERS)
    one_of("--device", setting.device, DEVICES if cuda else DEVICES[:1])
    if setting.tokenizer:
        kind, colon, size = setting.tokenizer.partition(":")
        one_of("--tokenizer", kind, TOKENIZERS)
        if (kind == "bpe") != bool(colon) or (colon and not (size.isdigit() and 256 <= int(size) <= 65536)):
            raise UsageError(f"--tokenizer: {setting.tokenizer!r} is not allowed; write characters, bytes or bpe:1024")
    for width in setting.widths:
        if setting.task == "language" and width % 8:
            raise UsageError(f"--widths: {width} is not a multiple of 8, which the network's heads need")
        if setting.task == "encoder" and width != setting.base:
            raise UsageError(f"--widths: {width} is not allowed for encoder: its blocks have a width of {setting.base}")


def _seconds(value: float | None) -> float:
    if value is not None and not 0 <= value < math.inf:
        raise UsageError(f"--checkpoint-every: {value:g} is not allowed; write seconds from 0")
    return 30.0 if value is None else value


def _rate(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < 10:
        raise UsageError(f"--rates: {word!r} is not a learning rate; write 0.001,0.003")
    return value
