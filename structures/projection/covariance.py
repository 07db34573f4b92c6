"""Second moments of the inputs of layers: what an activation-aware projection is measured in."""

from __future__ import annotations

import torch
from torch import Tensor

SYMMETRIC = 1e-5  # a square matrix this near to its transpose is a covariance


def second_moment(inputs: Tensor, in_features: int, what: str, dtype: torch.dtype) -> Tensor:
    """(in_features, in_features): the mean of x x^T over a batch (..., in_features), or a covariance as it is.

    Raises:
        ValueError: another width, no tokens, not finite, or not real floating-point numbers.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.is_meta:
        raise ValueError(f"{what} is a real floating-point tensor with data, found {kind_of(inputs)}")
    if inputs.dim() == 0 or inputs.shape[-1] != in_features:
        raise ValueError(
            f"{what} is (tokens, in_features={in_features}) or a covariance ({in_features}, {in_features}), found "
            f"shape {tuple(inputs.shape)}"
        )
    inputs = inputs.detach()
    flat = inputs.reshape(-1, in_features).to(dtype)
    if not len(flat):
        raise ValueError(f"{what} holds no tokens")
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(f"{what} holds NaN or infinity")
    if _is_covariance(inputs):
        return (flat + flat.mT) / 2
    scale = flat.abs().amax().clamp_min(torch.finfo(dtype).tiny)  # squares of very large or small numbers stay finite
    flat = flat / scale
    return (flat.mT @ flat) / len(flat) * scale**2


def damped(covariance: Tensor, damping: float) -> Tensor:
    """`damping` times the mean variance added to every feature's, the whole scaled to a mean variance of one.

    Raises:
        ValueError: all inputs are zero, or it is not positive definite.
    """
    mean = covariance.diagonal().mean()
    if not bool(mean > 0):
        raise ValueError("inputs: all zero, so every weight has the same outputs")
    lifted = covariance / mean
    lifted = lifted + damping * torch.eye(len(lifted), dtype=lifted.dtype, device=lifted.device)
    if int(torch.linalg.cholesky_ex(lifted)[1]):
        raise ValueError(f"inputs: their covariance is not positive definite with damping={damping}; raise damping")
    return lifted


def _is_covariance(inputs: Tensor) -> bool:
    if inputs.dim() != 2 or inputs.shape[0] != inputs.shape[1]:
        return False
    wide = inputs.to(torch.float32) if inputs.dtype in (torch.bfloat16, torch.float16) else inputs
    off = (wide - wide.mT).abs().amax()
    return bool(off <= SYMMETRIC * wide.abs().amax()) and bool((wide.diagonal() >= 0).all())


def kind_of(value: object) -> str:
    """What an error says of a value that should be a tensor of real numbers."""
    if isinstance(value, Tensor):
        return f"{value.dtype} on {value.device}"
    return type(value).__name__
