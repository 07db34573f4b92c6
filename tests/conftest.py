"""One thread a process: the tests are small, and several processes of them share the cores."""

import torch

torch.set_num_threads(1)
