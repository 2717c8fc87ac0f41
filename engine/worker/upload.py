"""Small tables of numbers on their way to the device, without waiting for it.

From ordinary memory a copy to a GPU waits for all that was launched before, so every list sent in
the middle of a step would stop the host until the segments so far are done. From pinned memory it
queues like a kernel; torch keeps the pinned bytes until it has run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes: a kernel of Triton's is compiled anew for pointers that have less


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or rows of them, as a tensor on the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def upload_all(
    lists: Sequence[tuple[Sequence[Any], torch.dtype]], device: torch.device
) -> list[Tensor]:
    """Lists of numbers as tensors on the device; a GPU is sent one piece of memory."""
    if device.type != "cuda":
        return [upload(values, dtype, device) for values, dtype in lists]
    pieces: list[bytes] = []
    for values, dtype in lists:
        piece = torch.tensor(values, dtype=dtype).numpy().tobytes()
        pieces += piece, bytes(-len(piece) % _ALIGNMENT)
    packed = torch.frombuffer(bytearray().join(pieces), dtype=torch.uint8)
    there = send(packed, device).split([len(piece) for piece in pieces])
    return [part.view(dtype) for part, (_, dtype) in zip(there[::2], lists, strict=True)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
