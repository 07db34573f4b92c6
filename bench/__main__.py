"""`python -m bench report results.json ... -o report/`: commands on results files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.fields import BadResults
from bench.rows import read


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when done, 2 with one sentence on stderr when the input or the output folder is bad."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Commands on results files of the sweep.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="draw results as one HTML page, SVG and PNG figures and CSV")
    report.add_argument("results", nargs="+", type=Path, help="files written by pytest bench --benchmark-json=...")
    report.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write into")
    arguments = parser.parse_args(argv)
    try:
        print(_report(arguments.results, arguments.output))
    except BadResults as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: the report needs {error.name}: pip install 'structures[bench]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write the report: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _report(paths: Sequence[Path], folder: Path) -> str:
    from bench.report import write

    return write(read(paths), folder)


if __name__ == "__main__":
    sys.exit(main())
