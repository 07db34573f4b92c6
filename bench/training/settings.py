"""What is trained at each scale: one `Setting` for every network, data set and choice of layers. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

TASKS = ("regression", "images", "language", "distil", "blocks")
SCALES = ("smoke", "standard", "long")
HALF, QUARTER = "params=0.5", "params=0.25"
SMALL = ("dyad_it", "monarch", "low_rank")  # structures of a smoke run
DYAD = ("dyad_it", "dyad_ot", "dyad_dt")
MIXES = ("dyad_it+dyad_ot", "dyad_it+dyad_dt", "dyad_ot+dyad_dt")
PROJECTED, DISTILLED = "projected", "distilled"  # starts of a structure from a trained dense network


@dataclass(frozen=True)
class Setting:
    """One network on one data set, with everything that decides its losses but structure, width and seed.

    widths: of the network; rates are found at the smallest.
    batch: samples, or sequences, of one step.
    length: tokens of a sequence; 1 where a sample is a token.
    rates: learning rates tried for every structure and control at the smallest width.
    tune_steps: steps of each such try.
    schedule: "constant", so that every point of a curve could have been a run's end, or "linear" to zero. Both warm up
        over the first twentieth.
    held_out: samples or tokens that measure a loss.
    layers: "ff" (feed-forward only) or "all" linear layers but the head.
    structures: entries to compare; None for every entry of the registry that can meet a budget, and the others as
        they are.
    seeds: of dense and the controls, and of structures.
    starts: for distillation, where structures start from; none for training from scratch.
    teacher_steps: steps of the dense network that they start from.
    options: entries are written with options of their own, not brought to budgets.
    """

    task: str
    model: str
    widths: tuple[int, ...]
    depth: int
    batch: int
    steps: int
    tune_steps: int
    rates: tuple[float, ...]
    data: str
    length: int = 1
    tokenizer: str | None = None
    layers: str = "ff"
    schedule: str = "linear"
    held_out: int = 2048
    budgets: tuple[str, ...] = (HALF, QUARTER)
    structures: tuple[str, ...] | None = None
    dense_seeds: int = 3
    seeds: int = 1
    starts: tuple[str, ...] = ()
    teacher_steps: int = 0
    grammar: int = 0  # pairs of each phenomenon; 0: no grammar test
    weight_decay: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        """What tells it from the others of a run, for people."""
        words = [self.task, self.model, self.data]
        words += [self.tokenizer] if self.tokenizer else []
        return " ".join([*words, "all layers" if self.layers == "all" else "feed-forward"])

    @property
    def tokens(self) -> int:
        """Tokens, or samples, of one step."""
        return self.batch * self.length


THIRDS = (1e-3, 3e-3, 1e-2)
MAIN = ("block_diagonal", "low_rank", *DYAD, "monarch", "btt", "butterfly", "pixelfly", "einsum")  # where all are dear
_REGRESSION = Setting(
    "regression", "mlp", (128, 256, 512), 2, 256, 1200, 250, THIRDS, "teacher", schedule="constant", held_out=2048,
    budgets=(QUARTER, "time=0.7"), structures=MAIN,
)  # fmt: skip
_IMAGES = Setting(
    "images", "mlp", (256,), 2, 256, 1000, 120, THIRDS, "fashion-mnist", held_out=10000,
    budgets=(QUARTER, "flops=0.25"),
)  # fmt: skip
# 1000 steps: until about 400 every network only learns which character follows which, and loses alike without its
# feed-forward (2.37 and 2.39 nats at width 128); at 1000 dense has 1.90 and the network without it 2.11 at width 64
_LANGUAGE = Setting(
    "language", "gpt", (64,), 2, 8, 1000, 250, THIRDS, "sotu", 96, "characters", held_out=16384, grammar=20,
    budgets=(QUARTER,), structures=MAIN,
)  # fmt: skip
_DISTIL = replace(
    _LANGUAGE, task="distil", steps=150, tune_steps=50, rates=(3e-4, 1e-3, 3e-3), starts=(PROJECTED, DISTILLED),
    teacher_steps=1000, grammar=0, budgets=(HALF, QUARTER), held_out=8192,
    structures=("dyad_it", "dyad_dt", "monarch", "pixelfly", "block_diagonal", "low_rank"),
)  # fmt: skip
_BLOCKS = replace(
    _IMAGES, task="blocks", budgets=(), depth=3, steps=600, tune_steps=120,
    structures=(*(f"{name}:n_blocks=2,4,8,16,32,64" for name in DYAD), *(f"{mix}:n_blocks=8" for mix in MIXES)),
)  # fmt: skip

_SMOKE: Mapping[str, object] = {
    "structures": SMALL, "budgets": (QUARTER,), "rates": (1e-3, 4e-3), "tune_steps": 10,
}  # fmt: skip
_TINY_TEXT: Mapping[str, object] = {"widths": (32,), "data": "python-topics", "length": 96, "batch": 4}

SETTINGS: dict[str, dict[str, tuple[Setting, ...]]] = {
    "smoke": {
        "regression": (replace(_REGRESSION, **_SMOKE, widths=(64, 128), batch=64, steps=40, held_out=512),),  # type: ignore[arg-type]
        "images": (replace(_IMAGES, **_SMOKE, widths=(64,), data="digits", batch=64, steps=40),),  # type: ignore[arg-type]
        "language": (replace(_LANGUAGE, **_SMOKE, **_TINY_TEXT, steps=30, held_out=2048, grammar=2),),  # type: ignore[arg-type]
        "distil": (
            replace(_DISTIL, **_SMOKE, **_TINY_TEXT, steps=15, held_out=2048, teacher_steps=40),  # type: ignore[arg-type]
        ),
        "blocks": (
            replace(
                _BLOCKS, widths=(64,), data="digits", batch=64, steps=20, tune_steps=10, rates=(1e-3, 4e-3), depth=2,
                structures=("dyad_it:n_blocks=2,8", "dyad_it+dyad_ot:n_blocks=8"),
            ),
        ),
    },
    "standard": {
        "regression": (_REGRESSION,),
        "images": (
            _IMAGES,
            replace(_IMAGES, model="mixer", widths=(48,), batch=64, steps=300, tune_steps=60, held_out=2048,
                    budgets=(QUARTER,), structures=("dyad_it", "block_diagonal", "low_rank")),
            replace(_IMAGES, data="mnist-10k", layers="all", steps=300, tune_steps=100, budgets=(HALF, QUARTER),
                    structures=(*DYAD, "low_rank")),
        ),
        "language": (
            _LANGUAGE,
            replace(_LANGUAGE, model="opt", tokenizer="bpe:512", structures=(*DYAD, "low_rank")),
            replace(_LANGUAGE, layers="all", steps=700, structures=("dyad_it", "low_rank")),
            replace(_LANGUAGE, model="pythia", steps=700, structures=("dyad_it", "low_rank")),
        ),
        "distil": (_DISTIL,),
        "blocks": (_BLOCKS,),
    },
}  # fmt: skip

_DECODERS = (
    ("gpt", "ff", "characters"),
    ("gpt", "all", "characters"),
    ("opt", "ff", "bpe:4096"),
    ("pythia", "ff", "bpe:4096"),
    ("gpt2", "ff", "bpe:4096"),
)
_GPU: Mapping[str, object] = {"device": "cuda", "precision": "bfloat16", "compile": True, "seeds": 3}
SETTINGS["long"] = {
    "regression": (
        replace(_REGRESSION, widths=(256, 512, 1024, 2048, 4096), batch=1024, steps=20000, tune_steps=2000,  # type: ignore[arg-type]
                structures=None, budgets=(QUARTER, "flops=0.25", "time=0.8"), held_out=65536,
                rates=(3e-4, 1e-3, 3e-3, 1e-2), **{**_GPU, "precision": "float32"}),
    ),
    "images": (
        replace(_IMAGES, widths=(512, 1024, 2048), steps=12000, tune_steps=2000, **_GPU),  # type: ignore[arg-type]
        replace(_IMAGES, model="mixer", widths=(128, 256, 512), depth=6, steps=12000, tune_steps=2000, **_GPU),  # type: ignore[arg-type]
        replace(_IMAGES, model="vit", widths=(128, 256, 512), depth=6, steps=12000, tune_steps=2000, **_GPU),  # type: ignore[arg-type]
        replace(_IMAGES, data="mnist-10k", layers="all", widths=(1024,), steps=2000, tune_steps=400, **_GPU),  # type: ignore[arg-type]
    ),
    "language": tuple(
        replace(_LANGUAGE, model=model, layers=layers, widths=(256, 512, 768), depth=6, batch=64, length=256,  # type: ignore[arg-type]
                tokenizer=tokens, steps=8000, tune_steps=1000, held_out=262144, grammar=200, structures=None,
                budgets=(QUARTER, "flops=0.25"), **_GPU)
        for model, layers, tokens in _DECODERS
    ),
    "distil": (
        replace(_DISTIL, widths=(512,), depth=6, batch=64, length=256, tokenizer="bpe:4096", steps=2000,  # type: ignore[arg-type]
                tune_steps=300, teacher_steps=12000, held_out=262144, structures=None, **_GPU),
    ),
    "blocks": (
        replace(_BLOCKS, widths=(1024,), steps=12000, tune_steps=2000, **_GPU),  # type: ignore[arg-type]
        replace(_LANGUAGE, task="blocks", model="opt", widths=(768,), depth=6, batch=64, length=256,  # type: ignore[arg-type]
                tokenizer="bpe:4096", steps=8000, tune_steps=1000, held_out=262144, grammar=200, budgets=(),
                structures=_BLOCKS.structures, **_GPU),
    ),
}  # fmt: skip
