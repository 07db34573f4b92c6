"""The command line of the search. Nothing here imports torch until the request is checked."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from bench.files import kinds
from bench.files.errors import UsageError, one_of
from bench.files.journal import Records
from bench.files.options import count, share
from bench.search import request as requests
from bench.search.request import QUALITIES, STAGES


def add_options(search: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = search.add_argument
    add("--in", type=count, required=True, dest="in_features", metavar="N", help="in_features")
    add("--out", type=count, required=True, dest="out_features", metavar="N", help="out_features")
    add("--tokens", type=count, required=True, metavar="N", help="rows of the input that is timed")
    add("--params", metavar="SHARE", help="parameters of dense: 0.25 (within 15 %%), or a range, 0.1-0.25")
    add("--flops", metavar="SHARE", help="FLOPs of dense, likewise (0-1)")
    add("--rank", type=share, default=0.0, metavar="SHARE", help="least share of full rank (0)")
    add("--omega", type=share, metavar="N", help="most parameter sharing: 0 for none")
    add("--memory", type=share, metavar="SHARE", help="most memory of weights and activations of a forward, of dense")
    add("--time", type=share, metavar="SHARE", help="most time of a call, of dense, as measured")
    add("--mode", default="forward", metavar="WORD", help="forward (default) or train")
    add("--dtype", "--dtypes", default="float32", metavar="WORD", help="float32 (default), bfloat16, float64")
    ranked = f"{', '.join(QUALITIES)} (none): what candidates are ranked by besides time"
    add("--quality", default="none", metavar="WORD", help=ranked)
    add("--weight", metavar="FILE", help=".npy, .pt or .safetensors with the weight (out, in); else one is made here")
    add("--key", metavar="NAME", help="the tensor in that file")
    inputs = "likewise, what the layer reads (rows, in): trained on in place of Gaussian numbers"
    add("--inputs", metavar="FILE", help=inputs)
    add("--candidates", type=count, default=200, metavar="N", help="how many are timed (200)")
    add("--finalists", type=count, default=16, metavar="N", help="how many go through every stage (16)")
    add("--seconds", type=count, metavar="N", help="stop after so long; the same command goes on")
    add("--until", default="final", metavar="WORD", help=f"stop after a stage: {', '.join(STAGES)} (final)")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (0)")
    add("--fresh", action="store_true", help="forget what an earlier run with this -o has found")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="results to write; survivors beside it, .yaml")
    search.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> tuple[str, int]:
    """Check, search, write; what to print and the exit status."""
    if arguments.output.suffix != ".json":
        raise UsageError(f"-o: {arguments.output} must end in .json; the survivors are written beside it, as .yaml")
    until = one_of("--until", arguments.until, STAGES)
    from bench.files.run import RunRecord

    started = RunRecord(kinds.SEARCH, arguments.output)  # before torch is loaded
    from bench.search import quality, records
    from bench.search.run import Search

    request = requests.read(vars(arguments))
    weight = Path(request.weight) if request.weight is not None else None
    if weight is not None:  # wrong files now, not in an hour
        quality.load(weight, request.key, request.in_features, request.out_features)
    inputs = quality.load_inputs(Path(request.inputs), request.in_features) if request.inputs is not None else None
    journal = Records(arguments.output, {"search": asdict(request)}, records.KINDS, fresh=arguments.fresh)
    try:
        said = Search(request, started, journal, arguments.seconds, weight, inputs, until).search()
    finally:
        journal.close()
    return said, 0
