"""Writes a safetensors file piece by piece, so that memory stays bounded by one piece.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes in its order.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A tensor to be written."""

    name: str
    dtype: str  # F32, F16, BF16 or U8
    shape: tuple[int, ...]
    pieces: Iterable[bytes | memoryview]  # its bytes in order, row-major, little-endian

    @property
    def size_bytes(self) -> int:
        """The length of all pieces together."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_safetensors(path: Path, sources: Sequence[TensorSource]) -> Iterable[float]:
    """Write a file; yields the fraction of bytes written after every tensor."""
    header, total = _header(sources)
    written = 0
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little"))
        stream.write(header)
        for source in sources:
            start = stream.tell()
            for piece in source.pieces:
                stream.write(piece)
            assert stream.tell() - start == source.size_bytes, source.name
            written += source.size_bytes
            yield written / max(total, 1)


def _header(sources: Sequence[TensorSource]) -> tuple[bytes, int]:
    """Return the header, padded so that the data is 8-byte aligned, and the data's length."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for source in sources:
        end = offset + source.size_bytes
        entries[source.name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % 8), offset
