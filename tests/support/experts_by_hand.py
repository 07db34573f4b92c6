"""Mixtures of experts from their formulas, token by token in plain loops: what einsums and gates must agree with."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def chosen(logits: Matrix, active: int) -> dict[int, float]:
    """Expert -> weight for one token: the largest logits, the first of equal ones, softmax over them."""
    best: list[int] = []
    for _ in range(active):
        left = [e for e in range(len(logits)) if e not in best]
        best.append(max(left, key=lambda e: (logits[e], -e)))
    top = max(logits[e] for e in best)
    total = sum(math.exp(logits[e] - top) for e in best)
    return {e: math.exp(logits[e] - top) / total for e in best}


def btt_expert(a: Matrix, b: Matrix, x: Matrix) -> Matrix:
    """Rank-1 BTT: a (g, in / g, f), b (f, g, out / f); y[f, o] = sum_g b[f, g, o] sum_i a[g, i, f] x[g, i]."""
    groups, inner, rows = a.shape
    outer = b.shape[2]
    y = np.zeros(rows * outer)
    for f in range(rows):
        for g in range(groups):
            z = sum(a[g, i, f] * x[g * inner + i] for i in range(inner))
            for o in range(outer):
                y[f * outer + o] += b[f, g, o] * z
    return y


def low_rank_expert(down: Matrix, up: Matrix, x: Matrix) -> Matrix:
    """y = up^T (down^T x): down (in, rank), up (rank, out)."""
    return np.array([sum(up[r, o] * float(down[:, r] @ x) for r in range(down.shape[1])) for o in range(up.shape[1])])


def dense_expert(weight: Matrix, x: Matrix) -> Matrix:
    """y = weight^T x: weight (in, out)."""
    return np.array([float(weight[:, o] @ x) for o in range(weight.shape[1])])


EXPERTS = {"btt_moe": btt_expert, "low_rank_moe": low_rank_expert, "dense_moe": dense_expert}


def mixture(name: str, factors: Sequence[Matrix], router: Matrix, active: int, x: Matrix) -> Matrix:
    """(tokens, out): each token's chosen experts, weighted; factors with the expert on the first axis."""
    rows = []
    for token in x:
        logits = np.array([float(row @ token) for row in router])
        weights = chosen(logits, active)
        rows.append(sum(w * EXPERTS[name](*(f[e] for f in factors), token) for e, w in weights.items()))
    return np.array(rows)
