"""`python -m bench readme`: what stands between the markers of a README, from results files alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.answers import qualities
from bench.answers.inputs import Inputs
from bench.files import kinds
from bench.files.errors import UsageError
from bench.files.fields import contents
from bench.report.drawing import plot
from bench.report.drawing.plot import Figure
from bench.report.readme import answer, encoder, tables, training
from structures import atomic
from structures.reading import BadFile

GENERATED = "<!-- written by python -m bench readme: run it again rather than edit -->"
RECOMMEND = "python -m bench recommend"
Made = tuple[str, Figure | None]


def write(readme: Path, given: Inputs, pictures: Path, run: Callable[[str], str]) -> str:
    """Fill every pair of markers that the README has, and draw the pictures of these sections into a folder.

    A section of what no file is about is left as it is.

    The same results give the same bytes, and files that would not change are left alone.
    Args:
        run: a command of `python -m bench`, as the README shows it -> what it prints.
    Returns:
        What was written, in words.
    Raises:
        UsageError: it has no markers, one of a pair is missing, or a file cannot be read or
            written. No file is changed then.
    """
    others = qualities.with_committed(given.others)
    converted, trained = ([file for file in others if file.kind == k] for k in (kinds.MINILM, kinds.TRAINING))
    sections: dict[str, Callable[[], Made]] = {
        "answer": lambda: answer.section(given.results, qualities.read(others)),
        "results": lambda: (tables.section(given.results), None),
        **({"encoder": lambda: encoder.section(converted[0])} if converted else {}),
        **({"training": lambda: training.section(trained)} if trained else {}),
    }
    text, files = _read(readme), dict[Path, bytes]()
    found = [name for name in (*sections, "recommend") if f"<!-- {name} -->" in text]
    if not found:
        raise UsageError(f"{readme}: has no markers, such as <!-- answer --> and <!-- end of answer -->")
    for name in found:
        if name == "recommend":
            text = replaced(readme, text, name, f"```text\n{run(_command(readme, text)).strip()}\n```")
            continue
        said, figure = sections[name]()
        parts = [GENERATED, said]
        if figure:
            picture = pictures / f"{figure.name}.png"
            files[picture] = plot.files(figure)[picture.suffix]
            parts.append(f"![{figure.title}]({os.path.relpath(picture, readme.parent)})")
        text = replaced(readme, text, name, "\n\n".join(parts))
    changed = _write(files | {readme: text.encode()})
    return ", ".join(str(path) for path in changed) if changed else "nothing changed"


def replaced(readme: Path, text: str, name: str, inside: str) -> str:
    """The text with `inside` between the markers of a name.

    Raises:
        UsageError: it does not hold each marker once, on lines of their own and in this order.
    """
    lines = text.splitlines(keepends=True)
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    starts, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in (first, last))
    if len(starts) != 1 or len(ends) != 1:
        raise UsageError(
            f"{readme}: has {len(starts)} lines {first} and {len(ends)} lines {last}, must have one of each"
        )
    if starts > ends:
        raise UsageError(f"{readme}: {last} stands before {first}")
    [start], [end] = starts, ends
    newline = "\r\n" if lines[start].endswith("\r\n") else "\n"
    return "".join(lines[: start + 1]) + f"\n{inside}\n\n".replace("\n", newline) + "".join(lines[end:])


def _command(readme: Path, text: str) -> str:
    found = [line.strip() for line in text.splitlines() if line.strip().startswith(RECOMMEND)]
    if not found:
        raise UsageError(f"{readme}: shows no line {RECOMMEND} ... whose answer could stand between its markers")
    return found[0]


def _read(readme: Path) -> str:
    """Raises UsageError where it cannot be read."""
    try:
        return contents(readme).decode("utf-8")
    except BadFile as error:
        raise UsageError(str(error)) from None
    except UnicodeDecodeError:
        raise UsageError(f"{readme}: is not UTF-8") from None


def _write(files: Mapping[Path, bytes]) -> list[Path]:
    """Write the files whose contents differ, all of them or none; returns their paths."""
    changed = [path for path, content in files.items() if not (path.is_file() and path.read_bytes() == content)]
    try:
        for path in changed:
            if path.exists() and not path.is_file():
                raise UsageError(f"{path}: cannot be written: it is there and is not a plain file; nothing was changed")
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_all({path: files[path] for path in changed})
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return changed
