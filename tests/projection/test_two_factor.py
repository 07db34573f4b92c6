"""The truncated SVD that closed forms rest on is as near as numpy's, whatever the spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from structures.projection.two_factor import MAX_SVD, truncated_svd

SIDE = MAX_SVD + 32
SPECTRA = {
    "flat": torch.ones(SIDE, dtype=torch.float64),
    "falling": torch.logspace(0, -4, SIDE, dtype=torch.float64),
    "falling beyond half the digits": torch.logspace(0, -14, SIDE, dtype=torch.float64),
    "of rank 20": (torch.arange(SIDE) < 20).double(),
    "zero": torch.zeros(SIDE, dtype=torch.float64),
}
SLACK = {torch.float64: 1e-14, torch.float32: 1e-7}  # of the squared norm, as truncated_svd promises


def matrices(spectrum, shape, dtype):
    """Two matrices of these singular values, and the same in another order of magnitude."""
    generator = torch.Generator().manual_seed(0)

    def orthonormal(size):
        return torch.linalg.qr(torch.randn(size, SIDE, generator=generator, dtype=torch.float64)).Q

    made = [orthonormal(shape[0]) * (scale * spectrum) @ orthonormal(shape[1]).mT for scale in (1.0, 1e-5)]
    return torch.stack(made).to(dtype)


def excess(found, matrix, rank):
    """How far the squared error lies above the least one, as a share of the squared norm."""
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    whole = float((values**2).sum()) or 1.0
    error = float((matrix.double() - found.double()).square().sum())
    return (error - float((values[rank:] ** 2).sum())) / whole


@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(SIDE, 3 * SIDE), (2 * SIDE, SIDE), (SIDE, SIDE)], ids=str)
def test_nothing_of_that_rank_is_nearer(spectrum, shape, dtype):
    both = matrices(SPECTRA[spectrum], shape, dtype)
    for rank in (1, 20, SIDE):
        u, s, v = truncated_svd(both, rank)
        assert (u.shape, s.shape, v.shape) == ((2, shape[0], rank), (2, rank), (2, rank, shape[1]))
        for one, product in zip(both, (u * s[:, None]) @ v, strict=True):
            assert excess(product, one, rank) <= SLACK[dtype]
        eye, close = torch.eye(rank, dtype=dtype), 100 * torch.finfo(dtype).eps * SIDE**0.5
        for basis in (u, v.mT):
            torch.testing.assert_close(basis.mT @ basis, eye.expand(2, -1, -1), rtol=0, atol=close)
        assert bool((s[:, 1:] <= s[:, :-1]).all()) and bool((s >= 0).all())


def test_a_subspace_that_is_not_the_best_exceeds_the_slack():
    matrix = matrices(SPECTRA["falling"], (SIDE, SIDE), torch.float64)[0]
    u, s, v = truncated_svd(matrix[None], 21)
    without = (u[0][:, 1:] * s[0][1:]) @ v[0][1:]  # rank 20, but not the first 20
    assert excess(without, matrix, 20) > SLACK[torch.float64]
