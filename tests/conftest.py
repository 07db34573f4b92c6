"""One thread a process: the tests are small, and several processes of them share the cores."""

import os
import tempfile
from pathlib import Path

import torch

from structures.backends.planned import measure, rates


class _All(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


measure._tried = _All()  # nothing is measured on the way: plans must not change from one test to the next

_own = Path(tempfile.mkdtemp(prefix="structures-"))
_objects = rates.folder().absolute() / "native"
try:
    _objects.mkdir(mode=0o700, parents=True, exist_ok=True)
    (_own / "native").symlink_to(_objects)  # the kernel's object is the same for all: compiled once, not a process each
except OSError:  # no home to write to
    pass
os.environ["STRUCTURES_CACHE"] = str(_own)  # plans must not depend on what was measured
torch.set_num_threads(1)
