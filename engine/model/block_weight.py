"""Quantized weights: rows in blocks of 32 values that share a scale (and a minimum).

    8 bits: weight = (code - 128) * scale          4 bits: weight = code * scale + minimum

These are GGUF's Q8_0, Q4_0 and Q4_1 blocks, with codes, scales and minimums in tensors of their
own. A code times a half-precision scale is exact in float32 and adding the minimum rounds once, so
whoever expands a block gets the very same float32 weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK = 32  # values that share a scale
_LEAST_SCALE = 2.0**-24  # least positive half-precision number, for blocks of equal values


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeight:
    """A quantized weight [out, in]; in is a multiple of BLOCK."""

    codes: Tensor  # uint8 [out, in]; 4 bits: [out, in / 2], even elements in the low half
    scales: Tensor  # float16 [out, in / BLOCK]
    minimums: Tensor | None = None  # float16 [out, in / BLOCK], 4 bits only

    @property
    def bits(self) -> Literal[4, 8]:
        """Bits per code."""
        return 8 if self.minimums is None else 4

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight, [out, in]."""
        return torch.Size((self.scales.shape[0], self.scales.shape[1] * BLOCK))

    def rows(self, first: int, end: int) -> "BlockWeight":
        """Return rows [first, end)."""
        minimums = None if self.minimums is None else self.minimums[first:end]
        return BlockWeight(
            codes=self.codes[first:end], scales=self.scales[first:end], minimums=minimums
        )

    def dequantize(self) -> Tensor:
        """Return the weight as float32 [out, in]."""
        out, size = self.shape
        if self.minimums is None:
            values = (self.codes.float() - 128).view(out, -1, BLOCK) * self.scales.float()[
                ..., None
            ]
        else:
            codes = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).view(out, -1, BLOCK)
            values = (
                codes.float() * self.scales.float()[..., None] + self.minimums.float()[..., None]
            )
        return values.view(out, size)


def concatenate(weights: Sequence[BlockWeight]) -> BlockWeight:
    """Stack weights of the same bits, one below the other."""
    minimums = [weight.minimums for weight in weights if weight.minimums is not None]
    assert len(minimums) in (0, len(weights)), "weights of one form only"
    return BlockWeight(
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        minimums=torch.cat(minimums) if minimums else None,
    )


def quantize(weight: Tensor, bits: Literal[4, 8]) -> BlockWeight:
    """Round a float weight [out, in] to the nearest codes, block by block.

    8 bits: symmetric, the largest magnitude becomes 127. 4 bits: the least value becomes 0, the
    greatest 15 (Q8_0 and Q4_1 of GGUF).
    """
    blocks = weight.float().reshape(weight.shape[0], -1, BLOCK)
    if bits == 8:
        scales = _half(blocks.abs().amax(-1) / 127)
        codes = (blocks / scales.float()[..., None]).round().clamp(-127, 127) + 128
        return BlockWeight(codes=codes.to(torch.uint8).view(weight.shape), scales=scales)
    least = blocks.amin(-1)
    scales, minimums = _half((blocks.amax(-1) - least) / 15), least.half()
    offsets = blocks - minimums.float()[..., None]
    codes = (offsets / scales.float()[..., None]).round().clamp(0, 15).to(torch.uint8)
    pairs = codes.view(weight.shape[0], -1, 2)
    return BlockWeight(codes=pairs[..., 0] | pairs[..., 1] << 4, scales=scales, minimums=minimums)


def _half(scales: Tensor) -> Tensor:
    return scales.clamp(min=_LEAST_SCALE).half()
