"""Whether a graph is being made for another program to run: torch.export and both of torch's ONNX exporters."""

from __future__ import annotations

import torch

_of_torch_export = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.7 has the first


def exporting() -> bool:
    """True inside an export; a graph that torch.compile runs itself is none."""
    return bool(_of_torch_export()) or torch.onnx.is_in_onnx_export()
