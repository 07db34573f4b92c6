"""What a machine's operations cost: the figures that prices are made of, built-in where none were measured.

A class of operation has a rate, a function of size. Products: GFLOP/s by how the operands lie and by the smallest of
the three extents. Copies: GB/s by size, and, where the innermost axis changes, by how much memory is held until a cache
line is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Curve = tuple[tuple[int, float], ...]  # (size, rate), sizes rising; between them the logarithms are interpolated

PRODUCTS = ("contiguous", "flipped", "strided", "turned", "strided_large", "turned_large")
COPIES = ("plain", "turn")


@dataclass(frozen=True)
class Rates:
    """The figures of a machine for one dtype, device and number of threads.

    Args:
        call: seconds of one torch call; `view` of one view.
        fork: seconds to start and join the other threads of a call.
        item: seconds of one matrix of a batch besides its arithmetic.
        row, tile: seconds of one innermost row, and of one pair of innermost loops, of a strided elementwise loop.
        entry: seconds of a product besides those of a call: in 16 bits the library looks its program up.
        function: seconds of a backward besides its operations; `node` of the book-keeping for an operation with
            gradients, by autograd forward and backward, by a planned backward's Python in each.
        product: GFLOP/s, traffic not counted, by smallest extent of a matrix, for each class of how an operand lies:
            "contiguous", "flipped" (its transpose), "strided" (rows of a matrix far apart: batch is not the slowest
            axis), "turned" (both), and the last two beyond the nearest large cache.
        copy: GB/s, read and write counted, by total bytes ("plain"), and for the change of the innermost axis in a
            tensor within that cache by the bytes that lie between two uses of a cache line ("turn").
        l2: bytes of a thread's nearest large cache, times threads.
        placed: a batched product may write its matrices where their blocks lie in the result, at no cost.
    """

    call: float = 2e-6
    view: float = 0.4e-6
    fork: float = 2e-6
    item: float = 1e-8
    row: float = 1e-9
    tile: float = 2e-8
    entry: float = 0.0
    function: float = 5e-5
    node: float = 9e-6
    product: tuple[tuple[str, Curve], ...] = ()
    copy: tuple[tuple[str, Curve], ...] = ()
    l2: int = 4 * 2**20
    threads: int = 1
    placed: bool = False

    def replaced(self, seconds: Mapping[str, float], curves: Mapping[str, Curve]) -> Rates:
        """These rates with the measured figures in the place of the built-in ones."""
        product = {**dict(self.product), **{k: c for k, c in curves.items() if k in PRODUCTS}}
        copy = {**dict(self.copy), **{k: c for k, c in curves.items() if k in COPIES}}
        changed: dict[str, Any] = {**seconds, "product": tuple(product.items()), "copy": tuple(copy.items())}
        return replace(self, **changed)


SECONDS = tuple(f.name for f in fields(Rates) if f.type == "float")  # names of the figures in seconds

# GFLOP/s and GB/s of a 2-core Sapphire Rapids class machine, torch 2.13 (MKL 2024.2, oneDNN 3.12), two threads.
_EXTENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)  # the last where 16 bits gain from it
_FP32 = {
    "contiguous": (65, 16, 43, 105, 275, 350, 365, 365, 370),
    "flipped": (65, 15, 42, 100, 250, 315, 330, 335, 350),
    "strided": (65, 12, 35, 95, 255, 350, 365, 365, 370),
    "turned": (65, 11, 35, 85, 200, 285, 305, 310, 320),
    "strided_large": (20, 10, 22, 45, 130, 240, 320, 345, 350),
    "turned_large": (15, 6, 12, 25, 60, 120, 230, 300, 310),
}
_BF16 = {
    "contiguous": (17, 6, 19, 58, 220, 450, 770, 1200, 2000, 3400),
    "flipped": (17, 6, 20, 60, 210, 420, 620, 920, 1500, 2100),
    "strided": (17, 4, 12, 36, 150, 360, 630, 1000, 1700),
    "turned": (17, 6, 11, 24, 66, 130, 220, 420, 800),
    "strided_large": (17, 1.4, 6, 9, 110, 430, 1100, 1700, 2200),
    "turned_large": (16, 0.6, 1.4, 2.2, 7, 11, 24, 63, 94),
}
_COPY: dict[str, Curve] = {
    "plain": ((2**16, 90.0), (2**21, 140.0), (2**22, 85.0), (2**23, 58.0), (2**25, 54.0), (2**28, 23.0)),
    "turn": ((2**12, 40.0), (2**16, 19.0), (2**20, 16.0), (2**21, 7.0), (2**22, 2.4)),
}
_COPY_16_BITS = {"plain": 0.6, "turn": 0.55}  # elementwise loops go by elements more than by bytes
_ENTRY_16_BITS = 2e-5
_ONE_THREAD = 0.55  # of two threads
# Of an H100's data sheet and assumptions (a batched product reaches 85 % of the tensor cores' rate, and less where a
# matrix is narrower than a tile; what fits L2 moves faster): predictions, not measured.
_GPU_PRODUCT: Curve = ((1, 500.0), (8, 4000.0), (32, 16000.0), (64, 32000.0), (128, 50000.0))
_GPU_PRODUCT_16_BITS: Curve = (
    (1, 2000.0),
    (8, 30000.0),
    (32, 150000.0),
    (64, 300000.0),
    (128, 500000.0),
    (256, 670000.0),
)
_GPU_COPY: dict[str, Curve] = {
    "plain": ((2**20, 1500.0), (2**23, 5000.0), (2**26, 3000.0)),
    "turn": ((2**12, 1500.0), (2**23, 1000.0)),
}


def built_in(dtype: str, threads: int, device: str = "cpu") -> Rates:
    """The figures used where nothing was measured.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
        device: a torch device type; anything but "cpu" takes one rough table.
    """
    if device != "cpu":
        narrow = dtype in ("bfloat16", "float16")
        products = dict.fromkeys(PRODUCTS, _GPU_PRODUCT_16_BITS if narrow else _GPU_PRODUCT)
        quick = {"call": 6e-6, "view": 1e-6, "fork": 0.0, "item": 2e-9, "row": 0.0, "tile": 0.0}
        return Rates(l2=48 * 2**20, threads=1, placed=device == "cuda").replaced(quick, {**products, **_GPU_COPY})
    scale = {"float64": 0.5, "float16": 0.2}.get(dtype, 1.0)
    one = _ONE_THREAD if threads == 1 else 1.0
    table = _BF16 if dtype == "bfloat16" else _FP32
    product = {k: tuple((n, r * scale * one) for n, r in zip(_EXTENTS, c, strict=False)) for k, c in table.items()}
    slower = _COPY_16_BITS if dtype in ("bfloat16", "float16") else {}
    copies = {k: tuple((n, r * one * slower.get(k, 1.0)) for n, r in c) for k, c in _COPY.items()}
    seconds = {"fork": 0.0} if threads == 1 else {}
    seconds |= {"entry": _ENTRY_16_BITS} if dtype in ("bfloat16", "float16") else {}
    return Rates(l2=2**21 * min(threads, 2), threads=threads).replaced(seconds, {**product, **copies})
