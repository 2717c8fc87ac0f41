"""Values for tests of the native kernels, and how near to torch they should be."""

import torch
from torch import Tensor

from engine.model.block_weight import quantize
from engine.model.ops.native.linear import Format

EPS = 1e-5


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def rounded(weight: Tensor, form: Format) -> Tensor:
    """Return the float32 values that a weight has when it is kept in a form."""
    if form is Format.BFLOAT16:
        return weight.bfloat16().float()
    return quantize(weight, 8 if form is Format.INT8 else 4).dequantize()
