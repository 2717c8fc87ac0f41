"""Activations of 8 bits in the native kernels: what is rounded, and that rows do not depend on what
shares their call.
"""

import pytest
import torch
from backends import needs_native
from native_values import EPS, assert_close, randn, rounded
from torch import Tensor

from engine.model.block_weight import BLOCK, quantize
from engine.model.ops.native.linear import CODES, Format
from engine.model.ops.native_ops import NativeOps

pytestmark = [pytest.mark.torch, needs_native]


def rounded_activations(x: Tensor) -> Tensor:
    """Return the values that activations have once each block is rounded to 8 bits."""
    blocks = x.view(x.shape[0], -1, BLOCK)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scales).round() * scales).view(x.shape)


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("shape", [(960, 576), (97, 64), (16, 1536), (7, 32)])
@pytest.mark.parametrize("threads", [1, 3])
def test_activations_are_rounded_block_by_block(
    form: Format, shape: tuple[int, int], threads: int
) -> None:
    """Products of whole numbers give what the rounded values would, whatever shares the call."""
    out, size = shape
    weight, bias = randn(out, size, scale=size**-0.5), randn(out, seed=1)
    x, norm, residual = randn(40, size, seed=2), randn(size, seed=3), randn(40, out, seed=4)
    ops = NativeOps(threads, form, rounds_activations=True)
    packed = ops.pack(weight, bias)
    normal = rounded_activations(x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * norm)
    expected = normal @ rounded(weight, form).T + bias + residual
    options = {"norm": norm, "eps": EPS}
    alone = torch.cat(
        [
            ops.linear(x[i : i + 1], packed, residual=residual[i : i + 1], **options)
            for i in range(40)
        ]
    )
    # An activation that lies between two codes may be rounded to either.
    torch.testing.assert_close(alone, expected, rtol=1e-3, atol=2e-2)
    assert (alone - expected).abs().mean() < 1e-4
    for count in (*range(1, 21), 25, 40):
        together = ops.linear(x[:count], packed, residual=residual[:count], **options)
        assert torch.equal(together, alone[:count]), f"{count} rows"


@pytest.mark.parametrize("form", CODES)
def test_gate_and_up_round_activations_as_well(form: Format) -> None:
    weight, x = randn(192, 64, scale=0.3), randn(40, 64, seed=2)
    ops, norm = NativeOps(2, form, rounds_activations=True), torch.ones(64)
    packed = ops.pack(weight)
    gate, up = ops.linear(x, packed, norm=norm, eps=EPS).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    for count in (*range(1, 21), 40):
        actual = ops.gate_up(x[:count], packed, norm=norm, eps=EPS)
        assert_close(actual, expected[:count])


@pytest.mark.parametrize("form", CODES)
def test_rounded_activations_of_one_size_are_exact(form: Format) -> None:
    """Blocks of 127s, -127s and zeros lose nothing: the product is the integers' own."""
    weight = quantize(randn(48, 96), 8 if form is Format.INT8 else 4)
    codes = torch.randint(-1, 2, (5, 96), generator=torch.Generator().manual_seed(1)) * 127.0
    codes[0] = 0
    packed = NativeOps(1, form, rounds_activations=True).pack(weight)
    actual = NativeOps(2).linear(codes, packed)
    expected = codes.double() @ weight.dequantize().double().T
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-3)
    assert (actual[0] == 0).all()


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none_when_it_is_rounded(form: Format, bad: float) -> None:
    """And does not spread to other rows of the call."""
    x = randn(3, 64)
    x[1, 40] = bad
    ops = NativeOps(1, form, rounds_activations=True)
    out = ops.linear(x, ops.pack(randn(32, 64)))
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("form", CODES)
@pytest.mark.parametrize("size", [1e-44, 1e-36, 1e-20, 1e30])
def test_tiny_and_huge_activations_are_rounded_too(form: Format, size: float) -> None:
    x = randn(2, 64) * size
    ops = NativeOps(1, form, rounds_activations=True)
    weight = randn(32, 64)
    out = ops.linear(x, ops.pack(weight))
    expected = x.double() @ rounded(weight, form).double().T
    assert out.isfinite().all()
    assert (out.double() - expected).abs().max() <= max(expected.abs().max().item() * 0.05, 1e-30)
