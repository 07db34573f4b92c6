"""`python -m structures list | show NAME IN OUT [option=value ...] | table | plan CONFIG ... | ...`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from structures import atomic, reading, registry
from structures.language.words import dtype, settings
from structures.models.config import SwapConfig
from structures.models.rules import SKIP
from structures.models.shapes import plan_lines
from structures.spec import Spec, SpecError
from structures.structure import Structure

TABLE_WIDTH = 1024  # the square width at which the table gives parameters and FLOPs
TABLE_START, TABLE_END = "<!-- table: python -m structures table -->", "<!-- end of table -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Mistakes of the user are one line on stderr and status 2."""
    anywhere = argparse.ArgumentParser(prog="python -m structures", add_help=False, allow_abbrev=False)
    anywhere.add_argument("--registry", action="append", default=[], metavar="FILE", help="a YAML file of more entries")
    files, rest = anywhere.parse_known_args(arguments)  # before the command or after it
    parser = argparse.ArgumentParser(
        prog="python -m structures", description="The registry of structured layers.", parents=[anywhere]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every entry with its options and einsum")
    tabled = commands.add_parser("table", help="the README's table, in Markdown")
    tabled.add_argument("--into", metavar="FILE", help="write it between the markers of this file")
    show = commands.add_parser("show", help="an entry bound to widths: its steps and counts")
    show.add_argument("name")
    show.add_argument("in_features", type=int)
    show.add_argument("out_features", type=int)
    given = show.add_argument("options", nargs=argparse.REMAINDER, help="the entry's own: n_blocks=8 or --n_blocks 8")
    given.required = False  # which usage errors would name with those that are missing
    plan = commands.add_parser("plan", help="what a swap would change in a transformers model, from its config alone")
    plan.add_argument("config", help="a known shape (opt-125m), a model type (opt), or a config.json or its folder")
    plan.add_argument(
        "--rule",
        action="append",
        nargs="+",
        metavar=("KEY", "STRUCTURE"),
        help="KEY STRUCTURE [option=value ...]; STRUCTURE may be none",
    )
    plan.add_argument("--rules", metavar="FILE", help="a swap's config as JSON, in place of --rule and --skip")
    plan.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the config")
    plan.add_argument("--skip", action="append", metavar="KEY", help=f"what stays, in place of {', '.join(SKIP)}")
    plan.add_argument("--each", action="store_true", help="a line for every layer")
    calibrated = commands.add_parser("calibrate", help="measure this machine once, alone on it: the planner's prices")
    calibrated.add_argument(
        "--dtype", "--dtypes", action="append", metavar="WORDS", help="float32,bfloat16 if not given"
    )
    calibrated.add_argument("--threads", type=int, metavar="N", help="torch's own number unless given")
    commands.add_parser("build", help="compile the native kernel now, not at the first call")
    parsed = parser.parse_args(rest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a title may hold what the terminal cannot show
    try:
        for file in files.registry:
            registry.load(file)
        said = _said(parsed)
    except (ValueError, KeyError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    try:
        print(said, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _said(parsed: argparse.Namespace) -> str:
    """What a command prints."""
    if parsed.command == "show":
        spec = registry.get(parsed.name)
        return str(spec.bind(parsed.in_features, parsed.out_features, **_options(spec, parsed.options)))
    if parsed.command == "calibrate":
        return "\n".join(_calibrated(parsed.dtype, parsed.threads))
    if parsed.command == "build":
        return _built()
    if parsed.command == "plan":
        rules = _rules(parsed.rule, parsed.rules)
        return "\n".join(plan_lines(parsed.config, rules, overrides=parsed.set, skip=parsed.skip, each=parsed.each))
    if parsed.command == "table" and parsed.into:
        return _write_table(Path(parsed.into))
    return "\n".join(table() if parsed.command == "table" else _list())


def _rules(words: Sequence[Sequence[str]] | None, file: str | None) -> Sequence[Sequence[str]] | SwapConfig:
    """The rules of a plan, from the command line or from a file."""
    if (words is None) == (file is None):
        raise ValueError("plan takes rules by --rule KEY STRUCTURE [option=value ...], or a file of them by --rules")
    if words is not None:
        return words
    try:
        return SwapConfig.from_dict(reading.json_file(str(file)))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except reading.BadFile:
        raise
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def table() -> list[str]:
    """The registry as a Markdown table, counts at one square width with default options."""
    lines = [
        "| name | einsum | parameters | FLOPs a token | omega, psi, nu | source |\n|---|---|---:|---:|---|---|",
    ]
    for name in registry.names():
        spec = registry.get(name)
        structure = spec.bind(TABLE_WIDTH, TABLE_WIDTH)
        einsum = "<br>+ ".join(f"`{term}`" for term in spec.einsum)
        lines.append(
            f"| `{name}`{_given(structure)} | {einsum} | {_share(structure.params, structure.dense_params)} "
            f"| {_share(structure.flops(), structure.dense_flops())} | {_placed(structure)} | {spec.source} |"
        )
    return lines


def _write_table(file: Path) -> str:
    """Put the table in place of the one between the markers; the file is written whole or not at all."""
    try:
        before, found, rest = reading.content(file).decode("utf-8").partition(TABLE_START)
        _, ended, after = rest.partition(TABLE_END)
        if not found or not ended:
            raise SpecError(f"{file}: there are no lines {TABLE_START!r} and {TABLE_END!r} to write between")
        atomic.write("\n\n".join([before + found, "\n".join(table()), ended + after]), file)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be rewritten: {getattr(error, 'strerror', None) or error}") from None
    return f"{file}: {len(registry.names())} entries"


def _placed(structure: Structure) -> str:
    found = structure.taxonomy
    return "" if found is None else ", ".join(f"{round(n, 2):g}" for n in (found.omega, found.psi, found.nu))


def _built() -> str:
    """Compile the native kernel, or try again what failed before; what is there now, in a line."""
    from structures.backends.native import kernel
    from structures.backends.native.objects import Unavailable

    try:
        library = kernel.load(again=True)
    except Unavailable as error:
        raise ValueError(f"the native kernel is not there: {error}") from None
    threads = "torch's own threads" if library.threaded else "one thread: torch has loaded no OpenMP runtime it knows"
    return f"{library.path}: vectors of {library.vector()} numbers, {threads}"


def _calibrated(names: Sequence[str] | None, threads: int | None) -> list[str]:
    """Measure and keep the figures of some dtypes; what was found, a line each."""
    import torch

    from structures.backends.planned import measure, rates

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    known = ("float32", "bfloat16", "float16", "float64")
    names = [dtype(word) for text in names or () for word in re.split(r"[,\s]+", text) if word]
    for name in names:
        if name not in known:
            raise ValueError(f"--dtype {name}: choose from {', '.join(known)}")
    chosen = names or [str(dtype).removeprefix("torch.") for dtype in measure.DTYPES]
    lines = []
    for name, found in zip(chosen, measure.calibrate([getattr(torch, name) for name in chosen]), strict=True):
        product, copy = dict(found.product)["contiguous"], dict(found.copy)["plain"]
        lines.append(
            f"{name}, {found.threads} threads: products to {max(rate for _, rate in product):.0f} GFLOP/s, copies to "
            f"{max(rate for _, rate in copy):.0f} GB/s, a call {found.call * 1e6:.1f} us; kept in {rates.folder()}"
        )
    return lines


def _given(structure: Structure) -> str:
    return "".join(f"<br>{k}={list(v) if isinstance(v, tuple) else v}" for k, v in structure.options)


def _share(count: int, dense: int) -> str:
    return f"{count:,} ({count / dense:.3g})"


def _list() -> list[str]:
    lines = []
    for name in registry.names():
        spec = registry.get(name)
        options = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in spec.options)
        lines.append(f"{name:18} {spec.title}{f' ({options})' if options else ''}")
        lines += [f"{'':18}   {term}" for term in spec.einsum]
    return lines


def _options(spec: Spec, rest: Sequence[str]) -> dict[str, object]:
    """`n_blocks=8,rank=2`, `--n_blocks 8` or `--n_blocks=8`, lists with commas: the values as numbers."""
    words = list(rest)
    for i in range(len(words) - 1, -1, -1):
        if words[i].startswith("--") and "=" not in words[i] and i + 1 < len(words):
            words[i : i + 2] = [f"{words[i]}={words[i + 1]}"]
    options: dict[str, object] = {}
    for word in words:
        try:
            options |= settings([word])
        except ValueError:
            raise SpecError(f"{spec.name}: an option is written n_blocks=8 or --n_blocks 8, found {word!r}") from None
    for name, value in options.items():
        if isinstance(value, str):
            raise SpecError(f"{spec.name}: option {name} is a number, found {value!r}")
    return options


if __name__ == "__main__":
    sys.exit(main())
