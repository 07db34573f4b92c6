"""What is trained at each scale: one `Setting` for every task and what it is brought to. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.sweep.named import NAMED, SPACE

TASKS = ("encoder", "teacher", "facts", "language")
SCALES = ("smoke", "standard", "claims", "full")
MODELS = {"encoder": "block", "teacher": "mlp", "facts": "mlp", "language": "gpt"}
QUARTER = "params=0.25"
PLAN = ("structures", "budgets", "widths", "seeds", "label")  # fields that only decide which runs exist


@dataclass(frozen=True)
class Setting:
    """A task and everything that decides its losses but structure, width and seed.

    data: `layer:3` of the encoder, `keys:16384` of facts, a text's name for language, `random` for teacher.
    base: the width at which rates are as they are given; at others a matrix's is divided by its inputs' growth.
    batch: samples, or sequences, of one step.
    length: tokens of a sequence; 1 where a sample is a token.
    rates: every one is run at full length with all seeds; the best over seeds on the tune part is reported, and where
        it lies at an end of the grid one more is run beyond it.
    held_out: samples or tokens that measure a loss.
    layers: "ff" (feed-forward only) or "all" linear layers but the head.
    structures: entries to compare; None for every entry of the registry, variants too.
    label: what tells the setting from others of its data and layers.
    """

    task: str
    data: str
    widths: tuple[int, ...]
    base: int
    steps: int
    batch: int
    rates: tuple[float, ...]
    depth: int = 2
    length: int = 1
    tokenizer: str | None = None
    layers: str = "ff"
    held_out: int = 2048
    budgets: tuple[str, ...] = (QUARTER,)
    structures: tuple[str, ...] | None = None
    seeds: int = 3
    device: str = "cpu"
    label: str = ""

    @property
    def model(self) -> str:
        return MODELS[self.task]

    @property
    def name(self) -> str:
        """What tells it from the others of a run, for people."""
        words = [self.task, *self.data.split(":"), *(self.tokenizer or "").split()]
        return " ".join([*words, *(["all layers"] if self.layers == "all" else []), *self.label.split()])

    @property
    def tokens(self) -> int:
        """Tokens, or samples, of one step."""
        return self.batch * self.length

    @property
    def decides(self) -> dict[str, Any]:
        """What losses may be compared within."""
        return {key: value for key, value in asdict(self).items() if key not in PLAN}


def digest(value: Mapping[str, Any]) -> str:
    """Identifies a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


LOW, HIGH = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
ENCODER = Setting("encoder", "layer:3", (384,), 384, 400, 256, LOW)
TEACHER = Setting("teacher", "random", (256,), 256, 800, 256, HIGH)
FACTS = Setting("facts", "keys:16384", (128,), 128, 1200, 512, HIGH)
# Dense's three seeds, in nats: 2.24, 2.11, 2.09 after 700 steps, in the transition from pairs of characters to words;
# 1.473, 1.442, 1.461 after 2000; 1.219, 1.228, 1.226 after 6000, a deviation of 0.4 %. At 1e-2 all stay at pairs.
LANGUAGE = Setting(
    "language", "sotu", (128,), 128, 2000, 8, LOW, length=96, tokenizer="characters", layers="all", held_out=16384,
)  # fmt: skip

DYAD = ("dyad_it", "dyad_ot", "dyad_dt")
BLOCKS = tuple(f"{name}:n_blocks=2,4,16,32,64" for name in DYAD)  # 8 is a quarter
OTHERS = ("block_diagonal", "low_rank", "monarch", "butterfly", "pixelfly")
# of language in the standard run, which all entries would make half an hour longer: one of every kind that meets a
# quarter at this width, where Monarch reaches 0.29, and the variants of DYAD
WRITERS = (*DYAD, "block_diagonal", "low_rank", "butterfly", "pixelfly", "btt", "kronecker_sparse_chain")
# members of the two-factor space over its range of omega (shared parameters) and psi (rank), as its source names them
THETAS = [NAMED[name] for name in "btt1 btt5 btt7 btt11 btt14 tt1 tt3 l1 l2 g1 g2".split()]
MEMBERS = tuple(f"{SPACE}:theta=[{','.join(map(str, theta))}]" for theta in THETAS)
_FEW: dict[str, Any] = {"structures": ("dyad_it", "low_rank"), "seeds": 2}

SETTINGS: dict[str, dict[str, tuple[Setting, ...]]] = {
    "smoke": {
        "encoder": (replace(ENCODER, **_FEW, data="layer:3,python-topics", steps=4, rates=(3e-3,), held_out=256),),
        "teacher": (replace(TEACHER, **_FEW, widths=(64,), base=64, steps=40, batch=64, rates=LOW[1:], held_out=512),),
        "facts": (replace(FACTS, **_FEW, data="keys:512", widths=(64,), base=64, steps=40, batch=64, rates=LOW[1:]),),
        "language": (
            replace(LANGUAGE, **_FEW, data="python-topics", widths=(32,), base=32, steps=10, batch=4, rates=LOW[1:],
                    held_out=2048),
        ),
    },
    "standard": {
        "encoder": (ENCODER, replace(ENCODER, data="layer:5")),
        "teacher": (TEACHER,),
        "facts": (FACTS,),
        "language": (replace(LANGUAGE, structures=WRITERS),),
    },
    "claims": {
        "teacher": (
            replace(TEACHER, structures=BLOCKS),
            replace(TEACHER, widths=(64, 128), structures=(*DYAD, *OTHERS)),
            replace(TEACHER, widths=(64, 128, 256), structures=MEMBERS),
            replace(TEACHER, widths=(512,), structures=("dyad_it", "block_diagonal", "low_rank")),
        ),
    },
    "full": {
        "encoder": tuple(replace(ENCODER, data=f"layer:{layer}", steps=4000) for layer in range(6)),
        "teacher": (replace(TEACHER, widths=(256, 512, 1024), steps=20000, batch=1024),),
        "facts": (replace(FACTS, widths=(128, 256), steps=20000),),
        "language": (
            LANGUAGE,
            replace(LANGUAGE, steps=6000, label="6000 steps"),
            replace(LANGUAGE, widths=(256, 512), depth=6, batch=64, length=256, steps=20000, label="20000 steps"),
        ),
    },
}  # fmt: skip
