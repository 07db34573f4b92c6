"""One thread a process: the tests are small, and several processes of them share the cores."""

import os
import tempfile

import torch

os.environ["STRUCTURES_CACHE"] = tempfile.mkdtemp(prefix="structures-")  # plans must not depend on what was measured
torch.set_num_threads(1)
