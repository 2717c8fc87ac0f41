"""Sends small tables of numbers to the device without waiting for it.

A copy from ordinary memory to a GPU waits for everything launched before, so every list sent in the
middle of a step would stop the host until the segments so far are done. A copy from pinned memory
is queued like a kernel; torch keeps the pinned bytes until it has run.
"""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; Triton compiles a kernel again for pointers aligned to less
_CODES = {  # type codes of `array`
    torch.bool: "b",
    torch.int32: "i",
    torch.int64: "q",
    torch.float32: "f",
    torch.float64: "d",
}


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers, or equally long rows of them, as a tensor on the device."""
    return send(_table(values, dtype), device)


def upload_all(
    lists: Sequence[tuple[Sequence[Any], torch.dtype]], device: torch.device
) -> list[Tensor]:
    """Return lists of numbers as tensors on the device; a GPU is sent one piece of memory."""
    if device.type != "cuda":
        return [_table(values, dtype) for values, dtype in lists]
    pieces: list[bytes] = []
    for values, dtype in lists:
        piece = array(_CODES[dtype], values).tobytes()
        pieces += piece, bytes(-len(piece) % _ALIGNMENT)
    packed = torch.frombuffer(bytearray().join(pieces), dtype=torch.uint8)
    there = send(packed, device).split([len(piece) for piece in pieces])
    return [part.view(dtype) for part, (_, dtype) in zip(there[::2], lists, strict=True)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device; a GPU's copy is queued, not waited for."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _table(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Return numbers, or equally long rows of them, as a tensor on the CPU.

    `torch.tensor` takes several times as long, because it inspects every number as an object.
    """
    if not values:
        return torch.empty(0, dtype=dtype)
    if isinstance(values[0], (list, tuple, range)):  # a faster check than for `Sequence`
        return _table([*chain.from_iterable(values)], dtype).view(len(values), -1)
    return torch.frombuffer(array(_CODES[dtype], values), dtype=dtype)
