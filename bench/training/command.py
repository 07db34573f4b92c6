"""`python -m bench train`: its options, and the run they start. Torch is loaded after the threads are set."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from bench.files import journal, kinds
from bench.files.errors import UsageError
from bench.files.options import count

RECIPES = """\
several processes:  torchrun --nproc-per-node 8 -m bench train language --scale long --parallel fsdp -o rows.json
several machines:   sbatch --array=1-8 --gpus=1 --wrap 'python -m bench train all --scale long \\
                      --shard $SLURM_ARRAY_TASK_ID/8 -o rows-$SLURM_ARRAY_TASK_ID.json'
                    python -m bench merge rows-*.json -o rows.json
a busy machine:     python -m bench train all --only times -o times.json     (short; leave the machine alone)
                    python -m bench train all --resume times.json -o rows.json
"""


def add_options(train: argparse.ArgumentParser) -> None:
    """Declare the options on the command's parser."""
    train.formatter_class, train.epilog = argparse.RawDescriptionHelpFormatter, RECIPES
    add = train.add_argument
    add("tasks", nargs="+", metavar="TASK", help="regression, images, language, distil, blocks, or all")
    add("-o", "--output", type=Path, metavar="FILE", help="rows to write, after every run")
    add("--scale", metavar="WORD", help="smoke (a minute), standard (under an hour, two shards), long (a GPU)")
    named = 'entries and mixes by layer: "dyad_it:n_blocks=2,4 dyad_it+dyad_dt"'
    add("--structures", "--structure", metavar="WORDS", help=named)
    add("--budget", metavar="SHARES", help="of dense: params=0.5,0.25 flops=0.5 time=0.8; none")
    add("--seeds", type=count, metavar="N", help="of every structure; dense and the controls take at least 3")
    add("--widths", metavar="N,...", help="of the network; learning rates are found at the smallest")
    add("--model", metavar="WORDS", help="mlp, mixer, vit; gpt, opt, pythia, gpt2")
    add("--layers", metavar="WORDS", help="ff (feed-forward only), all (all linear layers but the head)")
    add("--data", metavar="NAME", help="digits, fashion-mnist, sotu, those of `bench data list`, folder:PATH")
    add("--tokenizer", metavar="WORD", help="characters, bytes, bpe:1024")
    for name, what in (
        ("steps", "of every run"),
        ("tune-steps", "of every try of a learning rate"),
        ("teacher-steps", "of the dense network that distil starts from"),
        ("batch", "samples or sequences of a step"),
        ("accumulate", "parts of a step, one after another"),
        ("depth", "blocks of the network"),
        ("length", "tokens of a sequence"),
        ("held-out", "samples or tokens that measure a loss"),
    ):
        add(f"--{name}", type=count, metavar="N", help=what)
    add("--rates", metavar="N,...", help="learning rates to try: 0.001,0.003,0.01")
    add("--only", metavar="WORD", help="times (paired step times alone), losses (training alone), both (default)")
    add("--precision", "--dtype", "--dtypes", metavar="WORD", help="float32, bfloat16 (autocast)")
    add("--compile", action="store_true", help="through torch.compile")
    add("--device", metavar="WORD", help="cpu, cuda")
    add("--parallel", metavar="WORD", help="under torchrun: ddp (default), fsdp")
    add("--shard", metavar="K/N", help="the K-th of N parts of the grid; join the files by bench merge")
    add("--resume", type=Path, metavar="FILE", help="keep the runs of FILE, take up the unfinished one")
    add("--checkpoint-every", type=float, metavar="SECONDS", help="between two checkpoints of a run (30)")
    add("--registry", metavar="FILE", action="append", default=[], help="a YAML file with more entries")
    add("--list", action="store_true", help="print the runs and their number, run nothing")
    train.set_defaults(run=start)


def start(arguments: argparse.Namespace) -> tuple[str, int]:
    """Run the command; returns what to say and the exit code."""
    from bench.files.run import RunRecord

    output = arguments.output or arguments.resume
    if output is None and not arguments.list:
        raise UsageError("-o: name the file to write rows into")
    if arguments.resume and not (arguments.resume.is_file() or journal.of(arguments.resume).is_file()):
        raise UsageError(f"--resume: there is no file {arguments.resume}")
    run = RunRecord(kinds.TRAINING, output or Path("none"))  # before torch is loaded
    import torch

    from bench.training import parallel, request, session

    torch.set_num_threads(run.threads.count)
    options: dict[str, Any] = vars(arguments)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    asked = request.read(options, cuda=torch.cuda.is_available(), processes=processes)
    with parallel.group(asked.parallel, asked.settings[0].device) as group:
        one = session.Session(run, asked, group)
        if arguments.list:
            return "\n".join(one.listed()), 0
        one.run_all()
    return run.said() if group.first else "", 0
