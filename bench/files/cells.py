"""CSV files: text that a spreadsheet would run as a formula is made harmless, numbers stay numbers."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def harmless(value: Any) -> Any:
    """The value; text that begins as a formula does stands behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write(path: Path, header: Sequence[str], lines: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(map(harmless, line) for line in (header, *lines))
