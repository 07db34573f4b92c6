"""Files given to a command, of any kind and in any number: the sweep's are merged, machine by machine."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.files import kinds, merge
from bench.files.fields import load
from bench.files.kinds import File
from bench.files.merged_run import Shard
from bench.files.rows import Results, join, parse
from structures.reading import BadFile


@dataclass(frozen=True)
class Inputs:
    """What the files hold."""

    results: Results  # of the sweep's files; empty without any
    others: tuple[File, ...]  # of other kinds, in the order given
    said: tuple[str, ...]  # a line for each machine whose files were merged


def read(paths: Sequence[Path], allowed: Collection[str]) -> Inputs:
    """Read files of the sweep and of the kinds allowed.

    Files of one machine, commit and set of versions are merged as `merge` does it: dense, which every sweep measures,
    does not stand in the way. Files of other machines stand beside them.
    Raises:
        BadFile: a file is missing, broken or foreign, given twice, or of a kind that is not allowed.
    """
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise BadFile(f"{path}: is given twice")
    machines: dict[tuple[str, ...], list[Shard]] = {}
    others: list[File] = []
    for path in paths:
        document = load(path)
        if kinds.kind_of(document) is None:
            shard = Shard(document, join([parse(str(path), document)]))
            machines.setdefault(tuple(shard.run.machine.values()), []).append(shard)
        else:
            others.append(kinds.parse(str(path), document, allowed))
    said: list[str] = []
    return Inputs(join([_merged(shards, said) for shards in machines.values()]), tuple(others), tuple(said))


def _merged(shards: Sequence[Shard], said: list[str]) -> Results:
    if len(shards) == 1:
        return shards[0].results
    settled: list[str] = []
    document = merge.joined(shards, settled.append)
    names = [shard.run.file for shard in shards]
    said.append(f"merged {', '.join(names)}; {len(settled)} points and facts stand in several of them: python -m bench "
                "merge says what was kept")  # fmt: skip
    return join([parse(" + ".join(names), document)])
