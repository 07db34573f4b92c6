"""The Triton kernels compiled ahead of time for a card that is not there, and what their machine code says.

    python tests/support/machine_code.py 90         a line of JSON for each launch of `ROWS`, compiled for sm_90
    python tests/support/machine_code.py --calls    and for each launch of real calls, with the arguments that they pass

Runs in a process of its own: one with TRITON_INTERPRET=1 cannot compile. What is compiled is what would run: tile, form
and number of warps are those that the backend chooses.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structures
from structures.backends import stages
from structures.backends.experts import segments
from structures.backends.native.lower import lower
from structures.backends.triton import launches as plans
from structures.backends.triton.affine import affine

ARGUMENTS = {"WORK": "*fp32", "tokens": "i32", "LENGTH": "i32", **dict.fromkeys(("COUNT", "ORDER", "STARTS"), "*i32")}
STRIDES = ("c_stride", "a0_stride", "a1_stride", "a_stride", "g_stride")


@dataclass(frozen=True)
class CompiledLaunch:
    """A layer at a number of tokens, and which form of a launch is compiled."""

    name: str
    options: dict[str, object]
    tokens: int
    launch: int
    form: str
    gradient: bool = False
    in_features: int = 4096
    out_features: int = 4096
    backward: bool = False
    kept: bool = False  # copies of factors are
    in_place: bool = False  # factors are read where they lie, whatever the price

    def __str__(self) -> str:
        of = " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])
        kind = "gradient of factor" if self.gradient else "transposed launch" if self.backward else "launch"
        form = self.form + ", factors kept" * self.kept + ", factors in place" * self.in_place
        return f"{of} {self.in_features}->{self.out_features}, {self.tokens} tokens, {kind} {self.launch}, {form}"


ROWS = (
    CompiledLaunch("dense", {}, 4096, 0, "strided"),
    CompiledLaunch("dense", {}, 1, 0, "strided"),
    CompiledLaunch("dense", {}, 4096, 0, "strided", gradient=True),
    CompiledLaunch("dense", {}, 4096, 0, "strided", backward=True),
    CompiledLaunch("block_diagonal", {"n_blocks": 4}, 4096, 0, "strided"),
    CompiledLaunch("low_rank", {"rank": 512}, 4096, 0, "strided"),
    CompiledLaunch("low_rank", {"rank": 512}, 4096, 1, "strided"),
    CompiledLaunch("dyad_it", {"n_blocks": 4}, 1, 0, "strided"),
    CompiledLaunch("dyad_it", {"n_blocks": 4}, 4096, 0, "copied"),
    CompiledLaunch("dyad_it", {"n_blocks": 4}, 256, 0, "turned"),
    CompiledLaunch("dyad_it", {"n_blocks": 8}, 4096, 0, "copied"),
    CompiledLaunch("monarch", {"n_blocks": 4}, 4096, 0, "strided"),
    CompiledLaunch("monarch", {"n_blocks": 4}, 256, 1, "turned"),
    CompiledLaunch("btt", {"rank": 1}, 4096, 1, "strided"),
    CompiledLaunch("blast", {"n_blocks": 16, "rank": 1024}, 4096, 2, "strided"),
    CompiledLaunch("kronecker", {}, 4096, 0, "strided"),
    CompiledLaunch("kronecker", {}, 4096, 1, "strided"),
    CompiledLaunch("butterfly", {"radix": 8, "block_size": 64}, 4096, 0, "strided"),
    CompiledLaunch("butterfly", {"radix": 8, "block_size": 64}, 1, 0, "strided", kept=True),
    CompiledLaunch("butterfly", {"radix": 8, "block_size": 64}, 1, 0, "strided", in_place=True),
    CompiledLaunch("kronecker_sparse", {"a": 8, "d": 8}, 4096, 0, "copied", kept=True),
    CompiledLaunch("dense_moe", {"n_experts": 8}, 4096, 0, "strided"),
    CompiledLaunch("dense_moe", {"n_experts": 8}, 4096, 0, "strided", backward=True),
    CompiledLaunch("dense_moe", {"n_experts": 8}, 4096, 0, "strided", gradient=True),
    CompiledLaunch("dense_moe", {"n_experts": 8}, 1, 0, "strided"),
    CompiledLaunch("btt_moe", {}, 4096, 0, "strided"),
    CompiledLaunch("btt_moe", {}, 4096, 1, "strided"),
    CompiledLaunch("low_rank_moe", {"rank": 256}, 4096, 0, "strided"),
    CompiledLaunch("pixelfly", {"n_blocks": 64, "n_strides": 6, "rank": 0}, 4096, 0, "strided"),
    CompiledLaunch("pixelfly", {"n_blocks": 64, "n_strides": 6, "rank": 0}, 4096, 0, "strided", backward=True),
)


def compiled(row: CompiledLaunch, capability: int) -> dict[str, Any]:
    """What the machine code of a row says: registers, spilled bytes, tensor cores' instructions, widths of accesses."""
    from structures.backends.triton import kernels

    (structure,) = stages.every(structures.get(row.name).bind(row.in_features, row.out_features, **row.options))
    program, rows = affine(lower(structure)) if structure.gate is None else None, row.tokens
    if structure.gate is not None:
        (expert,) = segments.parts(structure)[0]
        program, rows = affine(lower(expert.structure), expert.experts, expert.apart), row.tokens * expert.active
    on = plans.card("", capability)
    if row.gradient:
        step = program.forward[row.launch]
        bp, bm, bk = plans.gradient_block(step, 2)
        constants = {
            "D": step.constants, "BP": bp, "BM": bm, "BK": bk, "SPLIT": 1, "ADD": False, "PRECISION": "tf32",
            "READ": 2 * (step.segments > 0), "GIVEN": 2 * (step.segments > 0),
        }  # fmt: skip
        found = _read(kernels.gradient, constants, 8 if bk * bm >= 128 * 128 else 4, 3, capability)
        about = {"strided": step.read_run < plans.VECTOR, "scattered": False, "segments": step.segments > 0}
        return {"tile": (bk, bm, bp), **about, **found}
    launch = plans.launches(program.backward if row.backward else program.forward)[row.launch]
    every = [w for w in plans.ways(launch, rows, 2, on, kept=row.kept) if w.form == row.form]
    way = next(w for w in every if not (row.in_place and any(w.canonical)))
    bp, bm, bk = way.block
    constants = {
        "D0": way.steps[0].constants, "D1": way.steps[-1].constants, "TERMS": len(way.steps), "BP": bp, "BM": bm,
        "BK": bk, "BIASED": launch.target == len(program.sizes) - 1 and structure.gate is None, "ADD": False,
        "PRECISION": "tf32",
    }  # fmt: skip
    if way.form == plans.TURNED:
        kernel = kernels.turned
    else:
        kernel = kernels.step
        constants |= {"SPLIT": way.split, "EVEN": way.even, "GROUP": 8}
        ends, gated = (0, len(program.sizes) - 1), structure.gate is not None
        write = gated and launch.target in ends
        constants |= {"READ": 2 * (gated and launch.steps[0].source in ends), "WRITE": int(write), "SCALED": write}
    tables = {name for name, s in (("T0", way.steps[0]), ("T1", way.steps[-1])) if s.a_runs}
    strided = way.form == plans.STRIDED and any(s.read_run < plans.VECTOR for s in way.steps)
    scattered = way.form != plans.TURNED and way.steps[0].written_run < plans.VECTOR
    about = {"way": str(way), "tile": way.block, "strided": strided, "scattered": scattered, "in_place": row.in_place}
    about["segments"] = structure.gate is not None
    return {**about, **_read(kernel, constants, way.warps, way.stages, capability, tables)}


def _read(
    kernel: Any, constants: dict[str, Any], warps: int, stages: int, capability: int, tables: set[str] = frozenset()
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind = "*i32" if name in tables else "i32" if name in STRIDES else ARGUMENTS.get(name, "*bf16")
        signature[name] = "constexpr" if name in constants else kind
        if name not in constants and (kind[0] == "*" or name in STRIDES or name == "LENGTH"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel, signature=signature, attrs=attributes,
        constexprs={(position,): constants[n] for position, n in enumerate(kernel.arg_names) if n in constants},
    )  # fmt: skip
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    ptx = made.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.ptx")
        with open(path, "w") as file:
            file.write(ptx)
        said = subprocess.run(
            [os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/ptxas"), "-v",
             f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}", path, "-o", os.devnull],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    return {
        "registers": int(registers[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "shared": made.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync", ptx)),
        "async": _widths(re.findall(r"cp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (\S+?),", ptx)),
        "loads": _accesses("ld", ptx),
        "stores": _accesses("st", ptx),
    }


def _accesses(kind: str, ptx: str) -> dict[int, int]:
    found = re.findall(rf"{kind}\.global(?:\.[a-z_0-9:]+)*?\.(?:v(\d)\.)?b(\d+)", ptx)
    return dict(Counter(int(many or 1) * int(bits) // 8 for many, bits in found))


def _widths(found: list[str]) -> dict[int, int]:
    return dict(Counter(int(width, 0) for width in found))


def lines(capability: int) -> Iterator[str]:
    for row in ROWS:
        yield json.dumps({"row": str(row), "capability": capability, **compiled(row, capability)})


def called(name: str, tokens: int, **options: object) -> Iterator[str]:
    """What a call and its gradients launch in bfloat16, each compiled from the very arguments of its launch."""
    import torch
    import without_card

    from structures.backends.triton import gated, run

    without_card.compile_for(90)
    found: list[dict[str, object]] = []

    def record(kernel: Any, grid: Any, result: Any, arguments: Any, warps: int, stages: int) -> None:
        made = kernel.warmup(result, *arguments, grid=grid, num_warps=warps, num_stages=stages)
        found.append({"kernel": kernel.__name__, "grid": grid, "shared": made.metadata.shared})

    run._start = record
    gated.compile_ahead(structures.get(name).bind(256, 256, **options), tokens, torch.bfloat16, train=True)
    yield from map(json.dumps, found)


if __name__ == "__main__":
    if sys.argv[1:] == ["--calls"]:
        for line in (*called("pixelfly", 1, n_blocks=16, rank=32), *called("dense_moe", 1)):
            print(line, flush=True)
    else:
        for line in lines(int(sys.argv[1])):
            print(line, flush=True)
