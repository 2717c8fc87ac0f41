"""Quantized matrices of a GGUF file, taken apart into codes, scales and minimums, without rounding.

The result is what `engine.model.block_weight` multiplies with. Blocks of 32 values along a row:

    Q8_0  scale (half), 32 signed bytes               Q4_1  scale, minimum (half), 16 bytes
    Q4_0  scale (half), 16 bytes, codes minus 8       of 4 bits: byte j holds values j and j + 16
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, ReaderTensor

from engine.checkpoint.gguf_tensors import hugging_face_name, row_order
from engine.checkpoint.safetensors_writer import TensorSource

_BLOCK = 32
_HEADER_BYTES = {  # before the codes
    GGMLQuantizationType.Q8_0: 2,
    GGMLQuantizationType.Q4_0: 2,
    GGMLQuantizationType.Q4_1: 4,
}
_ROWS_PER_PIECE = 4096


def block_sources(tensor: ReaderTensor, config: dict[str, Any]) -> list[TensorSource]:
    """Return the parts of a matrix, to be written; none if it is not stored in such blocks."""
    kind = tensor.tensor_type
    if kind not in _HEADER_BYTES or len(tensor.shape) != 2:
        return []
    size, out = (int(length) for length in tensor.shape)
    is_byte = kind is GGMLQuantizationType.Q8_0
    order = row_order(tensor.name, out, config)
    name = hugging_face_name(tensor.name)

    def source(part: str, dtype: str, width: int, read: Callable[..., np.ndarray]) -> TensorSource:
        pieces = _pieces(tensor, order, read)
        return TensorSource(name=f"{name}.{part}", dtype=dtype, shape=(out, width), pieces=pieces)

    sources = [
        source("codes", "U8", size if is_byte else size // 2, _codes),
        source("scales", "F16", size // _BLOCK, _scales),
    ]
    if not is_byte:
        sources.append(source("minimums", "F16", size // _BLOCK, _minimums))
    return sources


def _pieces(
    tensor: ReaderTensor, order: np.ndarray | None, read: Callable[..., np.ndarray]
) -> Iterator[memoryview]:
    kind = tensor.tensor_type
    block_bytes = _HEADER_BYTES[kind] + (
        _BLOCK if kind is GGMLQuantizationType.Q8_0 else _BLOCK // 2
    )
    for start in range(0, len(tensor.data), _ROWS_PER_PIECE):
        stop = start + _ROWS_PER_PIECE
        rows = tensor.data[start:stop] if order is None else tensor.data[order[start:stop]]
        blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)
        yield np.ascontiguousarray(read(blocks, kind)).data.cast("B")


def _codes(blocks: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return unsigned codes; those of four bits two to a byte, the even one in the low half."""
    stored = blocks[..., _HEADER_BYTES[kind] :]
    if kind is GGMLQuantizationType.Q8_0:
        return stored ^ 0x80  # signed to unsigned: plus 128
    values = np.concatenate((stored & 15, stored >> 4), axis=-1)
    packed: np.ndarray = values[..., 0::2] | values[..., 1::2] << 4
    return packed


def _scales(blocks: np.ndarray, _: GGMLQuantizationType) -> np.ndarray:
    return _half(blocks, 0)


def _minimums(blocks: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    if kind is GGMLQuantizationType.Q4_1:
        return _half(blocks, 2)
    minimums: np.ndarray = _half(blocks, 0) * np.float16(-8)  # exact: a power of two
    return minimums


def _half(blocks: np.ndarray, offset: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., offset : offset + 2]).view(np.float16)[..., 0]
