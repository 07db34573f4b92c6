"""The command line of the encoder's conversion. Nothing here imports torch until the run has set up its threads."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.files import kinds
from bench.files.errors import UsageError, one_of
from bench.files.journal import Records
from bench.files.options import count, share, shares, some_of


def add_options(minilm: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = minilm.add_argument
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="results to write, .json")
    add("--structures", "--structure", metavar="WORDS", help="names (every entry that can meet a share)")
    add("--shares", type=shares, default=(0.5, 0.25), metavar="SHARES", help="of the feed-forward's weights (0.5,0.25)")
    add("--sentences", type=count, default=256, metavar="N", help="to fit on, and to measure on (256)")
    add("--limit", type=count, default=3, metavar="N", help="sweeps of a projection without a closed form (3)")
    add("--aware-limit", type=count, default=1, metavar="N", help="the same, of an activation-aware projection (1)")
    add("--patience", type=count, default=30, metavar="SECONDS", help="leave out conversions that take longer (30)")
    add("--damping", type=share, default=0.001, metavar="SHARE", help="added to each input's variance (0.001)")
    ways = "plain: nearest weights; aware: nearest outputs; sequential: the same, layer after layer (plain,aware)"
    add("--ways", default="plain,aware", metavar="WORDS", help=ways)
    add("--tune", type=float, default=0.0, metavar="MINUTES", help="of one core, to train the best conversions for (0)")
    add("--tune-best", type=count, default=6, metavar="N", help="conversions of each share, by agreement (6)")
    also = "these too, whatever their agreement (the narrowed layer and DYAD)"
    add("--tune-also", metavar="WORDS", help=also)
    until = "fits, tune: stop after it, as neither must have the machine to itself; without it the command goes on"
    add("--until", default="times", metavar="WORD", help=until)
    add("--fresh", action="store_true", help="forget what an earlier run with this -o has converted")
    minilm.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> tuple[str, int]:
    """Check, convert, time, write; what to print and the exit status."""
    if arguments.output.suffix != ".json":
        raise UsageError(f"-o: {arguments.output} must end in .json; what is converted is kept beside it, as .journal")
    until = one_of("--until", arguments.until, ("fits", "tune", "times"))
    if not 0 <= arguments.tune < 1e4:
        raise UsageError(f"--tune: {arguments.tune:g} is not allowed; write minutes from 0")
    from bench.files.run import RunRecord

    started = RunRecord(kinds.MINILM, arguments.output)  # before torch is loaded
    from bench.minilm import data, request
    from bench.minilm import run as runs

    named = arguments.structures is not None
    limits = {key: getattr(arguments, key) for key in ("shares", "limit", "aware_limit", "patience", "damping")}
    ways = some_of("--ways", arguments.ways, request.WAYS)
    tuned = {"tune": arguments.tune, "tune_best": arguments.tune_best}
    if arguments.tune_also is not None:
        tuned["tune_also"] = request.entries(arguments.tune_also, "--tune-also")
    names = request.entries(arguments.structures)
    asked = request.ConversionRequest(names, affordable=not named, ways=ways, **limits, **tuned)
    given = data.load(arguments.sentences)
    journal = Records(arguments.output, request.header(asked, given.facts), runs.KINDS, fresh=arguments.fresh)
    again = f"the same command goes on from {journal.path}"
    try:
        if not runs.run_all(given, asked, started, journal, until):
            return f"done until {until}; without --until {again}", 0
    except KeyboardInterrupt:
        return f"stopped; {again}", 130
    finally:
        journal.close()
    journal.path.unlink()
    return started.said(), 0
