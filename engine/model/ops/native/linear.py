"""Weights as the native kernels keep them: in panels of one of four formats (see panel.h)."""

from collections.abc import Sequence
from ctypes import byref
from enum import IntEnum

import torch
from torch import Tensor

from engine.model.block_weight import BLOCK, BlockWeight, quantize
from engine.model.ops.native.address import address, optional_address
from engine.model.ops.native.library import Linear, load_library

PANEL = 16  # outputs per panel
_PACK_ROWS = 4096  # rows converted at a time, so that a big weight needs no second float32 copy
_CACHE_LINE = 64  # bytes


class Format(IntEnum):
    """How a weight is kept; the values are those of panel.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3


CODES = (Format.INT8, Format.INT4)


class NativeLinear:
    """A weight [out, in] in panels of 16 outputs, and its bias; the only copy."""

    def __init__(
        self, shape: Sequence[int], fmt: Format, bias: Tensor | None, *, is_rounded: bool
    ) -> None:
        """Allocate a weight of zeros, which `of_floats` or `of_blocks` fills."""
        library = load_library()
        self.out_features, self.in_features = shape
        self.format = fmt
        self._panels = _aligned_bytes(
            library.linear_bytes(fmt, self.out_features, self.in_features)
        )
        library.linear_prefer_huge_pages(self._panels.data_ptr(), self._panels.nbytes)
        self._panels.zero_()
        self._bias = None
        if bias is not None:
            self._bias = torch.zeros(-(-self.out_features // PANEL) * PANEL)
            self._bias[: self.out_features] = bias
        self.native = Linear(
            self._panels.data_ptr(),
            optional_address(self._bias),
            self.out_features,
            self.in_features,
            library.panel_bytes(fmt, self.in_features),
            fmt,
            is_rounded and fmt in CODES,
        )
        self.reference = byref(self.native)

    @classmethod
    def of_floats(
        cls, weight: Tensor, bias: Tensor | None, wanted: Format, *, is_rounded: bool = False
    ) -> "NativeLinear":
        """Pack floats in the wanted format, or float32 if rows do not divide into its blocks.

        Args:
            is_rounded: Whether activations are rounded to 8 bits where the weight is kept in codes.
        """
        fmt = _fitting(wanted, weight.shape[1])
        packed = cls(weight.shape, fmt, bias, is_rounded=is_rounded)
        packed._write_floats(weight)
        return packed

    @classmethod
    def of_blocks(
        cls, weight: BlockWeight, bias: Tensor | None, *, is_rounded: bool = False
    ) -> "NativeLinear":
        """Pack weights that are quantized already, as they are; see `of_floats`."""
        fmt = Format.INT8 if weight.bits == 8 else Format.INT4
        packed = cls(weight.shape, fmt, bias, is_rounded=is_rounded)
        for first in range(0, packed.out_features, _PACK_ROWS):
            packed._write_codes(weight.rows(first, first + _PACK_ROWS), first)
        return packed

    def rewrite(self, weight: Tensor) -> None:
        """Replace the weight by other floats [out, in]."""
        self._panels.zero_()  # values smaller than a word are OR-ed into it
        self._write_floats(weight)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a pass over the weight reads."""
        return self._panels.nbytes

    def _write_floats(self, weight: Tensor) -> None:
        for first in range(0, self.out_features, _PACK_ROWS):
            rows = weight[first : first + _PACK_ROWS]
            if self.format in CODES:
                self._write_codes(quantize(rows, 8 if self.format is Format.INT8 else 4), first)
            else:
                values = rows.to(torch.float32).contiguous()
                load_library().linear_pack(self.reference, values.data_ptr(), first, len(values))

    def _write_codes(self, rows: BlockWeight, first: int) -> None:
        minimums = rows.minimums
        load_library().linear_pack_codes(
            self.reference,
            address(rows.codes.contiguous(), torch.uint8),
            address(rows.scales.contiguous(), torch.float16),
            None if minimums is None else address(minimums.contiguous(), torch.float16),
            first,
            rows.shape[0],
        )


def _fitting(wanted: Format, in_features: int) -> Format:
    """Return the wanted format, or float32 if rows do not divide into its blocks."""
    multiple = {Format.BFLOAT16: 2, Format.INT8: BLOCK, Format.INT4: BLOCK}.get(wanted, 1)
    return Format.FLOAT32 if in_features % multiple else wanted


def _aligned_bytes(count: int) -> Tensor:
    """Allocate uninitialized memory that begins on a cache line."""
    raw = torch.empty(count + _CACHE_LINE, dtype=torch.uint8)
    skip = -raw.data_ptr() % _CACHE_LINE
    return raw[skip : skip + count]
