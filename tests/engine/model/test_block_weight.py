"""Quantized blocks: rounding to the nearest code, and the values that codes stand for."""

import pytest
import torch

from engine.model.block_weight import BLOCK, concatenate, quantize

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 15 / 2)])
def test_rounding_errs_by_half_a_step_at_most(bits: int, steps: float) -> None:
    weight = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    error = (quantize(weight, bits).dequantize() - weight).abs().view(20, -1, BLOCK)
    largest = weight.view(20, -1, BLOCK).abs().amax(-1, keepdim=True)
    assert (error <= 0.51 * largest / steps + 1e-3 * largest).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_what_blocks_stand_for_is_a_fixed_point(bits: int) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    once = quantize(weight, bits)
    assert once.bits == bits
    assert once.shape == weight.shape
    again = quantize(once.dequantize(), bits)
    torch.testing.assert_close(again.dequantize(), once.dequantize(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_block_of_equal_values_has_no_infinite_code(bits: int) -> None:
    for value in (0.0, 0.25, -3.0):
        weight = torch.full((2, 32), value)
        torch.testing.assert_close(quantize(weight, bits).dequantize(), weight, rtol=1e-3, atol=0)


def test_rows_and_concatenation() -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    for bits in (8, 4):
        whole = quantize(weight, bits)  # type: ignore[arg-type]
        joined = concatenate([whole.rows(0, 2), whole.rows(2, 6)])
        assert torch.equal(joined.dequantize(), whole.dequantize())
