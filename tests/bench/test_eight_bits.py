"""Dense layers in 8 bits: within what the rounding of weights and inputs explains, and no nearer."""

import pytest
import torch
from torch import nn

from bench.sweep.eight_bits import FLOAT8, EightBits, rounded

HALF_STEP = {torch.int8: (0.0, 0.5), FLOAT8: (2**-4, 2**-10)}  # of a number, and of its scale


@pytest.mark.parametrize("dtype", [torch.int8, FLOAT8], ids=str)
def test_numbers_are_rounded_by_at_most_half_a_step(dtype):
    torch.manual_seed(0)
    matrix = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None]
    narrow, scale = rounded(matrix, dtype)
    of_number, of_scale = HALF_STEP[dtype]
    most = of_number * matrix.abs() + of_scale * scale
    assert narrow.dtype == dtype and ((narrow.float() * scale - matrix).abs() <= most * 1.001).all()
    assert rounded(torch.zeros(2, 4), dtype)[0].float().count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.int8, FLOAT8], ids=str)
def test_a_layer_is_off_by_what_its_rounding_explains(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, dtype=torch.bfloat16)
    x = torch.randn(24, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        y, meant = EightBits(linear, dtype)(x), linear.double()(x.double())
    assert y.dtype == torch.bfloat16
    w, wide = linear.weight.abs(), x.double().abs()
    of_number, of_scale = HALF_STEP[dtype]
    dw = of_number * w + of_scale * rounded(linear.weight, dtype)[1]
    dx = of_number * wide + of_scale * rounded(x, dtype)[1]
    most = wide @ dw.t() + dx @ w.t() + dx @ dw.t() + 2**-8 * (meant.abs() + 1)
    off = (y - meant).abs()
    assert (off <= most).all() and (off > 2**-8 * (meant.abs() + 1)).any()
