"""`python -m bench train`: its options, and the run they start. Torch is loaded after the threads are set."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.files import journal, kinds
from bench.files.errors import UsageError
from bench.files.options import count

RECIPES = """\
several machines:   sbatch --array=1-8 --gpus=1 --wrap 'python -m bench train all --scale full --device cuda \
                      --shard $SLURM_ARRAY_TASK_ID/8 -o rows-$SLURM_ARRAY_TASK_ID.json'
                    python -m bench merge rows-*.json -o rows.json
a busy machine:     python -m bench train all --only times -o times.json     (short; leave the machine alone)
                    python -m bench train all --resume times.json -o rows.json
"""


def add_options(train: argparse.ArgumentParser) -> None:
    """Declare the options on the command's parser."""
    train.formatter_class, train.epilog = argparse.RawDescriptionHelpFormatter, RECIPES
    add = train.add_argument
    add("tasks", nargs="+", metavar="TASK", help="encoder, teacher, facts, language, or all of the scale")
    add("-o", "--output", type=Path, metavar="FILE", help="rows to write, after every variant")
    add(
        "--scale",
        metavar="WORD",
        help="smoke (a minute), standard and claims (over an hour on two cores), full (a GPU)",
    )
    named = 'entries and mixes by layer: "dyad_it:n_blocks=2,4 dyad_it+dyad_dt"'
    add("--structures", "--structure", metavar="WORDS", help=named)
    add("--budget", metavar="SHARES", help="of dense: params=0.5,0.25 flops=0.5")
    add("--seeds", type=count, metavar="N", help="of everything, each at every rate")
    add("--widths", metavar="N,...", help="of the network")
    add("--layers", metavar="WORDS", help="ff (feed-forward only), all (all linear layers but the head)")
    add("--data", metavar="NAME", help="a text of `bench data list` or folder:PATH; layer:5 of encoder; keys:4096")
    add("--tokenizer", metavar="WORD", help="characters, bytes, bpe:1024")
    for name, what in (
        ("steps", "of every run"),
        ("batch", "samples or sequences of a step"),
        ("depth", "blocks of the network"),
        ("length", "tokens of a sequence"),
        ("held-out", "samples or tokens that measure a loss"),
    ):
        add(f"--{name}", type=count, metavar="N", help=what)
    add("--rates", metavar="N,...", help="learning rates, each run at full length: 0.001,0.003,0.01")
    add("--only", metavar="WORD", help="times (paired step times alone), losses (training alone), both (default)")
    add("--device", metavar="WORD", help="cpu, cuda")
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

    from bench.training import request, session

    torch.set_num_threads(run.threads.count)
    one = session.Session(run, request.read(vars(arguments), cuda=torch.cuda.is_available()))
    if arguments.list:
        return "\n".join(one.listed()), 0
    one.run_all()
    return run.said(), 0
