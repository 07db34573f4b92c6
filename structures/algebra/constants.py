"""Constant factors: what they are, and their numbers, the same on every machine.

The random ones are drawn from the raw output of numpy's PCG64, a stream that its authors have promised to keep, by
integer arithmetic; of normal numbers, which need a logarithm, the digits in which two libraries may differ are rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structures.language.notation import CONSTANTS

MAX_DENSE = 2**24  # numbers of a constant that is a matrix: 4096 x 4096
DIGITS = 2.0**20  # normal numbers are multiples of its inverse


@dataclass(frozen=True)
class Constant:
    """A factor that nobody trains.

    Args:
        shape: sizes of its axes, as written. Of a Hadamard matrix that is run by its factorisation, (2, 2).
        seed: of a random one.
        position: in a family, which copy it is.
    """

    kind: str
    shape: tuple[int, ...]
    seed: int = 0
    position: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@lru_cache(maxsize=256)
def values(constant: Constant) -> NDArray[np.float64]:
    """The numbers of a constant, read-only."""
    made: NDArray[np.float64] = _DRAWN[constant.kind](constant)
    made.setflags(write=False)
    return made


def residues(constant: Constant, modulus: int) -> NDArray[np.int64]:
    """Numbers modulo a prime with which a rank is the constant's: exact up to a scale, or as generic as it is."""
    if constant.kind in ("dct", "normal"):  # real numbers: others of as many degrees of freedom stand for them
        return np.random.default_rng([7, constant.seed, constant.position]).integers(1, modulus, constant.shape)
    return np.sign(values(constant)).astype(np.int64) % modulus


def order(constant: Constant) -> NDArray[np.int64]:
    """p of a permutation: x goes to p[x]."""
    return np.argsort(_raw(constant, constant.shape[0]), kind="stable")


def _raw(constant: Constant, count: int) -> NDArray[np.uint64]:
    seed = [list(CONSTANTS).index(constant.kind), constant.seed, constant.position]
    return np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)


def _hadamard(constant: Constant) -> NDArray[np.float64]:
    """Sylvester's, orthonormal: entry (x, z) is -1 to the number of ones that x and z share in binary."""
    n = constant.shape[0]
    whole = np.ones((1, 1))
    while len(whole) < n:
        whole = np.block([[whole, whole], [whole, -whole]])
    return whole / math.sqrt(n)


def _dct(constant: Constant) -> NDArray[np.float64]:
    """The orthonormal DCT-II: x a position, z a frequency."""
    n = constant.shape[0]
    position, frequency = np.arange(n)[:, None], np.arange(n)[None]
    # the angle as a multiple of pi / 2n below 4n: exact integers, so that large products lose no digits
    whole = np.cos(np.pi / (2 * n) * ((2 * position + 1) * frequency % (4 * n)))
    return np.asarray(whole * np.where(frequency == 0, math.sqrt(1 / n), math.sqrt(2 / n)))


def _permutation(constant: Constant) -> NDArray[np.float64]:
    whole = np.zeros(constant.shape)
    whole[np.arange(len(whole)), order(constant)] = 1
    return whole


def _sign(constant: Constant) -> NDArray[np.float64]:
    return (1 - 2 * (_raw(constant, constant.numel) >> np.uint64(63)).astype(np.float64)).reshape(constant.shape)


def _normal(constant: Constant) -> NDArray[np.float64]:
    """Box and Muller's, variance 1 / (first axis)."""
    half = (constant.numel + 1) // 2
    uniform = ((_raw(constant, 2 * half) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53  # never 0 or 1
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: constant.numel]
    return (np.round(both * DIGITS) / DIGITS).reshape(constant.shape) / math.sqrt(constant.shape[0])


_DRAWN: dict[str, Any] = {
    "hadamard": _hadamard, "dct": _dct, "permutation": _permutation, "sign": _sign, "normal": _normal,
}  # fmt: skip
