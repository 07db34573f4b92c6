"""Dense layers in 8 bits by torch's own products, which a GPU has units for: int8, and float8 of 4 exponent bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FLOAT8: 448.0}


class EightBits(nn.Module):
    """A layer whose weight is kept in 8 bits with a scale for each row; inputs are rounded alike in each call.

    Forward only. Nothing is fused: the rounding of the inputs is passes of its own, and part of the time.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        weight, scale = rounded(linear.weight.detach(), dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.view(1, -1))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        narrow, scale = rounded(x, self.weight.dtype)
        if self.weight.dtype == torch.int8:
            sums = torch._int_mm(narrow, self.weight.t())
            return (sums * scale * self.scale + self.bias).to(x.dtype)
        return torch._scaled_mm(narrow, self.weight.t(), scale, self.scale, bias=self.bias, out_dtype=x.dtype)


def rounded(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row over a scale (rows, 1), in float32, so that its largest number is the dtype's."""
    wide = matrix.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST[dtype]
    scaled = wide / scale
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale
