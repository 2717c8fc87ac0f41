"""Scaling vectors to root-mean-square 1, and its gradient."""

import torch
from torch import Tensor


def unit_rms(x: Tensor) -> Tensor:
    """Return x [..., E] in float32, scaled to root-mean-square 1 along the last dimension."""
    x = x.float()
    return x * inverse_rms(x)


def inverse_rms(x: Tensor) -> Tensor:
    """Return the factors [..., 1] that scale x [..., E] to root-mean-square 1."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def unit_rms_backward(errors: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient [T, E] with respect to vectors before they were scaled to unit RMS.

    Args:
        errors: [T, E], the gradient with respect to the scaled vectors.
        unit: [T, E], the scaled vectors.
        scale: [T, 1], the factors that scaled them, see `inverse_rms`.
    """
    return (errors - unit * (errors * unit).mean(-1, keepdim=True)) * scale
